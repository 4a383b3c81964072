"""CLIC's complexity-aware loss: activations that follow the entropy of what is seen (arXiv 2411.12792)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def feature_activation(maps: Sequence[Tensor]) -> Float[Tensor, " b"]:
    """FAE(x): the sum over stages of the mean activation over channels and places, float32. ``maps``: [b, c, h, w]."""
    return torch.stack([one.float().mean((1, 2, 3)) for one in maps]).sum(0)


def complexity_aware(activation: Float[Tensor, " b"], entropy: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    """Mean of (FAE(x) - GE(x))^2 over the samples for which it is finite; 0 without any."""
    finite = torch.isfinite(activation) & torch.isfinite(entropy)
    # masked before the square: the gradient of a value that is thrown away must not be NaN
    gap = torch.where(finite, activation, 0.0) - torch.where(finite, entropy, 0.0)
    return gap.square().sum() / finite.sum().clamp(min=1)
