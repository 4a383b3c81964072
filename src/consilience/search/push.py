"""Copy vectors and codes of a Table into a store beyond this machine, and keep the two alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from consilience.data.table import Table
from consilience.errors import InputError, unknown
from consilience.search.stores.base import Space
from consilience.search.stores.columns import space_of
from consilience.search.stores.filters import kind_of
from consilience.search.stores.open import Address, address_of, connect
from consilience.search.stores.remote import Index, RemoteStore, aligned, described, row_digests

ATTRIBUTES = ("id", "split", "label")
"""What filters on a store may name unless told otherwise; ``index`` always is."""
_BATCH = 8192  # rows of one transaction: what a kill can cost
INDICES: tuple[Index, ...] = ("auto", "exact", "ivf", "hnsw")


def push(
    table: Table,
    url: str,
    columns: Sequence[str] | None = None,
    *,
    attributes: Sequence[str] = ATTRIBUTES,
    index: Index = "auto",
    replace: bool = False,
    quiet: bool = True,
) -> dict[str, Any]:
    """Make the store at ``url`` hold what ``table`` holds now: rows that are missing there or differ are written, rows
    that the Table has no vector of any more are deleted, the others stay untouched.

    ``columns``: vector and code columns, default all that an encoder has filled. ``attributes``: columns that filters
    on the store may name. ``index``: ``auto`` (exact up to 10,000 rows, then a graph; for codes in Milvus an inverted
    file), ``exact``, ``ivf`` or ``hnsw``. ``replace``: fill anew what another encoder or Table has filled. A push that
    was killed is repeated; it writes the rest. Returns the address (without its password) and, by column, how many
    rows were ``written``, ``unchanged``, ``deleted`` and are ``held``, and the ``index``.

    Raises InputError for columns that hold no encoder's vectors, attributes that a store cannot hold, addresses that
    cannot be reached and stores that belong to something else.
    """
    if index not in INDICES:
        raise unknown("index", index, INDICES)
    address = address_of(url, table)
    names = list(columns) if columns is not None else _filled(table)
    if not names:
        raise InputError(f"{table.path} holds no vectors; fill it: consilience index {table.path} --run RUN")
    wanted = [name for name in dict.fromkeys(attributes) if name != "index"]
    for name in wanted:
        if name not in table.columns:
            raise unknown(f"column of {table.path}", name, table.columns)
        kind_of(name, table.schema.field(name).type)
    spaces = [space_of(table, name) for name in names]
    told = {space.column: _push(table, address, space, wanted, index, replace, quiet) for space in spaces}
    return {"table": str(table.path), "to": address.shown, "columns": told}


def _push(
    table: Table, address: Address, space: Space, attributes: list[str], index: Index, replace: bool, quiet: bool
) -> dict[str, Any]:
    empty = pa.schema([table.schema.field(name).remove_metadata() for name in attributes]).empty_table()
    kinds = described(empty)
    store = connect(address, space, table, kinds, replace=replace)
    try:
        written, keys = _write(table, store, attributes, quiet)
        deleted = _forget(store, keys)
        kept = store.build(index)
        held = store.count()
    finally:
        store.close()
    return {"written": written, "unchanged": len(keys) - written, "deleted": deleted, "held": held, "index": kept}


def _write(table: Table, store: RemoteStore, attributes: list[str], quiet: bool) -> tuple[int, np.ndarray]:
    """How many rows were written, and the keys int64 of all rows that have a vector."""
    space, written = store.space, 0
    found: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    columns = ["index", space.column, *attributes]
    batches = table.dataset.to_batches(columns=columns, filter=f"{space.column} is not null", batch_size=_BATCH)
    with tqdm(total=len(table), desc=f"push {space.column}", disable=quiet, mininterval=1.0, unit="row") as bar:
        for batch in batches:
            if not batch.num_rows:
                continue
            keys = batch.column("index").to_numpy().astype(np.int64)
            vectors = batch.column(space.column).flatten().to_numpy(zero_copy_only=False).reshape(len(keys), -1)
            told = aligned(store.record, pa.Table.from_batches([batch]).select(attributes), len(keys))
            changed = np.flatnonzero(store.digests(keys) != row_digests(space, vectors, told))
            if len(changed):
                store.add(keys[changed], vectors[changed], told.take(pa.array(changed)))
            written += len(changed)
            found.append(keys)
            bar.update(len(keys))
    return written, np.concatenate(found)


def _forget(store: RemoteStore, keys: np.ndarray) -> int:
    """Delete what the store holds beyond ``keys`` (which it all holds); equal numbers mean that there is nothing."""
    if store.count() == len(keys):
        return 0
    extra = [block[~np.isin(block, keys)] for block in list(store.keys())]
    return sum(store.delete(block) for block in extra if len(block))


def _filled(table: Table) -> list[str]:
    """The columns of vectors and codes that an encoder has filled."""
    found = []
    for field in table.schema:
        is_rows = pa.types.is_fixed_size_list(field.type) and field.type.value_type in (pa.float32(), pa.uint8())
        if is_rows and "fingerprint" in (table.provenance(field.name) or {}):
            found.append(field.name)
    return found
