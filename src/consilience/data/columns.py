"""Arrow columns of a Table: arrays in and out, and the one commit that adds or replaces them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from typing import Any

import lance
import numpy as np
import pyarrow as pa

from consilience.errors import InputError

_ASIDE = "__old_"
_NAME = b"\x12"  # tag of the message's second field, a string; its length follows
_NOTHING: Mapping[str, str] = {}


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

    Lance refuses to merge a column that exists, and dropping it first would be a second commit. Replaced columns
    are therefore set aside under another name on a detached version, which no reader ever sees, and only the final
    fragments are committed, under a schema without them. Set aside rather than dropped, because Lance numbers new
    fields above those it knows, and refuses a number that a dropped field has had.
    """
    replaced = set(addition.column_names) & set(data.schema.names) - {"index"}
    aside = {name: f"{_ASIDE}{name}" for name in replaced}
    base = data
    if replaced:
        project = lance.LanceOperation.Project(_schema(data.lance_schema, renamed=aside))
        base = lance.LanceDataset.commit(data, project, read_version=data.version, detached=True)
    merged = [fragment.merge(_part(addition, fragment), left_on="index") for fragment in base.get_fragments()]
    schema = _schema(merged[0][1], without=set(aside.values()))
    operation = lance.LanceOperation.Merge([fragment for fragment, _ in merged], schema)
    return lance.LanceDataset.commit(data, operation, read_version=data.version)


def _part(addition: pa.Table, fragment: Any) -> pa.Table:
    """The rows of ``addition`` that concern a fragment, in its order (Lance would hash all of them for each fragment,
    and refuses none at all: a row that matches nothing stands for that)."""
    own = fragment.to_table(columns=["index"])["index"].to_numpy()
    keys = addition["index"].to_numpy()
    order = np.argsort(keys, kind="stable")
    place = np.minimum(np.searchsorted(keys, own, sorter=order), max(len(keys) - 1, 0))
    found = order[place][keys[order[place]] == own] if len(keys) else np.zeros(0, np.int64)
    if len(found):
        return addition.take(pa.array(found))
    nothing = [pa.array([-1], pa.int64())]
    nothing += [pa.nulls(1, field.type) for field in addition.schema if field.name != "index"]
    return pa.table(nothing, schema=addition.schema)


def _schema(schema: Any, *, without: Set[str] = frozenset(), renamed: Mapping[str, str] = _NOTHING) -> Any:
    """The Lance schema with some top-level fields left out or renamed, and all field numbers kept.

    Field numbers tie columns to data files and pyarrow schemas do not carry them, so the schema is rebuilt
    from its own pickled form: one protobuf message per field, children after their parent, the name as the
    first string in it.
    """

    def width(entry: Any) -> int:
        return 1 + sum(width(child) for child in entry.children())

    rebuild, (metadata, *entries) = schema.__reduce__()
    kept: list[bytes] = []
    at = 0
    for entry in schema.fields():
        own = list(entries[at : at + width(entry)])
        at += width(entry)
        if entry.name() in without:
            continue
        if entry.name() in renamed:
            before, after = (
                _NAME + bytes([len(n.encode())]) + n.encode() for n in (entry.name(), renamed[entry.name()])
            )
            own[0] = own[0].replace(before, after, 1)
        kept += own
    return rebuild(metadata, *kept)


def _named(name: str) -> bytes:
    """How the message spells a field's name (names have fewer than 128 bytes)."""
    return _NAME + bytes([len(name.encode())]) + name.encode()


def in_order(names: Iterable[str]) -> list[str]:
    """Names of classes, sorted; as numbers when all are whole numbers."""
    found = list(names)
    return sorted(found, key=int) if all(re.fullmatch(r"-?\d+", name) for name in found) else sorted(found)
