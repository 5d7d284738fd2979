"""One process that serves: its own pool, what events cost beside a plain enqueue, and ten thousand registered definitions."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx2
import psycopg
from mcp.client import Client as Agent
from mcp.client.streamable_http import streamable_http_client

from benchmarks.figures import Figure, Sizes, median, percentile
from benchmarks.server_rows import NOOP_JOB, HttpServer, http_server, signing_key
from benchmarks.stage import Stage
from jobforge_mcp.app import App, open_app
from jobforge_mcp.client import Client, Options
from jobforge_mcp.db.migrate import migrate
from jobforge_mcp.policy.gate import Credential
from jobforge_mcp.policy.keys import KeyFolder
from jobforge_mcp.policy.scopes import ALL_SCOPES
from jobforge_mcp.policy.tokens import Grant, issue_token
from jobforge_mcp.server.build import build_server
from jobforge_mcp.settings import load_settings
from jobforge_mcp.types import JsonObject, TriggerKind, TriggerSpec

DATABASE = "bench_plane"
TENANT = "bench"
JOB = "bench.noop"

EVENT_RATIO = 2
TRIGGERS = 1_000
PATTERNS = ("order.paid", "order.*", "order.**")
"""Of the triggers that want the event."""
MAPPING: JsonObject = {"i": {"$ref": "/event/payload/order"}}

OWN_POOL_MS = 3
PAUSE_SECONDS = 0.03
WARM = 20

PAGE_MS = 10
PAGE = 20
DOMAINS = ("billing.invoice", "support.ticket", "stock.item", "mail.campaign", "crm.contact")
VERBS = ("create", "archive", "reconcile", "summarize", "export")
DESCRIPTION = "{} the {} that was asked for, with everything that belongs to it. Safe to repeat."
LISTS: dict[str, JsonObject] = {
    "first page": {},
    "page far inside": {"cursor": "stock.item.create-5000"},
    "search for two words": {"query": "reconcile ticket"},
    "search that finds nothing": {"query": "nothing of the kind"},
    "tag": {"tags": ["crm.contact"]},
    "label that one in 100 has": {"labels": {"team": "t7"}},
}


def events(stage: Stage, sizes: Sizes) -> list[Figure]:
    """An event that three triggers of a thousand want, in turn with a plain enqueue, by the Python client and by MCP."""
    migrate(stage.fresh_database(DATABASE))
    figures: list[Figure] = []
    for door, (plain, event) in anyio.run(_events, stage, sizes).items():
        figures += [
            Figure("events", f"enqueue by {door}, p50", median(plain), "ms"),
            Figure("events", f"event with 3 of 1,000 triggers by {door}, p50", median(event), "ms"),
            Figure(
                "events",
                f"the same beside a plain enqueue by {door}",
                median(event) / median(plain),
                "x",
                most=EVENT_RATIO,
            ),
        ]
    return figures


def embedded(stage: Stage, sizes: Sizes) -> list[Figure]:
    """From an agent's call to the handler's start in the pool of the same process: the job is inserted already leased."""
    migrate(stage.fresh_database(DATABASE))
    counter = stage.cluster.state_dir / "embedded"
    os.environ["BENCH_COUNTER"] = str(counter)
    try:
        anyio.run(_execute_in_own_pool, stage, sizes.probes + WARM)
    finally:
        del os.environ["BENCH_COUNTER"]
    lines = Path(f"{counter}.lat").read_text(encoding="ascii").splitlines()
    found = [1_000 * float(line) for line in lines[WARM:]]
    name = "pickup in the pool of the process that is called"
    return [
        Figure("embedded", f"{name}, p50", median(found), "ms"),
        Figure("embedded", f"{name}, p99", percentile(found, 0.99), "ms", most=OWN_POOL_MS),
    ]


def definitions(stage: Stage, sizes: Sizes) -> list[Figure]:
    """Pages of ``list-jobs`` among 10,000 registered definitions, in memory and over HTTP."""
    migrate(stage.fresh_database(DATABASE))
    _register_many(stage, sizes.definitions)
    in_memory, size = anyio.run(_list_in_memory, stage, sizes)
    with http_server(stage, DATABASE) as server:
        over_http = anyio.run(_list_over_http, server, sizes)
    figures = [
        Figure(
            "definitions",
            f"list-jobs {door}, {name}, p95",
            percentile(found, 0.95),
            "ms",
            most=PAGE_MS,
        )
        for door, lists in (("in memory", in_memory), ("over HTTP", over_http))
        for name, found in lists.items()
    ]
    return [*figures, Figure("definitions", "characters of a page of 20 jobs", size, "")]


@asynccontextmanager
async def _app(stage: Stage, *, with_workers: bool = False) -> AsyncGenerator[tuple[App, str]]:
    """A serving process, and a token that it accepts."""
    state_dir = stage.cluster.state_dir / "plane"
    state_dir.mkdir(exist_ok=True)
    keys = KeyFolder(state_dir / "keys")
    settings = load_settings(
        database_url=stage.url(DATABASE, "jobforge_api"),
        worker_database_url=stage.url(DATABASE, "jobforge_worker"),
        token_keys=str(state_dir / "keys"),
        state_dir=state_dir,
        context_key=signing_key(stage, DATABASE),
        jobs=[str(NOOP_JOB)],
        events_enabled=True,
        triggers_enabled=True,
    )
    token = issue_token(
        keys.ensure(),
        Grant(TENANT, ALL_SCOPES, subject="bench"),
        issuer=settings.token_issuer,
        audience=settings.token_audience,
    )
    async with open_app(settings, with_workers=with_workers) as app:
        yield app, token


async def _execute_in_own_pool(stage: Stage, calls: int) -> None:
    async with (
        _app(stage, with_workers=True) as (app, token),
        Agent(build_server(app.parts, Credential(token))) as agent,
    ):
        for number in range(calls):
            given = {"name": JOB, "input": {"i": number, "t": time.time()}}
            assert not (await agent.call_tool("execute-job", given)).is_error
            await anyio.sleep(PAUSE_SECONDS)


async def _events(stage: Stage, sizes: Sizes) -> dict[str, tuple[list[float], list[float]]]:
    async with _app(stage) as (app, token):
        client = Client(app.router, app.registry, app.gate.caller_of(token), desk=app.parts.desk)
        for number in range(TRIGGERS if sizes.calls > 50 else len(PATTERNS)):
            await client.events.register_trigger(_trigger(number))
        async with Agent(build_server(app.parts, Credential(token))) as agent:

            async def enqueue(number: int) -> None:
                await client.enqueue(JOB, {"i": number}, Options())

            async def submit(number: int) -> None:
                submitted = await client.submit_event("order.paid", {"order": number})
                assert len(submitted.decisions) == len(PATTERNS), submitted

            async def execute(number: int) -> None:
                given = {"name": JOB, "input": {"i": number}, "background": True}
                assert not (await agent.call_tool("execute-job", given)).is_error

            async def tell(number: int) -> None:
                given = {"type": "order.paid", "payload": {"order": number}}
                assert not (await agent.call_tool("submit-event", given)).is_error

            return {
                "the client": await _in_turn(enqueue, submit, sizes.calls),
                "MCP": await _in_turn(execute, tell, sizes.calls),
            }


def _trigger(number: int) -> TriggerSpec:
    wants = number < len(PATTERNS)
    return TriggerSpec(
        f"t{number}",
        TriggerKind.EVENT,
        JOB,
        event_type=PATTERNS[number] if wants else f"other-{number}.happened",
        input_mapping=MAPPING,
    )


async def _in_turn(
    one: Callable[[int], Awaitable[None]], other: Callable[[int], Awaitable[None]], calls: int
) -> tuple[list[float], list[float]]:
    """Milliseconds of each call of both; the first few of them only warm everything."""
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(-20, calls):
        for place, call in enumerate((one, other)):
            began = time.perf_counter()
            await call(number)
            if number >= 0:
                found[place].append(1_000 * (time.perf_counter() - began))
    return found


def _register_many(stage: Stage, count: int) -> None:
    """Register definitions with the database's own function, a thousand in a transaction."""
    texts = [json.dumps(_definition(number)) for number in range(count)]
    for start in range(0, count, 1_000):
        # a connection of its own: plans that were made while the tables were empty would be kept
        with psycopg.connect(stage.url(DATABASE, "jobforge_api")) as connection:
            connection.execute("set statement_timeout = 0")
            connection.execute("select jobforge.enter_scope(%s, 'bench')", [TENANT])
            connection.execute(
                """select count(r.outcome) from unnest(%s::text[]) d(definition)
                   cross join lateral jobforge.register_definition(%s, d.definition, %s) r""",
                [texts[start : start + 1_000], TENANT, JOB],
            )
        with psycopg.connect(stage.url(DATABASE), autocommit=True) as connection:
            connection.execute("vacuum analyze jobforge.registered_jobs, jobforge.job_definitions")


