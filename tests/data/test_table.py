from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilience.data import columns as columns_module
from consilience.data.table import Row, Table, is_table
from consilience.errors import InputError

from .conftest import KINDS, make_rows


def test_columns_and_types(table: Table) -> None:
    assert table.columns == [
        "id", "index", "split", "label", "image", "origin_image", "points", "origin_points",
    ]  # fmt: skip
    assert table.modalities == KINDS
    assert len(table) == 37
    assert table.column("index").tolist() == list(range(37))
    assert table.schema.field("image").type == pa.large_binary()
    assert table.source == "made up"


def test_bytes_come_back_once_and_unchanged(table: Table) -> None:
    rows = table.take(np.array([5, 2, 2, 36]), ["id", "image", "points", "origin_image"])
    expected = list(make_rows(37, missing=(5,)))
    assert rows["id"].to_pylist() == ["s5", "s2", "s2", "s36"]
    assert rows["image"].to_pylist() == [expected[i].values["image"] for i in (5, 2, 2, 36)]
    assert rows["points"].to_pylist()[0] is None
    assert rows["origin_image"].to_pylist()[3] == "36.png"


def test_take_of_nothing_and_outside(table: Table) -> None:
    assert table.take(np.array([], dtype=np.int64), ["id"]).num_rows == 0
    with pytest.raises(InputError, match="37"):
        table.take(np.array([37]), ["id"])
    with pytest.raises(InputError, match="37"):
        table.take(np.array([-1]), ["id"])


def test_any_lancedb_user_can_read_it(table: Table) -> None:
    database = lancedb.connect(str(table.path))
    assert database.open_table("samples").count_rows("split = 'test'") == 9
    assert table.lance.count_rows() == 37


def test_select_is_ordered_by_index_and_filters(table: Table) -> None:
    assert table.select().tolist() == list(range(37))
    assert table.select("split = 'test'").tolist() == list(range(3, 37, 4))
    assert table.column("id", "label = '3' and split = 'train'").tolist() == []
    with pytest.raises(InputError, match="nope"):
        table.select("nope = 3")
    with pytest.raises(InputError, match="split ="):
        table.select("split = ")


def test_offsets_follow_the_index_when_rows_were_deleted(table: Table) -> None:
    table.lance.delete("id in ('s0', 's10')")
    again = Table.open(table.path)
    assert len(again) == 35
    where = again.select("id = 's11'")
    assert where.tolist() == [9]
    assert again.take(where, ["id"])["id"].to_pylist() == ["s11"]
    again.write_columns(np.array([11, 36]), {"x": np.array([1.5, 2.5])}, {})
    assert again.column("x", "id = 's11'").tolist() == [1.5]
    assert again.column("x", "id = 's36'").tolist() == [2.5]
    with pytest.raises(InputError, match="no row with index 10"):
        again.write_columns(np.array([10]), {"x": np.array([0.0])}, {})


def test_write_columns_fills_by_key_and_leaves_null_elsewhere(table: Table) -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 4))
    table.write_columns(np.array([30, 2, 7]), {"v": vectors, "score": np.array([0.5, 1.0, 2.0])}, {"run": "a"})
    stored = table.column("v")
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored[[30, 2, 7]], vectors.astype(np.float32))
    assert np.isnan(stored[[i for i in range(37) if i not in (2, 7, 30)]]).all()
    assert table.schema.field("v").type == pa.list_(pa.float32(), 4)
    assert table.provenance("v") == table.provenance("score") == {"run": "a"}
    assert table.provenance("image") is None
    assert table.select("score > 0.7").tolist() == [2, 7]


def test_replacing_a_column_changes_type_and_keeps_the_others(table: Table) -> None:
    every = np.arange(37)
    table.write_columns(every, {"a": every * 1.0, "b": np.stack([every, -every], 1)}, {"n": 1})
    table.write_columns(every, {"c": every + 100}, {"n": 2})
    table.write_columns(every[::2], {"a": pa.array([f"t{i}" for i in every[::2]])}, {"n": 3})
    assert table.column("a").tolist() == [f"t{i}" if i % 2 == 0 else None for i in every]
    np.testing.assert_array_equal(table.column("b"), np.stack([every, -every], 1))
    assert table.column("c").tolist() == (every + 100).tolist()
    assert [table.provenance(name) for name in "abc"] == [{"n": 3}, {"n": 1}, {"n": 2}]
    reopened = Table.open(table.path)
    assert reopened.column("c").tolist() == (every + 100).tolist()
    images = [row.values["image"] for row in make_rows(37)]
    assert reopened.take(every, ["image"])["image"].to_pylist() == images


