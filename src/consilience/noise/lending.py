"""Which trusted pairs could lend their other half to a pair that has lost its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def nearest_trusted(
    vectors: Float[Tensor, "n d"], trusted: Bool[Tensor, " n"], count: int, cut: float, block: int = 1024
) -> tuple[Int64[Tensor, "n {count}"], Float[Tensor, "n {count}"]]:
    """For every row the ``count`` trusted rows most similar to it (cosine), itself excepted, and the similarities.

    Similarities below ``cut`` are 0, as are places that have no row (fewer trusted rows than ``count``; they name
    row 0). Memory: ``block`` times n scores at a time.
    """
    unit, lenders = F.normalize(vectors.float(), dim=1), torch.nonzero(trusted)[:, 0]
    rows = torch.arange(len(unit), device=unit.device)
    index = rows.new_zeros(len(unit), count)
    similar = unit.new_zeros(len(unit), count)
    near = min(count, len(lenders))
    for start in range(0, len(unit), block if near else len(unit) + 1):
        some = rows[start : start + block]
        scores = unit[some] @ unit[lenders].T
        value, place = scores.masked_fill(some[:, None] == lenders[None], -2).topk(near, 1)
        index[some, :near] = lenders[place]
        similar[some, :near] = torch.where(value < max(cut, -1), 0.0, value)
    return index, similar
