"""Counters and times of this process's doors, for ``/metrics``; the database's own figures are ``queue_stats``."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 45)


class Metrics:
    """Prometheus figures of one process, in a registry of their own. Labels hold names of tools and codes only."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.calls = Counter(
            "jobforge_tool_calls",
            "Tool calls by tool and outcome: ok, run_failed, an error code.",
            ("tool", "outcome"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "jobforge_tool_call_seconds",
            "Time a tool call took, waiting included.",
            ("tool",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.refusals = Counter(
            "jobforge_http_refusals",
            "HTTP requests refused before they reached MCP, by status.",
            ("status",),
            registry=self.registry,
        )
        self.inline = Counter(
            "jobforge_inline_starts",
            "Jobs handed to the embedded pool in the statement that enqueued them.",
            registry=self.registry,
        )
        self.waiting = Gauge(
            "jobforge_waiting_calls", "Calls that wait for a run now.", registry=self.registry
        )
        self.free_slots = Gauge(
            "jobforge_pool_free_slots", "Free slots of the embedded pool.", registry=self.registry
        )

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)