def test_columns_are_replaced_in_any_company(table: Table) -> None:
    """Lance numbers fields and refuses a number that a dropped field has had: several at once, one of them alone, all
    again, with another type, many times."""
    every = np.arange(37)
    for turn, names in enumerate(
        [("a", "b", "c"), ("a",), ("a", "b", "c"), ("c", "b"), ("b",), ("a", "d"), ("d",)] * 2
    ):
        values = {name: np.full((37, 3), turn * 1.0) if turn % 3 == 2 else every + turn for name in names}
        table.write_columns(every, values, {"turn": turn})
        for name in names:
            found = Table.open(table.path).column(name)
            assert (found[5] == (turn if turn % 3 == 2 else 5 + turn)).all()
            assert table.provenance(name) == {"turn": turn}
    assert not [name for name in table.columns if name.startswith("__")]
    assert Table.open(table.path).column("label").tolist() == table.column("label").tolist()


def test_binary_codes_round_trip(table: Table) -> None:
    codes = np.random.default_rng(0).integers(0, 256, (37, 8), dtype=np.uint8)
    table.write_columns(np.arange(37), {"code": codes}, {})
    np.testing.assert_array_equal(table.column("code"), codes)
    table.write_columns(np.arange(5), {"code": codes[:5]}, {})
    with pytest.raises(InputError, match="is not null"):
        table.column("code")
    np.testing.assert_array_equal(table.column("code", "code is not null"), codes[:5])


@pytest.mark.parametrize("name", ["id", "index", "split", "label", "image", "origin_image", "a b", "_rowid", "1x"])
def test_imported_and_odd_names_are_refused(table: Table, name: str) -> None:
    version = table.version
    with pytest.raises(InputError, match=name):
        table.write_columns(np.arange(37), {name: np.zeros(37)}, {})
    assert Table.open(table.path).version == version


def test_wrong_lengths_and_repeated_keys_are_refused(table: Table) -> None:
    with pytest.raises(InputError, match="3 values for 2 rows"):
        table.write_columns(np.array([0, 1]), {"x": np.zeros(3)}, {})
    with pytest.raises(InputError, match="twice"):
        table.write_columns(np.array([1, 1]), {"x": np.zeros(2)}, {})
    with pytest.raises(InputError, match="shape"):
        table.write_columns(np.array([0, 1]), {"x": np.zeros((2, 2, 2))}, {})


