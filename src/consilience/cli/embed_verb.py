"""``consilience embed``."""

from __future__ import annotations

from typing import Any


def run(
    run: str,
    table: str | None = None,
    where: str | None = None,
    modalities: str | None = None,
    name: str = "vector",
    quiet: bool = False,
) -> dict[str, Any]:
    """Write a run's vectors into columns of a Table.

    Args:
        run: A run folder.
        table: A Table; default the run's own.
        where: SQL filter of the rows to embed; the others stay empty.
        modalities: Names, comma-separated; default all the run knows.
        name: Beginning of the columns' names: NAME_MODALITY.
    """
    from consilience.data.table import Table
    from consilience.embedding.job import embed, fingerprint
    from consilience.training.api import load

    loaded = load(run)
    target = Table.open(table) if table else loaded.table
    chosen = modalities.split(",") if modalities else None
    columns = embed(loaded, target, where=where, modalities=chosen, name=name, quiet=quiet)
    return {"run": run, "table": str(target.path), "columns": columns, "encoder": fingerprint(loaded)}


def show(result: dict[str, Any]) -> None:
    from consilience.cli.parsing import command

    print(f"{result['table']}: {', '.join(result['columns'].values())} (encoder {result['encoder']})")
    print(f"next    {command('index', result['table'], '--run', result['run'])}")
