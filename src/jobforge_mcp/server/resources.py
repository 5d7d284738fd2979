"""Runs, definitions and the installation itself as resources.

``jobforge://runs/{runId}``, its ``/result``, ``/logs``, ``/manifest``, ``/report`` and ``/artifacts/{name}``,
``jobforge://jobs/{name}``, ``jobforge://server``, ``jobforge://token``. Results and artifacts can be read by ranges of bytes, with ``offset`` and
``limit`` in the query; what is read says in its ``_meta`` where the next range begins.
The same rows as the tools show, for hosts that attach resources to a conversation and for results that are too long to
be told. Whoever may not read a run cannot tell it from one that never was.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, assert_never
from urllib.parse import parse_qsl

from jobforge_mcp.definitions.model import BoundJob
from jobforge_mcp.errors import InvalidInputError, NotFoundError
from jobforge_mcp.evidence.manifest import load_manifest
from jobforge_mcp.evidence.reading import Part as ArtifactPart
from jobforge_mcp.evidence.reading import Range, read_artifact, read_result
from jobforge_mcp.policy.account import Question, look
from jobforge_mcp.policy.permissions import may_list
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.server import arguments, wire
from jobforge_mcp.server.about import describe_server
from jobforge_mcp.server.parts import ServerParts
from jobforge_mcp.server.tools.status import report_of
from jobforge_mcp.types import Caller, CallOrigin, JobId, JsonObject, JsonValue, Run

SCHEME = "jobforge://"
SERVER_URI = "jobforge://server"
ACCOUNT_URI = "jobforge://token"
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
        "jobforge://runs/{runId}/result{?offset,limit}",
        "The whole result of a run, or a range of its bytes.",
        "application/json",
    ),
    (
        "run manifest",
        "jobforge://runs/{runId}/manifest",
        "What the newest attempt got, made, measured and decided.",
        "application/json",
    ),
    (
        "run report",
        "jobforge://runs/{runId}/report",
        "What a run did, why it failed and what to do next.",
        "text/markdown",
    ),
    (
        "run artifact",
        "jobforge://runs/{runId}/artifacts/{name}{?attempt,offset,limit}",
        "A file or text that a run's handler left; a range of its bytes with offset and limit.",
        "application/octet-stream",
    ),
    ("run logs", "jobforge://runs/{runId}/logs", "What a run's handler logged.", "text/plain"),
    ("job", "jobforge://jobs/{name}", "A job definition with its schemas.", "application/json"),
    (
        "token",
        "jobforge://token{?job,project,tool}",
        "What your token allows, what is left of each limit, and why a run of this job or project would be refused.",
        "application/json",
    ),
)
"""Name, address, description, type."""


Part: TypeAlias = Literal["", "result", "logs", "manifest", "report", "artifacts"]

_PARTS: Mapping[str, tuple[Part, frozenset[str]]] = {
    "": ("", frozenset()),
    "result": ("result", frozenset({"offset", "limit"})),
    "logs": ("logs", frozenset()),
    "manifest": ("manifest", frozenset({"attempt"})),
    "report": ("report", frozenset()),
    "artifacts": ("artifacts", frozenset({"attempt", "offset", "limit"})),
}
"""What a run has, and what may be asked of it in the query."""

REPORT_MOST = 24_000
"""Bytes of a report that is read by itself."""


WHOLE = Range()


@dataclass(frozen=True, slots=True)
class RunAddress:
    """A resource of a run."""

    job_id: JobId
    part: Part
    name: str = ""
    """Of an artifact."""
    attempt_no: int | None = None
    range: Range = WHOLE


@dataclass(frozen=True, slots=True)
class JobAddress:
    """A definition."""

    name: str


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """This installation."""


@dataclass(frozen=True, slots=True)
class TokenAddress:
    """What the caller's own token allows."""

    question: Question


Address: TypeAlias = RunAddress | JobAddress | ServerAddress | TokenAddress


@dataclass(frozen=True, slots=True)
class Content:
    """What a resource holds."""

    text: str
    mime_type: str
    blob: bytes | None = None
    """Bytes that are no text; then ``text`` is empty."""
    meta: Mapping[str, JsonValue] | None = None
    """Where a range lies in the whole."""


def parse_uri(uri: str) -> Address:
    """Find out what an address means.

    Raises:
        NotFoundError: ``RESOURCE_NOT_FOUND``: it is not one of ours.
    """
    if uri == SERVER_URI:
        return ServerAddress()
    path, _, query = uri.removeprefix(SCHEME).partition("?")
    if uri.partition("?")[0] == ACCOUNT_URI:
        return TokenAddress(Question(**_words(query)))
    family, _, rest = path.partition("/")
    name, _, part = rest.partition("/")
    if uri.startswith(SCHEME) and family == "jobs" and name and not part and not query:
        return JobAddress(name)
    if uri.startswith(SCHEME) and family == "runs":
        try:
            return _run_address(name, part, query)
        except InvalidInputError:
            raise not_found() from None
    raise not_found()


