"""Rows that are in two splits: what is learnt from must not be judged on."""

from __future__ import annotations

import numpy as np

from consilience.audit.checks.base import Context, Finding, NotApplicable
from consilience.audit.checks.near_duplicate import repeats
from consilience.audit.checks.registry import check


@check("leakage", suspicion="leak", order=2, title="Rows that are also in another split")
def leakage(context: Context) -> Finding:
    """Flags the row in split train (or, without one, the later row) of every repetition across splits; its score is 0
    for repetitions to the byte, 0.25 to the eye, 0.5 in the model's space."""
    if len(set(context.splits)) < 2:
        raise NotApplicable("needs rows of two splits")
    score = np.ones(len(context))
    reasons: dict[int, str] = {}
    others: dict[int, int] = {}
    for row, (of, how) in repeats(context).items():
        if context.splits[row] == context.splits[of]:
            continue
        bad, kept = (of, row) if context.splits[of] == "train" else (row, of)
        value = 0.0 if how.endswith("byte") else 0.25 if how.endswith("eye") else 0.5
        if value < score[bad]:
            score[bad], others[bad] = value, kept
            reasons[bad] = f"{how} as {context.ids[kept]} of split {context.splits[kept]}"
    text = f"{len(reasons)} of {len(context)} rows are in another split as well"
    return Finding(score, score < 1, text, {}, reasons=reasons, others=others)
