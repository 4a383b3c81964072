"""The server as its user starts it: a process of its own."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

PATIENCE = 120
"""Seconds to start, on a busy machine."""


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    said: dict[str, Any]

    @property
    def url(self) -> str:
        return str(self.said["url"])

    def end(self) -> int:
        """Wait for the process; its exit code."""
        return self.process.wait(PATIENCE)


@contextmanager
def running(table: Path, *options: str, environment: dict[str, str] | None = None) -> Iterator[Server]:
    """``consilience serve TABLE --port 0 --json``, ready to answer; ended at the end."""
    words = [
        sys.executable,
        "-m",
        "consilience",
        "serve",
        str(table),
        "--port",
        "0",
        "--threads",
        "1",
        "--json",
        *options,
    ]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})})
    try:
        server = Server(process, json.loads(first_line(process)))
        until_ready(server.url)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdout is not None:
            process.stdout.close()


def until_ready(url: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while httpx.get(f"{url}/ready").status_code != 200:
        assert time.monotonic() < deadline, "the server did not become ready"
        time.sleep(0.1)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    deadline = time.monotonic() + PATIENCE
    while not select.select([process.stdout], [], [], 0.2)[0]:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        assert time.monotonic() < deadline, "the server did not start"
    return process.stdout.readline()
