"""What maintenance does for all tenants: one method for each SQL function it has of its own.

These belong to the roles ``jobforge_worker`` and ``jobforge_scheduler``: they see every tenant's events and triggers, and
enter the scope of each by what the database itself knows, so no server that callers reach may call them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import LiteralString
from uuid import UUID

from jobforge_mcp.db.pool import Database, Row
from jobforge_mcp.router.errors import translated
from jobforge_mcp.router.events import fires_json, to_candidate
from jobforge_mcp.types import (
    Candidate,
    Fire,
    FireDecision,
    JobId,
    PendingEvent,
    TriggerDecision,
)

_CLAIM_EVENTS: LiteralString = "select r.* from jobforge.claim_events(%s::int) as r"
_MATCH_EVENTS: LiteralString = "select r.* from jobforge.match_events(%s::text[], %s::uuid[]) as r"
_PROCESS_EVENT: LiteralString = (
    "select r.* from jobforge.process_event(%s::text, %s::uuid, %s::jsonb, %s::int) as r"
)


class MaintenanceRouter:
    """The functions of maintenance, over an open `Database` of role ``jobforge_worker`` or ``jobforge_scheduler``."""

    def __init__(self, database: Database) -> None:
        """Speak through this pool."""
        self._database = database

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

    async def _fetch(
        self, query: LiteralString, arguments: Sequence[object], *, is_repeatable: bool = False
    ) -> list[Row]:
        with translated():
            return await self._database.fetch(query, arguments, is_repeatable=is_repeatable)
