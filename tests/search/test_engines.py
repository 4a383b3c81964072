"""Every engine, filter and way to compare gives what a loop over all rows gives."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import consilience.search.stores.approximate as approximate
from consilience.data.growth import delete, optimise
from consilience.data.table import Table
from consilience.errors import InputError
from consilience.search.searcher import Options, Searcher
from consilience.search.stores.approximate import ApproximateStore, build_approximate, facts_of, is_fresh
from consilience.search.stores.base import NOTHING, Space
from consilience.search.stores.choose import chosen, open_store
from consilience.search.stores.columns import space_of
from consilience.search.stores.lance import LanceStore, build_lists, indexed
from consilience.search.stores.memory import MemoryStore, nearest
from tests.search import fakes

FILTERS = (
    None,
    "split = 'test'",
    "label = 'a' or id = 's30'",
    "label is null and index < 90",
    "index = 25",
    "id = 'no'",
)
INTO = (["image"], ["text"], ["image", "text"])
BY = ("vector", "code", "asymmetric")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return fakes.run_at(tmp_path_factory.mktemp("fake") / "run")


@pytest.fixture(scope="module")
def table(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Read only."""
    return fakes.made(tmp_path_factory.mktemp("fake") / "table", run)


@pytest.fixture
def own(run: Any, tmp_path: Path) -> Table:
    """A Table to write to."""
    return fakes.made(tmp_path / "own", run)


