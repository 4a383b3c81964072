"""What every importer hands over: a stream of rows, kinds and column types; and the one way they are
written."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from PIL import Image

from consilience.data.decode import DecodeConfig, decode, image_channels
from consilience.data.schema import Kind
from consilience.data.table import Row, Table
from consilience.errors import InputError, unknown

OnBadSample = Literal["stop", "quarantine"]
_CHECK = DecodeConfig(image_size=32, n_points=32, n_faces=4096)


@dataclass(frozen=True)
class Bad:
    """A sample that cannot be read; also its line in ``quarantine.jsonl``."""

    id: str
    modality: str
    origin: str
    reason: str


@dataclass(frozen=True)
class Reading:
    """A source, opened for import. ``rows`` can be walked once."""

    source: str
    """How the Table names where it came from."""
    kinds: Mapping[str, Kind | None]
    """Modality name to kind; ``None``: pictures, grey or colour as their contents say."""
    rows: Iterator[Row | Bad]
    scalars: Mapping[str, pa.DataType] = field(default_factory=dict)
    """Arrow types of the other columns."""


def write_reading(
    reading: Reading, destination: Path, kinds: Mapping[str, str] | None, on_bad_sample: OnBadSample
) -> Table:
    """Write ``reading`` as a Table, decoding every sample once as the check that it can be read.

    Pictures whose kind is open become RGB unless all of them are stored in grey. ``kinds`` overrides. The
    first sample that cannot be decoded raises :class:`InputError` ("stop"), or its row is left out and
    listed in ``quarantine.jsonl`` ("quarantine").
    """
    if on_bad_sample not in ("stop", "quarantine"):
        raise unknown("on_bad_sample", on_bad_sample, ("stop", "quarantine"))
    chosen: dict[str, Kind | None] = dict(reading.kinds)
    for name, kind in (kinds or {}).items():
        if name not in chosen:
            raise unknown("modality", name, chosen)
        if kind not in set(Kind):
            raise unknown("kind", kind, [member.value for member in Kind])
        chosen[name] = Kind(kind)
    settled = {name: kind or Kind.GREY for name, kind in chosen.items()}
    quarantine: list[dict[str, str]] = []

    def checked() -> Iterator[Row]:
        for row in reading.rows:
            bad = row if isinstance(row, Bad) else _fault(row, chosen)
            if bad is not None:
                if on_bad_sample == "stop":
                    raise InputError(
                        f"sample {bad.id!r}, {bad.modality} from {bad.origin}: {bad.reason}; "
                        "set such samples aside with --on-bad-sample quarantine"
                    )
                quarantine.append(asdict(bad))
            elif isinstance(row, Row):
                for name, data in row.values.items():
                    if chosen[name] is None and data is not None and image_channels(data) == 3:
                        settled[name] = Kind.RGB
                yield row

    return Table.create(destination, checked(), settled, reading.source, scalars=reading.scalars, quarantine=quarantine)


def _fault(row: Row, kinds: Mapping[str, Kind | None]) -> Bad | None:
    present = {name: data for name, data in row.values.items() if data is not None}
    if not present:
        return Bad(row.id, "every modality", next(iter(row.origins.values()), "nowhere"), "nothing to read")
    for name, data in present.items():
        origin = row.origins.get(name, "")
        try:
            decode(data, kinds[name] or Kind.RGB, origin, _CHECK)
        except InputError as error:
            return Bad(row.id, name, origin, str(error))
    return None


def png_bytes(pixels: np.ndarray) -> bytes:
    """uint8 [h, w] grey, [h, w, 3] RGB or [h, w, 4] RGBA as a PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def npy_bytes(values: np.ndarray) -> bytes:
    """An array as the bytes of a .npy file."""
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    return stream.getvalue()


def text_or_none(value: Any) -> str | None:
    """A label as text: whole numbers without a decimal point, empty cells as ``None``."""
    if value is None or value == "":
        return None
    if isinstance(value, float):
        return None if value != value else str(int(value)) if value.is_integer() else str(value)
    return str(value)
