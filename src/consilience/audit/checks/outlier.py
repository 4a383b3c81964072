"""Samples far from all others of their modality."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from consilience.audit.checks.base import Context, Finding, NotApplicable
from consilience.audit.checks.registry import check

CUT = 4.0
"""Robust standard deviations beyond the usual distance to the neighbours."""
LEAST = 20


@check("outlier", suspicion="outlier", order=5, title="Samples unlike all others")
def outlier(context: Context) -> Finding:
    """By mean distance to the nearest neighbours (S. Ramaswamy et al., "Efficient Algorithms for Mining Outliers",
    SIGMOD 2000) in the model's space; a row counts by its farthest modality.

    Score: tail probability of log distance under a normal with the median and the median absolute deviation of the
    modality; flagged beyond 4 deviations.
    """
    views = context.need_views()
    z = np.full(len(context), -np.inf)
    where: dict[int, str] = {}
    for name in views.graph.vectors:
        near = views.graph.within(name)
        found = np.isfinite(near.score)
        some = found.any(1)
        if int(some.sum()) < LEAST:
            continue
        mean = np.where(found, near.score, 0).sum(1)[some] / found[some].sum(1)
        log = np.log(np.maximum(1 - mean, 1e-6))
        spread = 1.4826 * float(np.median(np.abs(log - np.median(log))))
        own = np.full(len(context), -np.inf)
        own[some] = (log - np.median(log)) / max(spread, 1e-6)
        where |= {int(row): name for row in np.flatnonzero((own > z) & (own > CUT))}
        z = np.maximum(z, own)
    if not np.isfinite(z).any():
        raise NotApplicable(f"needs {LEAST} rows of a modality")
    score = np.where(np.isfinite(z), np.minimum(1, 2 * norm.sf(z)), np.nan)
    flagged = z > CUT
    reasons = {row: f"{where[row]} is {z[row]:.1f} deviations farther from its neighbours than usual" for row in where}
    text = f"{int(flagged.sum())} of {int(np.isfinite(z).sum())} rows lie far from all others"
    return Finding(score, flagged, text, {"cut": CUT}, reasons=reasons)
