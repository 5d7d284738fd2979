"""What leaves through a tool: the models of runs, jobs and errors, camelCase, absent rather than null.

A run is told twice: as structured content and as one short text with the same facts, because some hosts show a model
only one of the two. Both stay short whatever the job did: long results become a link with a preview, long messages are
cut, and times and trace are told only when the run is final or somebody asked for more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, cast

from pydantic import BaseModel, ConfigDict, Field
from pydantic import JsonValue as PydanticJson
from pydantic.alias_generators import to_camel
from pydantic.json_schema import models_json_schema

from jobforge_mcp.definitions.model import JobDefinition
from jobforge_mcp.errors import CallerError, LimitError
from jobforge_mcp.evidence.references import reference_of
from jobforge_mcp.server.arguments import squeeze
from jobforge_mcp.server.next import next_step, poll_after_ms
from jobforge_mcp.types import (
    Attempt,
    Caller,
    Cause,
    JobId,
    JsonObject,
    JsonValue,
    LogLine,
    Run,
    RunError,
    RunStatus,
)

RESULT_INLINE_BYTES = 32 * 1024
"""Bytes of JSON up to which a result is part of the answer."""

RESULT_INLINE_TOKENS = 6_000
"""Estimated tokens up to which it is: text full of numbers costs a model more than its bytes tell."""

TEXT_RESULT_CHARS = 2_000
"""Characters of a result that the text half repeats; the rest is in the structured half and in the resource."""

PREVIEW_CHARS = 600
MESSAGE_CHARS = 120
ERROR_CHARS = 600
TITLE_CHARS = 44
"""Of the line that a job has in a list without detail."""


class WireModel(BaseModel):
    """Base of what is told: snake_case in Python, camelCase outside."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True
    )

    def wire(self) -> JsonObject:
        """Return the JSON form, without what is absent."""
        return cast("JsonObject", self.model_dump(mode="json", by_alias=True, exclude_none=True))


class ErrorView(WireModel):
    """Why something did not succeed."""

    code: str
    message: str
    hint: str | None = None
    retryable: bool = False
    retry_after_ms: int | None = None


class ProgressView(WireModel):
    """How far a run is."""

    done: float | None = None
    total: float | None = None
    message: str | None = None


class LogView(WireModel):
    """One line a handler logged."""

    at: str
    level: str
    message: str
    attempt: int


class AttemptView(WireModel):
    """One try that did not succeed."""

    attempt: int
    outcome: str
    started_at: str
    finished_at: str
    error: ErrorView | None = None


class RunView(WireModel):
    """One run, as every tool tells it."""

    run_id: str
    job_name: str
    job_version: str | None = None
    rehearsal: Literal[True] | None = None
    status: Literal["queued", "running", "waiting", "succeeded", "failed", "dead", "canceled"]
    attempt: int | None = None
    max_attempts: int | None = None
    progress: ProgressView | None = None
    result: PydanticJson = Field(default=None, description="what the job returned")
    result_uri: str | None = Field(default=None, description="resource with the whole result")
    result_preview: str | None = None
    error: ErrorView | None = None
    outcome: Literal["created", "replayed"] | None = None
    waiting_for: str | None = None
    run_at: str | None = None
    project_id: str | None = None
    labels: dict[str, str] | None = None
    created_at: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    version: int
    poll_after_ms: int | None = None
    next: str | None = Field(default=None, description="what to do now")
    trace_id: str | None = None
    input: PydanticJson = None
    logs: list[LogView] | None = None
    attempts: list[AttemptView] | None = None
    manifest: dict[str, PydanticJson] | None = Field(
        default=None, description="input hash, outputs, metrics, environment, decisions"
    )
    report: str | None = Field(default=None, description="Markdown: what the run did and why")


class RunRow(WireModel):
    """One run in a list."""

    run_id: str
    job_name: str
    status: str
    attempt: int
    version: int
    created_at: str
    finished_at: str | None = None
    project_id: str | None = None
    error_code: str | None = None


class RunPage(WireModel):
    """A page of runs."""

    runs: list[RunRow]
    next_cursor: str | None = None
    next: str


