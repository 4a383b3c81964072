"""What ``consilience index`` can do, one function an action: its signature is the usage, the types and the help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal


def build(
    table: str,
    run: str | None = None,
    where: str | None = None,
    name: str = "vector",
    codes: str = "code",
    engine: Literal["auto", "exact", "ivf", "lance-ivf"] = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """Make a Table searchable with a run's encoders.

    Args:
        table: A Table.
        run: The run folder whose encoders to use; required.
        where: SQL filter of the rows to make searchable.
        name: Beginning of the vector columns' names: NAME_MODALITY; another name keeps another run's vectors beside.
        codes: Beginning of the code columns' names.
        engine: exact needs no index; ivf is approximate, in memory; lance-ivf on disk; auto: ivf above 100,000 rows.
    """
    from consilience.data.table import Table
    from consilience.errors import InputError
    from consilience.search.search import build_index
    from consilience.training.api import load

    if run is None:
        raise InputError("consilience index needs the encoders' run: --run RUN")
    return build_index(load(run), Table.open(table), where=where, name=name, codes=codes, engine=engine, quiet=quiet)


def stats(table: str, recall: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Rows, columns, encoders, engines and bytes an item; with --recall how much is found.

    Args:
        table: A Table.
        recall: Measure the recall at 10 of approximate indices and codes against exact search.
    """
    from consilience.data.table import Table
    from consilience.search.stats import stats as measured

    return measured(Table.open(table), recall=recall)


def append(
    table: str, source: str, on_bad_sample: Literal["stop", "quarantine"] = "stop", quiet: bool = False
) -> dict[str, Any]:
    """Add the rows of a source whose content the Table does not hold yet.

    Args:
        table: A Table.
        source: Anything that import reads.
        on_bad_sample: stop at the first unreadable sample, or quarantine such samples and go on.
    """
    from consilience.data import growth
    from consilience.data.table import Table

    return growth.append(Table.open(table), source, on_bad_sample=on_bad_sample, quiet=quiet)


def upsert(
    table: str, source: str, on_bad_sample: Literal["stop", "quarantine"] = "stop", quiet: bool = False
) -> dict[str, Any]:
    """Add the rows of a source; a row whose id is there replaces that row.

    Args:
        table: A Table.
        source: Anything that import reads.
        on_bad_sample: stop at the first unreadable sample, or quarantine such samples and go on.
    """
    from consilience.data import growth
    from consilience.data.table import Table

    return growth.upsert(Table.open(table), source, on_bad_sample=on_bad_sample, quiet=quiet)


def delete(table: str, where: str | None = None) -> dict[str, Any]:
    """Remove the rows that pass a filter.

    Args:
        table: A Table.
        where: SQL filter of the rows to remove; required.
    """
    from consilience.data import growth
    from consilience.data.table import Table
    from consilience.errors import InputError

    if where is None:
        raise InputError("consilience index delete needs the rows to remove: --where SQL")
    return growth.delete(Table.open(table), where)


def versions(table: str, last: int = 50) -> dict[str, Any]:
    """The newest versions of the Table, oldest first.

    Args:
        table: A Table.
        last: How many.
    """
    from consilience.data import growth
    from consilience.data.table import Table

    return {"table": table, "versions": growth.versions(Table.open(table), last)}


def optimise(table: str, keep_days: float | None = None) -> dict[str, Any]:
    """Join small files and drop the space of deleted rows.

    Args:
        table: A Table.
        keep_days: Also forget versions that are older than this.
    """
    from consilience.data import growth
    from consilience.data.table import Table

    return growth.optimise(Table.open(table), keep_days)


def hash_vectors(
    table: str,
    run: str | None = None,
    bits: int | None = None,
    by: Literal["itq", "sign", "lsh", "learned"] = "itq",
    where: str | None = None,
    name: str = "vector",
    codes: str = "code",
) -> dict[str, Any]:
    """Write binary codes of a run's vectors beside them.

    Args:
        table: A Table whose vectors the run has filled.
        run: The run folder; required.
        bits: Length of the codes: 16, 32, 64, 128; not needed for a method that learns codes itself.
        by: itq rotates so that rounding costs least, sign rounds as is, lsh projects at random, learned trains a map.
        where: SQL filter of the rows to code.
        name: Beginning of the vector columns' names.
        codes: Beginning of the code columns' names.
    """
    from consilience.data.table import Table
    from consilience.embedding.hashing import hash_columns
    from consilience.errors import InputError
    from consilience.training.api import load

    if run is None:
        raise InputError("consilience index hash needs the encoders' run: --run RUN")
    columns = hash_columns(load(run), Table.open(table), bits=bits, by=by, name=name, into=codes, where=where)
    opened = Table.open(table)
    about = opened.provenance(next(iter(columns.values()))) or {}
    return {"table": table, "run": run, "columns": columns, "bits": about.get("bits"), "by": about.get("by")}


def thumbnails(table: str, modalities: str | None = None, quiet: bool = False) -> dict[str, Any]:
    """Draw small pictures of the samples into columns thumb_MODALITY, for pages.

    Args:
        table: A Table.
        modalities: Names, comma-separated; default all that have a picture.
    """
    from consilience.data.table import Table
    from consilience.embedding.thumbnails import thumbnail_columns

    chosen = modalities.split(",") if modalities else None
    return {"table": table, "columns": thumbnail_columns(Table.open(table), modalities=chosen, quiet=quiet)}


