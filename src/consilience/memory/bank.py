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
        """row <- unit(momentum * row + (1 - momentum) * vector) for the given rows, nothing else (RoMo, SSM).

        Vectors are taken as they are: long ones move a row faster. A sample that occurs twice in ``index`` moves
        once, towards the mean of its vectors. ``momentum`` = 1 leaves the rows bitwise as they are.
        """
        if momentum == 1:
            return
        vectors = vectors.float()
        touched, where = torch.unique(index, return_inverse=True)
        if touched.shape[0] != index.shape[0]:
            sums = torch.zeros(touched.shape[0], vectors.shape[1], device=vectors.device).index_add_(0, where, vectors)
            counts = torch.bincount(where, minlength=touched.shape[0]).unsqueeze(1)
            vectors, index = sums / counts, touched
        self.rows[index] = F.normalize(momentum * self.rows[index] + (1 - momentum) * vectors, dim=1)
