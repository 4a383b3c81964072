"""Folders of Hugging Face data sets, read with pyarrow alone.

Two layouts: what ``save_to_disk`` of the ``datasets`` library writes (Arrow streams, ``state.json``,
``dataset_info.json``; one folder a split for a ``DatasetDict``), and Parquet shards as repositories of the hub
hold them (``data/train-00000-of-00002.parquet``, or ``train/*.parquet``). What a column is says the schema
that the library leaves in the files' metadata, and the Arrow type where there is none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from consilience.data.importers.manifest import (
    ROWS,
    TEXT_NAMES,
    cell_bytes,
    clean_name,
    in_parts,
    is_text,
    is_texts,
    is_vector,
    spread,
)
from consilience.data.reading import Bad, Reading, text_or_none
from consilience.data.schema import Kind
from consilience.data.table import Row
from consilience.errors import InputError, unknown

_STATE, _INFO, _DICT = "state.json", "dataset_info.json", "dataset_dict.json"
_NUMBERED = re.compile(r"(.+)-\d{5}-of-\d{5}(-\w+)?\.parquet")
_SPLITS = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation", "testing": "test"}
_KNOWN = ("train", "test", "validation", *_SPLITS)
_LABELS = ("label", "labels")


@dataclass(frozen=True)
class _Column:
    """One column that becomes a modality."""

    name: str
    kind: Kind | None
    several: bool = False
    """A list of captions a row."""


def is_huggingface(path: Path, names: set[str]) -> bool:
    """Whether folder ``path`` with entries ``names`` has one of the two layouts."""
    return bool(names & {_STATE, _DICT}) or bool(names and _parquet(path))


def read_huggingface(path: Path, columns: Mapping[str, str] | None = None) -> Reading:
    """Open such a folder. Pictures are columns of the feature ``Image`` (or ``{bytes, path}``); captions are text
    columns called caption, text, title and so on, or lists of texts; vectors are lists of numbers; a
    ``ClassLabel`` called label is the label, by the names of its classes; a text column ``id`` is the id.
    Other simple columns are kept, others left out. ``columns`` maps modalities to columns instead.

    Where a cell is a list of captions, every caption becomes a row and ``group``, int64, is the number of the
    row it comes from. Rows without an id are called ``SPLIT-NUMBER``. Raises :class:`InputError` for missing
    or damaged files, splits with different columns, unknown columns, and folders without modalities.
    """
    splits = _saved(path) or _parquet(path)
    if not splits:
        raise InputError(f"{path} holds no splits of a data set; give the folder that save_to_disk wrote")
    schema, features = _schema(next(iter(splits.values()))[0])
    modalities = _modalities(path, schema, features, columns)
    taken = {column.name for column in modalities.values()}
    coded = [name for name in schema.names if _type_of(features.get(name)) == "ClassLabel"]
    label = next((name for name in (*_LABELS, *coded) if name in schema.names and name not in taken), None)
    classes = _classes(features, label)
    own = {"id": "id" if "id" in schema.names and "id" not in taken else None, "label": label}
    kept = [name for name in schema.names if name not in {*taken, *own.values()} and _simple(schema.field(name).type)]
    listed = [column.name for column in modalities.values() if column.several]
    if len(listed) > 1:
        raise InputError(f"{path}: {' and '.join(listed)} hold lists of captions; choose one with columns text=COLUMN")
    own_names = ("id", "index", "split", "label", *modalities, *(("group",) if listed else ()))
    names = {name: clean_name(name, (*own_names, *(f"origin_{key}" for key in modalities))) for name in kept}
    scalars = {names[name]: schema.field(name).type for name in kept}

    def rows() -> Iterator[Row | Bad]:
        number = 0
        for split, files in splits.items():
            first = number
            for file, entry in _entries(files, schema):
                place = f"{file.relative_to(path)}::{number - first}"
                base = text_or_none(entry[own["id"]]) if own["id"] else None
                code = entry[label] if label else None
                what = classes[code] if classes and isinstance(code, int) and 0 <= code < len(classes) else code
                others = {names[name]: entry[name] for name in kept} | ({"group": number} if listed else {})
                for name, cells in spread(entry, base or f"{split}-{number - first:06d}", next(iter(listed), None)):
                    values = _values(path, name, place, cells, modalities)
                    yield (
                        values
                        if isinstance(values, Bad)
                        else Row(
                            id=name,
                            split=_SPLITS.get(split, split),
                            label=None if what == -1 else text_or_none(what),
                            values=values,
                            origins={key: f"{place}/{modalities[key].name}" for key in values},
                            scalars=others,
                        )
                    )
                number += 1

    types = scalars | ({"group": pa.int64()} if listed else {})
    return Reading(str(path), {key: column.kind for key, column in modalities.items()}, rows(), types)


def _saved(path: Path) -> dict[str, list[Path]]:
    """Split to Arrow files, in the order of ``state.json``."""
    if (path / _DICT).is_file():
        names = _read_json(path / _DICT).get("splits", [])
        return {name: _arrow_files(path / name) for name in names}
    if (path / _STATE).is_file():
        return {str(_read_json(path / _STATE).get("_split") or "train"): _arrow_files(path)}
    return {}


def _arrow_files(folder: Path) -> list[Path]:
    entries = _read_json(folder / _STATE).get("_data_files") or []
    files = [folder / str(entry["filename"]) for entry in entries if isinstance(entry, dict) and "filename" in entry]
    if not files:
        raise InputError(f"{folder / _STATE} names no data files; save the data set again")
    for file in files:
        if not file.is_file():
            raise InputError(f"{file} is missing although {_STATE} names it; copy the whole folder")
    return files


def _parquet(path: Path) -> dict[str, list[Path]]:
    """Split to Parquet shards: numbered ones here or in ``data``, else those in folders named like splits."""
    found: dict[str, list[Path]] = {}
    for folder in (path, path / "data"):
        for file in sorted(folder.glob("*.parquet")):
            if match := _NUMBERED.fullmatch(file.name):
                found.setdefault(match[1], []).append(file)
        if found:
            break
    if not found:
        for name in _KNOWN:
            if files := sorted((path / name).glob("*.parquet")):
                found[name] = files
    order = {name: place for place, name in enumerate(_KNOWN)}
    return dict(sorted(found.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))


def _schema(file: Path) -> tuple[pa.Schema, dict[str, Any]]:
    """Arrow schema, and the library's own description of the columns (empty without one)."""
    try:
        if file.suffix == ".parquet":
            schema = pq.read_schema(file)
        else:
            with pa.OSFile(str(file)) as source, pa.ipc.open_stream(source) as reader:
                schema = reader.schema
    except (pa.ArrowException, OSError) as error:
        raise _broken(file, error) from error
    raw = (schema.metadata or {}).get(b"huggingface")
    content = json.loads(raw) if raw else {}
    info = file.with_name(_INFO)
    features = content.get("info", {}).get("features") or (_read_json(info).get("features") if info.is_file() else None)
    return schema.remove_metadata(), features if isinstance(features, dict) else {}


