"""The server under load: many clients at once on loopback, a mix of what the page asks, no error allowed.

The server is a process of its own, started by its verb; the clients are coroutines of this one that keep their
connections and ask again as soon as they are answered (closed loop), so that the rate is what the server carries
with that many waiting. Both share the machine's cores: figures are of the pair.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from consilience.data.datasets import DATASETS, read_dataset
from consilience.data.table import Row, Table
from consilience.errors import ConsilienceError, InputError
from consilience.methods.contrastive import Contrastive
from consilience.search.search import build_index
from consilience.training.api import train
from consilience.training.config import TrainConfig

MIX = (("search_picture", 5), ("search_cloud", 1), ("search_row", 2), ("similar", 1), ("thumbnail", 1))
"""Kinds of requests and how often each is asked."""
DIFFERENT = 32
"""Different queries of each kind."""
_PATIENCE = 180


@dataclass
class _Seen:
    """What the clients met."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    statuses: dict[int, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


def run(*, seconds: float = 60.0, clients: int = 50, rows: int = 6000, seed: int = 0) -> dict[str, Any]:
    """Load a server with ``clients`` for ``seconds`` over the first ``rows`` of mnist3d; a run of one epoch encodes.

    Returns requests, errors, requests a second, percentiles of the answer times in milliseconds (all together and by
    kind) and the mean batch of the encoder as the server counted it. Every status but 200, and every broken connection,
    is an error. Raises InputError for no time or no clients, :class:`ConsilienceError` when the server does not start.
    """
    if not seconds > 0 or clients < 1 or rows < 40:
        raise InputError(f"{seconds:g} s, {clients} clients, {rows} rows: give some time, a client, and 40 rows")
    with tempfile.TemporaryDirectory(prefix="consilience-bench-") as folder:
        table, samples = _served_table(Path(folder), rows, seed)
        with _server(table) as url:
            host, port = url.removeprefix("http://").split(":")
            requests = _requests(f"{host}:{port}", samples)
            seen, took, metrics = asyncio.run(_load(host, int(port), requests, seconds, clients, seed))
    times = np.array([value for values in seen.seconds.values() for value in values])
    return {
        "clients": clients,
        "seconds": round(took, 2),
        "rows": rows,
        "requests": len(times),
        "errors": len(seen.errors),
        "first_errors": seen.errors[:5],
        "statuses": {str(status): count for status, count in sorted(seen.statuses.items())},
        "requests_per_second": round(len(times) / took, 1),
        "milliseconds": _percentiles(times),
        "kinds": {name: {"requests": len(v)} | _percentiles(np.array(v)) for name, v in sorted(seen.seconds.items())},
        "mean_batch": metrics,
        "note": (
            f"closed loop on loopback, clients and server share {os.cpu_count()} cores; mnist3d, {rows} rows, vectors "
            f"of two modalities; a mix of {', '.join(f'{share} {name}' for name, share in MIX)}"
        ),
    }


