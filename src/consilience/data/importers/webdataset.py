"""WebDataset shards: tar files in which neighbouring members with one key are one sample.

The key is the member's path up to the first dot of its base name, the rest says what the member is:

    jpg png webp gif bmp tiff      image                    txt text caption          text
    npy npz ply off obj stl glb    points                   json                      other columns
    vec.npy, regions.npy           vector, regions          cls                       label

``NAME.jpg`` (``left.jpg`` and ``right.jpg``, say) is a modality called NAME. In a JSON member ``caption`` or
``text`` is the text where there is no text member, and ``id``, ``split`` and ``label`` mean what they say.
Nothing is unpacked to disk: members' paths are keys and nothing else.
"""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import pyarrow as pa

from consilience.data.decode import ARRAY_FORMATS, GEOMETRY_FORMATS
from consilience.data.importers.manifest import kind_of_format
from consilience.data.pictures import IMAGE_FORMATS
from consilience.data.reading import Bad, Reading, text_or_none
from consilience.data.schema import Kind
from consilience.data.table import Row
from consilience.errors import InputError

SHARD = ".tar"
_BLOCK = 512
_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_SPLIT = re.compile(r"(?:^|[^a-z])(train|training|val|valid|validation|dev|test|testing)(?![a-z])")
_SPLITS = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation", "testing": "test"}
_FORMATS = {"jpg": "jpeg", "tif": "tiff"} | {name: name for name in (*IMAGE_FORMATS, *ARRAY_FORMATS, *GEOMETRY_FORMATS)}
_TEXTS = ("txt", "text", "caption")
_ARRAYS = {"vec": ("vector", Kind.VECTOR), "vector": ("vector", Kind.VECTOR), "regions": ("regions", Kind.REGIONS)}
_OWN = ("id", "split", "label")
_log = logging.getLogger(__name__)


@dataclass
class _Sample:
    key: str
    shard: Path
    members: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    """Extension to name and content."""


def is_pattern(path: Path) -> bool:
    """Whether ``path`` names several shards, such as ``train-{000..003}.tar``."""
    return path.suffix == SHARD and _RANGE.search(path.name) is not None


def is_webdataset(names: set[str]) -> bool:
    """Whether a folder with entries ``names`` holds shards."""
    return any(name.endswith(SHARD) for name in names)


def read_webdataset(source: Path) -> Reading:
    """Open one shard, a folder of shards, or a pattern such as ``train-{000..003}.tar``.

    The split is the sample's JSON's, else train, val or test when the shard's name holds that word, else
    ``train``; the id is the JSON's, else ``SPLIT/KEY``. The members' names and the JSON are read once at
    opening, because a Table's columns are known before its rows; samples are then streamed. Members of
    unknown type are left out, with a warning. Raises :class:`InputError` for shards that are missing,
    truncated or no tar files, and for two members of one sample that mean the same modality.
    """
    shards = _shards(source)
    kinds: dict[str, Kind | None] = {}
    types: dict[str, set[str]] = {}
    unknown: set[str] = set()
    for shard in shards:
        for member in _members(shard):
            _, extension = _split_name(member.info.name)
            role = _role(extension)
            if extension == "json":
                for name, value in (_json(member.read()) or {}).items():
                    types.setdefault(name, set()).add(_type_of(value))
            elif role is not None:
                kinds.setdefault(*role)
            elif extension != "cls":
                unknown.add(extension)
    captions = [name for name in ("caption", "text") if types.get(name, set()) & {"str"}]
    if captions:
        kinds.setdefault("text", Kind.TEXT)
    if unknown:
        _log.warning("%s: members ending in %s are left out", source, ", ".join(f".{e}" for e in sorted(unknown)))
    if not kinds:
        raise InputError(f"{source} holds no pictures, shapes, captions or features; name members KEY.jpg, KEY.txt")
    names = {name: _column(name, kinds) for name in types if name not in (*_OWN, *captions)}
    scalars = {column: _arrow(types[name]) for name, column in names.items()}
    rows = (_row(sample, captions, names, scalars) for shard in shards for sample in _samples(shard))
    return Reading(str(source), kinds, rows, scalars)


def _shards(source: Path) -> list[Path]:
    if is_pattern(source):
        parts = _RANGE.split(source.name)
        ranges = [
            [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
            for first, last in zip(parts[1::3], parts[2::3])
        ]
        filled = (zip(parts[::3], [*choice, ""]) for choice in product(*ranges))
        shards = [source.with_name("".join(a + b for a, b in pairs)) for pairs in filled]
        if not shards:
            raise InputError(f"{source} counts downwards and names no shard; write {{000..003}}")
    else:
        shards = sorted(source.glob(f"*{SHARD}")) if source.is_dir() else [source]
    for shard in shards:
        if not shard.is_file():
            raise InputError(f"shard {shard} does not exist; download it again or correct the range")
    return shards


@dataclass(frozen=True)
class _Member:
    archive: tarfile.TarFile
    info: tarfile.TarInfo

    def read(self) -> bytes:
        file = self.archive.extractfile(self.info)
        return b"" if file is None else file.read()


def _members(shard: Path) -> Iterator[_Member]:
    """The regular files of a shard, in order, by one pass without seeking."""
    try:
        with _open(shard) as file:
            with tarfile.open(fileobj=file, mode="r|") as archive:
                for info in archive:
                    if info.isfile() and PurePosixPath(info.name).name[:1] not in ("", "."):
                        yield _Member(archive, info)
                    cast(Any, archive).members.clear()  # tarfile keeps every header otherwise
            while file.read(1 << 20):  # a compressed file that ends too early says so at its end
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"shard {shard} is truncated or no tar file ({reason}); download it again") from error


