"""Speed of search over a Table on disk, beside FAISS and usearch called directly on arrays, in the same run.

Vectors are drawn around centres: one of 2,000 (at most one for 50 rows) standard normal centres, plus 0.7 times a
16-dimensional normal draw spread by one random map, plus 0.1 times white noise, scaled to unit length. Codes are the
signs of 64 random projections of such points. Queries are further draws from the same distribution: 1,000 to measure
with, and 200 others to choose the effort of approximate indices on (ours chooses on stored vectors, at its build).

*Ours* is the store that ``Searcher`` asks: it is opened from a Table on disk, looks positions up as the Table's keys,
and takes SQL filters. ``hits`` adds what ``search`` returns: every row's id, split, label and origin. A ratio is our
queries a second over those of the best of the direct calls, each at the cheapest effort that reaches the target recall
on the tuning queries.
"""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import lance
import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from consilience.data.table import METADATA, NAME, Table
from consilience.errors import InputError
from consilience.heads.codes import pack
from consilience.search.hits import Ranking, hits_of
from consilience.search.stores.approximate import build_approximate, folder_of
from consilience.search.stores.base import Space, Store
from consilience.search.stores.choose import open_store
from consilience.search.stores.memory import FAISS_OWN, PRODUCT_FROM

ROWS, CODES, WIDTH, BITS = 1_000_000, 10_000_000, 128, 64
QUERIES, TUNING, K, TARGET = 1000, 200, 10, 0.95
_CHUNK = 65536
_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)
_MARK = "benchmark0000000"
Search = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From queries to keys [q, k] and distances [q, k]."""


@dataclass
class Side:
    """One way to answer, ready to be asked."""

    search: Search
    build_s: float
    bytes_per_item: float
    effort: str = ""
    most: int = QUERIES
    """Queries to ask at once: fewer where a thousand would take minutes."""


def clustered(rows: int, width: int, seed: int, draw: int, clusters: int) -> Iterator[np.ndarray]:
    """Chunks float32 [c, width] of ``rows`` points, see the module; not scaled to unit length. ``seed`` fixes the
    distribution, ``draw`` the sample."""
    shape = np.random.default_rng(seed)
    centres = shape.standard_normal((clusters, width), dtype=np.float32)
    spread = shape.standard_normal((16, width), dtype=np.float32) * np.float32(0.7 / 4)
    random = np.random.default_rng((seed, draw))
    for start in range(0, rows, _CHUNK):
        count = min(_CHUNK, rows - start)
        points = centres[random.integers(clusters, size=count)]
        points += random.standard_normal((count, 16), dtype=np.float32) @ spread
        points += np.float32(0.1) * random.standard_normal((count, width), dtype=np.float32)
        yield points


def vectors(rows: int, seed: int, draw: int, clusters: int) -> Iterator[np.ndarray]:
    """Chunks of unit vectors float32 [c, 128]."""
    for points in clustered(rows, WIDTH, seed, draw, clusters):
        yield points / np.linalg.norm(points, axis=1, keepdims=True)


def codes(rows: int, seed: int, draw: int, clusters: int) -> Iterator[np.ndarray]:
    """Chunks of packed codes uint8 [c, 8]. Signs of random projections of the points are drawn as points of 64
    dimensions: a normal map of normal draws."""
    for points in clustered(rows, BITS, seed, draw, clusters):
        yield pack(points)


def write_table(place: Path, space: Space, chunks: Iterator[np.ndarray]) -> Table:
    """A Table without raw bytes whose rows carry ``chunks`` in the space's column; every tenth is of split test."""
    about = {b"consilience.provenance": f'{{"fingerprint": "{_MARK}", "run": "none", "method": "none"}}'.encode()}
    number = pa.float32() if space.metric == "cosine" else pa.uint8()
    names = {"id": pa.string(), "index": pa.int64(), "split": pa.string(), "label": pa.string()}
    fields = [pa.field(name, kind) for name, kind in names.items()]
    fields += [pa.field("image", pa.large_binary()), pa.field("origin_image", pa.string())]
    fields.append(pa.field(space.column, pa.list_(number, space.columns), metadata=about))
    facts = '{"format": 1, "modalities": {"image": "grey"}, "source": "benchmark", "content": "", "sizes": {}}'
    schema = pa.schema(fields, metadata={METADATA: facts})

    def batches() -> Iterator[pa.RecordBatch]:
        start = 0
        for chunk in chunks:
            index = np.arange(start, start + len(chunk))
            ids = pa.array([f"s{i:08d}" for i in index.tolist()])
            split = pa.array(np.where(index % 10 == 0, "test", "train"))
            label = pa.array((index % 100).astype(str))
            values = pa.FixedSizeListArray.from_arrays(pa.array(chunk.ravel()), space.columns)
            empty = pa.nulls(len(chunk), pa.large_binary())
            yield pa.record_batch([ids, pa.array(index), split, label, empty, ids, values], schema=schema)
            start += len(chunk)

    lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches()), str(place / f"{NAME}.lance"))
    return Table.open(place)


