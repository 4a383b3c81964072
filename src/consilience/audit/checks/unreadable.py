"""Samples whose bytes cannot be decoded."""

from __future__ import annotations

import numpy as np

from consilience.audit.checks.base import Context, Finding
from consilience.audit.checks.registry import check
from consilience.data.table import QUARANTINE


@check("unreadable", suspicion="unreadable", order=0, title="Samples that cannot be read")
def unreadable(context: Context) -> Finding:
    """Score 0 where any modality's bytes do not decode, else 1; a missing modality is no fault."""
    _ = context.copies  # reads every sample
    score = np.ones(len(context))
    reasons: dict[int, str] = {}
    for (row, name), reason in context.bad.items():
        score[row] = 0
        reasons[row] = f"{name}: {reason}"
    flagged = score == 0
    listed = context.table.path / QUARANTINE
    aside = len(listed.read_text().splitlines()) if listed.exists() else 0
    text = f"{int(flagged.sum())} of {len(context)} rows hold a sample that does not decode"
    if aside:
        text += f"; {aside} more were set aside at import, listed with the reasons in {listed}"
    return Finding(score, flagged, text, {"samples": len(context.bad), "set_aside": aside}, reasons=reasons)
