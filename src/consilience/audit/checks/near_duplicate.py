"""Rows that repeat an earlier row of the same split: to the byte, to the eye, or in the model's space."""

from __future__ import annotations

import numpy as np

from consilience.audit.checks.base import Context, Finding
from consilience.audit.checks.registry import check

CUT = 6.0
"""Robust standard deviations nearer than the usual distance to the nearest neighbour."""
CLOSE = 0.98
"""Least cosine of vectors that count as the same."""
LEAST = 50


def repeats(context: Context) -> dict[int, tuple[int, str]]:
    """Every row that repeats an earlier one, to (that row, how)."""
    found = {row: (of, "every modality to the byte") for row, of in context.copies.whole().items()}
    groups = context.groups
    found = {row: value for row, value in found.items() if groups[row] != groups[value[0]]}
    for copy in context.copies.found:
        place = copy.modality if copy.modality == copy.of_modality else f"{copy.modality} (there {copy.of_modality})"
        found.setdefault(copy.row, (copy.of, f"{place} {'to the byte' if copy.exact else 'to the eye'}"))
    for row, of in _in_vectors(context).items():
        found.setdefault(row, (of, "every modality in the model's space"))
    return found


def _in_vectors(context: Context) -> dict[int, int]:
    """Rows whose nearest neighbour is the same earlier row in all modalities, and suspiciously near in each: below
    the cut on log distances, which the data sets."""
    if context.views is None:
        return {}
    graph = context.views.graph
    common: np.ndarray | None = None
    for name in graph.vectors:
        near = graph.within(name)
        index, score = near.index[:, 0], near.score[:, 0]
        some = index >= 0
        if int(some.sum()) < LEAST:
            return {}
        log = np.log(np.maximum(1 - score, 1e-7))
        centre = float(np.median(log[some]))
        spread = 1.4826 * float(np.median(np.abs(log[some] - centre)))
        close = some & (log < centre - CUT * max(spread, 1e-6)) & (score > CLOSE)
        here = np.where(close, index, -1)
        common = here if common is None else np.where(common == here, common, -1)
    if common is None:
        return {}
    return {int(row): int(common[row]) for row in np.flatnonzero((common >= 0) & (common < np.arange(len(common))))}


@check("near_duplicate", suspicion="near-duplicate", order=3, title="Rows that repeat an earlier row")
def near_duplicate(context: Context) -> Finding:
    """Score 0 where a row repeats an earlier row of its split to the byte, 0.25 to the eye, 0.5 in vectors, else 1."""
    found = {row: value for row, value in repeats(context).items() if context.splits[row] == context.splits[value[0]]}
    score = np.ones(len(context))
    duplicate_of = np.full(len(context), -1, dtype=np.int64)
    for row, (of, how) in found.items():
        score[row] = 0.0 if how.endswith("byte") else 0.25 if how.endswith("eye") else 0.5
        duplicate_of[row] = context.index[of]
    whole = sum(how == "every modality to the byte" for _, how in found.values())
    text = f"{len(found)} of {len(context)} rows repeat an earlier row of their split, {whole} of them entirely"
    return Finding(
        score,
        score < 1,
        text,
        {"whole": whole},
        {"duplicate_of": duplicate_of},
        {row: f"{how} as {context.ids[of]}" for row, (of, how) in found.items()},
        {row: of for row, (of, _) in found.items()},
    )
