"""Fourteen holes that were found in the source of another job router, each with the proof that it is not in this one."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx2
import jsonschema_rs
import psycopg
import pytest
from mcp.client import Client
from mcp.types import CallToolResult
from psycopg import sql

from jobforge_mcp.db.pool import Database
from jobforge_mcp.definitions.loader import load_jobs
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.errors import JobForgeError, LimitError
from jobforge_mcp.policy.scopes import CARRIES, Scope, expand_scopes
from jobforge_mcp.resources import job_definitions_folder
from jobforge_mcp.router.audit import AuditRouter
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.server.build import build_server
from jobforge_mcp.server.http import http_app
from jobforge_mcp.types import Caller, CallOrigin, JsonValue, NewJob, Run, RunStatus
from tests.egress.test_client import answer, started
from tests.postgres import ScratchDatabase
from tests.server.conftest import client, stage
from tests.server.stage import Stage
from tests.sql.acting import API, ECHO, WORKER, Queue, call, refused
from tests.sql.conftest import queue
from tests.worker.conftest import Desk, PoolMaker, desk, make_pool

__all__ = ["client", "desk", "make_pool", "queue", "stage"]


@pytest.fixture(scope="session")
def registry() -> Registry:
    """The shipped jobs, and those of the worker's tests."""
    handlers = job_definitions_folder().parent / "tests" / "worker" / "handlers.py"
    return Registry(load_jobs([job_definitions_folder(), handlers]))


def content(told: CallToolResult) -> dict[str, Any]:
    assert told.structured_content is not None
    return told.structured_content


# 1. Orphans: nothing returned the job of a dead worker.
def test_hole_01_the_job_of_a_dead_worker_runs_again(queue: Queue) -> None:
    job_id = queue.enqueue().job_id
    queue.claim_one("dies")

    queue.lose_worker()
    queue.advance(60)
    (claimed,) = queue.claim(1, "lives")

    assert (claimed.job_id, claimed.attempt_no, claimed.epoch) == (job_id, 2, 2)


# 2. Row level security let everything pass while the tenant setting was null.
def test_hole_02_without_a_tenant_no_table_shows_a_row(queue: Queue) -> None:
    queue.enqueue(idempotency_key="k", ordering_key="o")
    queue.enqueue(ordering_key="o")
    tables = queue.look(
        """select c.relname as name from pg_class c where c.relnamespace = 'jobforge'::regnamespace
        and c.relkind in ('r', 'v') and has_table_privilege('jobforge_rpc', c.oid, 'select')"""
    )

    seen = dict[str, int]()
    for table in tables:
        with queue.acting("jobforge_rpc") as connection:
            connection.execute("select set_config('jobforge.tenant_id', '', true)")
            query = sql.SQL("select count(*) from jobforge.{}").format(sql.Identifier(table.name))
            row = connection.execute(query).fetchone()
            seen[table.name] = row[0] if row else -1

    assert "jobs" in seen
    assert {name: rows for name, rows in seen.items() if rows} == {}


# 3. Everybody could enqueue and cancel, for a tenant of their choice.
async def test_hole_03_nobody_acts_without_a_token_nor_for_another_tenant(
    stage: Stage, queue: Queue
) -> None:
    everybodys = queue.look(
        """select p.proname as name from pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
        where p.pronamespace = 'jobforge'::regnamespace and a.grantee = 0"""
    )
    async with (
        http_app(stage.parts) as app,
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1") as web,
    ):
        anonymous = await web.post("/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"})

    assert everybodys == []
    assert anonymous.status_code == 401
    with refused("JF403"), queue.acting(API) as connection:
        connection.execute("select jobforge.enter_scope('acme')")
        call(connection, "enqueue_job", "globex", ECHO)


# 4. A claim knew no tenant, and needed a role that row level security does not bind.
def test_hole_04_a_worker_claims_for_the_tenants_it_names_and_bypasses_nothing(
    queue: Queue,
) -> None:
    queue.enqueue("acme")
    queue.enqueue("globex")

    (role,) = queue.look("select rolsuper, rolbypassrls from pg_roles where rolname = %s", WORKER)
    claimed = queue.claim(10, tenant_ids=["globex"])

    assert (role.rolsuper, role.rolbypassrls) == (False, False)
    assert [row.tenant_id for row in claimed] == ["globex"]


