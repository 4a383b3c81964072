"""Captions, vectors and groups in manifests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilience.data.decode import DecodeConfig
from consilience.data.importers.manifest import read_manifest
from consilience.data.loader import read
from consilience.data.reading import write_reading
from consilience.data.schema import Kind
from consilience.data.table import Row, Table
from consilience.errors import InputError

from .conftest import png, write_manifest


def table_of(path: Path, folder: Path, **columns: str) -> Table:
    return write_reading(read_manifest(path, columns or None), folder, None, "stop")


def texts(table: Table, name: str) -> list[str | None]:
    return [data and data.decode() for data in table.take(table.select(), [name])[name].to_pylist()]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(np.full((4, 4), i, np.uint8)))
    return tmp_path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("name", ["caption", "Text", "TITLE", "sentence"])
def test_text_columns_by_name(pictures: Path, suffix: str, name: str) -> None:
    captions = ["a dog, running", "दाँत", "007"]
    rows: list[dict[str, object]] = [{"image": f"{i}.png", name: captions[i], "note": "x y"} for i in range(3)]
    table = table_of(write_manifest(pictures / f"list{suffix}", rows), pictures / "t")
    assert table.modalities == {"image": Kind.GREY, name: Kind.TEXT}
    assert texts(table, name) == captions
    assert table.column(f"origin_{name}")[1] == f"list{suffix}::{name}[1]"
    assert table.column("note").tolist() == ["x y"] * 3
    assert "group" not in table.columns


def test_text_columns_by_choice(pictures: Path) -> None:
    rows: list[dict[str, object]] = [{"image": f"{i}.png", "words": f"{i}", "caption": "c"} for i in range(3)]
    table = table_of(write_manifest(pictures / "list.csv", rows), pictures / "t", image="image", text="words")
    assert table.modalities == {"image": Kind.GREY, "text": Kind.TEXT}
    assert texts(table, "text") == ["0", "1", "2"]
    assert table.column("caption").tolist() == ["c"] * 3


def test_files_of_text_and_missing_pictures_are_not_captions(pictures: Path) -> None:
    for i in range(3):
        (pictures / f"{i}.txt").write_text(f"file {i}")
    rows: list[dict[str, object]] = [{"a": f"{i}.txt", "b": f"lost{i}.png"} for i in range(3)]
    path = write_manifest(pictures / "list.csv", rows)
    reading = read_manifest(path, {"text": "a"})
    table = write_reading(reading, pictures / "t", {"text": "text"}, "stop")
    assert texts(table, "text") == ["file 0", "file 1", "file 2"]
    with pytest.raises(InputError, match=r"lost0.png: No such file.*row 1 of list.csv"):
        table_of(path, pictures / "u", image="b")


def test_numbers_called_text_stay_a_column(pictures: Path) -> None:
    rows: list[dict[str, object]] = [{"image": f"{i}.png", "text": i, "features": f"f{i}"} for i in range(3)]
    table = table_of(write_manifest(pictures / "list.parquet", rows), pictures / "t")
    assert table.modalities == {"image": Kind.GREY}
    assert table.column("text").tolist() == [0, 1, 2]
    assert table.column("features").tolist() == ["f0", "f1", "f2"]


def test_empty_cells_are_missing_and_blank_ones_bad(pictures: Path) -> None:
    rows: list[dict[str, object]] = [{"image": f"{i}.png", "caption": "x" if i else ""} for i in range(3)]
    table = table_of(write_manifest(pictures / "list.csv", rows), pictures / "t")
    assert texts(table, "caption") == [None, "x", "x"]
    rows[0]["caption"] = "  "
    with pytest.raises(InputError, match=r"caption from list.csv::caption\[0\]: nothing to read"):
        table_of(write_manifest(pictures / "list.csv", rows), pictures / "u")


def test_captions_longer_than_a_file_name(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"says": "x" * 5000}, {"says": "a\0b"}]
    table = table_of(write_manifest(tmp_path / "list.jsonl", rows), tmp_path / "t", says="says")
    assert texts(table, "says") == ["x" * 5000, "a\0b"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_lists_of_captions_become_rows_of_a_group(pictures: Path, suffix: str) -> None:
    captions: list[list[str]] = [["a", "b"], [], ["c"]]
    rows: list[dict[str, object]] = [
        {"id": f"p{i}", "image": f"{i}.png", "captions": captions[i], "split": "test" if i == 2 else "train"}
        for i in range(3)
    ]
    table = table_of(write_manifest(pictures / f"list{suffix}", rows), pictures / "t")
    assert table.column("id").tolist() == ["p0#0", "p0#1", "p1#0", "p2#0"]
    assert table.column("group").tolist() == [0, 0, 1, 2]
    assert table.schema.field("group").type == pa.int64()
    assert texts(table, "captions") == ["a", "b", None, "c"]
    assert table.column("split").tolist() == ["train", "train", "train", "test"]
    raw = table.take(table.select(), ["image"])["image"].to_pylist()
    assert raw[0] == raw[1] == (pictures / "0.png").read_bytes()


def test_a_group_of_the_source_is_kept(pictures: Path) -> None:
    rows: list[dict[str, object]] = [{"image": f"{i}.png", "group": 7 + i // 2, "caption": f"{i}"} for i in range(3)]
    table = table_of(write_manifest(pictures / "list.csv", rows), pictures / "t")
    assert table.column("group").tolist() == [7, 7, 8]
    lists: list[dict[str, object]] = [{**row, "caption": ["x", "y"]} for row in rows]
    spread = table_of(write_manifest(pictures / "list.jsonl", lists), pictures / "u")
    assert spread.column("group").tolist() == [7, 7, 7, 7, 8, 8]
    named: list[dict[str, object]] = [{**row, "group": "g"} for row in lists]
    with pytest.raises(InputError, match="column group is string; caption needs whole numbers"):
        table_of(write_manifest(pictures / "named.jsonl", named), pictures / "v")
    two: list[dict[str, object]] = [{**row, "title": ["x"]} for row in lists]
    with pytest.raises(InputError, match="caption and title hold lists of texts"):
        table_of(write_manifest(pictures / "two.jsonl", two), pictures / "v")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_vectors(tmp_path: Path, suffix: str) -> None:
    rows: list[dict[str, object]] = [
        {"Embedding": [0.5, i, 2], "other": [1, 2][: i + 1], "plain": [1.5]} for i in range(2)
    ]
    path = write_manifest(tmp_path / f"list{suffix}", rows)
    table = table_of(path, tmp_path / "t")
    assert table.modalities == {"Embedding": Kind.VECTOR}
    assert table.sizes == {"vector_width": 3}
    assert table.column("plain").tolist() == [[1.5], [1.5]]
    named = table_of(path, tmp_path / "u", a="Embedding", b="other")
    batch = next(read(named, named.select(), DecodeConfig(**named.sizes), 2))
    assert batch.values["a"].tolist() == [[0.5, 0, 2], [0.5, 1, 2]]
    assert batch.values["b"].tolist() == [[1, 0, 0], [1, 2, 0]]


def test_vectors_with_holes_are_refused(tmp_path: Path) -> None:
    for name, cell, what in (("a", [1.0, None], "NaN"), ("b", [1.0, float("nan")], "NaN"), ("c", [], "no values")):
        schema = pa.schema([("vector", pa.list_(pa.float64()))])
        pq.write_table(pa.table({"vector": [[1.0, 2.0], cell]}, schema=schema), tmp_path / f"{name}.parquet")
        with pytest.raises(InputError, match=f"'00000001', vector from .*{what}"):
            table_of(tmp_path / f"{name}.parquet", tmp_path / "t")
    pq.write_table(pa.table({"vector": [[1.0], None]}, schema=schema), tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"every modality.*nothing to read"):
        table_of(tmp_path / "d.parquet", tmp_path / "t")


def test_nothing_to_import_names_the_choices(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "list.csv", [{"note": "x"}])
    with pytest.raises(InputError, match="pictures, shapes, captions or vectors"):
        read_manifest(path)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), min_size=1, max_size=6))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_round_trips_through_parquet(tmp_path: Path, captions: list[str]) -> None:
    path = write_manifest(tmp_path / "list.parquet", [{"caption": caption} for caption in captions])
    rows = [row for row in read_manifest(path).rows if isinstance(row, Row)]
    assert [(row.values.get("caption") or b"").decode() for row in rows] == captions
