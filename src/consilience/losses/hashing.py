"""Health of codes before the sign: near -1 or +1, balanced bits, bits that do not repeat each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def quantisation(u: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """Mean of (|u| - 1)^2: what the sign throws away."""
    return (u.float().abs() - 1).square().mean()


def imbalance(u: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """|mean over samples of u|^2 / K: 0 when every bit is as often set as not, 1 when no bit ever changes."""
    return u.float().mean(0).square().mean()


def correlation(u: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """Mean square of the off-diagonal entries of u^T u / n: 0 for bits that tell different things, 0 for one bit."""
    bits = u.shape[1]
    if bits < 2:
        return u.float().sum() * 0
    joint = u.float().T @ u.float() / len(u)
    return (joint.square().sum() - joint.diagonal().square().sum()) / (bits * (bits - 1))


def code_health(
    codes: Sequence[Float[Tensor, "n k"]], quantised: float, balanced: float, apart: float
) -> dict[str, Float[Tensor, ""]]:
    """``quantisation``, ``imbalance`` and ``correlation``, each the mean over ``codes`` times its weight; none of
    weight 0."""
    measures = (("quantisation", quantised, quantisation), ("imbalance", balanced, imbalance),
                ("correlation", apart, correlation))  # fmt: skip
    return {
        name: weight * torch.stack([measure(u) for u in codes]).mean() for name, weight, measure in measures if weight
    }
