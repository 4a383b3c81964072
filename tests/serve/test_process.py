"""The real process: start, refusals, signals, kills, and fifty clients for a moment."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from consilience.cli.serve_verb import is_loopback
from consilience.data.review import Review
from consilience.data.table import Table
from tests.cli import tiny
from tests.cli.conftest import cli, refused
from tests.serve.conftest import Served
from tests.serve.server import running

__all__ = ["cli", "refused"]
KEY = "a-key-of-some-length"


def search(url: str, number: int = 0, **fields: str) -> httpx.Response:
    return httpx.post(f"{url}/api/search", files={"file": ("x", tiny.png(number))}, data=fields, timeout=60)


@pytest.mark.slow
def test_sigterm_lets_a_request_finish(copied: Served) -> None:
    with running(copied.path, "--batch-window", "2000") as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert server.said["modalities"] == ["image", "points"]
        assert httpx.get(f"{server.url}/ready").json()["key"] is False
        httpx.post(f"{server.url}/api/review", json={"index": 3, "decision": "drop"}).raise_for_status()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(search, server.url, 0, k="3")
            time.sleep(0.7)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{server.url}/health")  # nobody new is let in
            answer = waiting.result()
        assert (answer.status_code, len(answer.json()["hits"])) == (200, 3)
        assert server.end() == 0
        assert server.process.stdout is not None
        assert server.process.stdout.read() == ""  # one JSON object, and no more
    assert Table.open(copied.path).column("review")[3] == "drop"


@pytest.mark.slow
def test_sigint_ends_it(served: Served) -> None:
    with running(served.path) as server:
        assert search(server.url).status_code == 200
        server.process.send_signal(signal.SIGINT)
        assert server.end() == 0


@pytest.mark.slow
def test_a_kill_loses_no_acknowledged_decision(copied: Served) -> None:
    acknowledged: dict[int, str] = {}
    undone = threading.Event()

    def review(url: str) -> None:
        with httpx.Client(base_url=url) as client:
            for turn in range(10_000):
                index, decision = turn % 60, ("keep", "drop")[turn // 60 % 2]
                try:
                    answer = client.post("/api/review", json={"index": index, "decision": decision})
                except httpx.TransportError:
                    return
                if answer.status_code == 200:
                    acknowledged[index] = decision
                if turn == 100:
                    undone.set()

    with running(copied.path) as server:
        thread = threading.Thread(target=review, args=(server.url,))
        thread.start()
        assert undone.wait(60)
        server.process.kill()
        thread.join()
    assert len(acknowledged) == 60
    table = Table.open(copied.path)
    assert len(table) == 60
    review_again = Review.open(table)
    lines = (copied.path / "review.jsonl").read_bytes().splitlines()
    assert len(lines) > 100
    made = {index: decision for index, (decision, _) in review_again._made.items()}
    wrong = {index for index, decision in acknowledged.items() if made[index] != decision}
    assert len(wrong) <= 1  # at most the one that was on the disk, but whose answer the kill cut off
    with running(copied.path) as server:
        counts = httpx.get(f"{server.url}/api/review/counts").json()
        assert counts["keep"] + counts["drop"] == 60
        assert search(server.url).status_code == 200
    settled = Table.open(copied.path).column("review")
    assert [str(settled[index]) for index in range(60)] == [made[index] for index in range(60)]


@pytest.mark.slow
def test_the_key_comes_from_a_file_or_the_environment(served: Served, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    for options, environment in ((("--api-key-file", str(tmp_path / "key")), {}), ((), {"CONSILIENCE_API_KEY": KEY})):
        with running(served.path, *options, environment=environment) as server:
            assert server.said["key"] is True
            assert KEY not in str(server.said)
            assert httpx.get(f"{server.url}/api/facets").status_code == 401
            assert httpx.get(f"{server.url}/api/facets", headers={"X-API-Key": KEY}).status_code == 200
            assert httpx.get(f"{server.url}/").status_code == 200


@pytest.mark.slow
def test_malformed_http_leaves_it_up(served: Served) -> None:
    with running(served.path, "--max-seconds", "2") as server:
        port = int(server.url.rpartition(":")[2])
        heads = (
            b"POST /api/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999999\r\n\r\n",
            b"POST /api/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n",
            b"GET /api/items/1/image/../../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"POST /api/search HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        )
        for head in heads:
            with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
                sock.settimeout(20)
                try:
                    sock.sendall(head)
                    status = sock.recv(200).split(b" ")[1:2]
                except ConnectionError:  # hung up on while still talking
                    status = [b"400"]
                assert status in ([b"400"], [b"404"], [b"413"], [b"431"]), head[:60]
            assert search(server.url).status_code == 200
        with socket.create_connection(("127.0.0.1", port), timeout=20) as slow:  # promises a body and never sends it
            slow.sendall(
                b"POST /api/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
                b"Content-Length: 5000\r\n\r\n--b\r\n"
            )
            assert slow.recv(200).split(b" ")[1] == b"504"
        assert search(server.url).status_code == 200


def test_refusals(refused: Callable[..., str], served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONSILIENCE_API_KEY", raising=False)
    assert "lets other machines in" in refused("serve", served.path, "--host", "0.0.0.0")
    assert "lets other machines in" in refused("serve", served.path, "--host", "::")
    assert "--port 70000" in refused("serve", served.path, "--port", "70000")
    assert "is not a table" in refused("serve", tmp_path / "nothing")
    assert "--api-key-file" in refused("serve", served.path, "--api-key-file", tmp_path / "nothing")
    (tmp_path / "key").write_text("short\n")
    assert "too short" in refused("serve", served.path, "--api-key-file", tmp_path / "key")
    assert "no address of this machine" in refused("serve", served.path, "--host", "no.such.host.invalid", "--open")
    assert "limit seconds" in refused("serve", served.path, "--max-seconds", "0")
    bare = tmp_path / "bare"
    from consilience.data.importers import import_table

    import_table(tiny.folder(tmp_path / "folder", 6), bare)
    assert "holds no vectors" in refused("serve", bare)


def test_a_port_that_is_taken(cli: Callable[..., object], served: Served) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        answer = cli("serve", served.path, "--port", taken.getsockname()[1])
        assert (answer.code, "choose another with --port" in answer.err) == (1, True)  # type: ignore[attr-defined]


def test_loopback() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8", "[::1]")] == [True] * 5
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "")] == [False] * 5


@pytest.mark.slow
def test_many_clients_for_a_moment() -> None:
    from consilience.benchmarks.serve import run

    result = run(seconds=4.0, clients=50, rows=60)
    assert result["errors"] == 0
    assert result["requests"] > 50
    assert 0 < result["milliseconds"]["p50"] <= result["milliseconds"]["p95"] <= result["milliseconds"]["p99"]
    assert np.isfinite(result["requests_per_second"])
