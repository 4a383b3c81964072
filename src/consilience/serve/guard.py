"""What every request passes before and after its handler: host, origin, key, size, concurrency, time, headers, counts.

Plain ASGI, so that a request's body is counted while it arrives and nothing is buffered twice.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from consilience.serve.limits import Limits, Refusal
from consilience.serve.metrics import Metrics

log = logging.getLogger("consilience.serve")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "content-security-policy": POLICY,
}
"""Headers of every answer; one that a handler set itself stays."""
UNLIMITED = ("/health", "/ready", "/metrics")
"""Answered however many requests are in flight."""


class Guard:
    """ASGI middleware around the whole application.

    ``key``: asked of every path below ``/api`` and of ``/metrics``, as ``X-API-Key`` or ``Authorization: Bearer``.
    ``hosts``: names that a request's Host header may have; None allows any. On loopback this keeps a foreign web page
    from reaching the server under a name of its own that it lets point here.
    """

    def __init__(
        self,
        app: App,
        *,
        limits: Limits,
        metrics: Metrics,
        key: str | None = None,
        hosts: frozenset[str] | None = None,
    ) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self.key, self.hosts = key, hosts
        self._in_flight = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        loop = asyncio.get_running_loop()
        begun = loop.time()
        status = 0
        taken = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                there = {name.lower() for name, _ in message["headers"]}
                more = [(n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in there]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.limits.upload_bytes:
                raise self._too_large()
            return message

        counts = scope["path"] not in UNLIMITED
        entered = False
        try:
            self._admit(scope, headers)
            if counts:
                if self._in_flight >= self.limits.concurrency:
                    reason = f"{self.limits.concurrency} requests are being answered; try again in a second"
                    raise Refusal(503, reason, cause="concurrency", retry_after=1)
                self._in_flight += 1
                entered = True
                self.metrics.in_flight.set(self._in_flight)
            async with asyncio.timeout(self.limits.seconds):
                await self.app(scope, counted, answer)
        except TimeoutError:
            await self._refuse(
                Refusal(504, f"no answer within {self.limits.seconds:g} s; ask for less", cause="time"), status, answer
            )
        except Refusal as refusal:
            await self._refuse(refusal, status, answer)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            await self._refuse(Refusal(500, "failed unexpectedly; the server's log says more"), status, answer)
        finally:
            if entered:
                self._in_flight -= 1
                self.metrics.in_flight.set(self._in_flight)
            route = getattr(scope.get("route"), "path", "") or "other"
            self.metrics.requests.labels(
                scope["method"] if scope["method"] in _METHODS else "other", route, status
            ).inc()
            self.metrics.seconds.labels(route).observe(loop.time() - begun)

    def _admit(self, scope: Message, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        if self.hosts is not None and urlsplit(f"//{host}").hostname not in self.hosts:
            raise Refusal(421, "this server does not answer to that name; use its address", cause="host")
        if scope["method"] not in ("GET", "HEAD"):
            origin = headers.get("origin")
            foreign = origin is not None and urlsplit(origin).netloc != host
            if foreign or headers.get("sec-fetch-site", "same-origin") in ("cross-site", "same-site"):
                raise Refusal(403, "requests from pages of other sites are not taken", cause="origin")
        path = scope["path"]
        if self.key is not None and (path.startswith("/api/") or path == "/metrics") and not self._knows_key(headers):
            raise Refusal(401, "send the API key: X-API-Key: KEY, or Authorization: Bearer KEY", cause="key")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 18:
            raise Refusal(400, "the content-length is no number", cause="broken")
        if int(length) > self.limits.upload_bytes:
            raise self._too_large()

    def _knows_key(self, headers: dict[str, str]) -> bool:
        assert self.key is not None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = headers.get("x-api-key") or (token.strip() if scheme.lower() == "bearer" else "")
        return hmac.compare_digest(given.encode(), self.key.encode())

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the request is larger than {self.limits.upload_bytes} bytes", cause="size")

    async def _refuse(self, refusal: Refusal, status: int, answer: Send) -> None:
        if status:  # the answer has begun; all that is left is to break it off
            return
        self.metrics.rejections.labels(refusal.cause).inc()
        body, headers = refusal_body(refusal)
        start = {"type": "http.response.start", "status": refusal.status}
        await answer({**start, "headers": [(name.encode(), value.encode()) for name, value in headers.items()]})
        await answer({"type": "http.response.body", "body": body})


_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def refusal_body(refusal: Refusal) -> tuple[bytes, dict[str, str]]:
    """The JSON and the headers of an answer that turns a request down."""
    body = json.dumps({"error": refusal.reason, "status": refusal.status}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    if refusal.retry_after is not None:
        headers["retry-after"] = str(refusal.retry_after)
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    if refusal.status in (413, 504):
        headers["connection"] = "close"
    return body, headers
