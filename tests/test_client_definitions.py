"""The client's verbs about jobs as data, on a real database."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobforge_mcp.client import Client
from jobforge_mcp.db.pool import Database
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.errors import NotFoundError, PolicyDeniedError
from jobforge_mcp.policy.scopes import ALL_SCOPES, Scope
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.types import Caller, JsonObject, TenantId
from tests.postgres import ScratchDatabase
from tests.server.jobs import JOBS

HELLO: JsonObject = {"name": "acme.hello", "handler": "test.echo", "input": {"times": 2}}


@pytest.mark.requirement("registering.runs")
async def test_an_application_registers_runs_and_removes_a_job(database: ScratchDatabase) -> None:
    caller = Caller(TenantId("acme"), "app", ALL_SCOPES)
    async with Database(database.url("jobforge_api"), role="jobforge_api") as opened:
        router = Router(opened)
        client = Client(router, Registry(JOBS), caller)
        planned = await client.register_job(HELLO, is_plan=True)
        made = await client.register_job(HELLO)
        enqueued = await client.enqueue("acme.hello")
        run = await client.get(enqueued.job_id)
        listed = await client.list_jobs("hello")
        known = await client.registered_job("acme.hello")
        removed = await client.remove_job("acme.hello")
        with pytest.raises(NotFoundError) as refused:
            await client.enqueue("acme.hello")
        reader = Client(
            router, Registry(JOBS), replace(caller, scopes=frozenset({Scope.JOBS_LIST}))
        )
        with pytest.raises(PolicyDeniedError):
            await reader.register_job(HELLO)

    assert (planned.outcome, made.outcome, removed.outcome) == ("planned", "created", "removed")
    assert (run.job_type, run.job_version) == ("acme.hello", "1")
    assert [definition.name for definition in listed] == ["acme.hello"]
    assert known.definition_hash == made.definition_hash
    assert removed.runs == 1
    assert refused.value.code == "JOB_REMOVED"
