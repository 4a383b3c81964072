"""What one request may cost, and the one exception that turns a request down."""

from __future__ import annotations

from dataclasses import dataclass, fields

from consilience.errors import InputError


@dataclass(frozen=True)
class Limits:
    """Bounds of a server. Every one of them answers with a 4xx or 5xx and its reason, never with a crash."""

    upload_bytes: int = 32 << 20
    """Bytes of a request's body (413)."""
    files: int = 8
    """Queries of one request (422)."""
    seconds: float = 30.0
    """Time from the first byte of a request to its answer (504)."""
    decode_seconds: float = 10.0
    """Time to decode one upload, in a process of its own (422)."""
    decode_bytes: int = 2 << 30
    """Memory that decoding one upload may take beyond the process itself (422)."""
    decoders: int = 2
    """Processes that decode uploads."""
    concurrency: int = 128
    """Requests in flight (503)."""
    queue: int = 256
    """Queries that wait to be encoded (503)."""
    batch: int = 64
    """Queries encoded at once."""
    window: float = 0.004
    """Seconds that a query waits for others of its modality to share a batch with."""
    k: int = 200
    """Results of one search (422)."""
    characters: int = 4000
    """Letters of a text query (422)."""
    pixels: int = 40_000_000
    """Pixels of an uploaded picture (422)."""
    points: int = 2_000_000
    """Points or vertices of an upload (422)."""
    faces: int = 1_000_000
    """Triangles of an upload (422)."""
    array_bytes: int = 256 << 20
    """Bytes of the arrays in an uploaded .npy or .npz when unpacked (422)."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if not value > 0 and not (entry.name == "window" and value == 0):
                raise InputError(f"limit {entry.name} is {value}; give a positive number")


class Refusal(Exception):
    """A request that is turned down: an HTTP status and one line that says why."""

    def __init__(self, status: int, reason: str, *, cause: str = "", retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after = status, reason, retry_after
        self.cause = cause or str(status)
        """A short name for the metric of rejections."""
