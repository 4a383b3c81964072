"""``consilience embed``."""

from __future__ import annotations

from typing import Any, Literal


def run(
    run: str,
    table: str | None = None,
    where: str | None = None,
    modalities: str | None = None,
    name: str = "vector",
    on: Literal["here", "ray"] = "here",
    workers: int = 2,
    address: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Write a run's vectors into columns of a Table.

    Args:
        run: A run folder.
        table: A Table; default the run's own.
        where: SQL filter of the rows to embed; the others stay empty.
        modalities: Names, comma-separated; default all the run knows.
        name: Beginning of the columns' names: NAME_MODALITY.
        on: "here": this process, or all that torchrun has started; "ray": workers of a Ray cluster.
        workers: With --on ray, how many workers share the parts.
        address: With --on ray, the cluster (auto, HOST:PORT, ray://HOST:PORT); default one of this machine's own.
    """
    from consilience.data.table import Table
    from consilience.embedding.job import embed, fingerprint
    from consilience.errors import InputError
    from consilience.training.api import load

    if on == "here" and address is not None:
        raise InputError(f"--address {address} is a Ray cluster's; add --on ray")
    loaded = load(run)
    target = Table.open(table) if table else loaded.table
    chosen = modalities.split(",") if modalities else None
    if on == "ray":
        from importlib.util import find_spec

        if find_spec("ray") is None:
            raise InputError("--on ray needs Ray; install it with: pip install 'consilience[ray]'")
        from consilience.embedding.on_ray import on_ray

        by = on_ray(workers, address)
    else:
        from consilience.embedding.processes import shared

        by = shared
    columns = embed(loaded, target, where=where, modalities=chosen, name=name, by=by, quiet=quiet)
    return {"run": run, "table": str(target.path), "columns": columns, "encoder": fingerprint(loaded)}


def show(result: dict[str, Any]) -> None:
    from consilience.cli.parsing import command

    print(f"{result['table']}: {', '.join(result['columns'].values())} (encoder {result['encoder']})")
    print(f"next    {command('index', result['table'], '--run', result['run'])}")
