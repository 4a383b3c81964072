"""``consilience index``."""

from __future__ import annotations

from typing import Any


def run(table: str, run: str | None = None, where: str | None = None, quiet: bool = False) -> dict[str, Any]:
    """Make a Table searchable with a run's encoders.

    Args:
        table: A Table.
        run: The run folder whose encoders to use; required.
        where: SQL filter of the rows to make searchable.
    """
    from consilience.data.table import Table
    from consilience.errors import InputError
    from consilience.search.search import build_index
    from consilience.training.api import load

    if run is None:
        raise InputError("consilience index needs the encoders' run: --run RUN")
    return build_index(load(run), Table.open(table), where=where, quiet=quiet)


def show(result: dict[str, Any]) -> None:
    for column, kind in result["columns"].items():
        print(f"{result['table']}: {column}, {kind}, {result['rows']} rows")
    print("embedded now: " + (", ".join(result["embedded"]) or "nothing, the vectors were there"))
