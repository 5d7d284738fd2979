"""The tools: one table, one function each, from checked arguments to an answer.

Nothing here knows MCP: ``build`` finds the tool, checks the arguments, asks the gate and makes a tool result of the
answer or of the error. Descriptions are written for language models: when to use it, what comes back, what to call next.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Generic, Literal, TypeVar, cast

import anyio

from jobforge_mcp.definitions.json_limits import check_key, load_limited
from jobforge_mcp.errors import CallerError, ConflictError, InvalidInputError, NotFoundError
from jobforge_mcp.policy.permissions import (
    ask_guards,
    may_list,
    require_job,
    require_run,
    require_type,
)
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.progress import Watch
from jobforge_mcp.server import arguments as args
from jobforge_mcp.server import wire
from jobforge_mcp.server.next import next_after_plan, next_of_several
from jobforge_mcp.server.parts import Call, Reservation, ServerParts
from jobforge_mcp.server.waiting import capped, wait_for_run
from jobforge_mcp.types import (
    Cause,
    ClaimedJob,
    Effects,
    Enqueued,
    EnqueueOutcome,
    Fence,
    InlineLease,
    JobAction,
    JobId,
    JsonObject,
    JsonValue,
    LogLine,
    NewJob,
    Run,
    RunFilter,
    RunStatus,
)

PAGE_CHARS = 20_000
"""Characters of JSON after which a page of a list ends early: well under 8,000 tokens."""

LOG_LINES = 50
LOG_CHARS = 8_000
DETACH_SECONDS = 5.0
"""How long a call that was cut off may take to cancel its job, when it was told to."""

ArgumentsT = TypeVar("ArgumentsT", bound=args.Arguments)


@dataclass(frozen=True, slots=True)
class Tool(Generic[ArgumentsT]):
    """One tool as the server knows it."""

    name: str
    scope: Scope
    title: str
    description: str
    arguments: type[ArgumentsT]
    answers: tuple[type[wire.WireModel], ...]
    """What comes back when the call succeeds."""
    run: Callable[[ServerParts, Call, ArgumentsT], Awaitable[wire.Answer]]
    is_read_only: bool = False
    is_destructive: bool = False
    is_idempotent: bool = False

    def prepare(self, given: Mapping[str, object] | None) -> Prepared:
        """Check the arguments of one call; what comes back only has to be told who calls.

        Raises:
            InvalidInputError: An argument does not fit.
        """
        checked = args.parse(self.arguments, given)

        async def run(parts: ServerParts, call: Call) -> wire.Answer:
            return await self.run(parts, call, checked)

        return run


Prepared = Callable[[ServerParts, Call], Awaitable[wire.Answer]]


async def list_jobs(parts: ServerParts, call: Call, given: args.ListJobs) -> wire.Answer:
    """Return the definitions this caller may run."""
    found = parts.registry.list(
        given.query, given.tags, given.labels, is_visible=may_list(call.caller)
    )
    rest = [bound for bound in found if given.cursor is None or bound.name > given.cursor]
    elements = [
        wire.view_definition(bound.definition, is_detailed=bool(given.detail))
        for bound in rest[: given.limit or args.PAGE]
    ]
    shown = _as_many_as_fit(elements)
    is_more = len(shown) < len(rest)
    page = wire.JobPage(
        jobs=shown,
        next_cursor=rest[len(shown) - 1].name if is_more else None,
        next=_next_after_jobs(shown, is_more=is_more, is_detailed=bool(given.detail)),
    )
    return wire.Answer(page.wire(), _describe_jobs(page, is_detailed=bool(given.detail)))


async def execute_job(parts: ServerParts, call: Call, given: args.ExecuteJob) -> wire.Answer:
    """Commit a run, then wait for it as long as asked."""
    job = _new_job(parts, call, given)
    if given.dry_run:
        return await _plan(parts, call, job)
    seconds = (
        0.0
        if given.background
        else capped(parts, given.wait_seconds, parts.settings.wait_seconds_default)
    )
    if job.run_at is not None and (job.run_at - datetime.now(UTC)).total_seconds() > seconds:
        seconds = 0.0  # it does not even begin before the wait would be over
    enqueued, is_inline = await _enqueue(parts, call, job)
    with ExitStack() as stack:
        # Nothing is awaited since the pool adopted the job, so nothing it does can be missed.
        place = parts.watcher.watch(call.caller, enqueued.job_id, version=enqueued.version)
        watch = stack.enter_context(place) if is_inline else None
        run = await _await_run(parts, call, given, job, enqueued, seconds, watch)
    cause = await _cause(parts, call, run) if seconds > 0 else None
    outcome = cast("Literal['created', 'replayed']", enqueued.outcome.value)
    answer = _answer(run, call, wire.Extras(outcome=outcome, cause=cause))
    is_lost = run.status.is_final and run.status is not RunStatus.SUCCEEDED
    return replace(answer, is_error=is_lost and seconds > 0)


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
    return _answer(run, call, await _extras(parts, call, run, given))


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


async def cancel_job(parts: ServerParts, call: Call, given: args.CancelJob) -> wire.Answer:
    """Ask for a run's end."""
    with _unknown_is_unknown():
        await _require_run(parts, call, JobId(given.run_id), JobAction.CANCEL)
        run = await _cancel(parts, call, JobId(given.run_id), given.reason)
    return _answer(run, call)


