"""Vector columns of a Table as stores see them: whose they are, and a stamp that tells when they change."""

from __future__ import annotations

import hashlib

import numpy as np

from consilience.data.table import Table
from consilience.embedding.columns import merge_rows, width_of
from consilience.errors import InputError
from consilience.search.stores.base import Space, as_keys, refuse_foreign


def space_of(table: Table, column: str) -> Space:
    """The space of a filled column; InputError when it carries no encoder's fingerprint."""
    metric, width = width_of(table, column)
    owner = table.provenance(column)
    if owner is None or "fingerprint" not in owner:
        raise InputError(f"{column} of {table.path} was not written by an encoder; fill it with: consilience embed")
    return Space(column, metric, width, str(owner["fingerprint"]))


def stamp(table: Table, column: str) -> str:
    """16 hex digits that change whenever the vectors of ``column`` or the rows that hold them do.

    Other columns, and new rows without a vector, leave it as it is: it is made of the data files that hold the column
    and of the rows deleted from them.
    """
    data = table.dataset
    number = next(field.id() for field in data.lance_schema.fields() if field.name() == column)
    digest = hashlib.blake2b(digest_size=8)
    for fragment in data.get_fragments():
        facts = fragment.metadata
        files = [file.path for file in facts.files if number in file.fields]
        if files:
            digest.update(repr((facts.id, sorted(files), repr(facts.deletion_file))).encode())
    return digest.hexdigest()


def write_vectors(table: Table, space: Space, keys: np.ndarray, vectors: np.ndarray | None) -> Table:
    """Write ``vectors`` [n, columns] into the rows ``keys`` of the space's column (``None``: empty those rows) and
    keep the others; returns the Table at its new version.

    Raises InputError for keys that repeat or do not exist, and a column that another encoder has filled meanwhile.
    """
    latest = Table.open(table.path)
    keys = as_keys(keys, len(keys) if vectors is None else len(vectors))
    held = latest.provenance(space.column) if space.column in latest.columns else None
    if held is None:
        raise InputError(f"{table.path} has no column {space.column} of an encoder; fill it with: consilience embed")
    refuse_foreign(space, held.get("fingerprint"), f"{space.column} of {table.path}", "open the Table again")
    merge_rows(latest, space.column, keys, vectors, held)
    return Table.open(table.path)