# 5. A canceled run could become succeeded.
def test_hole_05_a_canceled_run_stays_canceled(queue: Queue) -> None:
    job_id = queue.enqueue().job_id
    claimed = queue.claim_one()
    queue.release(claimed)
    queue.cancel(job_id)

    (settled,) = queue.complete(claimed)

    assert settled.outcome == "stale"
    assert queue.status(job_id) == "canceled"


# 6. A dead run that was scheduled again died at its next failure.
def test_hole_06_a_dead_run_can_be_given_all_its_attempts_anew(queue: Queue) -> None:
    job_id = queue.enqueue(max_attempts=2, backoff_ms=0).job_id
    queue.fail(queue.claim_one())
    queue.fail(queue.claim_one())
    dead = queue.status(job_id)

    queue.retry(job_id, reset_attempts=True)
    queue.fail(queue.claim_one())

    assert (dead, queue.status(job_id)) == ("dead", "queued")


# 7. Attempts were written at the end, all with the first one's start.
def test_hole_07_each_attempt_has_its_own_start(queue: Queue) -> None:
    job_id = queue.enqueue(max_attempts=3, backoff_ms=0).job_id
    starts = list[object]()
    for _ in range(2):
        claimed = queue.claim_one()
        starts.append(claimed.claimed_at)
        queue.advance(5)
        queue.fail(claimed)

    attempts = sorted(queue.attempts(job_id), key=lambda row: row.attempt_no)

    assert [row.started_at for row in attempts] == starts
    assert attempts[1].started_at - attempts[0].started_at >= timedelta(seconds=5)


# 8. The same key with another input was the old job, in silence.
async def test_hole_08_a_key_with_another_input_is_a_conflict(client: Client) -> None:
    first = {"name": "test.echo", "idempotencyKey": "k", "input": {"text": "a"}, "waitSeconds": 5}
    await client.call_tool("execute-job", first)

    second = await client.call_tool("execute-job", {**first, "input": {"text": "b"}})

    assert second.is_error
    assert content(second)["error"]["code"] == "IDEMPOTENCY_CONFLICT"


# 9. A request took no key, and SQL checked neither scopes nor tokens.
async def test_hole_09_a_repeated_request_is_one_run_and_the_database_checks_what_a_token_carries(
    client: Client, stage: Stage, queue: Queue
) -> None:
    request = {"name": "test.noop", "idempotencyKey": "k", "waitSeconds": 5}
    runs = {content(await client.call_tool("execute-job", request))["runId"] for _ in range(2)}
    async with Client(build_server(stage.parts, stage.credential(scopes=[Scope.JOBS_READ]))) as one:
        without_scope = await one.call_tool("execute-job", request)

    assert len(runs) == 1
    assert content(without_scope)["error"]["code"] == "POLICY_DENIED"
    with refused("JF403"), queue.acting(API) as connection:
        claims = json.dumps({"projects": ["mine"]})
        connection.execute(
            "select jobforge.enter_scope('acme', 'a', 'jti', 't', null, %s)", [claims]
        )
        call(connection, "enqueue_job", "acme", ECHO, project_id="theirs")


# 10. There was a table of triggers that nothing filled and nothing fired.
def test_hole_10_what_is_to_start_later_starts_and_no_table_promises_what_nothing_does(
    queue: Queue,
) -> None:
    job_id = queue.enqueue(run_at=queue.now() + timedelta(hours=1)).job_id
    early = queue.claim()
    queue.advance(3_601)
    promised = queue.look(
        """select c.relname as name from pg_class c where c.relnamespace = 'jobforge'::regnamespace
        and c.relkind = 'r' and c.relname ~ 'trigger|schedule|cron'
        and c.relname <> 'trigger_fires' -- what was decided is a record and promises nothing
        and (
          not exists (select from pg_proc p where p.pronamespace = c.relnamespace
            and p.prosrc ~ ('insert into jobforge\\.' || c.relname))
          or not exists (select from pg_proc p where p.pronamespace = c.relnamespace
            and p.prosrc ~ ('(from|join|update) jobforge\\.' || c.relname) and p.prosrc ~ 'enqueue_jobs?\\('))"""
    )

    assert early == []
    assert [row.job_id for row in queue.claim()] == [job_id]
    assert promised == []


