"""``runs``: what ran."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from jobforge_mcp.cli.options import Json
from jobforge_mcp.cli.output import show
from jobforge_mcp.cli.session import call, open_client, read_settings
from jobforge_mcp.errors import InvalidInputError
from jobforge_mcp.types import JobId, JsonObject, Run, RunFilter, RunStatus

RunId = Annotated[str, typer.Argument(help="Id of the run.", metavar="RUN_ID")]


def runs(
    name: Annotated[str | None, typer.Option(help="Only runs of this job.")] = None,
    status: Annotated[RunStatus | None, typer.Option(help="Only runs of this status.")] = None,
    project: Annotated[str | None, typer.Option(help="Only runs of this project.")] = None,
    trace: Annotated[str | None, typer.Option(help="Only runs of this trace.")] = None,
    since: Annotated[str | None, typer.Option(help="Only runs created since; ISO 8601.")] = None,
    before: Annotated[str | None, typer.Option(help="Only runs older than this run.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="At most so many.")] = 20,
    json: Json = False,
) -> None:
    """List runs, newest first."""
    from jobforge_mcp.cli.views import print_runs, row_document

    wanted = RunFilter(
        job_type=name,
        status=status,
        project_id=project,
        trace_id=trace,
        since=parse_time(since) if since is not None else None,
        before_id=_cursor(before),
        limit=limit,
    )

    async def work() -> list[Run]:
        async with open_client(read_settings(), "runs") as client:
            return await client.list_runs(wanted)

    found = call(work)
    document: JsonObject = {"runs": [row_document(run) for run in found]}
    show(document, is_json=json, people=lambda console: print_runs(console, found))


def parse_time(text: str) -> datetime:
    """Read a time a person wrote; without a zone it is UTC.

    Raises:
        InvalidInputError: it is not ISO 8601.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInputError(
            f"{text[:40]!r} is not a time", hint="write it like 2030-01-31T12:00:00Z"
        ) from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _cursor(text: str | None) -> JobId | None:
    from jobforge_mcp.client import to_job_id

    return to_job_id(text) if text is not None else None
