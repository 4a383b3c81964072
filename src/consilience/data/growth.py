"""Let a Table grow and shrink: append, upsert, delete, versions, optimise. Every batch is one commit: after a kill the
Table opens with all that was acknowledged and nothing torn, and the same call, repeated, goes on where it stopped.

A row's *content id* is a hash of the bytes of its modalities. Appending is idempotent by it: a row that shows what some
row shows already is skipped. New rows have no derived values yet (vectors, beliefs: null), replaced rows lose theirs;
``embed`` and ``index`` fill the gaps. Keys (``index``) are never used twice, not even after the last row was deleted.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from consilience.data.datasets import is_dataset, read_dataset
from consilience.data.importers import open_source
from consilience.data.reading import Bad, OnBadSample, Reading, check_choice, fault, set_aside, text_or_none
from consilience.data.schema import Kind
from consilience.data.sizes import Sizes
from consilience.data.table import METADATA, QUARANTINE, Row, Table
from consilience.errors import InputError, unknown

CONTENT = "content_id"
INDEXED_ABOVE = 100_000
"""Rows above which content ids and ids get a scalar index, so that a look-up need not read the column."""
BATCH_ROWS, BATCH_BYTES = 1024, 32 << 20
Acknowledge = Callable[[int], None]
"""Called after every commit with the number of source rows that are dealt with for good."""


def content_id(values: Mapping[str, bytes | None]) -> str:
    """32 hex digits of the bytes of a row's modalities (names included, absent ones left out)."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(values):
        data = values[name]
        if data is not None:
            digest.update(f"{name}\x1f{len(data)}\x1f".encode() + data)
    return digest.hexdigest()


def append(
    table: Table,
    source: str | Path | Iterable[Row],
    *,
    on_bad_sample: OnBadSample = "stop",
    acknowledge: Acknowledge | None = None,
    quiet: bool = True,
) -> dict[str, Any]:
    """Add the rows of ``source`` (what ``import`` reads, or rows) whose content the Table does not hold yet.

    Returns ``added``, ``skipped`` (their content was there) and ``rows``. Raises InputError for an id that is there
    with other content (``upsert`` replaces), modalities and columns that the Table has not, and samples that cannot
    be read, unless ``on_bad_sample`` sets them aside. What was committed before an error stays.
    """
    return _grow(table, source, False, on_bad_sample, acknowledge, quiet)


def upsert(
    table: Table,
    source: str | Path | Iterable[Row],
    *,
    on_bad_sample: OnBadSample = "stop",
    acknowledge: Acknowledge | None = None,
    quiet: bool = True,
) -> dict[str, Any]:
    """As :func:`append`, but a row whose id is there replaces that row, under its key, without its derived values.

    A row that is there with all its values is left alone, with its derived ones. Returns ``replaced`` too.
    """
    return _grow(table, source, True, on_bad_sample, acknowledge, quiet)


def delete(table: Table, where: str) -> dict[str, Any]:
    """Remove the rows that pass the SQL filter ``where``; returns ``deleted`` and ``rows``."""
    if not where or not where.strip():
        raise InputError("delete needs --where; to remove everything, remove the folder")
    with _alone(table):
        table = Table.open(table.path)
        gone = len(table.select(where))
        if gone:
            _note(table, {"next_index": _next_index(table)})  # first: a key must not come back, whatever happens next
            Table.open(table.path).dataset.delete(where)
    return {"table": str(table.path), "deleted": gone, "rows": len(Table.open(table.path))}


def versions(table: Table, last: int = 50) -> list[dict[str, Any]]:
    """The newest versions of the Table, oldest first: number, time (ISO 8601), rows, columns."""
    import lance

    uri = table.dataset.uri
    found = []
    for entry in Table.open(table.path).dataset.versions()[-last:]:
        then = lance.dataset(uri, version=entry["version"])
        stamp = entry["timestamp"].isoformat(timespec="seconds")
        names = list(then.schema.names)
        found.append({"version": entry["version"], "time": stamp, "rows": then.count_rows(), "columns": names})
    return found


def optimise(table: Table, keep_days: float | None = None) -> dict[str, Any]:
    """Join small fragments, drop the space of deleted rows, bring Lance indices up to date. ``keep_days``: also
    forget versions older than that. Readers of the newest version are not disturbed."""
    with _alone(table):
        dataset = Table.open(table.path).dataset
        before = len(dataset.get_fragments())
        dataset.optimize.compact_files()
        dataset.optimize.optimize_indices()
        freed = 0
        if keep_days is not None:
            freed = int(dataset.cleanup_old_versions(older_than=timedelta(days=keep_days)).bytes_removed)
    after = Table.open(table.path)
    fragments = len(after.dataset.get_fragments())
    return {"table": str(table.path), "fragments": [before, fragments], "freed_bytes": freed, "rows": len(after)}