def test_a_writer_that_lost_the_race_tries_again(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another column is committed between this writer's read and its commit: both are kept."""
    original = columns_module.merge_columns
    raced: list[int] = []

    def late(data: object, addition: pa.Table) -> object:
        if not raced:
            raced.append(1)
            original(Table.open(table.path)._data, pa.table({"index": np.arange(37), "other": np.ones(37)}))
        return original(data, addition)

    monkeypatch.setattr("consilience.data.table.merge_columns", late)
    table.write_columns(np.arange(37), {"mine": np.zeros(37)}, {})
    assert raced
    assert {"mine", "other"} <= set(table.columns)


def test_fingerprint_is_the_data_version(tmp_path: Path, table: Table) -> None:
    before, version = table.fingerprint(), table.version
    table.write_columns(np.arange(37), {"x": np.zeros(37)}, {})
    assert table.version > version
    assert table.fingerprint() == before
    same = Table.create(tmp_path / "same", make_rows(37, missing=(5,)), KINDS, "elsewhere")
    assert same.fingerprint() == before
    other = Table.create(tmp_path / "other", make_rows(37, seed=1, missing=(5,)), KINDS, "made up")
    assert other.fingerprint() != before
    table.lance.delete("id = 's3'")
    assert Table.open(table.path).fingerprint() != before


def test_labels_are_codes_in_number_order_over_the_whole_table(table: Table) -> None:
    codes, names = table.labels("split = 'test'")
    assert names == [str(i) for i in range(12)]
    assert codes.tolist() == [i % 12 for i in range(3, 37, 4)]


def test_rows_without_label_are_minus_one(tmp_path: Path) -> None:
    rows = [Row(f"{i}", "train", {"image": b"x"}, {}, label) for i, label in enumerate(["b", None, "a"])]
    table = Table.create(tmp_path / "t", rows, {"image": KINDS["image"]}, "s")
    codes, names = table.labels()
    assert (codes.tolist(), names) == ([1, -1, 0], ["a", "b"])
    none = [Row("0", "train", {"image": b"x"}, {})]
    with pytest.raises(InputError, match="no labels"):
        Table.create(tmp_path / "n", none, {"image": KINDS["image"]}, "s").labels()


def test_pickle_reopens_the_same_version(table: Table) -> None:
    raw = pickle.dumps(table)
    table.write_columns(np.arange(37), {"x": np.zeros(37)}, {})
    again = pickle.loads(raw)
    assert "x" not in again.columns
    assert again.fingerprint() == table.fingerprint()


def test_opening_what_is_no_table(tmp_path: Path, table: Table) -> None:
    with pytest.raises(InputError, match="does not exist"):
        Table.open(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"samples\.lance"):
        Table.open(tmp_path / "empty")
    lancedb.connect(str(tmp_path / "foreign")).create_table("samples", pa.table({"a": [1]}))
    with pytest.raises(InputError, match="not a Consilience table"):
        Table.open(tmp_path / "foreign")
    with pytest.raises(InputError, match="did you mean 'image'"):
        table.take(np.array([0]), ["imgae"])


def test_a_newer_format_is_refused(table: Table) -> None:
    data = table.lance.to_lance()
    facts = json.loads(data.schema.metadata[b"consilience"]) | {"format": 99}
    data.update_schema_metadata({"consilience": json.dumps(facts)})
    with pytest.raises(InputError, match="upgrade"):
        Table.open(table.path)


def test_sizes_and_files_are_read_after_the_last_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[str, object] = {}
    files: dict[str, str] = {}

    def rows() -> Iterator[Row]:
        yield from make_rows(4)
        sizes.update({"tokenizer": "bpe:t.json", "regions": 3})
        files["t.json"] = "{}"

    table = Table.create(tmp_path / "t", rows(), KINDS, "s", sizes=sizes, files=files)
    monkeypatch.chdir(tmp_path)
    relative = Table.open("t")
    assert relative.sizes == table.sizes == {"tokenizer": f"bpe:{tmp_path / 't' / 't.json'}", "regions": 3}
    assert (table.path / "t.json").read_text() == "{}"
    table.write_columns(table.indices(), {"x": np.arange(4)}, {})
    assert Table.open("t").sizes == table.sizes


def test_a_failing_reader_leaves_nothing_and_its_error_arrives(tmp_path: Path) -> None:
    def rows() -> Iterator[Row]:
        yield from make_rows(1500)
        raise InputError("row 1500 is torn")

    with pytest.raises(InputError, match="torn"):
        Table.create(tmp_path / "t", rows(), KINDS, "s")
    assert list(tmp_path.iterdir()) == []


def test_creation_refuses_doubles_emptiness_and_taken_places(tmp_path: Path, table: Table) -> None:
    twice = [*make_rows(3), *make_rows(1)]
    with pytest.raises(InputError, match="'s0' occurs twice"):
        Table.create(tmp_path / "t", twice, KINDS, "s")
    with pytest.raises(InputError, match="no rows"):
        Table.create(tmp_path / "t", [], KINDS, "s")
    with pytest.raises(InputError, match="already exists"):
        Table.create(table.path, make_rows(2), KINDS, "s")
    with pytest.raises(InputError, match="'label'"):
        Table.create(tmp_path / "t", make_rows(2), {"label": KINDS["image"]}, "s")
    with pytest.raises(InputError, match="modality"):
        Table.create(tmp_path / "t", make_rows(2), {}, "s")
    assert not is_table(tmp_path / "t")
    assert len(Table.open(table.path)) == 37


_WRITER = """
import sys
import numpy as np
from consilience.data.table import Table
table = Table.open(sys.argv[1])
n = 0
while True:
    n += 1
    table.write_columns(np.arange(37), {"v": np.full((37, 64), float(n)), "w": np.full(37, n)}, {"n": n})
    print(n, flush=True)
"""


def test_kill_during_writes_leaves_a_whole_version(table: Table) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for delay in (0.0, 0.013):
        command = [sys.executable, "-c", _WRITER, str(table.path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            done = [int(process.stdout.readline()) for _ in range(3)][-1]
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            done = max([done, *(int(line) for line in process.stdout)])
        again = Table.open(table.path)
        value = int(again.column("w")[0])
        assert value in (done, done + 1)
        assert (again.column("w") == value).all()
        assert (again.column("v") == value).all()
        assert again.provenance("v") == {"n": value}


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_take_equals_a_loop(table: Table, data: st.DataObject) -> None:
    offsets = data.draw(st.lists(st.integers(0, 36), max_size=12))
    ids = [table.take(np.array([offset]), ["id"])["id"][0].as_py() for offset in offsets]
    assert table.take(np.array(offsets, dtype=np.int64), ["id"])["id"].to_pylist() == ids