async def retry_job(parts: ServerParts, call: Call, given: args.RetryJob) -> wire.Answer:
    """Queue a final run again."""
    with _unknown_is_unknown():
        await _require_run(parts, call, JobId(given.run_id), JobAction.EXECUTE)
        run = await parts.router.retry_job(
            call.caller,
            JobId(given.run_id),
            if_version=given.if_version,
            run_at=given.run_at,
            reset_attempts=bool(given.reset_attempts),
            force=bool(given.force),
            origin=call.origin,
        )
    parts.watcher.publish(run.job_id)
    return _answer(run, call)


AnyTool = (
    Tool[args.ListJobs]
    | Tool[args.ExecuteJob]
    | Tool[args.GetJobStatus]
    | Tool[args.ListRuns]
    | Tool[args.CancelJob]
    | Tool[args.RetryJob]
)

TOOLS: tuple[AnyTool, ...] = (
    Tool(
        name="list-jobs",
        scope=Scope.JOBS_LIST,
        title="List jobs",
        description="Find jobs that can be run, with what each does. Use detail true and a query to see the input schema of one "
        "before you run it with execute-job.",
        arguments=args.ListJobs,
        answers=(wire.JobPage,),
        run=list_jobs,
        is_read_only=True,
        is_idempotent=True,
    ),
    Tool(
        name="execute-job",
        scope=Scope.JOBS_EXECUTE,
        title="Execute a job",
        description="Run a job and wait for its result. The run is stored before anything happens, so it survives this call and this "
        "chat. If it takes longer than the wait you get its runId and status: call get-job-status then. Pass an "
        "idempotencyKey, so that repeating a lost call runs nothing twice.",
        arguments=args.ExecuteJob,
        answers=(wire.RunView, wire.PlanView),
        run=execute_job,
        is_destructive=True,
    ),
    Tool(
        name="get-job-status",
        scope=Scope.JOBS_READ,
        title="Get the status of a run",
        description="Status, progress, result or error of a run. Pass waitSeconds to wait for the end instead of polling; follow next.",
        arguments=args.GetJobStatus,
        answers=(wire.RunView, wire.RunsView),
        run=get_job_status,
        is_read_only=True,
        is_idempotent=True,
    ),
    Tool(
        name="list-runs",
        scope=Scope.JOBS_READ,
        title="List runs",
        description="Find runs, newest first: when a runId was lost, or to see what failed or still runs.",
        arguments=args.ListRuns,
        answers=(wire.RunPage,),
        run=list_runs,
        is_read_only=True,
        is_idempotent=True,
    ),
    Tool(
        name="cancel-job",
        scope=Scope.JOBS_CANCEL,
        title="Cancel a run",
        description="Stop a run that is not final. A running job is asked to stop and ends soon after; get-job-status tells.",
        arguments=args.CancelJob,
        answers=(wire.RunView,),
        run=cancel_job,
        is_destructive=True,
        is_idempotent=True,
    ),
    Tool(
        name="retry-job",
        scope=Scope.JOBS_RETRY,
        title="Retry a run",
        description="Run a failed, dead or canceled run again under the same runId, after its cause was mended.",
        arguments=args.RetryJob,
        answers=(wire.RunView,),
        run=retry_job,
    ),
)
"""In the order they are listed: stable, because models' caches depend on it."""


