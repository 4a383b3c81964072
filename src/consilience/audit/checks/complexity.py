"""Pictures by how complex they look, from the plainest to the busiest."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import rankdata

from consilience.audit.checks.base import Context, Finding, NotApplicable
from consilience.audit.checks.registry import check
from consilience.data.decode import DecodeConfig, decode
from consilience.data.schema import Kind
from consilience.errors import InputError
from consilience.views.statistics import compressed, edge_density, entropy

COLUMN = "complexity"
"""Column that ``predict`` writes, and this check."""
SIDE = 128
"""Pixels that pictures are decoded to for statistics."""
ENDS, SHARE = 12, 0.05
"""Rows shown at each end: so many, but no larger share of all."""
_ROWS = 200


@check("complexity", suspicion="extreme complexity", order=9, title="The plainest and the busiest pictures", asked=True)
def complexity(context: Context) -> Finding:
    """Ranks the rows by the column ``complexity`` where ``predict --data TABLE`` wrote one. Without it by the mean rank
    of entropy, edge density and PNG size of the first picture modality, which becomes that column, 0 to 1.

    Nothing is wrong with a row: the ends are marked (at most 12 and 5% each), as blank pictures and clutter lie there.
    The score is twice the distance of a row's rank from the nearer end.
    """
    name = next((name for name, kind in context.modalities.items() if kind.is_image), None)
    if name is None:
        raise NotApplicable("needs pictures")
    values, origin, columns = _predicted(context), "predicted", {}
    if values is None:
        values, origin = _measured(context, name), "statistics"
        columns[COLUMN] = values
    known = np.flatnonzero(~np.isnan(values))
    if len(known) < 2:
        raise NotApplicable("needs two readable pictures")
    place = np.full(len(context), np.nan)
    place[known] = (rankdata(values[known]) - 1) / (len(known) - 1)
    order = known[np.argsort(values[known], kind="stable")]
    ends = max(1, min(ENDS, int(SHARE * len(known))))
    flagged = np.zeros(len(context), dtype=bool)
    flagged[order[:ends]] = flagged[order[-ends:]] = True
    ranks = {int(row): rank for rank, row in enumerate(order, 1)}
    reasons = {
        row: f"rank {ranks[row]} of {len(known)}, complexity {values[row]:.3f} ({origin})"
        for row in np.flatnonzero(flagged).tolist()
    }
    plain, busy = (context.ids[order[end]] for end in (0, -1))
    text = f"{len(known)} pictures ranked by {origin}: plainest {plain}, busiest {busy}"
    return Finding(2 * np.minimum(place, 1 - place), flagged, text, {"by": origin}, columns, reasons)


def _predicted(context: Context) -> np.ndarray | None:
    """What a run predicted of the rows, float64 with NaN; None where no run did."""
    if COLUMN not in context.table.columns:
        return None
    facts = context.table.provenance(COLUMN) or {}
    if "run" not in facts:
        return None
    values = context.table.take(context.rows, [COLUMN])[COLUMN]
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)


def _measured(context: Context, name: str) -> np.ndarray:
    """Mean rank of the statistics, 0 to 1; NaN for pictures that are absent or cannot be read."""
    sizes = DecodeConfig(image_size=SIDE)
    found = np.full((len(context), 3), np.nan)
    for start in range(0, len(context), _ROWS):
        part = context.table.take(context.rows[start : start + _ROWS], [name, f"origin_{name}"]).to_pylist()
        for row, entry in enumerate(part, start):
            if entry[name] is None:
                continue
            try:
                picture = decode(entry[name], Kind.RGB, entry[f"origin_{name}"] or "", sizes)
            except InputError:
                continue
            pixels = torch.from_numpy(picture)[None].float() / 255
            found[row] = float(entropy(pixels)), float(edge_density(pixels)), compressed(picture, "PNG")
    known = ~np.isnan(found[:, 0])
    if known.sum() > 1:
        found[known] = (rankdata(found[known], axis=0) - 1) / (known.sum() - 1)
    return np.asarray(found.mean(1))
