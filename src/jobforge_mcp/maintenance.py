"""What has to be done although nobody calls: events whose triggers were not asked, and schedules that are due.

Any number of processes may run it: servers with workers, the local node, ``jobforge worker``. They need not know of each
other, because each act is one statement that the database lets one of them do: a stored event is claimed for half a minute
and processed once, and the time of a schedule has one row. A process that dies between two statements leaves nothing half
done; another finds the same work within seconds.

Who has just stored an event, or set a schedule, wakes whoever sleeps here, by a notification that is a hint: without one the next
look is a second away, or five where notifications arrive.
"""

from __future__ import annotations

import time
from uuid import uuid4

import anyio
import anyio.lowlevel
import structlog

from jobforge_mcp.db.notify import EVENTS, Listener, Subscription
from jobforge_mcp.definitions.catalog import BoundDefinitions
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.errors import ConflictError, JobForgeError
from jobforge_mcp.router.maintenance import MaintenanceRouter
from jobforge_mcp.triggers.evaluating import evaluate_trigger, event_scope
from jobforge_mcp.triggers.planning import plan_due
from jobforge_mcp.types import Candidate, PendingEvent, TenantId

POLL_SECONDS = 1.0
"""Most time between two looks, whatever is due when, while notifications do not arrive."""
REST_POLLS = 5
"""Polls between two looks while they do."""
ASK_SECONDS = 10.0
"""How long one request to be notified lasts."""
BATCH = 100
STRANGE_SECONDS = 120.0
"""How long a trigger waits for a process that knows its job; then whoever comes says that there is none."""

_log = structlog.stdlib.get_logger(__name__)


class Maintenance:
    """Maintains one database, with the jobs that this process knows."""

    def __init__(
        self,
        router: MaintenanceRouter,
        registry: Registry,
        *,
        most_depth: int = 20,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """Act through this router; ``most_depth`` is where the loop guard stops a chain of events."""
        self._router = router
        self._poll_seconds = poll_seconds
        self._name = f"maintenance:{uuid4().hex}"
        self._asked_until = 0.0
        self._definitions = BoundDefinitions(registry)
        self._most_depth = most_depth

    async def run(self, listener: Listener) -> None:
        """Do what there is to do, until cancelled; trouble is logged and waited out."""
        with listener.subscribe(EVENTS) as hints:
            while True:
                done = 0
                try:
                    await self._ask_for_hints()
                    done = await self.run_once()
                except JobForgeError as error:
                    _log.warning("maintenance_failed", code=error.code, reason=error.message)
                except Exception:  # noqa: BLE001  # whatever it is, the next round may do better, and serving goes on
                    _log.exception("maintenance_failed")
                most = self._poll_seconds * (REST_POLLS if listener.is_healthy else 1)
                await self._rest(hints, 0 if done else await self._pause(most))

    async def _ask_for_hints(self) -> None:
        """Ask before looking, so that what is stored in between is either seen or announced."""
        if time.monotonic() >= self._asked_until:
            until = time.monotonic() + ASK_SECONDS
            await self._router.await_wakeup(self._name, "events", int(ASK_SECONDS * 1_000) + 2_000)
            self._asked_until = until

    async def _rest(self, hints: Subscription, seconds: float) -> None:
        """Wait for a hint or for so long, and always long enough that others get their turn."""
        await anyio.lowlevel.checkpoint()
        await hints.wait(seconds)

    async def run_once(self) -> int:
        """Do what there is to do now, and return how much that was."""
        return await self.process_events() + await self.fire_due()

    async def fire_due(self) -> int:
        """Let schedules that are due decide; return how many times were decided by this call."""
        decided = 0
        for due in await self._router.due_triggers(BATCH):
            waited = (due.observed_at - due.due_at).total_seconds()
            if not self._knows(due.tenant_id, [due.candidate]) and waited < STRANGE_SECONDS:
                continue
            try:
                fires = await self._router.fire_due_triggers([plan_due(self._definitions, due)])
            except JobForgeError as error:  # the others are due as well
                _log.warning(
                    "schedule_failed",
                    tenant_id=due.tenant_id,
                    trigger=due.candidate.trigger_name,
                    code=error.code,
                    reason=error.message,
                )
                continue
            decided += len(fires)
        return decided

    async def _pause(self, most: float) -> float:
        """Return how long nothing is due, bounded."""
        try:
            due_in = await self._router.next_due_in()
        except JobForgeError:
            due_in = None
        return most if due_in is None else min(max(due_in, 0.05), most)

    async def process_events(self) -> int:
        """Ask the triggers of stored events that nobody asked yet; return how many events that were."""
        events = await self._router.claim_events(BATCH)
        candidates = await self._router.match_events(events)
        for event in events:
            await self._process(event, candidates[event.event_id])
        return len(events)

    async def _process(self, event: PendingEvent, candidates: list[Candidate]) -> None:
        if not self._knows(event.tenant_id, candidates) and event.waited_seconds < STRANGE_SECONDS:
            return  # left to a process with more jobs, when this claim has ended
        scope = event_scope(event, event.payload)
        fires = [
            evaluate_trigger(self._definitions, event.tenant_id, candidate, scope)
            for candidate in candidates
        ]
        try:
            await self._router.process_event(event, fires, most_depth=self._most_depth)
        except ConflictError:
            # one of its triggers changed meanwhile: once, with what they are now; else when the claim has ended
            found = await self._router.match_events([event])
            fires = [
                evaluate_trigger(self._definitions, event.tenant_id, candidate, scope)
                for candidate in found[event.event_id]
            ]
            await self._router.process_event(event, fires, most_depth=self._most_depth)

    def _knows(self, tenant_id: TenantId, candidates: list[Candidate]) -> bool:
        return all(
            candidate.is_removed  # nobody else would know more
            or self._definitions.is_known(tenant_id, candidate.job_name, candidate.definition)
            for candidate in candidates
        )
