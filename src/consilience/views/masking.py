"""Random masks with a fixed number of hidden parts, and images as rows of patches: what masked auto-encoders need.

K. He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022 (arXiv 2111.06377). Draws are keyed by
sample (:mod:`consilience.views.keyed`): a sample's mask does not depend on its batch, its process or what came before.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from consilience.errors import InputError
from consilience.views.keyed import KeyedRandom

_SLOT = 50
EPSILON = 1e-6


def hidden_count(total: int, share: float) -> int:
    """floor(share * total), the number of parts a mask hides; exact for shares such as 0.29 of 100."""
    return math.floor(share * total + 1e-9)


def random_masks(
    total: int, share: float, random: KeyedRandom
) -> tuple[Int64[Tensor, "b visible"], Int64[Tensor, "b hidden"]]:
    """For every sample, which of ``total`` parts stay visible and which are hidden, in ascending order.

    ``hidden_count(total, share)`` parts are hidden, the same number for every sample, every choice equally likely.
    Raises :class:`InputError` when nothing or everything would be hidden.
    """
    hidden = hidden_count(total, share)
    if not 0 < hidden < total:
        raise InputError(
            f"a mask of share {share} hides {hidden} of {total} parts; choose a share that hides at least one and "
            "leaves at least one"
        )
    order = random.uniform(_SLOT, 0.0, 1.0, total).argsort(dim=1, stable=True)
    return order[:, hidden:].sort(dim=1).values, order[:, :hidden].sort(dim=1).values


def take(rows: Float[Tensor, "b t *d"], places: Int64[Tensor, "b k"]) -> Float[Tensor, "b k *d"]:
    """The parts ``places`` of every sample, differentiable."""
    own = torch.arange(rows.shape[0], device=rows.device)[:, None]
    return rows[own, places]


def patchify(images: Float[Tensor, "b c h w"], side: int) -> Float[Tensor, "b t p"]:
    """Square patches row by row: t = (h / side) (w / side), p = side * side * c with the channel last.

    Raises :class:`InputError` when ``side`` does not divide height and width.
    """
    b, c, h, w = images.shape
    if side < 1 or h % side or w % side:
        raise InputError(f"images of {h} x {w} pixels do not divide into patches of {side}; choose a divisor")
    parts = images.view(b, c, h // side, side, w // side, side)
    return parts.permute(0, 2, 4, 3, 5, 1).reshape(b, (h // side) * (w // side), side * side * c)


def unpatchify(
    patches: Float[Tensor, "b t p"], side: int, height: int, width: int
) -> Float[Tensor, "b c {height} {width}"]:
    """The images whose :func:`patchify` is ``patches``."""
    b, _, length = patches.shape
    channels = length // (side * side)
    parts = patches.view(b, height // side, width // side, side, side, channels)
    return parts.permute(0, 5, 1, 3, 2, 4).reshape(b, channels, height, width)


def normalised(patches: Float[Tensor, "b t p"]) -> Float[Tensor, "b t p"]:
    """(x - mean) / sqrt(variance + 1e-6) of every patch over its own values, the reconstruction target of MAE
    (section 4.1 there), float32. The variance divides by p - 1 as in MAE's code; a flat patch becomes zeros."""
    patches = patches.float()
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
    return (patches - mean) / torch.sqrt(variance + EPSILON)
