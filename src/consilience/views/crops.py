"""Random crops of pictures with points: both move together, a whole batch at a time, drawn by sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from consilience.errors import InputError
from consilience.views.keyed import KeyedRandom
from consilience.views.pictures import luma

SCALE, PLACE, FLIP, GREY = (700 + 20 * i for i in range(4))  # slots of the draws


@dataclass(frozen=True)
class CropConfig:
    """How training crops are cut (values of the published recipe: H. Lin et al., MAN, CVPR 2022)."""

    size: int = 64
    """Side of the crops in pixels (MAN: 512)."""
    scale_low: float = 0.75
    """Pictures are scaled by U[low, high] where the result still holds a crop."""
    scale_high: float = 1.25
    """See ``scale_low``."""
    flip: float = 0.5
    """Probability of a left-right mirror image."""
    grey: float = 0.12
    """Probability of a picture without colour."""

    def __post_init__(self) -> None:
        if self.size < 8:
            raise InputError(f"crops.size={self.size}: expected 8 pixels or more")
        if not 0 < self.scale_low <= self.scale_high:
            raise InputError(
                f"crops.scale_low={self.scale_low}, scale_high={self.scale_high}: expected 0 < low <= high"
            )
        for name in ("flip", "grey"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"crops.{name}={getattr(self, name)}: expected a probability from 0 to 1")


@dataclass(frozen=True)
class Crops:
    """Crops of a batch."""

    pictures: Float[Tensor, "b c s s"]
    points: Float[Tensor, "b m 2"]
    """Positions in pixels of the crop; NaN where there is none, or it lies outside."""
    scale: Float[Tensor, " b"]
    """By how much each picture was enlarged."""


def crop_view(
    pictures: Float[Tensor, "b c h w"], points: Float[Tensor, "b m 2"], random: KeyedRandom, config: CropConfig
) -> Crops:
    """One crop a picture in [0, 1]. Positions, like pixels, count from the upper left corner; a pixel's middle lies at
    a half. Raises InputError for pictures smaller than a crop."""
    height, width = pictures.shape[2:]
    size = config.size
    if min(height, width) < size:
        raise InputError(f"pictures of {width} x {height} pixels hold no crop of {size}; lower crops.size")
    scale = random.uniform(SCALE, config.scale_low, config.scale_high)[:, 0]
    scale = torch.where(scale * min(height, width) >= size, scale, 1.0)
    window = size / scale
    free = torch.stack([width - window, height - window], 1)
    left, top = (random.uniform(PLACE, 0, 1, 2) * (free.floor() + 1)).floor().unbind(1)
    mirrored = random.uniform(FLIP, 0, 1)[:, 0] < config.flip
    side = torch.where(mirrored, -1.0, 1.0)
    none = torch.zeros_like(scale)
    rows = torch.stack(
        [
            torch.stack([side * window / width, none, (2 * left + window) / width - 1], 1),
            torch.stack([none, window / height, (2 * top + window) / height - 1], 1),
        ],
        1,
    )
    grid = F.affine_grid(rows, [len(pictures), pictures.shape[1], size, size], align_corners=False)
    cut = F.grid_sample(pictures, grid.to(pictures.dtype), padding_mode="border", align_corners=False)
    if config.grey and cut.shape[1] == 3:
        plain = (random.uniform(GREY, 0, 1) < config.grey)[:, :, None, None]
        cut = torch.where(plain, luma(cut).expand_as(cut), cut)
    moved = (points - torch.stack([left, top], 1)[:, None]) * scale[:, None, None]
    x = torch.where(mirrored[:, None], size - moved[:, :, 0], moved[:, :, 0])
    moved = torch.stack([x, moved[:, :, 1]], 2)
    inside = ((moved >= 0) & (moved <= size)).all(2, keepdim=True)  # false for NaN
    return Crops(cut, torch.where(inside, moved, torch.nan), scale)
