"""What leaves through the tools about events and triggers; see `jobforge_mcp.server.wire` for what holds for all."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import JsonValue as PydanticJson

from jobforge_mcp.server.wire import WireModel, iso
from jobforge_mcp.types import (
    EnqueueOutcome,
    Event,
    Registered,
    SubmittedEvent,
    Trigger,
    TriggerFire,
)

MOST_SKIPPED = 50
"""Triggers that did not fire in one answer; how many more there were is told."""
PAYLOAD_CHARS = 2_000
"""Characters of JSON up to which a payload is part of a list."""


class StartedRun(WireModel):
    """A run that an event started."""

    run_id: str
    job_name: str | None = None
    trigger: str


class SkippedTrigger(WireModel):
    """A trigger that wanted an event and did not fire, or would have."""

    trigger: str
    decision: str
    reason: str | None = None


class SubmittedView(WireModel):
    """What became of an event."""

    event_id: str | None = None
    outcome: Literal["created", "replayed", "conflict"]
    dry_run: Literal[True] | None = None
    runs: list[StartedRun]
    skipped: list[SkippedTrigger]
    skipped_more: int | None = None
    is_pending: Literal[True] | None = None
    next: str


class EventRow(WireModel):
    """One event in a list."""

    event_id: str
    type: str
    source: str | None = None
    subject: str | None = None
    project_id: str | None = None
    trace_id: str
    occurred_at: str
    received_at: str
    payload: PydanticJson = None
    payload_chars: int | None = None
    redacted: Literal[True] | None = None
    started_runs: int
    is_pending: Literal[True] | None = None


class EventPage(WireModel):
    """A page of events."""

    events: list[EventRow]
    next_cursor: str | None = None
    next: str


class RegisteredView(WireModel):
    """What became of a trigger."""

    name: str
    outcome: Literal["created", "updated", "unchanged"]
    version: int
    dry_run: Literal[True] | None = None
    next_times: list[str] | None = None
    next: str


class FireRow(WireModel):
    """One decision of a trigger."""

    at: str
    decision: str
    reason: str | None = None
    run_id: str | None = None
    event_id: str | None = None
    scheduled_at: str | None = None


class TriggerRow(WireModel):
    """One trigger in a list."""

    name: str
    kind: str
    job_name: str
    version: int
    enabled: bool
    trial: Literal[True] | None = None
    paused: Literal[True] | None = None
    disabled_reason: str | None = None
    project_id: str | None = None
    cron: str | None = None
    timezone: str | None = None
    next_fire_at: str | None = None
    event_type: str | None = None
    event_source: str | None = None
    last_fired_at: str | None = None
    last_run_id: str | None = None
    last_decision: str | None = None
    last_reason: str | None = None
    fires: int
    history: list[FireRow] | None = None


class TriggerPage(WireModel):
    """A page of triggers."""

    triggers: list[TriggerRow]
    next_cursor: str | None = None
    next: str


class RemovedTrigger(WireModel):
    """What became of a trigger that was to go."""

    name: str
    outcome: Literal["removed"]
    dry_run: Literal[True] | None = None
    next: str


def view_submitted(submitted: SubmittedEvent, *, is_plan: bool) -> SubmittedView:
    """Return what an agent is told of an event it submitted."""
    runs = [
        StartedRun(run_id=str(made.job_id), job_name=made.job_name, trigger=made.trigger_name)
        for made in submitted.decisions
        if made.job_id is not None
    ]
    skipped = [
        SkippedTrigger(trigger=made.trigger_name, decision=made.decision.value, reason=made.reason)
        for made in submitted.decisions
        if made.job_id is None
    ]
    return SubmittedView(
        event_id=None if submitted.event_id is None else str(submitted.event_id),
        outcome=submitted.outcome.value,
        dry_run=True if is_plan else None,
        runs=runs,
        skipped=skipped[:MOST_SKIPPED],
        skipped_more=len(skipped) - MOST_SKIPPED if len(skipped) > MOST_SKIPPED else None,
        is_pending=None if submitted.is_processed else True,
        next=_next_after(submitted, has_runs=bool(runs), is_plan=is_plan),
    )


def _next_after(submitted: SubmittedEvent, *, has_runs: bool, is_plan: bool) -> str:
    if is_plan:
        return "Nothing was stored: submit it without dryRun to do this."
    if submitted.outcome is EnqueueOutcome.CONFLICT:
        return "The key was used for another event: choose a new one."
    if not submitted.is_processed:
        return "Stored: its triggers are asked within seconds; list-triggers with history tells."
    return (
        "Call get-job-status with the runIds to follow them."
        if has_runs
        else "Stored: no run was started."
    )


def row_of_event(event: Event) -> EventRow:
    """Return an event as one row of a list."""
    is_short = len(event.payload) <= PAYLOAD_CHARS
    return EventRow(
        event_id=str(event.event_id),
        type=event.event_type,
        source=event.source,
        subject=event.subject,
        project_id=event.project_id,
        trace_id=event.trace_id,
        occurred_at=iso(event.occurred_at) or "",
        received_at=iso(event.received_at) or "",
        payload=json.loads(event.payload) if is_short else None,
        payload_chars=None if is_short else len(event.payload),
        redacted=True if event.is_redacted else None,
        started_runs=event.fired,
        is_pending=True if event.processed_at is None else None,
    )


def row_of_trigger(trigger: Trigger, history: list[TriggerFire] | None = None) -> TriggerRow:
    """Return a trigger as one row of a list."""
    spec = trigger.spec
    return TriggerRow(
        name=spec.name,
        kind=spec.kind.value,
        job_name=spec.job_name,
        version=trigger.version,
        enabled=spec.is_enabled,
        trial=True if spec.is_dry_run else None,
        paused=True if trigger.paused_at is not None else None,
        disabled_reason=trigger.disabled_reason,
        project_id=spec.project_id,
        cron=spec.cron,
        timezone=spec.timezone,
        next_fire_at=iso(trigger.next_fire_at),
        event_type=spec.event_type,
        event_source=spec.event_source,
        last_fired_at=iso(trigger.last_fired_at),
        last_run_id=None if trigger.last_job_id is None else str(trigger.last_job_id),
        last_decision=None if trigger.last_decision is None else trigger.last_decision.value,
        last_reason=trigger.last_reason,
        fires=trigger.fires,
        history=None if history is None else [row_of_fire(fire) for fire in history],
    )


def row_of_fire(fire: TriggerFire) -> FireRow:
    """Return one decision as a row."""
    return FireRow(
        at=iso(fire.decided_at) or "",
        decision=fire.decision.value,
        reason=fire.reason,
        run_id=None if fire.job_id is None else str(fire.job_id),
        event_id=None if fire.event_id is None else str(fire.event_id),
        scheduled_at=iso(fire.scheduled_at),
    )


def view_registered(
    registered: Registered, next_times: list[str] | None, *, is_plan: bool
) -> RegisteredView:
    """Return what an agent is told of a trigger it registered."""
    return RegisteredView.model_validate(
        {
            "name": registered.trigger_name,
            "outcome": registered.outcome,
            "version": registered.version,
            "dry_run": True if is_plan else None,
            "next_times": next_times,
            "next": "Nothing was registered: call it without dryRun to do this."
            if is_plan
            else "list-triggers with history shows what it decides.",
        }
    )
