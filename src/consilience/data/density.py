"""Density maps of decoded squares and the pictures that these show."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from consilience.data.pictures import Placement


def covered(places: Sequence[Placement], size: int, height: int, width: int) -> Bool[Tensor, "b 1 {height} {width}"]:
    """Which cells of density maps of ``size`` x ``size`` squares show some of the picture that was put there as each of
    ``places`` says; what a map holds elsewhere, on the black around a picture, is nothing of the picture's."""
    mask = torch.zeros(len(places), 1, height, width, dtype=torch.bool)
    top, left = torch.arange(height) * (size / height), torch.arange(width) * (size / width)
    for row, place in enumerate(places):
        inside_y = (top + size / height > place.top) & (top < place.top + place.height)
        inside_x = (left + size / width > place.left) & (left < place.left + place.width)
        mask[row, 0] = inside_y[:, None] & inside_x[None]
    return mask
