"""What the server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """One registry a server. Routes are the templates of paths, so that labels stay few."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self.requests = Counter("consilience_requests", "Requests", ["method", "route", "status"], registry=own)
        self.seconds = Histogram(
            "consilience_request_seconds", "Seconds to answer", ["route"], buckets=_SECONDS, registry=own
        )
        self.stages = Histogram(
            "consilience_stage_seconds", "Seconds of a stage of a search", ["stage"], buckets=_SECONDS, registry=own
        )
        self.batches = Histogram(
            "consilience_batch_size", "Queries encoded together", ["modality"], buckets=_SIZES, registry=own
        )
        self.rejections = Counter("consilience_rejections", "Requests turned down", ["reason"], registry=own)
        self.in_flight = Gauge("consilience_requests_in_flight", "Requests being answered", registry=own)
        self.queue = Gauge("consilience_queue_depth", "Queries that wait to be encoded", registry=own)
        self.rows = Gauge("consilience_table_rows", "Rows of the Table", registry=own)
        self.version = Gauge("consilience_table_version", "Version of the Table being served", registry=own)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return bytes(generate_latest(self.registry))
