"""What stores beyond this machine share: the record of whose vectors they hold, attributes, digests of rows."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, Protocol
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa

from consilience.data.table import Table
from consilience.errors import InputError
from consilience.search.stores.base import Space, Store, as_rows, refuse_foreign
from consilience.search.stores.filters import Kind, kind_of

FORMAT = 1
KEY, DIGEST, VECTOR = "index", "digest", "vector"
"""Columns that every remote store has besides its attributes; the key is the Table's ``index``."""
Index = Literal["auto", "exact", "ivf", "hnsw"]
EXACT_BELOW = 10_000
"""Rows up to which ``auto`` builds no index: every vector is compared."""


@dataclass(frozen=True)
class Record:
    """What a remote store knows of what it holds."""

    space: Space
    owner: str
    """The Table, see :func:`identity`: two Tables never mix in one place."""
    attributes: Mapping[str, Kind]
    """What filters may name besides ``index``."""

    def to_json(self) -> str:
        content = {"format": FORMAT, **asdict(self), "attributes": dict(self.attributes)}
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str, place: str) -> Record:
        """InputError when a newer version wrote it."""
        content = json.loads(text)
        if int(content["format"]) > FORMAT:
            raise InputError(f"{place} has format {content['format']}, this version reads up to {FORMAT}; upgrade")
        return cls(Space(**content["space"]), content["owner"], content["attributes"])

    @property
    def columns(self) -> dict[str, Kind]:
        """Everything that a filter may name."""
        return {KEY: "int", **self.attributes}

    def check(self, wanted: Record, place: str) -> None:
        """InputError with the remedy when the place holds another encoder's vectors, another column or Table."""
        push = "fill it anew with: consilience index push TABLE --to URL --replace, or add #NAME to the URL"
        refuse_foreign(wanted.space, self.space.fingerprint, place, push)
        if self.space != wanted.space:
            held, asked = self.space, wanted.space
            raise InputError(
                f"{place} holds {held.column} ({held.metric}, {held.width}), not {asked.column} ({asked.metric}, "
                f"{asked.width}); {push}"
            )
        if self.owner != wanted.owner:
            raise InputError(f"{place} belongs to a Table of another source; {push}")


class RemoteStore(Store, Protocol):
    """A :class:`~consilience.search.stores.base.Store` that :func:`consilience.search.push.push` keeps up to date."""

    record: Record

    def digests(self, keys: np.ndarray) -> np.ndarray:
        """int64 [n]: the digest of each of ``keys``, 0 for those that are not there."""

    def keys(self) -> Iterator[np.ndarray]:
        """All keys, int64, in blocks."""

    def build(self, index: Index) -> str:
        """Make (or keep) the index; returns what there is then: ``exact``, ``ivf`` or ``hnsw``."""

    def drop(self) -> None:
        """Remove the vectors and their record."""


def identity(table: Table) -> str:
    """16 hex digits for the Table, wherever its folder lies and however it grows: what it was imported from, and its
    modalities. (Its rows and their bytes may change; a push brings the store after them.)"""
    told = json.dumps([table.source, {name: kind.value for name, kind in table.modalities.items()}])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def described(attributes: pa.Table | None) -> dict[str, Kind]:
    """Name to kind of attribute columns; the key is no attribute. InputError for a name or type that cannot be one."""
    found: dict[str, Kind] = {}
    for field in attributes.schema if attributes is not None else ():
        if field.name == KEY:
            continue
        if field.name in (DIGEST, VECTOR) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,59}", field.name):
            raise InputError(f"{field.name!r} cannot name an attribute of a store; leave it out or rename the column")
        found[field.name] = kind_of(field.name, field.type)
    return found


_ARROW = {"int": pa.int64(), "float": pa.float64(), "text": pa.string(), "bool": pa.bool_()}


