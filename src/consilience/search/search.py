"""Search a Table across modalities: a query of one modality against the stored vectors of another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from consilience.data.table import Table
from consilience.embedding.columns import merge_rows
from consilience.embedding.hashing import hasher_of
from consilience.embedding.job import column_of, embed, fingerprint, without
from consilience.errors import InputError, unknown
from consilience.search.hits import Hit
from consilience.search.query import Query, modality_of, query_vector
from consilience.search.searcher import Options, Searcher
from consilience.search.stores.approximate import build_approximate, facts_of, is_fresh
from consilience.search.stores.lance import build_lists
from consilience.training.api import Run

__all__ = [
    "EXACT_BELOW",
    "Hit",
    "Options",
    "Query",
    "Searcher",
    "build_index",
    "fill_codes",
    "modality_of",
    "query_vector",
    "search",
]

EXACT_BELOW = 100_000
"""Rows up to which every vector is compared; above, :func:`build_index` makes an inverted file."""


def build_index(
    run: Run,
    table: Table,
    *,
    where: str | None = None,
    name: str = "vector",
    codes: str = "code",
    engine: str = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """Make the rows that pass ``where`` searchable with the run's encoder: fill vectors that are missing or foreign,
    keep those that are there, bring codes up to date with them, index large Tables.

    ``engine``: ``exact`` (nothing to build), ``ivf`` (see :mod:`consilience.search.stores.approximate`), ``lance-ivf``
    (lists on disk), or ``auto``: exact up to :data:`EXACT_BELOW` rows, ivf above. Raises InputError when the Table has
    none of the run's modalities.
    """
    if engine not in ("auto", "exact", "ivf", "lance-ivf"):
        raise unknown("engine to build", engine, ("auto", "exact", "ivf", "lance-ivf"))
    mark = fingerprint(run)
    columns = {m: column_of(m, name) for m in run.method.modalities if m in table.modalities}
    owners = {m: table.provenance(column) if column in table.columns else None for m, column in columns.items()}
    foreign = [m for m, owner in owners.items() if owner is None or owner["fingerprint"] != mark]
    gaps = [m for m in columns if m not in foreign and len(table.select(_gap(m, columns[m], where)))]
    if foreign or not columns:
        embed(run, table, where=where, modalities=foreign, name=name, codes=codes, quiet=quiet)
    for modality in gaps:
        opened = Table.open(table.path)
        embed(run, opened, where=where, modalities=[modality], name=name, codes=codes, missing=True, quiet=quiet)
    coded = fill_codes(Table.open(table.path), columns, mark, codes)
    table = Table.open(table.path)
    if engine == "auto":
        engine = "ivf" if len(table) > EXACT_BELOW else "exact"
    built = {column: _build(table, column, list(columns.values()), engine) for column in columns.values()}
    return {
        "table": str(table.path),
        "rows": len(table),
        "columns": built,
        "filled": {column: len(table.select(f"{column} is not null")) for column in columns.values()},
        "codes": coded,
        "embedded": foreign + gaps,
        "encoder": mark,
    }


def _build(table: Table, column: str, columns: list[str], engine: str) -> str:
    """Build what ``engine`` needs for a column, unless it is there; returns the engine that will answer."""
    if engine == "lance-ivf":
        build_lists(table, column)
    elif engine == "ivf":
        facts = facts_of(table, column)
        if facts is None or not is_fresh(table, facts):
            others = [other for other in columns if other != column]
            if build_approximate(table, column, tune_with=others) is None:
                return "exact"
    return engine


def _gap(modality: str, column: str, where: str | None) -> str:
    """SQL for the rows that have the modality, but no vector of it yet."""
    return without(modality, column) + (f" and ({where})" if where else "")


def fill_codes(table: Table, columns: Mapping[str, str], mark: str, codes: str) -> list[str]:
    """Code the vectors (``columns``: modality to column) that came after their column was hashed, the way it was.

    Returns the code columns of the encoder ``mark``.
    """
    found = []
    for modality, column in columns.items():
        code = column_of(modality, codes)
        owner = table.provenance(code) if code in table.columns else None
        if owner is None or owner.get("fingerprint") != mark or owner.get("of") != column:
            continue
        found.append(code)
        rows = table.select(f"{code} is null and {column} is not null")
        if len(rows):
            taken = table.take(rows, ["index", column])
            vectors = taken[column].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)
            merge_rows(table, code, taken["index"].to_numpy(), hasher_of(table, code).code(vectors), owner)
    return found


def search(
    run: Run,
    query: str | Path | bytes | np.ndarray,
    *,
    into: str,
    modality: str | None = None,
    table: Table | None = None,
    k: int = 5,
    where: str | None = None,
    name: str = "vector",
) -> list[Hit]:
    """The ``k`` rows whose ``into`` vectors are most similar (cosine) to the query.

    ``modality`` is found from the file's format when it is not given. ``where`` filters by SQL. Raises InputError when
    the Table has no vectors of ``into``, or has them from another encoder. To ask more than once, keep a
    :class:`~consilience.search.searcher.Searcher`.
    """
    table = table or Table.open(run.table.path)
    if into not in table.modalities:
        raise unknown(f"modality of {table.path}", into, table.modalities)
    if modality is None:
        if isinstance(query, bytes | np.ndarray):
            raise InputError("a query without a file name needs its modality; pass modality=...")
        modality = modality_of(run, Path(query))
    searcher = Searcher(run, table, name=name)
    return searcher.search(query_vector(run, modality, query)[None], into=[into], k=k, where=where)[0]
