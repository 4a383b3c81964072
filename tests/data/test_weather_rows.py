"""Weather on a data set: who gets it, what is kept about it, and the embedded nuclei."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from consilience.data.datasets import DATASETS, read_dataset
from consilience.data.nuclei import build
from consilience.data.reading import Reading
from consilience.data.schema import Kind
from consilience.data.table import Row
from consilience.data.weather import NORMAL, WEATHERS, rendered, with_weather
from consilience.errors import InputError

from .conftest import png

SHARES = {"haze": 0.2, "snow": 0.1}


def source(n: int = 400, **scalars: object) -> Reading:
    grey = png(np.full((9, 12), 90, dtype=np.uint8))

    def rows() -> Iterator[Row]:
        for i in range(n):
            split = "test" if i % 10 == 9 else "train"
            yield Row(f"s{i}", split, {"image": grey}, {"image": f"{i}.png"}, None, dict(scalars))

    return Reading("made up", {"image": Kind.GREY}, rows())


def rows_of(reading: Reading) -> list[Row]:
    return [row for row in reading.rows if isinstance(row, Row)]


def test_shares_of_training_rows_and_test_rows_in_each() -> None:
    rows = rows_of(with_weather(source(), SHARES, 3))
    train = Counter(row.scalars["weather"] for row in rows if row.split == "train")
    assert sum(train.values()) == 360
    assert train["haze"] == pytest.approx(72, abs=25)
    assert train["snow"] == pytest.approx(36, abs=20)
    test = [row for row in rows if row.split == "test"]
    assert Counter(row.scalars["weather"] for row in test) == {"normal": 40, "haze": 40, "snow": 40}
    assert [row.id for row in test[:3]] == ["s9", "s9#haze", "s9#snow"]
    assert len({row.scalars["group"] for row in test[:3]}) == 1
    assert len({row.id for row in rows}) == len(rows)


def test_a_row_does_not_depend_on_the_others_and_can_be_made_again() -> None:
    whole = {row.id: row for row in rows_of(with_weather(source(), SHARES, 3))}
    part = {row.id: row for row in rows_of(with_weather(source(50), SHARES, 3))}
    assert all(whole[name] == row for name, row in part.items())
    hazy = next(row for row in part.values() if row.scalars["weather"] == "haze")
    kept = json.loads(hazy.scalars["weather_parameters"])
    grey = png(np.full((9, 12), 90, dtype=np.uint8))
    again, drawn = rendered(grey, kept["weather"], hazy.id.split("#")[0], kept["seed"])
    assert again == hazy.values["image"]
    assert drawn == {name: kept[name] for name in ("beta", "airlight")}
    other = {row.id: row for row in rows_of(with_weather(source(50), SHARES, 4))}
    assert other != part


def test_size_and_colour_are_kept() -> None:
    for weather in WEATHERS:
        data, _ = rendered(png(np.full((9, 12), 90, dtype=np.uint8)), weather, "a", 0)
        assert Image.open(io.BytesIO(data)).mode == "L"
        assert Image.open(io.BytesIO(data)).size == (12, 9)
        colour, _ = rendered(png(np.full((9, 12, 3), 90, dtype=np.uint8)), weather, "a", 0)
        assert Image.open(io.BytesIO(colour)).mode == "RGB"


def test_real_weather_is_left_alone() -> None:
    rows = rows_of(with_weather(source(40, weather="rain"), {"haze": 1.0}))
    assert len(rows) == 40
    assert {row.scalars["weather"] for row in rows} == {"rain"}


@pytest.mark.parametrize(
    ("shares", "words"),
    [({"hail": 0.1}, "unknown weather"), ({"haze": 1.5}, "share from 0 to 1"), ({"haze": 0.6, "rain": 0.6}, "sum to")],
)
def test_wrong_shares(shares: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        with_weather(source(), shares)


def test_weather_needs_a_picture() -> None:
    with pytest.raises(InputError, match="0 picture modalities"):
        with_weather(replace(source(), kinds={"points": Kind.POINTS}), SHARES)


def test_a_broken_picture_is_a_bad_sample() -> None:
    broken = Row("x", "train", {"image": b"no picture"}, {"image": "x.png"})
    bad = list(with_weather(replace(source(), rows=iter([broken])), {"haze": 1.0}).rows)
    assert not isinstance(bad[0], Row)
    assert bad[0].origin == "x.png"


def test_the_embedded_nuclei() -> None:
    clear = rows_of(read_dataset("nuclei:clear"))
    assert Counter(row.split for row in clear) == {"train": 277, "test": 94}
    for row in clear[:20]:
        width, height = Image.open(io.BytesIO(row.values["image"] or b"")).size
        assert max(width, height) == 112
        places = np.array(row.scalars["places"])
        assert len(places) == row.scalars["count"] > 0
        assert (places >= 0).all()
        assert (places <= [width, height]).all()
    assert {row.scalars["weather"] for row in clear} == {NORMAL}


def test_the_embedded_file_is_made_from_the_source(shared: Path, tmp_path: Path) -> None:
    """The first pictures of the source: the same points and pixels as are embedded."""
    first = pq.read_table(shared / "nuclei_counting" / "nuclei_counting.parquet").slice(0, 4)
    pq.write_table(first, tmp_path / "source.parquet")
    build(tmp_path / "source.parquet", tmp_path / "made.parquet")
    made = pq.read_table(tmp_path / "made.parquet").to_pylist()
    for entry, row in zip(made, read_dataset("nuclei:clear").rows, strict=False):
        assert isinstance(row, Row)
        assert (entry["id"], entry["split"], entry["places"]) == (row.id, row.split, row.scalars["places"])
        here, there = (Image.open(io.BytesIO(data or b"")) for data in (entry["image"], row.values["image"]))
        np.testing.assert_array_equal(np.asarray(here), np.asarray(there))


def test_nuclei_in_weather() -> None:
    reading = read_dataset("nuclei")
    rows = [row for row, _ in zip(reading.rows, range(60), strict=False) if isinstance(row, Row)]
    assert {"weather", "weather_parameters", "places", "group"} <= set(reading.scalars)
    assert {row.scalars["weather"] for row in rows} == {NORMAL, *WEATHERS}
    assert DATASETS["nuclei"].rows == {"train": 277, "test": 376}
