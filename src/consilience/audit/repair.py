"""Which rows that are no pairs have a better partner among themselves."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64

from consilience.audit.calibration import Calibration, on_null
from consilience.audit.fit import null_pairs, pair_fit
from consilience.audit.graph import Graph

CLEAR = 0.5
"""Least probability of a better partner, seen from either side."""
_KNOTS = 2048
_BLOCK_BYTES = 64 << 20


def better_partners(
    graph: Graph, a: str, b: str, rows: Int64[np.ndarray, " m"], fit: Calibration, seed: int
) -> tuple[Int64[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """For every row the row whose ``b`` belongs to its ``a``, or -1, and the probability of that.

    ``rows``: positions of distrusted pairs; both ends are taken from them. A sample has one right partner among the m
    or none, either with probability 1/2 at first; fits become likelihood ratios of right to wrong pairs (the fitted
    mixture's), so P(j) = L_j / (m + sum of L). A partner counts when each is the other's best and P is at least 1/2
    from both sides; the lower of the two is returned.
    """
    partner, probability = np.full(graph.rows, -1, dtype=np.int64), np.zeros(graph.rows)
    wrong, others = null_pairs(graph, a, b, seed)
    m = len(rows)
    if m < 2 or not len(wrong):
        return partner, probability
    null = np.sort(pair_fit(graph, a, b, wrong, others))
    span = float(null[-1] - null[0])
    knots = np.linspace(null[0] - span, null[-1] + span, _KNOTS)
    of_wrong, of_all = fit.density(on_null(knots, null))
    ratio = np.maximum.accumulate(np.maximum(of_all - of_wrong, 0) / np.maximum(of_wrong, 1e-300))
    share = min(max(fit.noise_ratio, 1e-3), 1 - 1e-3)
    ratio *= share / (1 - share)  # the densities come weighted by their shares
    forth, back = graph.across(a, b), graph.across(b, a)
    left, right = graph.vectors[a][rows], graph.vectors[b][rows]
    groups = graph.groups.numpy()[rows]
    row_sum, row_best, row_place = np.zeros(m), np.zeros(m), np.full(m, -1)
    col_sum, col_best, col_place = np.zeros(m), np.zeros(m), np.full(m, -1)
    for part in torch.split(torch.arange(m), max(1, _BLOCK_BYTES // (16 * m))):
        here = part.numpy()
        score = (left[part] @ right.T).double().numpy()
        score = 2 * score - forth.hubness[rows[here], None] - back.hubness[None, rows]
        found = np.interp(score, knots, ratio)
        found[groups[here][:, None] == groups[None]] = 0
        tied = found + 1e-9 * found.max(initial=1e-300) * score  # beyond the last knot the fit decides
        row_sum[here], row_place[here] = found.sum(1), tied.argmax(1)
        row_best[here] = found[np.arange(len(here)), row_place[here]]
        best = tied.argmax(0)
        value = tied[best, np.arange(m)]
        higher = value > col_best
        col_sum += found.sum(0)
        col_best, col_place = np.where(higher, value, col_best), np.where(higher, here[best], col_place)
    mutual = col_place[row_place] == np.arange(m)
    sure = np.minimum(row_best / (m + row_sum), row_best / (m + col_sum[row_place]))
    chosen = mutual & (sure >= CLEAR)
    partner[rows[chosen]] = rows[row_place[chosen]]
    probability[rows[chosen]] = sure[chosen]
    return partner, probability