@pytest.fixture
def small_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inverted files for Tables of any size."""
    monkeypatch.setattr(approximate, "_SMALLEST", 30)
    monkeypatch.setattr(approximate, "_SAMPLES", 10)


def queries(count: int = 5) -> np.ndarray:
    return fakes.unit(np.random.default_rng(5).standard_normal((count, fakes.WIDTH)))


def agrees(found: list[tuple[float, str, int]], expected: list[tuple[float, str, int]], k: int) -> None:
    """The same scores; and every row that is strictly better than the last one is there."""
    assert len(found) == min(k, len(expected))
    np.testing.assert_allclose([f[0] for f in found], [e[0] for e in expected[:k]], atol=2e-6)
    assert len({f[1:] for f in found}) == len(found)
    scores = {e[1:]: e[0] for e in expected}
    for score, *place in found:
        assert scores[tuple(place)] == pytest.approx(score, abs=2e-6)
    if found:
        sure = {e[1:] for e in expected if e[0] > found[-1][0] + 1e-5}
        assert sure <= {f[1:] for f in found}


@pytest.mark.parametrize("engine", ["exact", "lance"])
@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("into", INTO, ids="+".join)
def test_exact_engines_are_the_loop(run: Any, table: Table, engine: str, by: str, into: list[str]) -> None:
    searcher = Searcher(run, table, engine=engine)
    if by == "asymmetric" and engine == "lance":
        with pytest.raises(InputError, match=r"leave out --asymmetric, or search with --engine exact"):
            searcher.search(queries(), into=into, by="code", asymmetric=True)
        return
    code = {"by": "code" if by != "vector" else "vector", "asymmetric": by == "asymmetric"}
    for where in FILTERS:
        for k in (1, 7, 500, 10**12):
            answers = searcher.search(queries(), into=into, k=k, where=where, **code)
            assert len(answers) == 5
            for query, hits in zip(queries(), answers, strict=True):
                expected = fakes.slow_search(table, into, query, where, by)
                agrees([(hit.score, hit.modality, hit.index) for hit in hits], expected, k)
                assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))


@pytest.mark.parametrize("where", FILTERS)
def test_lists_that_are_all_read_are_the_loop(run: Any, own: Table, small_lists: None, where: str | None) -> None:
    facts = build_approximate(own, "vector_image", tune_with=["vector_text"])
    assert facts is not None
    assert facts.lists > 3
    store = ApproximateStore(own, space_of(own, "vector_image"), probes=facts.lists, candidates=64)
    for k in (1, 7, 500):
        keys, distances = store.search(queries(), k, where)
        for query, found, far in zip(queries(), keys, distances, strict=True):
            expected = fakes.slow_search(own, ["image"], query, where, "vector")
            real = found != NOTHING
            assert np.isinf(far[~real]).all()
            agrees([(1 - d, "image", key) for d, key in zip(far[real], found[real], strict=True)], expected, k)


def test_lance_lists_find_most(run: Any, own: Table) -> None:
    build_lists(own, "vector_image")
    own = Table.open(own.path)
    assert indexed(own) == ["vector_image"]
    store = LanceStore(own, space_of(own, "vector_image"), lists=True, probes=1000)
    keys, _ = store.search(queries(), 7, "split = 'train'")
    exact, _ = MemoryStore(own, space_of(own, "vector_image")).search(queries(), 7, "split = 'train'")
    np.testing.assert_array_equal(keys, exact)
    with pytest.raises(InputError, match=r"no lists of vector_text; make them: .* --engine lance-ivf"):
        open_store(own, space_of(own, "vector_text"), "lance-ivf")


def test_ties_are_ordered_by_index(run: Any, table: Table) -> None:
    query = np.asarray(table.take(table.offsets_of(np.array([24])), ["vector_image"]).column(0)[0].as_py(), np.float32)
    for engine in ("exact", "lance"):
        keys, distances = open_store(table, space_of(table, "vector_image"), engine).search(query[None], 3)
        assert keys[0, :2].tolist() == [24, 34]
        np.testing.assert_allclose(distances[0, :2], 0, atol=1e-6)


def test_batches_are_single_queries(run: Any, table: Table) -> None:
    searcher, many = Searcher(run, table), queries(9)
    for options in (Options(k=6), Options(k=6, by="code"), Options(["text"], 3, "split = 'test'", standardise=True)):
        together = searcher.answer(many, options)
        alone = [searcher.answer(query[None], options)[0] for query in many]
        for left, right in zip(together, alone, strict=True):
            assert [(h.id, h.modality) for h in left] == [(h.id, h.modality) for h in right]
            np.testing.assert_allclose([h.score for h in left], [h.score for h in right], atol=1e-5)
    assert searcher.rank(many, Options(k=4)).scores.dtype == np.float32


def test_blocks_do_not_show(run: Any, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    import consilience.search.stores.memory as memory

    store = MemoryStore(table, space_of(table, "vector_image"))
    before = store.search(queries(), 12, "index <> 3")
    monkeypatch.setattr(memory, "BLOCK", 7)
    after = store.search(queries(), 12, "index <> 3")
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_allclose(before[1], after[1], atol=1e-6)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_nothing_to_compare(rows: int) -> None:
    space = Space("v", "cosine", 4, "x")
    places, far = nearest(space, np.eye(4, dtype=np.float32)[:2], np.eye(4, dtype=np.float32)[:rows], 6)
    assert (places >= 0).sum(1).tolist() == [min(rows, 4)] * 2
    assert np.isinf(far[places < 0]).all()


def test_reranking_is_the_order_of_floats(run: Any, table: Table) -> None:
    for engine in ("exact", "lance"):
        searcher = Searcher(run, table, engine=engine)
        for query in queries():
            coded = searcher.search(query[None], into=["image"], by="code", k=30)[0]
            vectors = {
                e["index"]: e["vector_image"] for e in table.take(table.select(), ["index", "vector_image"]).to_pylist()
            }
            expected = sorted((hit.index for hit in coded), key=lambda i: -np.dot(vectors[i], query))[:5]
            hits = searcher.search(query[None], into=["image"], by="code", k=5, rerank=30)[0]
            np.testing.assert_allclose(
                [h.score for h in hits], [np.dot(vectors[i], query) for i in expected], atol=1e-5
            )
    everything = searcher.search(queries(), by="code", k=9, rerank=500)
    assert [[h.id for h in a] for a in everything] == [[h.id for h in a] for a in searcher.search(queries(), k=9)]


def test_standardised_scores_are_in_deviations_of_all_stored(run: Any, table: Table) -> None:
    query = queries(1)
    hits = Searcher(run, table).search(query, k=12, where="split = 'test'", standardise=True)[0]
    for hit in hits:
        stored = table.column(f"vector_{hit.modality}", f"vector_{hit.modality} is not null")
        scores = stored @ query[0]
        own = float(stored[table.select(f"vector_{hit.modality} is not null").searchsorted(hit.index)] @ query[0])
        assert hit.score == pytest.approx((own - scores.mean()) / scores.std(), abs=1e-3)
    coded = Searcher(run, table).search(query, into=["image"], k=5, by="code", standardise=True)[0]
    raw = [score for score, *_ in fakes.slow_search(table, ["image"], query[0], None, "code")]
    expected = (np.array(raw) - np.mean(raw)) / np.std(raw)
    np.testing.assert_allclose([hit.score for hit in coded], expected[:5], atol=1e-4)


def test_a_stale_index_is_passed_over_or_refused(run: Any, own: Table, small_lists: None) -> None:
    space = space_of(own, "vector_image")
    build_approximate(own, "vector_image")
    assert chosen(own, space) == "ivf"
    own.write_columns(np.arange(5), {"review": np.arange(5)}, {})
    assert chosen(Table.open(own.path), space) == "ivf"  # another column
    optimise(own)
    again = Table.open(own.path)
    assert chosen(again, space) == "ivf"  # other files, the same vectors
    delete(again, "index = 24")
    gone = Table.open(own.path)
    facts = facts_of(gone, "vector_image")
    assert facts is not None
    assert not is_fresh(gone, facts)
    assert chosen(gone, space) == "exact"
    with pytest.raises(InputError, match=r"built from other vectors .* run: consilience index build .* --run RUN"):
        open_store(gone, space, "ivf")
    hits = Searcher(run, gone).search(queries(), into=["image"], k=500)[0]
    assert 24 not in {hit.index for hit in hits}
    build_approximate(gone, "vector_image")
    assert chosen(gone, space) == "ivf"
    assert 24 not in open_store(gone, space, "ivf").search(queries(), 200)[0]


def test_a_damaged_index_is_passed_over_or_refused(run: Any, own: Table, small_lists: None) -> None:
    space = space_of(own, "vector_image")
    build_approximate(own, "vector_image")
    place = own.path / "indices" / "vector_image"
    (place / "lists.faiss").write_bytes(b"IxMp" + bytes(50))
    with pytest.raises(InputError, match=r"vector_image is damaged; remove it"):
        open_store(own, space, "ivf")
    (place / "facts.json").write_text("{")
    assert chosen(own, space) == "exact"
    with pytest.raises(InputError, match=r"vector_image is damaged; remove it"):
        open_store(own, space, "ivf")


@pytest.mark.parametrize("engine", ["exact", "lance", "ivf"])
def test_the_five_verbs(run: Any, own: Table, small_lists: None, engine: str) -> None:
    space = space_of(own, "vector_image")
    build_approximate(own, "vector_image")
    store = open_store(own, space, engine)
    assert store.count() == fakes.ROWS - 2
    new = fakes.unit(np.random.default_rng(1).standard_normal((2, fakes.WIDTH)))
    store.add(np.array([7, 50]), new)
    assert store.count() == fakes.ROWS - 1
    keys, far = store.search(new, 1)
    assert keys.ravel().tolist() == [7, 50]
    np.testing.assert_allclose(far, 0, atol=1e-6)
    assert store.delete(np.array([7, 9, 50])) == 2
    assert store.count() == fakes.ROWS - 3
    assert not {7, 9, 50} & set(store.search(new, 200)[0].ravel().tolist())
    latest = Table.open(own.path)
    assert latest.provenance("vector_image") == own.provenance("vector_image")
    assert len(latest.select("vector_image is not null")) == fakes.ROWS - 3
    for keys, vectors, message in (
        (np.array([1, 1]), new, "keys repeat"),
        (np.array([1]), new, "give one whole number a vector"),
        (np.array([1, 1000]), new, "has no row with index 1000"),
        (np.array([1, 2]), new[:, :8], "takes cosine rows of 16 numbers"),
        (np.array([1, 2]), np.full_like(new, np.nan), "NaN or infinite"),
        (np.array([1, 2]), np.zeros((2, 16), np.uint8), "codes go to a code column"),
    ):
        with pytest.raises(InputError, match=message):
            store.add(keys, vectors)
    store.close()


def test_what_does_not_fit_is_refused(run: Any, table: Table, tmp_path: Path) -> None:
    other, searcher = Searcher(fakes.run_at(tmp_path / "other", 1), table), Searcher(run, table)
    assert other.modalities == {}
    assert list(searcher.modalities) == ["image", "text"]
    query = queries(1)
    for wrong, call, message in (
        (other, {}, f"vector_image of {table.path} was filled by another encoder \\({run.path}\\); search with --run"),
        (other, {"by": "code"}, r"code_image .* refill it: consilience index hash"),
        (searcher, {"into": ["points"]}, r"holds no vectors of points; run: consilience index"),
        (searcher, {"into": ["points"], "by": "code"}, r"holds no codes of points; run: consilience index hash"),
        (searcher, {"into": ["imge"]}, "did you mean 'image'"),
        (searcher, {"k": 0}, "-k 0"),
        (searcher, {"by": "cod"}, "did you mean 'code'"),
        (searcher, {"rerank": 20}, "--rerank 20: needs --by code"),
        (searcher, {"rerank": 5, "by": "code"}, "at least as many as -k 10"),
        (searcher, {"asymmetric": True}, "add --by code"),
        (searcher, {"where": "splt = 'test'"}, "splt"),
    ):
        with pytest.raises(InputError, match=message):
            wrong.search(query, **call)
    with pytest.raises(InputError, match="takes cosine rows of 16 numbers"):
        searcher.search(query[:, :4])
    with pytest.raises(InputError, match="did you mean 'exact'"):
        Searcher(run, table, engine="exat")
    foreign = Space("vector_image", "cosine", fakes.WIDTH, "0" * 16)
    for engine in ("auto", "exact", "lance", "ivf"):
        with pytest.raises(
            InputError, match=r"vector_image .* holds vectors of encoder .*; run: consilience index build"
        ):
            open_store(table, foreign, engine)
    with pytest.raises(InputError, match="has no approximate index of vector_text"):
        open_store(table, space_of(table, "vector_text"), "ivf")


def test_refresh_sees_new_rows_and_keeps_what_did_not_change(run: Any, own: Table) -> None:
    searcher = Searcher(run, own)
    searcher.search(queries(1))
    assert not searcher.refresh()
    image, text = searcher.store("vector_image"), searcher.store("vector_text")
    MemoryStore(own, space_of(own, "vector_image")).delete(np.array([3]))
    assert searcher.search(queries(1), into=["image"], where="index = 3") != [[]]
    assert searcher.refresh()
    assert searcher.search(queries(1), into=["image"], where="index = 3") == [[]]
    kept, new = searcher.store("vector_text"), searcher.store("vector_image")
    assert isinstance(kept, MemoryStore)
    assert isinstance(text, MemoryStore)
    assert isinstance(new, MemoryStore)
    assert isinstance(image, MemoryStore)
    assert kept.vectors is text.vectors
    assert new.vectors is not image.vectors


def test_searches_during_refreshes_see_one_version(run: Any, own: Table) -> None:
    searcher, wrong, stop = Searcher(run, own), [], threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                hits = searcher.search(queries(2), k=200, where="index < 60")
                if not all(hit.id == f"s{hit.index}" for answer in hits for hit in answer):
                    wrong.append("mixed")
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for index in range(6):
        delete(Table.open(own.path), f"index = {index}")
        searcher.refresh()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert min(hit.index for hit in searcher.search(queries(1), k=200)[0]) == 6


def test_larger_than_memory_is_searched_on_disk(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    import consilience.search.stores.choose as choose

    assert chosen(table, space_of(table, "vector_image")) == "exact"
    monkeypatch.setattr(choose, "memory_bytes", lambda: 100)
    assert chosen(table, space_of(table, "vector_image")) == "lance"
    assert isinstance(open_store(table, space_of(table, "code_image")), LanceStore)
