"""Search a Table across modalities: a query of one modality against the stored vectors of another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from consilience.data.decode import IMAGE_FORMATS, decode, format_of
from consilience.data.schema import Batch
from consilience.data.table import Table
from consilience.embedding.job import column_of, embed, fingerprint
from consilience.errors import InputError, unknown
from consilience.training.api import Run

EXACT_BELOW = 100_000
"""Rows up to which every vector is compared; above, :func:`build_index` makes an inverted file."""


@dataclass(frozen=True)
class Hit:
    """One answer, best first."""

    rank: int
    score: float
    """Cosine similarity."""
    id: str
    index: int
    modality: str
    split: str
    label: str | None
    origin: str


def build_index(
    run: Run, table: Table, *, where: str | None = None, name: str = "vector", quiet: bool = False
) -> dict[str, Any]:
    """Make the rows that pass ``where`` searchable with the run's encoder: fill vectors that are missing or foreign,
    keep those that are there, index large Tables.

    Up to :data:`EXACT_BELOW` rows search is an exact scan (faster to build, no recall lost). Raises InputError when
    the Table has none of the run's modalities.
    """
    mark = fingerprint(run)
    columns = {m: column_of(m, name) for m in run.method.modalities if m in table.modalities}
    owners = {m: table.provenance(column) if column in table.columns else None for m, column in columns.items()}
    foreign = [m for m, owner in owners.items() if owner is None or owner["fingerprint"] != mark]
    gaps = [m for m in columns if m not in foreign and len(table.select(_gap(m, columns[m], where)))]
    if foreign or not columns:
        embed(run, table, where=where, modalities=foreign, name=name, quiet=quiet)
    for modality in gaps:
        wider = f"({where}) or {columns[modality]} is not null" if where else None
        embed(run, Table.open(table.path), where=wider, modalities=[modality], name=name, quiet=quiet)
    table = Table.open(table.path)
    large = len(table) > EXACT_BELOW
    if large:
        from lancedb.index import IvfFlat

        for column in columns.values():
            table.lance.create_index(column, config=IvfFlat(distance_type="cosine"), replace=True)
    return {
        "table": str(table.path),
        "rows": len(table),
        "columns": dict.fromkeys(columns.values(), "ivf_flat" if large else "exact"),
        "filled": {column: len(table.select(f"{column} is not null")) for column in columns.values()},
        "embedded": foreign + gaps,
        "encoder": mark,
    }


def _gap(modality: str, column: str, where: str | None) -> str:
    """SQL for the rows that have the modality, but no vector of it yet."""
    return f"{column} is null and origin_{modality} is not null" + (f" and ({where})" if where else "")


def query_vector(run: Run, modality: str, query: str | Path | bytes | np.ndarray) -> np.ndarray:
    """The unit vector float32 [d] of a file, raw bytes, or a decoded array (as ``Kind`` says) of ``modality``."""
    if modality not in run.method.modalities:
        raise unknown("modality of the run", modality, run.method.modalities)
    kind = run.method.modalities[modality]
    if isinstance(query, np.ndarray):
        value = query
    else:
        if not isinstance(query, bytes) and not Path(query).is_file():
            raise InputError(f"query {query} does not exist; give a file")
        data = query if isinstance(query, bytes) else Path(query).read_bytes()
        origin = "" if isinstance(query, bytes) else str(query)
        try:
            value = decode(data, kind, origin, run.method.decode)
        except InputError as error:
            raise InputError(f"query {origin or 'bytes'}: {error}") from error
    expected = run.method.decode.shape(kind)
    if value.shape != expected:
        raise InputError(f"query has shape {value.shape}; {modality} of this run is {expected}")
    device = next(run.method.parameters()).device
    one = torch.from_numpy(np.ascontiguousarray(value))[None].to(device)
    batch = Batch(torch.zeros(1, dtype=torch.int64), {modality: one}, {modality: torch.ones(1, dtype=torch.bool)})
    with torch.no_grad():
        vector: np.ndarray = F.normalize(run.method.encode(batch.to(device), modality).float(), dim=1)[0].cpu().numpy()
    return vector


def modality_of(run: Run, query: Path) -> str:
    """The run's modality that a query file belongs to, by its format; InputError when it fits none or several."""
    if not query.is_file():
        raise InputError(f"query {query} does not exist; give a file")
    is_picture = format_of(query.read_bytes()[:512], str(query)) in IMAGE_FORMATS
    fitting = [name for name, kind in run.method.modalities.items() if kind.is_image == is_picture]
    if len(fitting) != 1:
        raise InputError(
            f"{query} fits {' and '.join(fitting) or 'no modality'} of this run; name one with --modality "
            f"({', '.join(run.method.modalities)})"
        )
    return fitting[0]


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
    the Table has no vectors of ``into``, or has them from another encoder.
    """
    table = table or Table.open(run.table.path)
    if into not in table.modalities:
        raise unknown(f"modality of {table.path}", into, table.modalities)
    if modality is None:
        if isinstance(query, bytes | np.ndarray):
            raise InputError("a query without a file name needs its modality; pass modality=...")
        modality = modality_of(run, Path(query))
    if k < 1:
        raise InputError(f"-k {k}: ask for at least 1 result")
    column = column_of(into, name)
    owner = table.provenance(column) if column in table.columns else None
    if owner is None:
        raise InputError(
            f"{table.path} holds no vectors of {into}; run: consilience index {table.path} --run {run.path}"
        )
    if owner["fingerprint"] != fingerprint(run):
        raise InputError(
            f"{column} of {table.path} was filled by another encoder ({owner['run']}); search with "
            f"--run {owner['run']} or refill it: consilience index {table.path} --run {run.path}"
        )
    vector = query_vector(run, modality, query)
    request = table.lance.search(vector, vector_column_name=column).distance_type("cosine").limit(k)
    only = f"{column} is not null" + (f" and ({where})" if where else "")
    request = request.where(only, prefilter=True).select(
        ["id", "index", "split", "label", f"origin_{into}", "_distance"]
    )
    try:
        found = request.to_list()
    except (ValueError, RuntimeError, OSError) as error:
        raise InputError(f"--where {where!r} does not fit {table.path}: {str(error).splitlines()[0]}") from error
    return [
        Hit(
            rank,
            1 - float(row["_distance"]),
            row["id"],
            row["index"],
            into,
            row["split"],
            row["label"],
            row[f"origin_{into}"],
        )
        for rank, row in enumerate(found, 1)
    ]
