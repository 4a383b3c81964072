"""The review of suspicious pairs as the service shows it: one writer, whatever arrives at once."""

from __future__ import annotations

import logging
from dataclasses import asdict
from threading import Lock
from typing import Any

from consilience.data.review import Review, Suspect
from consilience.data.table import Table
from consilience.errors import ConsilienceError

log = logging.getLogger("consilience.serve")


class Reviewing:
    """A :class:`~consilience.data.review.Review` behind a lock, with answers that can be sent."""

    def __init__(self, table: Table) -> None:
        self._review = Review.open(table)
        self._lock = Lock()

    def reopen(self, table: Table) -> None:
        """Go on with a newer version of the Table, whose audit may suspect other rows."""
        with self._lock:
            self._review = Review.open(table)

    def queue(self, limit: int, offset: int, open_only: bool) -> dict[str, Any]:
        """The queue, worst first, and the counts."""
        with self._lock:
            queue = self._review.queue(limit, offset, open_only=open_only)
            return {"suspects": [_shown(entry) for entry in queue], "counts": self._review.counts()}

    def decide(self, index: int, decision: str, partner: int | None) -> dict[str, Any]:
        """Record a decision; durable when this returns. Raises InputError like the review."""
        with self._lock:
            self._review.decide(index, decision, partner)
            return {"index": index, "decision": decision, "counts": self._review.counts()}

    def undo(self) -> dict[str, Any]:
        """Take the last decision back."""
        with self._lock:
            suspect = self._review.undo()
            return {"suspect": None if suspect is None else _shown(suspect), "counts": self._review.counts()}

    def counts(self) -> dict[str, int]:
        """Decisions by kind, suspects in all and those still open."""
        with self._lock:
            return self._review.counts()

    def settle(self) -> None:
        """Write the decisions into the Table's columns. They are in the journal already, so that a failure loses none;
        it is logged."""
        with self._lock:
            try:
                self._review.settle()
            except (ConsilienceError, OSError) as error:
                log.error("decisions stay in the journal; the columns could not be written: %s", error)


def _shown(suspect: Suspect) -> dict[str, Any]:
    return {**asdict(suspect), "trust": None if suspect.trust is None else round(suspect.trust, 4)}