def _new_job(parts: ServerParts, call: Call, given: args.ExecuteJob) -> NewJob:
    require_type(call.caller, given.name)
    bound = parts.registry.get(given.name, is_visible=may_list(call.caller))
    definition = bound.definition
    require_job(call.caller, bound, JobAction.EXECUTE)
    prepared = parts.registry.prepare(given.name, cast("JsonValue", given.input))
    if bound.guards:
        ask_guards(call.caller, bound, JobAction.EXECUTE, json.loads(prepared.payload))
    if bound.effects is Effects.EXTERNAL and given.idempotency_key is None:
        raise InvalidInputError(
            f"{bound.name} acts outside this database, so it needs an idempotencyKey",
            code="IDEMPOTENCY_KEY_REQUIRED",
            hint="pass idempotencyKey, and the same one whenever this very call is repeated",
        )
    if given.idempotency_key is not None:
        check_key(given.idempotency_key, "idempotencyKey")
    if given.ordering_key is not None:
        check_key(given.ordering_key, "orderingKey")
    return NewJob(
        job_type=bound.name,
        payload=prepared.payload,
        received=prepared.received,
        idempotency_key=given.idempotency_key,
        ordering_key=given.ordering_key,
        priority=2 if given.priority is None else given.priority,
        run_at=given.run_at,
        project_id=given.project_id or _only_project(call),
        labels=given.labels,
        trace_id=call.trace_id,
        job_version=definition.version,
        max_attempts=definition.retry.max_attempts,
        backoff_ms=definition.retry.backoff_ms,
        backoff_multiplier=definition.retry.backoff_multiplier,
        max_backoff_ms=definition.retry.max_backoff_ms,
        timeout_ms=definition.timeout_ms,
    )


def _only_project(call: Call) -> str | None:
    """A caller confined to one project means that one."""
    projects = call.caller.projects
    return next(iter(projects)) if projects is not None and len(projects) == 1 else None


async def _plan(parts: ServerParts, call: Call, job: NewJob) -> wire.Answer:
    planned = await parts.router.enqueue_job(call.caller, job, origin=call.origin, is_plan=True)
    is_known = planned.outcome is EnqueueOutcome.REPLAYED
    view = wire.PlanView(
        job_name=job.job_type,
        outcome=planned.outcome.value,
        run_id=str(planned.job_id) if is_known else None,
        status=planned.status.value if is_known else None,
        input=json.loads(job.payload) if len(job.payload) <= wire.RESULT_INLINE_BYTES else None,
        next=next_after_plan(planned.outcome.value),
    )
    text = f"dry run of {view.job_name}: {view.outcome}"
    return wire.Answer(view.wire(), "\n".join((text, view.next)))


