"""Addresses of stores beyond this machine: ``postgresql://...``, ``http(s)://...`` or ``FILE.db`` for Milvus."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from consilience.data.table import Table
from consilience.errors import InputError
from consilience.search.stores.base import Space
from consilience.search.stores.filters import Kind
from consilience.search.stores.remote import RemoteStore, identity, redacted


@dataclass(frozen=True)
class Address:
    """Where a Table's vectors lie."""

    engine: Literal["postgres", "milvus"]
    server: str
    name: str
    """What the Table is called there."""

    @property
    def shown(self) -> str:
        """For messages and results: without the password."""
        return f"{redacted(self.server)}#{self.name}"


def address_of(url: str, table: Table) -> Address:
    """Read ``URL[#NAME]``; ``env:VARIABLE`` takes the URL from the environment.

    ``NAME`` is what the Table is called there, by default its folder's name. Addresses: ``postgresql://...``;
    ``milvus://host:port``, ``http://...``, ``https://...``, or a path ending in ``.db`` for Milvus in this process.
    """
    if url.startswith("env:"):
        variable = url.removeprefix("env:")
        if variable not in os.environ:
            raise InputError(f"{url}: the environment has no variable {variable}; set it to the store's address")
        url = os.environ[variable]
    server, _, name = url.partition("#")
    name = name or re.sub(r"[^A-Za-z0-9_]+", "_", table.path.resolve().name) or "table"
    if not re.fullmatch(r"[A-Za-z_0-9]{1,100}", name):
        raise InputError(f"{name!r} cannot name a Table in a store; use up to 100 letters, digits and _ after #")
    if server.startswith(("postgresql://", "postgres://")):
        return Address("postgres", server, name)
    if server.startswith("milvus://"):
        return Address("milvus", "http" + server.removeprefix("milvus"), name)
    if server.startswith(("http://", "https://")) or server.endswith(".db"):
        return Address("milvus", server, name)
    raise InputError(
        f"{redacted(server)!r} is no store's address; give postgresql://..., http(s)://HOST:PORT or FILE.db for Milvus"
    )


def open_store(url: str, space: Space, table: Table) -> RemoteStore:
    """The store at ``url`` that :func:`consilience.search.push.push` has filled with ``space`` of ``table``.

    Raises InputError for an address that cannot be read or reached, a place that nobody has filled, and one that holds
    another encoder's vectors, or another Table's.
    """
    return connect(address_of(url, table), space, table, None)


def connect(
    address: Address, space: Space, table: Table, attributes: Mapping[str, Kind] | None, *, replace: bool = False
) -> RemoteStore:
    """A store at ``address``; with ``attributes`` it is made when it is not there, or anew (``replace``)."""
    owner, server, name = identity(table), address.server, address.name
    if address.engine == "postgres":
        _need("psycopg", "pg")
        from consilience.search.stores.postgres import PostgresStore

        return PostgresStore(server, name, space, owner=owner, attributes=attributes, replace=replace)
    _need("pymilvus", "milvus")
    from consilience.search.stores.milvus import MilvusStore

    return MilvusStore(server, name, space, owner=owner, attributes=attributes, replace=replace)


def _need(package: str, extra: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise InputError(f"this store needs {package}; install it with: pip install 'consilience[{extra}]'")
