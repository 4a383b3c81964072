"""Mean and spread of a query's similarity to all stored vectors of a modality, from two moments of the column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from consilience.data.table import Table
from consilience.embedding.columns import blocks_of, width_of
from consilience.errors import InputError
from consilience.heads.codes import unpack


@dataclass(frozen=True)
class Moments:
    """Of the stored vectors v: their mean [d] and covariance [d, d], float64.

    The scores q.v of a query with all of them have mean q.mean and variance q'.covariance.q, so that a query costs
    d^2 operations, not n d.
    """

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, table: Table, column: str) -> Self:
        """The moments of a float column, or of the +-1 forms of a code column, scaled to unit length."""
        metric, width = width_of(table, column)
        count, total, square = 0, np.zeros(width), np.zeros((width, width))
        for _, block in blocks_of(table, column):
            rows = block if metric == "cosine" else unpack(block) / np.float32(width**0.5)
            count, total, square = count + len(rows), total + rows.sum(0, dtype=np.float64), square + rows.T @ rows
        if not count:
            raise InputError(f"{column} of {table.path} holds no vectors; leave out --standardise")
        mean = total / count
        return cls(mean, square / count - np.outer(mean, mean))

    def of_scores(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation, float32 [q] each, of the scores of ``queries`` [q, d] (at least 1e-6)."""
        variance = np.einsum("qd,de,qe->q", queries, self.covariance, queries, optimize=True)
        spread = np.sqrt(np.maximum(variance, 1e-12))
        return (queries @ self.mean).astype(np.float32), spread.astype(np.float32)


def signs(projected: np.ndarray) -> np.ndarray:
    """float32 [q, K]: the +-1 form of the code of ``projected`` [q, K], scaled to unit length."""
    return np.where(projected >= 0, 1, -1).astype(np.float32) / np.float32(projected.shape[1] ** 0.5)


def unit(projected: np.ndarray) -> np.ndarray:
    """float32 [q, K]: ``projected`` scaled to unit length; zeros stay zeros."""
    length = np.linalg.norm(projected, axis=1, keepdims=True)
    scaled: np.ndarray = (projected / np.maximum(length, 1e-12)).astype(np.float32)
    return scaled
