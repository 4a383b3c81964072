"""Tables that grow: idempotent appends, replaced rows, keys that never come back, and kills at any instant."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import consilience.data.growth as growth
from consilience.data.growth import CONTENT, append, content_id, delete, optimise, upsert, versions
from consilience.data.importers import import_table
from consilience.data.table import QUARANTINE, Row, Table
from consilience.errors import InputError

from .conftest import KINDS, make_rows


def later(n: int = 10, seed: int = 1) -> list[Row]:
    """Rows that the table of the fixture does not hold."""
    return [replace(row, id=f"new{i}") for i, row in enumerate(make_rows(n, seed=seed))]


def test_append_adds_once(table: Table) -> None:
    before = table.fingerprint()
    assert append(table, later()) | {"table": ""} == {
        "table": "", "added": 10, "replaced": 0, "skipped": 0, "bad": 0, "rows": 47
    }  # fmt: skip
    grown = Table.open(table.path)
    assert grown.fingerprint() != before
    assert grown.column("index").tolist() == list(range(47))
    rows = grown.take(
        grown.select("index >= 37"), ["id", "image", "points", "split", "label", "origin_image"]
    ).to_pylist()
    for row, made in zip(rows, later(), strict=True):
        assert (row["id"], row["split"], row["label"]) == (made.id, made.split, made.label)
        assert (row["image"], row["points"]) == (made.values["image"], made.values["points"])
    again = append(Table.open(table.path), later())
    assert (again["added"], again["skipped"], again["rows"]) == (0, 10, 47)
    assert append(table, make_rows(37, missing=(5,)))["skipped"] == 37


def test_content_not_name_decides(table: Table) -> None:
    """The same bytes under another id are there already; an id that is taken by other bytes is refused."""
    renamed = [replace(row, id=f"other{i}") for i, row in enumerate(make_rows(37, missing=(5,)))]
    assert append(table, renamed)["skipped"] == 37
    with pytest.raises(InputError, match=r"id 's0' .* upsert"):
        append(table, list(make_rows(3, seed=9)))
    assert len(Table.open(table.path)) == 37
    twice = later(2)
    copy = replace(twice[0], id="copy")
    assert append(table, [*twice, copy])["added"] == 2


def test_content_ids_of_old_and_new_rows(table: Table) -> None:
    append(table, later(3))
    grown = Table.open(table.path)
    names = list(KINDS)
    for row in grown.take(grown.select(), [CONTENT, *names]).to_pylist():
        assert row[CONTENT] == content_id({name: row[name] for name in names})
    assert content_id({"a": b"xy", "b": None}) == content_id({"a": b"xy"}) != content_id({"b": b"xy"})
    assert content_id({"a": b"x", "b": b"y"}) != content_id({"a": b"xy", "b": b""})


def test_derived_columns_are_empty_in_new_rows_and_kept_in_old_ones(table: Table) -> None:
    keys = np.arange(37)
    vectors = np.random.default_rng(0).normal(size=(37, 4)).astype(np.float32)
    table.write_columns(keys, {"vector_image": vectors, "belief": keys.astype(np.float64)}, {"run": "r"})
    append(Table.open(table.path), later(2))
    grown = Table.open(table.path)
    assert grown.provenance("vector_image") == {"run": "r"}
    np.testing.assert_array_equal(grown.column("vector_image")[:37], vectors)
    assert np.isnan(grown.column("vector_image")[37:]).all()
    grown.write_columns(np.array([37, 38]), {"extra": np.array([1.0, 2.0])}, {})
    assert Table.open(table.path).column("extra", "index > 36").tolist() == [1.0, 2.0]


def test_upsert_replaces_under_the_same_key_and_forgets_what_was_derived(table: Table) -> None:
    table.write_columns(np.arange(37), {"belief": np.ones(37)}, {})
    before = Table.open(table.path).fingerprint()
    rows = list(make_rows(37, missing=(5,)))
    changed = [
        replace(row, values={**row.values, "image": make.values["image"]}) for row, make in zip(rows[:3], later(3))
    ]
    result = upsert(Table.open(table.path), [*changed, *rows[3:6], *later(2, seed=5)])
    assert (result["replaced"], result["skipped"], result["added"], result["rows"]) == (3, 3, 2, 39)
    grown = Table.open(table.path)
    assert grown.column("index").tolist() == list(range(39))
    assert grown.take(grown.select("index < 3"), ["image"])["image"].to_pylist() == [r.values["image"] for r in changed]
    belief = grown.column("belief")
    assert np.isnan(belief[[0, 1, 2, 37, 38]]).all()
    assert (belief[3:37] == 1).all()
    assert grown.fingerprint() != before
    assert upsert(grown, changed)["skipped"] == 3
    other_label = replace(changed[0], label="else")
    assert upsert(Table.open(table.path), [other_label])["replaced"] == 1
    assert Table.open(table.path).column("label", "id = 's0'").tolist() == ["else"]


def test_a_replaced_row_never_passes_for_the_old_version(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two commits of an upsert, the data version has changed already."""
    before = Table.open(table.path).fingerprint()

    def killed(*_: object) -> pa.RecordBatch:
        raise KeyboardInterrupt

    monkeypatch.setattr(growth, "_record_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        upsert(table, [replace(later(1)[0], id="s0")])
    assert Table.open(table.path).fingerprint() != before


def test_keys_never_come_back(table: Table) -> None:
    assert delete(table, "index >= 30")["deleted"] == 7
    assert delete(Table.open(table.path), "index >= 30")["deleted"] == 0
    append(Table.open(table.path), later(2))
    assert Table.open(table.path).column("index").tolist() == [*range(30), 37, 38]
    assert append(Table.open(table.path), [row for row in make_rows(37, missing=(5,)) if row.id == "s36"])["added"] == 1
    assert Table.open(table.path).column("index").tolist()[-1] == 39
    with pytest.raises(InputError, match="remove the folder"):
        delete(table, " ")
    with pytest.raises(InputError, match="nope"):
        delete(table, "nope = 3")


def test_versions_and_optimise(table: Table) -> None:
    for i in range(4):
        append(Table.open(table.path), [replace(row, id=f"{row.id}-{i}") for row in later(2, seed=10 + i)])
    listed = versions(table)
    assert [entry["rows"] for entry in listed][-1] == 45
    assert listed[0]["rows"] < 45
    assert listed[-1]["version"] == Table.open(table.path).version
    before = Table.open(table.path)
    content, mark = before.take(before.select(), ["id", "image", CONTENT]), before.fingerprint()
    result = optimise(table, keep_days=0)
    assert result["fragments"][0] > result["fragments"][1] == 1
    after = Table.open(table.path)
    assert after.take(after.select(), ["id", "image", CONTENT]).equals(content)
    assert after.fingerprint() == mark
    assert len(versions(table)) == 1


def test_sources_are_those_of_import(tmp_path: Path, tiny_table: Table) -> None:
    table = import_table(tiny_table.path, tmp_path / "table")
    result = append(table, "mnist3d")
    assert (result["added"], result["skipped"], result["rows"]) == (5940, 60, 6000)
    whole = Table.open(table.path)
    assert len(np.unique(whole.indices())) == 6000


def test_refusals_leave_the_table(table: Table, tmp_path: Path) -> None:
    version = Table.open(table.path).version
    folder = tmp_path / "pairs" / "depth"
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes(later(1)[0].values["image"] or b"")
    with pytest.raises(InputError, match="depth"):
        append(table, tmp_path / "pairs")
    with pytest.raises(InputError, match="has a value 'shelf'"):
        append(table, [replace(later(1)[0], scalars={"shelf": 3})])
    with pytest.raises(InputError, match="sample 'new0', image"):
        append(table, [replace(later(1)[0], values={"image": b"no picture"})])
    grown = Table.open(table.path)
    assert len(grown) == 37
    assert grown.version <= version + 1  # content ids may have been added


def test_quarantine(table: Table) -> None:
    good, bad = later(2)
    result = append(table, [good, replace(bad, values={"image": b"no picture"})], on_bad_sample="quarantine")
    assert (result["added"], result["bad"]) == (1, 1)
    line = json.loads((table.path / QUARANTINE).read_text().splitlines()[-1])
    assert (line["id"], line["modality"]) == ("new1", "image")


def test_one_writer_at_a_time(table: Table) -> None:
    def rows() -> Iterator[Row]:
        with pytest.raises(InputError, match="another process is changing"):
            append(table, later(1))
        yield later(1)[0]

    assert append(table, rows())["added"] == 1


KILLED = """
import sys
from pathlib import Path
import consilience.data.growth as growth
from consilience.data.table import Table
from tests.data.test_growth import many
growth.BATCH_ROWS = 7
table = Table.open(sys.argv[1])
growth.append(table, many(), acknowledge=lambda n: print(n, flush=True))
print("done", flush=True)
"""


def many() -> Iterator[Row]:
    for i, row in enumerate(make_rows(400, seed=7)):
        yield replace(row, id=f"m{i}")


@pytest.mark.parametrize("after", [1, 9])
def test_kill_during_append_keeps_what_was_acknowledged(table: Table, after: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(table.path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    heard = [process.stdout.readline() for _ in range(after)]
    process.send_signal(signal.SIGKILL)
    heard += process.stdout.readlines()
    process.wait()
    assert "done\n" not in heard
    acknowledged = int(heard[-1])
    torn = Table.open(table.path)
    expected = list(many())
    assert len(torn) >= 37 + acknowledged
    rows = torn.take(torn.select("index >= 37"), ["id", "image", "points", CONTENT]).to_pylist()
    for row, made in zip(rows, expected, strict=False):
        assert (row["id"], row["image"], row["points"]) == (made.id, made.values["image"], made.values["points"])
        assert row[CONTENT] == content_id(made.values)
    result = append(torn, many())
    assert result["skipped"] == len(rows)
    whole = Table.open(table.path)
    assert whole.column("index").tolist() == list(range(437))
    assert whole.column("id").tolist()[37:] == [row.id for row in expected]


KILLED_OPTIMISE = """
import sys
from consilience.data.growth import optimise
from consilience.data.table import Table
print("begin", flush=True)
while True:
    optimise(Table.open(sys.argv[1]))
    print("again", flush=True)
"""


def test_kill_during_optimise(table: Table) -> None:
    for i in range(6):
        append(Table.open(table.path), [replace(row, id=f"{row.id}-{i}") for row in later(5, seed=20 + i)])
    before = Table.open(table.path)
    content = before.take(before.select(), ["id", "image", "points"])
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_OPTIMISE, str(table.path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    after = Table.open(table.path)
    assert after.take(after.select(), ["id", "image", "points"]).equals(content)
    optimise(after)
    last = Table.open(table.path)
    assert last.take(last.select(), ["id", "image", "points"]).equals(content)


def test_columns_over_several_fragments_and_of_no_rows(table: Table) -> None:
    for i in range(3):
        append(Table.open(table.path), [replace(row, id=f"{row.id}-{i}") for row in later(4, seed=30 + i)])
    delete(Table.open(table.path), "index = 38")
    grown = Table.open(table.path)
    assert len(grown.dataset.get_fragments()) > 3
    keys = np.array([48, 2, 40, 37])
    grown.write_columns(keys, {"x": keys.astype(np.float64), "v": np.stack([keys, -keys], 1).astype(np.float32)}, {})
    written = Table.open(table.path)
    for key, x in zip(written.column("index"), written.column("x"), strict=True):
        assert x == key if key in keys else np.isnan(x)
    assert written.column("v", "index = 40").tolist() == [[40, -40]]
    nobody = np.array([], dtype=np.int64)
    written.write_columns(nobody, {"x": nobody.astype(np.float64)}, {})
    assert np.isnan(Table.open(table.path).column("x")).all()
