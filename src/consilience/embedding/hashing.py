"""Hash the vectors of a Table: packed binary codes as columns beside them, and the map that makes a query's code."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from consilience.data.columns import as_matrix
from consilience.data.table import Table
from consilience.embedding.job import column_of, fingerprint
from consilience.errors import InputError
from consilience.training.api import Run
from consilience.training.hashing import Hasher, Way, fit_hasher, identity_hasher

FOLDER = "hashers"
_FIT_ROWS = 100_000  # what a rotation is fitted on at most; more changes nothing that shows


def hash_columns(
    run: Run,
    table: Table,
    *,
    bits: int | None = None,
    by: Way = "itq",
    name: str = "vector",
    into: str = "code",
    where: str | None = None,
    fit_where: str | None = None,
    seed: int = 0,
) -> dict[str, str]:
    """Write packed codes uint8 [n, bits / 8] of the vectors ``name_<modality>`` into columns ``into_<modality>``.

    The map is fitted on the rows that pass ``fit_where`` (default: those of split train, all where there are none)
    and have every modality, and kept in the Table's folder under ``hashers``. Without ``bits``, the signs of a
    method that learns codes itself (``binary``) are taken as they are. ``where``: rows to code.
    Returns modality to column.

    Raises InputError for vectors of another encoder, and what :func:`fit_hasher` refuses.
    """
    names = filled_by(run, table, name)
    columns = {modality: column_of(modality, into) for modality in names}
    for column in columns.values():
        if not column.isidentifier() or (column in table.columns and table.provenance(column) is None):
            raise InputError(f"{column!r} cannot name a new column of {table.path}; choose another --into")
    first = table.provenance(column_of(names[0], name)) or {}
    if run.method.binary and bits is None:
        width = table.schema.field(column_of(names[0], name)).type.list_size
        hasher, file = identity_hasher(width), "sign"
    else:
        if bits is None:
            raise InputError("say how long the codes shall be: --bits 64")
        hasher = fit_hasher(_training_vectors(table, names, name, fit_where), bits, by, seed)
        mark = hashlib.sha256(hasher.matrix.tobytes() + hasher.bias.tobytes()).hexdigest()[:12]
        file = f"{into}-{by}-{bits}-{mark}.safetensors"
        hasher.save(table.path / FOLDER / file)
    for modality in names:
        source, column = column_of(modality, name), columns[modality]
        latest = Table.open(table.path)
        taken = latest.take(latest.select(_and(f"{source} is not null", where)), ["index", source])
        vectors = as_matrix(source, taken[source].combine_chunks())
        provenance: dict[str, Any] = {
            **{key: first[key] for key in ("run", "fingerprint", "method")},
            "bits": hasher.bits,
            "by": hasher.by,
            "hasher": file,
            "of": source,
        }
        latest.write_columns(taken["index"].to_numpy(), {column: hasher.code(vectors)}, provenance)
    return columns


def hasher_of(table: Table, column: str) -> Hasher:
    """The map that made the codes of ``column``; InputError when the column holds none."""
    owner = table.provenance(column) if column in table.columns else None
    if owner is None or "hasher" not in owner:
        raise InputError(f"{table.path} holds no codes in {column}; make them: consilience index hash {table.path}")
    if owner["hasher"] == "sign":
        return identity_hasher(int(owner["bits"]))
    return Hasher.load(table.path / FOLDER / Path(owner["hasher"]).name)


def filled_by(run: Run, table: Table, name: str) -> list[str]:
    """The run's modalities whose vectors in ``table`` are this run's; InputError when there are none."""
    mark, found = fingerprint(run), []
    for modality in run.method.modalities:
        column = column_of(modality, name)
        owner = table.provenance(column) if column in table.columns else None
        if owner is not None and owner["fingerprint"] == mark:
            found.append(modality)
    if not found:
        have = [column for column in table.columns if column.startswith(f"{name}_")]
        if not have:
            raise InputError(f"{table.path} holds no vectors; fill it: consilience index {table.path} --run {run.path}")
        raise InputError(
            f"{', '.join(have)} of {table.path} were filled by another encoder; refill: consilience index {table.path} "
            f"--run {run.path}"
        )
    return found


def _training_vectors(table: Table, names: Sequence[str], name: str, where: str | None) -> dict[str, np.ndarray]:
    full = " and ".join(f"{column_of(modality, name)} is not null" for modality in names)
    rows = table.select(_and(full, where if where else "split = 'train'"))
    if not len(rows) and where is None:
        rows = table.select(full)
    if len(rows) < 2:
        raise InputError(f"{len(rows)} rows of {table.path} have vectors of {' and '.join(names)}; embed more of them")
    if len(rows) > _FIT_ROWS:
        rows = rows[np.linspace(0, len(rows) - 1, _FIT_ROWS).astype(np.int64)]
    found = {}
    for modality in names:
        column = column_of(modality, name)
        found[modality] = as_matrix(column, table.take(rows, [column])[column].combine_chunks())
    return found


def _and(first: str, second: str | None) -> str:
    return f"{first} and ({second})" if second else first
