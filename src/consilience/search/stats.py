"""What a Table can be searched by: columns, encoders, engines, bytes an item, and measured recall."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from consilience.data.table import Table
from consilience.embedding.hashing import hasher_of
from consilience.errors import InputError
from consilience.search.stores.approximate import ApproximateStore, facts_of, folder_of, is_fresh
from consilience.search.stores.base import Space, Store
from consilience.search.stores.choose import chosen, open_store
from consilience.search.stores.columns import space_of
from consilience.search.stores.lance import LanceStore, indexed
from consilience.search.stores.memory import MemoryStore

QUERIES, DEPTH, RERANK = 200, 10, 100
_EQUAL = 1e-6  # cosines that differ by less are ties


def stats(table: Table, *, recall: bool = False, queries: int = QUERIES) -> dict[str, Any]:
    """Rows, versions and, for each column of vectors or codes, what it holds and how it is searched.

    ``recall``: also measure it at 10 against exact comparison of floats: of the approximate index, and of codes, alone
    and with the best 100 put in order by their floats. The queries are that many stored vectors, evenly chosen; that
    each finds itself does not count.
    """
    spaces = {name: space_of(table, name) for name in vector_columns(table)}
    found = {name: _described(table, space) for name, space in spaces.items()}
    if recall:
        for name, space in spaces.items():
            found[name]["recall"] = measure_recall(table, space, queries)
    return {
        "table": str(table.path),
        "version": table.version,
        "rows": len(table),
        "bytes": sum(file.stat().st_size for file in Path(table.path).rglob("*") if file.is_file()),
        "modalities": {name: kind.value for name, kind in table.modalities.items()},
        "columns": found,
    }


def vector_columns(table: Table) -> list[str]:
    """The columns that an encoder has filled with vectors or codes."""
    found = []
    for name in table.columns:
        owner = table.provenance(name)
        if owner is not None and "fingerprint" in owner and "method" in owner:
            found.append(name)
    return found


def measure_recall(table: Table, space: Space, queries: int = QUERIES) -> dict[str, Any]:
    """Recall at 10 against exact comparison of float vectors, by what it is that searches; see :func:`stats`.

    Empty for a float column without an index, and for codes whose float vectors are gone.
    """
    codes = space.metric == "hamming"
    source = str((table.provenance(space.column) or {}).get("of", "")) if codes else space.column
    if source not in table.columns or (table.provenance(source) or {}).get("fingerprint") != space.fingerprint:
        return {}
    ways = [] if codes else _indices(table, space)
    if not codes and not ways:
        return {}
    exact = open_store(table, space_of(table, source), "exact")
    if not isinstance(exact, MemoryStore) or not exact.count():
        return {}
    places = np.unique(np.linspace(0, exact.count() - 1, min(queries, exact.count())).astype(np.int64))
    own, vectors = exact.keys[places], exact.vectors[places]
    depth = min(DEPTH, exact.count() - 1)
    if depth < 1:
        return {}
    truth = _others(exact.search(vectors, depth + 1)[0], own)
    worst = exact.cosines(vectors, truth).min(axis=1)

    def share(keys: np.ndarray) -> float:
        return float((exact.cosines(vectors, keys) >= worst[:, None] - _EQUAL).sum(1).mean() / depth)

    told: dict[str, Any] = {"queries": len(places), "k": depth}
    for name, store in ways:
        told[name] = share(_others(store.search(vectors, depth + 1)[0], own))
    if codes:
        store = open_store(table, space, "exact")
        nearest = store.search(hasher_of(table, space.column).code(vectors), min(RERANK, store.count() - 1) + 1)[0]
        nearest = _others(nearest, own)
        told["code"] = share(nearest[:, :depth])
        order = np.argsort(-exact.cosines(vectors, nearest), axis=1, kind="stable")[:, :depth]
        told[f"code, {nearest.shape[1]} reranked"] = share(np.take_along_axis(nearest, order, 1))
    return told


def _indices(table: Table, space: Space) -> list[tuple[str, Store]]:
    facts, found = facts_of(table, space.column), list[tuple[str, Store]]()
    if facts is not None and facts.fingerprint == space.fingerprint and is_fresh(table, facts):
        found.append(("ivf", ApproximateStore(table, space)))
    if space.column in indexed(table):
        found.append(("lance-ivf", LanceStore(table, space, lists=True)))
    return found


def _others(keys: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Answers [q, k + 1] without the query's own key, [q, k]."""
    order = np.argsort(keys == own[:, None], axis=1, kind="stable")[:, : keys.shape[1] - 1]
    return np.take_along_axis(keys, order, 1)


def _described(table: Table, space: Space) -> dict[str, Any]:
    column = space.column
    owner = table.provenance(column) or {}
    modality = next((m for m in table.modalities if column.endswith(f"_{m}")), None)
    filled = int(table.dataset.count_rows(filter=f"{column} is not null"))
    gap = f"{column} is null and origin_{modality} is not null"
    told: dict[str, Any] = {
        "modality": modality,
        "metric": space.metric,
        "width": space.width,
        "filled": filled,
        "missing": int(table.dataset.count_rows(filter=gap)) if modality else 0,
        "run": owner.get("run"),
        "method": owner.get("method"),
        "encoder": space.fingerprint,
        "bytes_per_item": space.columns * (4 if space.metric == "cosine" else 1),
        "engine": chosen(table, space),
    }
    if space.metric == "hamming":
        return told | {"hashed_by": owner.get("by"), "of": owner.get("of")}
    try:
        facts = facts_of(table, column)
    except InputError as error:
        return told | {"index": {"damaged": str(error)}}
    if facts is not None:
        size = sum(file.stat().st_size for file in folder_of(table, column).iterdir())
        told["index"] = {
            "fresh": facts.fingerprint == space.fingerprint and is_fresh(table, facts),
            "bytes_per_item": size / max(1, facts.rows),
            "lists": facts.lists,
            "probes": facts.probes,
            "candidates": facts.candidates,
            "tuned_recall": facts.recall,
            "build_seconds": facts.seconds,
        }
    return told
