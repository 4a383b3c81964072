"""Arrow columns of a Table: arrays in and out, and the one commit that adds or replaces them."""

from __future__ import annotations

from typing import Any

import lance
import numpy as np
import pyarrow as pa

from consilience.errors import InputError


def as_arrow(values: np.ndarray) -> pa.Array:
    """Numbers [n] as they are; vectors [n, d] as a fixed-size list, floats in float32."""
    values = np.asarray(values)
    if values.ndim == 1:
        return pa.array(values)
    if values.ndim != 2:
        raise InputError(f"a column holds numbers [n] or vectors [n, d], not shape {values.shape}")
    if np.issubdtype(values.dtype, np.floating):
        values = values.astype(np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])


def as_matrix(name: str, values: pa.FixedSizeListArray) -> np.ndarray:
    """A vector column as [n, d]; a null row is NaN. ``name`` is for the message when it cannot be."""
    width = values.type.list_size
    filled = ~np.asarray(values.is_null().to_numpy(zero_copy_only=False))
    flat = values.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    if filled.all():
        return np.asarray(flat)
    if not np.issubdtype(flat.dtype, np.floating):
        raise InputError(f'column {name!r} is empty in some rows; select with where="{name} is not null"')
    out = np.full((len(values), width), np.nan, dtype=flat.dtype)
    out[filled] = flat
    return out


def merge_columns(data: Any, addition: pa.Table) -> Any:
    """Left-join ``addition`` on ``index`` as one commit, replacing columns of the same name.

    Lance refuses to merge a column that exists, and dropping it first would be a second commit. The drop is
    therefore done on a detached version, which no reader ever sees, and only the final fragments are
    committed.
    """
    replaced = set(addition.column_names) & set(data.schema.names) - {"index"}
    base = data
    if replaced:
        project = lance.LanceOperation.Project(_without(data.lance_schema, replaced))
        base = lance.LanceDataset.commit(data, project, read_version=data.version, detached=True)
    merged = [fragment.merge(addition, left_on="index") for fragment in base.get_fragments()]
    operation = lance.LanceOperation.Merge([fragment for fragment, _ in merged], merged[0][1])
    return lance.LanceDataset.commit(data, operation, read_version=data.version)


def _without(schema: Any, names: set[str]) -> Any:
    """The Lance schema minus some top-level fields, with the field numbers of the others kept.

    Field numbers tie columns to data files and pyarrow schemas do not carry them, so the schema is rebuilt
    from its own pickled form (one entry per field, children after their parent).
    """

    def width(entry: Any) -> int:
        return 1 + sum(width(child) for child in entry.children())

    rebuild, (metadata, *entries) = schema.__reduce__()
    kept: list[bytes] = []
    at = 0
    for entry in schema.fields():
        if entry.name() not in names:
            kept += entries[at : at + width(entry)]
        at += width(entry)
    return rebuild(metadata, *kept)
