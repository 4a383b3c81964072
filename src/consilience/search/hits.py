"""Answers: rankings as arrays, and as rows of the Table with what is known of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from consilience.data.table import Table
from consilience.search.stores.base import NOTHING


@dataclass(frozen=True)
class Hit:
    """One answer, best first."""

    rank: int
    score: float
    """Cosine similarity; of codes that of their +-1 forms, 1 - 2 h / bits; standardised if that was asked for."""
    id: str
    index: int
    modality: str
    split: str
    label: str | None
    origin: str


@dataclass(frozen=True)
class Ranking:
    """Answers as arrays [q, k], best first: what hits are made of, without the rows' own facts. k is at most the number
    of rows of the Table, for each of the modalities."""

    keys: np.ndarray
    """int64: the rows' index; :data:`~consilience.search.stores.base.NOTHING` where there are fewer than k."""
    scores: np.ndarray
    """float32; minus infinity where there is nothing."""
    source: np.ndarray
    """int64: position in :attr:`modalities` of the modality that was found."""
    modalities: tuple[str, ...]


def hits_of(table: Table, ranking: Ranking) -> list[list[Hit]]:
    """The ranking of each query as hits, with what ``table`` knows of the rows (one read for all of them).

    Rows that are no longer there, which a store beyond the Table may hold until the next push, are left out."""
    there = table.find(ranking.keys) >= 0
    if not there[ranking.keys != NOTHING].all():
        ranking = replace(ranking, keys=np.where(there, ranking.keys, NOTHING))
    real = ranking.keys != NOTHING
    wanted, place = np.unique(ranking.keys[real], return_inverse=True)
    origins = [f"origin_{name}" for name in ranking.modalities]
    taken = table.take(table.offsets_of(wanted), ["id", "split", "label", *origins])
    ids, splits, labels = (taken[name].to_pylist() for name in ("id", "split", "label"))
    places_from = [taken[name].to_pylist() for name in origins]
    places = np.full(ranking.keys.shape, NOTHING)
    places[real] = place
    answers = []
    for keys, scores, sources, rows in zip(
        ranking.keys.tolist(), ranking.scores.tolist(), ranking.source.tolist(), places.tolist(), strict=True
    ):
        found = zip(keys, scores, sources, rows, strict=True)
        answers.append(
            [
                Hit(rank, score, ids[row], key, ranking.modalities[s], splits[row], labels[row], places_from[s][row])
                for rank, (key, score, s, row) in enumerate((f for f in found if f[0] != NOTHING), 1)
            ]
        )
    return answers
