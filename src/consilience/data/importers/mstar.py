"""MSTAR: radar chips of ground vehicles (DARPA / AFRL, SDMS), in the original files or in two kinds of copies.

* Phoenix files: lines ``Key= value`` between ``[PhoenixHeaderVer...]`` and ``[EndofPhoenixHeader]``; from byte
  ``PhoenixHeaderLength`` on (plus ``native_header_length`` where that fits the file) ``NumberOfRows`` x
  ``NumberOfColumns`` magnitudes, big-endian float32, row by row, and as many phases.
* Folders ``{TRAIN,TEST}/CLASS/[SERIAL/]...`` of pictures, one folder a class, walked to any depth.
* The archive ``mstar_soc.parquet``: chips as JPEG with split, target, serial and depression angle.

A magnitude becomes a grey PNG of 8 bits: its square root, divided by that of the chip's own 99.9% quantile, times 255,
cut there. The root keeps dim parts of a target above the steps of 8 bits; the quantile, and not the maximum, keeps a
single bright pixel from dimming a chip; taken chip by chip, the picture depends on the chip alone. The phase is left
out. Chips keep their size, which differs by class: decode them with ``image_fit: centre``, never resized.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from consilience.data.decode import format_of
from consilience.data.pictures import IMAGE_FORMATS
from consilience.data.reading import Bad, Reading, png_bytes
from consilience.data.schema import Kind
from consilience.data.table import Row
from consilience.errors import InputError

MSTAR = "mstar_soc.parquet"
CLASSES = ("2S1", "BMP2", "BRDM_2", "BTR70", "BTR_60", "D7", "T62", "T72", "ZIL131", "ZSU_23_4")
"""The ten vehicles of the standard operating condition, as the picture copies spell them."""
STANDARD = {"BMP2": "9563", "T72": "132"}
"""Serial numbers of the usual split of one vehicle a class (2747 and 2425 chips); the other classes have one."""
SPLITS = {17: "train", 15: "test"}
"""Depression angle in degrees to split."""
SCALARS = {"serial": pa.string(), "depression": pa.int64(), "azimuth": pa.float64(), "standard": pa.bool_()}
QUANTILE = 0.999
_LOOKED_AT = 5000  # entries of a folder until it is taken for something else
_START, _END = b"[PhoenixHeader", b"[EndofPhoenixHeader]"
_COLUMNS = ("split", "target", "serial", "file", "depression_deg", "image_jpg")


@dataclass(frozen=True)
class Chip:
    """A Phoenix file, read."""

    header: dict[str, str]
    magnitude: Float[np.ndarray, "h w"]
    """float32."""

    @property
    def target(self) -> str:
        """The class as :data:`CLASSES` spells it, else as the header does."""
        return class_of(self.header.get("TargetType", ""))

    @property
    def depression(self) -> int | None:
        """Degrees, whole."""
        value = self.number("DesiredDepression")
        value = self.number("MeasuredDepression") if value is None else value
        return None if value is None else round(value)

    def number(self, key: str) -> float | None:
        """A field of the header as a number; None where there is none."""
        found = re.match(r"\s*([-+]?\d+(?:\.\d*)?)", self.header.get(key, ""))
        return None if found is None else float(found[1])


def is_mstar(path: Path, names: set[str]) -> bool:
    """Whether a file is the archive or a Phoenix file, or a folder (with entries ``names``) holds chips."""
    if path.is_file():
        return path.name == MSTAR or _is_phoenix(path)
    if MSTAR in names or _picture_root(path) is not None:
        return True
    return any(_is_numbered(file) and _is_phoenix(file) for file in islice(path.rglob("*"), _LOOKED_AT))


def read_mstar(path: Path) -> Reading:
    """Open it: grey ``image``, the vehicle as label, columns ``serial``, ``depression`` and ``azimuth`` (degrees, the
    latter of Phoenix files only) and ``standard``: whether the chip belongs to the usual split of one serial number a
    class (``--train.where standard``; without it all serials are taken).

    17 degrees are split train, 15 test, others ``depression-N``; picture folders say it themselves. Raises InputError
    for sources without chips; a broken chip is reported by its file.
    """
    archive = path / MSTAR if path.is_dir() else path
    kinds: dict[str, Kind | None] = {"image": Kind.GREY}
    if archive.name == MSTAR and archive.is_file():
        return Reading(str(archive), kinds, _archived(archive), SCALARS)
    if path.is_file():
        return Reading(str(path), kinds, iter([_phoenix_row(path, path.parent)]), SCALARS)
    pictures = _picture_root(path)
    rows = _phoenix_rows(path) if pictures is None else _picture_rows(path, pictures)
    return Reading(str(path), kinds, rows, SCALARS)


def read_phoenix(data: bytes, origin: str) -> Chip:
    """A Phoenix file's header and magnitude; InputError naming ``origin`` for what is none, is cut short, or holds
    numbers that are no magnitudes."""
    end = data.find(_END)
    if not data.startswith(_START) or end < 0:
        raise InputError(f"{origin}: no Phoenix header ({_START.decode()}... to {_END.decode()}); copy the file again")
    header: dict[str, str] = {}
    for line in data[:end].decode("latin-1").splitlines():
        key, sign, value = line.partition("=")
        if sign:
            header[key.strip()] = value.strip()
    sizes = [_whole(header, key, origin) for key in ("PhoenixHeaderLength", "NumberOfRows", "NumberOfColumns")]
    start, rows, columns = sizes
    native = int(header["native_header_length"]) if header.get("native_header_length", "").isdecimal() else 0
    count = rows * columns
    if len(data) >= start + native + 8 * count:
        start += native
    if rows < 1 or columns < 1 or len(data) < start + 4 * count:
        raise InputError(
            f"{origin}: {len(data)} bytes, but a header of {start} and {rows} x {columns} magnitudes need "
            f"{start + 4 * count}; copy the file again"
        )
    magnitude = np.frombuffer(data, ">f4", count, start).reshape(rows, columns).astype(np.float32)
    if not np.isfinite(magnitude).all() or magnitude.min() < 0:
        raise InputError(f"{origin}: magnitudes that are negative or no numbers; copy the file again")
    return Chip(header, magnitude)


def picture_of(magnitude: Float[np.ndarray, "h w"]) -> np.ndarray:
    """uint8 [h, w]: the root of the magnitude, 255 at the chip's 99.9% quantile and above; zeros stay black."""
    top = float(np.quantile(magnitude, QUANTILE))
    top = top if top > 0 else float(magnitude.max())
    scaled = np.sqrt(magnitude.astype(np.float64) / top) if top > 0 else np.zeros_like(magnitude)
    return np.round(255 * np.minimum(1.0, scaled)).astype(np.uint8)


