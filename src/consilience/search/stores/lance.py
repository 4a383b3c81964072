"""A column of the Table searched where it lies, on disk: memory for one block, for Tables larger than memory."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import pyarrow as pa

from consilience.data.table import Table
from consilience.errors import InputError
from consilience.search.stores.base import NOTHING, Space, as_rows, ordered
from consilience.search.stores.columns import stamp, write_vectors

_PROBES = 32


class LanceStore:
    """Exact search by reading the column, or with ``lists`` the inverted file that Lance keeps beside it."""

    def __init__(self, table: Table, space: Space, *, lists: bool = False, probes: int = _PROBES) -> None:
        self.space, self.table, self.probes = space, table, probes
        self._stamp = stamp(table, space.column)
        self.lists = lists
        if lists and space.column not in indexed(table):
            raise InputError(
                f"{table.path} has no lists of {space.column}; make them: "
                f"consilience index build {table.path} --run RUN --engine lance-ivf"
            )

    def add(self, keys: np.ndarray, vectors: np.ndarray, attributes: pa.Table | None = None) -> None:
        """See :class:`~consilience.search.stores.base.Store`; attributes are those of the Table. Lists are dropped with
        the old column: build them again."""
        self.table = write_vectors(self.table, self.space, keys, as_rows(self.space, vectors, "vectors"))
        self.lists = self.lists and self.space.column in indexed(self.table)
        self._stamp = stamp(self.table, self.space.column)

    def delete(self, keys: np.ndarray) -> int:
        """Empty the column in the rows ``keys``; the rows stay. Returns how many had a vector."""
        before = self.count()
        self.table = write_vectors(self.table, self.space, keys, None)
        self.lists = self.lists and self.space.column in indexed(self.table)
        self._stamp = stamp(self.table, self.space.column)
        return before - self.count()

    def search(self, queries: np.ndarray, k: int, where: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`~consilience.search.stores.base.Store`. Every query reads the column anew (or its lists)."""
        table, column = self.table, self.space.column
        queries = as_rows(self.space, queries, "queries")
        keys = np.full((len(queries), k), NOTHING, dtype=np.int64)
        distances = np.full((len(queries), k), np.inf, dtype=np.float32)
        only = f"{column} is not null" + (f" and ({where})" if where else "")
        for row, query in enumerate(queries):
            asked: dict[str, Any] = {"column": column, "q": query, "k": k, "metric": self.space.metric}
            asked |= {"use_index": True, "nprobes": self.probes} if self.lists else {"use_index": False}
            try:
                found = table.dataset.to_table(["index", "_distance"], filter=only, nearest=asked, prefilter=True)
            except (ValueError, OSError) as error:
                raise InputError(f"filter {where!r} does not fit {table.path}: {str(error).splitlines()[0]}") from error
            keys[row, : len(found)] = found["index"].to_numpy()
            distances[row, : len(found)] = found["_distance"].to_numpy()
        return ordered(keys, distances)

    def cosines(self, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """See :meth:`consilience.search.stores.memory.MemoryStore.cosines`; reads the rows that are named only."""
        queries = as_rows(self.space, queries, "queries")
        wanted, place = np.unique(keys, return_inverse=True)
        real = wanted != NOTHING
        taken = self.table.take(self.table.offsets_of(wanted[real]), [self.space.column]).column(0).combine_chunks()
        there = real.copy()
        there[real] = taken.is_valid().to_numpy(zero_copy_only=False)
        vectors = np.zeros((len(wanted), self.space.width), np.float32)
        vectors[there] = taken.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, self.space.width)
        place = place.reshape(keys.shape)
        products = np.stack([vectors[p] @ query for query, p in zip(queries, place, strict=True)])
        return np.where(there[place], products, -np.inf).astype(np.float32)

    def moved(self, table: Table) -> Self | None:
        """The same column under another version of the Table, None when that version has other vectors."""
        if self.space.column not in table.columns or stamp(table, self.space.column) != self._stamp:
            return None
        return type(self)(table, self.space, lists=self.lists, probes=self.probes)

    def count(self) -> int:
        """How many rows have a vector."""
        return int(self.table.dataset.count_rows(filter=f"{self.space.column} is not null"))

    def close(self) -> None:
        """Nothing is held open."""


def indexed(table: Table) -> list[str]:
    """The columns that Lance keeps lists for."""
    return [name for index in table.dataset.describe_indices() for name in index.field_names]


def build_lists(table: Table, column: str) -> None:
    """Have Lance sort the vectors of a float column into lists (IVF_FLAT), replacing older ones."""
    from lancedb.index import IvfFlat

    table.lance.create_index(column, config=IvfFlat(distance_type="cosine"), replace=True)
