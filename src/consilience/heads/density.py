"""From feature maps to a density map, a small change of features that begins as none, and large pictures by tiles."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class DensityDecoder(nn.Module):
    """Things a cell, from features of ``width`` channels: 3x3 to a half and to a quarter of the channels with ReLU, 1x1
    to one, absolute value (Bayesian loss, ICCV 2019: 512, 256, 128, 1). ``enlarge``: the map has that many times the
    places of the features along a side (bilinear)."""

    def __init__(self, width: int, enlarge: int = 1) -> None:
        super().__init__()
        self.enlarge = enlarge
        middle, narrow = max(8, width // 2), max(8, width // 4)
        self.layers = nn.Sequential(
            nn.Conv2d(width, middle, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(middle, narrow, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(narrow, 1, 1),
        )

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 y x"]:
        """Non-negative, float32."""
        if self.enlarge > 1:
            features = F.interpolate(features, scale_factor=self.enlarge, mode="bilinear", align_corners=False)
        density: Tensor = self.layers(features)
        return density.float().abs()


class Refiner(nn.Module):
    """h + 1x1 down - ReLU - 3x3 - ReLU - 1x1 up (h), through a quarter of the channels. The last layer begins at zero,
    so that an untrained refiner gives what it got."""

    def __init__(self, width: int) -> None:
        super().__init__()
        middle = max(4, width // 4)
        self.layers = nn.Sequential(
            nn.Conv2d(width, middle, 1),
            nn.ReLU(),
            nn.Conv2d(middle, middle, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(middle, width, 1),
        )
        last = self.layers[-1]
        for value in last.parameters():
            nn.init.zeros_(value)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Refined features of the same shape."""
        change: Tensor = self.layers(features)
        return features + change


def in_tiles(
    density: Callable[[Tensor], Tensor], pictures: Float[Tensor, "b c h w"], most: int, stride: int
) -> Float[Tensor, "b 1 y x"]:
    """The density map of pictures with sides of any length: those above ``most`` pixels are cut into the least number
    of equal tiles (ends on multiples of ``stride``, pixels a cell) that are judged one by one and put together."""
    cuts = []
    for side in pictures.shape[2:]:
        step = stride * math.ceil(side / math.ceil(side / most) / stride)
        cuts.append([slice(start, min(start + step, side)) for start in range(0, side, step)])
    rows = [torch.cat([density(pictures[:, :, y, x]) for x in cuts[1]], 3) for y in cuts[0]]
    return torch.cat(rows, 2)
