"""A column of the Table in memory, compared exactly."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Self

import faiss
import numpy as np
import pyarrow as pa

from consilience.data.table import Table
from consilience.embedding.columns import read_column
from consilience.heads.codes import unpack
from consilience.search.stores.base import NOTHING, Space, as_rows, ordered
from consilience.search.stores.columns import stamp, write_vectors

BLOCK = 32768  # rows gathered and compared at once when a filter picks them
PRODUCT_FROM = 512  # numbers in queries from which FAISS multiplies matrices; its own 128,000 is up to 6 times slower
_WIDEST = 2048  # answers of blocks that are kept a query before the nearest are picked
_REMEMBERED = 8
_SHARED = 64  # queries from which codes are compared by several threads of ours


FAISS_OWN = int(faiss.cvar.distance_compute_blas_threshold)
"""What FAISS sets by itself, for comparisons with it."""
faiss.cvar.distance_compute_blas_threshold = PRODUCT_FROM


class Filters:
    """SQL filters over the rows of a store as positions among its vectors, the last few remembered."""

    def __init__(self, table: Table, keys: np.ndarray) -> None:
        self._table, self._keys = table, keys
        self._lock = threading.Lock()
        self._known: dict[str, np.ndarray] = {}

    def passing(self, where: str) -> np.ndarray:
        """int64 positions, ascending, of the stored vectors whose rows pass ``where`` (``keys``: ascending)."""
        with self._lock:
            if where not in self._known:
                wanted = self._table.indices()[self._table.select(where)]
                rows = np.flatnonzero(np.isin(self._keys, wanted, assume_unique=True))
                if len(self._known) >= _REMEMBERED:
                    self._known.pop(next(iter(self._known)))
                self._known[where] = rows
            return self._known[where]


@dataclass(frozen=True)
class _Held:
    """What one version of the Table holds; replaced as a whole, so that a search sees one version."""

    keys: np.ndarray
    vectors: np.ndarray
    stamp: str
    filters: Filters


class MemoryStore:
    """Every vector of a column in memory: exact answers, at the speed of the processor's memory.

    The Table stays the only place where vectors are kept: ``add`` and ``delete`` write its column.
    """

    def __init__(self, table: Table, space: Space) -> None:
        self.space, self.table = space, table
        self._held = _load(table, space)

    def add(self, keys: np.ndarray, vectors: np.ndarray, attributes: pa.Table | None = None) -> None:
        """See :class:`~consilience.search.stores.base.Store`; attributes are those of the Table."""
        self.table = write_vectors(self.table, self.space, keys, as_rows(self.space, vectors, "vectors"))
        self._held = _load(self.table, self.space)

    def delete(self, keys: np.ndarray) -> int:
        """Empty the column in the rows ``keys``; the rows stay. Returns how many had a vector."""
        before = self.count()
        self.table = write_vectors(self.table, self.space, keys, None)
        self._held = _load(self.table, self.space)
        return before - self.count()

    def search(self, queries: np.ndarray, k: int, where: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`~consilience.search.stores.base.Store`. Raises InputError for a filter that does not fit."""
        held = self._held
        queries = as_rows(self.space, queries, "queries")
        rows = None if where is None else held.filters.passing(where)
        places, distances = nearest(self.space, queries, held.vectors, k, rows)
        return ordered(keys_at(held.keys, places), distances)

    def asymmetric(self, projected: np.ndarray, k: int, where: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Of a code column: the ``k`` rows whose +-1 codes have the largest cosine with ``projected`` float32 [q, bits]
        (real numbers, not rounded to signs); keys and cosines [q, k], best first."""
        held = self._held
        rows = None if where is None else held.filters.passing(where)
        places, distances = nearest(self.space, projected.astype(np.float32), held.vectors, k, rows)
        keys, distances = ordered(keys_at(held.keys, places), distances)
        length = np.linalg.norm(projected, axis=1, keepdims=True) * self.space.width**0.5
        return keys, (-distances / np.maximum(length, 1e-12)).astype(np.float32)

    def cosines(self, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Cosines float32 [q, n] of each query [q, d] with its own rows ``keys`` int64 [q, n]; minus infinity where
        there is no vector."""
        held = self._held
        return inner_products(as_rows(self.space, queries, "queries"), held.vectors, places_of(held.keys, keys))

    @property
    def vectors(self) -> np.ndarray:
        """All vectors [n, columns], by ascending key. Read only."""
        return self._held.vectors

    @property
    def keys(self) -> np.ndarray:
        """int64 [n], ascending: the rows of :attr:`vectors`. Read only."""
        return self._held.keys

    @property
    def filters(self) -> Filters:
        """The filters over :attr:`keys`."""
        return self._held.filters

    def moved(self, table: Table) -> Self | None:
        """The same vectors under another version of the Table, None when that version has others."""
        if self.space.column not in table.columns or stamp(table, self.space.column) != self._held.stamp:
            return None
        held = self._held
        store = object.__new__(type(self))
        store.space, store.table = self.space, table
        store._held = _Held(held.keys, held.vectors, held.stamp, Filters(table, held.keys))
        return store

    def count(self) -> int:
        """How many rows have a vector."""
        return len(self._held.keys)

    def close(self) -> None:
        """Let go of the memory (a search that is under way keeps its own hold on it)."""
        held = self._held
        self._held = _Held(held.keys[:0], held.vectors[:0], held.stamp, Filters(self.table, held.keys[:0]))


def _load(table: Table, space: Space) -> _Held:
    keys, vectors = read_column(table, space.column)
    return _Held(keys, vectors, stamp(table, space.column), Filters(table, keys))


def keys_at(keys: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The keys at positions ``places`` (any shape); :data:`NOTHING` where a position is negative."""
    if not len(keys):
        return np.full(places.shape, NOTHING, dtype=np.int64)
    return np.where(places < 0, NOTHING, keys[places])


def places_of(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """int64 positions of ``wanted`` (any shape) in the ascending ``keys``; -1 where they are not."""
    if not len(keys):
        return np.full(wanted.shape, -1, dtype=np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1).astype(np.int64)


def inner_products(queries: np.ndarray, vectors: np.ndarray, places: np.ndarray) -> np.ndarray:
    """float32 [q, n]: products of query i with the vectors at ``places[i]``; minus infinity where that is -1."""
    places = np.ascontiguousarray(places, dtype=np.int64)
    out = np.full(places.shape, -np.inf, dtype=np.float32)
    if out.size and len(vectors):
        pointers = [faiss.swig_ptr(array) for array in (out, queries, vectors, places)]
        faiss.fvec_inner_products_by_idx(*pointers, queries.shape[1], *places.shape)  # type: ignore[attr-defined]
    return out


def nearest(
    space: Space, queries: np.ndarray, vectors: np.ndarray, k: int, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Positions int64 [q, k] in ``vectors`` (-1 where there are fewer than k) and distances float32 [q, k], unordered.

    Exact: every vector is compared, or those at the positions ``rows``. Float queries on codes give the negative inner
    product with the +-1 forms as the distance.
    """
    total = len(vectors) if rows is None else len(rows)
    compare = _tables(space) if space.metric == "hamming" and queries.dtype == np.float32 else _plain(space)
    step = BLOCK if rows is not None else max(total, 1)
    best, far = [np.full((len(queries), k), -1, dtype=np.int64)], [np.full((len(queries), k), np.inf, np.float32)]
    for start in range(0, total, step):
        block = vectors[start : start + step] if rows is None else vectors[rows[start : start + step]]
        found, place = compare(queries, block, min(k, len(block)))
        far.append(found)
        best.append(place + start if rows is None else rows[start + place])
        if sum(part.shape[1] for part in far) > max(_WIDEST, 4 * k):
            best, far = ([part] for part in _nearest_of(best, far, k))
    return _nearest_of(best, far, k)


def _nearest_of(places: list[np.ndarray], distances: list[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Of several answers the nearest k, [q, k] each, unordered."""
    far, best = np.concatenate(distances, axis=1), np.concatenate(places, axis=1)
    kept = np.argpartition(far, k - 1, axis=1)[:, :k]
    return np.take_along_axis(best, kept, 1), np.take_along_axis(far, kept, 1)


_Compare = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def _plain(space: Space) -> _Compare:
    def cosine(queries: np.ndarray, block: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        cosines, place = faiss.knn(queries, block, k, metric=faiss.METRIC_INNER_PRODUCT)
        return 1 - cosines, place

    def hamming(queries: np.ndarray, block: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        parts = np.array_split(queries, min(faiss.omp_get_max_threads(), -(-len(queries) // _SHARED)))
        if len(parts) < 2:
            bits, place = faiss.knn_hamming(queries, block, k)
        else:
            found = list(_pool().map(lambda part: faiss.knn_hamming(part, block, k), parts))
            bits, place = (np.concatenate(side) for side in zip(*found, strict=True))
        return bits.astype(np.float32), place

    return cosine if space.metric == "cosine" else hamming


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads that each run FAISS on one: on a shared machine FAISS's own wait for the slowest after every block."""
    return ThreadPoolExecutor(initializer=lambda: faiss.omp_set_num_threads(1), thread_name_prefix="hamming")


def _tables(space: Space) -> _Compare:
    """Real queries against codes: a product quantiser whose 256 centroids a byte are that byte's own eight signs, so
    that a code's product with a query is one look-up a byte."""
    signs = unpack(np.arange(256, dtype=np.uint8)[:, None]).ravel()
    quantiser = faiss.ProductQuantizer(space.width, space.columns, 8)
    faiss.copy_array_to_vector(np.tile(signs, space.columns), quantiser.centroids)

    def compare(queries: np.ndarray, block: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        products, place = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        heap = faiss.float_minheap_array_t()
        heap.nh, heap.k = len(queries), k
        heap.val, heap.ids = faiss.swig_ptr(products), faiss.swig_ptr(place)
        quantiser.search_ip(faiss.swig_ptr(queries), len(queries), faiss.swig_ptr(block), len(block), heap, True)
        return -products, place

    return compare
