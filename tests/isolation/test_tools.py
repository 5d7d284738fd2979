"""Every tool and resource × three tenants × every scope × ids of every kind: nothing of another tenant shows.

The tools come from the server's own table, the resources from its templates. One that has no entry here fails.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias
from uuid import UUID, uuid4

import pytest
from mcp import MCPError
from mcp.client import Client

from jobforge_mcp.policy.scopes import ALL_SCOPES, Scope, expand_scopes
from jobforge_mcp.server.build import build_server
from jobforge_mcp.server.resources import TEMPLATES
from jobforge_mcp.server.tools.table import TOOLS
from jobforge_mcp.types import JsonObject
from tests.isolation.test_functions import prepare_hashes, rows_of_others
from tests.isolation.world import TENANTS, Belongings, canary, settle_in
from tests.postgres import ScratchDatabase
from tests.server.stage import Stage, open_stage
from tests.sql.acting import Queue, logged_in

Asked: TypeAlias = Callable[[str, str], JsonObject]
Told: TypeAlias = Coroutine[None, None, str]
Ask: TypeAlias = Callable[[str, str], Told]

PROBES: dict[str, list[Asked]] = {
    "list-jobs": [
        lambda id_, mark: {"query": mark},
        lambda id_, mark: {"tags": [mark]},
        lambda id_, mark: {"cursor": id_},
    ],
    "execute-job": [
        lambda id_, mark: {"name": "test.noop", "dryRun": True, "idempotencyKey": mark},
        lambda id_, mark: {"name": "test.noop", "dryRun": True, "orderingKey": mark},
        lambda id_, mark: {"name": "test.noop", "dryRun": True, "projectId": mark},
    ],
    "execute-bundle": [
        lambda id_, mark: {"requests": [{"id": mark, "name": "test.noop", "projectId": mark, "orderingKey": mark}],
            "idempotencyKey": mark, "dryRun": True},
        lambda id_, mark: {"requests": [{"id": "a", "name": mark, "dependsOn": [mark]}], "dryRun": True},
    ],
    "get-job-status": [
        lambda id_, mark: {"runId": id_, "include": ["input", "logs", "attempts"]},
        lambda id_, mark: {"runId": id_, "waitSeconds": 0.01},
        lambda id_, mark: {"runIds": [id_]},
    ],
    "list-runs": [
        lambda id_, mark: {"projectId": mark},
        lambda id_, mark: {"traceId": mark},
        lambda id_, mark: {"name": mark},
        lambda id_, mark: {"traceId": mark, "cursor": id_},
    ],
    "register-job": [
        lambda id_, mark: {"name": "made.up", "handler": "test.noop", "dryRun": True},
        lambda id_, mark: {"name": "made.up", "handler": mark, "dryRun": True},
        lambda id_, mark: {"name": mark, "handler": "test.noop", "version": id_, "tags": [mark], "dryRun": True},
        lambda id_, mark: {"name": "made.up", "chain": [{"name": "a", "handler": mark}], "dryRun": True},
        lambda id_, mark: {"name": "made.up", "map": {"items": [1], "do": {"handler": mark}}, "dryRun": True},
        lambda id_, mark: {"name": "made.up", "switch": {"cases": [{"when": {"$ref": "/input/x"}, "do": {"handler": mark}}]},
            "dryRun": True},
    ],
    "remove-job": [lambda id_, mark: {"name": mark}],
    "submit-event": [
        lambda id_, mark: {"type": "order.paid", "source": mark, "subject": mark, "traceId": mark, "dryRun": True},
        lambda id_, mark: {"type": "order.paid", "idempotencyKey": mark, "projectId": mark, "payload": {"x": mark},
            "redactFields": [mark], "dryRun": True},
    ],
    "list-events": [
        lambda id_, mark: {"projectId": mark},
        lambda id_, mark: {"traceId": mark},
        lambda id_, mark: {"source": mark, "cursor": id_},
        lambda id_, mark: {"type": mark},
    ],
    "register-trigger": [
        lambda id_, mark: {"name": mark, "kind": "cron", "jobName": mark, "dryRun": True},
        lambda id_, mark: {"name": "mine", "kind": "event", "jobName": "test.echo", "eventType": mark, "eventSource": mark,
            "projectId": mark, "input": {"text": mark}, "match": {"$ref": "/event/payload/x", "equals": mark},
            "inputMapping": {"text": mark}, "dedupeKey": mark, "dryRun": True},
    ],
    "list-triggers": [
        lambda id_, mark: {"name": mark, "history": True},
        lambda id_, mark: {"name": mark, "cursor": "a"},
    ],
    "remove-trigger": [lambda id_, mark: {"name": mark, "dryRun": True}],
    "cancel-job": [lambda id_, mark: {"runId": id_, "reason": "of a stranger"}],
    "retry-job": [
        lambda id_, mark: {"runId": id_},
        lambda id_, mark: {"runId": id_, "force": True, "resetAttempts": True, "ifVersion": 1},
    ],
}  # fmt: skip
"""What each tool is asked about an id and a name; several ways where there are several doors. Nothing is made here, so that
one answer does not change the next: `test_functions` enqueues with the keys of others."""

RESOURCES: dict[str, Callable[[str], str]] = {
    "jobforge://runs/{runId}": lambda id_: f"jobforge://runs/{id_}",
    "jobforge://runs/{runId}/result": lambda id_: f"jobforge://runs/{id_}/result",
    "jobforge://runs/{runId}/result{?offset,limit}": lambda id_: (
        f"jobforge://runs/{id_}/result?offset=0&limit=10"
    ),
    "jobforge://runs/{runId}/manifest": lambda id_: f"jobforge://runs/{id_}/manifest",
    "jobforge://runs/{runId}/report": lambda id_: f"jobforge://runs/{id_}/report",
    "jobforge://runs/{runId}/artifacts/{name}{?attempt,offset,limit}": lambda id_: (
        f"jobforge://runs/{id_}/artifacts/note.txt?attempt=1&offset=0&limit=10"
    ),
    "jobforge://runs/{runId}/logs": lambda id_: f"jobforge://runs/{id_}/logs",
    "jobforge://jobs/{name}": lambda id_: f"jobforge://jobs/{id_}",
    "jobforge://token{?job,project,tool}": lambda id_: (
        f"jobforge://token?job={id_}&project={id_}&tool={id_}"
    ),
}

OF_THE_CALL = {
    *("kind", "cron", "timezone", "catchUp", "overlap", "jitterMs", "cooldownMs", "maxPerHour", "enabled", "trial"),
    *("result", "title", "description", "inputSchema", "outputSchema", "timeoutMs", "retry", "hidden", "permissions"),
    *("effects", "idempotent", "cost", "concurrency", "rateLimit", "debounce"),
    *("containsPii", "retentionDays", "occurredAt", "history"),
    "input", "limit", "since", "status", "detail", "runAt", "priority", "labels", "dryRun", "background", "waitSeconds",
    "sinceVersion", "cancelOnDisconnect", "rehearse",
}  # fmt: skip
"""Arguments that name nothing which somebody could own: amounts, times, switches, and words of the product."""

MALFORMED = ("", "%", "not-a-uuid", "00000000-0000-0000-0000-000000000000", "../x", "a" * 300)
SCOPES: list[frozenset[Scope]] = [ALL_SCOPES, *(frozenset({scope}) for scope in Scope)]


@pytest.fixture
async def stage(database: ScratchDatabase, tmp_path: Path) -> AsyncGenerator[Stage]:
    """A server that answers and runs nothing, so that what was enqueued stays as it is."""
    async with open_stage(
        database, tmp_path, has_pool=False, register_job_enabled=True, bundles_enabled=True
    ) as opened:
        yield opened


@pytest.fixture
def queue(database: ScratchDatabase) -> Iterator[Queue]:
    with ExitStack() as opened:
        yield Queue(logged_in(database, opened))


async def told(client: Client, name: str, arguments: JsonObject) -> str:
    """Call a tool and write down everything that comes back."""
    try:
        answer = await client.call_tool(name, arguments)
    except MCPError as error:
        return f"{error.error.code} {error.error.message} {error.error.data}"
    return answer.model_dump_json(by_alias=True, exclude_none=True)


async def read(client: Client, uri: str) -> str:
    """Read a resource and write down everything that comes back."""
    try:
        answer = await client.read_resource(uri)
    except MCPError as error:
        return f"{error.error.code} {error.error.message} {error.error.data}"
    return answer.model_dump_json(by_alias=True, exclude_none=True)


def without(text: str, job_id: str, mark: str) -> str:
    """Take out of an answer what the question held."""
    for asked in (job_id, mark):
        text = text.replace(asked, "<asked>") if asked else text
    return text


def test_every_tool_and_resource_has_an_entry() -> None:
    assert {tool.name for tool in TOOLS} - PROBES.keys() == set(), (
        "say in PROBES what this tool is asked about another tenant's things"
    )
    assert {template[1] for template in TEMPLATES} - RESOURCES.keys() == set(), (
        "say in RESOURCES how this resource is addressed"
    )
    assert PROBES.keys() - {tool.name for tool in TOOLS} == set(), "there is no such tool any more"


def test_every_argument_that_could_name_something_is_asked_about() -> None:
    unasked = {
        (tool.name, argument)
        for tool in TOOLS
        for argument in tool.arguments.model_json_schema(by_alias=True).get("properties", {})
        if argument not in OF_THE_CALL
        and not any(argument in probe("id", "mark") for probe in PROBES[tool.name])
    }

    assert unasked == set(), "ask about it in PROBES, or say in OF_THE_CALL that it names nothing"


@pytest.mark.requirement("isolation.tools")
@pytest.mark.parametrize("tenant", TENANTS)
async def test_what_is_foreign_answers_as_what_is_unknown_and_stays_as_it_is(
    stage: Stage, queue: Queue, tenant: str
) -> None:
    prepare_hashes(queue)
    world = settle_in(queue)
    others = [world[name] for name in TENANTS if name != tenant]
    marks = [canary(owner.tenant) for owner in others] + [str(i) for o in others for i in o.runs]
    before = rows_of_others(queue, tenant)
    failures: list[str] = []

    for scopes in SCOPES:
        shown = "all" if scopes == ALL_SCOPES else ",".join(scopes)
        credential = stage.credential(tenant, scopes)
        async with Client(build_server(stage.parts, credential)) as client:
            for place, ask in calls(client):
                unknown = await asked(ask, str(uuid4()), "canary-nobody")
                every = scopes == ALL_SCOPES
                for other, job_id in (
                    (o, i) for o in others for i in (o.runs if every else (o.running,))
                ):
                    answer = await asked(ask, str(job_id), canary(other.tenant))
                    if answer != unknown:
                        failures.append(
                            f"{shown} {place} {job_id}: {answer!r}, unknown {unknown!r}"
                        )
                for text in MALFORMED:
                    answer = await asked(ask, text, text)
                    if any(mark in answer for mark in marks):
                        failures.append(f"{shown} {place} {text!r}: {answer!r}")
                answer = await ask(str(world[tenant].succeeded), canary(tenant))
                if any(mark in answer for mark in marks):
                    failures.append(f"{shown} {place} own: {answer!r}")

    assert failures == []
    assert rows_of_others(queue, tenant) == before


def calls(client: Client) -> Iterator[tuple[str, Ask]]:
    """Every way to ask about an id and a name."""
    for name, probes in PROBES.items():
        for number, probe in enumerate(probes):

            def call(id_: str, mark: str, name: str = name, probe: Asked = probe) -> Told:
                return told(client, name, probe(id_, mark))

            yield f"{name} {number}", call
    for address, uri_of in RESOURCES.items():

        def fetch(id_: str, mark: str, uri_of: Callable[[str], str] = uri_of) -> Told:
            return read(client, uri_of(id_))

        yield address, fetch


async def asked(ask: Ask, id_: str, mark: str) -> str:
    return without(await ask(id_, mark), id_, mark)


@pytest.mark.requirement("isolation.tools")
@pytest.mark.parametrize("tenant", TENANTS)
async def test_each_scope_opens_its_own_tools_and_no_other(
    stage: Stage, queue: Queue, tenant: str
) -> None:
    """Without this the matrix above could be one of refusals alone."""
    own = settle_in(queue)[tenant]
    opened: dict[tuple[str, str], bool] = {}

    for scope in Scope:
        credential = stage.credential(tenant, {scope})
        async with Client(build_server(stage.parts, credential)) as client:
            for tool in TOOLS:
                answer = await told(
                    client, tool.name, PROBES[tool.name][0](*target_of(tool.name, own))
                )
                opened[tool.name, scope] = "POLICY_DENIED" not in answer

    allowed = {
        (tool.name, scope): tool.scope in expand_scopes([scope])
        for tool in TOOLS
        for scope in Scope
    }
    assert opened == allowed


def target_of(name: str, own: Belongings) -> tuple[str, str]:
    chosen: UUID = {"cancel-job": own.queued, "retry-job": own.failed}.get(name, own.running)
    return str(chosen), canary(own.tenant)