def run(
    *, repeats: int = 3, rows: int = ROWS, codes_rows: int = CODES, threads: int = 0, seed: int = 0
) -> dict[str, Any]:
    """Measure exact, IVF and Hamming search; a quarter of an hour on two cores, 4 GB of memory.

    ``threads``: of every side; 0: all cores. Returns ``ratios`` (ours over the best direct call, above 1: ours is
    faster), and by suite and side ``queries_per_s`` (median, min, max), ``recall_at_10``, ``build_s``,
    ``bytes_per_item`` and ``effort``.
    """
    if rows < 2000 or codes_rows < 2000 or repeats < 1:
        raise InputError("bench search needs at least 2000 rows, 2000 codes and 1 repeat")
    threads = threads or os.cpu_count() or 1
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        with threadpool_limits(threads), tempfile.TemporaryDirectory(prefix="consilience-bench-") as place:
            suites = _floats(Path(place) / "floats", rows, repeats, threads, seed)
            gc.collect()
            suites["hamming"] = _hamming(Path(place) / "codes", codes_rows, repeats, threads, seed)
    finally:
        faiss.omp_set_num_threads(before)
    ratios = {}
    for name, sides in suites.items():
        direct = [side["queries_per_s"]["median"] for who, side in sides.items() if not who.startswith("ours")]
        ratios[name] = sides["ours"]["queries_per_s"]["median"] / max(direct)
    setting = {"rows": rows, "codes": codes_rows, "width": WIDTH, "bits": BITS, "k": K, "queries": QUERIES}
    return {"ratios": ratios, "setting": {**setting, "threads": threads, "target_recall": TARGET}, **suites}