class RunsView(WireModel):
    """Several runs asked for by id."""

    runs: list[RunView]
    not_found: list[str] | None = None
    next: str


class JobRow(WireModel):
    """One definition in a list without detail."""

    name: str
    title: str | None = None


class JobPage(WireModel):
    """A page of definitions: whole ones with detail, else what it takes to choose."""

    jobs: list[dict[str, PydanticJson]]
    next_cursor: str | None = None
    next: str


class PlanView(WireModel):
    """What a dry run says."""

    dry_run: Literal[True] = True
    job_name: str
    outcome: Literal["created", "replayed", "conflict", "canceled", "requested", "queued"]
    """What the call would come to."""
    run_id: str | None = None
    status: str | None = None
    job_version: str | None = None
    scopes: list[str] | None = None
    """What the caller needs for it, and has."""
    limits: PydanticJson = None
    """What of the definition may hold the run back: concurrency, rateLimit, debounce."""
    input: PydanticJson = None
    next: str


class VerdictView(WireModel):
    """What became of one request of a bundle."""

    id: str
    outcome: Literal["created", "replayed", "conflict", "refused"]
    run_id: str | None = None
    status: str | None = None
    code: str | None = None
    message: str | None = None


class BundleView(WireModel):
    """What became of a bundle, in the order of its requests."""

    dry_run: Literal[True] | None = None
    items: list[VerdictView]
    next: str


class RegistrationView(WireModel):
    """What became of a registered definition."""

    name: str
    outcome: Literal["created", "unchanged", "quarantined", "removed", "planned"]
    version: str | None = None
    hash: str | None = None
    queued_runs: int | None = None
    next: str


