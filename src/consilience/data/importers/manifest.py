"""Manifests: CSV, Parquet and JSON lines with one row per sample, naming files or holding their bytes.

Columns called ``id``, ``split`` and ``label`` (in any case) mean what they say. A column is a modality when

* it holds bytes of a known format (Parquet, also as ``{bytes, path}``), or its values name files of a known
  suffix; paths count from the manifest's folder;
* it holds text and is called caption, captions, text, title, description or sentence (in any case);
* it holds lists of numbers and is called vector, embedding or features.

Every other column is kept as it is. A column ``group`` of whole numbers says which rows show the same thing:
rows of one group are correct partners of one another. Where a text cell is a list (JSON lines, Parquet),
every text becomes a row with the other modalities repeated: ids ``NAME#0``, ``NAME#1``, and as ``group`` the
row number in the manifest, unless the manifest has its own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq

from consilience.data.decode import ARRAY_FORMATS, GEOMETRY_FORMATS, format_of
from consilience.data.pictures import IMAGE_FORMATS
from consilience.data.reading import Bad, Reading, npy_bytes, text_or_none
from consilience.data.schema import Kind
from consilience.data.table import Row
from consilience.errors import InputError, unknown

SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson")
TEXT_NAMES = ("caption", "captions", "text", "title", "description", "sentence")
VECTOR_NAMES = ("vector", "embedding", "features")
ROWS = 500
"""Rows held in memory at a time."""
_PEEK = 200


def read_manifest(path: Path, columns: Mapping[str, str] | None = None) -> Reading:
    """Open a manifest. ``columns`` maps modality names to column names, instead of finding them by content and
    name; a column of strings that name no files holds captions, one of number lists holds vectors.

    Without an ``id`` column the row number (eight digits) is the id; without ``split`` every row is
    ``train``. An empty cell is a missing modality; a file that does not exist is a bad sample. Raises
    :class:`InputError` for an unreadable manifest, unknown columns, a manifest without modalities, and lists
    of texts in several columns or beside a ``group`` of another type.
    """
    batches = _batches(path, set((columns or {}).values()))
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
        chosen = {clean_name(name): name for name in found if _is_modality(first.schema.field(name), peek, path.parent)}
    if not chosen:
        raise InputError(
            f"{path}: no column names existing files or holds pictures, shapes, captions or vectors "
            f"({', '.join(names)}); paths count from the manifest's folder; name the columns with columns image=COLUMN"
        )
    taken = {*chosen.values(), *own.values()}
    scalar_columns = {clean_name(name): name for name in names if name not in taken}
    scalars = {clean: first.schema.field(name).type for clean, name in scalar_columns.items()}
    kinds = {name: _kind(name, first.schema.field(column), peek, path.parent) for name, column in chosen.items()}
    several = [column for column in chosen.values() if is_texts(first.schema.field(column).type)]
    if several:
        _check_lists(path, several, scalars)
    listed = next(iter(several), None)
    grouped = listed is not None and "group" not in scalars
    layout = _Layout(path, own, chosen, kinds, scalar_columns)

    def rows() -> Iterator[Row | Bad]:
        number = 0
        for batch in _chain(first, batches):
            for entry in batch.to_pylist():
                for name, cells in spread(entry, layout.id(entry, number), listed):
                    yield _row(layout, cells, name, number, {"group": number} if grouped else {})
                number += 1

    return Reading(str(path), kinds, rows(), scalars | ({"group": pa.int64()} if grouped else {}))


def kind_of_format(name: str, form: str) -> Kind | None:
    """The kind a format suggests for a modality called ``name``: pictures stay open (grey or colour)."""
    if form in IMAGE_FORMATS:
        return None
    return Kind.MESH if "mesh" in name.lower() else Kind.POINTS


@dataclass(frozen=True)
class _Layout:
    """Which columns of a manifest mean what."""

    path: Path
    own: Mapping[str, str | None]
    chosen: Mapping[str, str]
    kinds: Mapping[str, Kind | None]
    scalars: Mapping[str, str]

    def cell(self, entry: dict[str, Any], role: str) -> str | None:
        column = self.own[role]
        return None if column is None else text_or_none(entry[column])

    def id(self, entry: dict[str, Any], number: int) -> str:
        return self.cell(entry, "id") or f"{number:08d}"


def spread(entry: dict[str, Any], name: str, listed: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Id and cells of the rows that a source's row ``name`` stands for: itself, or ``name#0``, ``name#1`` and so on for
    the texts in its column ``listed`` (one row without a text where there is none)."""
    if listed is None:
        yield name, entry
        return
    for place, text in enumerate(entry[listed] or [None]):
        yield f"{name}#{place}", {**entry, listed: text}


