"""Feature arrays: regions of a picture and single vectors, from the bytes of a .npy file or from one row of a
large .npy file that stays where it is.

Published features come as one array of several gigabytes a split. A Table then holds *references*: a few
bytes that name file and row. A row is read with one positioned read (``pread``) on a handle that is kept per
process and file. A memory map would do the same with less code, but the pages it touched count as resident
memory, and a file that is cut short under a map kills the process instead of raising an error.
"""

from __future__ import annotations

import io
import json
import math
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from consilience.errors import InputError

_MAGIC = b"consilience.row "
_NPY = b"\x93NUMPY"
_HEADER = 1 << 16
_ARRAYS = 64
"""Files kept open per process."""


@dataclass(frozen=True)
class NpyFile:
    """An open .npy file of samples, one a row: [n, ...], of a real number type, in C order."""

    path: str
    handle: io.FileIO
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int
    """Bytes before the first row."""

    def __len__(self) -> int:
        return self.shape[0]

    def row(self, row: int) -> np.ndarray:
        """Row ``row`` as an array of shape ``shape[1:]``; :class:`InputError` when the file ends before it."""
        count = math.prod(self.shape[1:])
        size = count * self.dtype.itemsize
        data = os.pread(self.handle.fileno(), size, self.start + row * size)
        if len(data) != size:
            raise InputError(f"{self.path} row {row}: the file ends inside it; copy or download the file again")
        return np.frombuffer(data, self.dtype, count).reshape(self.shape[1:])


def npy_file(path: Path) -> NpyFile:
    """The .npy file at ``path``, opened once per process and again when it was replaced.

    Raises :class:`InputError` when it is missing, no array of real numbers with rows, stored by column, or
    shorter than its header promises.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); the samples refer to it, put it back") from error
    return _opened(os.getpid(), str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns)


def reference(path: Path, row: int, mask: Path | None = None) -> bytes:
    """Bytes that stand for row ``row`` of the .npy file ``path``: its absolute path, the row, and the file's
    size, by which a changed file is noticed.

    ``mask``: a .npy file [n, r] in which 0 marks regions that are padding; they decode to rows of zeros.
    """
    path = path.absolute()
    content: dict[str, Any] = {"path": str(path), "row": int(row), "size": path.stat().st_size}
    if mask is not None:
        content["mask"] = str(mask.absolute())
    return _MAGIC + json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()


def is_reference(data: bytes) -> bool:
    """Whether ``data`` was made by :func:`reference`."""
    return data.startswith(_MAGIC)


def npy_array(data: bytes) -> np.ndarray:
    """The array in the bytes of a .npy file, without copying the values. Pickled objects are never loaded.

    Raises :class:`InputError` for anything else and for bytes that end before the array does.
    """
    try:
        shape, by_column, dtype, start = _header(data)
        count = math.prod(shape)
        if start + count * dtype.itemsize > len(data):
            raise ValueError(f"truncated: the header promises {count * dtype.itemsize} bytes")
        return np.frombuffer(data, dtype, count, start).reshape(shape, order="F" if by_column else "C")
    except Exception as error:
        raise InputError(f"broken NumPy file ({_reason(error)}); repair or remove it") from error


def shape_of(data: bytes) -> tuple[int, ...]:
    """Shape of a sample ([r, d] or [d]), from the header alone. Raises :class:`InputError` like decoding."""
    if is_reference(data):
        return _target(data)[0].shape[1:]
    try:
        return _header(data)[0]
    except Exception as error:
        raise InputError(f"broken NumPy file ({_reason(error)}); repair or remove it") from error


def decode_regions(data: bytes, regions: int, width: int) -> Float32[np.ndarray, "{regions} {width}"]:
    """Features of the regions of a picture, float32 [regions, width], from [r, width] real numbers.

    Fewer regions are padded with rows of zeros. Raises :class:`InputError` naming the flag for more regions
    than ``regions`` or another width, and for other shapes, NaN and infinite values (in float32).
    """
    values, mask, place = _values(data)
    if values.ndim != 2:
        raise InputError(f"{place}feature array has shape {values.shape}; expected [regions, width]")
    if values.shape[1] != width:
        raise InputError(
            f"{place}regions are {values.shape[1]} wide, not {width}; set --method.encoders.region_width "
            f"{values.shape[1]}"
        )
    if len(values) > regions:
        raise InputError(
            f"{place}{len(values)} regions, more than {regions}; set --method.encoders.regions {len(values)}"
        )
    out = np.zeros((regions, width), np.float32)
    with np.errstate(over="ignore"):
        out[: len(values)] = values
    if mask is not None:
        if mask.shape != (len(values),):
            raise InputError(f"{place}mask has shape {mask.shape} for {len(values)} regions; give one value a region")
        out[: len(values)][mask == 0] = 0
    return _finite(out, place)


def decode_vector(data: bytes, width: int) -> Float32[np.ndarray, " {width}"]:
    """One feature vector, float32 [width], from [d] real numbers; a narrower one is padded with zeros.

    Raises :class:`InputError` naming the flag for a wider one, and for other shapes, NaN and infinite values.
    """
    values, _, place = _values(data)
    if values.ndim != 1:
        raise InputError(f"{place}feature array has shape {values.shape}; expected one vector [width]")
    if len(values) > width:
        raise InputError(
            f"{place}vector of {len(values)} values, more than {width}; set --method.encoders.vector_width "
            f"{len(values)}"
        )
    out = np.zeros(width, np.float32)
    with np.errstate(over="ignore"):
        out[: len(values)] = values
    return _finite(out, place)


def _values(data: bytes) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Array, mask of real regions, and how errors name the sample (bytes are named by the caller)."""
    if not is_reference(data):
        values = npy_array(data)
        if values.dtype.kind not in "fiu":
            raise InputError(f"array of {values.dtype}; features are real numbers")
        return values, None, ""
    file, row, masks = _target(data)
    return file.row(row), None if masks is None else masks.row(row), f"{file.path} row {row}: "


