"""What a person decides about suspicious pairs: a journal beside the data, and the columns that training reads.

Every decision is one line appended to ``review.jsonl`` in the Table's folder and flushed to the disk before
:meth:`Review.decide` returns: nothing that was acknowledged is lost by a kill, and a line that a kill tore is left
out. :meth:`Review.settle` writes what stands now into the columns ``review`` and ``review_partner``.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from consilience.data.table import Table
from consilience.errors import InputError, unknown

JOURNAL = "review.jsonl"
DECISIONS = ("keep", "drop", "re-pair")
COLUMN, PARTNER = "review", "review_partner"


@dataclass(frozen=True)
class Suspect:
    """A row that the audit doubts."""

    index: int
    """Stable key of the row."""
    id: str
    suspicion: str
    """What it is suspected to be, as ``audit`` names it."""
    trust: float | None
    """Probability that the pair is right; None where no model judged it."""
    better: int | None
    """``index`` of the row whose second modality fits better; None without one."""
    decision: str | None
    """One of :data:`DECISIONS`; None while nobody has decided."""


class Review:
    """The queue of an audited Table and the decisions made so far. One process writes at a time."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._suspects = _suspects(table)
        self._made: dict[int, tuple[str, int | None]] = {}
        self._steps: list[tuple[int, tuple[str, int | None] | None]] = []
        self._lines = 0
        for entry in _read(table.path / JOURNAL):
            self._apply(entry)

    @classmethod
    def open(cls, table: Table) -> Review:
        """The review of ``table``; InputError for a journal that is not one, naming its line."""
        return cls(table)

    def queue(self, limit: int = 50, offset: int = 0, *, open_only: bool = False) -> list[Suspect]:
        """Suspects, the least trusted first (those that no model judged last); ``open_only``: undecided ones."""
        found = [self._with_decision(suspect) for suspect in self._suspects]
        if open_only:
            found = [suspect for suspect in found if suspect.decision is None]
        return found[offset : offset + limit]

    def decide(self, index: int, decision: str, partner: int | None = None) -> None:
        """Record ``decision`` about the row with key ``index``; durable when this returns.

        ``partner``: for ``re-pair``, key of the row whose second modality the row shall have (default: the one that
        the audit proposes). Raises InputError for unknown rows and decisions, and re-pairing without a partner.
        """
        if decision not in DECISIONS:
            raise unknown("decision", decision, DECISIONS)
        self.table.offsets_of(np.array([index]))
        if decision == "re-pair":
            if partner is None:
                partner = next((suspect.better for suspect in self._suspects if suspect.index == index), None)
            if partner is None:
                raise InputError(f"row {index} has no better partner proposed; name one, keep the pair or drop it")
            if partner == index:
                raise InputError(f"row {index} cannot be its own new partner; keep it instead")
            self.table.offsets_of(np.array([partner]))
            if len(self.table.modalities) < 2:
                raise InputError(f"{self.table.path} has one modality; rows cannot be paired anew")
        elif partner is not None:
            raise InputError(f"{decision} takes no partner; only re-pair does")
        self._record({"index": index, "decision": decision, "partner": partner})

    def undo(self) -> Suspect | None:
        """Take the last decision back and return its row, with what stood before; None when there is none."""
        if not self._steps:
            return None
        index = self._steps[-1][0]
        self._record({"undo": True})
        for suspect in self._suspects:
            if suspect.index == index:
                return self._with_decision(suspect)
        name = self.table.take(self.table.offsets_of(np.array([index])), ["id"])["id"][0].as_py()
        return self._with_decision(Suspect(index, name, "", None, None, None))

    def counts(self) -> dict[str, int]:
        """Rows by decision, suspects in all (``suspects``) and those still ``open``."""
        made = Counter(decision for decision, _ in self._made.values())
        waiting = sum(suspect.index not in self._made for suspect in self._suspects)
        return {**{name: made[name] for name in DECISIONS}, "suspects": len(self._suspects), "open": waiting}

    def settle(self) -> None:
        """Write the decisions that stand into the Table's columns (one commit; none when they are there already)."""
        latest = Table.open(self.table.path)
        owner = latest.provenance(COLUMN) if COLUMN in latest.columns else None
        if self._lines == (owner["lines"] if owner else 0):
            return
        keys = np.array(sorted(self._made), dtype=np.int64)
        keys = keys[np.isin(keys, latest.indices())]  # rows may have been deleted since
        named = [self._made[int(key)] for key in keys]
        latest.write_columns(
            keys,
            {
                COLUMN: pa.array([decision for decision, _ in named], pa.string()),
                PARTNER: pa.array([partner for _, partner in named], pa.int64()),
            },
            {"journal": JOURNAL, "lines": self._lines},
        )
        self.table = Table.open(latest.path)

    def _with_decision(self, suspect: Suspect) -> Suspect:
        made = self._made.get(suspect.index)
        return Suspect(**{**vars(suspect), "decision": None if made is None else made[0]})

    def _record(self, entry: dict[str, Any]) -> None:
        path = self.table.path / JOURNAL
        line = (json.dumps(entry) + "\n").encode()
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.ftruncate(handle, _whole(os.pread(handle, os.fstat(handle).st_size, 0)))
            os.lseek(handle, 0, os.SEEK_END)
            os.write(handle, line)
            os.fsync(handle)
        finally:
            os.close(handle)
        self._apply(entry)

    def _apply(self, entry: dict[str, Any]) -> None:
        self._lines += 1
        if "undo" in entry:
            if self._steps:
                index, before = self._steps.pop()
                self._put(index, before)
            return
        index = int(entry["index"])
        self._steps.append((index, self._made.get(index)))
        self._put(index, (entry["decision"], entry["partner"]))

    def _put(self, index: int, made: tuple[str, int | None] | None) -> None:
        if made is None:
            self._made.pop(index, None)
        else:
            self._made[index] = made


def _suspects(table: Table) -> list[Suspect]:
    if "suspicion" not in table.columns:
        return []
    names = list(table.modalities)
    second = f"better_{names[1]}" if len(names) > 1 else ""
    wanted = ["index", "id", "suspicion"]
    wanted += [name for name in ("pair_trust", second) if name in table.columns]
    found = []
    for row in table.take(table.select("suspicion is not null and suspicion != ''"), wanted).to_pylist():
        better = row.get(second)
        found.append(
            Suspect(
                row["index"],
                row["id"],
                row["suspicion"],
                row.get("pair_trust"),
                None if better is None or better < 0 else better,
                None,
            )
        )
    return sorted(found, key=lambda s: (s.trust is None, s.trust if s.trust is not None else 0.0, s.index))


def _whole(content: bytes) -> int:
    """Bytes up to the end of the last whole line."""
    return content.rfind(b"\n") + 1


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    content = path.read_bytes()
    entries = []
    for number, line in enumerate(content[: _whole(content)].splitlines(), 1):
        try:
            entry = json.loads(line)
            if "undo" not in entry and (entry["decision"] not in DECISIONS or int(entry["index"]) < 0):
                raise ValueError(entry["decision"])
            entries.append(entry)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} line {number} is no decision; remove the line, or the file to start over"
            ) from error
    return entries