async def _enqueue(parts: ServerParts, call: Call, job: NewJob) -> tuple[Enqueued, bool]:
    """Commit the job; say whether it was handed to our own pool in the same statement.

    Shielded: whoever leaves in the middle must neither leave a job leased to a pool that does not know of it, nor make it
    uncertain whether the job exists.
    """
    enqueued: Enqueued | None = None
    is_inline = False
    with anyio.CancelScope(shield=True), ExitStack() as stack:
        reservation = _reserve(parts, job)
        if reservation is None or parts.pool is None:
            enqueued = await parts.router.enqueue_job(call.caller, job, origin=call.origin)
        else:
            stack.enter_context(reservation)
            lease = InlineLease(parts.pool.worker_id, parts.settings.lease_ms)
            leased_at = time.monotonic()
            enqueued = await parts.router.enqueue_job(
                call.caller, job, origin=call.origin, inline=lease
            )
            if enqueued.lease_id is not None:
                reservation.adopt(_claimed(call, job, enqueued), leased_at=leased_at)
                parts.metrics.inline.inc()
                is_inline = True
    assert enqueued is not None
    if enqueued.outcome is EnqueueOutcome.CONFLICT:
        raise ConflictError(
            "this idempotencyKey was used before with another input, so nothing was created",
            code="IDEMPOTENCY_CONFLICT",
            hint="use a new key for new work, or repeat the first input unchanged",
        )
    return enqueued, is_inline


def _reserve(parts: ServerParts, job: NewJob) -> Reservation | None:
    """Keep a slot of our own pool, if it could run this job at once."""
    pool = parts.pool
    if pool is None or job.run_at is not None or job.ordering_key is not None:
        return None
    return pool.try_reserve() if job.job_type in pool.job_types else None


def _claimed(call: Call, job: NewJob, enqueued: Enqueued) -> ClaimedJob:
    """Return a job that was inserted already leased as its worker would have claimed it."""
    assert enqueued.lease_id is not None
    assert enqueued.lease_until is not None
    return ClaimedJob(
        fence=Fence(call.caller.tenant_id, enqueued.lease_id, enqueued.job_id, epoch=1),
        job_type=job.job_type,
        job_version=job.job_version,
        payload=job.payload,
        project_id=job.project_id,
        trace_id=job.trace_id,
        attempt_no=1,
        max_attempts=job.max_attempts,
        timeout_ms=job.timeout_ms,
        is_dry_run=job.is_dry_run,
        is_suspect=False,
        created_at=enqueued.created_at,
        claimed_at=enqueued.created_at,
        lease_until=enqueued.lease_until,
    )


async def _await_run(
    parts: ServerParts,
    call: Call,
    given: args.ExecuteJob,
    job: NewJob,
    enqueued: Enqueued,
    seconds: float,
    watch: Watch | None,
) -> Run:
    if seconds <= 0:
        if enqueued.outcome is EnqueueOutcome.CREATED:
            return _created(call, job, enqueued)
        return await parts.router.get_run(call.caller, enqueued.job_id)
    try:
        return await wait_for_run(parts, call, enqueued.job_id, seconds=seconds, watch=watch)
    except anyio.get_cancelled_exc_class():
        # The client left, or its own timeout did: the run goes on, unless this caller asked otherwise. What an earlier
        # call created may be another agent's: only who may cancel ends that.
        is_ours = (
            enqueued.outcome is EnqueueOutcome.CREATED or Scope.JOBS_CANCEL in call.caller.scopes
        )
        if given.cancel_on_disconnect and is_ours and not parts.watcher.is_stopping:
            with anyio.move_on_after(DETACH_SECONDS, shield=True):
                await _cancel(
                    parts, call, enqueued.job_id, "the call that waited for it was cut off"
                )
        raise


async def _require_run(parts: ServerParts, call: Call, job_id: JobId, action: JobAction) -> None:
    await require_run(parts.router, parts.registry.by_name, call.caller, job_id, action)


async def _cancel(parts: ServerParts, call: Call, job_id: JobId, reason: str | None) -> Run:
    """Cancel a run, and tell at once whoever runs it or waits for it in this process."""
    run = await parts.router.cancel_job(call.caller, job_id, reason=reason, origin=call.origin)
    if parts.pool is not None and not run.status.is_final:
        parts.pool.cancel(job_id)
    parts.watcher.publish(job_id)
    return run