def _floats(place: Path, rows: int, repeats: int, threads: int, seed: int) -> dict[str, dict[str, Any]]:
    clusters = min(2000, rows // 50)
    space = Space("vector_image", "cosine", WIDTH, _MARK)
    table = write_table(place, space, vectors(rows, seed, 0, clusters))
    queries = np.concatenate(list(vectors(QUERIES, seed, 1, clusters)))
    tuning = np.concatenate(list(vectors(TUNING, seed, 2, clusters)))
    began = time.perf_counter()
    store = open_store(table, space, "exact")
    loading = time.perf_counter() - began
    stored: np.ndarray = store.vectors  # type: ignore[attr-defined]

    flat: Any = faiss.IndexFlatIP(WIDTH)
    began = time.perf_counter()
    flat.add(stored)
    exact = {
        "ours": Side(_asked(store), loading, 4 * WIDTH),
        "ours, hits": Side(_hits(table, store), loading, 4 * WIDTH),
        "ours, a tenth passes": Side(_asked(store, "split = 'test'"), loading, 4 * WIDTH),
        "faiss": Side(_direct(flat), time.perf_counter() - began, 4 * WIDTH),
        "usearch": Side(_usearch_exact(stored, "ip", threads), 0, 4 * WIDTH, most=100),
    }
    truth, wanted = _asked(store)(queries)[1], _direct(flat)(tuning)[1]
    told = {"exact": _measured(exact, queries, truth, repeats)}
    exact.clear()
    del flat
    gc.collect()
    build_approximate(table, space.column)
    size = sum(file.stat().st_size for file in folder_of(table, space.column).iterdir()) / rows
    began = time.perf_counter()
    ours: Any = open_store(table, space, "ivf")
    took = ours.facts.seconds + time.perf_counter() - began
    effort = f"{ours.facts.lists} lists, {ours.probes} read, {K * ours.candidates} put in order"
    sides = {
        "ours": Side(_asked(ours), took, 4 * WIDTH + size, effort),
        "ours, hits": Side(_hits(table, ours), took, 4 * WIDTH + size, effort),
        "ours, a tenth passes": Side(_asked(ours, "split = 'test'"), took, 4 * WIDTH + size, effort),
    }
    lists = int(ours.facts.lists)
    sides["faiss IVFFlat"] = _faiss_lists(stored, f"IVF{lists},Flat", tuning, wanted)
    sides["faiss IVFPQ fast scan, refined"] = _faiss_lists(stored, f"IVF{lists},PQ64x4fs,RFlat", tuning, wanted)
    sides["usearch HNSW"] = _usearch_graph(stored, threads, tuning, wanted)
    told["ivf"] = _measured(sides, queries, truth, repeats)
    return told


def _hamming(place: Path, rows: int, repeats: int, threads: int, seed: int) -> dict[str, Any]:
    clusters = min(2000, rows // 50)
    space = Space("code_image", "hamming", BITS, _MARK)
    table = write_table(place, space, codes(rows, seed, 0, clusters))
    queries = np.concatenate(list(codes(QUERIES, seed, 1, clusters)))
    began = time.perf_counter()
    store: Any = open_store(table, space, "exact")
    loading = time.perf_counter() - began
    began = time.perf_counter()
    flat: Any = faiss.IndexBinaryFlat(BITS)
    flat.add(store.vectors)
    adding = time.perf_counter() - began
    sides = {
        "ours": Side(_asked(store), loading, BITS / 8),
        "ours, hits": Side(_hits(table, store), loading, BITS / 8),
        "ours, a tenth passes": Side(_asked(store, "split = 'test'"), loading, BITS / 8),
        "faiss IndexBinaryFlat": Side(_direct(flat), adding, BITS / 8),
        "faiss knn_hamming": Side(lambda asked: faiss.knn_hamming(asked, store.vectors, K)[::-1], 0, BITS / 8),
        "usearch": Side(_usearch_exact(store.vectors, "hamming", threads), 0, BITS / 8, most=8),
    }
    truth = _direct(flat)(queries)[1].astype(np.float32)
    return _measured(sides, queries, truth, repeats)


def _measured(sides: dict[str, Side], queries: np.ndarray, truth: np.ndarray, repeats: int) -> dict[str, Any]:
    """Every side in turn, ``repeats`` times after one answer that is not counted; so a busy moment hits all alike. Each
    round begins with another side: the threads of one library still spin for a moment when the next one begins."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    recall = {}
    for name, side in sides.items():
        found = side.search(queries[: side.most])[1]
        recall[name] = None if "passes" in name else _recall(found, truth[: side.most])
    order = list(sides.items())
    for turn in range(repeats):
        for name, side in order[turn % len(order) :] + order[: turn % len(order)]:
            began = time.perf_counter()
            side.search(queries[: side.most])
            seconds[name].append(time.perf_counter() - began)
    told = {}
    for name, side in sides.items():
        rates = [min(side.most, len(queries)) / taken for taken in seconds[name]]
        told[name] = {
            "queries_per_s": {"median": statistics.median(rates), "min": min(rates), "max": max(rates)},
            "recall_at_10": recall[name],
            "build_s": side.build_s,
            "bytes_per_item": side.bytes_per_item,
            "effort": side.effort,
        }
    return told


def _recall(distances: np.ndarray, truth: np.ndarray) -> float:
    """Share of answers that are as near as the true tenth (ties count as found)."""
    return float((distances[:, :K] <= truth[:, K - 1 : K] + 1e-5).sum(1).clip(0, K).mean() / K)


def _asked(store: Store, where: str | None = None) -> Search:
    return lambda asked: store.search(asked, K, where)


def _hits(table: Table, store: Store) -> Search:
    def search(asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        keys, distances = store.search(asked, K)
        hits_of(table, Ranking(keys, store.space.scores(distances), np.zeros_like(keys), ("image",)))
        return keys, distances

    return search


def _direct(index: Any) -> Search:
    """A FAISS index with FAISS's own settings; inner products become distances."""

    def search(asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        faiss.cvar.distance_compute_blas_threshold = FAISS_OWN
        found, keys = index.search(asked, K)
        faiss.cvar.distance_compute_blas_threshold = PRODUCT_FROM
        return keys, found if found.dtype == np.int32 else 1 - found

    return search


def _faiss_lists(stored: np.ndarray, recipe: str, tuning: np.ndarray, wanted: np.ndarray) -> Side:
    began = time.perf_counter()
    index: Any = faiss.index_factory(stored.shape[1], recipe, faiss.METRIC_INNER_PRODUCT)
    refined = isinstance(index, faiss.IndexRefine)
    inner: Any = faiss.extract_index_ivf(index)
    inner.cp.niter, inner.cp.max_points_per_centroid, inner.cp.min_points_per_centroid = 8, 32, 1
    chosen = np.random.default_rng(0).permutation(len(stored))[: max(32 * inner.nlist, 20_000)]
    index.train(stored[np.sort(chosen)])
    index.add(stored)
    took = time.perf_counter() - began
    rates = []
    for factor in (3, 4, 5, 6, 8, 12, 16) if refined else (1,):
        for probes in (step for step in _STEPS if step <= inner.nlist):
            inner.nprobe = probes
            if refined:
                index.k_factor = factor
            began = time.perf_counter()
            found = _direct(index)(tuning)[1]
            rates.append((time.perf_counter() - began, probes, factor, _recall(found, wanted)))
            if rates[-1][3] >= TARGET:
                break
    good = [rate for rate in rates if rate[3] >= TARGET] or [max(rates, key=lambda rate: rate[3])]
    _, probes, factor, _ = min(good)
    inner.nprobe = probes
    if refined:
        index.k_factor = factor
    effort = f"{inner.nlist} lists, {probes} read" + (f", {factor * K} put in order" if refined else "")
    return Side(_direct(index), took, _bytes(index, len(stored)), effort)


def _bytes(index: Any, rows: int) -> float:
    with tempfile.TemporaryDirectory() as place:
        faiss.write_index(index, f"{place}/index")
        return Path(f"{place}/index").stat().st_size / rows


def _usearch_exact(stored: np.ndarray, metric: str, threads: int) -> Search:
    from usearch.index import MetricKind, search

    kind = MetricKind.IP if metric == "ip" else MetricKind.Hamming

    def ask(asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = search(stored, asked, K, kind, exact=True, threads=threads)
        return found.keys.astype(np.int64), found.distances

    return ask


def _usearch_graph(stored: np.ndarray, threads: int, tuning: np.ndarray, wanted: np.ndarray) -> Side:
    from usearch.index import Index

    began = time.perf_counter()
    index = Index(ndim=stored.shape[1], metric="ip", dtype="f32", connectivity=16, expansion_add=64)
    index.add(np.arange(len(stored)), stored, threads=threads)
    took = time.perf_counter() - began

    def ask(asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = index.search(asked, K, threads=threads)
        return found.keys.astype(np.int64), found.distances

    for breadth in (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024):
        index.expansion_search = breadth
        if _recall(ask(tuning)[1], wanted) >= TARGET:
            break
    return Side(ask, took, index.serialized_length / len(stored), f"breadth {breadth}")