def class_of(name: str) -> str:
    """``t72_tank``, ``zsu23-4_gun``, ``BRDM2`` and the like as :data:`CLASSES` spells them; others unchanged."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    found = [known for known in CLASSES if plain.startswith(re.sub(r"[^a-z0-9]", "", known.lower()))]
    return found[0] if found else name


def is_standard(target: str, serial: str) -> bool:
    """Whether a chip belongs to the split of one serial number a class."""
    wanted = STANDARD.get(target)
    return wanted is None or not serial or serial.upper().removeprefix("SN_").lstrip("0") == wanted


def _whole(header: dict[str, str], key: str, origin: str) -> int:
    if not header.get(key, "").isdecimal():
        raise InputError(f"{origin}: the Phoenix header has no whole number {key}; copy the file again")
    return int(header[key])


def _is_phoenix(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_START)) == _START
    except OSError:
        return False


def _is_numbered(path: Path) -> bool:
    """Whether a name ends as those of chips do (HB03333.015)."""
    return re.fullmatch(r"\.\d{2,3}", path.suffix) is not None


def _phoenix_rows(root: Path) -> Iterator[Row | Bad]:
    """Chips below ``root``, in the order of their paths; files without a Phoenix header are none."""
    for path in sorted(root.rglob("*")):
        if _is_numbered(path) and path.is_file() and _is_phoenix(path):
            yield _phoenix_row(path, root)


def _phoenix_row(path: Path, root: Path) -> Row | Bad:
    place = path.relative_to(root).as_posix()
    try:
        chip = read_phoenix(path.read_bytes(), place)
    except (InputError, OSError) as error:
        return Bad(place, "image", place, str(error).removeprefix(f"{place}: "))
    depression = chip.depression
    serial = chip.header.get("TargetSerNum", "")
    return Row(
        id=place,
        split=SPLITS.get(depression or 0, "unknown" if depression is None else f"depression-{depression}"),
        label=chip.target or None,
        values={"image": png_bytes(picture_of(chip.magnitude))},
        origins={"image": place},
        scalars={
            "serial": serial,
            "depression": depression,
            "azimuth": chip.number("TargetAz"),
            "standard": is_standard(chip.target, serial),
        },
    )


def _picture_root(path: Path) -> dict[str, Path] | None:
    """The folders ``train`` and ``test`` (in any case) of a copy in pictures, if their folders are vehicles."""
    found = {entry.name.lower(): entry for entry in path.iterdir() if entry.is_dir()}
    splits: dict[str, Path] = {name: found[name] for name in ("train", "test") if name in found}
    below = {entry.name for folder in splits.values() for entry in folder.iterdir() if entry.is_dir()}
    vehicles = {name for name in below if class_of(name) in CLASSES}
    if not splits or len(vehicles) < 2 or len(vehicles) < len(below):
        return None
    pictures = (file for folder in splits.values() for file in folder.rglob("*") if file.is_file())
    return splits if any(format_of(b"", file.name) in IMAGE_FORMATS for file in pictures) else None


def _picture_rows(root: Path, splits: dict[str, Path]) -> Iterator[Row | Bad]:
    for split, folder in splits.items():
        for path in sorted(folder.rglob("*")):
            if not path.is_file() or format_of(b"", path.name) not in IMAGE_FORMATS:
                continue
            place, parts = path.relative_to(root).as_posix(), path.relative_to(folder).parts
            target, serial = class_of(parts[0]), parts[1] if len(parts) > 2 else ""
            depression = next((angle for angle, name in SPLITS.items() if name == split), None)
            try:
                data = path.read_bytes()
            except OSError as error:
                yield Bad(place, "image", place, error.strerror or "unreadable")
                continue
            yield _row(place, split, target, serial, depression, data)


def _archived(path: Path) -> Iterator[Row]:
    try:
        entries = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file; download it again") from error
    missing = [name for name in _COLUMNS if name not in entries.column_names]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; expected {', '.join(_COLUMNS)}")
    for number, entry in enumerate(entries.select(_COLUMNS).to_pylist()):
        place = f"{entry['split']}/{entry['target']}/{entry['file']}"
        row = _row(place, entry["split"], entry["target"], entry["serial"], entry["depression_deg"], entry["image_jpg"])
        yield Row(row.id, row.split, row.values, {"image": f"{path.name}::image_jpg[{number}]"}, row.label, row.scalars)


def _row(place: str, split: str, target: str, serial: str, depression: int | None, data: bytes) -> Row:
    scalars: dict[str, Any] = {"serial": serial, "depression": depression, "azimuth": None}
    scalars["standard"] = is_standard(target, serial)
    return Row(place, split, {"image": data}, {"image": place}, target, scalars)
