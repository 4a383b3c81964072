"""A cleaned copy of an audited Table, and one line for every decision."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from consilience.audit.checks.base import Context, Finding
from consilience.data.sizes import packed
from consilience.data.table import Row, Table
from consilience.errors import InputError
from consilience.files import write_text

_BATCH = 256
_HEADER = ("id", "what", "why", "probability")


@dataclass(frozen=True)
class Decision:
    """What is done with a row."""

    id: str
    what: str
    """``drop``, ``re-pair`` or ``relabel``."""
    why: str
    probability: float
    """That the row, as it was, is right; of a new partner: that it is the right one."""


def fix(
    context: Context, findings: Mapping[str, Finding], destination: Path, *, labels: bool = False
) -> dict[str, Any]:
    """Write the cleaned Table to ``destination`` and the decisions to ``destination.csv``.

    Dropped: rows that cannot be read; copies of a whole row and rows of split train that are in another split as well,
    to the byte or to the eye; mismatched pairs, unless the second modality of another distrusted row fits clearly
    better: then the row is given that one, as it was there. ``labels``: probably wrong labels are replaced by the
    predicted ones; otherwise labels stay. Rows that were not audited are copied. Derived columns are not: they were
    computed from other rows.

    Raises InputError for a destination that is taken.
    """
    if destination.exists():
        raise InputError(f"{destination} already exists; remove it or choose another --fix")
    decisions, dropped, moved, renamed = _decide(context, findings, labels)
    table = context.table
    own = {"id", "index", "split", "label", *table.modalities, *(f"origin_{name}" for name in table.modalities)}
    scalars = [name for name in table.columns if name not in own and table.provenance(name) is None]
    offsets = table.select()
    place = {int(offset): row for row, offset in enumerate(context.rows)}
    names = list(table.modalities)
    columns = ["id", "split", "label", *names, *(f"origin_{name}" for name in names), *scalars]

    def rows() -> Iterator[Row]:
        kept = np.array([offset for offset in offsets if place.get(int(offset), -1) not in dropped], dtype=np.int64)
        for start in range(0, len(kept), _BATCH):
            part = kept[start : start + _BATCH]
            for offset, entry in zip(part, table.take(part, columns).to_pylist(), strict=True):
                row = place.get(int(offset), -1)
                if row in moved:
                    name, other = moved[row]
                    entry |= table.take(context.rows[[other]], [name, f"origin_{name}"]).to_pylist()[0]
                yield Row(
                    id=entry["id"],
                    split=entry["split"],
                    label=renamed.get(row, entry["label"]),
                    values={name: entry[name] for name in names},
                    origins={name: entry[f"origin_{name}"] for name in names if entry[f"origin_{name}"] is not None},
                    scalars={name: entry[name] for name in scalars},
                )

    sizes = table.sizes
    files: dict[str, str] = {}
    if "tokenizer" in sizes:
        sizes["tokenizer"], files = packed(sizes["tokenizer"])
    types = {name: table.schema.field(name).type for name in scalars}
    cleaned = Table.create(
        destination, rows(), table.modalities, f"{table.source} (cleaned)", scalars=types, sizes=sizes, files=files
    )
    manifest = destination.with_name(destination.name + ".csv")
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows((d.id, d.what, d.why, f"{d.probability:.4f}") for d in decisions)
    write_text(manifest, stream.getvalue())
    counts = {what: sum(d.what == what for d in decisions) for what in ("drop", "re-pair", "relabel")}
    return {"table": str(destination), "manifest": str(manifest), "rows": len(cleaned), **counts}


def _decide(
    context: Context, findings: Mapping[str, Finding], labels: bool
) -> tuple[list[Decision], set[int], dict[int, tuple[str, int]], dict[int, str]]:
    """Decisions in the order of rows; rows to drop, row to (modality, row it comes from), row to new label."""
    decisions: dict[int, list[Decision]] = {}
    dropped: set[int] = set()
    moved: dict[int, tuple[str, int]] = {}
    renamed: dict[int, str] = {}

    def drop(row: int, why: str, probability: float) -> None:
        if row not in dropped:
            dropped.add(row)
            decisions[row] = [Decision(context.ids[row], "drop", why, probability)]

    for row, name in context.bad:
        drop(row, f"{name} cannot be read: {context.bad[row, name]}", 0.0)
    if "near_duplicate" in findings:
        for row, of in context.copies.whole().items():
            alike = context.splits[row] == context.splits[of] and context.groups[row] != context.groups[of]
            if alike:
                drop(row, f"the same to the byte as {context.ids[of]}", 0.0)
    if "leakage" in findings:
        found = findings["leakage"]
        for row in np.flatnonzero(found.score <= 0.25).tolist():
            if context.splits[row] == "train":
                drop(row, found.reasons[row], float(found.score[row]))
    if "pair_mismatch" in findings and findings["pair_mismatch"].skipped is None:
        found = findings["pair_mismatch"]
        position = {int(key): row for row, key in enumerate(context.index)}
        second = context.pairs[0][1]
        better, chance = found.columns.get(f"better_{second}"), found.shown["chances"].get(f"better_{second}")
        for row in np.flatnonzero(found.flagged).tolist():
            if better is not None and chance is not None and better[row] >= 0 and row not in dropped:
                other = position[int(better[row])]
                moved[row] = (second, other)
                why = f"its {second} does not fit; that of {context.ids[other]} does"
                decisions[row] = [Decision(context.ids[row], "re-pair", why, float(chance[row]))]
            else:
                drop(row, "the pair does not fit", float(found.score[row]))
    if labels and "label_doubt" in findings and findings["label_doubt"].skipped is None:
        found = findings["label_doubt"]
        for row in np.flatnonzero(found.flagged).tolist():
            if row not in dropped:
                renamed[row] = found.shown["names"][found.shown["suggested"][row]]
                decision = Decision(context.ids[row], "relabel", found.reasons[row], float(found.score[row]))
                decisions.setdefault(row, []).append(decision)
    return [one for row in sorted(decisions) for one in decisions[row]], dropped, moved, renamed
