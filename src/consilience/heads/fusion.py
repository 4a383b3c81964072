"""Two modalities' tokens read each other: self-attention, cross-attention, feed-forward (multimodal fusion block).

Used where a modality's hidden parts are to be reconstructed with the other one's help, never for vectors or codes:
retrieval has one modality at a time.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention with layer norms on both inputs; queries from ``x``, keys and values from ``context``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.before_context = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.keys = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.join = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b l d"], context: Float[Tensor, "b m d"]) -> Float[Tensor, "b l d"]:
        """What is to be added to ``x``."""
        b, length, width = x.shape
        split = (self.heads, width // self.heads)
        query = self.query(self.before(x)).view(b, length, *split).transpose(1, 2)
        pair = self.keys(self.before_context(context)).view(b, context.shape[1], 2, *split)
        key, value = pair.permute(2, 0, 3, 1, 4).unbind(0)
        found = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.join(found.transpose(1, 2).reshape(b, length, width))
        return out


class _Stream(nn.Module):
    """One modality's half of a fusion layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.own, self.other = Attention(width, heads), Attention(width, heads)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def self_attend(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        out: Tensor = x + self.own(x, x)
        return out

    def read(self, x: Float[Tensor, "b l d"], other: Float[Tensor, "b m d"]) -> Float[Tensor, "b l d"]:
        x = x + self.other(x, other)
        out: Tensor = x + self.feed(x)
        return out


class Fusion(nn.Module):
    """Layers of: self-attention within each modality, attention from each to the other, feed-forward; all residual.

    Both directions of the cross-attention read what self-attention has left, so that neither modality comes first.
    With no layers it hands its inputs on.
    """

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(_Stream(width, heads) for _ in range(layers))
        self.second = nn.ModuleList(_Stream(width, heads) for _ in range(layers))

    def forward(
        self, a: Float[Tensor, "b l d"], b: Float[Tensor, "b m d"]
    ) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b m d"]]:
        """Both modalities' tokens, row i of each belonging to pair i."""
        for one, two in zip(self.first, self.second, strict=True):
            assert isinstance(one, _Stream)
            assert isinstance(two, _Stream)
            a, b = one.self_attend(a), two.self_attend(b)
            a, b = one.read(a, b), two.read(b, a)
        return a, b
