"""Targets: only what is declared reaches a batch, in the pixels of the decoded picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from consilience.data.decode import DecodeConfig
from consilience.data.loader import Loader, read
from consilience.data.schema import Kind, Target
from consilience.data.table import Row, Table
from consilience.errors import InputError

from .conftest import png

POINTS = pa.list_(pa.list_(pa.float64()))


@pytest.fixture
def counted(tmp_path: Path) -> Table:
    """Six pictures of 20 x 10 pixels with 0 to 3 places, a weather and a score."""
    rng = np.random.default_rng(0)
    rows = [
        Row(
            str(i), "train", {"image": png(rng.integers(0, 256, (10, 20), dtype=np.uint8))}, {"image": f"{i}.png"},
            scalars={"points": [[2.0 * j, 3.0 + j] for j in range(i % 4)], "weather": ("fog", "none")[i % 2],
                     "score": None if i == 4 else i / 2},
        )
        for i in range(6)
    ]  # fmt: skip
    types = {"points": POINTS, "weather": pa.string(), "score": pa.float64()}
    return Table.create(tmp_path / "table", rows, {"image": Kind.GREY}, "made up", scalars=types)


TOLD = {"points": Target.PLACES, "weather": Target.CLASS, "score": Target.NUMBER}


def test_values_and_places_in_decoded_pixels(counted: Table) -> None:
    sizes = DecodeConfig(image_size=40, image_fit="whole")
    batch = next(read(counted, counted.select(), sizes, 6, targets=TOLD))
    assert batch.targets["weather"].tolist() == [0, 1, 0, 1, 0, 1]
    score = batch.targets["score"]
    assert torch.isnan(score).tolist() == [False] * 4 + [True, False]
    assert score[:4].tolist() == [0, 0.5, 1, 1.5]
    places = batch.targets["points"]
    assert places.shape == (6, 3, 2)
    assert (~torch.isnan(places[..., 0])).sum(1).tolist() == [0, 1, 2, 3, 0, 1]
    # twice the size, and ten rows of black above and below
    np.testing.assert_allclose(places[3].numpy(), [[0, 16], [4, 18], [8, 20]])


def test_nothing_undeclared_and_the_cache_agrees(counted: Table) -> None:
    sizes = DecodeConfig(image_size=16)
    assert next(read(counted, counted.select(), sizes, 6)).targets == {}
    for cache in (True, False):
        loader = Loader(counted, counted.select(), sizes, 4, seed=0, shuffle=True, cache=cache, targets=TOLD)
        for _ in range(2):
            seen = {}
            for batch in loader.epoch(0):
                for place, key in enumerate(batch.index.tolist()):
                    seen[key] = (int(batch.targets["weather"][place]), float(batch.targets["points"][place].nansum()))
            expected = next(read(counted, counted.select(), sizes, 6, targets=TOLD)).targets
            assert seen == {
                key: (int(expected["weather"][key]), float(expected["points"][key].nansum())) for key in range(6)
            }


def test_refusals(counted: Table, tmp_path: Path) -> None:
    sizes = DecodeConfig(image_size=16)
    with pytest.raises(InputError, match="no column 'depth'"):
        read_one(counted, sizes, {"depth": Target.NUMBER})
    row = Row("0", "train", {"image": png(np.zeros((4, 4), np.uint8))}, {"image": "0.png"}, scalars={"points": None})
    blank = Table.create(tmp_path / "blank", [row], {"image": Kind.GREY}, "made up", scalars={"points": POINTS})
    with pytest.raises(InputError, match="a row has no points"):
        read_one(blank, sizes, {"points": Target.PLACES})


def read_one(table: Table, sizes: DecodeConfig, targets: dict[str, Target]) -> None:
    next(read(table, table.select(), sizes, 6, targets=targets))
