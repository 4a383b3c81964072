"""A small transformer trained from scratch, shared by the text encoder, the vision transformer and masked encoders."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

HEADS = 4


class Block(nn.Module):
    """Pre-norm self-attention and a GELU layer of four times the width (Vaswani et al., 2017; Xiong et al., 2020)."""

    def __init__(self, width: int, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.attend = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        mask: Bool[Tensor, "b l"] | None = None,
        branches: Float[Tensor, "b 2"] | None = None,
    ) -> Float[Tensor, "b l d"]:
        """``mask``: places that may be looked at; every row needs one. ``branches``: factors of what attention and
        the feed-forward layer add to each row, for stochastic depth (Huang et al., ECCV 2016)."""
        b, length, width = x.shape
        parts = self.attend(self.before_attention(x)).view(b, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        seen = None if mask is None else mask[:, None, None, :]
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        joined = self.join(found.transpose(1, 2).reshape(b, length, width))
        if branches is None:
            x = x + joined
            out: Tensor = x + self.feed(x)
            return out
        first, second = branches[:, :, None, None].unbind(1)
        x = x + joined * first.to(joined.dtype)
        fed: Tensor = self.feed(x)
        return x + fed * second.to(fed.dtype)


class Transformer(nn.Module):
    """Learned positions (normal, 0.02), blocks, and a last layer norm."""

    def __init__(self, width: int, layers: int, places: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(places, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """``l`` is at most the number of places."""
        x = x + self.positions[: x.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        out: Tensor = self.norm(x)
        return out