def cell_bytes(cell: Any, kind: Kind | None, folder: Path) -> tuple[bytes | None, str]:
    """What a Table holds for a cell (``None``: nothing), and the file it names, if it does.

    A cell is bytes, a text, the name of a file below ``folder``, ``{bytes, path}`` or a list of numbers. Raises
    ``OSError``, whose ``filename`` is the cell's, for a file that cannot be read.
    """
    named = ""
    if isinstance(cell, dict):
        named = cell.get("path") or ""
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, list):
        return npy_bytes(np.array([np.nan if item is None else item for item in cell], dtype=np.float32)), named
    if not isinstance(cell, str):
        return cell, named
    if not cell:
        return None, named
    if kind is Kind.TEXT:
        return cell.encode(), named
    try:
        return (folder / cell).read_bytes(), cell
    except OSError as error:
        error.filename = cell
        raise


def _row(layout: _Layout, entry: dict[str, Any], name: str, number: int, extra: Mapping[str, Any]) -> Row | Bad:
    path = layout.path
    values: dict[str, bytes | None] = {}
    origins: dict[str, str] = {}
    for modality, column in layout.chosen.items():
        try:
            value, named = cell_bytes(entry[column], layout.kinds[modality], path.parent)
        except OSError as error:
            reason = f"{error.strerror or 'unreadable'} (row {number + 1} of {path.name})"
            return Bad(name, modality, error.filename, reason)
        if value is not None:
            values[modality], origins[modality] = value, named or f"{path.name}::{column}[{number}]"
    return Row(
        id=name,
        split=layout.cell(entry, "split") or "train",
        label=layout.cell(entry, "label"),
        values=values,
        origins=origins,
        scalars={clean: entry[column] for clean, column in layout.scalars.items()} | dict(extra),
    )


def _check_lists(path: Path, several: list[str], scalars: Mapping[str, pa.DataType]) -> None:
    if len(several) > 1:
        raise InputError(f"{path}: {' and '.join(several)} hold lists of texts; keep one, or join the other's lists")
    if "group" in scalars and not pa.types.is_integer(scalars["group"]):
        raise InputError(
            f"{path}: column group is {scalars['group']}; {several[0]} needs whole numbers there, rename it"
        )


def _batches(path: Path, chosen: set[str]) -> Iterator[pa.RecordBatch]:
    """Record batches of at most ``ROWS`` rows; columns with a role, captions and the columns ``chosen`` by the
    caller are never read as numbers."""
    try:
        if path.suffix == ".parquet":
            yield from pq.ParquetFile(path).iter_batches(batch_size=ROWS)
            return
        if path.suffix in (".jsonl", ".ndjson"):
            reader: Any = pajson.open_json(path)
        else:
            parse = pacsv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",", newlines_in_values=True)
            header = pacsv.open_csv(path, parse_options=parse).schema.names
            roles = ("id", "split", "label", *TEXT_NAMES)
            text = {name: pa.string() for name in header if name.lower() in roles or name in chosen}
            convert = pacsv.ConvertOptions(column_types=text, strings_can_be_null=True)
            reader = pacsv.open_csv(path, parse_options=parse, convert_options=convert)
        yield from in_parts(reader)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowKeyError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} cannot be read as {path.suffix[1:]}: {reason}; repair the file") from error


def in_parts(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in record batches of at most ``ROWS``."""
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS):
            yield batch.slice(start, ROWS)


def _chain(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest


def _named(role: str, names: list[str]) -> str | None:
    return role if role in names else next((name for name in names if name.lower() == role), None)


def clean_name(name: str, taken: Collection[str] = ("index",)) -> str:
    """A column name that SQL filters can use; those ``taken`` by the Table get ``source_`` in front."""
    clean = re.sub(r"\W", "_", name) or "_"
    clean = f"_{clean}" if clean[0].isdigit() else clean
    return f"source_{clean}" if clean in taken else clean


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


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds texts."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_texts(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists of texts."""
    return _is_list(kind) and is_text(kind.value_type)


def is_vector(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists of numbers."""
    return _is_list(kind) and bool(pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def _is_modality(column: pa.Field, peek: list[dict[str, Any]], folder: Path) -> bool:
    if _names_files(column.name, peek, folder):
        return True
    if column.name.lower() in TEXT_NAMES:
        return is_text(column.type) or is_texts(column.type)
    return column.name.lower() in VECTOR_NAMES and is_vector(column.type)


def _names_files(column: str, peek: list[dict[str, Any]], folder: Path) -> bool:
    cells = _peeked(column, peek)
    known = [bool(format_of(data, origin)) for data, origin in cells]
    if not cells or sum(known) < len(known) / 2:
        return False
    return any(data or _is_file(folder / origin) for data, origin in cells)


def _kind(name: str, column: pa.Field, peek: list[dict[str, Any]], folder: Path) -> Kind | None:
    if is_vector(column.type):
        return Kind.VECTOR
    if is_texts(column.type):
        return Kind.TEXT
    cells = _peeked(column.name, peek)
    known = (*IMAGE_FORMATS, *ARRAY_FORMATS, *GEOMETRY_FORMATS)
    form = next((form for data, origin in cells if (form := format_of(data, origin)) in known), "")
    if not form and is_text(column.type) and not any(_is_file(folder / origin) for _, origin in cells):
        return Kind.TEXT
    return kind_of_format(name, form or "png")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a caption can be longer than any file name, or hold a zero character
        return False
