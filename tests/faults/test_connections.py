"""Connections that run out or are cut: callers are told in time to try again, and nothing of it lasts."""

from __future__ import annotations

from contextlib import ExitStack

import anyio
import psycopg
import pytest
from psycopg import sql

from jobforge_mcp.db.pool import Database
from jobforge_mcp.errors import DatabaseUnavailableError
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.types import Caller, NewJob, RunFilter, RunStatus
from tests.postgres import ScratchDatabase
from tests.worker.conftest import Desk, PoolMaker, eventually

CALLERS = 200


@pytest.mark.requirement("faults.pool")
async def test_two_hundred_callers_of_one_connection_are_served_or_told_so(
    database: ScratchDatabase, acme: Caller
) -> None:
    url = database.url("jobforge_api")
    outcomes: list[str] = []

    async with Database(url, role="jobforge_api", max_size=1, acquire_timeout_seconds=60) as opened:
        router = Router(opened)

        async def call(number: int) -> None:
            try:
                await router.enqueue_job(
                    acme, NewJob("demo.echo", "{}", idempotency_key=f"k{number}")
                )
                outcomes.append("served")
            except DatabaseUnavailableError as error:
                outcomes.append("told" if error.retryable else "not told")

        with anyio.fail_after(120):
            async with anyio.create_task_group() as tasks:
                for number in range(CALLERS):
                    tasks.start_soon(call, number)
    with database.connect() as connection:
        stored = connection.execute("select count(*) from jobforge.jobs").fetchone()

    assert len(outcomes) == CALLERS
    assert set(outcomes) <= {"served", "told"}
    assert stored is not None
    # who was served has a job, and who was told to try again may have one
    assert 0 < outcomes.count("served") <= stored[0] <= CALLERS


@pytest.mark.requirement("faults.pool")
async def test_a_connection_that_is_held_tells_all_who_wait_within_their_time(
    database: ScratchDatabase, acme: Caller
) -> None:
    url = database.url("jobforge_api")
    told: list[DatabaseUnavailableError] = []
    async with Database(url, role="jobforge_api", max_size=1, acquire_timeout_seconds=1) as opened:
        router = Router(opened)

        async def call() -> None:
            with pytest.raises(DatabaseUnavailableError) as refused:
                await router.list_runs(acme, RunFilter())
            told.append(refused.value)

        with anyio.fail_after(60):
            async with opened.transaction(), anyio.create_task_group() as tasks:
                for _ in range(50):
                    tasks.start_soon(call)
        after = await router.list_runs(acme, RunFilter())

    assert len(told) == 50
    assert {(error.code, error.retryable) for error in told} == {("DATABASE_UNAVAILABLE", True)}
    assert after == []


@pytest.mark.requirement("faults.connections")
async def test_a_server_without_a_connection_to_spare_is_waited_for(
    database: ScratchDatabase, desk: Desk, make_pool: PoolMaker, admin: psycopg.Connection
) -> None:
    """53300: others took all that this database may have, after a restart cut ours."""
    limit = sql.SQL("alter database {} connection limit {}")
    name = sql.Identifier(database.name)
    async with make_pool():
        await desk.until_final(await desk.enqueue("echo", number=1))
        with ExitStack() as opened:
            strangers = [
                opened.enter_context(database.connect("jobforge_readonly")) for _ in range(3)
            ]
            admin.execute(limit.format(name, sql.Literal(3)))
            admin.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = current_database()"
                " and usename in ('jobforge_api', 'jobforge_worker')"
            )
            with pytest.raises(psycopg.OperationalError, match="too many connections"):
                database.connect("jobforge_worker")
            assert len(strangers) == 3
        admin.execute(limit.format(name, sql.Literal(-1)))

        made = None
        with anyio.fail_after(60):
            while made is None:
                try:
                    made = await desk.enqueue("echo", number=2)
                except DatabaseUnavailableError:
                    await anyio.sleep(0.05)
        run = await desk.until_final(made)

    assert run.status is RunStatus.SUCCEEDED


@pytest.mark.requirement("faults.listener")
async def test_jobs_start_while_every_listener_is_killed_again_and_again(
    desk: Desk, make_pool: PoolMaker, admin: psycopg.Connection
) -> None:
    """NOTIFY is a hint: what was sent while nobody listened is found by the next poll."""
    kill = """select pg_terminate_backend(pid) from pg_stat_activity
      where datname = current_database() and application_name = 'jobforge listener'"""
    killed = 0
    async with make_pool(poll_ms=200):
        for number in range(20):
            killed += admin.execute(kill).rowcount
            run = await desk.until_final(await desk.enqueue("echo", number=number))
            assert run.status is RunStatus.SUCCEEDED
        await eventually(
            lambda: admin.execute(kill.replace("pg_terminate_backend(pid)", "pid")).rowcount == 1
        )

    assert killed > 0