@dataclass(frozen=True, slots=True)
class Link:
    """A resource that belongs to an answer."""

    uri: str
    name: str
    mime_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tool says, before ``build`` makes a tool result of it."""

    structured: JsonObject
    text: str
    is_error: bool = False
    links: tuple[Link, ...] = field(default=())


def run_uri(job_id: JobId, part: str = "") -> str:
    """Return the address of a run, or of a part of it: ``/result``, ``/logs``, ``/manifest``, ``/report``."""
    return f"jobforge://runs/{job_id}{part}"


@dataclass(frozen=True, slots=True)
class Extras:
    """What was asked for besides the run."""

    input: JsonValue = None
    logs: list[LogLine] | None = None
    attempts: list[Attempt] | None = None
    manifest: JsonObject | None = None
    report: str | None = None
    outcome: Literal["created", "replayed"] | None = None
    cause: Cause | None = None
    is_full: bool = False
    """Tell times and trace although the run is not final."""


def view_run(run: Run, caller: Caller, extras: Extras | None = None) -> RunView:
    """Return what an agent sees of a run."""
    extras = extras or Extras()
    is_full = run.status.is_final or extras.is_full
    result, preview = _result(run)
    return RunView(
        run_id=str(run.job_id),
        job_name=run.job_type,
        job_version=run.job_version,
        rehearsal=True if run.is_dry_run else None,
        status=run.status.value,
        attempt=run.attempt_no or None,
        max_attempts=run.max_attempts,
        progress=None if run.status is RunStatus.SUCCEEDED else _progress(run),
        result=result,
        result_uri=run_uri(run.job_id, "/result") if preview is not None else None,
        result_preview=preview,
        error=view_error(run.error) if run.error is not None else None,
        outcome=extras.outcome,
        waiting_for=run.waiting_for,
        run_at=iso(run.run_at)
        if run.status is RunStatus.QUEUED and (is_full or run.run_at > run.created_at)
        else None,
        project_id=run.project_id if is_full else None,
        labels=dict(run.labels) if is_full and run.labels else None,
        created_at=iso(run.created_at) if is_full else None,
        started_at=iso(run.started_at) if is_full else None,
        finished_at=iso(run.finished_at),
        version=run.version,
        poll_after_ms=poll_after_ms(run),
        next=next_step(run, caller, cause=extras.cause, is_by_reference=preview is not None),
        trace_id=run.trace_id if is_full else None,
        input=extras.input,
        logs=[view_log(line) for line in extras.logs] if extras.logs is not None else None,
        attempts=[_view_attempt(attempt) for attempt in extras.attempts]
        if extras.attempts is not None
        else None,
        manifest=cast("dict[str, PydanticJson] | None", extras.manifest),
        report=extras.report,
    )


def is_by_reference(run: Run) -> bool:
    """Whether a result is too long to be part of an answer."""
    return _result(run)[1] is not None


def row_of(run: Run) -> RunRow:
    """Return a run as one small row of a list."""
    return RunRow(
        run_id=str(run.job_id),
        job_name=run.job_type,
        status=run.status.value,
        attempt=run.attempt_no,
        version=run.version,
        created_at=iso(run.created_at) or "",
        finished_at=iso(run.finished_at),
        project_id=run.project_id,
        error_code=run.error.code if run.error is not None else None,
    )


def describe_run(view: RunView) -> str:
    """Say the facts of a run in one short text."""
    kind = "rehearsal" if view.rehearsal else "run"
    lines = [f"{kind} {view.run_id} of {view.job_name} is {view.status}{_details(view)}"]
    if view.error is not None:
        lines.append(describe_error(view.error))
    if view.result_preview is not None:
        lines.append(f"result is long, all of it at {view.result_uri}: {view.result_preview}")
    elif view.result is not None:
        lines.append(f"result: {_cut(compact(view.result), TEXT_RESULT_CHARS)}")
    if view.input is not None:
        lines.append(f"input: {_cut(compact(view.input), TEXT_RESULT_CHARS)}")
    lines += [
        f"attempt {attempt.attempt} {attempt.outcome}"
        + (f": {describe_error(attempt.error)}" if attempt.error is not None else "")
        for attempt in view.attempts or ()
    ]
    lines += [f"{line.at} {line.level} {line.message}" for line in view.logs or ()]
    if view.manifest is not None:
        lines.append(f"manifest: {_cut(compact(view.manifest), TEXT_RESULT_CHARS)}")
    if view.report is not None:
        lines.append(view.report)
    if view.next is not None:
        lines.append(view.next)
    return "\n".join(lines)


def describe_error(error: ErrorView) -> str:
    """Say an error in one line."""
    hint = f" ({error.hint})" if error.hint else ""
    return f"{error.code}: {error.message}{hint}{' [retryable]' if error.retryable else ''}"


def view_error(error: RunError | CallerError) -> ErrorView:
    """Return what an agent sees of a stored or raised error."""
    return ErrorView(
        code=error.code,
        message=_cut(error.message, ERROR_CHARS),
        hint=_cut(error.hint, ERROR_CHARS) if error.hint else None,
        retryable=error.retryable,
        retry_after_ms=error.retry_after_ms if isinstance(error, LimitError) else None,
    )


def view_log(line: LogLine) -> LogView:
    """Return one line a handler logged."""
    return LogView(
        at=iso(line.logged_at) or "",
        level=line.level,
        message=_cut(line.message, ERROR_CHARS),
        attempt=line.attempt_no,
    )


def view_definition(definition: JobDefinition, *, is_detailed: bool) -> JsonObject:
    """Return a definition as an element of ``list-jobs``: all of it, or what it takes to choose."""
    if is_detailed:
        return cast(
            "JsonObject",
            definition.model_dump(
                mode="json",
                by_alias=True,
                exclude_none=True,
                exclude={
                    "handler",
                    "input",
                    "hidden",
                    "chain",
                    "map",
                    "switch",
                    "result",
                    "pinned",
                },
            ),
        )
    return JobRow(name=definition.name, title=_title_of(definition)).wire()


def _title_of(definition: JobDefinition) -> str | None:
    """Return one short line: the title, or the first words of the description."""
    text = " ".join((definition.title or definition.description or "").split())
    if len(text) <= TITLE_CHARS:
        return text or None
    kept, _, cut = text[:TITLE_CHARS].rpartition(" ")
    return (kept or cut[: TITLE_CHARS - 1]).rstrip(" ,;:.") + "…"


def schema_of(models: tuple[type[WireModel], ...]) -> JsonObject:
    """Return the JSON Schema of what a tool answers: one of these."""
    _, schema = models_json_schema([(model, "serialization") for model in models], by_alias=True)
    definitions = cast("JsonObject", squeeze(cast("JsonObject", schema)["$defs"], is_map=True))
    definitions = cast("JsonObject", _without_anything(definitions))
    options: list[JsonValue] = [{"$ref": f"#/$defs/{model.__name__}"} for model in models]
    if len(models) == 1:
        root = cast("JsonObject", definitions.pop(models[0].__name__))
        return {**root, "$defs": definitions} if definitions else root
    return {"type": "object", "anyOf": options, "$defs": definitions}


def _without_anything(node: JsonValue) -> JsonValue:
    """Leave out the reference to the schema that anything fits: clients would look it up for every member of every row."""
    if isinstance(node, list):
        return [_without_anything(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        name: _without_anything(member)
        for name, member in node.items()
        if name != "JsonValue"
        and (name, member) != ("$ref", "#/$defs/JsonValue")
        and (name, member) != ("additionalProperties", {"$ref": "#/$defs/JsonValue"})
    }


def compact(value: JsonValue) -> str:
    """Return JSON text without blanks."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def iso(time: datetime | None) -> str | None:
    """Return a time as the wire writes it: UTC, milliseconds, ``Z``."""
    if time is None:
        return None
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a model reads for a text, seldom too few. A single blank belongs to its word."""
    return sum(
        -(-len(piece) // 6) if piece.isalpha() else -(-len(piece) // 3)
        for piece in _PIECES.findall(text)
    )


_PIECES = re.compile(r"[^\W\d_]+|\d+|\s{2,}|(?:[^\w\s]|_)+")


def _result(run: Run) -> tuple[JsonValue, str | None]:
    """Return the result, or a preview of one that is too long to tell."""
    text = run.result
    if text is None:
        return None, None
    if (reference := reference_of(text)) is not None:
        return None, _cut(reference.preview, PREVIEW_CHARS)
    size = len(text) if text.isascii() else len(text.encode())
    if size > RESULT_INLINE_BYTES or (
        size > RESULT_INLINE_TOKENS and estimate_tokens(text) > RESULT_INLINE_TOKENS
    ):
        return None, _cut(text, PREVIEW_CHARS)
    return cast("JsonValue", json.loads(text)), None


def _progress(run: Run) -> ProgressView | None:
    if run.progress_done is None and run.progress_message is None:
        return None
    return ProgressView(
        done=run.progress_done,
        total=run.progress_total,
        message=_cut(run.progress_message, MESSAGE_CHARS) if run.progress_message else None,
    )


def _view_attempt(attempt: Attempt) -> AttemptView:
    return AttemptView(
        attempt=attempt.attempt_no,
        outcome=attempt.outcome,
        started_at=iso(attempt.started_at) or "",
        finished_at=iso(attempt.finished_at) or "",
        error=view_error(attempt.error) if attempt.error is not None else None,
    )


def _details(view: RunView) -> str:
    parts = [f"version {view.version}"]
    if view.outcome is not None:
        parts.insert(0, view.outcome)
    if view.attempt is not None:
        parts.append(f"attempt {view.attempt} of {view.max_attempts}")
    if view.progress is not None:
        parts.append(describe_progress(view.progress))
    if view.waiting_for is not None:
        parts.append(f"waiting for {view.waiting_for}")
    if view.run_at is not None:
        parts.append(f"due {view.run_at}")
    if view.finished_at is not None:
        parts.append(f"finished {view.finished_at}")
    if view.poll_after_ms is not None:
        parts.append(f"look again in {view.poll_after_ms} ms")
    return f" ({', '.join(parts)})"


def describe_progress(progress: ProgressView) -> str:
    """Say how far a run is."""
    if progress.done is None:
        return progress.message or ""
    amount = f"{progress.done:g}" + (
        f" of {progress.total:g}" if progress.total is not None else ""
    )
    return f"{amount}: {progress.message}" if progress.message else amount


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def tool_error(error: Mapping[str, object] | ErrorView) -> Answer:
    """Return the answer of a call that was refused."""
    view = error if isinstance(error, ErrorView) else ErrorView.model_validate(error)
    return Answer({"error": view.wire()}, describe_error(view), is_error=True)
