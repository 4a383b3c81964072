"""A memory of one unit vector a sample, addressed by the sample's index."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from consilience.errors import InputError


class Bank(nn.Module):
    """Rows float32 [N, D], persistent (part of every checkpoint), updated only where a batch touches them."""

    rows: Tensor

    def __init__(self, samples: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(samples, width))

    @torch.no_grad()
    def fill(self, vectors: Float[Tensor, "n d"]) -> None:
        """Set row i to vector i, normalised."""
        if vectors.shape != self.rows.shape:
            raise InputError(f"the bank holds {tuple(self.rows.shape)} values, got {tuple(vectors.shape)}")
        self.rows.copy_(F.normalize(vectors.float(), dim=1))

    @torch.no_grad()
    def update(self, index: Int64[Tensor, " b"], vectors: Float[Tensor, "b d"], momentum: float) -> None:
        """row <- unit(momentum * row + (1 - momentum) * unit(vector)) for the given rows, nothing else.

        A sample that occurs twice in ``index`` moves once, towards the mean of its unit vectors. ``momentum`` = 1
        leaves the rows bitwise as they are.
        """
        if momentum == 1:
            return
        unit = F.normalize(vectors.float(), dim=1)
        touched, where = torch.unique(index, return_inverse=True)
        if touched.shape[0] != index.shape[0]:
            sums = torch.zeros(touched.shape[0], unit.shape[1], device=unit.device).index_add_(0, where, unit)
            counts = torch.bincount(where, minlength=touched.shape[0]).unsqueeze(1)
            unit, index = sums / counts, touched
        self.rows[index] = F.normalize(momentum * self.rows[index] + (1 - momentum) * unit, dim=1)
