"""Every store gives the same answers: those of a loop over all vectors."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from consilience.data.schema import Kind
from consilience.data.table import Row, Table
from consilience.errors import InputError
from consilience.search.stores.base import Space, Store
from consilience.search.stores.lance import LanceStore
from consilience.search.stores.memory import MemoryStore
from consilience.search.stores.remote import identity
from tests.search.servers import RecordedMilvus, postgres  # noqa: F401

ROWS, FILLED = 240, 200
LABELS = ("rod", "ball", 'it\'s "one" \\ of\nthem', None)
SPACES = {
    "cosine": Space("vector_image", "cosine", 12, "abc"),
    "hamming": Space("code_image", "hamming", 32, "abc"),
}
EXACT = ("memory", "lance", "postgres", "milvus-lite", "milvus-recorded")
LOCAL = ("memory", "lance")
NEAR = ("postgres-hnsw", "postgres-ivf", "milvus-lite-hnsw", "milvus-recorded-ivf")
KINDS = [
    (engine, metric)
    for engine in (*EXACT, *NEAR)
    for metric in SPACES
    if not (metric == "hamming" and engine.startswith("milvus-lite"))  # it knows no binary vectors
]
FILTERS = (
    "split = 'test'",
    "label = 'rod' or id = 's3'",
    "label is null and index < 100",
    "not (label = 'rod' or index >= 150)",
    "label <> 'rod'",
    "label in ('ball', 'rod') and not split in ('train')",
    "label not in ('ball')",
    "label = 'it''s \"one\" \\ of\nthem'",
    "id = 'nobody'",
    "100 <= index and index < 104",
    "true",
    "`split` != 'test' and (index = 1 or index = 2 or (label is not null and index > 190))",
)


def rows_of(space: Space, count: int, seed: int) -> np.ndarray:
    """Unit vectors, or random codes."""
    draw = np.random.default_rng(seed)
    if space.metric == "hamming":
        return draw.integers(0, 256, (count, space.columns), dtype=np.uint8)
    vectors = draw.normal(size=(count, space.columns)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def split_of(i: int) -> str:
    return "test" if i % 5 == 4 else "train"


def attributes_of(keys: np.ndarray) -> pa.Table:
    return pa.table(
        {
            "id": [f"s{i}" for i in keys],
            "split": [split_of(i) for i in keys],
            "label": pa.array([LABELS[i % 4] for i in keys], pa.string()),
        }
    )


class Held:
    """The definition: a dictionary and a loop."""

    def __init__(self, space: Space, table: Table) -> None:
        self.space, self.table, self.vectors = space, table, dict[int, np.ndarray]()

    def distance(self, query: np.ndarray, key: int) -> float:
        if self.space.metric == "cosine":
            return 1 - float(query.astype(np.float64) @ self.vectors[key].astype(np.float64))
        return float(sum(bin(int(a) ^ int(b)).count("1") for a, b in zip(query, self.vectors[key], strict=True)))

    def passing(self, where: str | None) -> list[int]:
        there = set(self.table.indices()[self.table.select(where)].tolist())
        return sorted(key for key in self.vectors if key in there)

    def check(self, store: Store, queries: np.ndarray, k: int, where: str | None, least: float) -> None:
        """Reported distances are true, in order, of rows that pass, and (in the share ``least``) the smallest."""
        keys, distances = store.search(queries, k, where)
        assert keys.shape == distances.shape == (len(queries), k)
        assert (keys.dtype, distances.dtype) == (np.int64, np.float32)
        passing, hits, wanted = self.passing(where), 0, 0
        for query, found, far in zip(queries, keys.tolist(), distances.tolist(), strict=True):
            real = [key for key in found if key != -1]
            assert len(real) == min(k, len(passing)) == len(set(real))
            assert set(real) <= set(passing)
            assert found[len(real) :] == [-1] * (k - len(real))
            assert far[len(real) :] == [np.inf] * (k - len(real))
            np.testing.assert_allclose(far[: len(real)], [self.distance(query, key) for key in real], atol=2e-6)
            # in order up to the last bits of their cosines; ties of codes by key
            assert all(b - a > -1e-6 for a, b in itertools.pairwise(far[: len(real)]))
            if self.space.metric == "hamming":
                assert sorted(zip(far, real, strict=False)) == list(zip(far, real, strict=False))
            best = sorted(self.distance(query, key) for key in passing)[:k]
            wanted += len(best)
            hits += sum(mine <= best[-1] + 2e-6 for mine in far[: len(real)]) if best else 0
        assert hits >= least * wanted


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    rows = (Row(f"s{i}", split_of(i), {"image": b"x"}, {"image": f"{i}.png"}, LABELS[i % 4]) for i in range(ROWS))
    return Table.create(tmp_path_factory.mktemp("store") / "table", rows, {"image": Kind.GREY}, "the contract")


Make = Callable[..., Any]


@pytest.fixture
def make(
    request: pytest.FixtureRequest, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Make]:
    """``make(engine, space, **options)``: a store that is empty unless an earlier call of the same test filled it."""
    opened: list[Store] = []

    def call(engine: str, space: Space, **options: Any) -> Any:
        options = {"owner": identity(table), "attributes": {"id": "text", "split": "text", "label": "text"}, **options}
        if engine in LOCAL:
            from consilience.data.importers import import_table

            own = tmp_path / "table"
            mine = Table.open(own) if own.exists() else import_table(table.path, own)
            if space.column not in mine.columns:
                one = {space.column: rows_of(space, 1, 0)}  # a column cannot be written without any row
                mine.write_columns(np.array([ROWS - 1]), one, {"fingerprint": space.fingerprint})
            store: Any = MemoryStore(mine, space) if engine == "memory" else LanceStore(mine, space)
        elif engine.startswith("postgres"):
            from consilience.search.stores.postgres import PostgresStore

            server, name = request.getfixturevalue("postgres"), f"t{abs(hash(str(tmp_path))) % 10**12}"
            store = PostgresStore(server, name, space, **options)
        else:
            from consilience.search.stores import milvus

            if "recorded" in engine:
                monkeypatch.setattr(milvus, "MilvusClient", RecordedMilvus)
                server = f"http://{tmp_path}"
            else:
                server = str(tmp_path / "lite.db")
            store = milvus.MilvusStore(server, "t", space, **options)
        opened.append(store)
        return store

    yield call
    for store in opened:
        store.close()


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def filled(request: pytest.FixtureRequest, make: Make, table: Table) -> tuple[Any, Held, float]:
    """A store with the first rows, the definition with the same, and what share of the best must be found."""
    engine, metric = request.param
    space = SPACES[metric]
    store, held = make(engine, space), Held(space, table)
    keys, vectors = np.random.default_rng(1).permutation(FILLED), rows_of(space, FILLED, 2)
    store.add(keys, vectors, attributes_of(keys))
    held.vectors = dict(zip(keys.tolist(), vectors, strict=True))
    if engine in LOCAL:
        assert store.delete(np.array([ROWS - 1])) == 1
    if engine in NEAR:
        kind = engine.split("-")[-1]
        assert store.build(kind) == kind
        assert store.build(kind) == kind
        return store, held, 0.9
    return store, held, 1.0


def test_the_nearest_are_found(filled: tuple[Any, Held, float]) -> None:
    store, held, least = filled
    queries = rows_of(held.space, 6, 3)
    for k in (1, 10, FILLED + 5):
        held.check(store, queries, k, None, least)
    keys, distances = store.search(held.vectors[7][None], 1)
    assert keys.tolist() == [[7]]
    assert distances[0, 0] == pytest.approx(0, abs=2e-6)
    assert store.count() == FILLED


def test_filters_are_those_of_the_table(filled: tuple[Any, Held, float]) -> None:
    store, held, least = filled
    queries = rows_of(held.space, 2, 4)
    for where in FILTERS:
        held.check(store, queries, 5, where, least)
    with pytest.raises(InputError, match="splt"):
        store.search(queries, 3, "splt = 'test'")
    with pytest.raises(InputError):
        store.search(queries, 3, "split = ")


def test_add_replaces_and_delete_forgets(filled: tuple[Any, Held, float]) -> None:
    store, held, least = filled
    keys = np.arange(FILLED - 20, FILLED + 20)
    vectors = rows_of(held.space, len(keys), 5)
    store.add(keys, vectors, attributes_of(keys))
    held.vectors |= dict(zip(keys.tolist(), vectors, strict=True))
    assert store.count() == FILLED + 20
    queries = rows_of(held.space, 4, 6)
    held.check(store, queries, 8, None, least)
    assert store.delete(np.array([0, 5, 190, 10**6])) == 3
    assert store.delete(np.array([0, 5, 190])) == 0
    for key in (0, 5, 190):
        del held.vectors[key]
    assert store.count() == FILLED + 17
    held.check(store, queries, 8, "split = 'train'", least)
    store.add(np.array([5]), vectors[:1], attributes_of(np.array([5])))
    held.vectors[5] = vectors[0]
    held.check(store, queries, 8, None, least)


def test_what_does_not_fit_is_refused(filled: tuple[Any, Held, float]) -> None:
    store, held, _ = filled
    good = rows_of(held.space, 2, 7)
    wrong = np.zeros((2, held.space.columns), np.uint8 if held.space.metric == "cosine" else np.float32)
    for rows, keys in ((good[:, 1:], [1, 2]), (wrong, [1, 2]), (good, [3, 3]), (good, [-1, 4]), (good, [1, 2, 3])):
        with pytest.raises(InputError):
            store.add(np.array(keys), rows, attributes_of(np.array(keys)))
    for rows in (good[:, 1:], wrong):
        with pytest.raises(InputError):
            store.search(rows, 3)
    if held.space.metric == "cosine":
        good[0, 0] = np.nan
        with pytest.raises(InputError, match="NaN"):
            store.add(np.array([1, 2]), good, attributes_of(np.array([1, 2])))
    assert store.count() == FILLED


def test_searches_may_run_at_once(filled: tuple[Any, Held, float]) -> None:
    store, held, _ = filled
    queries = rows_of(held.space, 8, 8)
    alone = [store.search(query[None], 5, "split = 'train'") for query in queries]
    barrier = threading.Barrier(4)

    def ask(number: int) -> bool:
        barrier.wait()
        same = [store.search(queries[i][None], 5, "split = 'train'") for i in range(number, 8, 4)]
        return all(np.array_equal(a[0], alone[i][0]) for a, i in zip(same, range(number, 8, 4), strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(4)))


@pytest.mark.parametrize(("engine", "metric"), [kind for kind in KINDS if kind[0] in EXACT and kind[0] not in LOCAL])
def test_an_empty_store_answers_with_nothing(engine: str, metric: str, make: Make) -> None:
    store = make(engine, SPACES[metric])
    keys, distances = store.search(rows_of(SPACES[metric], 2, 0), 3)
    assert keys.tolist() == [[-1] * 3] * 2
    assert np.isinf(distances).all()
    assert store.count() == store.delete(np.array([1])) == 0


REMOTE = [kind for kind in KINDS if kind[0] in ("postgres", "milvus-lite", "milvus-recorded")]


@pytest.mark.parametrize(("engine", "metric"), REMOTE)
def test_remote_stores_remember_whose_they_are(engine: str, metric: str, make: Make) -> None:
    space, keys = SPACES[metric], np.arange(30)
    with pytest.raises(InputError, match=r"holds nothing of .*; fill it: consilience index push"):
        make(engine, space, attributes=None)
    store = make(engine, space)
    store.add(keys, rows_of(space, 30, 1), attributes_of(keys))
    store.close()
    again = make(engine, space, attributes=None)
    assert again.count() == 30
    assert again.record.attributes == {"id": "text", "split": "text", "label": "text"}
    assert sorted(np.concatenate(list(again.keys())).tolist()) == keys.tolist()
    digests = again.digests(np.array([3, 99, 4]))
    assert digests[1] == 0
    assert len(set(digests.tolist())) == 3
    again.add(keys[3:5], rows_of(space, 30, 1)[3:5], attributes_of(keys[3:5]))
    assert again.digests(np.array([3, 99, 4])).tolist() == digests.tolist()
    again.close()
    for other, owner, message in (
        (
            replace(space, fingerprint="other"),
            None,
            r"holds vectors of encoder abc, not of other; fill it anew.*--replace",
        ),
        (replace(space, width=space.width + 8), None, f"{space.column} .{space.metric}, {space.width}., not"),
        (space, "another", "belongs to a Table of another source"),
    ):
        options = {} if owner is None else {"owner": owner}
        with pytest.raises(InputError, match=message):
            make(engine, other, **options)
    fresh = make(engine, replace(space, fingerprint="other"), replace=True)
    assert fresh.count() == 0
    fresh.drop()
    fresh.close()
    with pytest.raises(InputError, match="holds nothing of"):
        make(engine, space, attributes=None)


@pytest.mark.parametrize(("engine", "metric"), REMOTE)
def test_attributes_of_every_kind(engine: str, metric: str, make: Make) -> None:
    space, keys = SPACES[metric], np.arange(6)
    kinds = {"name": "text", "price": "float", "size": "int", "new": "bool"}
    store = make(engine, space, attributes=kinds)
    told = pa.table(
        {
            "new": [True, False, None, True, None, False],
            "size": pa.array([1, -2, 3, None, 2**40, 6], pa.int64()),
            "price": pa.array([0.5, 1.5, None, 2.5, -1.0, 9.0], pa.float32()),
            "name": ["ä", "", "b'c", None, "\\", 'd"'],
        }
    )
    store.add(keys, rows_of(space, 6, 1), told)
    query = rows_of(space, 1, 2)
    for where, expected in (
        ("new", {0, 3}), ("not new", {1, 5}), ("new is null", {2, 4}), ("new = false", {1, 5}), ("new != true", {1, 5}),
        ("price > 1", {1, 3, 5}), ("not price > 1", {0, 4}), ("price in (0.5, -1)", {0, 4}), ("size < 0", {1}),
        ("size = 1099511627776", {4}), ("size not in (1, -2)", {2, 4, 5}), ("name = 'ä'", {0}), ("name = ''", {1}),
        ("name = 'b''c' or name = 'd\"'", {2, 5}), ("name = '\\'", {4}), ("name > 'b'", {0, 2, 5}),
        ("not (size > 0 and new)", {1, 5}), ("false or size = 6.0", {5}), ("not true", set()),
    ):  # fmt: skip
        found = store.search(query, 6, where)[0][0]
        assert set(found[found >= 0].tolist()) == expected, where
    for wrong, message in (
        (pa.table({"colour": ["x"]}), "'colour' is text, in the store it is not an attribute"),
        (pa.table({"name": [1]}), "'name' is int, in the store it is text"),
        (pa.table({"name": ["a", "b"]}), "2 rows of attributes for 1 vectors"),
        (pa.table({"name": ["a\0b"]}), "zero byte"),
        (pa.table({"vector": ["a"]}), "cannot name an attribute"),
    ):
        with pytest.raises(InputError, match=message):
            store.add(np.array([9]), rows_of(space, 1, 3), wrong)
    store.add(np.array([0]), rows_of(space, 1, 1))
    assert store.search(query, 6, "name is null and price is null")[0][0, :1].tolist() == [0]
