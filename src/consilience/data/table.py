"""The Table: one folder, one LanceDB database, one Lance table ``samples`` with a row per sample or pair.

Raw bytes are stored once, at import. Whatever is computed later (vectors, codes, beliefs, scores) is a
column added to the same rows; the provenance of such a column travels in the metadata of its field, so the
column and its provenance appear in one transaction or not at all.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import lance
import numpy as np
import pyarrow as pa
from lance.commit import CommitConflictError

from consilience.data.columns import as_arrow, as_matrix, in_order, merge_columns
from consilience.data.schema import Kind
from consilience.data.text import resolve_spec
from consilience.errors import ConsilienceError, InputError, unknown
from consilience.files import new_folder, write_text

NAME = "samples"
FORMAT = 1
QUARANTINE = "quarantine.jsonl"
METADATA = "consilience"
_PROVENANCE = b"consilience.provenance"
_OWN = ("id", "index", "split", "label")
_BATCH_ROWS, _BATCH_BYTES = 1024, 32 << 20
_ATTEMPTS = 5


@dataclass(frozen=True)
class Row:
    """One sample on its way into a Table."""

    id: str
    """Unique in the Table and stable between imports of the same source."""
    split: str
    """``train``, ``test`` or any other name."""
    values: Mapping[str, bytes | None]
    """Modality name to the raw bytes of its file; ``None`` (or no key) where the sample lacks it."""
    origins: Mapping[str, str]
    """Modality name to where the bytes came from (a path, or a path and a position inside it)."""
    label: str | None = None
    """Class name, only ever read by evaluation."""
    scalars: Mapping[str, Any] = field(default_factory=dict)
    """Other values of the source, kept as they are."""


class Table:
    """An open Table, pinned to the version it was opened at. Picklable (a worker process reopens it)."""

    def __init__(self, path: Path, dataset: Any) -> None:
        self._path = path
        self._data = dataset
        self._index: tuple[np.ndarray, np.ndarray] | None = None
        raw = (dataset.schema.metadata or {}).get(METADATA.encode())
        if raw is None:
            raise InputError(f"{path} is a LanceDB folder but not a Consilience table; import its source instead")
        self._facts: dict[str, Any] = json.loads(raw)
        if int(self._facts["format"]) > FORMAT:
            raise InputError(
                f"{path} has table format {self._facts['format']}, this version reads up to {FORMAT}; "
                "upgrade consilience"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (str(self._path), self.version)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """The Table in folder ``path`` at its newest version; :class:`InputError` when there is none."""
        path = Path(path)
        if not is_table(path):
            what = "does not exist" if not path.exists() else f"holds no {NAME}.lance"
            raise InputError(f"{path} is not a table ({what}); make one with: consilience import SOURCE -o {path}")
        return cls(path, lance.dataset(str(path / f"{NAME}.lance")))

    @classmethod
    def create(
        cls,
        path: str | Path,
        rows: Iterable[Row],
        modalities: Mapping[str, Kind],
        source: str,
        *,
        scalars: Mapping[str, pa.DataType] | None = None,
        quarantine: Sequence[Mapping[str, Any]] = (),
        sizes: Mapping[str, Any] | None = None,
        files: Mapping[str, str] | None = None,
    ) -> Self:
        """Write ``rows`` as a new Table at ``path``, in the order given; nothing is left when it fails.

        ``modalities`` fixes the names and order of the columns; its kinds, like ``quarantine`` (rows left out, written
        to ``quarantine.jsonl``), ``sizes`` (see :attr:`sizes`) and ``files`` (names to text, put beside the data), are
        read after the last row, so a streaming reader may settle them on its way. ``scalars``: types of a row's.

        Raises :class:`InputError` when ``path`` is taken, an id occurs twice, a name is reserved or no row came.
        """
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path} already exists; remove it or choose another place for the table")
        schema = _schema(tuple(modalities), scalars or {})
        digest = hashlib.blake2b(digest_size=16)
        with new_folder(path) as folder:
            _write(_connect(folder), schema, _record_batches(rows, schema, digest))
            facts = {
                "format": FORMAT,
                "modalities": {name: Kind(kind).value for name, kind in modalities.items()},
                "source": source,
                "content": digest.hexdigest(),
                "sizes": dict(sizes or {}),
            }
            dataset = lance.dataset(str(folder / f"{NAME}.lance"))
            dataset.update_schema_metadata({METADATA: json.dumps(facts)})
            if quarantine:
                lines = "".join(json.dumps(dict(entry), ensure_ascii=False) + "\n" for entry in quarantine)
                write_text(folder / QUARANTINE, lines)
            for name, content in (files or {}).items():
                write_text(folder / name, content)
        return cls.open(path)

    @property
    def path(self) -> Path:
        return self._path

    @property
    def modalities(self) -> dict[str, Kind]:
        """Modality name to kind, in the order of the columns."""
        return {name: Kind(kind) for name, kind in self._facts["modalities"].items()}

    @property
    def source(self) -> str:
        """What the Table was imported from, as the importer named it."""
        return str(self._facts["source"])

    @property
    def sizes(self) -> dict[str, Any]:
        """Fields of :class:`~consilience.data.decode.DecodeConfig` with the values this Table asks for; empty
        for Tables without captions and features. A tokenizer's file in the Table's folder is named in full."""
        sizes = dict(self._facts.get("sizes", {}))
        if "tokenizer" in sizes:
            sizes["tokenizer"] = resolve_spec(sizes["tokenizer"], self._path)
        return sizes

    @property
    def columns(self) -> list[str]:
        return list(self._data.schema.names)

    @property
    def schema(self) -> pa.Schema:
        """Arrow types of the columns."""
        return self._data.schema

    @property
    def version(self) -> int:
        """Lance version: grows with every write, derived columns included. See :meth:`fingerprint`."""
        return int(self._data.version)

    @property
    def dataset(self) -> Any:
        """The Lance dataset at the version this Table was opened at."""
        return self._data

    @property
    def lance(self) -> Any:
        """The LanceDB table object (newest version) for vector search and anything else LanceDB offers."""
        return _connect(self._path).open_table(NAME)

    def __len__(self) -> int:
        return int(self._data.count_rows())

    def indices(self) -> np.ndarray:
        """int64 [n]: the stable key of every row, in stored order (position in this array = row offset)."""
        return self._keys()[0]

    def _keys(self) -> tuple[np.ndarray, np.ndarray]:
        """The keys in stored order, and the offsets that sort them."""
        if self._index is None:
            keys = self._data.to_table(columns=["index"])["index"].to_numpy().astype(np.int64)
            self._index = keys, np.argsort(keys, kind="stable")
        return self._index

    def find(self, index: np.ndarray) -> np.ndarray:
        """int64 row offsets of the stable keys ``index`` (any shape); -1 where there is no such row."""
        keys, order = self._keys()
        if not len(keys):
            return np.full(np.shape(index), -1, dtype=np.int64)
        offsets = order[np.minimum(np.searchsorted(keys, index, sorter=order), len(keys) - 1)]
        return np.where(keys[offsets] == index, offsets, -1).astype(np.int64)

    def offsets_of(self, index: np.ndarray) -> np.ndarray:
        """:meth:`find` for keys that are there; :class:`InputError` naming one that is absent."""
        offsets = self.find(index)
        if (offsets < 0).any():
            absent = int(np.asarray(index)[offsets < 0][0])
            raise InputError(f"{self._path} has no row with index {absent}; it has {len(self)} rows")
        return offsets

    def select(self, where: str | None = None) -> np.ndarray:
        """int64 offsets of the rows that pass the SQL filter ``where`` (default: all), ordered by ``index``."""
        if where is None:
            return self._keys()[1].astype(np.int64)
        try:
            found = self._data.to_table(columns=["index"], filter=where)["index"].to_numpy()
        except (ValueError, OSError) as error:
            reason = str(error).split(", /")[0].removeprefix("Invalid user input: ")
            raise InputError(f"filter {where!r} does not fit {self._path}: {reason}") from error
        return self.offsets_of(np.sort(found))

    def take(self, offsets: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """The given rows and columns in one read, in the order of ``offsets`` (which may repeat)."""
        for name in columns:
            self._need(name)
        offsets = np.asarray(offsets, dtype=np.int64)
        if offsets.size == 0:
            return pa.schema([self._data.schema.field(name) for name in columns]).empty_table()
        if offsets.min() < 0 or offsets.max() >= len(self):
            raise InputError(f"row offset {int(offsets.max())} is outside {self._path}, which has {len(self)} rows")
        unique, place = np.unique(offsets, return_inverse=True)
        rows = self._data.take(unique.tolist(), columns=list(columns))
        in_order = bool(np.array_equal(place, np.arange(len(place))))
        return rows if in_order else rows.take(pa.array(place))

    def column(self, name: str, where: str | None = None) -> np.ndarray:
        """One column as an array, rows as :meth:`select` orders them. Numbers keep their type (nulls become NaN),
        vectors give [n, d] (a null row is NaN), text and bytes an object array with ``None``. InputError when a column
        of integer vectors has empty rows."""
        values = self.take(self.select(where), [name])[name].combine_chunks()
        if pa.types.is_fixed_size_list(values.type):
            return as_matrix(name, values)
        return np.asarray(values.to_numpy(zero_copy_only=False))

    def labels(self, where: str | None = None) -> tuple[np.ndarray, list[str]]:
        """Class codes int64 [n] (-1 where a row has none) and class names in order over the *whole* Table, so that
        codes of two splits agree: for evaluation only. InputError when no row has a label."""
        everything = self._data.to_table(columns=["label"])["label"]
        found = [name for name in everything.unique().to_pylist() if name is not None]
        if not found:
            raise InputError(f"{self._path} has no labels; evaluation by class needs a label column at import")
        names = in_order(found)
        code = {name: position for position, name in enumerate(names)}
        wanted = self.take(self.select(where), ["label"])["label"].to_pylist()
        return np.array([code.get(name, -1) for name in wanted], dtype=np.int64), names

    def provenance(self, column: str) -> dict[str, Any] | None:
        """What was passed to :meth:`write_columns` for ``column``; ``None`` for an imported one."""
        self._need(column)
        raw = (self._data.schema.field(column).metadata or {}).get(_PROVENANCE)
        return None if raw is None else dict(json.loads(raw))

    def fingerprint(self) -> str:
        """32 hex digits: the data version, of the imported content and the rows here now (id, index, split) alone."""
        digest = hashlib.blake2b(str(self._facts["content"]).encode(), digest_size=16)
        rows = self.take(self.select(), ["id", "index", "split"])
        for name, index, split in zip(*(rows[c].to_pylist() for c in rows.column_names), strict=True):
            digest.update(f"{name}\x1f{index}\x1f{split}\x1e".encode())
        return digest.hexdigest()

    def write_columns(
        self, index: np.ndarray, columns: Mapping[str, np.ndarray | pa.Array], provenance: Mapping[str, Any]
    ) -> None:
        """Add or replace derived columns in one transaction: the old or the new version survives a kill.

        ``index``: int64 [n] stable keys, each once; rows not named get null. ``columns``: name to an array of length n;
        a float matrix [n, d] becomes a float32 vector column, an integer matrix a vector column of its type.
        ``provenance``: JSON-able, kept with each of the columns.

        Raises :class:`InputError` for keys that repeat or do not exist, lengths that differ, and names of imported
        columns; :class:`ConsilienceError` when other writers keep getting in first.
        """
        index = np.asarray(index, dtype=np.int64)
        if len(np.unique(index)) != len(index):
            raise InputError(f"write_columns({', '.join(columns)}): index names a row twice; give every row once")
        metadata = {_PROVENANCE: json.dumps(dict(provenance)).encode()}
        fields, arrays = [pa.field("index", pa.int64())], [pa.array(index)]
        for name, values in columns.items():
            self._check_name(name)
            if len(values) != len(index):
                raise InputError(f"column {name!r} has {len(values)} values for {len(index)} rows")
            array = values if isinstance(values, pa.Array) else as_arrow(values)
            fields.append(pa.field(name, array.type, metadata=metadata))
            arrays.append(array)
        addition = pa.table(arrays, schema=pa.schema(fields))
        for _ in range(_ATTEMPTS):
            latest = type(self).open(self._path)
            latest.offsets_of(index)
            for name in columns:
                if name in latest.columns and latest.provenance(name) is None:
                    raise InputError(f"column {name!r} was imported and is never overwritten; choose another name")
            try:
                self._data = merge_columns(latest._data, addition)
            except CommitConflictError:
                continue
            self._index = None
            return
        raise ConsilienceError(f"{self._path}: other writers committed first {_ATTEMPTS} times; try again")

    def _need(self, column: str) -> None:
        if column not in self._data.schema.names:
            raise unknown(f"column of {self._path}", column, self._data.schema.names)

    def _check_name(self, name: str) -> None:
        plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", name)
        if not plain or name in _OWN or name.startswith(("_row", "__")):
            raise InputError(f"{name!r} cannot name a column; use up to 100 letters, digits and _, and none of {_OWN}")


def is_table(path: str | Path) -> bool:
    """Whether ``path`` looks like a Table's folder (its metadata is checked on opening)."""
    return (Path(path) / f"{NAME}.lance").is_dir()


