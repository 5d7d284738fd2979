"""Tools about events and triggers: submit-event, list-events, register-trigger, list-triggers, remove-trigger."""

from __future__ import annotations

import json
from typing import TypeVar

from jobforge_mcp.server import event_arguments as args
from jobforge_mcp.server import event_wire as wire
from jobforge_mcp.server.arguments import PAGE
from jobforge_mcp.server.parts import Call, ServerParts
from jobforge_mcp.server.tools.answers import PAGE_CHARS, more_of
from jobforge_mcp.server.wire import Answer, compact, iso
from jobforge_mcp.triggers.schedule import Schedule
from jobforge_mcp.types import (
    EventFilter,
    FireFilter,
    JsonObject,
    NewEvent,
    Registered,
    TriggerFilter,
    TriggerKind,
    TriggerSpec,
)

RowT = TypeVar("RowT", wire.EventRow, wire.TriggerRow)

NEXT_TIMES = 3
HISTORY = 10


async def submit_event(parts: ServerParts, call: Call, given: args.SubmitEvent) -> Answer:
    """Store an event and start what its triggers start."""
    hints: JsonObject = {}
    if given.redact_fields:
        hints["redactFields"] = [*given.redact_fields]
    if given.retention_days is not None:
        hints["retentionDays"] = given.retention_days
    event = NewEvent(
        event_type=given.type,
        payload=json.dumps(given.payload or {}, ensure_ascii=False),
        source=given.source,
        subject=given.subject,
        occurred_at=given.occurred_at,
        idempotency_key=given.idempotency_key,
        trace_id=given.trace_id,
        project_id=given.project_id,
        contains_pii=bool(given.contains_pii),
        redaction_hints=hints or None,
    )
    is_plan = bool(given.dry_run)
    submitted = await parts.desk.submit(call.caller, event, origin=call.origin, is_plan=is_plan)
    view = wire.view_submitted(submitted, is_plan=is_plan)
    lines = [
        f"event {view.event_id or given.type} {view.outcome}{' (dry run)' if is_plan else ''}",
        *(f"run {run.run_id} of {run.job_name} by {run.trigger}" for run in view.runs),
        *(
            f"{skip.trigger} {skip.decision}{f': {skip.reason}' if skip.reason else ''}"
            for skip in view.skipped
        ),
        view.next,
    ]
    return Answer(view.wire(), "\n".join(lines))


async def list_events(parts: ServerParts, call: Call, given: args.ListEvents) -> Answer:
    """Return events, newest first."""
    limit = given.limit or PAGE
    found = await parts.desk.list(
        call.caller,
        EventFilter(
            event_type=given.type,
            source=given.source,
            since=given.since,
            trace_id=given.trace_id,
            project_id=given.project_id,
            before_id=given.cursor,
            limit=limit + 1,
        ),
    )
    rows = _that_fit([wire.row_of_event(event) for event in found[:limit]])
    is_more = len(found) > len(rows)
    page = wire.EventPage(
        events=rows,
        next_cursor=rows[-1].event_id if is_more else None,
        next="More with cursor nextCursor." if is_more else "No more events fit.",
    )
    lines = [
        f"{row.event_id} {row.type} at {row.occurred_at}, runs {row.started_runs}: {compact(row.payload)}"
        for row in rows
    ]
    return Answer(page.wire(), "\n".join([*lines, *more_of(page.next_cursor), page.next]))


async def register_trigger(parts: ServerParts, call: Call, given: args.RegisterTrigger) -> Answer:
    """Register a trigger, or change the one of this name."""
    spec = given.spec()
    is_plan = bool(given.dry_run)
    registered = await parts.desk.register(call.caller, spec, origin=call.origin, is_plan=is_plan)
    view = wire.view_registered(registered, _next_times(spec, registered), is_plan=is_plan)
    text = f"trigger {view.name} {view.outcome}, version {view.version}"
    times = [f"next: {', '.join(view.next_times)}"] if view.next_times else []
    return Answer(view.wire(), "\n".join([text, *times, view.next]))


async def list_triggers(parts: ServerParts, call: Call, given: args.ListTriggers) -> Answer:
    """Return triggers by name, with what they decided last if asked."""
    limit = given.limit or PAGE
    found = await parts.desk.list_triggers(
        call.caller,
        TriggerFilter(
            name=given.name,
            kind=None if given.kind is None else TriggerKind(given.kind),
            after=given.cursor,
            limit=limit + 1,
        ),
    )
    rows: list[wire.TriggerRow] = []
    for trigger in found[:limit]:
        history = (
            await parts.desk.history(
                call.caller, FireFilter(trigger_name=trigger.spec.name, limit=HISTORY)
            )
            if given.history
            else None
        )
        rows.append(wire.row_of_trigger(trigger, history))
    rows = _that_fit(rows)
    is_more = len(found) > len(rows)
    page = wire.TriggerPage(
        triggers=rows,
        next_cursor=rows[-1].name if is_more else None,
        next="More with cursor nextCursor."
        if is_more
        else "Pass name and history for decisions and reasons."
        if rows
        else "No trigger fits.",
    )
    return Answer(
        page.wire(), "\n".join([*map(_describe, rows), *more_of(page.next_cursor), page.next])
    )


async def remove_trigger(parts: ServerParts, call: Call, given: args.RemoveTrigger) -> Answer:
    """Remove a trigger and keep its history."""
    is_plan = bool(given.dry_run)
    await parts.desk.remove(call.caller, given.name, origin=call.origin, is_plan=is_plan)
    view = wire.RemovedTrigger(
        name=given.name,
        outcome="removed",
        dry_run=True if is_plan else None,
        next="Nothing was removed: call it without dryRun to do this."
        if is_plan
        else "Runs that it started go on.",
    )
    return Answer(
        view.wire(), f"trigger {view.name} removed{' (dry run)' if is_plan else ''}\n{view.next}"
    )


def _next_times(spec: TriggerSpec, registered: Registered) -> list[str] | None:
    due = registered.next_fire_at
    if due is None or spec.cron is None:
        return None
    schedule = Schedule(spec.cron, spec.timezone or "UTC")
    times = [due]
    while len(times) < NEXT_TIMES:
        times.append(schedule.next_after(times[-1]))
    return [iso(time) or "" for time in times]


def _describe(row: wire.TriggerRow) -> str:
    wants = row.event_type or f"{row.cron} {row.timezone}"
    state = "" if row.enabled and not row.paused else ", paused" if row.paused else ", off"
    last = f", last {row.last_decision}" if row.last_decision else ""
    lines = [f"{row.name}: {wants} -> {row.job_name}{state}{last}"]
    lines += [
        f"  {fire.at} {fire.decision}{f': {fire.reason}' if fire.reason else ''}"
        for fire in row.history or ()
    ]
    return "\n".join(lines)


def _that_fit(rows: list[RowT]) -> list[RowT]:
    """Cut a page where it would cost a model too much; never below one row."""
    room = PAGE_CHARS
    shown: list[RowT] = []
    for row in rows:
        room -= len(compact(row.wire()))
        if room < 0 and shown:
            break
        shown.append(row)
    return shown
