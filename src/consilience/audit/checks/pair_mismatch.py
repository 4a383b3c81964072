"""Pairs that do not belong together, with the probability that each is right."""

from __future__ import annotations

from typing import Any

import numpy as np

from consilience.audit.calibration import LEAST, Calibration, calibrate, on_null
from consilience.audit.checks.base import Context, Finding, NotApplicable
from consilience.audit.checks.registry import check
from consilience.audit.fit import null_pairs, pair_fit
from consilience.audit.repair import better_partners

DISTRUST = 0.5
"""Pairs that are right with less probability are flagged."""
TRUST = 0.9
"""Pairs that are right with more probability show how surely a partner can be picked out."""


@check("pair_mismatch", suspicion="mismatched pair", order=1, title="Pairs that do not belong together")
def pair_mismatch(context: Context) -> Finding:
    """The score is the probability that a pair is right, calibrated on deliberate mismatches
    (:mod:`consilience.audit.calibration`); of several pairs of modalities a row's least.

    Columns: ``pair_trust``; ``pair_rank``, expected rank of the partner among the rows judged together, mean of both
    directions; ``better_<modality>``, the ``index`` of the row whose sample fits clearly better, -1 without one.
    """
    views = context.need_views()
    if not context.pairs:
        raise NotApplicable("needs two modalities")
    n = len(context)
    trust, rank = np.full((len(context.pairs), n), np.nan), np.full((len(context.pairs), n), np.nan)
    samples = np.full(n, "", dtype=object)
    for part in views.judged:
        samples[part.positions] = part.sample
    info: dict[str, Any] = {}
    shown: dict[str, Any] = {}
    columns: dict[str, np.ndarray] = {}
    chances: dict[str, np.ndarray] = {}
    for place, (a, b) in enumerate(context.pairs):
        z = np.full(n, np.nan)
        for part in views.judged:
            everyone = np.arange(len(part.positions))
            rows, others = null_pairs(part.graph, a, b, context.seed)
            if len(rows) < LEAST:
                continue
            null = pair_fit(part.graph, a, b, rows, others)
            z[part.positions] = on_null(pair_fit(part.graph, a, b, everyone, everyone), null)
            both = (part.graph.across(a, b).rank + part.graph.across(b, a).rank) / 2
            rank[place, part.positions] = both
        fits: dict[str, Calibration] = {}
        for sample in ("train", "held out"):
            chosen = (samples == sample) & ~np.isnan(z)
            if int(chosen.sum()) >= LEAST:
                fits[sample] = calibrate(z[chosen], seed=context.seed)
                trust[place, chosen] = fits[sample].probability(z[chosen])
                info[f"{a}-{b}, {sample}"] = {
                    "pairs": int(chosen.sum()),
                    "noise_ratio": fits[sample].noise_ratio,
                    "noise_ratio_ci95": list(fits[sample].interval),
                    "separation": fits[sample].separation(),
                }
        shown[f"{a}-{b}"] = {"z": z, "samples": samples, "fits": fits}
        for sample in fits:
            doubted = np.flatnonzero((samples == sample) & (trust[place] < DISTRUST))
            trusted = np.flatnonzero(trust[place] > TRUST)
            for x, y in ((a, b), (b, a)):
                partner, chance = better_partners(views.graph, x, y, doubted, trusted, context.seed)
                column = columns.setdefault(f"better_{y}", np.full(n, -1, dtype=np.int64))
                some = partner >= 0
                column[some] = context.index[partner[some]]
                chances.setdefault(f"better_{y}", np.zeros(n))[some] = chance[some]
    if np.isnan(trust).all():
        raise NotApplicable(f"needs {LEAST} pairs that have both modalities")
    judged = ~np.isnan(trust).all(0)
    least = np.full(n, np.nan)
    least[judged] = np.nanmin(trust[:, judged], axis=0)
    mean_rank = np.full(n, np.nan)
    mean_rank[judged] = np.nanmean(rank[:, judged], axis=0)
    flagged = least < DISTRUST
    text = f"{int(flagged.sum())} of {int(judged.sum())} pairs probably do not belong together"
    shown["chances"] = chances
    columns = {"pair_trust": least, "pair_rank": mean_rank, **columns}
    return Finding(least, flagged, text, info, columns, shown=shown)
