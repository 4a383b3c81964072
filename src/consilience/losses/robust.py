"""Classification losses for labels that may be wrong. Each returns one float32 value a sample.

Notation: p_y is the predicted probability of the given (pseudo) label, K the number of classes.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

_CEILING = -1e-6  # upper clamp of log p_y: keeps (-log p)^(alpha - 1) finite at p = 1


def _log_p(logits: Tensor, labels: Tensor) -> Tensor:
    return F.log_softmax(logits.float(), 1).gather(1, labels[:, None])[:, 0]


def cross_entropy(logits: Float[Tensor, "b k"], labels: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
    """-log p_y."""
    return -_log_p(logits, labels)


def mean_absolute_error(logits: Float[Tensor, "b k"], labels: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
    """1 - p_y (half of the L1 distance to the one-hot label; Ghosh et al. 2017)."""
    return 1 - _log_p(logits, labels).exp()


def generalised_cross_entropy(
    logits: Float[Tensor, "b k"], labels: Int64[Tensor, " b"], q: float = 0.7
) -> Float[Tensor, " b"]:
    """(1 - p_y^q) / q (Zhang, Sabuncu 2018): cross-entropy for q -> 0, mean absolute error for q = 1."""
    value: Tensor = (1 - (q * _log_p(logits, labels)).exp()) / q
    return value


def rcll(
    logits: Float[Tensor, "b k"], labels: Int64[Tensor, " b"], alpha: float = 0.25, floor: float = 0.0
) -> Float[Tensor, " b"]:
    """Robust concentrating learning loss of RoMo, l(p) = (1 - p)(-log p)^alpha at p = p_y.

    ``floor``: probabilities at or below it cost the constant l(floor) and carry no gradient; the paper's intent is
    1/K (chance), 0 switches it off. alpha = 0 gives mean absolute error, alpha = 1 focal loss with gamma 1.
    Value and gradient are finite for all finite logits.
    """
    low = math.log(floor) if floor > 0 else -1e4  # p = e^-10000: past float32, only to keep the power finite
    log_p = _log_p(logits, labels).clamp(min=low, max=_CEILING)
    value: Tensor = (1 - log_p.exp()) * (-log_p).pow(alpha)
    return value


def rcll_released(
    logits: Float[Tensor, "b k"], labels: Int64[Tensor, " b"], alpha: float = 0.25
) -> Float[Tensor, " b"]:
    """What the authors' code computes in place of :func:`rcll`'s floor, kept for study.

    Its threshold is 1/B (batch size) and its test is made a class at a time, so row i is counted once for each
    class whose probability exceeds 1/B: uncertain rows weigh *more*. The mean of the returned values is the
    released mean over counted rows. Entries below the threshold contribute l(1/B), a constant without gradient.
    (The release yields NaN when there is none; here the term is then 0.)
    """
    probability = F.softmax(logits.float(), 1)
    threshold = 1 / labels.shape[0]
    counted = (probability > threshold).sum(1).float()
    value = rcll(logits, labels, alpha)
    below = float((probability <= threshold).any())
    # l(1/B); with one row the threshold is 1, log p = 0 and the constant vanishes
    constant = (1 - threshold) * math.pow(-math.log(threshold), alpha) * below
    return value * counted * (labels.shape[0] / counted.sum().clamp(min=1)) + constant


def chance_ramp(progress: float, classes: int, start: float = 0.1, end: float = 0.5) -> float:
    """Floor for :func:`rcll` that is 0 until ``start`` of the training, then rises linearly to 1/K at ``end``.

    A floor of 1/K from the first step silences about half of the samples for good; ramped, it only lets go of
    those that are still at chance when the rest is learnt. ``progress`` in [0, 1].
    """
    return min(1.0, max(0.0, (progress - start) / (end - start))) / classes


BASELINES = {"ce": cross_entropy, "mae": mean_absolute_error, "gce": generalised_cross_entropy}
"""Losses that stand in for RCLL in comparisons, by the name that configurations use."""
