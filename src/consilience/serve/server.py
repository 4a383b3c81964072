"""Run the application: listen, say where, answer until a signal, then let what runs finish."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from consilience.errors import ConsilienceError, InputError

GRACE = 30
"""Seconds that requests in flight may take to finish after a signal."""


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; ``port`` 0 takes a free one. Raises InputError for names, :class:`ConsilienceError` for ports
    that cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host!r} is no address of this machine; use 127.0.0.1") from error
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(2048)
    except OSError as error:
        sock.close()
        reason = error.strerror or str(error)
        raise ConsilienceError(f"cannot listen on {host} port {port}: {reason}; choose another with --port") from error
    return sock


def address(sock: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def _signals(server: uvicorn.Server) -> Iterator[None]:
    """Signals end the server in an orderly way and the process with 0; uvicorn's own way ends it by the signal."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.handle_exit, number, None)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def serve(app: FastAPI, sock: socket.socket, announce: Callable[[str], None], *, grace: int = GRACE) -> None:
    """Answer requests until SIGTERM or SIGINT; requests in flight then have ``grace`` seconds to finish.

    ``announce`` is told the URL once requests are answered. Raises :class:`ConsilienceError` when the start fails.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_keep_alive=15,
        timeout_graceful_shutdown=grace,
        h11_max_incomplete_event_size=64 << 10,
    )
    server = uvicorn.Server(config)
    server.capture_signals = lambda: _signals(server)

    async def run() -> None:
        task = asyncio.create_task(server.serve(sockets=[sock]))
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        if server.started:
            announce(address(sock))
        await task

    asyncio.run(run())
    if not server.started:
        raise ConsilienceError("the server could not start; its log above says why")