# 11. Limits were counted in the memory of one process.
async def test_hole_11_two_processes_count_in_one_place_and_a_refusal_uses_nothing_up(
    database: ScratchDatabase, acme: Caller, admin: psycopg.Connection[Any]
) -> None:
    admin.execute("select jobforge.set_limit('acme', 'tenant', null, '{\"budget_jobs\": 2}')")
    url, outcomes = database.url(API), list[str]()

    for _ in range(4):  # each with connections and memory of its own
        async with Database(url, role=API, min_size=1, max_size=1) as opened:
            try:
                await Router(opened).enqueue_job(acme, NewJob(ECHO, "{}"), origin=CallOrigin("t"))
                outcomes.append("made")
            except LimitError as error:
                outcomes.append(error.code)

    counted = admin.execute(
        "select (select count(*) from jobforge.jobs), (select sum(jobs)::int from jobforge.limit_usage)"
    ).fetchone()
    assert outcomes == ["made", "made", "BUDGET_USED_UP", "BUDGET_USED_UP"]
    assert counted == (2, 2)


async def test_hole_11_a_token_for_one_write_is_used_up_by_the_act_alone_in_whatever_process(
    database: ScratchDatabase, acme: Caller, admin: psycopg.Connection[Any]
) -> None:
    once = replace(acme, token_id="once", is_single_use=True, single_use_ids=("once",))
    good, bad = NewJob(ECHO, "{}"), NewJob(ECHO, "not json")
    outcomes: list[str] = []

    for job in (bad, good, good):  # each by a process of its own
        async with Database(database.url(API), role=API, min_size=1, max_size=1) as opened:
            try:
                await Router(opened).enqueue_job(once, job, origin=CallOrigin("t"))
                outcomes.append("made")
            except JobForgeError as error:
                outcomes.append(error.code)
                await AuditRouter(opened).record_denial(once, "enqueue", error.code)

    audited = admin.execute(
        "select action, outcome, detail->>'reason' from jobforge.audit_log order by id"
    ).fetchall()
    assert outcomes == ["INVALID_INPUT", "made", "TOKEN_USED"]
    assert audited == [
        ("enqueue", "refused", "INVALID_INPUT"),
        ("enqueue", "created", None),
        ("enqueue", "refused", "TOKEN_USED"),
    ]


async def test_hole_11_what_was_enqueued_by_one_process_is_a_replay_in_another(
    database: ScratchDatabase, acme: Caller
) -> None:
    outcomes: list[str] = []
    for _ in range(3):
        async with Database(database.url(API), role=API, min_size=1, max_size=1) as opened:
            made = await Router(opened).enqueue_job(acme, NewJob(ECHO, "{}", idempotency_key="k"))
            outcomes.append(made.outcome.value)

    assert outcomes == ["created", "replayed", "replayed"]


# 12. A tenant in the arguments was believed, tools answered without acting, schemas were none.
async def test_hole_12_tools_take_no_tenant_act_when_they_say_so_and_have_json_schemas(
    client: Client,
) -> None:
    tools = (await client.list_tools()).tools
    for tool in tools:
        jsonschema_rs.meta.validate(tool.input_schema)
    started_run = content(
        await client.call_tool("execute-job", {"name": "test.forever", "waitSeconds": 0})
    )["runId"]
    await client.call_tool("cancel-job", {"runId": started_run})
    ended = await client.call_tool("get-job-status", {"runId": started_run, "waitSeconds": 40})
    for_another = await client.call_tool("list-runs", {"tenantId": "globex"})

    members = {name for tool in tools for name in tool.input_schema["properties"]}
    assert not any("tenant" in name.lower() for name in members)
    assert content(for_another)["error"]["code"] == "INVALID_ARGUMENTS"
    assert content(ended)["status"] == "canceled"