def _connect(path: Path) -> Any:
    import lancedb  # takes seconds, and worker processes that only read never need it

    return lancedb.connect(str(path))


def _reopen(path: str, version: int) -> Table:
    return Table(Path(path), lance.dataset(str(Path(path) / f"{NAME}.lance"), version=version))


def _schema(modalities: Sequence[str], scalars: Mapping[str, pa.DataType]) -> pa.Schema:
    if not modalities:
        raise InputError("a table needs at least one modality; none was found in the source")
    text = pa.string()
    fields = [
        pa.field("id", text),
        pa.field("index", pa.int64()),
        pa.field("split", text),
        pa.field("label", text),
    ]
    for name in modalities:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise InputError(f"{name!r} cannot name a modality; use letters, digits and _")
        fields += [pa.field(name, pa.large_binary()), pa.field(f"origin_{name}", text)]
    fields += [pa.field(name, kind) for name, kind in scalars.items()]
    names = [entry.name for entry in fields]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two columns would be called {name!r}; rename one in the source")
    return pa.schema(fields)


def _record_batches(rows: Iterable[Row], schema: pa.Schema, digest: Any) -> Iterator[pa.RecordBatch]:
    """Rows as record batches of bounded size; feeds every value into ``digest``."""
    seen: dict[str, str] = {}
    pending: list[dict[str, Any]] = []
    size = total = 0
    for row in rows:
        origin = next(iter(row.origins.values()), "")
        if row.id in seen:
            raise InputError(f"id {row.id!r} occurs twice ({seen[row.id]} and {origin}); ids must be unique")
        seen[row.id] = origin
        entry: dict[str, Any] = {"id": row.id, "index": total, "split": row.split, "label": row.label}
        entry |= dict(row.values) | {f"origin_{name}": place for name, place in row.origins.items()}
        entry |= dict(row.scalars)
        for name in schema.names:
            value = entry.get(name)
            raw = value if isinstance(value, bytes) else repr(value).encode()
            digest.update(len(raw).to_bytes(8, "little") + raw)
        pending.append(entry)
        total += 1
        size += sum(len(value) for value in row.values.values() if value is not None)
        if len(pending) == _BATCH_ROWS or size >= _BATCH_BYTES:
            yield pa.RecordBatch.from_pylist(pending, schema=schema)
            pending, size = [], 0
    if pending:
        yield pa.RecordBatch.from_pylist(pending, schema=schema)
    if not total:
        raise InputError("no rows: the source is empty, or every sample of it was left out")


def _write(database: Any, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    """Stream ``batches`` into the database; an error of the reader arrives as itself, not as Lance's
    wrapper."""
    failure: list[BaseException] = []

    def guarded() -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except BaseException as error:
            failure.append(error)
            raise

    try:
        database.create_table(NAME, pa.RecordBatchReader.from_batches(schema, guarded()), mode="create")
    except BaseException:
        if failure:
            raise failure[0] from None
        raise
