"""What paired modalities tell about each other: fusion, agreement, and how well one predicts the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def fuse(
    vectors: Mapping[str, Float[Tensor, "n d"]], present: Mapping[str, Bool[Tensor, " n"]]
) -> Float[Tensor, "n d"]:
    """Unit mean of a sample's unit vectors over the modalities it has."""
    unit = [F.normalize(v.float(), dim=1) * present[name][:, None] for name, v in vectors.items()]
    return F.normalize(torch.stack(unit).sum(0), dim=1)


def unanimous(labels: Int64[Tensor, "v n"], present: Sequence[Bool[Tensor, " n"]]) -> Bool[Tensor, " n"]:
    """Samples whose modalities all give the same label; an absent modality does not vote."""
    low = torch.stack([torch.where(p, x, torch.iinfo(torch.int64).max) for x, p in zip(labels, present)]).amin(0)
    high = torch.stack([torch.where(p, x, -1) for x, p in zip(labels, present)]).amax(0)
    return low >= high


def mutual_information(p: Float[Tensor, "n k"], q: Float[Tensor, "n k"]) -> float:
    """Information (nats) that one modality's soft cluster gives about the other's, over paired rows.

    High only when predictions are confident, use many clusters and agree: 0 on collapse or chance, at most log K.
    """
    joint = (p.double().T @ q.double()) / len(p)
    joint = ((joint + joint.T) / 2).clamp(min=1e-12)
    a, b = joint.sum(1, keepdim=True), joint.sum(0, keepdim=True)
    return float((joint * (joint.log() - a.log() - b.log())).sum())


def mean_reciprocal_rank(u: Float[Tensor, "n d"], v: Float[Tensor, "n d"]) -> float:
    """Mean of 1 / rank of the true partner among all rows (cosine), both ways; a tie counts against the partner."""
    return reciprocal_rank_of_scores(F.normalize(u, dim=1) @ F.normalize(v, dim=1).T)


def reciprocal_rank_of_scores(s: Float[Tensor, "n n"]) -> float:
    """:func:`mean_reciprocal_rank` for given scores; row i and column i are partners."""
    own = s.diagonal()
    forth, back = (s >= own[:, None]).sum(1), (s >= own[None]).sum(0)
    return float(((1 / forth).mean() + (1 / back).mean()) / 2)


def mean_over_pairs(
    measure: Callable[[Tensor, Tensor], float],
    views: Mapping[str, Float[Tensor, "n _"]],
    present: Mapping[str, Bool[Tensor, " n"]],
) -> float:
    """Mean of ``measure`` over all pairs of modalities, each over the samples that have both."""
    values = []
    for first, second in combinations(views, 2):
        both = present[first] & present[second]
        values.append(measure(views[first][both], views[second][both]))
    return sum(values) / len(values)
