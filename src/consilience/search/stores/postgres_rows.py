"""Rows on their way to PostgreSQL: its binary COPY format, and queries as text."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from consilience.search.stores.base import Space

_BLOCK = 1000  # rows of one piece of a COPY


def query_texts(space: Space, queries: np.ndarray) -> list[str]:
    """Vectors or packed codes as pgvector writes them: ``[0.5,-1.0]``, or a string of bits in the code's order."""
    if space.metric == "cosine":
        return ["[" + ",".join(map(repr, row)) + "]" for row in queries.tolist()]
    bits = np.unpackbits(queries, axis=1, bitorder="little")
    return [bytes(row + 48).decode() for row in bits]


def binary_rows(
    space: Space, keys: np.ndarray, digests: np.ndarray, vectors: np.ndarray, attributes: pa.Table
) -> Iterator[bytes]:
    """PostgreSQL's binary COPY format: fixed parts as one structured array, attributes value by value."""
    if space.metric == "cosine":
        inner = [("dim", ">i2"), ("unused", ">i2"), ("data", ">f4", (space.width,))]
    else:
        inner = [("bits", ">i4"), ("data", "u1", (space.columns,))]
    kind = np.dtype(
        [("fields", ">i2"), ("l0", ">i4"), ("key", ">i8"), ("l1", ">i4"), ("digest", ">i8"), ("l2", ">i4"), *inner]
    )
    rows = np.zeros(len(keys), dtype=kind)
    rows["fields"], rows["l0"], rows["l1"] = 3 + attributes.num_columns, 8, 8
    rows["key"], rows["digest"] = keys, digests
    rows["l2"] = 4 + rows["data"][:1].nbytes
    if space.metric == "cosine":
        rows["dim"], rows["data"] = space.width, vectors
    else:
        # their order of bits inside a byte is the other way round
        rows["bits"] = space.width
        rows["data"] = np.packbits(np.unpackbits(vectors, axis=1, bitorder="little"), axis=1)
    columns = [[_field(value) for value in column.to_pylist()] for column in attributes.columns]
    yield b"PGCOPY\n\xff\r\n\0" + bytes(8)
    for start in range(0, len(rows), _BLOCK):
        heads = [row.tobytes() for row in rows[start : start + _BLOCK]]
        parts = zip(heads, *(column[start : start + _BLOCK] for column in columns), strict=True)
        yield b"".join(piece for row in parts for piece in row)
    yield b"\xff\xff"


def _field(value: Any) -> bytes:
    if value is None:
        return b"\xff\xff\xff\xff"
    if isinstance(value, bool):
        return struct.pack(">i?", 1, value)
    if isinstance(value, int):
        return struct.pack(">iq", 8, value)
    if isinstance(value, float):
        return struct.pack(">id", 8, value)
    raw: bytes = value.encode()
    return struct.pack(">i", len(raw)) + raw
