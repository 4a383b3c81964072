"""Judges of runs whose methods are for something else than retrieval: one module a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

from consilience.evaluation import complexity, counting, few_labels
from consilience.evaluation.report import Report
from consilience.methods.base import Task
from consilience.training.api import Run


class Judge(Protocol):
    """What a module that judges a task defines."""

    def figures(self, run: Run, where: str) -> dict[str, Any]:
        """Everything that is measured on the rows that pass ``where``, plain values under one key."""

    def lines(self, found: Mapping[str, Any]) -> list[str]:
        """What the command line prints of that."""

    def report(self, page: Report, found: Mapping[str, Any], run: Run, where: str) -> None:
        """Tables and pictures for the run's report."""


JUDGES: dict[Task, Judge] = {
    Task.SCORING: cast(Judge, complexity),
    Task.CLASSES: cast(Judge, few_labels),
    Task.COUNTING: cast(Judge, counting),
}
"""By task; retrieval is judged by :mod:`consilience.evaluation.evaluate` itself."""
