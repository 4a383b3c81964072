from __future__ import annotations

import io
import json
import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest

from consilience.data.importers import import_table, open_source
from consilience.data.importers.webdataset import is_pattern, read_webdataset
from consilience.data.schema import Kind
from consilience.data.table import Row
from consilience.errors import InputError

from .conftest import BOX, export, npy, png

PICTURE = png(np.full((4, 4, 3), 7, np.uint8))


def shard(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def rows_of(source: Path) -> list[Row]:
    return [row for row in read_webdataset(source).rows if isinstance(row, Row)]


def test_every_kind_of_member(tmp_path: Path) -> None:
    info = {"id": 5, "label": "cat", "width": 3, "score": 1, "url": "u", "exif": {"a": 1}, "image": "x", "none": None}
    shard(
        tmp_path / "clips-train-000.tar",
        [
            ("a/one.jpg", PICTURE),
            ("a/one.txt", b"ein Schiff"),
            ("a/one.vec.npy", npy(np.arange(3.0))),
            ("a/one.regions.npy", npy(np.ones((2, 5)))),
            ("a/one.points.npy", npy(np.random.default_rng(0).normal(size=(9, 3)))),
            ("a/one.json", json.dumps(info).encode()),
            ("a/two.JPG", PICTURE),
            ("a/two.mesh.off", export(BOX, "off")),
            ("a/two.cls", b"3\n"),
            ("a/two.json", json.dumps({"score": 0.5, "exif": None, "url": 7}).encode()),
        ],
    )
    table = import_table(tmp_path, tmp_path / "table")
    assert table.modalities == {
        "image": Kind.RGB,
        "text": Kind.TEXT,
        "vector": Kind.VECTOR,
        "regions": Kind.REGIONS,
        "points": Kind.POINTS,
        "mesh": Kind.MESH,
    }
    assert table.column("id").tolist() == ["5", "train/a/two"]
    assert table.column("label").tolist() == ["cat", "3"]
    assert table.column("score").tolist() == [1.0, 0.5]
    assert table.column("url").tolist() == ["u", "7"]
    assert table.column("exif").tolist() == ['{"a": 1}', None]
    assert table.column("json_image").tolist() == ["x", None]
    assert table.column("origin_vector").tolist() == ["clips-train-000.tar::a/one.vec.npy", None]
    assert table.column("text").tolist() == [b"ein Schiff", None]
    assert (table.sizes["regions"], table.sizes["region_width"], table.sizes["vector_width"]) == (2, 5, 3)


def test_splits_come_from_names_and_json(tmp_path: Path) -> None:
    for name in ("cc-train-0", "cc_val_0", "test", "contest-0", "trainable-0"):
        shard(tmp_path / f"{name}.tar", [(f"{name}.png", PICTURE)])
    shard(tmp_path / "x.tar", [("k.png", PICTURE), ("k.json", b'{"split": "dev"}')])
    found = {row.id: row.split for row in rows_of(tmp_path)}
    assert found == {
        "train/cc-train-0": "train",
        "validation/cc_val_0": "validation",
        "test/test": "test",
        "train/contest-0": "train",
        "train/trainable-0": "train",
        "dev/k": "validation",
    }


def test_captions_in_json_fill_in(tmp_path: Path) -> None:
    shard(
        tmp_path / "s.tar",
        [
            ("a.json", b'{"caption": "from json"}'),
            ("a.txt", b"from text"),
            ("b.json", b'{"caption": "only json"}'),
            ("b.png", PICTURE),
            ("c.png", PICTURE),
            ("c.txt", b"  \n"),
        ],
    )
    assert [row.values.get("text") for row in rows_of(tmp_path)] == [b"from text", b"only json", None]


def test_patterns_and_missing_shards(tmp_path: Path) -> None:
    for i in range(3):
        shard(tmp_path / f"train-{i:03d}.tar", [(f"{i}.png", PICTURE)])
    pattern = tmp_path / "train-{000..002}.tar"
    assert is_pattern(pattern)
    assert [row.id for row in open_source(pattern).rows if isinstance(row, Row)] == ["train/0", "train/1", "train/2"]
    assert len(rows_of(tmp_path / "train-001.tar")) == 1
    with pytest.raises(InputError, match=r"train-003\.tar does not exist"):
        open_source(tmp_path / "train-{000..003}.tar")
    with pytest.raises(InputError, match="counts downwards"):
        open_source(tmp_path / "train-{3..0}.tar")


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("cut", [1, 30])
def test_compressed_shards(tmp_path: Path, mode: str, cut: int) -> None:
    path = shard(tmp_path / "a.tar", [("k.png", PICTURE), ("l.png", PICTURE)], mode)
    assert len(rows_of(path)) == 2
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(InputError, match="is truncated or no tar file"):
        rows_of(path)


@pytest.mark.parametrize("keep", [1, 100, 512, 700, 1024, 1536, 2048 + 512])
def test_a_cut_shard_is_an_error_wherever_it_was_cut(tmp_path: Path, keep: int) -> None:
    path = shard(tmp_path / "a.tar", [(f"{i}.png", PICTURE) for i in range(5)])
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"a\.tar is truncated or no tar file .*download it again"):
        rows_of(path)


def test_doubled_keys_and_members(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", [("k.png", PICTURE), ("k.png", PICTURE)])
    with pytest.raises(InputError, match=r"k\.png occurs twice in one sample"):
        rows_of(tmp_path)
    shard(tmp_path / "a.tar", [("k.png", PICTURE), ("k.jpg", PICTURE)])
    with pytest.raises(InputError, match="are both its image"):
        rows_of(tmp_path)
    shard(tmp_path / "a.tar", [("k.png", PICTURE), ("l.png", PICTURE), ("k.txt", b"late")])
    with pytest.raises(InputError, match=r"id 'train/k' occurs twice \(a\.tar::k\.png and a\.tar::k\.txt\)"):
        import_table(tmp_path, tmp_path / "table")


def test_paths_are_only_keys(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    shard(inside / "a.tar", [("../../evil.png", PICTURE), ("/abs/x.png", PICTURE), ("._k.png", b"junk")])
    assert [row.id for row in rows_of(inside)] == ["train/../../evil", "train//abs/x"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar", "in"]


def test_broken_json_and_unknown_members(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard(tmp_path / "a.tar", [("k.png", PICTURE), ("k.json", b"{"), ("l.png", PICTURE), ("l.mp3", b"x")])
    with caplog.at_level(logging.WARNING):
        table = import_table(tmp_path, tmp_path / "table", on_bad_sample="quarantine")
    assert "members ending in .mp3 are left out" in caplog.text
    assert table.column("id").tolist() == ["train/l"]
    assert "no JSON object" in (tmp_path / "table" / "quarantine.jsonl").read_text()
    shard(tmp_path / "a.tar", [("k.mp3", b"x")])
    with pytest.raises(InputError, match="holds no pictures, shapes, captions or features"):
        rows_of(tmp_path)
