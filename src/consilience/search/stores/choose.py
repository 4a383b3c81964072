"""Which store answers for a column: the fastest that the machine can hold, or the one that was asked for."""

from __future__ import annotations

import os
from typing import Literal, get_args

from consilience.data.table import Table
from consilience.errors import InputError, unknown
from consilience.search.stores.approximate import ApproximateStore, facts_of, is_fresh
from consilience.search.stores.base import Space, Store, refuse_foreign
from consilience.search.stores.lance import LanceStore, indexed
from consilience.search.stores.memory import MemoryStore

Engine = Literal["auto", "exact", "ivf", "lance", "lance-ivf"]
ENGINES: tuple[str, ...] = get_args(Engine)
SHARE = 0.5
"""Part of the machine's memory that the vectors of one column may take."""


def open_store(table: Table, space: Space, engine: str = "auto") -> Store:
    """The store of a column of the Table.

    ``exact``: compared one by one in memory; ``ivf``: the approximate index of ``consilience index build``; ``lance``
    and ``lance-ivf``: the same on disk. ``auto``: :func:`chosen`. Codes are always compared one by one. Raises
    InputError for vectors of another encoder and an index that is missing or was built from other vectors.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    owner = table.provenance(space.column) if space.column in table.columns else None
    held = None if owner is None else owner.get("fingerprint")
    refuse_foreign(
        space, held, f"{space.column} of {table.path}", f"run: consilience index build {table.path} --run RUN"
    )
    picked = chosen(table, space) if engine == "auto" else engine
    if space.metric == "hamming":
        picked = {"ivf": "exact", "lance-ivf": "lance"}.get(picked, picked)
    if picked == "exact":
        return MemoryStore(table, space)
    if picked == "ivf":
        return ApproximateStore(table, space)
    return LanceStore(table, space, lists=picked == "lance-ivf")


def chosen(table: Table, space: Space) -> str:
    """What ``auto`` stands for: in memory the index of the column where there is one of just these vectors, else exact
    comparison; on disk when the vectors would fill more than half of the machine's memory.

    Memory is first because it was faster in every measurement, see ``docs/search.md``. An index that was built from
    other vectors is passed over, never answered from.
    """
    size = len(table) * space.columns * (4 if space.metric == "cosine" else 1)
    if size > SHARE * memory_bytes():
        return "lance-ivf" if space.column in indexed(table) else "lance"
    if space.metric == "hamming":
        return "exact"
    try:
        facts = facts_of(table, space.column)
    except InputError:
        return "exact"
    fits = facts is not None and facts.fingerprint == space.fingerprint and is_fresh(table, facts)
    return "ivf" if fits else "exact"


def memory_bytes() -> int:
    """Memory of the machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
