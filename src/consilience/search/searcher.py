"""Search a Table: queries of any modality against the stored vectors or codes of any others."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from consilience.data.schema import Kind
from consilience.data.table import Table
from consilience.embedding.hashing import hasher_of
from consilience.embedding.job import column_of, fingerprint
from consilience.errors import InputError, unknown
from consilience.search.hits import Hit, Ranking, hits_of
from consilience.search.moments import Moments, signs, unit
from consilience.search.query import Query, encode, fuse
from consilience.search.stores.approximate import ApproximateStore
from consilience.search.stores.base import NOTHING, Opener, Store
from consilience.search.stores.choose import ENGINES, open_store
from consilience.search.stores.columns import space_of
from consilience.search.stores.lance import LanceStore
from consilience.search.stores.memory import MemoryStore
from consilience.training.api import Run
from consilience.training.hashing import Hasher

By = Literal["vector", "code"]


@dataclass(frozen=True)
class Options:
    """How to search, whatever is asked."""

    into: Sequence[str] | None = None
    """Modalities whose vectors are compared; all searchable ones by default. A row may be found once in each."""
    k: int = 10
    where: str | None = None
    """SQL filter of the rows."""
    by: By = "vector"
    """``code``: compare packed codes by Hamming distance."""
    rerank: int = 0
    """Of codes: put the best that many in the order of their float vectors."""
    asymmetric: bool = False
    """Of codes: compare the real numbers of the query with the stored codes, instead of rounding it to a code too."""
    standardise: bool = False
    """Give scores as distances from the mean similarity of the query to all stored vectors of the modality, in standard
    deviations. Vectors of different modalities lie in different parts of the space, so that raw scores favour one of
    them in a common list."""


class _View:
    """One version of the Table with its open stores. A search keeps to one view, whatever is reopened meanwhile."""

    def __init__(self, table: Table, engine: str | Opener) -> None:
        self.table, self.engine = table, engine
        self.lock = threading.RLock()
        self.stores: dict[str, Store] = {}
        self.hashers: dict[str, Hasher] = {}
        self.moments: dict[str, Moments] = {}

    def store(self, column: str) -> Store:
        with self.lock:
            if column not in self.stores:
                space = space_of(self.table, column)
                engine = self.engine
                made = open_store(self.table, space, engine) if isinstance(engine, str) else engine(self.table, space)
                self.stores[column] = made
            return self.stores[column]

    def hasher(self, column: str) -> Hasher:
        with self.lock:
            if column not in self.hashers:
                self.hashers[column] = hasher_of(self.table, column)
            return self.hashers[column]

    def moments_of(self, column: str) -> Moments:
        with self.lock:
            if column not in self.moments:
                self.moments[column] = Moments.of(self.table, column)
            return self.moments[column]

    def moved(self, table: Table) -> _View:
        """The view of another version; stores whose vectors have not changed go along."""
        view = _View(table, self.engine)
        with self.lock:
            for column, store in self.stores.items():
                again = store.moved(table) if isinstance(store, MemoryStore | ApproximateStore | LanceStore) else None
                if again is not None:
                    view.stores[column] = again
                    if column in self.moments:
                        view.moments[column] = self.moments[column]
        return view


class Searcher:
    """A Table opened for search with the encoders of a run. Safe for searches from several threads.

    ``name`` and ``codes`` are the beginnings of the columns' names: ``vector_image``, ``code_image``. ``engine``: one
    of :data:`~consilience.search.stores.choose.ENGINES`, or a function that opens a store of another kind.
    """

    def __init__(
        self,
        run: Run,
        table: Table | None = None,
        *,
        name: str = "vector",
        codes: str = "code",
        engine: str | Opener = "auto",
    ) -> None:
        if isinstance(engine, str) and engine not in ENGINES:
            raise unknown("engine", engine, ENGINES)
        self.run, self.name, self.codes = run, name, codes
        self.fingerprint = fingerprint(run)
        self._view = _View(table or Table.open(run.table.path), engine)

    @property
    def table(self) -> Table:
        """The Table at the version that is searched."""
        return self._view.table

    @property
    def modalities(self) -> dict[str, Kind]:
        """The modalities that have vectors of this run's encoder, in the order of the Table's columns."""
        return self._filled(self._view, self.name)

    @property
    def coded(self) -> dict[str, Kind]:
        """The modalities that have codes of this run's encoder."""
        return self._filled(self._view, self.codes)

    def encode(self, queries: Sequence[Query]) -> np.ndarray:
        """Unit vectors float32 [q, d] in the order of ``queries``, one batch a modality."""
        return encode(self.run, queries)

    def fuse(self, queries: Sequence[Query]) -> np.ndarray:
        """One unit vector float32 [d] for several queries about the same thing: ranking by it is ranking by the
        weighted mean of their cosines. Modalities may be missing or occur twice."""
        return fuse(self.encode(queries) if queries else np.zeros((0, 1)), [query.weight for query in queries])

    def check(self, options: Options) -> list[str]:
        """The modalities that a search with these options would search; raises what it would raise (save for a bad
        filter), so that a request can be refused before its queries are encoded."""
        return self._checked(self._view, options)

    def search(
        self,
        vectors: np.ndarray,
        *,
        into: Sequence[str] | None = None,
        k: int = 10,
        where: str | None = None,
        by: By = "vector",
        rerank: int = 0,
        asymmetric: bool = False,
        standardise: bool = False,
    ) -> list[list[Hit]]:
        """For each of ``vectors`` [q, d] the ``k`` most similar rows, best first; see :class:`Options`.

        Raises InputError for modalities that have no vectors (or codes) of this run's encoder, filters that do not fit
        and vectors of another width.
        """
        return self.answer(vectors, Options(into, k, where, by, rerank, asymmetric, standardise))

    def answer(self, vectors: np.ndarray, options: Options) -> list[list[Hit]]:
        """:meth:`search` with its options in one piece."""
        view = self._view
        return hits_of(view.table, self._ranked(view, vectors, options))

    def rank(self, vectors: np.ndarray, options: Options) -> Ranking:
        """What :meth:`answer` finds as arrays: nothing is read from the Table, so that large batches stay cheap."""
        return self._ranked(self._view, vectors, options)

    def similar(
        self,
        index: int,
        modality: str,
        *,
        into: Sequence[str] | None = None,
        k: int = 10,
        where: str | None = None,
        standardise: bool = False,
    ) -> list[Hit]:
        """Rows like row ``index`` (its stable key) by its stored vector of ``modality``; the row itself is left out."""
        view = self._view
        column = self._need(view, modality, self.name)
        row = view.table.take(view.table.offsets_of(np.array([index])), [column])[column][0].as_py()
        if row is None:
            raise InputError(f"row {index} of {view.table.path} has no {modality}; choose one of its other modalities")
        names = self._checked(view, Options(into, k))
        wider = Options(names, k + len(names), where, standardise=standardise)
        found = self._ranked(view, np.array([row], np.float32), wider)
        others = np.flatnonzero(found.keys[0] != index)[:k]
        picked = Ranking(found.keys[:, others], found.scores[:, others], found.source[:, others], found.modalities)
        return hits_of(view.table, picked)[0]

    def refresh(self) -> bool:
        """Reopen the newest version of the Table when it has changed; returns whether it had. Searches that are under
        way end on the version they began with."""
        latest = Table.open(self.table.path)
        if latest.version == self.table.version:
            return False
        self._view = self._view.moved(latest)
        return True

    def close(self) -> None:
        """Let go of the stores; the next search opens them again."""
        old, self._view = self._view, _View(self._view.table, self._view.engine)
        for store in old.stores.values():
            store.close()

    def store(self, column: str) -> Store:
        """The store of a column, opened at its first use."""
        return self._view.store(column)

    def _filled(self, view: _View, name: str) -> dict[str, Kind]:
        found = {}
        for modality, kind in view.table.modalities.items():
            column = column_of(modality, name)
            owner = view.table.provenance(column) if column in view.table.columns else None
            if owner is not None and owner.get("fingerprint") == self.fingerprint:
                found[modality] = kind
        return found

    def _need(self, view: _View, modality: str, name: str) -> str:
        """The column of a modality; InputError when it is missing or another encoder's."""
        table = view.table
        if modality not in table.modalities:
            raise unknown(f"modality of {table.path}", modality, table.modalities)
        column = column_of(modality, name)
        remedy = f"consilience index {table.path} --run {self.run.path}"
        if name == self.codes:
            remedy = f"consilience index hash {table.path} --run {self.run.path}"
        owner = table.provenance(column) if column in table.columns else None
        if owner is None:
            what = "codes" if name == self.codes else "vectors"
            raise InputError(f"{table.path} holds no {what} of {modality}; run: {remedy}")
        if owner.get("fingerprint") != self.fingerprint:
            raise InputError(
                f"{column} of {table.path} was filled by another encoder ({owner.get('run')}); search with "
                f"--run {owner.get('run')} or refill it: {remedy}"
            )
        return column

    def _checked(self, view: _View, options: Options) -> list[str]:
        k, by, rerank = options.k, options.by, options.rerank
        if k < 1:
            raise InputError(f"-k {k}: ask for at least 1 result")
        if by not in ("vector", "code"):
            raise unknown("way to search", by, ("vector", "code"))
        if rerank and (by != "code" or rerank < k):
            raise InputError(f"--rerank {rerank}: needs --by code, and at least as many as -k {k}")
        if options.asymmetric and by != "code":
            raise InputError("--asymmetric compares a query with codes; add --by code")
        name = self.name if by == "vector" else self.codes
        names = list(dict.fromkeys(self._filled(view, name) if options.into is None else options.into))
        for modality in names or view.table.modalities:  # without any, the first one says what is missing
            self._need(view, modality, name)
            if rerank:
                self._need(view, modality, self.name)
        return names

    def _ranked(self, view: _View, vectors: np.ndarray, options: Options) -> Ranking:
        names = self._checked(view, options)
        most = max(1, len(view.table))  # nobody reserves memory for more answers than there are rows
        narrow = replace(options, k=min(options.k, most), rerank=min(options.rerank, most))
        vectors = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
        found = [self._nearest(view, name, vectors, narrow) for name in names]
        if len(names) == 1:
            keys, scores = found[0]
            return Ranking(keys, scores, np.zeros(keys.shape, np.int64), tuple(names))
        keys, scores = np.concatenate([f[0] for f in found], 1), np.concatenate([f[1] for f in found], 1)
        source = np.broadcast_to(np.repeat(np.arange(len(names)), narrow.k), keys.shape)
        order = np.argsort(-scores, axis=1, kind="stable")[:, : options.k]
        keys, scores, source = (np.take_along_axis(values, order, 1) for values in (keys, scores, source))
        return Ranking(keys, scores, source, tuple(names))

    def _nearest(
        self, view: _View, modality: str, vectors: np.ndarray, options: Options
    ) -> tuple[np.ndarray, np.ndarray]:
        """Keys [q, k] and scores [q, k] in one modality, best first; absent ones are :data:`NOTHING` at minus
        infinity."""
        k, where, floats = options.k, options.where, column_of(modality, self.name)
        queries, column = vectors, floats
        if options.by == "vector":
            store = view.store(floats)
            keys, distances = store.search(vectors, k, where)
            scores = store.space.scores(distances)
        else:
            code = column_of(modality, self.codes)
            store, hasher, depth = view.store(code), view.hasher(code), options.rerank or k
            if options.asymmetric:
                keys, scores = _asymmetric(store, hasher.project(vectors), depth, where)
            else:
                keys, distances = store.search(hasher.code(vectors), depth, where)
                scores = store.space.scores(distances)
            if options.rerank:
                scores = _cosines(view.store(floats), vectors, keys)
                keys = np.where(np.isfinite(scores), keys, NOTHING)
                order = np.lexsort((keys, -scores), axis=1)[:, :k]
                keys, scores = np.take_along_axis(keys, order, 1), np.take_along_axis(scores, order, 1)
            else:
                queries, column = hasher.project(vectors), code
                queries = unit(queries) if options.asymmetric else signs(queries)
        if options.standardise:
            mean, spread = view.moments_of(column).of_scores(queries)
            scores = (scores - mean[:, None]) / spread[:, None]
        return keys, scores


def _cosines(store: Store, vectors: np.ndarray, keys: np.ndarray) -> np.ndarray:
    if isinstance(store, MemoryStore | ApproximateStore | LanceStore):
        return store.cosines(vectors, keys)
    raise InputError(f"{store.space.column} is kept by a store that cannot re-rank; leave out --rerank")


def _asymmetric(store: Store, projected: np.ndarray, k: int, where: str | None) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(store, MemoryStore):
        return store.asymmetric(projected, k, where)
    raise InputError(
        f"{store.space.column} is not held in memory; leave out --asymmetric, or search with --engine exact"
    )
