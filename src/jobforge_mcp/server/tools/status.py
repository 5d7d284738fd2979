"""Tools that read runs: get-job-status, which can wait, and list-runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import anyio

from jobforge_mcp.definitions.json_limits import load_limited
from jobforge_mcp.errors import CallerError, InvalidInputError
from jobforge_mcp.evidence.manifest import Manifest, artifact_uri, load_manifest
from jobforge_mcp.evidence.report import REPORT_BYTES, load_report
from jobforge_mcp.server import arguments as args
from jobforge_mcp.server import wire
from jobforge_mcp.server.next import next_of_several, next_step
from jobforge_mcp.server.parts import Call, ServerParts
from jobforge_mcp.server.tools.answers import (
    answer_run,
    cause_of,
    more_of,
    unknown_is_unknown,
)
from jobforge_mcp.server.waiting import capped, wait_for_run
from jobforge_mcp.types import (
    Caller,
    JobId,
    JsonValue,
    LogLine,
    Run,
    RunFilter,
    RunStatus,
)

LOG_LINES = 50
LOG_CHARS = 8_000
ARTIFACT_LINKS = 10


async def get_job_status(parts: ServerParts, call: Call, given: args.GetJobStatus) -> wire.Answer:
    """Return one run or several, after a wait if asked."""
    if (given.run_id is None) == (given.run_ids is None):
        raise InvalidInputError(
            "either runId or runIds is required, and not both",
            code="INVALID_ARGUMENTS",
            hint="pass runId for one run, runIds for several; list-runs finds them",
        )
    seconds = capped(parts, given.wait_seconds, 0)
    if given.run_ids is not None:
        return await _several(
            parts, call, given, [JobId(run_id) for run_id in given.run_ids], seconds
        )
    assert given.run_id is not None
    job_id = JobId(given.run_id)
    run = await _read_run(parts, call, job_id, seconds=seconds, since_version=given.since_version)
    wants_manifest = "manifest" in (given.include or ())
    manifest = await load_manifest(parts.router, call.caller, run) if wants_manifest else None
    answer = answer_run(run, call, await _extras(parts, call, run, given, manifest))
    return answer if manifest is None else _with_links(answer, run, manifest)


async def list_runs(parts: ServerParts, call: Call, given: args.ListRuns) -> wire.Answer:
    """Return runs, newest first, one small row each."""
    limit = given.limit or args.PAGE
    found = await parts.router.list_runs(
        call.caller,
        RunFilter(
            job_type=given.name,
            status=RunStatus(given.status) if given.status is not None else None,
            project_id=given.project_id,
            projects=call.caller.projects,
            trace_id=given.trace_id,
            since=given.since,
            before_id=_cursor(given.cursor),
            limit=limit + 1,
        ),
    )
    shown = found[:limit]
    is_more = len(found) > limit
    page = wire.RunPage(
        runs=[wire.row_of(run) for run in shown],
        next_cursor=str(shown[-1].job_id) if is_more else None,
        next=_next_after_runs(shown, is_more=is_more),
    )
    return wire.Answer(page.wire(), _describe_runs(page))


async def _read_run(
    parts: ServerParts,
    call: Call,
    job_id: JobId,
    *,
    seconds: float = 0,
    since_version: int | None = None,
) -> Run:
    with unknown_is_unknown():
        if seconds <= 0:
            return await parts.router.get_run(call.caller, job_id)
        return await wait_for_run(parts, call, job_id, seconds=seconds, since_version=since_version)


async def _several(
    parts: ServerParts,
    call: Call,
    given: args.GetJobStatus,
    job_ids: Sequence[JobId],
    seconds: float,
) -> wire.Answer:
    """Answer for several runs; a wait ends when all are final."""
    if given.include or given.since_version is not None:
        raise InvalidInputError(
            "include and sinceVersion go with runId, not with runIds",
            code="INVALID_ARGUMENTS",
            hint="call get-job-status for each run by itself",
        )
    ends_at = anyio.current_time() + seconds
    runs = {run.job_id: run for run in await parts.router.get_runs(call.caller, job_ids)}
    for job_id, run in list(runs.items()):
        left = ends_at - anyio.current_time()
        if run.status.is_final or left <= 0:
            continue
        runs[job_id] = await wait_for_run(parts, call, job_id, seconds=left)
    if seconds > 0:
        runs = {run.job_id: run for run in await parts.router.get_runs(call.caller, job_ids)}
    views = [
        _link_result(wire.view_run(runs[job_id], call.caller))
        for job_id in job_ids
        if job_id in runs
    ]
    page = wire.RunsView(
        runs=views,
        not_found=[str(job_id) for job_id in job_ids if job_id not in runs] or None,
        next=next_of_several(list(runs.values())),
    )
    text = "\n".join([*(wire.describe_run(view) for view in views), *_missing(page), page.next])
    return wire.Answer(page.wire(), text)


def _link_result(view: wire.RunView) -> wire.RunView:
    """Results of several runs are links: together they could be of any length."""
    is_done = view.status == "succeeded"
    uri = f"jobforge://runs/{view.run_id}/result" if is_done else None
    return view.model_copy(update={"result_uri": uri, "next": None})


def _missing(page: wire.RunsView) -> list[str]:
    return [f"not found: {', '.join(page.not_found)}"] if page.not_found else []


async def _extras(
    parts: ServerParts,
    call: Call,
    run: Run,
    given: args.GetJobStatus,
    manifest: Manifest | None = None,
) -> wire.Extras:
    include = frozenset(given.include or ())
    payload = (
        await parts.router.get_payload(call.caller, run.job_id) if "input" in include else None
    )
    return wire.Extras(
        input=_shown_input(payload) if payload is not None else None,
        logs=await _last_lines(parts, call, run.job_id) if "logs" in include else None,
        attempts=list(await parts.router.list_attempts(call.caller, run.job_id))
        if "attempts" in include
        else None,
        manifest=manifest.document(is_short=True) if manifest is not None else None,
        report=await report_of(parts, call.caller, run) if "report" in include else None,
        cause=await cause_of(parts, call.caller, run),
        is_full=bool(include),
    )


async def report_of(
    parts: ServerParts, caller: Caller, run: Run, *, most_bytes: int = REPORT_BYTES
) -> str:
    """Write the report of a run for a caller."""
    bound = parts.registry.by_name.get(run.job_type)
    return await load_report(
        parts.router,
        caller,
        run,
        next=next_step(
            run,
            caller,
            cause=await cause_of(parts, caller, run),
            is_by_reference=wire.is_by_reference(run),
        ),
        effects=bound.effects.value if bound is not None else None,
        most_bytes=most_bytes,
    )


def _with_links(answer: wire.Answer, run: Run, manifest: Manifest) -> wire.Answer:
    """Link what the attempt made, so that a host can read it."""
    links = [
        wire.Link(artifact_uri(run, made), made.name, made.mime_type)
        for made in manifest.artifacts[:ARTIFACT_LINKS]
    ]
    return replace(answer, links=(*answer.links, *links))


def _shown_input(payload: str) -> JsonValue:
    if len(payload) <= LOG_CHARS:
        # What came in by SQL may pass limits that every reader of an answer relies on: that is told as text.
        with suppress(CallerError):
            return load_limited(payload)
    return f"{payload[: wire.PREVIEW_CHARS]}… ({len(payload)} characters of JSON)"


async def _last_lines(parts: ServerParts, call: Call, job_id: JobId) -> list[LogLine]:
    """Return the newest lines that fit an answer; all of them are in the resource."""
    newest: deque[LogLine] = deque(maxlen=LOG_LINES)
    after = 0
    while lines := await parts.router.list_logs(call.caller, job_id, after=after, limit=1_000):
        newest.extend(lines)
        after = lines[-1].line_no
        if len(lines) < 1_000:
            break
    room = LOG_CHARS
    shown: list[LogLine] = []
    for line in reversed(newest):
        room -= min(len(line.message), wire.ERROR_CHARS)
        if room < 0:
            break
        shown.append(line)
    return shown[::-1]


def _cursor(text: str | None) -> JobId | None:
    if text is None:
        return None
    try:
        return args.parse_run_id(text)
    except InvalidInputError:
        raise InvalidInputError(
            "the cursor is not one that list-runs returned",
            code="INVALID_ARGUMENTS",
            hint="pass nextCursor of the page before, unchanged",
        ) from None


def _next_after_runs(shown: Sequence[Run], *, is_more: bool) -> str:
    if not shown:
        return "No run fits: call list-runs with fewer filters."
    more = "More with cursor nextCursor; for" if is_more else "For"
    return f"{more} result or error of one, call get-job-status."


def _describe_runs(page: wire.RunPage) -> str:
    lines = [
        f"{row.run_id} {row.job_name} {row.status}{f' {row.error_code}' if row.error_code else ''}, "
        f"attempt {row.attempt}, version {row.version}, created {row.created_at}"
        for row in page.runs
    ]
    return "\n".join([*lines, *more_of(page.next_cursor), page.next])
