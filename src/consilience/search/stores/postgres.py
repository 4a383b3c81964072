"""Vectors and codes in PostgreSQL with the extension pgvector: one table a column, attributes beside the vectors.

Everything lies in the schema ``consilience``: ``stores`` holds a :class:`~consilience.search.stores.remote.Record` for
each table. Codes are ``bit(K)``; the k-th bit as PostgreSQL writes it is the k-th bit of the code. Every ``add`` is one
transaction, so a kill at any instant leaves all of its rows or none.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import psycopg
import pyarrow as pa
from psycopg import sql

from consilience.errors import ConsilienceError, InputError
from consilience.search.stores.base import Space, as_keys, as_rows, ordered
from consilience.search.stores.filters import Kind, parse, to_postgres
from consilience.search.stores.postgres_rows import binary_rows, query_texts
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

SCHEMA = "consilience"
OLDEST = (0, 7)  # of pgvector: Hamming distance on bit, with HNSW
WIDEST = {"cosine": 2000, "hamming": 64000}  # what its indexes take
CANDIDATES = 100  # hnsw.ef_search: how many are looked at for the k best
_TYPES = {"int": "bigint", "float": "double precision", "text": 'text collate "C"', "bool": "boolean"}
_LONGEST_NAME = 55  # PostgreSQL keeps 63 bytes; the index's name is longer


class PostgresStore:
    """A :class:`~consilience.search.stores.remote.RemoteStore` on a PostgreSQL server. Safe for concurrent searches.

    ``server``: connection string (a password may come from PGPASSWORD or ~/.pgpass instead). ``name``: what the
    Table is called there. ``attributes``: name to kind, makes the store when it is not there; without, it must be.
    ``replace``: make it anew. ``exact``: compare every vector, whatever index there is. Raises InputError for a server
    that cannot be reached, lacks pgvector 0.7, or holds something else under this name.
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
        exact: bool = False,
    ) -> None:
        self.space, self.exact, self._server = space, exact, server
        self.table = _table_name(name, space.column)
        self.place = f"{redacted(server)} ({SCHEMA}.{self.table})"
        self._lock = threading.Lock()
        self._idle: list[psycopg.Connection[Any]] = []
        self._closed = False
        self._name = sql.Identifier(SCHEMA, self.table)
        self._vector = sql.SQL(f"vector({space.width})" if space.metric == "cosine" else f"bit({space.width})")
        self._operator = sql.SQL("<=>" if space.metric == "cosine" else "<~>")
        self.record = Record(space, owner, dict(attributes or {}))
        with self._session() as connection, connection.transaction():
            self.version = self._extension(connection)
            held = self._held(connection)
            if held is not None and replace:
                self._remove(connection)
                held = None
            if held is None and attributes is not None:
                self._create(connection)
            elif held is None:
                raise refuse_missing(self.place, space.column)
            else:
                held.check(self.record, self.place)
                self.record = held
            self._index = self._found_index(connection)

    def add(self, keys: np.ndarray, vectors: np.ndarray, attributes: pa.Table | None = None) -> None:
        """Insert or replace, in one transaction. Attributes that are not given become empty."""
        rows, told, digests = prepared(self.record, vectors, attributes)
        keys = as_keys(keys, len(rows))
        if not len(keys):
            return
        names = [KEY, DIGEST, VECTOR, *self.record.attributes]
        columns = sql.SQL(", ").join(map(sql.Identifier, names))
        with self._session() as connection, connection.transaction():
            self._hold(connection)
            exists = sql.SQL("select 1 from {} where {} = any(%s) limit 1").format(self._name, sql.Identifier(KEY))
            fresh = connection.execute(exists, [keys.tolist()]).fetchone() is None
            target = self._name if fresh else sql.Identifier("incoming")
            if not fresh:
                make = sql.SQL("create temporary table incoming (like {}) on commit drop").format(self._name)
                connection.execute(make)
            copy = sql.SQL("copy {} ({}) from stdin (format binary)").format(target, columns)
            with connection.cursor().copy(copy) as stream:
                for piece in binary_rows(self.space, keys, digests, rows, told):
                    stream.write(piece)
            if not fresh:
                updates = sql.SQL(", ").join(
                    sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in names[1:]
                )
                insert = sql.SQL("insert into {} ({}) select {} from incoming on conflict ({}) do update set {}")
                connection.execute(insert.format(self._name, columns, columns, sql.Identifier(KEY), updates))

    def delete(self, keys: np.ndarray) -> int:
        """Forget ``keys``; returns how many were there."""
        wanted = np.unique(np.asarray(keys, dtype=np.int64)).tolist()
        with self._session() as connection, connection.transaction():
            self._hold(connection)
            remove = sql.SQL("delete from {} where {} = any(%s)").format(self._name, sql.Identifier(KEY))
            return int(connection.execute(remove, [wanted]).rowcount)

    def search(self, queries: np.ndarray, k: int, where: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`~consilience.search.stores.base.Store`. With an index the answer is approximate; a query for
        which the index finds fewer than ``k`` is asked again without it, so that rows are missing only if there are
        none."""
        queries = as_rows(self.space, queries, "queries")
        condition, values = to_postgres(parse(where, self.record.columns)) if where is not None else ("true", [])
        texts = query_texts(self.space, queries)
        with self._session() as connection, connection.transaction():
            if self.exact or self._index[0] == "exact":
                found = [self._ask(connection, text, k, condition, values, exact=True) for text in texts]
                return ordered(*as_answer(found, k))
            self._tune(connection, k)
            found = []
            for text in texts:
                answer = self._ask(connection, text, k, condition, values, exact=False)
                if len(answer) < k:
                    answer = self._ask(connection, text, k, condition, values, exact=True)
                found.append(answer)
        return ordered(*as_answer(found, k))

    def count(self) -> int:
        """How many vectors there are (counted, not estimated)."""
        with self._session() as connection:
            row = connection.execute(sql.SQL("select count(*) from {}").format(self._name)).fetchone()
        return int(row[0]) if row else 0

    def close(self) -> None:
        """Close the connections that are not in use now; those in use close when their search ends."""
        with self._lock:
            self._closed, idle = True, self._idle
            self._idle = []
        for connection in idle:
            connection.close()

    def digests(self, keys: np.ndarray) -> np.ndarray:
        """See :class:`~consilience.search.stores.remote.RemoteStore`."""
        ask = sql.SQL("select {}, {} from {} where {} = any(%s)").format(
            sql.Identifier(KEY), sql.Identifier(DIGEST), self._name, sql.Identifier(KEY)
        )
        with self._session() as connection:
            found = dict(connection.execute(ask, [keys.tolist()]).fetchall())
        return np.array([found.get(key, 0) for key in keys.tolist()], dtype=np.int64)

    def keys(self) -> Iterator[np.ndarray]:
        """All keys, ascending, in blocks."""
        ask = sql.SQL("select {} from {} order by 1").format(sql.Identifier(KEY), self._name)
        with (
            self._session() as connection,
            connection.transaction(),
            connection.cursor(name="consilience_keys") as rows,
        ):
            rows.execute(ask)
            while block := rows.fetchmany(100_000):
                yield np.array([row[0] for row in block], dtype=np.int64)

    def build(self, index: Index = "auto") -> str:
        """Make the index, or keep it when it is of the asked kind; ``exact`` removes it.

        HNSW with pgvector's own parameters; an inverted file (``ivf``) with a list per 1,000 rows up to a million,
        then the square root of the rows. Raises InputError for vectors wider than pgvector's indexes take.
        """
        kind = plan_index(index, self.count())
        if kind != "exact" and self.space.width > WIDEST[self.space.metric]:
            if index != "auto":
                raise InputError(
                    f"pgvector indexes up to {WIDEST[self.space.metric]} dimensions, not {self.space.width}"
                )
            kind = "exact"
        with self._session() as connection, connection.transaction():
            self._hold(connection)
            if self._found_index(connection)[0] != kind:
                own = sql.Identifier(SCHEMA, f"{self.table}_near")
                connection.execute(sql.SQL("drop index if exists {}").format(own))
                if kind != "exact":
                    connection.execute(self._make_index(kind))
            self._index = self._found_index(connection)
        return self._index[0]

    def drop(self) -> None:
        """Remove the table and its record."""
        with self._session() as connection, connection.transaction():
            self._remove(connection)

    def bytes(self) -> dict[str, int]:
        """Bytes on the server's disk: ``rows`` (with vectors) and ``indexes``."""
        with self._session() as connection:
            name = f'{SCHEMA}."{self.table}"'
            ask = "select pg_table_size(%s::regclass), pg_indexes_size(%s::regclass)"
            row = connection.execute(ask, [name, name]).fetchone()
        return {"rows": int(row[0]), "indexes": int(row[1])} if row else {}

    @contextmanager
    def _session(self) -> Iterator[psycopg.Connection[Any]]:
        """A connection for one call; errors of the driver become ours, without the password."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            try:
                connection = psycopg.connect(self._server, autocommit=True, connect_timeout=10)
            except (psycopg.Error, UnicodeError) as error:
                reason = without_secrets(str(error), self._server)
                raise InputError(f"cannot reach {redacted(self._server)}: {reason}; check the address") from None
        try:
            yield connection
        except psycopg.Error as error:
            connection.close()
            reason = without_secrets(str(error), self._server)
            raise ConsilienceError(f"{self.place}: {type(error).__name__}: {reason}") from None
        except BaseException:
            connection.close()  # whatever it was doing is rolled back by the server
            raise
        with self._lock:
            keep = not self._closed and not connection.closed
            if keep:
                self._idle.append(connection)
        if not keep:
            connection.close()

    def _extension(self, connection: psycopg.Connection[Any]) -> tuple[int, ...]:
        ask = "select extversion from pg_extension where extname = 'vector'"
        row = connection.execute(ask).fetchone()
        if row is None:
            try:
                with connection.transaction():
                    connection.execute("create extension if not exists vector")
            except psycopg.Error as error:
                reason = without_secrets(str(error), self._server)
                raise InputError(
                    f"{redacted(self._server)} lacks pgvector ({reason}); as its superuser run: create extension vector"
                ) from None
            row = connection.execute(ask).fetchone()
        version = tuple(int(part) for part in str(row[0] if row else "0").split(".")[:2])
        if version < OLDEST:
            raise InputError(f"{redacted(self._server)} has pgvector {row and row[0]}; 0.7 or newer is needed")
        return version

    def _hold(self, connection: psycopg.Connection[Any]) -> None:
        """One writer at a time; given back at the transaction's end."""
        connection.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"consilience.{self.table}"])

    def _held(self, connection: psycopg.Connection[Any]) -> Record | None:
        there = connection.execute("select to_regclass('consilience.stores')").fetchone()
        if there is None or there[0] is None:
            return None
        row = connection.execute("select record from consilience.stores where name = %s", [self.table]).fetchone()
        return Record.from_json(row[0], self.place) if row else None

    def _create(self, connection: psycopg.Connection[Any]) -> None:
        connection.execute("select pg_advisory_xact_lock(hashtextextended('consilience', 0))")
        connection.execute("create schema if not exists consilience")
        connection.execute(
            "create table if not exists consilience.stores (name text primary key, record text not null)"
        )
        held = self._held(connection)  # another process may have been first
        if held is not None:
            held.check(self.record, self.place)
            self.record = held
            return
        columns = [sql.SQL("{} bigint primary key, {} bigint not null").format(*map(sql.Identifier, (KEY, DIGEST)))]
        columns.append(sql.SQL("{} {} not null").format(sql.Identifier(VECTOR), self._vector))
        for name, kind in self.record.attributes.items():
            columns.append(sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(_TYPES[kind])))
        connection.execute(sql.SQL("create table {} ({})").format(self._name, sql.SQL(", ").join(columns)))
        # vectors do not compress, and those out of line would cost a look-up each in an exact scan
        plain = sql.SQL("alter table {} alter column {} set storage {}")
        fits = 4 * self.space.columns < 1900 if self.space.metric == "cosine" else self.space.columns < 1900
        storage = sql.SQL("plain" if fits else "external")
        connection.execute(plain.format(self._name, sql.Identifier(VECTOR), storage))
        connection.execute("insert into consilience.stores values (%s, %s)", [self.table, self.record.to_json()])

    def _remove(self, connection: psycopg.Connection[Any]) -> None:
        self._hold(connection)
        connection.execute(sql.SQL("drop table if exists {}").format(self._name))
        connection.execute("delete from consilience.stores where name = %s", [self.table])

    def _found_index(self, connection: psycopg.Connection[Any]) -> tuple[str, int]:
        """``exact``, ``ivf`` or ``hnsw``, and how many lists an inverted file has."""
        ask = (
            "select m.amname, c.reloptions from pg_index i join pg_class c on c.oid = i.indexrelid "
            "join pg_am m on m.oid = c.relam where i.indrelid = to_regclass(%s) and m.amname in ('hnsw', 'ivfflat')"
        )
        row = connection.execute(ask, [f'{SCHEMA}."{self.table}"']).fetchone()
        if row is None:
            return "exact", 0
        options = dict(option.split("=", 1) for option in row[1] or ())
        return {"hnsw": "hnsw", "ivfflat": "ivf"}[row[0]], int(options.get("lists", 100))

    def _make_index(self, kind: str) -> sql.Composed:
        operators = sql.SQL("vector_cosine_ops" if self.space.metric == "cosine" else "bit_hamming_ops")
        count = self.count()
        lists = max(1, count // 1000 if count <= 1_000_000 else round(count**0.5))
        options = sql.SQL(f" with (lists = {min(lists, 32768)})" if kind == "ivf" else "")
        make = sql.SQL("create index {} on {} using {} ({} {}){}")
        method = sql.SQL("hnsw" if kind == "hnsw" else "ivfflat")
        index, column = sql.Identifier(f"{self.table}_near"), sql.Identifier(VECTOR)
        return make.format(index, self._name, method, column, operators, options)

    def _tune(self, connection: psycopg.Connection[Any], k: int) -> None:
        """How far the index looks, for this transaction only; since pgvector 0.8 it goes on until filters are met."""
        kind, lists = self._index
        settings = {"hnsw.ef_search": str(min(max(CANDIDATES, k), 1000)), "hnsw.iterative_scan": "strict_order"}
        if kind == "ivf":
            settings = {
                "ivfflat.probes": str(min(lists, max(10, 2 * round(lists**0.5)))),
                "ivfflat.iterative_scan": "relaxed_order",
            }
        for name, value in settings.items():
            if self.version >= (0, 8) or "iterative" not in name:
                connection.execute("select set_config(%s, %s, true)", [name, value])

    def _ask(
        self, connection: psycopg.Connection[Any], text: str, k: int, condition: str, values: list[Any], *, exact: bool
    ) -> list[tuple[int, float]]:
        """The k nearest of one query. An exact one orders by an expression that no index offers."""
        distance = sql.SQL("{} {} %s::{}").format(sql.Identifier(VECTOR), self._operator, self._vector)
        order = sql.SQL("0 + ({}), {}").format(distance, sql.Identifier(KEY)) if exact else distance
        ask = sql.SQL("select {}, {} from {} where {} order by {} limit %s").format(
            sql.Identifier(KEY),
            distance,
            self._name,
            sql.SQL(condition),
            order,
        )
        return cast(list[tuple[int, float]], connection.execute(ask, [text, *values, text, k]).fetchall())


def _table_name(name: str, column: str) -> str:
    whole = f"{name}_{column}"
    if len(whole.encode()) <= _LONGEST_NAME:
        return whole
    mark = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return f"{whole.encode()[: _LONGEST_NAME - 9].decode(errors='ignore')}_{mark}"
