"""Vectors and codes in Milvus: one collection a column, attributes as fields beside the vectors.

The :class:`~consilience.search.stores.remote.Record` of a collection travels in its properties, and in its
description for servers that keep no properties. Codes are ``BINARY_VECTOR``, compared by Hamming distance; Milvus has
no graph index for them, and the in-process mode (a path ending in ``.db``) takes no codes at all.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from consilience.errors import ConsilienceError, InputError
from consilience.search.stores.base import Space, as_keys, as_rows, ordered
from consilience.search.stores.filters import Kind, parse, to_milvus
from consilience.search.stores.remote import (
    DIGEST,
    KEY,
    VECTOR,
    Index,
    Record,
    as_answer,
    plan_index,
    prepared,
    redacted,
    refuse_missing,
    without_secrets,
)

TOKEN = "MILVUS_TOKEN"
"""Environment variable with ``user:password`` or an API key, to keep them out of command lines."""
MOST = 16384  # results of a query, and keys named in one call
_PROPERTY = "consilience.record"
_TYPES = {"int": DataType.INT64, "float": DataType.DOUBLE, "text": DataType.VARCHAR, "bool": DataType.BOOL}
_TEXT = 65535  # bytes of its longest text
_CALL_BYTES, _CALL_ROWS = 8 << 20, 5000
_QUERIES = 256  # of one search call
_KINDS = {
    "cosine": {"exact": "FLAT", "ivf": "IVF_FLAT", "hnsw": "HNSW"},
    "hamming": {"exact": "BIN_FLAT", "ivf": "BIN_IVF_FLAT"},
}

# every failed call is reported there with a traceback; ours says it in one line
logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
# the in-process server does so for calls of the client that it has not, and that the client can do without
logging.getLogger("grpc._server").setLevel(logging.CRITICAL)


class MilvusStore:
    """A :class:`~consilience.search.stores.remote.RemoteStore` on Milvus. Safe for concurrent searches.

    ``server``: ``http(s)://host:port`` or a path ending in ``.db`` (in this process). ``name``: what the Table is
    called there. ``attributes``: name to kind, makes the collection when it is not there; without, it must be.
    ``replace``: make it anew. ``consistency``: ``Strong`` reads what was written before; ``Bounded`` and
    ``Eventually`` are faster. Raises InputError for a server that cannot be reached or holds something else under
    this name.
    """

    def __init__(
        self,
        server: str,
        name: str,
        space: Space,
        *,
        owner: str,
        attributes: Mapping[str, Kind] | None = None,
        replace: bool = False,
        consistency: str = "Strong",
    ) -> None:
        self.space, self.consistency, self._server = space, consistency, server
        self.collection = _collection_name(name, space.column)
        self.place = f"{redacted(server)} ({self.collection})"
        self.record = Record(space, owner, dict(attributes or {}))
        self._index, self._nlist = "exact", 1
        try:
            self._client = MilvusClient(uri=server, token=os.environ.get(TOKEN, ""), timeout=30)
        except Exception as error:  # the driver raises what gRPC, the address parser or the file system raised
            reason = without_secrets(str(getattr(error, "message", error)), server)
            raise InputError(f"cannot reach {redacted(server)}: {reason}; check the address") from None
        try:
            self._open(attributes, replace)
        except BaseException:
            self._client.close()
            raise

    def add(self, keys: np.ndarray, vectors: np.ndarray, attributes: pa.Table | None = None) -> None:
        """Insert or replace, some thousand rows a call; each call is whole or not at all.

        Raises InputError for texts of more than 65,535 bytes.
        """
        rows, told, digests = prepared(self.record, vectors, attributes)
        keys = as_keys(keys, len(rows))
        columns = {name: told[name].to_pylist() for name in told.column_names}
        for name, values in columns.items():
            if self.record.attributes[name] == "text" and any(v and len(v.encode()) > _TEXT for v in values):
                raise InputError(f"attribute {name!r} has a text of more than {_TEXT} bytes; leave it out for Milvus")
        step = max(1, min(_CALL_ROWS, _CALL_BYTES // max(1, rows[:1].nbytes)))
        for start in range(0, len(keys), step):
            part = slice(start, start + step)
            packed = rows[part].tolist() if self.space.metric == "cosine" else [row.tobytes() for row in rows[part]]
            heads = zip(keys[part].tolist(), digests[part].tolist(), packed, strict=True)
            data = [dict(zip((KEY, DIGEST, VECTOR), head, strict=True)) for head in heads]
            for name, values in columns.items():
                for entry, value in zip(data, values[part], strict=True):
                    entry[name] = value
            with self._told():
                self._client.upsert(self.collection, data)

    def delete(self, keys: np.ndarray) -> int:
        """Forget ``keys``; returns how many were there."""
        there = np.unique(np.asarray(keys, dtype=np.int64))
        there = there[self.digests(there) != 0]
        for start in range(0, len(there), _CALL_ROWS):
            with self._told():
                self._client.delete(self.collection, ids=there[start : start + _CALL_ROWS].tolist())
        return len(there)

    def search(self, queries: np.ndarray, k: int, where: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`~consilience.search.stores.base.Store`. InputError for more than 16,384 answers."""
        queries = as_rows(self.space, queries, "queries")
        if k > MOST:
            raise InputError(f"Milvus gives at most {MOST} answers, not {k}")
        condition = to_milvus(parse(where, self.record.columns)) if where is not None else ""
        cosine = self.space.metric == "cosine"
        found: list[list[tuple[int, float]]] = []
        for start in range(0, len(queries), _QUERIES):
            part = queries[start : start + _QUERIES]
            with self._told():
                answers = self._client.search(
                    self.collection,
                    data=part.tolist() if cosine else [row.tobytes() for row in part],
                    anns_field=VECTOR,
                    filter=condition,
                    limit=k,
                    output_fields=[KEY],
                    search_params={"metric_type": self.space.metric.upper(), "params": self._effort(k)},
                    consistency_level=self.consistency,
                )
            for hits in answers:
                pairs = [(_key_of(hit), float(hit["distance"])) for hit in hits]
                found.append([(key, 1 - score if cosine else score) for key, score in pairs])
        return ordered(*as_answer(found, k))

    def count(self) -> int:
        """How many vectors there are."""
        with self._told():
            answer = self._client.query(
                self.collection, filter="", output_fields=["count(*)"], consistency_level=self.consistency
            )
        return int(answer[0]["count(*)"])

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def digests(self, keys: np.ndarray) -> np.ndarray:
        """See :class:`~consilience.search.stores.remote.RemoteStore`."""
        found: dict[int, int] = {}
        for start in range(0, len(keys), _CALL_ROWS):
            with self._told():
                rows = self._client.query(
                    self.collection,
                    ids=keys[start : start + _CALL_ROWS].tolist(),
                    output_fields=[KEY, DIGEST],
                    consistency_level=self.consistency,
                )
            found.update((row[KEY], row[DIGEST]) for row in rows)
        return np.array([found.get(key, 0) for key in keys.tolist()], dtype=np.int64)

    def keys(self) -> Iterator[np.ndarray]:
        """All keys in blocks."""
        with self._told():
            rows = self._client.query_iterator(
                self.collection,
                batch_size=_CALL_ROWS,
                output_fields=[KEY],
                consistency_level=self.consistency,
            )
            try:
                while block := rows.next():
                    yield np.array([row[KEY] for row in block], dtype=np.int64)
            finally:
                rows.close()

    def build(self, index: Index = "auto") -> str:
        """Make the index, or keep it when it is of the asked kind. InputError for a graph (``hnsw``) over codes."""
        kind = plan_index(index, self.count())
        if self.space.metric == "hamming" and kind == "hnsw":
            if index != "auto":
                raise InputError("Milvus has no hnsw index for codes; use --index ivf or --index exact")
            kind = "ivf"
        if kind != self._index:
            with self._told():
                self._client.release_collection(self.collection)
                for old in self._client.list_indexes(self.collection, field_name=VECTOR):
                    self._client.drop_index(self.collection, old)
                self._client.create_index(self.collection, self._index_params(kind))
                self._client.load_collection(self.collection)
                self._index = self._found_index()
        return self._index

    def drop(self) -> None:
        """Remove the collection."""
        with self._told():
            self._client.drop_collection(self.collection)

    def _open(self, attributes: Mapping[str, Kind] | None, replace: bool) -> None:
        with self._told():
            held = self._held() if self._client.has_collection(self.collection) else None
            if held is not None and replace:
                self._client.drop_collection(self.collection)
                held = None
            if held is not None:
                held.check(self.record, self.place)
                self.record = held
                self._client.load_collection(self.collection)
            elif attributes is not None:
                self._create()
            else:
                raise refuse_missing(self.place, self.space.column)
            self._index = self._found_index()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of the driver as ours, without the password."""
        try:
            yield
        except MilvusException as error:
            reason = without_secrets(str(error.message), self._server)
            raise ConsilienceError(f"{self.place}: {reason}") from None

    def _held(self) -> Record:
        facts = self._client.describe_collection(self.collection)
        text = (facts.get("properties") or {}).get(_PROPERTY) or facts.get("description") or ""
        if not text.startswith("{"):
            raise InputError(f"{self.place} was not made by consilience; choose another name with URL#NAME")
        return Record.from_json(text, self.place)

    def _create(self) -> None:
        text = self.record.to_json()
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False, description=text)
        schema.add_field(KEY, DataType.INT64, is_primary=True)
        schema.add_field(DIGEST, DataType.INT64)
        vector = DataType.FLOAT_VECTOR if self.space.metric == "cosine" else DataType.BINARY_VECTOR
        schema.add_field(VECTOR, vector, dim=self.space.width)
        for name, kind in self.record.attributes.items():
            if kind == "text":
                schema.add_field(name, DataType.VARCHAR, max_length=_TEXT, nullable=True)
            else:
                schema.add_field(name, _TYPES[kind], nullable=True)
        self._client.create_collection(
            self.collection,
            schema=schema,
            index_params=self._index_params("exact"),
            consistency_level=self.consistency,
            properties={_PROPERTY: text},
        )

    def _index_params(self, kind: str) -> Any:
        params = self._client.prepare_index_params()
        options: dict[str, int] = {}
        if kind == "ivf":
            options = {"nlist": _lists(self.count())}
        elif kind == "hnsw":
            options = {"M": 16, "efConstruction": 64}
        name, metric = _KINDS[self.space.metric][kind], self.space.metric.upper()
        params.add_index(VECTOR, index_type=name, index_name="near", metric_type=metric, params=options)
        return params

    def _found_index(self) -> str:
        for name in self._client.list_indexes(self.collection, field_name=VECTOR):
            made = self._client.describe_index(self.collection, name)
            for kind, milvus in _KINDS[self.space.metric].items():
                if made.get("index_type") == milvus:
                    self._nlist = int(made.get("nlist") or 1)
                    return kind
        return "exact"

    def _effort(self, k: int) -> dict[str, int]:
        if self._index == "hnsw":
            return {"ef": max(k, 100)}
        return {"nprobe": min(self._nlist, max(10, 2 * round(self._nlist**0.5)))} if self._index == "ivf" else {}


def _lists(count: int) -> int:
    """Lists of an inverted file: a list per 1,000 rows up to a million, then the square root of the rows."""
    return int(min(65536, max(1, count // 1000 if count <= 1_000_000 else round(count**0.5))))


def _key_of(hit: Any) -> int:
    """Releases of the client name a hit's key after its field, or ``id``."""
    return int(hit[KEY] if KEY in hit else hit["id"])


def _collection_name(name: str, column: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_]", "_", f"{name}_{column}")
    plain = plain if re.match(r"[A-Za-z_]", plain) else f"_{plain}"
    if plain == f"{name}_{column}" and len(plain) <= 200:
        return plain
    return f"{plain[:190]}_{hashlib.sha256(f'{name}_{column}'.encode()).hexdigest()[:8]}"
