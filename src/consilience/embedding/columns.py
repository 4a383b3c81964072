"""Vector columns of a Table, read and written whole rows at a time: float vectors and packed codes alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from consilience.data.table import Table
from consilience.errors import InputError, unknown

Metric = Literal["cosine", "hamming"]
_ROWS = 65536


def width_of(table: Table, column: str) -> tuple[Metric, int]:
    """Metric and width of a vector column: floats are compared by cosine, packed bytes by Hamming distance.

    Raises InputError for a column that is not there or holds no vectors.
    """
    if column not in table.columns:
        raise unknown(f"column of {table.path}", column, table.columns)
    kind = table.schema.field(column).type
    if pa.types.is_fixed_size_list(kind) and kind.value_type == pa.float32():
        return "cosine", int(kind.list_size)
    if pa.types.is_fixed_size_list(kind) and kind.value_type == pa.uint8():
        return "hamming", 8 * int(kind.list_size)
    raise InputError(f"{column} of {table.path} is {kind}; vectors are fixed-size lists of float32, codes of uint8")


def blocks_of(table: Table, column: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Keys int64 [b] and vectors [b, columns] of the rows that have one, block by block, in stored order."""
    metric, width = width_of(table, column)
    columns = width if metric == "cosine" else width // 8
    for batch in table.dataset.to_batches(columns=["index", column], batch_size=_ROWS):
        values = batch.column(1)
        keys = batch.column(0).to_numpy()
        if values.null_count:
            keys = keys[values.is_valid().to_numpy(zero_copy_only=False)]
            values = values.drop_null()
        yield keys, values.flatten().to_numpy(zero_copy_only=False).reshape(-1, columns)


def read_column(table: Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Keys int64 [n], ascending, and vectors [n, columns] of all rows that have one (float32, or packed uint8)."""
    metric, width = width_of(table, column)
    total = len(table)
    keys = np.empty(total, dtype=np.int64)
    vectors = np.empty((total, width), np.float32) if metric == "cosine" else np.empty((total, width // 8), np.uint8)
    filled = 0
    for found, block in blocks_of(table, column):
        end = filled + len(found)
        keys[filled:end], vectors[filled:end] = found, block
        filled = end
    keys, vectors = keys[:filled], vectors[:filled]
    if (np.diff(keys) <= 0).any():
        order = np.argsort(keys, kind="stable")
        keys, vectors = keys[order], vectors[order]
    return keys, vectors


def merge_rows(
    table: Table, column: str, keys: np.ndarray, vectors: np.ndarray | None, provenance: Mapping[str, Any]
) -> None:
    """Write ``vectors`` [n, columns] into the rows ``keys`` of ``column`` (``None``: empty those rows) in one
    transaction; rows that are not named keep what they have, a column that is not there yet is made.

    Raises InputError as :meth:`~consilience.data.table.Table.write_columns` does, and for vectors of another width.
    """
    latest = Table.open(table.path)
    if column in latest.columns:
        old_keys, old = read_column(latest, column)
        kept = ~np.isin(old_keys, keys)
        if vectors is None:
            keys, vectors = old_keys[kept], old[kept]
        else:
            if vectors.shape[1] != old.shape[1]:
                raise InputError(
                    f"{column} of {table.path} holds rows of {old.shape[1]}, not of {vectors.shape[1]} numbers"
                )
            keys, vectors = np.concatenate([old_keys[kept], keys]), np.concatenate([old[kept], vectors])
    if vectors is not None:
        latest.write_columns(keys, {column: vectors}, provenance)
