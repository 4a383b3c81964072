"""Made-up crowds (section 6 (b) of the multi-queue MoCo sheet): dark soft dots on a wavy ground, some in weather."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from consilience.data.reading import Reading, png_bytes, write_reading
from consilience.data.schema import Kind
from consilience.data.table import Row, Table
from consilience.data.weather import with_weather

SIDE, MOST = 48, 35
SHARES = {"haze": 0.04, "rain": 0.04, "snow": 0.04}


def crowd(number: int) -> tuple[np.ndarray, list[list[float]]]:
    """A picture uint8 [48, 48, 3] and the positions of its 0 to 35 dots."""
    rng = np.random.default_rng([number, 48])
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    wave = sum(np.sin(rng.uniform(0.1, 0.4) * (x * np.cos(a) + y * np.sin(a)) + rng.uniform(0, 6)) for a in (0, 1, 2))
    ground = 0.7 + 0.06 * wave + 0.02 * rng.normal(size=(SIDE, SIDE))
    places = rng.uniform(2, SIDE - 2, (rng.integers(0, MOST + 1), 2))
    for px, py in places:
        size, depth = rng.uniform(1.0, 1.6), rng.uniform(0.4, 0.6)
        ground = ground * (1 - depth * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * size**2)))
    tint = rng.uniform(0.9, 1.0, 3)
    return (255 * ground[:, :, None] * tint).clip(0, 255).round().astype(np.uint8), places.tolist()


def dots(path: Path, train: int, test: int, shares: Mapping[str, float] = SHARES) -> Table:
    """A Table of ``train`` pictures, of which ``shares`` have weather, and ``test`` pictures in every weather."""

    def rows() -> Iterator[Row]:
        for number in range(train + test):
            pixels, places = crowd(number)
            split = "train" if number < train else "test"
            yield Row(f"d{number}", split, {"image": png_bytes(pixels)}, {"image": f"dots[{number}]"}, None,
                      {"places": places, "weather": "normal"})  # fmt: skip

    scalars = {"places": pa.list_(pa.list_(pa.float64())), "weather": pa.string()}
    plain = Reading("dots", {"image": Kind.RGB}, rows(), scalars)
    return write_reading(with_weather(plain, shares, 0), path, None, "stop")