def _run_address(name: str, part: str, query: str) -> RunAddress:
    kind, _, artifact = part.partition("/")
    if kind not in _PARTS or bool(artifact) != (kind == "artifacts"):
        raise not_found()
    known, parameters = _PARTS[kind]
    given = _numbers(query)
    if not given.keys() <= parameters:
        raise not_found()
    return RunAddress(
        arguments.parse_run_id(name),
        known,
        artifact,
        given.get("attempt"),
        Range(given.get("offset", 0), given.get("limit")),
    )


def _words(query: str) -> dict[str, str]:
    """Read the query of a question, each of its members given once at most."""
    try:
        pairs = parse_qsl(query, strict_parsing=True, max_num_fields=3) if query else []
    except ValueError:
        raise not_found() from None
    given = dict(pairs)
    fits = len(given) == len(pairs) and given.keys() <= {"job", "project", "tool"}
    if not fits or any(len(value) > 100 for value in given.values()):
        raise not_found()
    return given


def _numbers(query: str) -> dict[str, int]:
    """Read a query of whole numbers, each given once."""
    given: dict[str, int] = {}
    for pair in query.split("&") if query else ():
        name, _, value = pair.partition("=")
        if name in given or not value.isascii() or not value.isdigit() or len(value) > 15:
            raise not_found()
        given[name] = int(value)
    return given


def scope_of(address: Address) -> Scope | None:
    """Return the scope that reading needs; every token may be asked about by its holder."""
    if isinstance(address, TokenAddress):
        return None
    return Scope.JOBS_READ if isinstance(address, RunAddress) else Scope.JOBS_LIST


async def read(parts: ServerParts, caller: Caller, address: Address) -> Content:
    """Read a resource.

    Raises:
        NotFoundError: ``RESOURCE_NOT_FOUND``, also for a result that is not there yet.
    """
    if isinstance(address, ServerAddress):
        about = describe_server(parts.settings, accepts_tokens=parts.gate.accepts_tokens)
        return Content(wire.compact(about), "application/json")
    if isinstance(address, TokenAddress):
        return Content(wire.compact(await _account(parts, caller, address)), "application/json")
    try:
        if isinstance(address, JobAddress):
            return await _definition(parts, caller, address.name)
        run = await parts.router.get_run(caller, address.job_id)
        return await _of_run(parts, caller, run, address)
    except NotFoundError:
        raise not_found() from None


async def _of_run(parts: ServerParts, caller: Caller, run: Run, address: RunAddress) -> Content:
    router, job_id = parts.router, run.job_id
    match address.part:
        case "logs":
            lines = [line async for line in _log_lines(parts, caller, job_id)]
            return Content("\n".join(lines), "text/plain")
        case "result":
            if run.result is None:
                raise not_found()
            store = parts.artifact_store()
            return shown(
                await read_result(router, store, caller, job_id, run.result, range=address.range)
            )
        case "artifacts":
            _, part = await read_artifact(
                router,
                parts.artifact_store(),
                caller,
                job_id,
                address.name,
                attempt_no=address.attempt_no,
                range=address.range,
            )
            return shown(part)
        case "manifest":
            manifest = await load_manifest(router, caller, run, attempt_no=address.attempt_no)
            return Content(wire.compact(manifest.document()), "application/json")
        case "report":
            text = await report_of(parts, caller, run, most_bytes=REPORT_MOST)
            return Content(text, "text/markdown")
        case "":
            view = wire.view_run(run, caller, wire.Extras(is_full=True))
            return Content(wire.compact(view.wire()), "application/json")
        case _:
            assert_never(address.part)


def shown(part: ArtifactPart) -> Content:
    """Show bytes as text where they are one. A range that ends inside a character ends before it."""
    data = part.data
    is_text = part.mime_type.startswith("text/") or part.mime_type.endswith(("json", "xml", "yaml"))
    text: str | None = None
    if is_text:
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            if part.next_offset is not None and error.start > 0 and len(data) - error.start < 4:
                data = data[: error.start]
                text = data.decode()
    next_offset = part.offset + len(data)
    meta: dict[str, JsonValue] = {
        "jobforge/offset": part.offset,
        "jobforge/size": part.size,
        "jobforge/sha256": part.sha256,
    }
    if next_offset < part.size:
        meta["jobforge/nextOffset"] = next_offset
    if text is None:
        return Content("", part.mime_type, blob=data, meta=meta)
    return Content(text, part.mime_type, meta=meta)


def not_found() -> NotFoundError:
    """Return the one error for everything that is not there."""
    return NotFoundError(
        "there is no such resource",
        code="RESOURCE_NOT_FOUND",
        hint="resources are jobforge://runs/{runId}, with /result, /logs, /manifest, /report or /artifacts/{name}, "
        "jobforge://jobs/{name}, jobforge://server and jobforge://token{?job,project,tool}",
    )


async def _account(parts: ServerParts, caller: Caller, address: TokenAddress) -> JsonObject:
    async def find(name: str) -> tuple[BoundJob, int]:
        bound = await parts.catalog.find(caller, name, is_visible=may_list(caller))
        return bound, bound.definition.cost

    assert parts.living is not None
    found = await look(
        parts.living.router, caller, address.question, find=find, origin=CallOrigin("token")
    )
    if found.refusal is None:
        return found.facts
    return {**found.facts, "refusal": wire.view_error(found.refusal).wire()}


async def _definition(parts: ServerParts, caller: Caller, name: str) -> Content:
    bound = await parts.catalog.find(caller, name)
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
