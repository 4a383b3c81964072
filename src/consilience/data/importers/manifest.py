"""Manifests: CSV, Parquet and JSON lines with one row per sample, naming files or holding their bytes.

Columns called ``id``, ``split`` and ``label`` (in any case) mean what they say. A column is a modality when
it holds bytes of a known format (Parquet, also as ``{bytes, path}``), or when its values name files of a
known suffix; paths count from the manifest's folder. Every other column is kept as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq

from consilience.data.decode import ARRAY_FORMATS, GEOMETRY_FORMATS, IMAGE_FORMATS, format_of
from consilience.data.reading import Bad, Reading, text_or_none
from consilience.data.schema import Kind
from consilience.data.table import Row
from consilience.errors import InputError, unknown

SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson")
_ROWS = 500
_PEEK = 200


def read_manifest(path: Path, columns: Mapping[str, str] | None = None) -> Reading:
    """Open a manifest. ``columns`` maps modality names to column names, instead of finding them by content.

    Without an ``id`` column the row number (eight digits) is the id; without ``split`` every row is
    ``train``. An empty cell is a missing modality; a file that does not exist is a bad sample. Raises
    :class:`InputError` for an unreadable manifest, unknown columns and a manifest without modalities.
    """
    batches = _batches(path)
    first = next(batches, None)
    if first is None or first.num_rows == 0:
        raise InputError(f"{path} has no rows; write one row per sample below the header")
    names = first.schema.names
    own = {role: _named(role, names) for role in ("id", "split", "label")}
    peek = first.slice(0, _PEEK).to_pylist()
    if columns:
        for column in columns.values():
            if column not in names:
                raise unknown(f"column of {path}", column, names)
        chosen = dict(columns)
    else:
        found = (name for name in names if name not in own.values())
        chosen = {_clean(name): name for name in found if _is_modality(name, peek, path.parent)}
    if not chosen:
        raise InputError(
            f"{path}: no column names existing files or holds pictures or shapes ({', '.join(names)}); "
            "paths count from the manifest's folder; name the columns with columns image=COLUMN"
        )
    taken = {*chosen.values(), *own.values()}
    scalars = {_clean(name): first.schema.field(name).type for name in names if name not in taken}
    scalar_columns = {_clean(name): name for name in names if name not in taken}
    kinds = {name: _kind(name, column, peek) for name, column in chosen.items()}

    def rows() -> Iterator[Row | Bad]:
        number = 0
        for batch in _chain(first, batches):
            for entry in batch.to_pylist():
                yield _row(entry, number, own, chosen, scalar_columns, path)
                number += 1

    return Reading(str(path), kinds, rows(), scalars)


def kind_of_format(name: str, form: str) -> Kind | None:
    """The kind a format suggests for a modality called ``name``: pictures stay open (grey or colour)."""
    if form in IMAGE_FORMATS:
        return None
    return Kind.MESH if "mesh" in name.lower() else Kind.POINTS


def _row(
    entry: dict[str, Any],
    number: int,
    own: Mapping[str, str | None],
    chosen: Mapping[str, str],
    scalars: Mapping[str, str],
    path: Path,
) -> Row | Bad:
    def cell(role: str) -> str | None:
        column = own[role]
        return None if column is None else text_or_none(entry[column])

    name = cell("id") or f"{number:08d}"
    values: dict[str, bytes | None] = {}
    origins: dict[str, str] = {}
    for modality, column in chosen.items():
        value = entry[column]
        origin = f"{path.name}::{column}[{number}]"
        if isinstance(value, dict):
            origin = value.get("path") or origin
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            if not value:
                continue
            origin = value
            try:
                value = (path.parent / value).read_bytes()
            except OSError as error:
                reason = f"{error.strerror or 'unreadable'} (row {number + 1} of {path.name})"
                return Bad(name, modality, origin, reason)
        if value is not None:
            values[modality], origins[modality] = value, origin
    return Row(
        id=name,
        split=cell("split") or "train",
        label=cell("label"),
        values=values,
        origins=origins,
        scalars={clean: entry[column] for clean, column in scalars.items()},
    )


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Record batches of at most ``_ROWS`` rows; the text columns with a role are never read as numbers."""
    try:
        if path.suffix == ".parquet":
            yield from pq.ParquetFile(path).iter_batches(batch_size=_ROWS)
            return
        if path.suffix in (".jsonl", ".ndjson"):
            reader: Any = pajson.open_json(path)
        else:
            parse = pacsv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",", newlines_in_values=True)
            header = pacsv.open_csv(path, parse_options=parse).schema.names
            text = {name: pa.string() for name in header if name.lower() in ("id", "split", "label")}
            convert = pacsv.ConvertOptions(column_types=text, strings_can_be_null=True)
            reader = pacsv.open_csv(path, parse_options=parse, convert_options=convert)
        for batch in reader:
            for start in range(0, batch.num_rows, _ROWS):
                yield batch.slice(start, _ROWS)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowKeyError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} cannot be read as {path.suffix[1:]}: {reason}; repair the file") from error


def _chain(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest


def _named(role: str, names: list[str]) -> str | None:
    return role if role in names else next((name for name in names if name.lower() == role), None)


def _clean(name: str) -> str:
    """A column name that SQL filters can use; ``index`` belongs to the Table."""
    clean = re.sub(r"\W", "_", name) or "_"
    clean = f"_{clean}" if clean[0].isdigit() else clean
    return "source_index" if clean == "index" else clean


def _peeked(column: str, peek: list[dict[str, Any]]) -> list[tuple[bytes, str]]:
    """(bytes, origin) of the filled cells of a column, as far as they tell a format."""
    cells: list[tuple[bytes, str]] = []
    for entry in peek:
        value = entry[column]
        if isinstance(value, dict):
            cells.append((value.get("bytes") or b"", value.get("path") or ""))
        elif isinstance(value, bytes):
            cells.append((value, ""))
        elif isinstance(value, str) and value:
            cells.append((b"", value))
    return cells


def _is_modality(column: str, peek: list[dict[str, Any]], folder: Path) -> bool:
    cells = _peeked(column, peek)
    known = [bool(format_of(data, origin)) for data, origin in cells]
    if not cells or sum(known) < len(known) / 2:
        return False
    return any(data or (folder / origin).is_file() for data, origin in cells)


def _kind(name: str, column: str, peek: list[dict[str, Any]]) -> Kind | None:
    forms = (format_of(data, origin) for data, origin in _peeked(column, peek))
    known = (*IMAGE_FORMATS, *ARRAY_FORMATS, *GEOMETRY_FORMATS)
    return kind_of_format(name, next((form for form in forms if form in known), "png"))