def _grow(
    table: Table,
    source: str | Path | Iterable[Row],
    replace: bool,
    on_bad_sample: OnBadSample,
    acknowledge: Acknowledge | None,
    quiet: bool,
) -> dict[str, Any]:
    check_choice(on_bad_sample)
    counts = {"added": 0, "replaced": 0, "skipped": 0, "bad": 0}
    dealt = 0
    with _alone(table):
        table = _with_content_ids(Table.open(table.path))
        rows = _checked(table, _open(table, source), on_bad_sample, counts)
        first = _next_index(table)
        for batch in _batches(tqdm(rows, desc="append", disable=quiet, unit=" rows", mininterval=1.0)):
            table = _commit(table, batch, replace, first + counts["added"], counts)
            dealt += len(batch)
            if acknowledge is not None:
                acknowledge(dealt)
        if len(table) > INDEXED_ABOVE:
            _index_ids(table)
    return {"table": str(table.path), **counts, "rows": len(table)}


def _open(table: Table, source: str | Path | Iterable[Row]) -> Reading:
    """The source, with modalities and columns that the Table has."""
    if not isinstance(source, str | Path):
        return Reading("rows", dict(table.modalities), iter(source))
    reading = read_dataset(source) if isinstance(source, str) and is_dataset(source) else open_source(source)
    for name, kind in reading.kinds.items():
        if name not in table.modalities:
            raise unknown(f"modality of {table.path} in {source}", name, table.modalities)
        known = table.modalities[name]
        if kind is not None and kind is not known and not (kind.is_image and known.is_image):
            raise InputError(f"{name} is {kind} in {source}, but {known} in {table.path}; it cannot be appended")
    for name in reading.scalars:
        if name not in table.columns or table.provenance(name) is not None:
            raise InputError(f"{source} has a column {name!r} that {table.path} was imported without; leave it out")
    return reading


def _checked(table: Table, reading: Reading, on_bad_sample: OnBadSample, counts: dict[str, int]) -> Iterator[Row]:
    """The rows that can be read, as the Table's kinds."""
    measured = Sizes(table.modalities, table.sizes, None)
    for row in reading.rows:
        bad = row if isinstance(row, Bad) else _fault(table, row, measured)
        if bad is not None:
            line = json.dumps(set_aside(bad, on_bad_sample), ensure_ascii=False)
            counts["bad"] += 1
            with (table.path / QUARANTINE).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        elif isinstance(row, Row):
            yield row


