"""What maintenance does for all tenants: one method for each SQL function it has of its own.

These belong to the roles ``jobforge_worker`` and ``jobforge_scheduler``: they see every tenant's events and triggers, and
enter the scope of each by what the database itself knows, so no server that callers reach may call them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import LiteralString
from uuid import UUID

from jobforge_mcp.db.pool import Database, Row
from jobforge_mcp.router.errors import translated
from jobforge_mcp.router.events import fire_object, fires_json, to_candidate
from jobforge_mcp.types import (
    Candidate,
    DuePlan,
    DueTrigger,
    Fire,
    FireDecision,
    JobId,
    JsonObject,
    PendingEvent,
    ScheduleFire,
    TriggerDecision,
)

_CLAIM_EVENTS: LiteralString = "select r.* from jobforge.claim_events(%s::int) as r"
_PURGE_FINISHED: LiteralString = (
    "select r.runs, r.idempotency_keys from jobforge.purge_finished(%s::int) as r"
)
_PURGE_EVENTS: LiteralString = "select r.count from jobforge.purge_events(%s::int) as r(count)"
_MATCH_EVENTS: LiteralString = "select r.* from jobforge.match_events(%s::text[], %s::uuid[]) as r"
_DUE_TRIGGERS: LiteralString = "select r.* from jobforge.due_triggers(%s::int) as r"
_NEXT_DUE: LiteralString = """
    select extract(epoch from jobforge.next_due_at() - jobforge.now())::float8 as seconds"""
_FIRE_DUE: LiteralString = "select r.* from jobforge.fire_due_triggers(%s::jsonb) as r"
_PROCESS_EVENT: LiteralString = (
    "select r.* from jobforge.process_event(%s::text, %s::uuid, %s::jsonb, %s::int) as r"
)


class MaintenanceRouter:
    """The functions of maintenance, over an open `Database` of role ``jobforge_worker`` or ``jobforge_scheduler``."""

    def __init__(self, database: Database) -> None:
        """Speak through this pool."""
        self._database = database

    async def await_wakeup(self, listener_id: str, topic: str, for_ms: int) -> None:
        """Ask that ``jobforge_<topic>`` be notified for so long."""
        await self._fetch(
            "select from jobforge.await_wakeup(%s, %s, %s)",
            [listener_id, topic, for_ms],
            is_repeatable=True,
        )

    async def claim_events(self, limit: int = 100) -> list[PendingEvent]:
        """Take events whose triggers nobody asked, for half a minute."""
        rows = await self._fetch(_CLAIM_EVENTS, [limit])
        return [
            PendingEvent(
                tenant_id=row["tenant_id"],
                event_id=row["event_id"],
                event_type=row["event_type"],
                source=row["source"],
                subject=row["subject"],
                project_id=row["project_id"],
                trace_id=row["trace_id"],
                occurred_at=row["occurred_at"],
                payload=row["payload"],
                waited_seconds=row["waited_seconds"],
            )
            for row in rows
        ]

    async def purge_finished(self, limit: int = 1_000) -> int:
        """Remove runs that were kept long enough, and expired idempotency keys; return how many rows."""
        (row,) = await self._fetch(_PURGE_FINISHED, [limit])
        runs: int = row["runs"]
        keys: int = row["idempotency_keys"]
        return runs + keys

    async def purge_events(self, limit: int = 1_000) -> int:
        """Remove events that expired, with the decisions about them; return how many rows."""
        (row,) = await self._fetch(_PURGE_EVENTS, [limit])
        count: int = row["count"]
        return count

    async def match_events(self, events: Sequence[PendingEvent]) -> dict[UUID, list[Candidate]]:
        """Find the triggers that could want each of these events."""
        found: dict[UUID, list[Candidate]] = {event.event_id: [] for event in events}
        if not events:
            return found
        tenants = [event.tenant_id for event in events]
        ids = [event.event_id for event in events]
        for row in await self._fetch(_MATCH_EVENTS, [tenants, ids], is_repeatable=True):
            found[row["event_id"]].append(to_candidate(row))
        return found

    async def process_event(
        self, event: PendingEvent, fires: Sequence[Fire], *, most_depth: int
    ) -> list[TriggerDecision]:
        """Let the triggers of a stored event decide; nothing where that was done meanwhile.

        Raises:
            ConflictError: ``TRIGGERS_CHANGED``: evaluate again.
        """
        arguments = [event.tenant_id, event.event_id, fires_json(fires), most_depth]
        rows = await self._fetch(_PROCESS_EVENT, arguments, is_repeatable=True)
        return [
            TriggerDecision(
                trigger_name=row["trigger_name"],
                job_name=None,
                decision=FireDecision(row["decision"]),
                reason=row["reason"],
                job_id=None if row["job_id"] is None else JobId(row["job_id"]),
            )
            for row in rows
        ]

    async def due_triggers(self, limit: int = 100) -> list[DueTrigger]:
        """Find schedules that are due."""
        return [
            DueTrigger(
                tenant_id=row["tenant_id"],
                candidate=to_candidate(row),
                cron=row["cron"],
                timezone=row["timezone"],
                catch_up=row["catch_up"],
                catch_up_most=row["catch_up_most"],
                jitter_ms=row["jitter_ms"],
                due_at=row["next_fire_at"],
                observed_at=row["observed_at"],
            )
            for row in await self._fetch(_DUE_TRIGGERS, [limit], is_repeatable=True)
        ]

    async def fire_due_triggers(self, plans: Sequence[DuePlan]) -> list[ScheduleFire]:
        """Let schedules decide about their times, once whoever asks; nothing for those that another one fired."""
        written = json.dumps([_plan_object(plan) for plan in plans])
        return [
            ScheduleFire(
                tenant_id=row["tenant_id"],
                trigger_name=row["trigger_name"],
                scheduled_at=row["scheduled_at"],
                decision=FireDecision(row["decision"]),
                reason=row["reason"],
                job_id=None if row["job_id"] is None else JobId(row["job_id"]),
            )
            for row in await self._fetch(_FIRE_DUE, [written], is_repeatable=True)
        ]

    async def next_due_in(self) -> float | None:
        """Read in how many seconds the next schedule is due, of all tenants; ``None`` if none is."""
        rows = await self._fetch(_NEXT_DUE, [], is_repeatable=True)
        seconds: float | None = rows[0]["seconds"]
        return seconds

    async def _fetch(
        self, query: LiteralString, arguments: Sequence[object], *, is_repeatable: bool = False
    ) -> list[Row]:
        with translated():
            return await self._database.fetch(query, arguments, is_repeatable=is_repeatable)


def _plan_object(plan: DuePlan) -> JsonObject:
    written: JsonObject = {
        "tenant": plan.due.tenant_id,
        "trigger": plan.due.candidate.trigger_name,
        "version": plan.due.candidate.version,
        "due": plan.due.due_at.isoformat(),
        "times": [
            {
                **fire_object(time.fire),
                "at": time.at.isoformat(),
                "runAt": time.run_at.isoformat(),
                "isLate": time.is_late,
            }
            for time in plan.times
        ],
    }
    if plan.next_at is not None:
        written["next"] = plan.next_at.isoformat()
    if plan.problem is not None:
        written["disabledReason"] = plan.problem
    return written
