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
    from consilience.cli.parsing import command

    print(f"{result['table']}: {result['rows']} rows")
    for column, kind in result["columns"].items():
        print(f"  {column}: {result['filled'][column]} vectors, {'exact scan' if kind == 'exact' else kind}")
    print("embedded now: " + (", ".join(result["embedded"]) or "nothing, the vectors were there"))
    print(f"next    {command('search', result['table'])} FILE")
