"""What several tools share: how a run is answered, why one does not run, what fits a page."""

from __future__ import annotations

from collections.abc import Sequence

from jobforge_mcp.errors import NotFoundError
from jobforge_mcp.server import wire
from jobforge_mcp.server.parts import Call, ServerParts
from jobforge_mcp.types import (
    Caller,
    Cause,
    JobId,
    JsonObject,
    Run,
    RunStatus,
)

PAGE_CHARS = 20_000
"""Characters of JSON after which a page of a list ends early: well under 8,000 tokens."""


def answer_run(run: Run, call: Call, extras: wire.Extras | None = None) -> wire.Answer:
    """Show one run, with a link to a result that is too long to show."""
    view = wire.view_run(run, call.caller, extras)
    links = (
        (wire.Link(view.result_uri, f"result of {view.job_name}"),)
        if view.result_uri is not None
        else ()
    )
    return wire.Answer(view.wire(), wire.describe_run(view), links=links)


async def cause_of(parts: ServerParts, caller: Caller, run: Run) -> Cause | None:
    """Ask why a run that should be running is not."""
    if run.status not in {RunStatus.QUEUED, RunStatus.WAITING}:
        return None
    causes = await parts.router.explain_run(caller, run.job_id)
    return causes[0] if causes else None


async def cancel_and_tell(parts: ServerParts, call: Call, job_id: JobId, reason: str | None) -> Run:
    """Cancel a run, and tell at once whoever runs it or waits for it in this process."""
    run = await parts.router.cancel_job(call.caller, job_id, reason=reason, origin=call.origin)
    if parts.pool is not None and not run.status.is_final:
        parts.pool.cancel(job_id)
    parts.watcher.publish(job_id)
    return run


def as_many_as_fit(elements: Sequence[JsonObject]) -> list[JsonObject]:
    """Cut a page where it would cost a model too much; never below one element."""
    room = PAGE_CHARS
    shown: list[JsonObject] = []
    for element in elements:
        room -= len(wire.compact(element))
        if room < 0 and shown:
            break
        shown.append(element)
    return shown


def more_of(cursor: str | None) -> list[str]:
    """Say where the next page begins, if there is one."""
    return [f"nextCursor: {cursor}"] if cursor is not None else []


class unknown_is_unknown:  # noqa: N801  # reads as a phrase where it is used
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
