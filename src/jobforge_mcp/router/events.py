"""What callers do with events and triggers: one method for each SQL function of the role ``jobforge_api``.

As in `jobforge_mcp.router.jobs`, every method is one statement in a transaction of its own, in the caller's scope. Which
trigger fires is decided by the database; what a `Fire` holds was worked out one layer above.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, LiteralString, cast
from uuid import UUID

from jobforge_mcp.db.pool import Database, Row
from jobforge_mcp.router.definitions import DefinitionRouter
from jobforge_mcp.router.errors import translated
from jobforge_mcp.router.rows import to_json
from jobforge_mcp.router.scope import SCOPE, ScopeSigner
from jobforge_mcp.router.scoped import NO_ORIGIN, ScopedRouter
from jobforge_mcp.router.webhooks import WebhookRouter
from jobforge_mcp.types import (
    Caller,
    CallOrigin,
    Candidate,
    CurrentDefinition,
    EnqueueOutcome,
    Event,
    EventFilter,
    Fire,
    FireDecision,
    FireFilter,
    JobId,
    JsonObject,
    JsonValue,
    NewEvent,
    Registered,
    Registrar,
    SubmittedEvent,
    Trigger,
    TriggerDecision,
    TriggerFilter,
    TriggerFire,
    TriggerKind,
    TriggerSpec,
)

SUBMIT_EVENT: LiteralString = f"""
    select r.* from {SCOPE}, lateral jobforge.submit_event(s.tenant_id, %s::text, %s::jsonb, %s::text, %s::text,
      %s::timestamptz, %s::text, %s::text, %s::text, %s::boolean, %s::jsonb, %s::jsonb, %s::jsonb, %s::int, %s::boolean) as r"""
_LIST_EVENTS: LiteralString = f"""
    select r.* from {SCOPE}, lateral jobforge.list_events(s.tenant_id, %s::text, %s::text, %s::timestamptz, %s::text,
      %s::text, %s::boolean, %s::uuid, %s::int) as r"""
_MATCH_TRIGGERS: LiteralString = f"""
    select r.* from {SCOPE}, lateral jobforge.match_triggers(s.tenant_id, %s::text, %s::text, %s::text, %s::text,
      %s::boolean, %s::jsonb) as r"""
_REGISTER_TRIGGER: LiteralString = f"""
    select r.* from {SCOPE}, lateral jobforge.register_trigger(s.tenant_id, %s::text, %s::text, %s::text, %s::text, %s::text,
      %s::text, %s::text, %s::int, %s::text, %s::int, %s::text, %s::text, %s::jsonb, %s::jsonb, %s::jsonb, %s::jsonb, %s::int,
      %s::int, %s::boolean, %s::boolean, %s::timestamptz, %s::text[], %s::text[], %s::boolean) as r"""
_LIST_TRIGGERS: LiteralString = f"""
    select r.* from {SCOPE}, lateral jobforge.list_triggers(s.tenant_id, %s::text, %s::text, %s::text, %s::text, %s::text,
      %s::int) as r"""
_REMOVE_TRIGGER: LiteralString = f"""
    select r.* from {SCOPE}, lateral jobforge.remove_trigger(s.tenant_id, %s::text, %s::boolean) as r"""
_PAUSE_TRIGGER: LiteralString = f"""
    select r.outcome from {SCOPE}, lateral jobforge.pause_trigger(s.tenant_id, %s::text) as r(outcome)"""
_RESUME_TRIGGER: LiteralString = f"""
    select r.outcome from {SCOPE}, lateral jobforge.resume_trigger(s.tenant_id, %s::text, %s::timestamptz, %s::int)
      as r(outcome)"""
_RUN_TRIGGER: LiteralString = f"""
    select r.* from {SCOPE}, lateral jobforge.run_trigger(s.tenant_id, %s::text, %s::jsonb, %s::text, %s::boolean) as r"""
_LIST_FIRES: LiteralString = f"""
    select r.* from {SCOPE}, lateral jobforge.list_trigger_fires(s.tenant_id, %s::text, %s::text, %s::uuid,
      %s::timestamptz, %s::int) as r"""


class EventRouter(ScopedRouter):
    """The functions about events and triggers, over an open `Database` of role ``jobforge_api``."""

    def __init__(self, database: Database, *, signer: ScopeSigner | None = None) -> None:
        """Speak through this pool, with scopes signed where the database asks for that."""
        super().__init__(database, signer=signer)
        self.definitions = DefinitionRouter(database, signer=signer)
        """About the jobs that are registered."""
        self.webhooks = WebhookRouter(database, signer=signer)
        """About deliveries that become events."""

    async def now(self) -> datetime:
        """Read the database's clock, by which schedules go."""
        with translated():
            rows = await self._database.fetch("select jobforge.now() as now", is_repeatable=True)
        now: datetime = rows[0]["now"]
        return now

    async def match_triggers(
        self, caller: Caller, event: NewEvent, *, origin: CallOrigin = NO_ORIGIN
    ) -> tuple[list[Candidate], str]:
        """Find the triggers that could want an event, and the payload as they may see it."""
        is_flagged = event.contains_pii or event.redaction_hints is not None
        arguments = [
            event.event_type,
            event.source,
            event.project_id,
            event.payload if is_flagged else None,
            event.contains_pii,
            to_json(event.redaction_hints),
        ]
        rows = await self._fetch(
            caller, _MATCH_TRIGGERS, arguments, origin=origin, is_repeatable=True
        )
        shown = next((row["payload"] for row in rows if row["payload"] is not None), event.payload)
        return [to_candidate(row) for row in rows], shown

    async def submit_event(
        self,
        caller: Caller,
        event: NewEvent,
        fires: Sequence[Fire] | None,
        *,
        most_depth: int,
        origin: CallOrigin = NO_ORIGIN,
        is_plan: bool = False,
    ) -> SubmittedEvent:
        """Store an event and let the triggers decide that were evaluated; ``None`` leaves them to maintenance.

        Raises:
            InvalidInputError: a value does not fit.
            PolicyDeniedError: the caller may not submit events of this type, or in this project.
            ConflictError: ``TRIGGERS_CHANGED``: a trigger changed since it was evaluated; evaluate again.
        """
        arguments = [
            *event_values(event),
            None if fires is None else fires_json(fires),
            most_depth,
            is_plan,
        ]
        rows = await self._fetch(
            caller,
            SUBMIT_EVENT,
            arguments,
            origin=origin,
            is_repeatable=is_plan or event.idempotency_key is not None,
        )
        return to_submitted(rows)

    async def list_events(self, caller: Caller, wanted: EventFilter) -> list[Event]:
        """Read a page of events, newest first, with what they hide struck out."""
        arguments = [
            wanted.event_type,
            wanted.source,
            wanted.since,
            wanted.trace_id,
            wanted.project_id,
            wanted.is_processed,
            wanted.before_id,
            wanted.limit,
        ]
        rows = await self._fetch(caller, _LIST_EVENTS, arguments, is_repeatable=True)
        return [Event(**row) for row in rows]

    async def register_trigger(
        self,
        caller: Caller,
        spec: TriggerSpec,
        *,
        next_fire_at: datetime | None = None,
        origin: CallOrigin = NO_ORIGIN,
        is_plan: bool = False,
    ) -> Registered:
        """Register a trigger or change one, to act with the caller's rights.

        Raises:
            PolicyDeniedError: the caller may not start this job, or its token is good for one write.
            ConflictError: the name is somebody else's, or the next time has passed meanwhile.
        """
        arguments = [
            spec.name,
            spec.kind.value,
            spec.job_name,
            spec.project_id,
            spec.cron,
            spec.timezone,
            spec.catch_up,
            spec.catch_up_most,
            spec.overlap,
            spec.jitter_ms,
            spec.event_type,
            spec.event_source,
            to_json(spec.match),
            to_json(spec.input_mapping),
            to_json(spec.input),
            to_json(spec.dedupe_key),
            spec.cooldown_ms,
            spec.max_per_hour,
            spec.is_enabled,
            spec.is_dry_run,
            next_fire_at,
            sorted(caller.scopes),
            sorted(caller.roles),
            is_plan,
        ]
        rows = await self._fetch(
            caller, _REGISTER_TRIGGER, arguments, origin=origin, is_repeatable=True
        )
        return Registered(**rows[0])

    async def list_triggers(self, caller: Caller, wanted: TriggerFilter) -> list[Trigger]:
        """Read a page of triggers, by name."""
        arguments = [
            wanted.name,
            None if wanted.kind is None else wanted.kind.value,
            wanted.job_name,
            wanted.project_id,
            wanted.after,
            wanted.limit,
        ]
        rows = await self._fetch(caller, _LIST_TRIGGERS, arguments, is_repeatable=True)
        return [_to_trigger(row) for row in rows]

    async def remove_trigger(
        self,
        caller: Caller,
        name: str,
        *,
        origin: CallOrigin = NO_ORIGIN,
        is_plan: bool = False,
    ) -> str:
        """Remove a trigger and keep its history.

        Raises:
            NotFoundError: there is none, or not for this caller.
        """
        rows = await self._fetch(
            caller, _REMOVE_TRIGGER, [name, is_plan], origin=origin, is_repeatable=is_plan
        )
        outcome: str = rows[0]["outcome"]
        return outcome

    async def pause_trigger(
        self, caller: Caller, name: str, *, origin: CallOrigin = NO_ORIGIN
    ) -> str:
        """Let a trigger decide nothing for now; what is due meanwhile is not caught up.

        Raises:
            NotFoundError: there is none, or not for this caller.
        """
        rows = await self._fetch(caller, _PAUSE_TRIGGER, [name], origin=origin, is_repeatable=True)
        outcome: str = rows[0]["outcome"]
        return outcome

    async def resume_trigger(
        self,
        caller: Caller,
        name: str,
        *,
        next_fire_at: datetime | None = None,
        if_version: int | None = None,
        origin: CallOrigin = NO_ORIGIN,
    ) -> str:
        """Let a paused trigger decide again.

        Raises:
            NotFoundError: there is none, or not for this caller.
            ConflictError: ``TRIGGERS_CHANGED``: it changed, or its next time has passed.
        """
        arguments = [name, next_fire_at, if_version]
        rows = await self._fetch(
            caller, _RESUME_TRIGGER, arguments, origin=origin, is_repeatable=True
        )
        outcome: str = rows[0]["outcome"]
        return outcome

    async def run_trigger(
        self,
        caller: Caller,
        fire: Fire,
        *,
        idempotency_key: str | None = None,
        origin: CallOrigin = NO_ORIGIN,
        is_plan: bool = False,
    ) -> TriggerDecision:
        """Fire a trigger by hand, with its registrar's rights.

        Raises:
            NotFoundError: there is none, or not for this caller.
            ConflictError: ``TRIGGERS_CHANGED``: it changed since the fire was worked out.
        """
        arguments = [
            fire.trigger_name,
            json.dumps(fire_object(fire)),
            idempotency_key,
            is_plan,
        ]
        rows = await self._fetch(
            caller,
            _RUN_TRIGGER,
            arguments,
            origin=origin,
            is_repeatable=is_plan or idempotency_key is not None,
        )
        return TriggerDecision(
            trigger_name=rows[0]["trigger_name"],
            job_name=fire.job.job_type if fire.job is not None else None,
            decision=FireDecision(rows[0]["decision"]),
            reason=rows[0]["reason"],
            job_id=rows[0]["job_id"],
        )

    async def list_trigger_fires(self, caller: Caller, wanted: FireFilter) -> list[TriggerFire]:
        """Read what triggers decided, newest first."""
        arguments = [
            wanted.trigger_name,
            None if wanted.decision is None else wanted.decision.value,
            wanted.event_id,
            wanted.before,
            wanted.limit,
        ]
        rows = await self._fetch(caller, _LIST_FIRES, arguments, is_repeatable=True)
        return [_to_fire(row) for row in rows]


