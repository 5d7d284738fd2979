"""Tools that find what can be run: list-jobs."""

from __future__ import annotations

from collections.abc import Sequence

from jobforge_mcp.definitions.catalog import Wanted
from jobforge_mcp.policy.permissions import (
    may_list,
)
from jobforge_mcp.server import arguments as args
from jobforge_mcp.server import wire
from jobforge_mcp.server.parts import Call, ServerParts
from jobforge_mcp.server.tools.answers import (
    as_many_as_fit,
    more_of,
)


async def list_jobs(parts: ServerParts, call: Call, given: args.ListJobs) -> wire.Answer:
    """Return the definitions this caller may run."""
    wanted = Wanted(
        query=given.query,
        tags=tuple(given.tags or ()),
        labels=given.labels,
        after=given.cursor,
        limit=given.limit or args.PAGE,
    )
    found, is_more = await parts.catalog.list(call.caller, wanted, is_visible=may_list(call.caller))
    elements = [
        wire.view_definition(bound.definition, is_detailed=bool(given.detail)) for bound in found
    ]
    shown = as_many_as_fit(elements)
    is_more = is_more or len(shown) < len(found)
    page = wire.JobPage(
        jobs=shown,
        next_cursor=found[len(shown) - 1].name if is_more else None,
        next=_next_after_jobs(
            shown,
            is_more=is_more,
            is_detailed=bool(given.detail),
            is_later=given.cursor is not None,
        ),
    )
    return wire.Answer(page.wire(), _describe_jobs(page, is_detailed=bool(given.detail)))


def _next_after_jobs(
    shown: Sequence[object], *, is_more: bool, is_detailed: bool, is_later: bool
) -> str:
    if not shown and is_later:
        return "Nothing comes after this cursor."
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
        wire.compact(job) if is_detailed else f"{job['name']}: {job.get('title') or ''}"
        for job in page.jobs
    ]
    return "\n".join([*lines, *more_of(page.next_cursor), page.next])
