"""An event that came without a server is processed all the same, once, whoever dies in between."""

from __future__ import annotations

from datetime import timedelta

import anyio
import psycopg
import pytest

from jobforge_mcp.db.notify import Listener
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.maintenance import Maintenance
from jobforge_mcp.router.maintenance import MaintenanceRouter
from jobforge_mcp.triggers.desk import EventDesk
from jobforge_mcp.types import Caller, EventFilter
from tests.postgres import Clock, ScratchDatabase
from tests.triggers.conftest import new_event, on_event
from tests.worker.conftest import eventually

pytestmark = pytest.mark.anyio


def counts(admin: psycopg.Connection) -> tuple[int, int]:
    row = admin.execute(
        """select (select count(*) from jobforge.jobs), (select count(*) from jobforge.events where processed_at is null)"""
    ).fetchone()
    assert row is not None
    return row[0], row[1]


@pytest.mark.requirement("events.sql")
async def test_an_event_of_plain_sql_starts_its_jobs_a_moment_later(
    desk: EventDesk,
    maintenance: MaintenanceRouter,
    registry: Registry,
    agent: Caller,
    database: ScratchDatabase,
    admin: psycopg.Connection,
) -> None:
    await desk.register(agent, on_event(input_mapping={"text": {"$ref": "/event/payload/word"}}))
    with database.connect("jobforge_api") as connection, connection.transaction():
        connection.execute("select jobforge.enter_scope('acme', 'shop')")
        connection.execute(
            """select jobforge.submit_event('acme', 'order.paid', '{"word": "hi"}', p_idempotency_key => 'k')"""
        )
    assert counts(admin) == (0, 1)

    done = await Maintenance(maintenance, registry).run_once()

    assert (done, counts(admin)) == (1, (1, 0))
    assert await Maintenance(maintenance, registry).run_once() == 0
    (event,) = await desk.list(agent, EventFilter())
    assert (event.fired, event.actor) == (1, "shop")


@pytest.mark.requirement("events.sql")
async def test_what_a_process_claimed_before_it_died_is_processed_by_another(
    desk: EventDesk,
    maintenance: MaintenanceRouter,
    registry: Registry,
    agent: Caller,
    admin: psycopg.Connection,
    clock: Clock,
) -> None:
    await desk.register(agent, on_event())
    await desk.router.submit_event(agent, new_event(), None, most_depth=20)
    claimed = await maintenance.claim_events()
    assert len(claimed) == 1
    other = Maintenance(maintenance, registry)
    assert await other.run_once() == 0

    clock.advance(timedelta(seconds=31))
    done = await other.run_once()

    assert (done, counts(admin)) == (1, (1, 0))
    late = await maintenance.process_event(claimed[0], [], most_depth=20)
    assert (late, counts(admin)) == ([], (1, 0))


@pytest.mark.requirement("events.sql")
async def test_five_at_once_process_each_event_once(
    desk: EventDesk,
    maintenance: MaintenanceRouter,
    registry: Registry,
    agent: Caller,
    stranger: Caller,
    admin: psycopg.Connection,
) -> None:
    for caller in (agent, stranger):
        await desk.register(caller, on_event("one"))
        await desk.register(caller, on_event("two", "order.*"))
        for _ in range(30):
            await desk.router.submit_event(caller, new_event(), None, most_depth=20)

    async def work() -> None:
        while await Maintenance(maintenance, registry).run_once():
            pass

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(work)

    assert counts(admin) == (120, 0)


async def test_a_repeated_submit_processes_what_was_left_unprocessed(
    desk: EventDesk, agent: Caller, admin: psycopg.Connection
) -> None:
    await desk.register(agent, on_event())
    event = new_event(idempotency_key="k")
    await desk.router.submit_event(agent, event, None, most_depth=20)

    again = await desk.submit(agent, event)

    assert (again.outcome.value, again.is_processed, counts(admin)) == ("replayed", True, (1, 0))


async def test_expired_events_are_purged_with_their_decisions(
    desk: EventDesk, agent: Caller, admin: psycopg.Connection, clock: Clock
) -> None:
    await desk.register(agent, on_event())
    await desk.submit(agent, new_event(redaction_hints={"retentionDays": 1}))
    await desk.submit(agent, new_event())

    clock.advance(timedelta(days=2))
    admin.execute("select jobforge.purge_events(10)")

    row = admin.execute(
        "select (select count(*) from jobforge.events), (select count(*) from jobforge.trigger_fires)"
    ).fetchone()
    assert row == (1, 1)


@pytest.mark.requirement("events.sql")
async def test_whoever_keeps_schedules_is_woken_when_an_event_is_committed(
    desk: EventDesk,
    maintenance: MaintenanceRouter,
    registry: Registry,
    agent: Caller,
    database: ScratchDatabase,
    admin: psycopg.Connection,
) -> None:
    await desk.register(agent, on_event())
    sleeper = Maintenance(maintenance, registry, poll_seconds=3_600)
    listeners = "select count(*) from jobforge.listeners where topic = 'events'"

    async with (
        Listener(database.url("jobforge_api")) as listener,
        anyio.create_task_group() as tasks,
    ):
        await listener.wait_until_healthy()
        tasks.start_soon(sleeper.run, listener)
        await eventually(lambda: admin.execute(listeners).fetchone() == (1,))
        await desk.router.submit_event(agent, new_event(), None, most_depth=20)
        await eventually(lambda: counts(admin) == (1, 0))
        tasks.cancel_scope.cancel()
