"""``consilience bench``."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

SUITES = ("evaluation", "matching", "romo", "scale", "search", "serve", "sgraf", "views")


def run(
    suite: str,
    repeats: int | None = None,
    rows: int | None = None,
    codes: int | None = None,
    threads: int | None = None,
    seconds: float | None = None,
    clients: int | None = None,
    out: str | None = None,
) -> dict[str, Any]:
    """Measure speed against peers in one run; a ratio above 1 means that ours is faster.

    Args:
        suite: evaluation (metrics), matching (ranks of pairs), romo or sgraf (training steps), search, scale (bytes
            and seconds an item), serve (the service under load), views (batched augmentation).
        repeats: Timed repetitions of each side; medians are compared.
        rows: Of search: float vectors, default 1,000,000; of scale and serve: rows of the Table.
        codes: Of search: binary codes; default 10,000,000.
        threads: Of search: threads of every side; default all cores. Of views: threads of our side; default 1.
        seconds: Of serve: how long; default 60.
        clients: Of serve: how many at once; default 50.
        out: Also write the result to this JSON file (-o).
    """
    from pathlib import Path

    from consilience.errors import InputError, unknown
    from consilience.files import write_json

    if suite not in SUITES:
        raise unknown("benchmark", suite, SUITES)
    function = importlib.import_module(f"consilience.benchmarks.{suite}").run
    said = {"repeats": repeats, "rows": rows, "codes_rows": codes, "threads": threads, "seconds": seconds,
            "clients": clients}  # fmt: skip
    options = {name: value for name, value in said.items() if value is not None}
    for name in options:
        if name not in inspect.signature(function).parameters:
            raise InputError(f"bench {suite} takes no --{name.partition('_')[0]}; see consilience bench --help")
    result: dict[str, Any] = function(**options)
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
