"""How well two samples fit each other, corrected for how well each fits anybody.

A cosine alone is not comparable between pairs: some samples are near everything (hubs), some near nothing. All fits
below compare a pair with the alternatives of both its members, the same way for a given pair and for one mismatched on
purpose, so that the latter are an exact null of the former.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Int64

from consilience.audit.graph import Graph

Fit = Literal["cosine", "softmax", "csls"]
"""cosine: as it is. softmax: log-probability of the partner given the sample, summed over both directions.
csls: twice the cosine less the mean of each member's highest cosines (Conneau et al., ICLR 2018)."""
NULL_PAIRS = 64
"""Mismatched pairs drawn for every row at most."""


def pair_fit(
    graph: Graph, a: str, b: str, rows: Int64[np.ndarray, " m"], others: Int64[np.ndarray, " m"], fit: Fit = "csls"
) -> Float[np.ndarray, " m"]:
    """Fit float64 [m] of modality ``a`` of ``rows`` with modality ``b`` of ``others``; ``others`` = ``rows`` are the
    given pairs. NaN where a sample is absent, or where either row is no pair itself."""
    forth, back = graph.across(a, b), graph.across(b, a)
    score = graph.scores(a, rows, b, others).astype(np.float64)
    if fit == "softmax":
        score = 2 * score / graph.temperature - forth.log_sum[rows] - back.log_sum[others]
    elif fit == "csls":
        score = 2 * score - forth.hubness[rows] - back.hubness[others]
    lacking = np.isnan(forth.own[rows]) | np.isnan(forth.own[others])
    return np.where(lacking, np.nan, score)


def null_pairs(graph: Graph, a: str, b: str, seed: int) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """Rows and partners of other groups int64 [m], at random: every row that is a pair up to :data:`NULL_PAIRS` times,
    fewer where many rows make enough (two million)."""
    usable = np.flatnonzero(~np.isnan(graph.across(a, b).own))
    times = max(1, min(NULL_PAIRS, 2_000_000 // max(1, len(usable))))
    rng = np.random.default_rng(seed)
    rows, others = np.tile(usable, times), np.concatenate([rng.permutation(usable) for _ in range(times)])
    groups = graph.groups.numpy()
    apart = groups[rows] != groups[others]
    return rows[apart], others[apart]
