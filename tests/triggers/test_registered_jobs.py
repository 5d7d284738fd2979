"""Triggers of jobs that are data: whoever evaluates them finds the version that runs, and nothing is started for one that may not."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import psycopg
import pytest

from jobforge_mcp import registering
from jobforge_mcp.db.pool import Database
from jobforge_mcp.definitions.catalog import Catalog
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.errors import NotFoundError
from jobforge_mcp.maintenance import Maintenance
from jobforge_mcp.router.definitions import DefinitionRouter
from jobforge_mcp.router.maintenance import MaintenanceRouter
from jobforge_mcp.triggers.desk import EventDesk
from jobforge_mcp.types import (
    Caller,
    CallOrigin,
    FireDecision,
    FireFilter,
    JsonObject,
    TriggerKind,
    TriggerSpec,
)
from tests.conftest import CallerMaker
from tests.postgres import Clock, ScratchDatabase
from tests.triggers.conftest import EVERY_SCOPE, new_event, on_event

pytestmark = pytest.mark.anyio

HELLO: JsonObject = {
    "name": "acme.hello",
    "handler": "test.echo",
    "input": {"times": 2},
    "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}},
}
ORIGIN = CallOrigin()


@pytest.fixture
def agent(make_caller: CallerMaker) -> Caller:
    return make_caller("acme", scopes=(*EVERY_SCOPE, "definitions:register"))


@pytest.fixture
def catalog(api_database: Database, registry: Registry) -> Catalog:
    return Catalog(registry, DefinitionRouter(api_database))


def jobs(admin: psycopg.Connection) -> list[tuple[object, ...]]:
    return admin.execute(
        "select job_type, job_version, lane_type, payload ->> 'text' from jobforge.jobs order by id"
    ).fetchall()


@pytest.mark.requirement("registering.triggers")
async def test_an_event_starts_the_version_that_runs_now(
    desk: EventDesk, catalog: Catalog, agent: Caller, admin: psycopg.Connection
) -> None:
    with pytest.raises(NotFoundError):
        await desk.register(agent, on_event(job_name="acme.hello"))
    await registering.register(catalog, agent, HELLO, origin=ORIGIN)
    await desk.register(agent, on_event(job_name="acme.hello"))
    first = await desk.submit(agent, new_event())
    await registering.register(catalog, agent, {**HELLO, "input": {"times": 3}}, origin=ORIGIN)
    await desk.submit(agent, new_event())
    by_hand = await desk.run(agent, "bill")
    started = jobs(admin)
    await registering.remove(catalog, agent, "acme.hello", origin=ORIGIN)
    gone = await desk.submit(agent, new_event())
    with pytest.raises(NotFoundError):
        await desk.run(agent, "bill")

    assert first.decisions[0].decision is FireDecision.FIRED
    assert by_hand.decision is FireDecision.FIRED
    assert started == [
        ("acme.hello", "1", "test.echo", "fixed"),
        ("acme.hello", "2", "test.echo", "fixed"),
        ("acme.hello", "2", "test.echo", "fixed"),
    ]
    assert gone.decisions[0].decision is FireDecision.ERROR
    assert gone.decisions[0].reason == (
        "JOB_REMOVED: the job acme.hello was removed; register it again, or remove this trigger"
    )


@pytest.mark.requirement("registering.triggers")
async def test_maintenance_starts_it_for_events_of_plain_sql_and_for_schedules(
    desk: EventDesk,
    catalog: Catalog,
    maintenance: MaintenanceRouter,
    registry: Registry,
    agent: Caller,
    database: ScratchDatabase,
    admin: psycopg.Connection,
    clock: Clock,
) -> None:
    await registering.register(catalog, agent, HELLO, origin=ORIGIN)
    await desk.register(agent, on_event(job_name="acme.hello"))
    spec = TriggerSpec(
        "hourly", TriggerKind.CRON, cron="0 * * * *", job_name="acme.hello", input={"text": "time"}
    )
    await desk.register(agent, spec)
    with database.connect("jobforge_api") as connection, connection.transaction():
        connection.execute("select jobforge.enter_scope('acme', 'shop')")
        connection.execute("select jobforge.submit_event('acme', 'order.paid', '{}')")
    upkeep = Maintenance(maintenance, registry)
    stranger = Maintenance(maintenance, Registry([]))

    assert await stranger.process_events() == 1
    assert jobs(admin) == []
    clock.advance(timedelta(seconds=31))
    await upkeep.process_events()
    clock.advance(timedelta(hours=1))
    await upkeep.fire_due()

    assert jobs(admin) == [
        ("acme.hello", "1", "test.echo", "fixed"),
        ("acme.hello", "1", "test.echo", "time"),
    ]


@pytest.mark.requirement("registering.triggers")
async def test_a_schedule_of_a_removed_job_says_so(
    desk: EventDesk,
    catalog: Catalog,
    maintenance: MaintenanceRouter,
    registry: Registry,
    agent: Caller,
    admin: psycopg.Connection,
    clock: Clock,
) -> None:
    await registering.register(catalog, agent, HELLO, origin=ORIGIN)
    spec = TriggerSpec("hourly", TriggerKind.CRON, cron="0 * * * *", job_name="acme.hello")
    await desk.register(agent, spec)
    await registering.remove(catalog, agent, "acme.hello", origin=ORIGIN)
    clock.advance(timedelta(hours=1))

    await Maintenance(maintenance, registry).fire_due()  # at once: nobody else would know the job

    assert jobs(admin) == []
    (fire,) = await desk.history(agent, FireFilter())
    assert fire.decision is FireDecision.ERROR
    assert (fire.reason or "").startswith("JOB_REMOVED: the job acme.hello was removed")


@pytest.mark.requirement("registering.triggers")
async def test_a_trigger_of_a_removed_job_holds_no_other_trigger_of_a_stored_event_back(
    desk: EventDesk,
    catalog: Catalog,
    maintenance: MaintenanceRouter,
    registry: Registry,
    agent: Caller,
    admin: psycopg.Connection,
) -> None:
    await registering.register(catalog, agent, HELLO, origin=ORIGIN)
    await desk.register(agent, on_event(job_name="acme.hello"))
    await desk.register(agent, replace(on_event(job_name="test.echo"), name="other"))
    await registering.remove(catalog, agent, "acme.hello", origin=ORIGIN)
    storing = EventDesk(desk.router, registry, asks_triggers=False)
    await storing.submit(agent, new_event())

    await Maintenance(maintenance, registry).process_events()

    history = {fire.trigger_name: fire for fire in await desk.history(agent, FireFilter())}
    assert (history["other"].decision, len(jobs(admin))) == (FireDecision.FIRED, 1)
    assert (history["bill"].reason or "").startswith("JOB_REMOVED")
