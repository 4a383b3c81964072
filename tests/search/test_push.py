"""Pushing a Table to a store: whole, incremental, after kills, and never with another encoder's vectors."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psycopg
import pytest

from consilience.data.growth import delete
from consilience.data.schema import Kind
from consilience.data.table import Row, Table
from consilience.errors import ConsilienceError, InputError
from consilience.search.hits import Ranking, hits_of
from consilience.search.push import push
from consilience.search.stores.columns import space_of
from consilience.search.stores.open import address_of, open_store
from consilience.search.stores.remote import redacted, without_secrets
from tests.search.servers import postgres  # noqa: F401

ROWS, WIDTH, BITS = 300, 8, 64


def made_table(path: Path, rows: int = ROWS) -> Table:
    entries = (Row(f"s{i}", "train", {"image": b"x"}, {"image": f"{i}"}, f"c{i % 3}") for i in range(rows))
    return Table.create(path, entries, {"image": Kind.GREY}, "the push")


def fill(table: Table, keys: np.ndarray, seed: int, fingerprint: str = "one") -> None:
    """Clustered unit vectors and codes of the rows ``keys``."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(20, WIDTH))
    vectors = centres[np.arange(len(keys)) % 20] + 0.3 * draw.normal(size=(len(keys), WIDTH))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    Table.open(table.path).write_columns(keys, {"vector_image": vectors}, {"fingerprint": fingerprint})
    codes = draw.integers(0, 256, (len(keys), BITS // 8), dtype=np.uint8)
    Table.open(table.path).write_columns(keys, {"code_image": codes}, {"fingerprint": fingerprint})


@pytest.fixture
def table(tmp_path: Path) -> Table:
    made = made_table(tmp_path / "table")
    fill(made, np.arange(ROWS), 0)
    return Table.open(made.path)


@pytest.fixture(params=["postgres", "milvus"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "milvus":
        return f"{tmp_path / 'lite.db'}#pushed"
    return f"{request.getfixturevalue('postgres')}#{tmp_path.name}"


def test_rows_deleted_since_the_push_are_no_hits(url: str, table: Table) -> None:
    push(table, url, ["vector_image"])
    asked = table.column("vector_image")[[5, 9]]
    delete(table, "id = 's5'")
    table = Table.open(table.path)
    keys, distances = open_store(url, space_of(table, "vector_image"), table).search(asked, 3)
    assert keys[0, 0] == 5, "the store does not know yet"
    ranking = Ranking(keys, 1 - distances, np.zeros_like(keys), ("image",))
    first, second = hits_of(table, ranking)
    assert [hit.id for hit in first] == [f"s{key}" for key in keys[0, 1:]]
    assert [hit.rank for hit in first] == [1, 2]
    assert second[0].id == "s9"


def test_what_changed_is_written(url: str, table: Table) -> None:
    columns = ["vector_image"]  # the in-process Milvus knows no codes
    first = push(table, url, columns)["columns"]["vector_image"]
    assert first == {"written": ROWS, "unchanged": 0, "deleted": 0, "held": ROWS, "index": "exact"}
    assert push(table, url, columns)["columns"]["vector_image"]["written"] == 0
    vectors = table.column("vector_image").copy()
    vectors[7] = -vectors[7]
    kept = np.arange(20, ROWS)
    kept = np.concatenate([[7], kept])
    table.write_columns(kept, {"vector_image": vectors[kept]}, {"fingerprint": "one"})
    table = Table.open(table.path)
    again = push(table, url, columns)["columns"]["vector_image"]
    assert again == {"written": 1, "unchanged": ROWS - 20, "deleted": 19, "held": ROWS - 19, "index": "exact"}
    store = open_store(url, space_of(table, "vector_image"), table)
    keys, distances = store.search(vectors[[7, 8, 30]], 1)
    assert keys[[0, 2], 0].tolist() == [7, 30]
    assert keys[1, 0] not in (8, -1)
    assert distances[[0, 2], 0] == pytest.approx([0, 0], abs=1e-6)
    assert set((store.search(vectors[:1], 50, "label = 'c1' and id != 's7'")[0] % 3).tolist()[0]) == {1}
    store.close()


def test_attributes_count_as_content(url: str, table: Table) -> None:
    """A row whose attribute changed is written again; attributes are fixed when the store is made."""
    table.write_columns(np.arange(ROWS), {"stars": np.arange(ROWS) % 5}, {"by": "hand"})
    told = ["label", "stars", "index"]
    push(Table.open(table.path), url, ["vector_image"], attributes=told)
    table.write_columns(np.arange(ROWS), {"stars": np.minimum(np.arange(ROWS), 4)}, {"by": "hand"})
    table = Table.open(table.path)
    assert push(table, url, ["vector_image"], attributes=told)["columns"]["vector_image"]["written"] == 236
    store = open_store(url, space_of(table, "vector_image"), table)
    query = np.stack(table.take(np.array([0]), ["vector_image"])["vector_image"].to_numpy())
    assert set(store.search(query, 9, "stars < 4")[0][0].tolist()) == {-1, 0, 1, 2, 3}
    store.close()
    with pytest.raises(InputError, match=r"attribute 'id' is text, in the store it is not an attribute.*--replace"):
        push(table, url, ["vector_image"])


def test_another_encoders_vectors_need_replace(url: str, table: Table) -> None:
    push(table, url, ["vector_image"])
    old = space_of(table, "vector_image")
    fill(table, np.arange(ROWS), 1, "two")
    table = Table.open(table.path)
    with pytest.raises(InputError, match=r"holds vectors of encoder one, not of two; fill it anew.*--replace"):
        push(table, url, ["vector_image"])
    with pytest.raises(InputError, match="holds vectors of encoder one, not of two"):
        open_store(url, space_of(table, "vector_image"), table)
    assert push(table, url, ["vector_image"], replace=True)["columns"]["vector_image"]["written"] == ROWS
    with pytest.raises(InputError, match="holds vectors of encoder two, not of one"):
        open_store(url, old, table)


def test_what_cannot_be_pushed_is_refused(url: str, table: Table, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no vectors; fill it"):
        push(made_table(tmp_path / "bare"), url)
    with pytest.raises(InputError, match="did you mean 'vector_image'"):
        push(table, url, ["vector_imag"])
    with pytest.raises(InputError, match="'image' is large_binary; attributes of a store are"):
        push(table, url, ["vector_image"], attributes=["image"])
    with pytest.raises(InputError, match="did you mean 'hnsw'"):
        push(table, url, ["vector_image"], index="hnws")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="holds nothing of vector_image; fill it: consilience index push"):
        open_store(url, space_of(table, "vector_image"), table)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_postgres_answers_from_its_index(kind: str, postgres: str, tmp_path: Path) -> None:  # noqa: F811
    """4,000 clustered rows: the index is what is read, recall against exact is high, filters lose nothing."""
    count = 4000
    table = made_table(tmp_path / "table", count)
    fill(table, np.arange(count), 2)
    table, url = Table.open(table.path), f"{postgres}#{kind}"
    told = push(table, url, index=kind)["columns"]  # type: ignore[arg-type]
    assert [about["index"] for about in told.values()] == [kind, kind]
    from consilience.search.stores.postgres import PostgresStore
    from consilience.search.stores.remote import identity

    for column in told:
        space = space_of(table, column)
        store = open_store(url, space, table)
        exact = PostgresStore(postgres, kind, space, owner=identity(table), exact=True)
        queries = np.stack(table.take(np.arange(0, count, 100), [column])[column].to_numpy())
        queries = queries.astype(np.float32 if space.metric == "cosine" else np.uint8)
        assert scans(postgres, f"{kind}_{column}_near") == 0
        near, truth = store.search(queries, 10)[1], exact.search(queries, 10)[1]
        assert scans(postgres, f"{kind}_{column}_near") >= len(queries)
        assert np.isfinite(near).all()
        recall = np.mean([(mine <= best[-1] + 1e-6).mean() for mine, best in zip(near, truth, strict=True)])
        assert recall > (0.95 if space.metric == "cosine" else 0.6), recall
        rare = "label = 'c1' and index < 90"
        assert np.isfinite(store.search(queries[:3], 30, rare)[1]).all()
        assert np.array_equal(store.search(queries[:3], 30, rare)[1], exact.search(queries[:3], 30, rare)[1])
        assert store.build("exact") == "exact"
        assert np.array_equal(store.search(queries, 10)[0], exact.search(queries, 10)[0])
        store.close()
        exact.close()


def scans(server: str, index: str) -> int:
    """How often PostgreSQL has read an index (its counters come a moment late)."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("select pg_stat_force_next_flush()")
        for _ in range(40):
            connection.execute("select pg_stat_clear_snapshot()")
            ask = "select coalesce(max(idx_scan), 0) from pg_stat_user_indexes where indexrelname = %s"
            row = connection.execute(ask, [index]).fetchone()
            if row and row[0]:
                return int(row[0])
            connection.execute("select pg_sleep(0.05)")
        return 0


KILLED = """
import sys
from consilience.data.table import Table
import consilience.search.push as pushing
pushing._BATCH = 50
from consilience.search.stores.postgres import PostgresStore
from consilience.search.stores import postgres_rows, postgres
count = 0
def rows(*arguments):
    global count
    for piece in postgres_rows.binary_rows(*arguments):
        yield piece
        if len(piece) > 100:
            count += 1
            if count == 4:
                print("now", flush=True)
                import time; time.sleep(60)
postgres.binary_rows = rows
pushing.push(Table.open(sys.argv[1]), sys.argv[2], ["vector_image"])
"""


def test_a_kill_in_the_middle_of_a_batch_leaves_whole_batches(postgres: str, table: Table) -> None:  # noqa: F811
    url = f"{postgres}#killed"
    words = [sys.executable, "-c", KILLED, str(table.path), url]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    threading.Timer(60, process.kill).start()
    assert process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    with psycopg.connect(postgres) as connection:
        ask = 'select count(*), max("index") from consilience.killed_vector_image'
        assert connection.execute(ask).fetchone() == (150, 149)
    about = push(table, url, ["vector_image"])["columns"]["vector_image"]
    assert (about["written"], about["unchanged"], about["held"]) == (150, 150, 300)


def test_addresses(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "postgresql://me:s3cret@host/db#digits")
    address = address_of("env:WHERE", table)
    assert (address.engine, address.server, address.name) == ("postgres", "postgresql://me:s3cret@host/db", "digits")
    assert address.shown == "postgresql://me:***@host/db#digits"
    assert address_of("milvus://host:19530", table).server == "http://host:19530"
    assert address_of("x/y.db", table).name == "table"
    for url, message in (
        ("env:NOWHERE", "no variable NOWHERE"),
        ("mysql://me:s3cret@host", "'mysql://me:\\*\\*\\*@host' is no store's address"),
        ("postgresql://h/d#a b", "'a b' cannot name a Table"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            address_of(url, table)
        assert "s3cret" not in str(caught.value)


def test_passwords_are_never_told(table: Table) -> None:
    for url in ("postgresql://me:s3cret@127.0.0.1:1/db", "postgresql://127.0.0.1:1/db?password=s3cret&user=me"):
        with pytest.raises(InputError, match="cannot reach postgresql://") as caught:
            push(table, url)
        assert "s3cret" not in str(caught.value)
        assert "\n" not in str(caught.value)
    assert redacted("postgresql://me:p%40ss@h/d?password=x#n") == "postgresql://me:***@h/d?password=***#n"
    assert without_secrets("bad p@ss\nmore", "postgresql://me:p%40ss@h/d") == "bad ***"
    assert without_secrets("", "postgresql://h/d") == "no reason given"


def test_a_server_that_goes_away_is_one_line(postgres: str, table: Table) -> None:  # noqa: F811
    push(table, f"{postgres}#gone", ["vector_image"])
    store = open_store(f"{postgres}#gone", space_of(table, "vector_image"), table)
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where pid != pg_backend_pid() and datname is not null"
        )
    with pytest.raises(ConsilienceError, match="gone_vector_image"):
        store.count()
    assert store.count() == ROWS, "the next call connects anew"
    store.close()
