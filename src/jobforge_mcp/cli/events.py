"""``events`` and ``triggers``: what the tools of these names do, for people, and what only people need."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, cast
from uuid import UUID

import typer

from jobforge_mcp.cli.options import Json
from jobforge_mcp.cli.output import show
from jobforge_mcp.cli.runs import parse_time
from jobforge_mcp.cli.session import call, open_client, read_settings
from jobforge_mcp.errors import InvalidInputError
from jobforge_mcp.types import (
    EventFilter,
    FireDecision,
    FireFilter,
    JsonObject,
    JsonValue,
    NewEvent,
    TriggerFilter,
    TriggerKind,
)

Name = Annotated[str, typer.Argument(help="Name of the trigger.", metavar="NAME")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")]


def submit(
    type: Annotated[str, typer.Argument(help="Type of the event, such as order.paid.")],
    payload: Annotated[
        str | None, typer.Option(help="One JSON object, or @FILE; @- reads stdin.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Where it happened.")] = None,
    subject: Annotated[str | None, typer.Option(help="What it happened to.")] = None,
    key: Annotated[
        str | None, typer.Option(help="Your own id of it: repeated it changes nothing.")
    ] = None,
    trace: Annotated[str | None, typer.Option(help="Chain of causes that it belongs to.")] = None,
    project: Annotated[str | None, typer.Option(help="Project that it belongs to.")] = None,
    occurred_at: Annotated[str | None, typer.Option(help="When it happened; ISO 8601.")] = None,
    pii: Annotated[bool, typer.Option("--pii", help="It holds personal data.")] = False,
    redact: Annotated[
        list[str] | None, typer.Option(help="Name or JSON pointer to hide; repeatable.")
    ] = None,
    cloudevent: Annotated[
        bool, typer.Option("--cloudevent", help="The payload is a whole CloudEvent; TYPE is -.")
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Submit an event, and show which runs it started and why other triggers did not fire."""
    from jobforge_mcp.client import from_cloudevent
    from jobforge_mcp.server.event_wire import view_submitted

    given = _object(payload or "{}")
    if cloudevent:
        event = from_cloudevent(given)
    else:
        event = NewEvent(
            type,
            json_module.dumps(given, ensure_ascii=False),
            source=source,
            subject=subject,
            occurred_at=None if occurred_at is None else parse_time(occurred_at),
            idempotency_key=key,
            trace_id=trace,
            project_id=project,
            contains_pii=pii,
            redaction_hints={"redactFields": [*redact]} if redact else None,
        )

    async def work() -> None:
        async with open_client(read_settings(), "events submit", needs_worker=True) as client:
            submitted = await client.events.submit_event(event, is_plan=dry_run)
        view = view_submitted(submitted, is_plan=dry_run)
        lines = [
            f"event {view.event_id or event.event_type} {view.outcome}",
            *(f"  run {run.run_id} of {run.job_name} by {run.trigger}" for run in view.runs),
            *(f"  {skip.trigger} {skip.decision}: {skip.reason}" for skip in view.skipped),
        ]
        _show_lines(view.wire(), lines, json)

    call(work)


