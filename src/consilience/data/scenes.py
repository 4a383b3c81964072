"""Generated scenes whose complexity is known: discs and boxes on a colour gradient, many of them or few.

A scene has m shapes, ln(1 + m) spread evenly, in four colours of its own. Its score is ln(1 + m) / ln 31: 0 for an
empty scene, 1 for one with 30 shapes. Shapes may hide others: the score is what was drawn, not what is seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from consilience.data.reading import png_bytes
from consilience.data.schema import Kind
from consilience.data.table import Row

MODALITIES = {"image": Kind.RGB}
SIDE, MOST = 48, 30
ROWS = {"train": 1024, "test": 400}
_NOISE = 0.02


def scene(number: int, seed: int = 0) -> tuple[UInt8[np.ndarray, "48 48 3"], int]:
    """Pixels of scene ``number`` and how many shapes it has; a function of ``seed`` and ``number`` alone."""
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, number], dtype=np.uint64)))
    shapes = int((MOST + 1) ** rng.random() + 0.5) - 1
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
    angle = rng.uniform(0, 2 * np.pi)
    along = ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle) + 0.75) / 1.5
    ends = rng.random((2, 3))
    pixels = ends[0] + along[..., None] * (ends[1] - ends[0])
    palette = rng.random((4, 3))
    for _ in range(shapes):
        colour = palette[rng.integers(4)]
        centre, size = rng.random(2), rng.uniform(0.04, 0.2, 2)
        if rng.random() < 0.5:
            inside = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < size[0] ** 2
        else:
            inside = (np.abs(x - centre[0]) < size[0]) & (np.abs(y - centre[1]) < size[1])
        pixels[inside] = colour
    pixels = pixels + rng.normal(0, _NOISE, pixels.shape)
    return np.round(pixels.clip(0, 1) * 255).astype(np.uint8), shapes


def scene_rows(count: int, split: str, seed: int = 0, start: int = 0) -> Iterator[Row]:
    """Scenes ``start`` to ``start + count`` as rows of a Table, with columns ``score`` and ``shapes``."""
    for number in range(start, start + count):
        pixels, shapes = scene(number, seed)
        yield Row(
            id=f"{split}-{number:05d}",
            split=split,
            values={"image": png_bytes(pixels)},
            origins={"image": f"scenes of seed {seed}::{number}"},
            scalars={"score": float(np.log1p(shapes) / np.log1p(MOST)), "shapes": shapes},
        )


def scenes() -> Iterator[Row]:
    """The embedded data set: its training scenes, then its test scenes."""
    start = 0
    for split, count in ROWS.items():
        yield from scene_rows(count, split, start=start)
        start += count