def _target(data: bytes) -> tuple[NpyFile, int, NpyFile | None]:
    try:
        content = json.loads(data[len(_MAGIC) :])
        path, row, size = Path(content["path"]), int(content["row"]), int(content["size"])
        mask = content.get("mask")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"damaged reference to a feature file ({_reason(error)}); import the source again") from error
    file = npy_file(path)
    if os.fstat(file.handle.fileno()).st_size != size:
        raise InputError(f"{path} row {row}: the file changed since the import; put it back or import the source again")
    masks = None if mask is None else npy_file(Path(mask))
    for found in (file, masks):
        if found is not None and not 0 <= row < len(found):
            raise InputError(f"{found.path} has {len(found)} rows, no row {row}; import the source again")
    return file, row, masks


# The process id is part of the key, so that a forked worker opens its own handle; inode, size and time are, so
# that a replaced file is opened again.
@lru_cache(maxsize=_ARRAYS)
def _opened(process: int, path: str, inode: int, size: int, time: int) -> NpyFile:
    try:
        handle = io.FileIO(path)
        shape, by_column, dtype, start = _header(handle.read(_HEADER))
        if dtype.kind not in "fiub" or not math.prod(shape[1:]) or not shape or (by_column and len(shape) > 1):
            order = " stored by column" if by_column else ""
            raise ValueError(f"array {shape} of {dtype}{order}; expected rows of numbers in C order")
        if start + math.prod(shape) * dtype.itemsize > size:
            raise ValueError(f"truncated: the header promises {math.prod(shape) * dtype.itemsize} bytes")
    except Exception as error:
        raise InputError(f"{path} is not a usable .npy file ({_reason(error)}); write or download it again") from error
    return NpyFile(path, handle, shape, dtype, start)


def _header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, Fortran order, dtype and length of the header of a .npy file that begins with ``data``."""
    if not data.startswith(_NPY):
        raise ValueError("it does not begin like one" if data else "it is empty")
    wide = data[6:7] != b"\x01"
    start = 12 + int.from_bytes(data[8:12], "little") if wide else 10 + int.from_bytes(data[8:10], "little")
    return *_parsed(data[:start]), start


@lru_cache(maxsize=64)
def _parsed(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    stream = io.BytesIO(header)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_column, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded")
    return shape, by_column, dtype


def _finite(values: np.ndarray, place: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise InputError(f"{place}NaN, infinite or huge feature values; repair or remove the sample")
    return values


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return (text or type(error).__name__)[:160]
