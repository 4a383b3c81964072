"""Which rows that are no pairs have a better partner among themselves."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.isotonic import IsotonicRegression

from consilience.audit.graph import Graph

CLEAR = 0.5
"""Least probability of a better partner, seen from either side."""
TRIALS = 4000
"""Trusted rows at most on which the choice of a partner is rehearsed."""
_BLOCK_BYTES = 64 << 20


def better_partners(
    graph: Graph, a: str, b: str, rows: Int64[np.ndarray, " m"], trusted: Int64[np.ndarray, " t"], seed: int
) -> tuple[Int64[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """For every row the row whose ``b`` belongs to its ``a``, or -1, and the probability of that.

    ``rows``: positions of distrusted pairs; both ends are taken from them. A candidate is the best fit (CSLS) of both
    sides; how sure it is depends on its lead over the second best. What a lead is worth is learnt on ``trusted`` pairs:
    each looks for its partner among the distrusted rows, once with the partner among them, once without, either being
    as likely at first; the share of right choices, rising with the lead, is the probability. A partner counts when it
    reaches :data:`CLEAR` from both sides; the lower probability is returned.
    """
    partner, probability = np.full(graph.rows, -1, dtype=np.int64), np.zeros(graph.rows)
    if len(rows) < 3 or len(trusted) < 30:
        return partner, probability
    if len(trusted) > TRIALS:
        trusted = np.sort(np.random.default_rng(seed).permutation(trusted)[:TRIALS])
    place, sure = _choice(graph, a, b, rows, trusted)
    back, sure_back = _choice(graph, b, a, rows, trusted)
    chance = np.minimum(sure, sure_back[place])
    chosen = (back[place] == np.arange(len(rows))) & (chance >= CLEAR)
    partner[rows[chosen]] = rows[place[chosen]]
    probability[rows[chosen]] = chance[chosen]
    return partner, probability


def _choice(
    graph: Graph, a: str, b: str, rows: np.ndarray, trusted: np.ndarray
) -> tuple[Int64[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Best place in ``rows`` for each of them, and how probably it is right."""
    place, best, second = _best_two(graph, a, b, rows, rows)
    _, first, next_ = _best_two(graph, a, b, trusted, rows)
    own = 2 * graph.across(a, b).own[trusted].astype(np.float64)
    own -= graph.across(a, b).hubness[trusted] + graph.across(b, a).hubness[trusted]
    found = own > first
    leads = np.concatenate([np.where(found, own - first, first - np.maximum(own, next_)), first - next_])
    right = np.concatenate([found, np.zeros(len(trusted), dtype=bool)])
    fit = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(leads, right)
    return place, np.asarray(fit.predict(best - second))


def _best_two(
    graph: Graph, a: str, b: str, asking: np.ndarray, rows: np.ndarray
) -> tuple[Int64[np.ndarray, " q"], Float[np.ndarray, " q"], Float[np.ndarray, " q"]]:
    """Of every asking row's ``a``: place in ``rows`` of the best fitting ``b`` of another group, its fit, and the
    second best fit."""
    forth, back = graph.across(a, b).hubness, graph.across(b, a).hubness
    right, groups = graph.vectors[b][rows], graph.groups.numpy()
    places, first, second = [], [], []
    for part in np.array_split(asking, -(-len(asking) * 16 * len(rows) // _BLOCK_BYTES)):
        score = 2 * (graph.vectors[a][part] @ right.T).double() - torch.from_numpy(back[rows])[None]
        score[torch.from_numpy(groups[part][:, None] == groups[rows][None])] = -4.0
        value, index = score.topk(2, 1)
        hub = forth[part]
        places.append(index[:, 0].numpy())
        first.append(value[:, 0].numpy() - hub)
        second.append(value[:, 1].numpy() - hub)
    return np.concatenate(places), np.concatenate(first), np.concatenate(second)
