"""The decoder of masked auto-encoders: from the encoded visible parts to a prediction of every hidden one.

K. He et al., CVPR 2022 (images); Y. Pang et al., ECCV 2022 (clouds). What a prediction means is the tokeniser's affair:
3 S coordinates of a group of points, or the normalised values of a patch.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from consilience.encoders.transformer import Block


class MaskedDecoder(nn.Module):
    """Visible tokens and, at every hidden place, one learned mask token; blocks; layer norm; a linear layer.

    ``width``: of the tokens given and, after a linear layer where they differ (``inner``), of the blocks.
    """

    def __init__(self, width: int, inner: int, depth: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.enter: nn.Module = nn.Identity() if inner == width else nn.Linear(width, inner)
        self.enter_place: nn.Module = nn.Identity() if inner == width else nn.Linear(width, inner)
        self.mask = nn.Parameter(torch.randn(inner) * 0.02)
        self.blocks = nn.ModuleList(Block(inner, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(inner)
        self.leave = nn.Linear(inner, outputs)

    def forward(
        self,
        visible: Float[Tensor, "b k d"],
        visible_place: Float[Tensor, "b k d"],
        hidden_place: Float[Tensor, "b h d"],
    ) -> Float[Tensor, "b h p"]:
        """Predictions of the hidden parts from encoded visible ones and the position codes of both."""
        seen = self.enter(visible) + self.enter_place(visible_place)
        asked = self.mask.to(seen.dtype) + self.enter_place(hidden_place)
        x = torch.cat([seen, asked.to(seen.dtype)], 1)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.leave(self.norm(x[:, visible.shape[1] :]))
        return out