def _fault(table: Table, row: Row, measured: Sizes) -> Bad | None:
    """What is wrong with a row, other widths of features than the Table's included."""
    for name in row.values:
        if name not in table.modalities:
            raise unknown(f"modality of {table.path}", name, table.modalities)
    bad, known = fault(row, measured), table.sizes
    if bad is not None:
        return bad
    for name, size in measured.prove(row).items():  # remembered from a moment ago
        key = {Kind.REGIONS: "region_width", Kind.VECTOR: "vector_width"}.get(table.modalities[name])
        if key is not None and key in known and size[-1] != known[key]:
            reason = f"{size[-1]} numbers where the table's other rows have {known[key]}"
            return Bad(row.id, name, row.origins.get(name, ""), reason)
    return None


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows in lists of bounded size, an id at most once in each."""
    pending: dict[str, Row] = {}
    size = 0
    for row in rows:
        weight = sum(len(value) for value in row.values.values() if value is not None)
        if pending and (row.id in pending or len(pending) == BATCH_ROWS or size + weight > BATCH_BYTES):
            yield list(pending.values())
            pending, size = {}, 0
        pending[row.id] = row
        size += weight
    if pending:
        yield list(pending.values())


def _commit(table: Table, batch: list[Row], replace: bool, first: int, counts: dict[str, int]) -> Table:
    """Write what is new of a batch, under keys from ``first`` on; returns the newest Table."""
    ids = {row.id: content_id(row.values) for row in batch}
    there = _there(table, "id", list(ids))
    shown = _there(table, CONTENT, [mark for name, mark in ids.items() if name not in there])
    known = {entry[CONTENT] for entry in shown.values()}
    fresh: list[Row] = []
    changed: list[Row] = []
    for row in batch:
        old = there.get(row.id)
        if old is not None and replace and not _same(row, ids[row.id], old):
            changed.append(row)
        elif old is not None and old[CONTENT] != ids[row.id]:
            origin = next(iter(row.origins.values()), "")
            raise InputError(
                f"id {row.id!r} ({origin}) is in {table.path} with other content; replace it with upsert, or rename it"
            )
        elif old is not None or ids[row.id] in known:
            counts["skipped"] += 1
        else:
            known.add(ids[row.id])
            fresh.append(row)
    if changed:
        digest = hashlib.blake2b(str(_facts(table)["content"]).encode(), digest_size=16)
        digest.update("".join(f"{row.id}\x1f{ids[row.id]}\x1e" for row in changed).encode())
        _note(table, {"content": digest.hexdigest()})  # first: other content must never pass for the old version
        table = Table.open(table.path)
        keys = [there[row.id]["index"] for row in changed]
        data = _record_batch(table, changed, keys, ids)
        table.dataset.merge_insert("id").when_matched_update_all().execute(pa.Table.from_batches([data]))
        counts["replaced"] += len(changed)
        table = Table.open(table.path)
    if fresh:
        data = _record_batch(table, fresh, list(range(first, first + len(fresh))), ids)
        table.dataset.insert(pa.Table.from_batches([data]))
        counts["added"] += len(fresh)
        table = Table.open(table.path)
    return table


def _there(table: Table, column: str, values: list[str]) -> dict[str, dict[str, Any]]:
    """Rows whose ``column`` is among ``values``, by that value."""
    if not values:
        return {}
    scalars = [
        name for name in table.columns if name in ("split", "label", "index", "id", CONTENT) or _plain(table, name)
    ]
    quoted = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    rows = table.dataset.to_table(columns=scalars, filter=f"{column} in ({quoted})").to_pylist()
    return {row[column]: row for row in rows}


def _plain(table: Table, name: str) -> bool:
    """Whether a column was imported as a scalar."""
    own = {*table.modalities, *(f"origin_{modality}" for modality in table.modalities)}
    return name not in own and table.provenance(name) is None


def _same(row: Row, mark: str, old: Mapping[str, Any]) -> bool:
    values = {"split": row.split, "label": text_or_none(row.label), CONTENT: mark, **row.scalars}
    return all(old.get(name) == value for name, value in values.items())


def _record_batch(table: Table, rows: list[Row], keys: list[int], ids: Mapping[str, str]) -> pa.RecordBatch:
    """Rows under the Table's whole schema; what is derived is null."""
    entries = []
    for row, key in zip(rows, keys, strict=True):
        for name in row.scalars:
            if name not in table.columns or not _plain(table, name):
                raise InputError(f"row {row.id!r} has a value {name!r} that {table.path} was imported without")
        entry: dict[str, Any] = {"id": row.id, "index": key, "split": row.split, "label": row.label}
        entry |= {name: row.values.get(name) for name in table.modalities}
        entry |= {f"origin_{name}": row.origins.get(name) for name in table.modalities}
        entry |= {**dict(row.scalars), CONTENT: ids[row.id]}
        entries.append(entry)
    arrays = [pa.array([entry.get(field.name) for entry in entries], field.type) for field in table.schema]
    return pa.RecordBatch.from_arrays(arrays, schema=table.schema)


def _with_content_ids(table: Table) -> Table:
    """The Table with the content ids of all its rows; those imported without get theirs now, in one commit."""
    if CONTENT in table.columns and not len(table.select(f"{CONTENT} is null")):
        return table
    keys: list[np.ndarray] = []
    marks: list[str] = []
    names = list(table.modalities)
    for batch in table.dataset.to_batches(columns=["index", *names], batch_size=BATCH_ROWS):
        keys.append(batch.column("index").to_numpy())
        marks += [content_id(entry) for entry in batch.select(names).to_pylist()]
    table.write_columns(np.concatenate(keys), {CONTENT: pa.array(marks)}, {"of": ", ".join(names)})
    return Table.open(table.path)


def _index_ids(table: Table) -> None:
    have = {field for entry in table.dataset.describe_indices() for field in entry.field_names}
    for column in ("id", CONTENT):
        if column not in have:
            table.dataset.create_scalar_index(column, "BTREE")


def _facts(table: Table) -> dict[str, Any]:
    return dict(json.loads(table.schema.metadata[METADATA.encode()]))


def _next_index(table: Table) -> int:
    return max(int(_facts(table).get("next_index", 0)), int(table.indices().max(initial=-1)) + 1)


def _note(table: Table, changes: Mapping[str, Any]) -> None:
    """Change facts of the Table in one commit."""
    table.dataset.update_schema_metadata({METADATA: json.dumps(_facts(table) | dict(changes))})


@contextmanager
def _alone(table: Table) -> Iterator[None]:
    """Only one process lets a Table grow at a time; the lock goes with the process, however it ends."""
    with (table.path / ".growing").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another process is changing {table.path}; wait for it, or stop it") from error
        yield
