"""The listener: hints arrive, it knows whether it hears, and it comes back."""

from __future__ import annotations

import anyio
import psycopg
import pytest
from psycopg import sql

from jobforge_mcp.db.notify import READY, RUNS, Listener
from tests.postgres import ScratchDatabase


async def test_a_notification_wakes_the_subscribers_of_its_channel_alone(
    database: ScratchDatabase, admin: psycopg.Connection
) -> None:
    async with Listener(database.url("jobforge_api")) as listener:
        with anyio.fail_after(60):
            await listener.wait_until_healthy()
        with listener.subscribe(READY) as ready, listener.subscribe(RUNS) as runs:
            admin.execute("select pg_notify('jobforge_ready', '')")

            assert await ready.wait(60)
            assert not await runs.wait(0)


async def test_a_hint_that_came_before_the_wait_is_not_lost_and_is_taken_once(
    database: ScratchDatabase, admin: psycopg.Connection
) -> None:
    async with Listener(database.url("jobforge_api")) as listener:
        with anyio.fail_after(60):
            await listener.wait_until_healthy()
        with listener.subscribe(READY) as first, listener.subscribe(READY) as second:
            admin.execute("select pg_notify('jobforge_ready', '')")
            assert await first.wait(60)

            assert await second.wait(0)
            assert not await second.wait(0)


@pytest.mark.requirement("database.listener-tests-itself")
async def test_a_lost_listener_is_unhealthy_comes_back_and_wakes_everybody(
    database: ScratchDatabase, admin: psycopg.Connection
) -> None:
    async with Listener(database.url("jobforge_api")) as listener:
        with anyio.fail_after(60):
            await listener.wait_until_healthy()
        with listener.subscribe(RUNS) as runs:
            admin.execute(
                "select pg_terminate_backend(a.pid, 5000) from pg_stat_activity a"
                " where a.application_name = 'jobforge listener'"
            )

            with anyio.fail_after(60):
                assert await runs.wait()
                await listener.wait_until_healthy()


async def test_a_listener_goes_on_while_there_is_no_database() -> None:
    async with Listener("postgresql:///x?host=/nowhere") as listener:
        with listener.subscribe(READY) as ready:
            assert not await ready.wait(0.05)
        assert not listener.is_healthy


@pytest.mark.requirement("database.listener-tests-itself")
async def test_a_listener_whose_notifications_are_swallowed_is_not_healthy(
    database: ScratchDatabase, admin: psycopg.Connection
) -> None:
    """A pooler in transaction mode listens on another connection; here another database plays its part."""
    name = sql.Identifier(database.name)
    admin.execute(sql.SQL("alter database {} set search_path to swallow, pg_catalog").format(name))
    admin.execute("create schema swallow")
    admin.execute("grant usage on schema swallow to public")
    admin.execute(
        "create function swallow.pg_notify(text, text) returns void language sql as 'select'"
    )

    async with Listener(database.url("jobforge_api"), test_seconds=0.05) as listener:
        with listener.subscribe(READY) as ready, anyio.move_on_after(0.5):
            await ready.wait()
            await listener.wait_until_healthy()
        assert not listener.is_healthy


async def test_an_unknown_channel_cannot_be_subscribed_to() -> None:
    listener = Listener("postgresql:///x?host=/nowhere")

    with pytest.raises(ValueError, match="other"):
        listener.subscribe("other")
