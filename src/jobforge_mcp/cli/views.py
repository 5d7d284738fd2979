"""Runs and jobs as commands show them: the tools' JSON without what is said to models, and tables for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

from jobforge_mcp.cli.output import STATUS_STYLES, printable, table
from jobforge_mcp.server import wire
from jobforge_mcp.types import (
    Attempt,
    Caller,
    Cause,
    JsonObject,
    JsonValue,
    LogLine,
    Run,
    RunStatus,
)

if TYPE_CHECKING:
    from rich.console import Console


def run_document(run: Run, caller: Caller, extras: wire.Extras | None = None) -> JsonObject:
    """Return a run as the tools do, but whole: every time, the result however long, and no advice to models."""
    extras = extras or wire.Extras()
    view = wire.view_run(run, caller, replace(extras, is_full=True))
    for_models = {"next": None, "poll_after_ms": None, "result_uri": None, "result_preview": None}
    document = view.model_copy(update=for_models).wire()
    if run.status is RunStatus.SUCCEEDED and run.result is not None:
        document["result"] = cast("JsonValue", json.loads(run.result))
    if extras.cause is not None:
        document["cause"] = cause_document(extras.cause)
    return document


def row_document(run: Run) -> JsonObject:
    """Return a run as one element of a list."""
    return wire.row_of(run).wire()


def cause_document(cause: Cause) -> JsonObject:
    """Return why a run is not running."""
    document: JsonObject = {"cause": cause.cause, "message": cause.message}
    if cause.until is not None:
        document["until"] = wire.iso(cause.until)
    if cause.blocked_by is not None:
        document["blockedBy"] = str(cause.blocked_by)
    return document


def print_run(
    console: Console,
    run: Run,
    *,
    cause: Cause | None = None,
    logs: Sequence[LogLine] = (),
    input: JsonValue = None,
    attempts: Sequence[Attempt] = (),
) -> None:
    """Write one run for a person."""
    from rich.text import Text

    status = Text(run.status.value, style=STATUS_STYLES[run.status.value])
    console.print(Text.assemble(f"{run.job_type}  ", status, f"  {run.job_id}"))
    facts = [f"attempt {run.attempt_no} of {run.max_attempts}", f"created {ago(run.created_at)}"]
    if run.is_dry_run:
        facts.insert(0, "a rehearsal")
    if run.finished_at is not None and run.started_at is not None:
        seconds = (run.finished_at - run.started_at).total_seconds()
        facts.append(f"took {seconds:.1f} s")
    elif run.status is RunStatus.QUEUED and run.run_at > run.created_at:
        facts.append(f"due {run.run_at.isoformat(timespec='seconds')}")
    console.print(Text("  " + ", ".join(facts), style="dim"))
    if run.progress_done is not None and run.status is not RunStatus.SUCCEEDED:
        console.print(Text(f"  progress {printable(progress_text(run))}"))
    if cause is not None and not run.status.is_final:
        console.print(Text(f"  {printable(cause.message)}{_more_of(cause)}", style="yellow"))
    if run.error is not None:
        console.print(Text(f"  {run.error.code}: {printable(run.error.message)}", style="red"))
        if run.error.hint:
            console.print(Text(f"  {printable(run.error.hint)}", style="dim"))
    if run.cancel_requested_at is not None:
        said = "canceled" if run.status.is_final else "cancellation was asked for"
        reason = f": {printable(run.cancel_reason)}" if run.cancel_reason else ""
        console.print(Text(f"  {said}{reason}", style="dim"))
    if input is not None:
        _print_json(console, "input", input)
    for attempt in attempts:
        said = f": {attempt.error.message}" if attempt.error is not None else ""
        console.print(Text(printable(f"  attempt {attempt.attempt_no} {attempt.outcome}{said}")))
    for line in logs:
        at = line.logged_at.astimezone(UTC).strftime("%H:%M:%S")
        console.print(Text(f"  {at} {line.level:<7} {printable(line.message)}"))
    if run.result is not None:
        _print_json(console, "result", cast("JsonValue", json.loads(run.result)))


def print_runs(console: Console, runs: Sequence[Run]) -> None:
    """Write a list of runs for a person."""
    if not runs:
        console.print("no runs")
        return
    rows = [
        (
            str(run.job_id),
            run.job_type,
            run.status.value,
            f"{run.attempt_no}/{run.max_attempts}",
            ago(run.created_at),
            run.error.code if run.error is not None else progress_text(run),
        )
        for run in runs
    ]
    console.print(table(("run", "job", "status", "attempt", "created", ""), rows))


def progress_text(run: Run) -> str:
    """Say how far a run is; empty when it has not said."""
    if run.progress_done is None or run.status is RunStatus.SUCCEEDED:
        return ""
    return wire.describe_progress(
        wire.ProgressView(
            done=run.progress_done, total=run.progress_total, message=run.progress_message
        )
    )


def ago(time: datetime) -> str:
    """Say how long ago something was."""
    seconds = max((datetime.now(UTC) - time).total_seconds(), 0)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _print_json(console: Console, title: str, value: JsonValue) -> None:
    from rich.text import Text

    text = json.dumps(value, indent=2, ensure_ascii=False)
    console.print(Text(f"  {title}:", style="dim"))
    console.print(Text("\n".join(f"  {line}" for line in printable(text).splitlines())))


def _more_of(cause: Cause) -> str:
    until = "" if cause.until is None else f" Until {wire.iso(cause.until)}."
    return until if cause.blocked_by is None else f"{until} First: run {cause.blocked_by}."
