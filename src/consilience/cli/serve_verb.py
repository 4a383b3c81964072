"""``consilience serve``."""

from __future__ import annotations

from typing import Any

KEY_VARIABLE = "CONSILIENCE_API_KEY"


def run(
    table: str,
    run: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8765,
    open: bool = False,
    api_key_file: str | None = None,
    name: str = "vector",
    codes: str = "code",
    engine: str = "auto",
    max_upload: int = 32,
    max_seconds: float = 30.0,
    max_concurrency: int = 128,
    batch_window: float = 4.0,
    threads: int = 0,
    as_json: bool = False,
) -> None:
    """Serve a Table over HTTP, with a page to search, look around and review suspicious pairs.

    An API key comes from the environment variable CONSILIENCE_API_KEY or from --api-key-file, never from the command
    line, which other users of the machine can read. One line (with --json one object) says where the server listens;
    SIGTERM or Ctrl-C ends it when the requests in flight are answered.

    Args:
        table: A Table that index has made searchable.
        run: Run folder with the encoders; default the run that filled the Table's vectors.
        host: Address to listen on; others than loopback need an API key, or --open.
        port: Port to listen on; 0 takes a free one.
        open: Listen beyond this machine without an API key: everybody who reaches it may search and review.
        api_key_file: File whose first line is the API key.
        name: Beginning of the names of the vector columns.
        codes: Beginning of the names of the code columns.
        engine: What finds the nearest, as of consilience search.
        max_upload: Megabytes of a request.
        max_seconds: Seconds that a request may take.
        max_concurrency: Requests in flight.
        batch_window: Milliseconds that a query waits for others to be encoded with.
        threads: Threads of the encoders; 0: as torch chooses.
    """
    import json

    from consilience.cli.asking import engine_of, run_of
    from consilience.data.table import Table
    from consilience.errors import InputError
    from consilience.search.searcher import Searcher
    from consilience.serve.app import Options, create_app
    from consilience.serve.limits import Limits
    from consilience.serve.server import listen, serve
    from consilience.training.api import load

    if not 0 <= port <= 65535:
        raise InputError(f"--port {port}: give a number from 0 to 65535")
    key = _key(api_key_file)
    local = is_loopback(host)
    if not local and key is None and not open:
        raise InputError(
            f"--host {host} lets other machines in: give a key ({KEY_VARIABLE} or --api-key-file), or say "
            "--open to let everybody in"
        )
    limits = Limits(
        upload_bytes=max_upload << 20,
        seconds=max_seconds,
        concurrency=max_concurrency,
        window=batch_window / 1000,
    )
    opened = Table.open(table)
    if threads:
        import torch

        torch.set_num_threads(threads)
    searcher = Searcher(load(run_of(opened, run, [name])), opened, name=name, codes=codes, engine=engine_of(engine))
    if not searcher.modalities:
        raise InputError(f"nothing of {table} is searchable with {searcher.run.path}; run: consilience index {table}")
    loopback = frozenset({"127.0.0.1", "localhost", "::1", host.lower()})
    app = create_app(searcher, Options(limits, key, loopback if local else None))
    sock = listen(host, port)

    def announce(url: str) -> None:
        if as_json:
            said = {"url": url, "table": str(opened.path), "run": str(searcher.run.path), "rows": len(opened)}
            print(json.dumps(said | {"modalities": list(searcher.modalities), "key": key is not None}), flush=True)
        else:
            print(f"serving {table} at {url}", flush=True)

    serve(app, sock, announce)


def parse(words: list[str]) -> dict[str, Any] | None:
    """``--open`` stands alone."""
    from consilience.cli.parsing import parse_call

    return parse_call(run, ["--open=true" if word == "--open" else word for word in words], "consilience serve")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on ``host``."""
    from ipaddress import ip_address

    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _key(file: str | None) -> str | None:
    import os
    from pathlib import Path

    from consilience.errors import InputError

    key = os.environ.get(KEY_VARIABLE)
    if file is not None:
        try:
            key = (Path(file).read_text().splitlines() or [""])[0]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--api-key-file {file} cannot be read; give a text file with the key") from error
    if key is None:
        return None
    key = key.strip()
    if len(key) < 16 or not key.isascii():
        raise InputError("the API key is too short; use at least 16 letters: openssl rand -hex 24")
    return key


def show(result: dict[str, Any]) -> None:
    """Nothing: the address was printed when the server began to listen."""