def _created(call: Call, job: NewJob, enqueued: Enqueued) -> Run:
    """Return the row that was just written, without reading it again."""
    return Run(
        tenant_id=call.caller.tenant_id,
        job_id=enqueued.job_id,
        project_id=job.project_id,
        job_type=job.job_type,
        job_version=job.job_version,
        status=enqueued.status,
        waiting_for="turn" if enqueued.status is RunStatus.WAITING else None,
        attempt_no=1 if enqueued.lease_id is not None else 0,
        max_attempts=job.max_attempts,
        epoch=1 if enqueued.lease_id is not None else 0,
        version=enqueued.version,
        priority=job.priority,
        run_at=enqueued.run_at,
        ordering_key=job.ordering_key,
        labels=job.labels,
        trace_id=job.trace_id,
        parent_id=None,
        timeout_ms=job.timeout_ms,
        created_at=enqueued.created_at,
        created_by=call.caller.subject,
        started_at=enqueued.created_at if enqueued.lease_id is not None else None,
        finished_at=None,
        worker_id=None,
        lease_until=enqueued.lease_until,
        progress_done=None,
        progress_total=None,
        progress_message=None,
        cancel_requested_at=None,
        cancel_reason=None,
        error=None,
    )


async def _read_run(
    parts: ServerParts,
    call: Call,
    job_id: JobId,
    *,
    seconds: float = 0,
    since_version: int | None = None,
) -> Run:
    with _unknown_is_unknown():
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
    parts: ServerParts, call: Call, run: Run, given: args.GetJobStatus
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
        cause=await _cause(parts, call, run),
        is_full=bool(include),
    )


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


async def _cause(parts: ServerParts, call: Call, run: Run) -> Cause | None:
    """Ask why a run that should be running is not."""
    if run.status is not RunStatus.QUEUED or run.run_at > datetime.now(UTC):
        return None
    causes = await parts.router.explain_run(call.caller, run.job_id)
    return causes[0] if causes else None


def _answer(run: Run, call: Call, extras: wire.Extras | None = None) -> wire.Answer:
    view = wire.view_run(run, call.caller, extras)
    links = (
        (wire.Link(view.result_uri, f"result of {view.job_name}"),)
        if view.result_uri is not None
        else ()
    )
    return wire.Answer(view.wire(), wire.describe_run(view), links=links)


class _unknown_is_unknown:  # noqa: N801  # reads as a phrase where it is used
    """Say the same, byte for byte, whether a run belongs to somebody else or was never there."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, NotFoundError):
            raise NotFoundError(
                "there is no run with this runId",
                code="RUN_NOT_FOUND",
                hint="list-runs shows the runs this token may see",
            ) from None


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


def _as_many_as_fit(elements: Sequence[JsonObject]) -> list[JsonObject]:
    """Cut a page where it would cost a model too much; never below one element."""
    room = PAGE_CHARS
    shown: list[JsonObject] = []
    for element in elements:
        room -= len(wire.compact(element))
        if room < 0 and shown:
            break
        shown.append(element)
    return shown


def _next_after_jobs(shown: Sequence[object], *, is_more: bool, is_detailed: bool) -> str:
    if not shown:
        return "Nothing fits: call list-jobs with fewer words."
    then = (
        "call execute-job with name and input"
        if is_detailed
        else "call list-jobs with query and detail true for the input schema, then execute-job"
    )
    return f"{'More with cursor nextCursor; to run one, ' if is_more else 'To run one, '}{then}."


def _describe_jobs(page: wire.JobPage, *, is_detailed: bool) -> str:
    lines = [
        wire.compact(job)
        if is_detailed
        else f"{job['name']}: {job.get('description') or job.get('title') or ''}"
        for job in page.jobs
    ]
    return "\n".join([*lines, *_more(page.next_cursor), page.next])


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
    return "\n".join([*lines, *_more(page.next_cursor), page.next])


def _more(cursor: str | None) -> list[str]:
    return [f"nextCursor: {cursor}"] if cursor is not None else []
