"""How much a prediction moves between looks at a pair (prediction oscillation), and what follows for its label."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def divergence(p: Float[Tensor, "n k"], q: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """KL(p || q) in nats of each row; PC2's oscillation of a pair when q is its prediction an epoch ago."""
    p, q = p.double().clamp(min=1e-12), q.double().clamp(min=1e-12)
    return (p * (p.log() - q.log())).sum(1).clamp(min=0).float()


def rectified(w: Float[Tensor, " n"], v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """y = w + (1 - w) v [v > 1/2]: a pair whose prediction stays put (v) is believed more than its loss (w) says
    (PC2, correspondence rectification of the clean part). Never below w, never above 1."""
    return (w + (1 - w) * v * (v > 0.5)).clamp(max=1)


def moving_mean(
    mean: Float[Tensor, " n"], now: Float[Tensor, " n"], momentum: float, first: bool
) -> Float[Tensor, " n"]:
    """Exponential mean over epochs; the first look is taken as it is."""
    return now.clone() if first else torch.lerp(now, mean, momentum)
