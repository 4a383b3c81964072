"""Rows of the Table as the service shows them: facts, raw bytes of a safe type, thumbnails, shapes, facets, places."""

from __future__ import annotations

import io
import struct
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

from consilience.audit.thumbnails import thumbnail
from consilience.data.decode import format_of
from consilience.data.pictures import IMAGE_FORMATS, MAX_PIXELS
from consilience.data.schema import Kind
from consilience.data.table import Table
from consilience.embedding.layout import map_column
from consilience.embedding.thumbnails import thumb_column
from consilience.errors import InputError
from consilience.serve.decoding import shape_of_sample
from consilience.serve.limits import Refusal

SHOWN_KINDS = (Kind.POINTS, Kind.MESH)
"""What the viewer turns."""
LABELS, MAP_POINTS, SIDE = 500, 20_000, 256
_CACHE_BYTES = 64 << 20
_WORDS = 400


@dataclass(frozen=True)
class Raw:
    """Bytes to send, and what they are."""

    content: bytes
    media: str
    name: str
    """A file name made of key, modality and format: nothing of the source's own name."""
    inline: bool
    """Whether a browser may show it (pictures and plain text); everything else is a download."""


class Catalogue:
    """One version of a Table, read by key. Thread-safe."""

    def __init__(self, table: Table) -> None:
        self.table = table
        keys = table.indices()
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        self._cache: OrderedDict[tuple[str, int, str], bytes] = OrderedDict()
        self._cached = 0
        self._lock = Lock()
        self._facets: dict[str, dict[str, int]] | None = None

    def __len__(self) -> int:
        return len(self._keys)

    def has(self, index: int) -> bool:
        """Whether there is a row with key ``index``."""
        if not abs(index) < 1 << 62:
            return False
        place = int(np.searchsorted(self._keys, index))
        return place < len(self._keys) and int(self._keys[place]) == index

    def offset(self, index: int) -> int:
        """Position of the row with key ``index``; :class:`Refusal` 404 when there is none."""
        if not self.has(index):
            raise Refusal(404, f"the Table has no row {index}", cause="absent")
        return int(self._order[np.searchsorted(self._keys, index)])

    def row(self, index: int, columns: Sequence[str]) -> dict[str, Any]:
        """The named columns of one row."""
        taken = self.table.take(np.array([self.offset(index)]), columns)
        return dict(taken.to_pylist()[0])

    def kind(self, modality: str) -> Kind:
        """:class:`Refusal` 404 for a modality that the Table lacks."""
        if modality not in self.table.modalities:
            raise Refusal(
                404, f"the Table has {', '.join(self.table.modalities)}, no {modality[:40]!r}", cause="absent"
            )
        return self.table.modalities[modality]

    def facts(self, index: int) -> dict[str, Any]:
        """Everything about a row that is no sample: id, split, label, modalities there, plain columns."""
        own = ["id", "index", "split", "label"]
        names = self.table.modalities
        plain = [
            field.name
            for field in self.table.schema
            if field.name not in (*own, *names)
            and not field.name.startswith(("origin_", "thumb_"))
            and (pa.types.is_primitive(field.type) or pa.types.is_string(field.type))
        ]
        row = self.row(index, [*own, *plain, *(f"origin_{name}" for name in names)])
        return {
            **{name: row[name] for name in own},
            "modalities": {
                name: {"kind": kind.value, "origin": shown_origin(row[f"origin_{name}"])}
                for name, kind in names.items()
                if row[f"origin_{name}"] is not None
            },
            "columns": {name: _plain(row[name]) for name in plain if row[name] is not None},
        }

    def words(self, index: int, modality: str) -> str | None:
        """The beginning of a caption, None where the row has none."""
        data = self._bytes(index, modality)[0]
        return None if data is None else data.decode("utf-8", "replace")[:_WORDS]

    def captions(self, indices: Sequence[int], modality: str) -> dict[int, str]:
        """The beginnings of several captions, in one read."""
        offsets = [self.offset(index) for index in indices if self.has(index)]
        rows = self.table.take(np.array(offsets, dtype=np.int64), ["index", modality])
        return {
            row["index"]: row[modality].decode("utf-8", "replace")[:_WORDS]
            for row in rows.to_pylist()
            if row[modality] is not None
        }

    def some(self, k: int, split: Sequence[str], label: Sequence[str], modality: str | None) -> list[dict[str, Any]]:
        """Up to ``k`` rows that pass the filters and have the modality, evenly chosen over the Table."""
        where = where_of(split, label)
        if modality is not None:
            self.kind(modality)
            there = f"origin_{modality} is not null"
            where = f"({where}) and {there}" if where else there
        offsets = self.table.select(where)
        chosen = offsets[np.unique(np.linspace(0, len(offsets) - 1, min(k, len(offsets))).astype(np.int64))]
        names = self.table.modalities
        rows = self.table.take(chosen, ["id", "index", "split", "label", *(f"origin_{name}" for name in names)])
        return [
            {
                **{name: row[name] for name in ("id", "index", "split", "label")},
                "modalities": [name for name in names if row[f"origin_{name}"] is not None],
            }
            for row in rows.to_pylist()
        ]

    def raw(self, index: int, modality: str) -> Raw:
        """The stored bytes; :class:`Refusal` 404 where the row lacks the modality."""
        kind = self.kind(modality)
        data, origin = self._bytes(index, modality)
        if data is None:
            raise Refusal(404, f"row {index} has no {modality}", cause="absent")
        form = format_of(data, origin, kind)
        if form == "reference":
            raise Refusal(404, f"row {index} holds no bytes of {modality}, but a place in another file", cause="absent")
        if kind is Kind.TEXT:
            return Raw(data, "text/plain; charset=utf-8", f"{index}-{modality}.txt", True)
        if kind.is_image and form in IMAGE_FORMATS:
            return Raw(data, f"image/{form}", f"{index}-{modality}.{form}", form != "tiff")
        return Raw(data, "application/octet-stream", f"{index}-{modality}.{form or 'bin'}", False)

    def thumbnail(self, index: int, modality: str) -> bytes:
        """A small PNG: of a picture up to :data:`SIDE` pixels a side, made of the stored bytes; of anything else the
        Table's thumbnail, made where it has none. :class:`Refusal` 404 where there is nothing to see."""
        kind = self.kind(modality)
        found = self._cached_bytes("thumb", index, modality)
        if found is not None:
            return found
        column = thumb_column(modality)
        there = not kind.is_image and column in self.table.columns
        stored = self.row(index, [column])[column] if there else None
        if stored is None:
            data, origin = self._bytes(index, modality)
            made = _small_picture(data) if data is not None and kind.is_image else thumbnail(data, kind, origin)
            if isinstance(made, str):
                raise Refusal(404, f"row {index} has no picture of {modality}: {made}", cause="absent")
            stored = made
        self._keep("thumb", index, modality, stored)
        return bytes(stored)

    def shape(self, index: int, modality: str) -> bytes:
        """What the viewer draws, see :func:`packed_shape`; :class:`Refusal` 404 for what is no shape."""
        kind = self.kind(modality)
        if kind not in SHOWN_KINDS:
            raise Refusal(404, f"{modality} is {kind.value}, which has no shape", cause="absent")
        found = self._cached_bytes("shape", index, modality)
        if found is None:
            data, origin = self._bytes(index, modality)
            if data is None:
                raise Refusal(404, f"row {index} has no {modality}", cause="absent")
            try:
                found = packed_shape(shape_of_sample(data, format_of(data, origin), kind))
            except InputError as error:
                raise Refusal(404, f"{modality} of row {index} cannot be shown: {error}", cause="absent") from error
            self._keep("shape", index, modality, found)
        return found

    def vector(self, index: int, column: str) -> np.ndarray:
        """The stored vector float32 [d] of a row; :class:`Refusal` 404 where it has none."""
        values = self.row(index, [column])[column] if column in self.table.columns else None
        if values is None:
            raise Refusal(404, f"row {index} has nothing in {column}; fill it with: consilience index", cause="absent")
        return np.array(values, dtype=np.float32)

    def facets(self) -> dict[str, dict[str, int]]:
        """Rows by split and by label (the :data:`LABELS` most frequent), counted once."""
        if self._facets is None:
            rows = self.table.take(self.table.select(), ["split", "label"])
            split = Counter(name for name in rows["split"].to_pylist() if name is not None)
            label = Counter(name for name in rows["label"].to_pylist() if name is not None)
            numeric = all(name.lstrip("-").isdecimal() for name in label)
            most = sorted(label.most_common(LABELS), key=lambda entry: int(entry[0]) if numeric else entry[0])
            self._facets = {"split": dict(sorted(split.items())), "label": dict(most)}
        return self._facets

    def positions(self, modality: str, limit: int) -> dict[str, Any] | None:
        """Places on the 2-D map of the rows that have one, at most ``limit``, evenly chosen; None without a map."""
        column = map_column(modality)
        if column not in self.table.columns:
            return None
        offsets = self.table.select(f"{column} is not null")
        step = max(1, -(-len(offsets) // max(1, min(limit, MAP_POINTS))))
        rows = self.table.take(offsets[::step], ["index", "label", "split", column])
        places = rows[column].combine_chunks().flatten().to_numpy().reshape(-1, 2).astype(np.float64).round(4)
        return {
            "modality": modality,
            "rows": len(offsets),
            "index": rows["index"].to_pylist(),
            "x": places[:, 0].tolist(),
            "y": places[:, 1].tolist(),
            "label": rows["label"].to_pylist(),
            "split": rows["split"].to_pylist(),
        }

    def _bytes(self, index: int, modality: str) -> tuple[bytes | None, str]:
        self.kind(modality)
        row = self.row(index, [modality, f"origin_{modality}"])
        return row[modality], row[f"origin_{modality}"] or ""

    def _cached_bytes(self, what: str, index: int, modality: str) -> bytes | None:
        with self._lock:
            found = self._cache.get((what, index, modality))
            if found is not None:
                self._cache.move_to_end((what, index, modality))
            return found

    def _keep(self, what: str, index: int, modality: str, content: bytes) -> None:
        with self._lock:
            if (what, index, modality) in self._cache:
                return
            self._cache[what, index, modality] = content
            self._cached += len(content)
            while self._cached > _CACHE_BYTES and self._cache:
                self._cached -= len(self._cache.popitem(last=False)[1])


def _small_picture(data: bytes) -> bytes | str:
    """A picture that fits into :data:`SIDE` squared, as PNG; why not, where it cannot be read."""
    try:
        picture: Image.Image = Image.open(io.BytesIO(data), formats=[name.upper() for name in IMAGE_FORMATS])
        if picture.width * picture.height > MAX_PIXELS:
            return "too large"
        picture.draft("RGB", (2 * SIDE, 2 * SIDE))
        picture = ImageOps.exif_transpose(picture)
        if picture.mode not in ("L", "RGB", "RGBA"):
            picture = picture.convert("RGBA" if "A" in picture.mode or "transparency" in picture.info else "RGB")
        picture.thumbnail((SIDE, SIDE))
        stream = io.BytesIO()
        picture.save(stream, format="PNG")
    except Exception as error:  # the parsers raise whatever they stumble over
        return f"unreadable ({type(error).__name__})"
    return stream.getvalue()


def packed_shape(shape: np.ndarray) -> bytes:
    """Float32 [p, 3] as ``PNTS``, float32 [f, 9] as ``TRIS``; then the count (uint32) and the numbers, all of it
    little-endian."""
    mark = b"PNTS" if shape.shape[1] == 3 else b"TRIS"
    return mark + struct.pack("<I", len(shape)) + np.ascontiguousarray(shape, dtype="<f4").tobytes()


def shown_origin(origin: str) -> str:
    """Where a sample came from, without the folders of this machine."""
    return PurePath(origin).name if PurePath(origin).is_absolute() else origin


def where_of(split: Sequence[str], label: Sequence[str]) -> str | None:
    """SQL that lets pass rows of one of the splits and one of the labels; None when nothing is asked."""
    parts = [
        f"{column} in ({', '.join(_quoted(value) for value in values)})"
        for column, values in (("split", split), ("label", label))
        if values
    ]
    return " and ".join(parts) or None


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _plain(value: Any) -> Any:
    return value if not isinstance(value, float) or np.isfinite(value) else None
