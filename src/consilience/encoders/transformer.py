"""A small transformer trained from scratch, shared by the text encoder and the vision transformer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

HEADS = 4


class Block(nn.Module):
    """Pre-norm self-attention and a GELU layer of four times the width (Vaswani et al., 2017; Xiong et al., 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(width)
        self.attend = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """``mask``: places that may be looked at; every row needs one."""
        b, length, width = x.shape
        parts = self.attend(self.before_attention(x)).view(b, length, 3, HEADS, width // HEADS)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        seen = None if mask is None else mask[:, None, None, :]
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        x = x + self.join(found.transpose(1, 2).reshape(b, length, width))
        out: Tensor = x + self.feed(x)
        return out


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
