"""Runs, definitions and the installation itself as resources.

``jobforge://runs/{runId}``, its ``/result`` and ``/logs``, ``jobforge://jobs/{name}``, ``jobforge://server``.
The same rows as the tools show, for hosts that attach resources to a conversation and for results that are too long to
be told. Whoever may not read a run cannot tell it from one that never was.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from jobforge_mcp.errors import InvalidInputError, NotFoundError
from jobforge_mcp.policy.permissions import may_list
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.server import arguments, wire
from jobforge_mcp.server.about import describe_server
from jobforge_mcp.server.parts import ServerParts
from jobforge_mcp.types import Caller, JobId, JsonValue

SCHEME = "jobforge://"
SERVER_URI = "jobforge://server"
LOG_PAGE = 1_000
LOG_CHARS = 1_000_000

TEMPLATES = (
    (
        "run",
        "jobforge://runs/{runId}",
        "One run: status, progress, error, times.",
        "application/json",
    ),
    (
        "run result",
        "jobforge://runs/{runId}/result",
        "The whole result of a run.",
        "application/json",
    ),
    ("run logs", "jobforge://runs/{runId}/logs", "What a run's handler logged.", "text/plain"),
    ("job", "jobforge://jobs/{name}", "A job definition with its schemas.", "application/json"),
)
"""Name, address, description, type."""


@dataclass(frozen=True, slots=True)
class RunAddress:
    """A resource of a run."""

    job_id: JobId
    part: Literal["", "result", "logs"]


@dataclass(frozen=True, slots=True)
class JobAddress:
    """A definition."""

    name: str


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """This installation."""


Address: TypeAlias = RunAddress | JobAddress | ServerAddress


@dataclass(frozen=True, slots=True)
class Content:
    """What a resource holds."""

    text: str
    mime_type: str


def parse_uri(uri: str) -> Address:
    """Find out what an address means.

    Raises:
        NotFoundError: ``RESOURCE_NOT_FOUND``: it is not one of ours.
    """
    if uri == SERVER_URI:
        return ServerAddress()
    family, _, rest = uri.removeprefix(SCHEME).partition("/")
    name, _, part = rest.partition("/")
    if uri.startswith(SCHEME) and family == "jobs" and name and not part:
        return JobAddress(name)
    if uri.startswith(SCHEME) and family == "runs" and part in ("", "result", "logs"):
        try:
            return RunAddress(arguments.parse_run_id(name), part)
        except InvalidInputError:
            raise not_found() from None
    raise not_found()


def scope_of(address: Address) -> Scope:
    """Return the scope that reading needs."""
    return Scope.JOBS_READ if isinstance(address, RunAddress) else Scope.JOBS_LIST


async def read(parts: ServerParts, caller: Caller, address: Address) -> Content:
    """Read a resource.

    Raises:
        NotFoundError: ``RESOURCE_NOT_FOUND``, also for a result that is not there yet.
    """
    if isinstance(address, ServerAddress):
        about = describe_server(parts.settings, accepts_tokens=parts.gate.accepts_tokens)
        return Content(wire.compact(about), "application/json")
    try:
        if isinstance(address, JobAddress):
            return _definition(parts, caller, address.name)
        run = await parts.router.get_run(caller, address.job_id)
        if address.part == "logs":
            lines = [line async for line in _log_lines(parts, caller, address.job_id)]
            return Content("\n".join(lines), "text/plain")
    except NotFoundError:
        raise not_found() from None
    if address.part == "result":
        if run.result is None:
            raise not_found()
        return Content(run.result, "application/json")
    view = wire.view_run(run, caller, wire.Extras(is_full=True))
    return Content(wire.compact(view.wire()), "application/json")


def not_found() -> NotFoundError:
    """Return the one error for everything that is not there."""
    return NotFoundError(
        "there is no such resource",
        code="RESOURCE_NOT_FOUND",
        hint="resources are jobforge://runs/{runId}, with /result or /logs, jobforge://jobs/{name} and jobforge://server",
    )


def _definition(parts: ServerParts, caller: Caller, name: str) -> Content:
    bound = parts.registry.get(name)
    if not may_list(caller)(bound):
        raise not_found()
    definition = bound.definition
    detailed: JsonValue = wire.view_definition(definition, is_detailed=True)
    return Content(wire.compact(detailed), "application/json")


async def _log_lines(parts: ServerParts, caller: Caller, job_id: JobId) -> AsyncIterator[str]:
    room, after = LOG_CHARS, 0
    while lines := await parts.router.list_logs(caller, job_id, after=after, limit=LOG_PAGE):
        for line in lines:
            text = f"{wire.iso(line.logged_at)} {line.attempt_no} {line.level} {line.message}"
            room -= len(text)
            if room < 0:
                yield "… (more was logged)"
                return
            yield text
        after = lines[-1].line_no
        if len(lines) < LOG_PAGE:
            return
