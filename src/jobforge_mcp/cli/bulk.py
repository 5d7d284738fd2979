"""``cancel`` and ``retry`` without a run's id: what a filter finds, with the count first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from jobforge_mcp.cli.output import show
from jobforge_mcp.cli.runs import parse_time
from jobforge_mcp.cli.session import call, open_client, read_settings
from jobforge_mcp.errors import InvalidInputError
from jobforge_mcp.types import Batch, Bulked, BulkFilter, JsonObject, RunStatus

if TYPE_CHECKING:
    from jobforge_mcp.client import Client

JobType = Annotated[str | None, typer.Option("--type", help="Instead of an id: runs of this job.")]
Status = Annotated[
    list[RunStatus] | None, typer.Option("--status", help="Runs of this status; repeatable.")
]
Project = Annotated[str | None, typer.Option("--project", help="Runs of this project.")]
Trace = Annotated[str | None, typer.Option("--trace", help="Runs of this trace.")]
Label = Annotated[
    list[str] | None, typer.Option("--label", help="Runs with NAME=VALUE; repeatable.")
]
Since = Annotated[str | None, typer.Option("--since", help="Runs created since; ISO 8601.")]
Before = Annotated[str | None, typer.Option("--before", help="Runs created before; ISO 8601.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Count the runs, and touch none.")]
Expect = Annotated[
    int | None, typer.Option("--expect", min=0, help="Touch nothing if more runs match than this.")
]
Most = Annotated[int | None, typer.Option("--most", min=1, help="Touch the oldest so many.")]


@dataclass(frozen=True, slots=True)
class Given:
    """What was said about which runs are meant."""

    job_type: str | None
    statuses: Sequence[RunStatus] | None
    project: str | None
    trace: str | None
    labels: Sequence[str] | None
    since: str | None
    before: str | None
    error_code: str | None = None
    is_dry_run: bool = False
    expected: int | None = None
    most: int | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was said: then an id is needed."""
        said = (self.job_type, self.statuses, self.project, self.trace, self.labels, self.since)
        return not any((*said, self.before, self.error_code))

    def filter(self) -> BulkFilter:
        """Return it as the client takes it."""
        return BulkFilter(
            job_type=self.job_type,
            statuses=tuple(self.statuses or ()),
            project_ids=() if self.project is None else (self.project,),
            trace_id=self.trace,
            labels=dict(map(_label, self.labels)) if self.labels else None,
            error_code=self.error_code,
            since=None if self.since is None else parse_time(self.since),
            before=None if self.before is None else parse_time(self.before),
        )


def act(
    verb: str,
    given: Given,
    count: Callable[[Client, BulkFilter], Awaitable[Batch]],
    touch: Callable[[Client, BulkFilter], Awaitable[Bulked]],
    *,
    is_json: bool,
) -> None:
    """Count, or touch, and show what came of it."""
    if not given.is_dry_run and given.expected is None and given.most is None:
        raise InvalidInputError(
            f"{verb} without a run's id needs to be told how many runs it may touch",
            hint="look with --dry-run, then say --expect with the count, or --most",
        )
    wanted = given.filter()

    async def work() -> Batch | Bulked:
        async with open_client(read_settings(), verb) as client:
            return await (count(client, wanted) if given.is_dry_run else touch(client, wanted))

    found = call(work)
    show(
        _document(found),
        is_json=is_json,
        people=lambda console: console.print(_words(verb, found), markup=False),
    )


def is_filter(run_id: str | None, given: Given) -> bool:
    """Whether a filter is meant and not an id; exactly one of the two is."""
    is_counted = given.is_dry_run or given.expected is not None or given.most is not None
    if (run_id is None) == given.is_empty or (run_id is not None and is_counted):
        raise InvalidInputError(
            "say which runs are meant: one by its id, or several by a filter"
            if run_id is None
            else "give a run's id or a filter with its count, not both",
            hint="RUN_ID, or one of --type, --status, --project, --trace, --label, --since, --before",
        )
    return run_id is None


def _document(found: Batch | Bulked) -> JsonObject:
    ids = [str(job_id) for job_id in found.job_ids]
    if isinstance(found, Batch):
        return {"matched": found.matched, "first": [*ids]}
    return {
        "count": len(ids),
        "runIds": [*ids],
        "skipped": [str(job_id) for job_id in found.skipped_ids],
    }


def _words(verb: str, found: Batch | Bulked) -> str:
    if isinstance(found, Batch):
        lines = [
            f"{_runs(found.matched or 0)} match{'es' if found.matched == 1 else ''}",
            *map(str, found.job_ids),
        ]
        if (found.matched or 0) > len(found.job_ids):
            lines.append("…")
        return "\n".join(lines)
    skipped = f", {len(found.skipped_ids)} had moved on" if found.skipped_ids else ""
    done = {"cancel": "canceled or asked to stop", "retry": "queued again"}[verb]
    return f"{_runs(len(found.job_ids))} {done}{skipped}"


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count:,} runs"


def _label(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise InvalidInputError(f"a label is NAME=VALUE, not {text[:100]!r}")
    return name, value
