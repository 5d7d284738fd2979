"""``cancel`` and ``retry``: one run by its id, or those that a filter finds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from jobforge_mcp.cli import bulk
from jobforge_mcp.cli.options import Json
from jobforge_mcp.cli.output import show
from jobforge_mcp.cli.runs import parse_time
from jobforge_mcp.cli.session import call, open_client, read_settings

if TYPE_CHECKING:
    from jobforge_mcp.client import Client
    from jobforge_mcp.types import Run

RunId = Annotated[str | None, typer.Argument(help="Id of the run.", metavar="RUN_ID")]


def cancel(
    run_id: RunId = None,
    reason: Annotated[str | None, typer.Option(help="Why; kept with the run.")] = None,
    job_type: bulk.JobType = None,
    status: bulk.Status = None,
    project: bulk.Project = None,
    trace: bulk.Trace = None,
    label: bulk.Label = None,
    since: bulk.Since = None,
    before: bulk.Before = None,
    dry_run: bulk.DryRun = False,
    expect: bulk.Expect = None,
    most: bulk.Most = None,
    json: Json = False,
) -> None:
    """Cancel a run that is not final, or all that a filter finds; a running one ends soon after."""
    given = bulk.Given(
        job_type,
        status,
        project,
        trace,
        label,
        since,
        before,
        is_dry_run=dry_run,
        expected=expect,
        most=most,
    )
    if bulk.is_filter(run_id, given):
        bulk.act(
            "cancel",
            given,
            lambda client, wanted: client.count_cancel(wanted),
            lambda client, wanted: client.cancel_many(
                wanted, expected=expect, most=most, reason=reason
            ),
            is_json=json,
        )
        return

    async def work() -> None:
        async with open_client(read_settings(), "cancel") as client:
            _show(client, await client.cancel(run_id or "", reason=reason), is_json=json)

    call(work)


def retry(
    run_id: RunId = None,
    reset_attempts: Annotated[
        bool, typer.Option("--reset-attempts", help="Give it all its attempts again.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Even if it succeeded; only with an id.")
    ] = False,
    if_version: Annotated[
        int | None, typer.Option(help="Only if the run has this version still; only with an id.")
    ] = None,
    run_at: Annotated[str | None, typer.Option(help="Not before; ISO 8601.")] = None,
    job_type: bulk.JobType = None,
    status: bulk.Status = None,
    project: bulk.Project = None,
    trace: bulk.Trace = None,
    label: bulk.Label = None,
    since: bulk.Since = None,
    before: bulk.Before = None,
    error_code: Annotated[
        str | None, typer.Option("--error", help="Runs that ended with this error code.")
    ] = None,
    dry_run: bulk.DryRun = False,
    expect: bulk.Expect = None,
    most: bulk.Most = None,
    json: Json = False,
) -> None:
    """Queue a final run again under the same id, or all that a filter finds and that did not succeed."""
    given = bulk.Given(
        job_type,
        status,
        project,
        trace,
        label,
        since,
        before,
        error_code,
        is_dry_run=dry_run,
        expected=expect,
        most=most,
    )
    not_before = parse_time(run_at) if run_at is not None else None
    if bulk.is_filter(run_id, given):
        bulk.act(
            "retry",
            given,
            lambda client, wanted: client.count_retry(wanted),
            lambda client, wanted: client.retry_many(
                wanted,
                expected=expect,
                most=most,
                run_at=not_before,
                reset_attempts=reset_attempts,
            ),
            is_json=json,
        )
        return

    async def work() -> None:
        async with open_client(read_settings(), "retry", needs_worker=True) as client:
            run = await client.retry(
                run_id or "",
                if_version=if_version,
                run_at=not_before,
                reset_attempts=reset_attempts,
                force=force,
            )
            _show(client, run, is_json=json)

    call(work)


def _show(client: Client, run: Run, *, is_json: bool) -> None:
    from jobforge_mcp.cli.views import print_run, run_document

    show(
        run_document(run, client.caller),
        is_json=is_json,
        people=lambda console: print_run(console, run),
    )
