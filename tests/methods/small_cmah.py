"""CMAH at toy size, and a batch for it."""

from __future__ import annotations

import dataclasses

import torch

from consilience.data.schema import Batch, Kind
from consilience.methods.base import Progress
from consilience.methods.cmah import CMAH, CMAHConfig

KINDS = {"image": Kind.GREY, "points": Kind.POINTS}
SMALL = CMAHConfig(bits=16, width=16, attention_heads=2, groups=8, group_size=8, group_width=8)
START = Progress(0, "train", 0, 0.0, 0)


def batch(count: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)
    cloud = torch.randn(count, 32, 3, generator=generator)
    seen = torch.ones(count, dtype=torch.bool)
    return Batch(torch.arange(count) + 3, {"image": pixels, "points": cloud}, {"image": seen, "points": seen.clone()})


def method(**options: object) -> CMAH:
    torch.manual_seed(0)
    return CMAH(dataclasses.replace(SMALL, **options), KINDS, 20)  # type: ignore[arg-type]