def list_events(
    type: Annotated[str | None, typer.Option(help="A type or pattern: order.*")] = None,
    source: Annotated[str | None, typer.Option(help="A source; * is anything.")] = None,
    trace: Annotated[str | None, typer.Option(help="Only events of this trace.")] = None,
    project: Annotated[str | None, typer.Option(help="Only events of this project.")] = None,
    since: Annotated[str | None, typer.Option(help="Only received since; ISO 8601.")] = None,
    before: Annotated[str | None, typer.Option(help="Only older than this event.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="At most so many.")] = 20,
    cloudevents: Annotated[
        bool, typer.Option("--cloudevents", help="With --json: as CloudEvents.")
    ] = False,
    json: Json = False,
) -> None:
    """List events, newest first."""
    from jobforge_mcp.cli.output import table
    from jobforge_mcp.client import to_cloudevent
    from jobforge_mcp.server.event_wire import row_of_event

    wanted = EventFilter(
        event_type=type,
        source=source,
        trace_id=trace,
        project_id=project,
        since=None if since is None else parse_time(since),
        before_id=None if before is None else _uuid(before),
        limit=limit,
    )

    async def work() -> None:
        async with open_client(read_settings(), "events list") as client:
            found = await client.events.list(wanted)
        rows = [row_of_event(event) for event in found]
        shown: list[JsonValue] = [
            to_cloudevent(event) if cloudevents else row.wire()
            for event, row in zip(found, rows, strict=True)
        ]
        cells = [
            (row.event_id, row.type, row.received_at, str(row.started_runs), row.source or "")
            for row in rows
        ]
        show(
            {"events": shown},
            is_json=json,
            people=lambda console: console.print(
                table(("event", "type", "received", "runs", "source"), cells)
                if cells
                else "no events"
            ),
        )

    call(work)


def register(
    file: Annotated[
        str, typer.Argument(help="JSON file with the arguments of register-trigger; - is stdin.")
    ],
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Register a trigger, or change the one of its name; nothing fires by that."""
    from jobforge_mcp.server.arguments import parse
    from jobforge_mcp.server.event_arguments import RegisterTrigger
    from jobforge_mcp.server.event_wire import view_registered

    given = parse(RegisterTrigger, _object(f"@{file}"))
    spec = given.spec()

    async def work() -> None:
        async with open_client(read_settings(), "triggers register", needs_worker=True) as client:
            made = await client.events.register_trigger(
                spec, is_plan=dry_run or bool(given.dry_run)
            )
        due = made.next_fire_at
        times = None if due is None else [due.isoformat()]
        view = view_registered(made, times, is_plan=dry_run)
        line = f"trigger {made.trigger_name} {made.outcome}, version {made.version}"
        _show_lines(view.wire(), [line, *(f"  next {time}" for time in times or ())], json)

    call(work)


def list_triggers(
    kind: Annotated[TriggerKind | None, typer.Option(help="Only of this kind.")] = None,
    job: Annotated[str | None, typer.Option(help="Only those of this job.")] = None,
    after: Annotated[str | None, typer.Option(help="Only names after this one.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="At most so many.")] = 20,
    json: Json = False,
) -> None:
    """List triggers by name."""
    from jobforge_mcp.cli.output import table
    from jobforge_mcp.server.event_wire import row_of_trigger

    async def work() -> None:
        async with open_client(read_settings(), "triggers list") as client:
            found = await client.events.list_triggers(
                TriggerFilter(kind=kind, job_name=job, after=after, limit=limit)
            )
        rows = [row_of_trigger(trigger) for trigger in found]
        cells = [
            (
                row.name,
                row.event_type or f"{row.cron} {row.timezone}",
                row.job_name,
                "off" if not row.enabled else "paused" if row.paused else "on",
                row.next_fire_at or row.last_fired_at or "",
                row.last_decision or "",
            )
            for row in rows
        ]
        show(
            {"triggers": [row.wire() for row in rows]},
            is_json=json,
            people=lambda console: console.print(
                table(("trigger", "fires on", "job", "is", "next or last", "decided"), cells)
                if cells
                else "no triggers"
            ),
        )

    call(work)


def remove(name: Name, json: Json = False) -> None:
    """Remove a trigger; its history and runs stay."""

    async def work() -> None:
        async with open_client(read_settings(), "triggers remove") as client:
            outcome = await client.events.remove_trigger(name)
        _show_lines({"name": name, "outcome": outcome}, [f"trigger {name} {outcome}"], json)

    call(work)


def pause(name: Name, json: Json = False) -> None:
    """Let a trigger decide nothing until it is resumed."""

    async def work() -> None:
        async with open_client(read_settings(), "triggers pause") as client:
            outcome = await client.events.pause_trigger(name)
        _show_lines({"name": name, "outcome": outcome}, [f"trigger {name} {outcome}"], json)

    call(work)


def resume(name: Name, json: Json = False) -> None:
    """Let a paused trigger decide again; what was due meanwhile stays undone."""

    async def work() -> None:
        async with open_client(read_settings(), "triggers resume") as client:
            outcome = await client.events.resume_trigger(name)
        _show_lines({"name": name, "outcome": outcome}, [f"trigger {name} {outcome}"], json)

    call(work)


def run(
    name: Name,
    key: Annotated[str | None, typer.Option(help="Fire once for this key.")] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Fire a trigger now, with the rights of whoever registered it."""

    async def work() -> None:
        async with open_client(read_settings(), "triggers run", needs_worker=True) as client:
            made = await client.events.run_trigger(name, idempotency_key=key, is_plan=dry_run)
        document: JsonObject = {"name": name, "decision": made.decision.value}
        if made.job_id is not None:
            document["runId"] = str(made.job_id)
        if made.reason is not None:
            document["reason"] = made.reason
        what = f": run {made.job_id}" if made.job_id else f": {made.reason}" if made.reason else ""
        _show_lines(document, [f"trigger {name} {made.decision.value}{what}"], json)

    call(work)


def history(
    name: Annotated[str | None, typer.Argument(help="Only of this trigger.")] = None,
    decision: Annotated[FireDecision | None, typer.Option(help="Only such decisions.")] = None,
    event: Annotated[str | None, typer.Option(help="Only about this event.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 20,
    json: Json = False,
) -> None:
    """Show what triggers decided and why, newest first: why did it not fire?"""
    from jobforge_mcp.cli.output import table
    from jobforge_mcp.server.event_wire import row_of_fire

    wanted = FireFilter(
        trigger_name=name,
        decision=decision,
        event_id=None if event is None else _uuid(event),
        limit=limit,
    )

    async def work() -> None:
        async with open_client(read_settings(), "triggers history") as client:
            found = await client.events.trigger_history(wanted)
        rows = [(fire.trigger_name, row_of_fire(fire)) for fire in found]
        cells = [
            (trigger, row.at, row.decision, row.run_id or row.reason or "") for trigger, row in rows
        ]
        show(
            {"decisions": [{"name": trigger, **row.wire()} for trigger, row in rows]},
            is_json=json,
            people=lambda console: console.print(
                table(("trigger", "at", "decided", "run or reason"), cells)
                if cells
                else "no decisions"
            ),
        )

    call(work)


def _show_lines(document: JsonValue, lines: list[str], is_json: bool) -> None:
    from jobforge_mcp.cli.output import printable

    show(
        document,
        is_json=is_json,
        people=lambda console: console.print(printable("\n".join(lines)), markup=False),
    )


def _object(text: str) -> JsonObject:
    """Read one JSON object, given as it is or as ``@FILE``."""
    if text.startswith("@"):
        name = text[1:]
        try:
            text = typer.get_text_stream("stdin").read() if name == "-" else Path(name).read_text()
        except (OSError, UnicodeDecodeError):
            raise InvalidInputError(f"the file {name[:200]} cannot be read") from None
    try:
        found: object = json_module.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidInputError("what was given is not one JSON object")
    return cast("JsonObject", found)


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise InvalidInputError(
            "the id of an event is a UUID", hint="jobforge events list shows ids"
        ) from None