def _served_table(folder: Path, rows: int, seed: int) -> tuple[Path, list[tuple[int, bytes, bytes]]]:
    """A searchable Table, and (index, picture, cloud) of some of its rows."""
    found = [row for row in read_dataset("mnist3d").rows if isinstance(row, Row)][:rows]
    table = Table.create(folder / "table", found, DATASETS["mnist3d"].modalities, f"the first {rows} rows of mnist3d")
    config = Contrastive.Config(epochs=1, batch_size=min(250, rows // 2))
    options = TrainConfig(seed=seed, device="cpu", validation=0.0, select="last")
    run = train("contrastive", table, folder / "run", config=config, train=options, quiet=True)
    build_index(run, Table.open(table.path), quiet=True)
    step = max(1, rows // DIFFERENT)
    some = [(i, found[i].values["image"] or b"", found[i].values["points"] or b"") for i in range(0, rows, step)]
    return table.path, some[:DIFFERENT]


@contextmanager
def _server(table: Path) -> Iterator[str]:
    """The URL of a server in a process of its own."""
    words = [sys.executable, "-m", "consilience", "serve", str(table), "--port", "0", "--json", "--threads", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "CONSILIENCE_API_KEY"}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()  # its end, too, is a line: an empty one
        if not line:
            raise ConsilienceError(f"the server ended with {process.wait()} before it listened; its log above says why")
        url = str(json.loads(line)["url"])
        asyncio.run(_until_ready(url))
        yield url
    finally:
        process.terminate()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _until_ready(url: str) -> None:
    """Wait until the server's decoders are there, so that their start is not measured."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    begun = time.monotonic()
    while (await _ask(reader, writer, f"GET /ready HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()))[0] != 200:
        if time.monotonic() - begun > _PATIENCE:
            raise ConsilienceError(f"the server was not ready within {_PATIENCE} s")
        await asyncio.sleep(0.1)
    writer.close()


def _requests(host: str, samples: list[tuple[int, bytes, bytes]]) -> list[tuple[str, list[bytes]]]:
    """For every entry of the mix, as often as its share, its name and its requests as they go over the wire."""

    def get(path: str) -> bytes:
        return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()

    def post(media: str, body: bytes) -> bytes:
        head = (
            f"POST /api/search HTTP/1.1\r\nHost: {host}\r\nContent-Type: {media}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def upload(name: str, data: bytes) -> bytes:
        head = f'--mark\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
        fields = '\r\n--mark\r\nContent-Disposition: form-data; name="k"\r\n\r\n24\r\n--mark--\r\n'
        return post("multipart/form-data; boundary=mark", head.encode() + data + fields.encode())

    def row(index: int) -> bytes:
        body = {"like": [{"index": index, "modality": "image"}], "into": ["points"], "k": 24}
        return post("application/json", json.dumps(body).encode())

    made = {
        "search_picture": [upload("x.png", picture) for _, picture, _ in samples],
        "search_cloud": [upload("x.npy", cloud) for _, _, cloud in samples],
        "search_row": [row(index) for index, _, _ in samples],
        "similar": [get(f"/api/items/{index}/similar?modality=points&into=image&k=24") for index, _, _ in samples],
        "thumbnail": [get(f"/api/items/{index}/image/thumbnail") for index, _, _ in samples],
    }
    return [(name, made[name]) for name, share in MIX for _ in range(share)]


async def _load(
    host: str, port: int, requests: list[tuple[str, list[bytes]]], seconds: float, clients: int, seed: int
) -> tuple[_Seen, float, float]:
    seen = _Seen()
    begun = time.perf_counter()
    end = begun + seconds
    await asyncio.gather(*(_client(host, port, requests, end, seen, [seed, number]) for number in range(clients)))
    took = time.perf_counter() - begun
    reader, writer = await asyncio.open_connection(host, port)
    status, body = await _ask(reader, writer, f"GET /metrics HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    writer.close()
    counts = dict.fromkeys(("sum", "count"), 0.0)
    for line in body.decode().splitlines():
        for name in counts:
            if status == 200 and line.startswith(f"consilience_batch_size_{name}"):
                counts[name] += float(line.rpartition(" ")[2])
    return seen, took, round(counts["sum"] / max(counts["count"], 1), 2)


async def _client(
    host: str, port: int, requests: list[tuple[str, list[bytes]]], end: float, seen: _Seen, seed: list[int]
) -> None:
    """One client: asks until the time is over, on one connection as long as that lasts."""
    rng = np.random.default_rng(seed)
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    while time.perf_counter() < end:
        name, choices = requests[rng.integers(len(requests))]
        begun = time.perf_counter()
        try:
            connection = connection or await asyncio.open_connection(host, port)
            status, body = await asyncio.wait_for(_ask(*connection, choices[rng.integers(len(choices))]), _PATIENCE)
        except (OSError, ValueError, asyncio.IncompleteReadError, TimeoutError) as error:
            seen.errors.append(f"{name}: {type(error).__name__} {error}")
            connection = None
            continue
        seen.seconds.setdefault(name, []).append(time.perf_counter() - begun)
        seen.statuses[status] = seen.statuses.get(status, 0) + 1
        if status != 200:
            seen.errors.append(f"{name}: {status} {body[:200]!r}")
    if connection is not None:
        connection[1].close()


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, bytes]:
    """Status and body of one answer with a content-length."""
    writer.write(request)
    await writer.drain()
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = int(head.partition("content-length:")[2].partition("\r\n")[0])
    return int(head.split(" ", 2)[1]), await reader.readexactly(length)


def _percentiles(seconds: np.ndarray) -> dict[str, float]:
    if not len(seconds):
        return dict.fromkeys(("p50", "p95", "p99", "max"), float("nan"))
    p50, p95, p99 = np.percentile(seconds * 1000, (50, 95, 99))
    values = {"p50": p50, "p95": p95, "p99": p99, "max": seconds.max() * 1000}
    return {name: round(float(value), 1) for name, value in values.items()}
