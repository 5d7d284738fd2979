"""``queue pause``, ``resume``, ``list`` and ``stats``: what may start."""

from __future__ import annotations

from typing import Annotated

import typer

from jobforge_mcp.cli.options import Json
from jobforge_mcp.cli.output import show
from jobforge_mcp.cli.session import call, open_client, read_settings
from jobforge_mcp.errors import InvalidInputError
from jobforge_mcp.types import JsonObject, Pause, QueueStats

JobType = Annotated[str | None, typer.Option("--type", help="Runs of this job type.")]
Project = Annotated[str | None, typer.Option("--project", help="Runs of this project.")]


def pause(
    job_type: JobType = None,
    project: Project = None,
    reason: Annotated[str | None, typer.Option(help="Why; shown to whoever asks.")] = None,
    json: Json = False,
) -> None:
    """Let no more runs start: of a type, of a project, or of the tenant if neither is named. What runs goes on."""
    _one_of(job_type, project)

    async def work() -> Pause:
        async with open_client(read_settings(), "queue pause") as client:
            return await client.pause(job_type=job_type, project=project, reason=reason)

    found = call(work)
    show(
        _document(found),
        is_json=json,
        people=lambda console: console.print(f"{_title(found)} is paused", markup=False),
    )


def resume(job_type: JobType = None, project: Project = None, json: Json = False) -> None:
    """Let runs start again."""
    _one_of(job_type, project)

    async def work() -> bool:
        async with open_client(read_settings(), "queue resume") as client:
            return await client.resume(job_type=job_type, project=project)

    was_paused = call(work)
    show(
        {"outcome": "resumed" if was_paused else "unchanged"},
        is_json=json,
        people=lambda console: console.print("resumed" if was_paused else "it was not paused"),
    )


def list_(json: Json = False) -> None:
    """Show what is paused, by whom and why."""
    from jobforge_mcp.cli.output import table

    async def work() -> list[Pause]:
        async with open_client(read_settings(), "queue list") as client:
            return list(await client.pauses())

    found = call(work)
    rows = [
        (_title(one), one.reason or "", one.paused_by or "", f"{one.paused_at:%Y-%m-%d %H:%M:%S}")
        for one in found
    ]
    show(
        {"pauses": [_document(one) for one in found]},
        is_json=json,
        people=lambda console: console.print(
            table(("paused", "why", "by", "since"), rows) if rows else "nothing is paused"
        ),
    )


def stats(json: Json = False) -> None:
    """Count the open runs of the tenant by type."""
    from jobforge_mcp.cli.output import table

    async def work() -> list[QueueStats]:
        async with open_client(read_settings(), "queue stats") as client:
            return list(await client.queue_stats())

    found = call(work)
    rows = [
        (one.job_type, str(one.queued), str(one.due), str(one.running), str(one.waiting))
        for one in found
    ]
    show(
        {
            "queues": [
                {
                    "name": one.job_type,
                    "queued": one.queued,
                    "due": one.due,
                    "running": one.running,
                    "waiting": one.waiting,
                }
                for one in found
            ]
        },
        is_json=json,
        people=lambda console: console.print(
            table(("job", "queued", "due", "running", "waiting"), rows) if rows else "nothing open"
        ),
    )


def _one_of(job_type: str | None, project: str | None) -> None:
    if job_type is not None and project is not None:
        raise InvalidInputError(
            "a queue is that of a type or of a project, not of both", hint="give one of the two"
        )


def _title(pause: Pause) -> str:
    return "the tenant" if pause.name is None else f"{pause.kind} {pause.name}"


def _document(pause: Pause) -> JsonObject:
    document: JsonObject = {"kind": pause.kind.value, "pausedAt": pause.paused_at.isoformat()}
    if pause.name is not None:
        document["name"] = pause.name
    if pause.reason is not None:
        document["reason"] = pause.reason
    if pause.paused_by is not None:
        document["pausedBy"] = pause.paused_by
    return document