def fires_json(fires: Sequence[Fire]) -> str:
    """Write what was worked out for triggers, as ``p_fires`` takes it."""
    return json.dumps([fire_object(fire) for fire in fires], ensure_ascii=False)


def fire_object(fire: Fire) -> JsonObject:
    """Write what was worked out for one trigger."""
    written: JsonObject = {
        "trigger": fire.trigger_name,
        "version": fire.version,
        "decision": "fire" if fire.job is not None else (fire.decision or FireDecision.ERROR).value,
    }
    if fire.definition is not None:
        written["definition"] = fire.definition
    if fire.reason is not None:
        written["reason"] = fire.reason
    if fire.key is not None:
        written["key"] = fire.key
    if fire.job is not None:
        written |= {
            "payload": fire.job.payload,
            "received": fire.job.received,
            "jobVersion": fire.job.job_version,
            "maxAttempts": fire.job.max_attempts,
            "backoffMs": fire.job.backoff_ms,
            "backoffMultiplier": fire.job.backoff_multiplier,
            "maxBackoffMs": fire.job.max_backoff_ms,
            "timeoutMs": fire.job.timeout_ms,
            "cost": fire.job.cost,
            "laneType": fire.job.lane_type,
            "claimLimits": fire.job.claim_limits,
        }
    return written


