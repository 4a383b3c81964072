"""``consilience search``."""

from __future__ import annotations

from typing import Any


def run(
    table: str,
    query: str,
    into: str | None = None,
    run: str | None = None,
    modality: str | None = None,
    k: int = 5,
    where: str | None = None,
) -> dict[str, Any]:
    """Find rows of one modality with a query of another.

    Args:
        table: A Table that index has made searchable.
        query: A file: picture, point cloud or mesh.
        into: Modality to search; default the first one that the query is not.
        run: Run folder with the encoders; default the run that filled the Table's vectors.
        modality: Modality of the query; default by the file's format.
        k: Number of results (-k).
        where: SQL filter of the rows to search, for example "split = 'test'".
    """
    from dataclasses import asdict
    from pathlib import Path

    from consilience.cli.parsing import command
    from consilience.data.table import Table
    from consilience.embedding.job import column_of
    from consilience.errors import InputError
    from consilience.search.search import modality_of, search
    from consilience.training.api import load

    opened = Table.open(table)
    if run is None:
        found = [opened.provenance(column_of(m)) for m in opened.modalities if column_of(m) in opened.columns]
        owners = [owner["run"] for owner in found if owner is not None]
        if not owners:
            raise InputError(f"{table} holds no vectors; fill it: {command('index', table)} --run RUN")
        run = owners[0]
        if not Path(run).is_dir():
            raise InputError(f"{run}, the run that filled {table}, is gone; say where it is with --run RUN")
    loaded = load(run)
    asked = modality or modality_of(loaded, Path(query))
    into = into or next((name for name in opened.modalities if name != asked), asked)
    hits = search(loaded, query, into=into, modality=asked, table=opened, k=k, where=where)
    return {"query": query, "modality": asked, "into": into, "hits": [asdict(hit) for hit in hits]}


def show(result: dict[str, Any]) -> None:
    print(f"{result['modality']} {result['query']} -> {result['into']}, by cosine similarity")
    if not result["hits"]:
        print("no row passes the filter, or none of those that do has a vector")
    for hit in result["hits"]:
        label = "" if hit["label"] is None else f"  class {hit['label']}"
        print(f"{hit['rank']:>3}  {hit['score']:.3f}  {hit['id']}{label}  {hit['origin']}")