def aligned(record: Record, attributes: pa.Table | None, count: int) -> pa.Table:
    """Attributes in the record's order and types, ``count`` rows; columns that are not given are empty.

    InputError for columns that the store was not made with, text that no database takes and another number of rows.
    """
    given = described(attributes)
    for name, kind in given.items():
        if record.attributes.get(name) != kind:
            held = record.attributes.get(name, "not an attribute")
            raise InputError(
                f"attribute {name!r} is {kind}, in the store it is {held}; fill the store anew (--replace)"
            )
    if attributes is not None and attributes.num_rows != count:
        raise InputError(f"{attributes.num_rows} rows of attributes for {count} vectors; give one row a vector")
    columns = {}
    for name, kind in record.attributes.items():
        values = attributes[name].cast(_ARROW[kind]) if attributes is not None and name in given else None
        columns[name] = values if values is not None else pa.nulls(count, _ARROW[kind])
        for value in columns[name].to_pylist() if kind == "text" else ():
            if value is not None and "\0" in value:
                raise InputError(f"attribute {name!r} has a text with a zero byte; databases refuse it")
    return pa.table(columns) if columns else pa.table({KEY: pa.nulls(count, pa.int64())}).select([])


def row_digests(space: Space, vectors: np.ndarray, attributes: pa.Table) -> np.ndarray:
    """int64 [n]: 8 bytes of blake2b over each row's vector and attributes, never 0; equal rows are not sent again."""
    rows = np.ascontiguousarray(vectors).view(np.uint8).reshape(len(vectors), -1)
    values = list(zip(*(attributes[name].to_pylist() for name in attributes.column_names), strict=True))
    out = np.empty(len(rows), dtype=np.int64)
    start = hashlib.blake2b(space.fingerprint.encode(), digest_size=8)
    for place, row in enumerate(rows):
        digest = start.copy()
        digest.update(row.tobytes())
        if values:
            digest.update(repr(values[place]).encode())
        out[place] = int.from_bytes(digest.digest(), "little", signed=True) or 1
    return out


def prepared(
    record: Record, vectors: np.ndarray, attributes: pa.Table | None
) -> tuple[np.ndarray, pa.Table, np.ndarray]:
    """Vectors, attributes and digests as they are stored."""
    rows = as_rows(record.space, vectors, "vectors")
    told = aligned(record, attributes, len(rows))
    return rows, told, row_digests(record.space, rows, told)


def redacted(url: str) -> str:
    """The address without its password, for messages."""
    shown = re.sub(r"(//[^/@]*?):[^/]*@", r"\1:***@", url)
    return re.sub(r"(?i)\b(password|token)=[^&#\s]*", r"\1=***", shown)


def without_secrets(message: str, url: str) -> str:
    """The first line of a driver's message; the address's password, should the driver repeat it, is taken out."""
    line = (message.strip().splitlines() or ["no reason given"])[0]
    secret = _password(url)
    return line.replace(secret, "***").replace(unquote(secret), "***") if secret else line


def _password(url: str) -> str:
    try:
        secret = urlsplit(url).password or ""
    except ValueError:
        secret = ""
    found = re.search(r"(?i)\b(?:password|token)=([^&#\s]*)", url)
    return secret or (found[1] if found else "")


def refuse_missing(place: str, column: str) -> InputError:
    """What is raised when a store is opened that nobody has filled."""
    return InputError(f"{place} holds nothing of {column}; fill it: consilience index push TABLE --to URL")


def plan_index(index: Index, count: int) -> str:
    """``auto`` resolved for ``count`` rows."""
    return index if index != "auto" else "exact" if count <= EXACT_BELOW else "hnsw"


def as_answer(found: list[list[tuple[int, float]]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of (key, distance) as keys int64 [q, k] and distances float32 [q, k], padded with -1 and infinity."""
    keys, far = np.full((len(found), k), -1, dtype=np.int64), np.full((len(found), k), np.inf, dtype=np.float32)
    for row, answers in enumerate(found):
        for place, (key, distance) in enumerate(answers[:k]):
            keys[row, place], far[row, place] = key, distance
    return keys, far
