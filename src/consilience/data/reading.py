"""What every importer hands over: a stream of rows, kinds and column types; and the one way they are
written."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from PIL import Image

from consilience.data.pictures import image_channels
from consilience.data.schema import Kind
from consilience.data.sizes import SampleError, Sizes
from consilience.data.table import Row, Table
from consilience.errors import InputError, unknown

OnBadSample = Literal["stop", "quarantine"]


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
    sizes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of :class:`~consilience.data.decode.DecodeConfig` whose values the source knows, such as
    ``{"tokenizer": "words:/data/vocab.json", "regions": 36}``; the others are measured."""


def write_reading(
    reading: Reading,
    destination: Path,
    kinds: Mapping[str, str] | None,
    on_bad_sample: OnBadSample,
    *,
    tokenizer: str | None = None,
) -> Table:
    """Write ``reading`` as a Table, decoding every sample once as the check that it can be read.

    Pictures whose kind is open become RGB unless all of them are stored in grey. ``kinds`` overrides. The
    first sample that cannot be decoded raises :class:`InputError` ("stop"), or its row is left out and
    listed in ``quarantine.jsonl`` ("quarantine").

    ``tokenizer``: how captions become tokens, instead of what the source says: a spec of
    :mod:`consilience.data.text`, or ``fit-words`` (words seen at least four times in split train) or
    ``fit-bpe:SIZE`` to fit one. Its file is kept in the Table's folder. What captions and features need
    (``tokenizer``, ``max_tokens`` up to 128, ``regions``, ``region_width``, ``vector_width``) goes into
    :attr:`Table.sizes`.
    """
    check_choice(on_bad_sample)
    chosen: dict[str, Kind | None] = dict(reading.kinds)
    for name, kind in (kinds or {}).items():
        if name not in chosen:
            raise unknown("modality", name, chosen)
        if kind not in set(Kind):
            raise unknown("kind", kind, [member.value for member in Kind])
        chosen[name] = Kind(kind)
    settled = {name: kind or Kind.GREY for name, kind in chosen.items()}
    measured = Sizes(chosen, reading.sizes, tokenizer)
    quarantine: list[dict[str, str]] = []
    sizes: dict[str, Any] = {}
    files: dict[str, str] = {}

    def checked() -> Iterator[Row]:
        for row in reading.rows:
            bad = row if isinstance(row, Bad) else fault(row, measured)
            if bad is not None:
                quarantine.append(set_aside(bad, on_bad_sample))
            elif isinstance(row, Row):
                for name, data in row.values.items():
                    if chosen[name] is None and data is not None and image_channels(data) == 3:
                        settled[name] = Kind.RGB
                yield row
        found = measured.finish()
        sizes.update(found[0])
        files.update(found[1])

    return Table.create(
        destination,
        checked(),
        settled,
        reading.source,
        scalars=reading.scalars,
        quarantine=quarantine,
        sizes=sizes,
        files=files,
    )


def check_choice(on_bad_sample: str) -> None:
    """InputError for what is no :data:`OnBadSample`."""
    if on_bad_sample not in get_args(OnBadSample):
        raise unknown("on_bad_sample", on_bad_sample, get_args(OnBadSample))


def set_aside(bad: Bad, on_bad_sample: OnBadSample) -> dict[str, str]:
    """The quarantine's line for a sample that cannot be read, or InputError naming it ("stop")."""
    if on_bad_sample == "stop":
        raise InputError(
            f"sample {bad.id!r}, {bad.modality} from {bad.origin}: {bad.reason}; "
            "set such samples aside with --on-bad-sample quarantine"
        )
    return asdict(bad)


def fault(row: Row, measured: Sizes) -> Bad | None:
    """What is wrong with a row; one that is sound is counted."""
    try:
        sizes = measured.prove(row)
    except SampleError as error:
        return Bad(row.id, error.modality, row.origins.get(error.modality, ""), str(error))
    if not sizes:
        return Bad(row.id, "every modality", next(iter(row.origins.values()), "nowhere"), "nothing to read")
    measured.add(row, sizes)
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
