"""What the tools act on, handed in by the composition root, and what they know of one call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from jobforge_mcp.definitions.catalog import Catalog
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.evidence.stores import ContentStore, open_store
from jobforge_mcp.permits import Permits
from jobforge_mcp.policy.denials import Denials
from jobforge_mcp.policy.gate import Gate
from jobforge_mcp.policy.living import LivingTokens
from jobforge_mcp.progress import RunWatcher
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.server.metrics import Metrics
from jobforge_mcp.settings import Settings
from jobforge_mcp.triggers.desk import EventDesk
from jobforge_mcp.types import Caller, CallOrigin, ClaimedJob, JobId, WorkerId

Check = Callable[[], Awaitable[None]]
"""Returns when a part is ready, raises when it is not."""


class Reservation(AbstractContextManager["Reservation"], Protocol):
    """One slot kept for a job that is just being enqueued; leaving its block gives back what was not used."""

    def adopt(self, claimed: ClaimedJob, *, leased_at: float | None = None) -> None:
        """Run a job that was inserted already leased to this process; ``leased_at`` is the monotonic time before."""
        ...


class InlinePool(Protocol):
    """What an inline call needs of the embedded worker pool."""

    worker_id: WorkerId

    @property
    def free_slots(self) -> int:
        """How many more jobs could start now."""
        ...

    @property
    def job_types(self) -> Sequence[str]:
        """What the pool runs."""
        ...

    def try_reserve(self, lane_type: str | None = None) -> Reservation | None:
        """Keep one slot, if one is free."""
        ...

    def cancel(self, job_id: JobId) -> None:
        """Stop a job whose cancellation was committed, if it runs here."""
        ...


@dataclass(frozen=True, slots=True)
class ServerParts:
    """Everything behind the tools."""

    registry: Registry
    """Jobs installed with this process."""
    catalog: Catalog
    """The same, and those that tenants registered."""
    permits: Permits
    """Asks definitions what a caller may do to runs."""
    router: Router
    desk: EventDesk
    """Events and triggers."""
    gate: Gate
    watcher: RunWatcher
    settings: Settings
    pool: InlinePool | None = None
    """The embedded worker pool; ``None`` where other processes do the work."""
    denials: Denials | None = None
    """Writes refused calls into the audit log."""
    living: LivingTokens | None = None
    """Asked about a token before anything is answered from memory."""
    metrics: Metrics = field(default_factory=Metrics)
    artifacts: ContentStore | None = None
    """Where large artifacts lie; ``None`` has it opened from the settings when it is first asked for."""
    secret: Callable[[str], str] | None = None
    """Fetches a secret that checks webhooks, by name; ``None`` where none are known."""
    checks: Mapping[str, Check] = field(default_factory=dict[str, Check])
    """What ``/ready`` asks, by name: database, listener, migrations, pool."""

    def artifact_store(self) -> ContentStore:
        """Return where large artifacts lie."""
        return self.artifacts or open_store(self.settings)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool, after the gate."""

    caller: Caller
    tool: str
    trace_id: str
    report: Callable[[float, float | None, str | None], Awaitable[None]]
    """Sends progress to whoever waits; does nothing when nobody listens."""

    @property
    def origin(self) -> CallOrigin:
        """The same for the audit log."""
        return CallOrigin(tool=self.tool, trace_id=self.trace_id)
