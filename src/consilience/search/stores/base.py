"""What every store is: five verbs over keyed vectors, and a description of whose vectors they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from consilience.embedding.columns import Metric
from consilience.errors import InputError

NOTHING = -1
"""The key that fills an answer's row when there are fewer than k answers; its distance is infinite."""


@dataclass(frozen=True)
class Space:
    """Whose vectors a store holds. Two spaces compare only when they are equal."""

    column: str
    """The Table's column they belong to, such as ``vector_image``."""
    metric: Metric
    """``cosine``: unit vectors float32 [n, d]; ``hamming``: packed codes uint8 [n, bits / 8]."""
    width: int
    """Dimensions of a vector, or bits of a code."""
    fingerprint: str
    """The encoder that made them, see :func:`consilience.embedding.job.fingerprint`."""

    @property
    def columns(self) -> int:
        """Numbers a row takes: dimensions, or bytes."""
        return self.width if self.metric == "cosine" else self.width // 8

    def scores(self, distances: np.ndarray) -> np.ndarray:
        """Similarities in [-1, 1]: the cosine; of codes that of their +-1 forms, 1 - 2 h / bits."""
        return 1 - distances if self.metric == "cosine" else 1 - 2 * distances / self.width


class Store(Protocol):
    """Vectors under int64 keys (the Table's ``index``). Opened for one :class:`Space`; whatever was written for another
    one is refused at opening with the remedy. Safe for concurrent searches; one writer at a time."""

    space: Space

    def add(self, keys: np.ndarray, vectors: np.ndarray, attributes: pa.Table | None = None) -> None:
        """Insert or replace the vectors [n, columns] of ``keys`` int64 [n]. ``attributes``: n rows of what filters may
        name, for stores that do not read them from the Table."""

    def delete(self, keys: np.ndarray) -> int:
        """Forget the vectors of ``keys``; returns how many were there."""

    def search(self, queries: np.ndarray, k: int, where: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` nearest of the rows that pass the SQL filter ``where``: keys int64 [q, k] and distances float32
        [q, k] (1 - cosine, or bits that differ), nearest first, then by key; what is missing is :data:`NOTHING` at
        infinity."""

    def count(self) -> int:
        """How many vectors it holds."""

    def close(self) -> None:
        """Let go of memory, files and connections."""


class Opener(Protocol):
    """How a :class:`~consilience.search.searcher.Searcher` gets its stores when it should not open its own."""

    def __call__(self, table: Any, space: Space) -> Store:
        """The store of ``space``; ``table`` is the Table that the answers' rows are read from."""


def refuse_foreign(space: Space, held: str | None, place: str, remedy: str) -> None:
    """InputError when ``place`` holds vectors of the encoder ``held`` instead of the space's, with the ``remedy``."""
    if held != space.fingerprint:
        raise InputError(f"{place} holds vectors of encoder {held}, not of {space.fingerprint}; {remedy}")


def as_rows(space: Space, vectors: np.ndarray, what: str) -> np.ndarray:
    """``vectors`` as contiguous float32 (or uint8) [n, columns]; InputError naming ``what`` when they are not of the
    space's shape and type or not finite."""
    rows = np.asarray(vectors)
    expected = f"{space.column} takes {space.metric} rows of {space.columns}"
    if rows.ndim != 2 or rows.shape[1] != space.columns:
        raise InputError(f"{what} has shape {rows.shape}; {expected} numbers: encode with the column's own run")
    if space.metric == "hamming":
        if rows.dtype != np.uint8:
            raise InputError(f"{what} is {rows.dtype}; {expected} bytes (uint8): pack the signs with heads.codes.pack")
        return np.ascontiguousarray(rows)
    if not np.issubdtype(rows.dtype, np.floating):
        raise InputError(f"{what} is {rows.dtype}; {expected} floats: codes go to a code column")
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    if not np.isfinite(rows).all():
        raise InputError(f"{what} has NaN or infinite numbers; leave such rows out")
    return rows


def as_keys(keys: np.ndarray, count: int) -> np.ndarray:
    """``keys`` as int64 [count]; InputError when they repeat, are negative or of another number."""
    keys = np.asarray(keys)
    if keys.shape != (count,) or not np.issubdtype(keys.dtype, np.integer):
        raise InputError(f"keys of shape {keys.shape} for {count} vectors; give one whole number a vector")
    if len(np.unique(keys)) != count or (count and keys.min() < 0):
        raise InputError("keys repeat or are negative; give every row's own index once")
    return keys.astype(np.int64)


def ordered(keys: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Answers [q, k] nearest first and, at equal distance, by key; :data:`NOTHING` at infinity last."""
    distances = np.where(keys == NOTHING, np.float32(np.inf), distances).astype(np.float32)
    order = np.lexsort((keys, distances), axis=1)
    return np.take_along_axis(keys, order, 1), np.take_along_axis(distances, order, 1)