def to_candidate(row: Row) -> Candidate:
    """Read a trigger that could want an event."""
    return Candidate(
        trigger_name=row["trigger_name"],
        version=row["version"],
        job_name=row["job_name"],
        project_id=row["project_id"],
        match=_from_json(row["match"]),
        input_mapping=_from_json(row["input_mapping"]),
        input=cast("JsonObject | None", _from_json(row["input"])),
        dedupe_key=_from_json(row["dedupe_key"]),
        registrar=_to_registrar(row),
        definition=_to_definition(row),
        is_removed=row["is_removed"],
    )


def _to_definition(row: Row) -> CurrentDefinition | None:
    if row["definition"] is None:
        return None
    return CurrentDefinition(
        row["job_name"], row["job_version"], row["lane_type"], row["definition"]
    )


def _to_registrar(row: Row) -> Registrar:
    return Registrar(
        subject=row["created_by"],
        token_id=row["token_id"],
        claims=cast("JsonObject", json.loads(row["claims"])),
        scopes=frozenset(row["scopes"]),
        roles=frozenset(row["roles"]),
    )


def _to_trigger(row: Row) -> Trigger:
    return Trigger(
        spec=TriggerSpec(
            name=row["trigger_name"],
            kind=TriggerKind(row["kind"]),
            job_name=row["job_name"],
            project_id=row["project_id"],
            input=cast("JsonObject | None", _from_json(row["input"])),
            is_enabled=row["is_enabled"],
            is_dry_run=row["is_dry_run"],
            cron=row["cron"],
            timezone=row["timezone"],
            catch_up=row["catch_up"],
            catch_up_most=row["catch_up_most"],
            overlap=row["overlap"],
            jitter_ms=row["jitter_ms"],
            event_type=row["event_type"],
            event_source=row["event_source"],
            match=_from_json(row["match"]),
            input_mapping=_from_json(row["input_mapping"]),
            dedupe_key=_from_json(row["dedupe_key"]),
            cooldown_ms=row["cooldown_ms"],
            max_per_hour=row["max_per_hour"],
        ),
        version=row["version"],
        next_fire_at=row["next_fire_at"],
        paused_at=row["paused_at"],
        disabled_reason=row["disabled_reason"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        registrar=_to_registrar(row),
        last_fired_at=row["last_fired_at"],
        last_job_id=row["last_job_id"],
        last_decision=None if row["last_decision"] is None else FireDecision(row["last_decision"]),
        last_reason=row["last_reason"],
        fires=row["fires"],
    )


def _to_fire(row: Row) -> TriggerFire:
    return TriggerFire(
        trigger_name=row["trigger_name"],
        fire_key=row["fire_key"],
        kind=row["kind"],
        trigger_version=row["trigger_version"],
        scheduled_at=row["scheduled_at"],
        event_id=row["event_id"],
        decision=FireDecision(row["decision"]),
        reason=row["reason"],
        job_id=row["job_id"],
        decided_at=row["decided_at"],
    )


def event_values(event: NewEvent) -> list[object]:
    """List what `SUBMIT_EVENT` takes of an event, before fires, depth and plan."""
    return [
        event.event_type,
        event.payload,
        event.source,
        event.subject,
        event.occurred_at,
        event.idempotency_key,
        event.trace_id,
        event.project_id,
        event.contains_pii,
        to_json(event.redaction_hints),
        to_json(event.attributes),
    ]


def to_submitted(rows: Sequence[Row]) -> SubmittedEvent:
    """Read what became of an event: a row for each trigger, or one alone."""
    first = rows[0]
    event_id: UUID | None = first["event_id"]
    return SubmittedEvent(
        event_id=event_id,
        outcome=EnqueueOutcome(first["outcome"]),
        received_at=first["received_at"],
        depth=first["depth"],
        is_processed=first["is_processed"],
        decisions=tuple(
            TriggerDecision(
                trigger_name=row["trigger_name"],
                job_name=row["job_name"],
                decision=FireDecision(row["decision"]),
                reason=row["reason"],
                job_id=None if row["job_id"] is None else JobId(row["job_id"]),
            )
            for row in rows
            if row["trigger_name"] is not None
        ),
    )


def _from_json(text: Any) -> JsonValue:
    return None if text is None else cast("JsonValue", json.loads(text))
