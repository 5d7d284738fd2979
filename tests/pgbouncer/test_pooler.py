"""Everything the router does, through a pooler that gives each transaction another connection, and nothing left on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import anyio
import psycopg
import pytest

from jobforge_mcp.db.context import ContextSigner, create_key, enforce_keys
from jobforge_mcp.db.notify import Listener
from jobforge_mcp.db.pool import Database
from jobforge_mcp.errors import ConflictError, PolicyDeniedError, SettingsError
from jobforge_mcp.router.heartbeat import HeartbeatConnection
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.router.leases import WorkerRouter
from jobforge_mcp.types import Caller, Completion, NewJob, RunFilter, RunStatus, WorkerId
from tests.postgres import ADMIN, ScratchDatabase

Pooled: TypeAlias = Callable[[str], str]
WORKER = WorkerId("w1")
JOB = NewJob("demo.echo", "{}")


@pytest.mark.requirement("db.pooler")
async def test_a_job_goes_all_its_way_through_a_pooler(
    pooled: Pooled, database: ScratchDatabase, acme: Caller, globex: Caller
) -> None:
    signer = ContextSigner(create_key(database.url(ADMIN)))
    enforce_keys(database.url(ADMIN))
    async with (
        Database(pooled("jobforge_api"), role="jobforge_api", min_size=3) as api,
        Database(pooled("jobforge_worker"), role="jobforge_worker", min_size=2) as work,
    ):
        router, worker = Router(api, signer=signer), WorkerRouter(work)
        for _ in range(
            5
        ):  # often enough for a statement to be prepared, were it not told otherwise
            made = await router.enqueue_job(acme, JOB)
            assert (await router.get_run(acme, made.job_id)).status is RunStatus.QUEUED
            (claimed,) = await worker.claim_jobs(WORKER, ["demo.echo"], 1)
            with HeartbeatConnection(pooled("jobforge_worker")) as heart:
                fence = claimed.fence
                (held,) = heart.beat(WORKER, [(fence.tenant_id, fence.lease_id)], 30_000)
                assert held.lease_id == fence.lease_id
            await worker.complete_jobs([Completion(claimed.fence, '"done"')])
            assert (await router.get_run(acme, made.job_id)).result == '"done"'
            with pytest.raises(ConflictError):
                await router.cancel_job(acme, made.job_id)
            assert await router.list_runs(globex, RunFilter()) == []

        async def enqueue(caller: Caller) -> None:
            for _ in range(10):
                await router.enqueue_job(caller, JOB)

        async with anyio.create_task_group() as tasks:
            for caller in (acme, globex, acme, globex):
                tasks.start_soon(enqueue, caller)
        assert len(await router.list_runs(acme, RunFilter(limit=100))) == 25
        assert len(await router.list_runs(globex, RunFilter(limit=100))) == 20


@pytest.mark.requirement("db.pooler")
async def test_nothing_is_left_on_a_connection_for_the_next_client(
    pooled: Pooled, acme: Caller
) -> None:
    seen = """select current_user::text, coalesce(current_setting('jobforge.tenant_id', true), ''),
      coalesce(current_setting('jobforge.signature', true), ''), current_setting('statement_timeout'),
      (select count(*) from pg_prepared_statements)"""
    async with Database(pooled("jobforge_api"), role="jobforge_api", min_size=2) as api:
        for _ in range(4):
            await Router(api).enqueue_job(acme, JOB)
        async with api.transaction() as transaction:
            await transaction.fetch("select jobforge.enter_scope('acme')")
        with psycopg.connect(pooled("jobforge_api"), autocommit=True) as other:
            row = other.execute(seen).fetchone()
            with pytest.raises(psycopg.Error, match="not the tenant"):
                other.execute("select jobforge.list_runs('acme')")

    assert row == ("jobforge_api", "", "", "0", 0)


@pytest.mark.requirement("db.pooler")
async def test_a_role_is_never_taken_on_a_shared_connection(pooled: Pooled) -> None:
    with pytest.raises(SettingsError, match="through a pooler"):
        async with Database(pooled(ADMIN), role="jobforge_api"):
            pass
    with (
        pytest.raises(SettingsError, match="through a pooler"),
        HeartbeatConnection(pooled(ADMIN)) as heart,
    ):
        heart.beat(WORKER, [], 30_000)


@pytest.mark.requirement("db.pooler")
async def test_a_listener_behind_a_pooler_says_that_it_hears_nothing(pooled: Pooled) -> None:
    async with Listener(pooled("jobforge_api"), "jobforge_api", test_seconds=0.2) as listener:
        with anyio.move_on_after(1.5):
            await listener.wait_until_healthy()

        assert not listener.is_healthy


async def test_an_unsigned_scope_is_refused_through_a_pooler_too(
    pooled: Pooled, database: ScratchDatabase, acme: Caller
) -> None:
    create_key(database.url(ADMIN))
    enforce_keys(database.url(ADMIN))
    async with Database(pooled("jobforge_api"), role="jobforge_api") as api:
        with pytest.raises(PolicyDeniedError, match="not signed"):
            await Router(api).list_runs(acme, RunFilter())
