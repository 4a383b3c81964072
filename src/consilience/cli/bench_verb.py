"""``consilience bench``."""

from __future__ import annotations

import importlib
from typing import Any

SUITES = ("evaluation", "matching", "romo", "sgraf")


def run(suite: str, repeats: int = 3, out: str | None = None) -> dict[str, Any]:
    """Measure speed against peers in one run; a ratio above 1 means that ours is faster.

    Args:
        suite: evaluation (metrics), matching (ranks of pairs), romo or sgraf (training steps).
        repeats: Timed repetitions of each side; medians are compared.
        out: Also write the result to this JSON file (-o).
    """
    from pathlib import Path

    from consilience.errors import unknown
    from consilience.files import write_json

    if suite not in SUITES:
        raise unknown("benchmark", suite, SUITES)
    result: dict[str, Any] = importlib.import_module(f"consilience.benchmarks.{suite}").run(repeats=repeats)
    if out is not None:
        write_json(Path(out), result)
    return result


def show(result: dict[str, Any]) -> None:
    for group, values in result.items():
        if not isinstance(values, dict):
            print(f"{group}: {values}")
            continue
        print(f"{group}:")
        for name, value in values.items():
            print(f"  {name}: {value}")
