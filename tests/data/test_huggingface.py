from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from consilience.data.importers import import_table
from consilience.data.schema import Kind
from consilience.data.table import Table
from consilience.errors import InputError

from .conftest import png

FEATURES = {
    "image": {"_type": "Image"},
    "caption": {"dtype": "string", "_type": "Value"},
    "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
    "width": {"dtype": "int32", "_type": "Value"},
    "embedding": {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"},
}
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def rows(n: int, start: int = 0) -> pa.Table:
    """What the datasets library writes for FEATURES, its metadata included."""
    pictures = [{"bytes": png(np.full((3, 3, 3), start + i, np.uint8)), "path": None} for i in range(n)]
    columns = {
        "image": pa.array(pictures, PICTURE),
        "caption": pa.array([f"thing {start + i}" for i in range(n)]),
        "label": pa.array([(start + i) % 3 - 1 for i in range(n)], pa.int64()),
        "width": pa.array(range(n), pa.int32()),
        "embedding": pa.array([[float(i), 1.0] for i in range(n)], pa.list_(pa.float32())),
    }
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    return pa.table(columns).replace_schema_metadata(metadata)


def save_to_disk(folder: Path, table: pa.Table, split: str, shards: int = 2) -> None:
    """The files of ``Dataset.save_to_disk``."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{shards:05d}.arrow" for i in range(shards)]
    size = -(-len(table) // shards)
    for i, name in enumerate(names):
        part = table.slice(i * size, size)
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, part.schema) as writer:
            writer.write_table(part, max_chunksize=3)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))


def check(table: Table, splits: list[str]) -> None:
    assert table.modalities == {"image": Kind.RGB, "caption": Kind.TEXT, "embedding": Kind.VECTOR}
    assert table.column("split").tolist() == splits
    assert table.column("label").tolist()[:4] == [None, "cat", "dog", None]
    assert table.column("width").tolist()[:3] == [0, 1, 2]
    assert table.column("caption").tolist()[:2] == [b"thing 0", b"thing 1"]
    assert table.sizes["vector_width"] == 2


def test_a_saved_dict_of_splits(tmp_path: Path) -> None:
    source = tmp_path / "saved"
    save_to_disk(source / "train", rows(7), "train")
    save_to_disk(source / "validation", rows(2, 50), "validation")
    (source / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    table = import_table(source, tmp_path / "table")
    check(table, ["train"] * 7 + ["validation"] * 2)
    assert table.column("id").tolist()[5:] == ["train-000005", "train-000006", "validation-000000", "validation-000001"]
    assert table.column("origin_image").tolist()[4] == "train/data-00001-of-00002.arrow::4/image"
    single = import_table(source / "validation", tmp_path / "single")
    assert single.column("split").tolist() == ["validation"] * 2


@pytest.mark.parametrize(
    "layout", ["data/{}-00000-of-00001.parquet", "{}-00000-of-00001-abcd12.parquet", "{}/0.parquet"]
)
def test_parquet_shards_of_the_hub(tmp_path: Path, layout: str) -> None:
    source = tmp_path / "repo"
    for split, table in (("test", rows(2, 50)), ("train", rows(5))):
        path = source / layout.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
    (source / "README.md").write_text("a card")
    check(import_table(source, tmp_path / "table"), ["train"] * 5 + ["test"] * 2)


def test_shards_follow_each_other(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for i in range(3):
        pq.write_table(rows(2, 2 * i), tmp_path / "data" / f"train-{i:05d}-of-00003.parquet")
    table = import_table(tmp_path, tmp_path / "table")
    assert table.column("caption").tolist() == [f"thing {i}".encode() for i in range(6)]
    pq.write_table(rows(2).drop_columns("width"), tmp_path / "data" / "train-00001-of-00003.parquet")
    with pytest.raises(InputError, match=r"train-00001-of-00003\.parquet has other columns or types"):
        import_table(tmp_path, tmp_path / "other")


def plain(path: Path, columns: dict[str, Any]) -> Path:
    (path / "train").mkdir(parents=True)
    pq.write_table(pa.table(columns), path / "train" / "0.parquet")
    return path


def test_lists_of_captions_become_rows_of_a_group(tmp_path: Path) -> None:
    picture = {"bytes": png(np.zeros((2, 2, 3), np.uint8)), "path": "a.png"}
    source = plain(
        tmp_path / "s",
        {
            "image": pa.array([picture] * 3, PICTURE),
            "captions": [["one", "two"], [], ["three"]],
            "id": ["x", "y", "z"],
            "group": [9, 9, 9],
        },
    )
    table = import_table(source, tmp_path / "table")
    assert table.column("id").tolist() == ["x#0", "x#1", "y#0", "z#0"]
    assert table.column("group").tolist() == [0, 0, 1, 2]
    assert table.column("source_group").tolist() == [9] * 4
    assert table.column("captions").tolist() == [b"one", b"two", None, b"three"]


def test_pictures_saved_by_path(tmp_path: Path) -> None:
    (tmp_path / "pic.png").write_bytes(png(np.zeros((2, 2, 3), np.uint8)))
    cells = [{"bytes": None, "path": str(tmp_path / "pic.png")}, {"bytes": None, "path": "gone.png"}, None]
    source = plain(tmp_path / "s", {"image": pa.array(cells, PICTURE), "text": ["a", "b", "c"]})
    with pytest.raises(InputError, match=r"'train-000001', image from .*gone\.png.*No such file"):
        import_table(source, tmp_path / "table")
    table = import_table(source, tmp_path / "table", on_bad_sample="quarantine")
    assert table.column("id").tolist() == ["train-000000", "train-000002"]


def test_columns_can_be_named(tmp_path: Path) -> None:
    source = plain(
        tmp_path / "s", {"alt": ["a", "b"], "text": ["c", "d"], "codes": [[1, 2], [3, 4]], "odd": [{"a": 1}, {"a": 2}]}
    )
    table = import_table(source, tmp_path / "table", columns={"words": "alt", "codes": "codes"})
    assert table.modalities == {"words": Kind.TEXT, "codes": Kind.VECTOR}
    assert table.column("text").tolist() == ["c", "d"]
    with pytest.raises(InputError, match="did you mean 'alt'"):
        import_table(source, tmp_path / "x", columns={"words": "al"})
    with pytest.raises(InputError, match="no picture, text or list of numbers"):
        import_table(source, tmp_path / "x", columns={"words": "odd"})
    with pytest.raises(InputError, match="no column holds pictures, captions or vectors"):
        import_table(plain(tmp_path / "n", {"a": [1, 2]}), tmp_path / "x")


def test_damage_is_named(tmp_path: Path) -> None:
    source = tmp_path / "saved"
    save_to_disk(source, rows(7), "train")
    file = source / "data-00001-of-00002.arrow"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"data-00001-of-00002\.arrow is damaged"):
        import_table(source, tmp_path / "table")
    file.unlink()
    with pytest.raises(InputError, match=r"is missing although state\.json names it"):
        import_table(source, tmp_path / "table")
    (source / "state.json").write_text("{")
    with pytest.raises(InputError, match=r"state\.json is missing or no JSON"):
        import_table(source, tmp_path / "table")
    assert not (tmp_path / "table").exists()