def _open(shard: Path) -> IO[bytes]:
    """The shard, decompressed. A plain tar must end with a block of zeros: tarfile takes a file that was cut
    between two members for a whole one."""
    size = shard.stat().st_size
    with shard.open("rb") as file:
        begin = file.read(2)
        file.seek(max(0, size - _BLOCK))
        end = file.read()
    if begin in _COMPRESSED:
        return cast(IO[bytes], cast(Any, _COMPRESSED[begin])(shard, "rb"))
    if size % _BLOCK or end.strip(b"\0"):
        raise tarfile.ReadError("no end mark")
    return shard.open("rb")


def _samples(shard: Path) -> Iterator[_Sample]:
    sample: _Sample | None = None
    for member in _members(shard):
        key, extension = _split_name(member.info.name)
        if sample is None or sample.key != key:
            if sample is not None:
                yield sample
            sample = _Sample(key, shard)
        if extension in sample.members:
            raise InputError(f"shard {shard}: {member.info.name} occurs twice in one sample; keys must be unique")
        if extension in ("json", "cls") or _role(extension) is not None:
            sample.members[extension] = (member.info.name, member.read())
    if sample is not None:
        yield sample


def _row(sample: _Sample, captions: list[str], names: dict[str, str], scalars: dict[str, pa.DataType]) -> Row | Bad:
    shard, split = sample.shard, _split_of(sample.shard)
    content: dict[str, Any] = {}
    values: dict[str, bytes | None] = {}
    origins: dict[str, str] = {}
    label: str | None = None
    for extension, (member, data) in sample.members.items():
        origin = f"{shard.name}::{member}"
        role = _role(extension)
        if extension == "json":
            found = _json(data)
            if found is None:
                return Bad(f"{split}/{sample.key}", "json", origin, "no JSON object; repair or remove it")
            content = found
        elif role is None:
            label = data.decode("utf-8", "replace").strip() or None
        elif role[0] in values:
            raise InputError(f"shard {shard}: {member} and another member of {sample.key!r} are both its {role[0]}")
        elif role[1] is not Kind.TEXT or data.strip():
            values[role[0]], origins[role[0]] = data, origin
    written = next((content[name] for name in captions if isinstance(content.get(name), str)), "")
    if "text" not in values and written.strip():
        values["text"], origins["text"] = written.encode(), f"{shard.name}::{sample.key}.json"
    split = text_or_none(content.get("split")) or split
    return Row(
        id=text_or_none(content.get("id")) or f"{split}/{sample.key}",
        split=_SPLITS.get(split, split),
        label=text_or_none(content.get("label")) or label,
        values=values,
        origins=origins,
        scalars={column: _scalar(content.get(name), scalars[column]) for name, column in names.items()},
    )


def _split_name(name: str) -> tuple[str, str]:
    """Key and extension (lower case) of a member."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _role(extension: str) -> tuple[str, Kind | None] | None:
    """Modality and kind of a member; ``None`` for what is no modality."""
    name, _, last = extension.rpartition(".")
    name = re.sub(r"\W", "_", name)
    if last in _TEXTS:
        return name or "text", Kind.TEXT
    form = _FORMATS.get(last)
    if form is None:
        return None
    if form in ARRAY_FORMATS and name in _ARRAYS:
        return _ARRAYS[name]
    kind = kind_of_format(name, form)
    return name or ("image" if kind is None else "points"), kind


def _split_of(shard: Path) -> str:
    found = _SPLIT.search(shard.name.lower())
    return "train" if found is None else _SPLITS.get(found[1], found[1])


def _json(data: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(data)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    if type(value) is int:
        return "int" if abs(value) < 1 << 63 else "other"
    return type(value).__name__ if isinstance(value, bool | float | str) else "other"


def _arrow(types: set[str]) -> pa.DataType:
    types = types - {"null"}
    if types == {"bool"}:
        return pa.bool_()
    if types == {"int"}:
        return pa.int64()
    return pa.float64() if types and types <= {"int", "float"} else pa.string()


def _scalar(value: Any, kind: pa.DataType) -> Any:
    if value is None or not pa.types.is_string(kind) or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _column(name: str, kinds: dict[str, Kind | None]) -> str:
    """A column name that SQL filters can use and that nothing else has."""
    clean = re.sub(r"\W", "_", name)
    taken = clean in (*kinds, *_OWN, "index") or clean.startswith("origin_") or not clean or clean[0].isdigit()
    return f"json_{clean}" if taken else clean
