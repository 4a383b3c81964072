"""Hinge ranking losses over a square matrix of pair scores, with a margin of its own for every pair.

Row i, column j of ``scores`` is the score of image i with caption j; the diagonal holds the given pairs. Values are
one a pair: the sum over them is the objective of VSE++, SGRAF, NCR and PC2.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Curve = Literal["exponential", "linear", "sine"]
BASE = 10.0
"""m of the exponential curve (NCR eq. 9; PC2 poster)."""


def soft_margin(y: Float[Tensor, " n"], margin: float, curve: Curve = "exponential") -> Float[Tensor, " n"]:
    """The margin of a pair whose correspondence is believed to degree y in [0, 1]: 0 at y = 0, ``margin`` at y = 1.

    exponential: margin (10^y - 1) / 9; linear: margin y; sine: margin (sin(pi y - pi/2) + 1) / 2 (NCR, PC2).
    """
    if curve == "exponential":
        return margin * (torch.pow(BASE, y) - 1) / (BASE - 1)
    if curve == "linear":
        return margin * y
    return margin * (torch.sin(math.pi * y - math.pi / 2) + 1) / 2


def triplet(
    scores: Float[Tensor, "n n"],
    margin: Float[Tensor, " n"] | float,
    reduction: Literal["hard", "mean"],
    negatives: Bool[Tensor, "n n"] | None = None,
) -> Float[Tensor, " n"]:
    """[m_i - S_ii + S_ij]_+ over captions j plus [m_i - S_ii + S_ji]_+ over images j, float32, one value a pair.

    ``reduction``: hard takes the largest term of each direction (VSE++), mean the mean over all n columns, the pair's
    own counted as 0 (SGRAF's warm-up form as NCR and PC2 compute it). Both directions use the margin of pair i (the
    release of PC2 gives one direction the margin of the negative's pair). ``negatives`` [i, j]: which captions j and
    images j may push pair i; all others by default. The divisor of ``mean`` stays n.
    """
    s = scores.float()
    n = s.shape[0]
    allowed = ~torch.eye(n, dtype=torch.bool, device=s.device)
    if negatives is not None:
        allowed = allowed & negatives
    own = s.diagonal()[:, None]
    edge = margin[:, None] if isinstance(margin, Tensor) else margin
    captions = (edge - own + s).clamp(min=0) * allowed
    images = (edge - own + s.T).clamp(min=0) * allowed
    if reduction == "hard":
        return captions.amax(1) + images.amax(1)
    return captions.mean(1) + images.mean(1)


def predicted_correspondence(scores: Float[Tensor, "n n"], margin: float) -> Float[Tensor, " n"]:
    """How far each given pair stands above the other pairings of the batch, in [0, 1] (NCR eq. 8).

    The margin less half the pair's mean triplet losses, cut to [0, margin], over its mean among the best tenth of
    the batch. All pairs count as wrong (0) when even the best tenth lies below every alternative.
    """
    gap = (margin - triplet(scores, margin, "mean") / 2).clamp(0, margin)
    best = gap.topk(gap.shape[0] // 10 + 1).values.mean()
    return torch.where(best > 0, gap / best.clamp(min=1e-12), gap.new_zeros(())).clamp(0, 1)