def _entries(files: list[Path], schema: pa.Schema) -> Iterator[tuple[Path, dict[str, Any]]]:
    for file in files:
        for batch in _batches(file, schema):
            for entry in batch.to_pylist():
                yield file, entry


def _batches(file: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Record batches of a file, a bounded number of rows at a time."""
    try:
        if file.suffix == ".parquet":
            stream = pq.ParquetFile(file)
            _same(file, stream.schema_arrow, schema)
            yield from stream.iter_batches(batch_size=ROWS)
            return
        with pa.OSFile(str(file)) as source, pa.ipc.open_stream(source) as reader:
            _same(file, reader.schema, schema)
            yield from in_parts(reader)
    except (pa.ArrowException, OSError) as error:
        raise _broken(file, error) from error


def _same(file: Path, schema: pa.Schema, first: pa.Schema) -> None:
    if not schema.remove_metadata().equals(first):
        raise InputError(f"{file} has other columns or types than the first file of the data set; save it again")


def _modalities(
    path: Path, schema: pa.Schema, features: dict[str, Any], columns: Mapping[str, str] | None
) -> dict[str, _Column]:
    for name in (columns or {}).values():
        if name not in schema.names:
            raise unknown(f"column of {path}", name, schema.names)
    chosen = columns or {re.sub(r"\W", "_", name): name for name in schema.names if name not in ("id", *_LABELS)}
    found: dict[str, _Column] = {}
    for modality, name in chosen.items():
        column = _column(name, schema.field(name).type, features.get(name), bool(columns))
        if column is not None:
            found[modality] = column
        elif columns:
            raise InputError(f"{path}: column {name} is {schema.field(name).type}, no picture, text or list of numbers")
    if not found:
        raise InputError(
            f"{path}: no column holds pictures, captions or vectors ({', '.join(schema.names)}); "
            "name one with columns text=COLUMN"
        )
    return found


def _column(name: str, kind: pa.DataType, feature: Any, asked: bool) -> _Column | None:
    if _type_of(feature) == "Image" or (
        pa.types.is_struct(kind) and {kind.field(i).name for i in range(kind.num_fields)} == {"bytes", "path"}
    ):
        return _Column(name, None)
    if is_text(kind) or is_texts(kind):
        return _Column(name, Kind.TEXT, is_texts(kind)) if asked or name.lower() in TEXT_NAMES else None
    if is_vector(kind) and (asked or pa.types.is_floating(kind.value_type)):
        return _Column(name, Kind.VECTOR)
    return None


def _values(
    path: Path, name: str, place: str, entry: dict[str, Any], modalities: Mapping[str, _Column]
) -> dict[str, bytes | None] | Bad:
    """Bytes of a row's modalities; pictures that were saved by path alone are read from there."""
    values: dict[str, bytes | None] = {}
    for modality, column in modalities.items():
        cell = entry[column.name]
        try:
            value, _ = cell_bytes(cell if not isinstance(cell, str) or cell.strip() else None, column.kind, path)
        except OSError as error:
            return Bad(name, modality, f"{place} ({error.filename})", error.strerror or "unreadable")
        if value is not None:
            values[modality] = value
    return values


def _classes(features: dict[str, Any], label: str | None) -> list[str]:
    feature = features.get(label) if label else None
    names = feature.get("names") if isinstance(feature, dict) and _type_of(feature) == "ClassLabel" else None
    return [str(name) for name in names] if isinstance(names, list) else []


def _type_of(feature: Any) -> str:
    return str(feature.get("_type", "")) if isinstance(feature, dict) else ""


def _simple(kind: pa.DataType) -> bool:
    return bool(is_text(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is missing or no JSON ({' '.join(str(error).split())[:100]}); copy it again"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is no JSON object; save the data set again")
    return content


def _broken(file: Path, error: Exception) -> InputError:
    return InputError(f"{file} is damaged ({_reason(error)}); download or save it again")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