def _definition(number: int) -> JsonObject:
    domain = DOMAINS[number % len(DOMAINS)]
    verb = VERBS[number // len(DOMAINS) % len(VERBS)]
    return {
        "name": f"{domain}.{verb}-{number:04}",
        "title": f"{verb.capitalize()} one {domain.replace('.', ' ')}",
        "description": DESCRIPTION.format(verb.capitalize(), domain.replace(".", " ")),
        "handler": JOB,
        "input": {"i": number},
        "tags": ["business", domain],
        "labels": {"team": f"t{number % 100}"},
    }


async def _list_in_memory(stage: Stage, sizes: Sizes) -> tuple[dict[str, list[float]], int]:
    async with (
        _app(stage) as (app, token),
        Agent(build_server(app.parts, Credential(token))) as agent,
    ):
        page = await agent.call_tool("list-jobs", {"limit": PAGE})
        return await _list(agent, sizes.calls), len(json.dumps(page.structured_content))


async def _list_over_http(server: HttpServer, sizes: Sizes) -> dict[str, list[float]]:
    headers = {"Authorization": f"Bearer {server.token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        Agent(streamable_http_client(server.url, http_client=http)) as agent,
    ):
        return await _list(agent, sizes.calls)


async def _list(agent: Agent, calls: int) -> dict[str, list[float]]:
    """Milliseconds of each page, the kinds in turn; the first round only warms everything."""
    found: dict[str, list[float]] = {name: [] for name in LISTS}
    rounds = math.ceil(calls / len(LISTS))
    for number in range(-1, max(rounds, 1)):
        for name, given in LISTS.items():
            began = time.perf_counter()
            answer = await agent.call_tool("list-jobs", {**given, "limit": PAGE})
            if number >= 0:
                found[name].append(1_000 * (time.perf_counter() - began))
            assert not answer.is_error, answer
    return found