def make_map(table: str, name: str = "vector", modalities: str | None = None) -> dict[str, Any]:
    """Lay the vectors out in a plane, as columns map_MODALITY, for pages.

    Args:
        table: A Table with vectors.
        name: Beginning of the vector columns' names.
        modalities: Names, comma-separated; default all that have vectors.
    """
    from consilience.data.table import Table
    from consilience.embedding.layout import map_columns

    chosen = modalities.split(",") if modalities else None
    return {"table": table, "columns": map_columns(Table.open(table), modalities=chosen, name=name)}


def push(
    table: str,
    to: str | None = None,
    columns: str | None = None,
    attributes: str | None = None,
    index: Literal["auto", "exact", "ivf", "hnsw"] = "auto",
    replace: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Copy vectors and codes into PostgreSQL or Milvus, and keep the two alike.

    Args:
        table: A Table with vectors.
        to: Where: postgresql://..., http(s)://... or milvus://..., a FILE.db, or env:VARIABLE; required.
        columns: Vector and code columns, comma-separated; default all that an encoder has filled.
        attributes: Columns that filters there may name, comma-separated; default id,split,label.
        index: exact needs none; ivf, hnsw; auto: exact up to 10,000 rows.
        replace: Fill anew what another encoder or Table has filled.
    """
    from consilience.data.table import Table
    from consilience.errors import InputError
    from consilience.search.push import ATTRIBUTES
    from consilience.search.push import push as copied

    if to is None:
        raise InputError("consilience index push needs a place: --to postgresql://USER@HOST/DATABASE")
    return copied(
        Table.open(table),
        to,
        columns.split(",") if columns else None,
        attributes=attributes.split(",") if attributes else ATTRIBUTES,
        index=index,
        replace=replace,
        quiet=quiet,
    )


def _show_push(result: dict[str, Any]) -> None:
    print(f"{result['table']} to {result['to']}")
    for column, facts in result["columns"].items():
        counts = ", ".join(f"{facts[name]} {name}" for name in ("written", "unchanged", "deleted", "held"))
        print(f"  {column}: {counts}; {facts['index']}")


def _show_build(result: dict[str, Any]) -> None:
    from consilience.cli.parsing import command

    print(f"{result['table']}: {result['rows']} rows")
    for column, kind in result["columns"].items():
        print(f"  {column}: {result['filled'][column]} vectors, {'exact scan' if kind == 'exact' else kind}")
    if result["codes"]:
        print(f"  codes: {', '.join(result['codes'])}")
    print("embedded now: " + (", ".join(result["embedded"]) or "nothing, the vectors were there"))
    print(f"next    {command('search', result['table'])} FILE")


def _show_stats(result: dict[str, Any]) -> None:
    print(f"{result['table']}: {result['rows']} rows, version {result['version']}, {result['bytes'] / 1e6:.1f} MB")
    if not result["columns"]:
        print(f"  no vectors; fill it: consilience index {result['table']} --run RUN")
    for column, facts in result["columns"].items():
        what = f"{facts['width']} {'numbers' if facts['metric'] == 'cosine' else 'bits'}"
        print(f"  {column}: {facts['filled']} filled, {facts['missing']} missing, {what}, {facts['bytes_per_item']} B")
        print(f"    {facts['method']} {facts['encoder']} of {facts['run']}; answered by {facts['engine']}")
        index = facts.get("index")
        if index and "damaged" in index:
            print(f"    index: {index['damaged']}")
        elif index:
            state = "" if index["fresh"] else " STALE, not used; build it again"
            print(f"    index: {index['lists']} lists, {index['probes']} read, {index['bytes_per_item']:.0f} B{state}")
        for way, value in facts.get("recall", {}).items():
            if way not in ("queries", "k"):
                print(f"    recall@{facts['recall']['k']} {way}: {value:.3f} ({facts['recall']['queries']} queries)")


def _show_growth(result: dict[str, Any]) -> None:
    counts = [f"{result[name]} {name}" for name in ("added", "replaced", "skipped", "bad", "deleted") if name in result]
    print(f"{result['table']}: {', '.join(counts)}; {result['rows']} rows")
    if result.get("added") or result.get("replaced"):
        print(f"next    consilience index {result['table']} --run RUN")


def _show_versions(result: dict[str, Any]) -> None:
    for entry in result["versions"]:
        print(f"{entry['version']:>5}  {entry['time']}  {entry['rows']} rows, {len(entry['columns'])} columns")


def _show_facts(result: dict[str, Any]) -> None:
    print(f"{result['table']}: " + ", ".join(f"{k} {v}" for k, v in result.items() if k not in ("table", "action")))


def _show_columns(result: dict[str, Any]) -> None:
    bits = f" ({result['bits']} bits, {result['by']})" if "bits" in result else ""
    print(f"{result['table']}: {', '.join(result['columns'].values())}{bits}")


SHOWN: dict[str, Callable[[dict[str, Any]], None]] = {
    "build": _show_build,
    "stats": _show_stats,
    "append": _show_growth,
    "upsert": _show_growth,
    "delete": _show_growth,
    "versions": _show_versions,
    "optimise": _show_facts,
    "hash": _show_columns,
    "thumbnails": _show_columns,
    "map": _show_columns,
    "push": _show_push,
}
"""How the result of each action is printed."""
