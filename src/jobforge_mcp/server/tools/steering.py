"""Tools that change what becomes of a run: cancel-job and retry-job."""

from __future__ import annotations

from typing import Literal

from jobforge_mcp.policy.permissions import require_runnable
from jobforge_mcp.server import arguments as args
from jobforge_mcp.server import wire
from jobforge_mcp.server.next import next_after_plan
from jobforge_mcp.server.parts import Call, ServerParts
from jobforge_mcp.server.tools.answers import (
    answer_run,
    cancel_and_tell,
    unknown_is_unknown,
)
from jobforge_mcp.types import (
    JobAction,
    JobId,
    Run,
    RunStatus,
)


async def cancel_job(parts: ServerParts, call: Call, given: args.CancelJob) -> wire.Answer:
    """Ask for a run's end."""
    parts.registry.scan({"reason": given.reason})
    with unknown_is_unknown():
        await parts.permits.require_run(call.caller, JobId(given.run_id), JobAction.CANCEL)
        if given.dry_run:
            planned = await parts.router.cancel_job(
                call.caller, JobId(given.run_id), is_plan=True, origin=call.origin
            )
            return _plan(
                planned, "requested" if planned.status is RunStatus.RUNNING else "canceled"
            )
        run = await cancel_and_tell(parts, call, JobId(given.run_id), given.reason)
    return answer_run(run, call)


async def retry_job(parts: ServerParts, call: Call, given: args.RetryJob) -> wire.Answer:
    """Queue a final run again."""
    with unknown_is_unknown():
        await parts.permits.require_run(call.caller, JobId(given.run_id), JobAction.EXECUTE)
        await require_runnable(parts.router, parts.registry, call.caller, JobId(given.run_id))
        run = await parts.router.retry_job(
            call.caller,
            JobId(given.run_id),
            if_version=given.if_version,
            run_at=given.run_at,
            reset_attempts=bool(given.reset_attempts),
            force=bool(given.force),
            is_plan=bool(given.dry_run),
            origin=call.origin,
        )
    if given.dry_run:
        return _plan(run, "queued")
    parts.watcher.publish(run.job_id)
    return answer_run(run, call)


def _plan(run: Run, outcome: Literal["canceled", "requested", "queued"]) -> wire.Answer:
    view = wire.PlanView(
        job_name=run.job_type,
        outcome=outcome,
        run_id=str(run.job_id),
        status=run.status.value,
        next=next_after_plan(outcome),
    )
    text = f"dry run: {view.job_name} {view.run_id} is {view.status}"
    return wire.Answer(view.wire(), "\n".join((text, view.next)))