# 13. Handlers were stubs, a token was checked by its length, scopes were compared by the order of their letters.
async def test_hole_13_handlers_run_tokens_are_verified_and_no_scope_implies_another_by_order(
    stage: Stage, client: Client
) -> None:
    done = await client.call_tool(
        "execute-job", {"name": "test.echo", "input": {"text": "x", "times": 3}, "waitSeconds": 40}
    )
    async with (
        http_app(stage.parts) as app,
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1") as web,
    ):
        headers = {"Authorization": f"Bearer {'x' * len(stage.token())}"}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        made_up = await web.post("/mcp", json=body, headers=headers)

    assert content(done)["result"] == {"said": "xxx"}
    assert made_up.status_code == 401
    for scope in Scope:
        assert expand_scopes([scope]) - {scope} == carried(scope)


def carried(scope: Scope) -> set[Scope]:
    direct = set(CARRIES.get(scope, ()))
    return direct | {further for one in direct for further in carried(one)}


def test_hole_13_every_shipped_job_has_a_handler_that_was_loaded(registry: Registry) -> None:
    shipped = Registry(load_jobs([job_definitions_folder()]))

    assert set(shipped.names()) <= set(registry.names())
    assert all(callable(shipped.get(name).handler) for name in shipped.names())


# 14. A timeout did not stop the handler, a failed delivery was a success, a redirect was followed anywhere, and each
# attempt had another trace.
async def test_hole_14_a_timeout_ends_the_handler(
    make_pool: PoolMaker, desk: Desk, tmp_path: Path
) -> None:
    written = tmp_path / "pid"
    async with make_pool():
        run = await desk.until_final(await desk.enqueue("stubborn.briefly", name=str(written)))
        pid = int(written.read_text())

    assert run.status in (RunStatus.DEAD, RunStatus.FAILED)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_hole_14_a_delivery_that_failed_is_no_success_and_a_redirect_is_checked(
    make_pool: PoolMaker, desk: Desk, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = "connector.http.request"
    policy = vars(sys.modules[registry.get(job).handler.__module__])["policy"]
    ended = list[Run]()
    requests = list[str]()

    async def deliver(url: str, **more: JsonValue) -> None:
        ended.append(await desk.until_final(await desk.enqueue(job, url=url, **more)))

    async with anyio.create_task_group() as tasks, make_pool():
        receiver = await started(tasks)
        monkeypatch.setenv("JOBFORGE_HTTP_ALLOW_PORTS", str(receiver.port))
        monkeypatch.setenv("JOBFORGE_HTTP_ALLOW_PRIVATE", "true")
        policy.cache_clear()
        receiver.answers["/broken"] = answer(b"400 Bad", b"")
        receiver.answers["/away"] = answer(b"302 Found", b"", b"Location: http://127.0.0.1:1/")
        await deliver(receiver.url("/broken"))
        await deliver(receiver.url("/away"), maxRedirects=3)
        monkeypatch.delenv("JOBFORGE_HTTP_ALLOW_PRIVATE")
        policy.cache_clear()
        await deliver(receiver.url("/", "localhost"))
        policy.cache_clear()
        requests += [request[0] for request in receiver.asked]
        tasks.cancel_scope.cancel()

    assert [run.status for run in ended] == [RunStatus.FAILED] * 3
    assert requests == ["GET /broken", "GET /away"]


def test_hole_14_every_attempt_has_the_trace_of_its_run(queue: Queue) -> None:
    queue.enqueue(trace_id="trace-1", backoff_ms=0)

    traces = list[str]()
    for _ in range(2):
        claimed = queue.claim_one()
        traces.append(claimed.trace_id)
        queue.fail(claimed)

    assert traces == ["trace-1", "trace-1"]


# --- the list itself


def test_every_hole_has_a_test() -> None:
    proven: Iterable[str] = (name[10:12] for name in globals() if name.startswith("test_hole_"))

    assert set(proven) == {f"{number:02}" for number in range(1, 15)}
