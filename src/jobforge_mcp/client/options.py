"""How a job is to be enqueued, beside its name and input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Options:
    """How a job is to be enqueued, beside its name and input."""

    idempotency_key: str | None = None
    """Enqueue once, however often this call is repeated. Needed by jobs with external effects."""
    ordering_key: str | None = None
    """Jobs of one key run one after the other, in the order they were enqueued."""
    priority: int = 2
    """0 is the most urgent, 3 the least."""
    run_at: datetime | None = None
    """Not before this time."""
    project_id: str | None = None
    labels: Mapping[str, str] | None = None
    trace_id: str | None = None
    is_dry_run: bool = False
    """Rehearse: run the handler with ``dry_run`` set, which is its own business to honour. A key of a rehearsal is a conflict for the real thing."""


DEFAULTS = Options()
