"""Sets of pictures with points in their published formats, written here as their publishers write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.io import savemat

from consilience.data.check import check
from consilience.data.decode import DecodeConfig
from consilience.data.importers import import_table
from consilience.data.loader import read
from consilience.data.schema import Kind, Target
from consilience.data.table import Table
from consilience.errors import InputError

from .conftest import png


def picture(i: int, width: int = 40, height: int = 30) -> bytes:
    return png(np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8))


def points(i: int) -> np.ndarray:
    """float64 [i, 2] inside of 40 x 30."""
    return np.random.default_rng(100 + i).random((i, 2)) * [40, 30]


def put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def shanghaitech(root: Path) -> Path:
    for part in ("part_A", "part_B"):
        for split, numbers in (("train_data", (1, 2)), ("test_data", (0, 3))):
            for i in numbers:
                put(root / part / split / "images" / f"IMG_{i}.jpg", picture(i))
                truth = root / part / split / "ground_truth" / f"GT_IMG_{i}.mat"
                truth.parent.mkdir(parents=True, exist_ok=True)
                inner = np.zeros((1, 1), dtype=[("location", object), ("number", object)])
                inner["location"][0, 0], inner["number"][0, 0] = points(i), i
                cell = np.empty((1, 1), dtype=object)
                cell[0, 0] = inner
                savemat(truth, {"image_info": cell})
    return root


def qnrf(root: Path) -> Path:
    for split, numbers in (("Train", (1, 2)), ("Test", (0, 3))):
        for i in numbers:
            put(root / split / f"img_{i:04d}.jpg", picture(i))
            savemat(root / split / f"img_{i:04d}_ann.mat", {"annPoints": points(i)})
    return root


def jhu(root: Path) -> Path:
    for split, numbers in (("train", (1, 2)), ("val", (3,)), ("test", (0,))):
        lines = []
        for i in numbers:
            put(root / split / "images" / f"{i:04d}.jpg", picture(i))
            heads = "".join(f"{x} {y} 5 6 1 0\n" for x, y in points(i).tolist())
            put(root / split / "gt" / f"{i:04d}.txt", heads)
            lines.append(f"{i:04d},{i},street,{i},0\n")
        put(root / split / "image_labels.txt", "".join(lines))
    return root


def nwpu(root: Path) -> Path:
    for i in (1, 2, 3, 4):
        put(root / "images" / f"{i:04d}.jpg", picture(i))
        if i < 4:
            truth = {
                "img_id": f"{i:04d}.jpg",
                "human_num": i,
                "points": points(i).tolist(),
                "boxes": [[0, 0, 1, 1]] * i,
            }
            put(root / "jsons" / f"{i:04d}.json", json.dumps(truth))
    put(root / "train.txt", "0001 0 1\n0002 2 0\n")
    put(root / "val.txt", "0003 0 0\n")
    put(root / "test.txt", "0004 0 0\n")
    return root


def collated(root: Path) -> Path:
    for split, numbers in (("train", (1, 2)), ("val", (3,)), ("test", (0,))):
        for i in numbers:
            put(root / split / "images" / f"{i}.jpg", picture(i))
            truth = {"human_num": i, "points": points(i).tolist(), "weather": i % 3}
            put(root / split / "jsons" / f"{i}.json", json.dumps(truth))
    return root


def found(table: Table) -> dict[str, tuple[str, list[list[float]], str]]:
    rows = table.take(table.select(), ["id", "split", "places", "count", "weather"]).to_pylist()
    assert all(row["count"] == (None if row["places"] is None else len(row["places"])) for row in rows)
    return {row["id"]: (row["split"], row["places"], row["weather"]) for row in rows}


@pytest.mark.parametrize("part", ["", "part_B"])
def test_shanghaitech(tmp_path: Path, part: str) -> None:
    table = import_table(shanghaitech(tmp_path / "source") / part, tmp_path / "table")
    rows = found(table)
    assert len(rows) == (4 if part else 8)
    split, places, weather = rows["part_B/test/IMG_3"]
    assert (split, weather) == ("test", "normal")
    np.testing.assert_allclose(places, points(3))
    assert rows["part_B/test/IMG_0"][1] == []
    np.testing.assert_allclose(rows["part_B/train/IMG_1"][1], points(1))  # one point: MATLAB's squeezed [2]
    assert table.modalities == {"image": Kind.RGB}
    assert check(table)


def test_qnrf(tmp_path: Path) -> None:
    rows = found(import_table(qnrf(tmp_path / "source"), tmp_path / "table"))
    assert {name: value[0] for name, value in rows.items()} == {
        "train/img_0001": "train", "train/img_0002": "train", "test/img_0000": "test", "test/img_0003": "test",
    }  # fmt: skip
    np.testing.assert_allclose(rows["test/img_0003"][1], points(3))


def test_jhu_knows_the_weather(tmp_path: Path) -> None:
    rows = found(import_table(jhu(tmp_path / "source"), tmp_path / "table"))
    assert {name: value[2] for name, value in rows.items()} == {
        "train/0001": "haze", "train/0002": "rain", "val/0003": "snow", "test/0000": "normal",
    }  # fmt: skip
    np.testing.assert_allclose(rows["val/0003"][1], points(3))


def test_nwpu_and_its_hidden_points(tmp_path: Path) -> None:
    rows = found(import_table(nwpu(tmp_path / "source"), tmp_path / "table"))
    assert {name: value[0] for name, value in rows.items()} == {
        "train/0001": "train", "train/0002": "train", "val/0003": "val", "test/0004": "hidden",
    }  # fmt: skip
    assert rows["test/0004"][1] is None
    np.testing.assert_allclose(rows["train/0002"][1], points(2))


def test_the_collated_layout(tmp_path: Path) -> None:
    rows = found(import_table(collated(tmp_path / "source"), tmp_path / "table"))
    assert [value[2] for value in rows.values()] == ["haze", "rain", "normal", "normal"]


def test_points_tables(tmp_path: Path) -> None:
    entries = [
        {"name": f"b{i}", "split": ("train", "val")[i % 2], "points_rbc": points(i).tolist(), "image_jpg": picture(i)}
        for i in range(4)
    ]
    (tmp_path / "source").mkdir()
    types = pa.schema([("name", pa.string()), ("split", pa.string()),
                       ("points_rbc", pa.list_(pa.list_(pa.float64()))), ("image_jpg", pa.binary())])  # fmt: skip
    pq.write_table(pa.Table.from_pylist(entries, types), tmp_path / "source" / "cells.parquet")
    for source in (tmp_path / "source", tmp_path / "source" / "cells.parquet"):
        rows = found(import_table(source, tmp_path / f"table-{source.name}"))
        assert {name: value[0] for name, value in rows.items()} == {
            "b0": "train", "b1": "test", "b2": "train", "b3": "test",
        }  # fmt: skip
        np.testing.assert_allclose(rows["b3"][1], points(3))


def test_places_follow_the_picture_onto_its_square(tmp_path: Path) -> None:
    """A picture of 40 x 30 on a square of 20: half as large, 2.5 pixels lower (rounded as pictures are)."""
    table = import_table(qnrf(tmp_path / "source"), tmp_path / "table")
    decode = DecodeConfig(image_size=20, image_fit="whole")
    rows = table.select("id = 'test/img_0003'")
    batch = next(read(table, rows, decode, 2, targets={"places": Target.PLACES}))
    places = batch.targets["places"][0]
    there = places[~places.isnan().any(1)]
    assert len(there) == 3
    shift = there - torch.tensor(points(3) / 2, dtype=torch.float32)
    torch.testing.assert_close(shift[:, 0], torch.zeros(3), atol=1e-5, rtol=0)
    assert shift[:, 1].tolist() == pytest.approx([shift[0, 1].item()] * 3)
    assert 2 <= shift[0, 1] <= 3
    black = (batch.values["image"][0].sum((0, 2)) == 0).nonzero().view(-1).tolist()
    assert black == [*range(int(shift[0, 1])), *range(int(shift[0, 1]) + 15, 20)]


Damage = Callable[[Path], None]


def without(name: str) -> Damage:
    return lambda root: (root / name).unlink()


def saying(name: str, content: bytes | str) -> Damage:
    return lambda root: put(root / name, content)


@pytest.mark.parametrize(
    ("make", "damage", "words"),
    [
        (
            shanghaitech,
            saying("part_A/test_data/ground_truth/GT_IMG_3.mat", b"MATLAB 5.0 but not"),
            "GT_IMG_3.mat is no",
        ),
        (shanghaitech, without("part_A/train_data/ground_truth/GT_IMG_1.mat"), "GT_IMG_1.mat with its points does not"),
        (qnrf, without("Test/img_0003_ann.mat"), "img_0003_ann.mat with its points does not exist"),
        (jhu, saying("val/gt/0003.txt", "1 2 3 4 5 6\nx y 1 1 1 1\n"), "0003.txt line 2: 'x y 1 1 1 1'"),
        (jhu, saying("train/image_labels.txt", "0001,1,street,1,0\n0002,2,street,9,0\n"), "image_labels.txt line 2"),
        (jhu, saying("train/image_labels.txt", "0001,1,street,1,0\n"), "no line for 0002"),
        (jhu, without("val/image_labels.txt"), "image_labels.txt is missing"),
        (nwpu, without("train.txt"), "train.txt not found"),
        (nwpu, saying("val.txt", "0003\n0999\n"), "val.txt line 2: no picture 0999"),
        (nwpu, saying("jsons/0002.json", "{"), "0002.json is no JSON"),
        (nwpu, saying("jsons/0002.json", '{"human_num": 3, "points": [[1, 2]]}'), "human_num is 3, there are 1 points"),
        (collated, saying("train/jsons/1.json", '{"points": [["a", "b"]]}'), "1.json: the points are no list of x, y"),
        (collated, saying("train/jsons/1.json", '{"points": [[1, NaN]]}'), "expected finite numbers"),
        (collated, saying("train/jsons/1.json", '{"points": [], "weather": 7}'), "weather 7; expected 0 to 3"),
        (collated, saying("train/jsons/1.json", "[1]"), "has no list of points"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, make: Callable[[Path], Path], damage: Damage, words: str) -> None:
    source = make(tmp_path / "source")
    damage(source)
    with pytest.raises(InputError) as told:
        import_table(source, tmp_path / "table")
    assert words in str(told.value)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "table").exists()


def test_pictures_without_points_can_be_set_aside(tmp_path: Path) -> None:
    source = qnrf(tmp_path / "source")
    (source / "Test" / "img_0003_ann.mat").unlink()
    table = import_table(source, tmp_path / "table", on_bad_sample="quarantine")
    assert len(table) == 3
    assert "img_0003_ann.mat" in (table.path / "quarantine.jsonl").read_text()


def test_real_cells(shared: Path, tmp_path: Path) -> None:
    for name, count, tests in (("nuclei_counting", 371, 94), ("bccd_counting", 292, 87)):
        table = import_table(shared / name, tmp_path / name)
        assert len(table) == count
        assert len(table.select("split = 'test'")) == tests
        assert table.columns[-3:] == ["places", "count", "weather"]
