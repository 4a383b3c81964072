"""The list of checks. A file in this folder that registers a function is a check everywhere: in the audit, its report
and its columns."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from consilience.audit.checks.base import Context, Finding, NotApplicable
from consilience.errors import unknown

_SHARED = {"base", "registry"}


@dataclass(frozen=True)
class CheckInfo:
    """One registered check."""

    name: str
    run: Callable[[Context], Finding]
    suspicion: str
    """What a flagged row is suspected to be."""
    order: int
    """Of several suspicions of a row the one of lowest order is written to its column."""
    title: str
    asked: bool = False
    """Made only when it is named: it describes rows and suspects nothing."""


_CHECKS: dict[str, CheckInfo] = {}


def check(
    name: str, *, suspicion: str, order: int, title: str, asked: bool = False
) -> Callable[[Callable[[Context], Finding]], Callable[[Context], Finding]]:
    """Decorator: make a function of a context known as a check."""

    def keep(run: Callable[[Context], Finding]) -> Callable[[Context], Finding]:
        _CHECKS[name] = CheckInfo(name, run, suspicion, order, title, asked)
        return run

    return keep


def checks() -> dict[str, CheckInfo]:
    """All registered checks by name, most serious first (imports every file in this folder once)."""
    import consilience.audit.checks as folder

    for module in pkgutil.iter_modules(folder.__path__):
        if module.name not in _SHARED:
            importlib.import_module(f"{folder.__name__}.{module.name}")
    return {info.name: info for info in sorted(_CHECKS.values(), key=lambda info: (info.order, info.name))}


def run_checks(context: Context, names: Sequence[str] | None = None) -> dict[str, Finding]:
    """Findings by name, by default of all checks but those that must be asked for; a check that does not apply says why
    in ``skipped``.

    Raises :class:`~consilience.errors.InputError` for an unknown name.
    """
    known = checks()
    for name in names or ():
        if name not in known:
            raise unknown("check", name, known)
    found = {}
    for name, info in known.items():
        if name not in names if names else info.asked:
            continue
        try:
            found[name] = info.run(context)
        except NotApplicable as reason:
            nothing = np.full(len(context), np.nan)
            found[name] = Finding(nothing, np.zeros(len(context), bool), f"skipped: {reason}", skipped=str(reason))
    return found
