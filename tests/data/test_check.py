from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from consilience.data.check import check
from consilience.data.table import Row, Table

from .conftest import KINDS, make_rows, npy, png


def test_a_sound_table(table: Table) -> None:
    report = check(table)
    assert report == check(table.path)
    assert (report.rows, report.splits) == (37, {"train": 28, "test": 9})
    assert report.labels == {str(i): 4 if i == 0 else 3 for i in range(12)}
    image, points = report.modalities["image"], report.modalities["points"]
    assert (image.kind, image.formats, image.smallest, image.largest) == (
        "grey",
        {"png": 37},
        [10, 12],
        [10, 12],
    )
    assert (points.kind, points.present, points.missing) == ("points", {"train": 27, "test": 9}, 1)
    assert (points.smallest, points.largest) == ([20], [20])
    assert report.incomplete == ["s5"]
    assert report.problems == ["1 rows without one of their modalities"]
    assert json.loads(json.dumps(report.as_json()))["modalities"]["points"]["missing"] == 1


def test_copies_are_found_inside_and_across_splits(tmp_path: Path) -> None:
    rows = list(make_rows(8))
    values = [dict(row.values) for row in rows]
    values[1]["image"] = values[0]["image"]
    values[2]["image"] = values[0]["image"]
    values[7]["points"] = values[4]["points"]
    copied = [Row(r.id, r.split, v, r.origins, r.label) for r, v in zip(rows, values, strict=True)]
    report = check(Table.create(tmp_path / "t", copied, KINDS, "s"))
    (within,), (across,) = report.copies_within, report.copies_across
    assert (within.modality, within.ids, within.splits) == ("image", ["s0", "s1", "s2"], ["train"])
    assert (across.modality, across.ids, across.splits) == ("points", ["s4", "s7"], ["test", "train"])
    assert report.problems == ["1 exact copies of a sample in another split", "2 exact copies inside a split"]


def test_unreadable_samples_and_sizes_of_a_source(tmp_path: Path) -> None:
    for name in ("image", "points"):
        (tmp_path / name).mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        (tmp_path / "image" / f"{i}.png").write_bytes(png(rng.integers(0, 9, (4 + i, 9 - i, 3), dtype=np.uint8)))
        (tmp_path / "points" / f"{i}.npy").write_bytes(npy(rng.normal(size=(10 + i, 3))))
    (tmp_path / "points" / "2.npy").write_bytes(b"torn")
    before = sorted(tmp_path.rglob("*"))
    report = check(str(tmp_path))
    assert sorted(tmp_path.rglob("*")) == before
    assert [(bad.id, bad.modality, bad.origin) for bad in report.unreadable] == [("2", "points", "points/2.npy")]
    assert report.modalities["points"].unreadable == 1
    assert report.modalities["points"].largest == [14]
    assert report.modalities["image"].kind == "rgb"
    assert (report.modalities["image"].smallest, report.modalities["image"].largest) == ([4, 5], [8, 9])
    assert (report.labels, report.unlabelled) == ({}, 5)
    assert report.problems == ["1 unreadable samples"]


def test_the_embedded_set_is_clean(mnist3d: Table) -> None:
    report = check(mnist3d)
    assert report.problems == []
    assert sum(report.labels.values()) == report.rows == 6000
