"""execute-job: commit a run, perhaps straight into a free slot of our own pool, and wait for it.

A waiter that leaves never cancels the run unless the caller asked for that.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal, cast

import anyio

from jobforge_mcp.definitions.enqueuing import job_of
from jobforge_mcp.definitions.json_limits import check_key
from jobforge_mcp.definitions.model import BoundJob
from jobforge_mcp.errors import ConflictError, InvalidInputError
from jobforge_mcp.policy.permissions import (
    ask_guards,
    may_list,
    require_job,
    require_type,
)
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.progress import Watch
from jobforge_mcp.server import arguments as args
from jobforge_mcp.server import wire
from jobforge_mcp.server.next import next_after_plan
from jobforge_mcp.server.parts import Call, Reservation, ServerParts
from jobforge_mcp.server.tools.answers import (
    answer_run,
    cancel_and_tell,
    cause_of,
)
from jobforge_mcp.server.waiting import capped, wait_for_run
from jobforge_mcp.types import (
    ClaimedJob,
    Effects,
    Enqueued,
    EnqueueOutcome,
    Fence,
    InlineLease,
    JobAction,
    JsonValue,
    NewJob,
    Run,
    RunStatus,
)

DETACH_SECONDS = 5.0
"""How long a call that was cut off may take to cancel its job, when it was told to."""


async def execute_job(parts: ServerParts, call: Call, given: args.ExecuteJob) -> wire.Answer:
    """Commit a run, then wait for it as long as asked."""
    bound = await find_job(parts, call, given)
    job = new_job(parts, call, given, bound)
    if given.dry_run:
        return await _plan(parts, call, job, bound)
    seconds = (
        0.0
        if given.background
        else capped(parts, given.wait_seconds, parts.settings.wait_seconds_default)
    )
    if job.run_at is not None and (job.run_at - datetime.now(UTC)).total_seconds() > seconds:
        seconds = 0.0  # it does not even begin before the wait would be over
    enqueued, is_inline = await _enqueue(parts, call, job, bound)
    with ExitStack() as stack:
        # Nothing is awaited since the pool adopted the job, so nothing it does can be missed.
        place = parts.watcher.watch(
            call.caller,
            enqueued.job_id,
            version=enqueued.version,
            created=_created(call, job, enqueued) if is_inline else None,
        )
        watch = stack.enter_context(place) if is_inline else None
        run = await _await_run(parts, call, given, job, enqueued, seconds, watch)
    cause = await cause_of(parts, call.caller, run) if seconds > 0 else None
    outcome = cast("Literal['created', 'replayed']", enqueued.outcome.value)
    answer = answer_run(run, call, wire.Extras(outcome=outcome, cause=cause))
    is_lost = run.status.is_final and run.status is not RunStatus.SUCCEEDED
    return replace(answer, is_error=is_lost and seconds > 0)


async def find_job(parts: ServerParts, call: Call, given: args.ExecuteJob) -> BoundJob:
    """Find the job that a caller names."""
    require_type(call.caller, given.name)
    return await parts.catalog.find(call.caller, given.name, is_visible=may_list(call.caller))


def new_job(parts: ServerParts, call: Call, given: args.ExecuteJob, bound: BoundJob) -> NewJob:
    """Check what a caller wants to run, and return it ready to be enqueued."""
    require_job(call.caller, bound, JobAction.EXECUTE)
    prepared = parts.registry.prepare_bound(bound, cast("JsonValue", given.input))
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
    parts.registry.scan(
        {
            "idempotencyKey": given.idempotency_key,
            "orderingKey": given.ordering_key,
            "labels": dict(given.labels or {}),
        }
    )
    return job_of(prepared, bound.lane_type)._replace(
        idempotency_key=given.idempotency_key,
        ordering_key=given.ordering_key,
        priority=2 if given.priority is None else given.priority,
        run_at=given.run_at,
        project_id=given.project_id or _only_project(call),
        labels=given.labels,
        trace_id=call.trace_id,
        is_dry_run=bool(given.rehearse),
    )


def _only_project(call: Call) -> str | None:
    """A caller confined to one project means that one."""
    projects = call.caller.projects
    return next(iter(projects)) if projects is not None and len(projects) == 1 else None


async def _plan(parts: ServerParts, call: Call, job: NewJob, bound: BoundJob) -> wire.Answer:
    planned = await parts.router.enqueue_job(call.caller, job, origin=call.origin, is_plan=True)
    is_known = planned.outcome is EnqueueOutcome.REPLAYED
    view = wire.PlanView(
        job_name=job.job_type,
        outcome=planned.outcome.value,
        run_id=str(planned.job_id) if is_known else None,
        status=planned.status.value if is_known else None,
        job_version=job.job_version,
        scopes=sorted(
            {Scope.JOBS_EXECUTE.value, *bound.definition.required_scopes(JobAction.EXECUTE)}
            | ({Scope.ACTION_EXECUTE.value} if bound.effects is Effects.EXTERNAL else set())
        ),
        limits=cast("JsonValue", json.loads(job.claim_limits)) if job.claim_limits else None,
        input=json.loads(job.payload) if len(job.payload) <= wire.RESULT_INLINE_BYTES else None,
        next=next_after_plan(planned.outcome.value),
    )
    text = f"dry run of {view.job_name}: {view.outcome}"
    return wire.Answer(view.wire(), "\n".join((text, view.next)))


async def _enqueue(
    parts: ServerParts, call: Call, job: NewJob, bound: BoundJob
) -> tuple[Enqueued, bool]:
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
                claimed = _claimed(call, job, enqueued, definition=bound.source)
                reservation.adopt(claimed, leased_at=leased_at)
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
    is_ours = (job.lane_type or job.job_type) in pool.job_types
    return pool.try_reserve(job.lane_type) if is_ours else None


def _claimed(call: Call, job: NewJob, enqueued: Enqueued, *, definition: str | None) -> ClaimedJob:
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
        claimed_at=enqueued.created_at,
        lease_until=enqueued.lease_until,
        lane_type=job.lane_type,
        definition=definition,
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
                await cancel_and_tell(
                    parts, call, enqueued.job_id, "the call that waited for it was cut off"
                )
        raise


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
        is_dry_run=job.is_dry_run,
    )
