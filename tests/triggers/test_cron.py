"""Schedules: one run for each time, whoever looks and whoever dies; what was missed, what overlaps, what is paused."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import anyio
import psycopg
import pytest

from jobforge_mcp.db.pool import Database
from jobforge_mcp.definitions.catalog import BoundDefinitions
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.maintenance import Maintenance
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.router.maintenance import MaintenanceRouter
from jobforge_mcp.router.tokens import TokenRouter
from jobforge_mcp.triggers.desk import EventDesk
from jobforge_mcp.triggers.planning import plan_due
from jobforge_mcp.types import (
    Caller,
    CallOrigin,
    FireFilter,
    TriggerFilter,
    TriggerKind,
    TriggerSpec,
)
from tests.measure.cron_simulation import simulate
from tests.postgres import Clock, ScratchDatabase

pytestmark = pytest.mark.anyio

HOURLY = "0 * * * *"


def scheduled(name: str = "report", **more: object) -> TriggerSpec:
    spec: dict[str, object] = {"cron": HOURLY, "job_name": "test.echo", **more}
    return TriggerSpec(name, TriggerKind.CRON, **spec)  # pyright: ignore[reportArgumentType]  # named by the test


@pytest.fixture
def upkeep(maintenance: MaintenanceRouter, registry: Registry) -> Maintenance:
    return Maintenance(maintenance, registry)


NOON = datetime(2027, 6, 1, 11, 59, 30, tzinfo=UTC)


async def told(desk: EventDesk, agent: Caller, name: str = "report") -> list[tuple[str, str]]:
    """Return what a schedule decided, oldest first, each with its hour."""
    fires = await desk.history(agent, FireFilter(trigger_name=name, limit=1000))
    rows = sorted((fire.scheduled_at or fire.decided_at, fire.decision.value) for fire in fires)
    return [(at.strftime("%H:%M"), decision) for at, decision in rows]


@pytest.mark.requirement("triggers.cron")
async def test_a_schedule_fires_at_its_time_and_not_before(
    desk: EventDesk, router: Router, agent: Caller, upkeep: Maintenance, clock: Clock
) -> None:
    clock.advance(NOON - clock.now())
    made = await desk.register(agent, scheduled(input={"text": "tick"}, timezone="Europe/Berlin"))

    before = await upkeep.run_once()
    clock.advance(timedelta(seconds=40))
    at_noon = await upkeep.run_once()
    again = await upkeep.run_once()

    assert made.next_fire_at == datetime(2027, 6, 1, 12, tzinfo=UTC)
    assert (before, at_noon, again) == (0, 1, 0)
    (fire,) = await desk.history(agent, FireFilter())
    assert (fire.decision.value, fire.scheduled_at) == ("fired", made.next_fire_at)
    assert fire.job_id is not None
    assert json.loads(await router.get_payload(agent, fire.job_id))["text"] == "tick"
    (trigger,) = await desk.list_triggers(agent, TriggerFilter())
    assert trigger.next_fire_at == datetime(2027, 6, 1, 13, tzinfo=UTC)
    assert trigger.last_job_id == fire.job_id


@pytest.mark.requirement("triggers.once")
async def test_who_looked_earlier_and_fires_later_fires_nothing(
    desk: EventDesk,
    agent: Caller,
    maintenance: MaintenanceRouter,
    registry: Registry,
    clock: Clock,
    admin: psycopg.Connection,
) -> None:
    clock.advance(NOON - clock.now())
    await desk.register(agent, scheduled())
    clock.advance(timedelta(seconds=40))
    (due,) = await maintenance.due_triggers()
    plan = plan_due(BoundDefinitions(registry), due)

    first = await maintenance.fire_due_triggers([plan])
    second = await maintenance.fire_due_triggers([plan])
    admin.execute("update jobforge.triggers set next_fire_at = %s", [due.due_at])
    forced = await maintenance.fire_due_triggers([plan])

    assert (len(first), second, forced) == (1, [], [])
    row = admin.execute("select count(*) from jobforge.jobs").fetchone()
    assert row == (1,)


@pytest.mark.requirement("triggers.once")
async def test_five_schedulers_at_once_make_one_job_of_each_time(
    desk: EventDesk,
    agent: Caller,
    stranger: Caller,
    maintenance: MaintenanceRouter,
    registry: Registry,
    clock: Clock,
    admin: psycopg.Connection,
) -> None:
    clock.advance(NOON - clock.now())
    for caller in (agent, stranger):
        for number in range(10):
            await desk.register(caller, scheduled(f"t{number}"))
    clock.advance(timedelta(seconds=40))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(Maintenance(maintenance, registry).run_once)

    row = admin.execute(
        "select count(*), count(distinct job_id) from jobforge.trigger_fires"
    ).fetchone()
    assert row == (20, 20)


@pytest.mark.requirement("triggers.catch-up")
@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"catch_up": "none"}, ["late"] * 5),
        ({"catch_up": "one"}, ["skipped"] * 4 + ["caught_up"]),
        ({"catch_up": "all"}, ["caught_up"] * 5),
        ({"catch_up": "all", "catch_up_most": 2}, ["skipped"] * 3 + ["caught_up"] * 2),
    ],
)
async def test_what_was_missed_is_caught_up_as_asked(
    desk: EventDesk,
    agent: Caller,
    upkeep: Maintenance,
    clock: Clock,
    more: dict[str, object],
    expected: list[str],
) -> None:
    clock.advance(NOON - clock.now())
    await desk.register(agent, scheduled("report", **more))

    clock.advance(timedelta(hours=5))
    await upkeep.run_once()

    assert [decision for _, decision in await told(desk, agent)] == expected
    clock.advance(timedelta(seconds=40) - timedelta(seconds=0))
    await upkeep.run_once()
    assert (await told(desk, agent))[-1][0] == "17:00"


@pytest.mark.requirement("triggers.overlap")
@pytest.mark.parametrize(
    ("overlap", "decisions", "statuses"),
    [
        ("skip", ["fired", "overlap"], ["queued"]),
        ("queue", ["fired", "fired"], ["queued", "waiting"]),
        ("cancel-previous", ["fired", "fired"], ["canceled", "queued"]),
    ],
)
async def test_a_run_that_is_open_when_the_next_is_due(
    desk: EventDesk,
    router: Router,
    agent: Caller,
    upkeep: Maintenance,
    clock: Clock,
    overlap: str,
    decisions: list[str],
    statuses: list[str],
) -> None:
    clock.advance(NOON - clock.now())
    await desk.register(agent, scheduled(overlap=overlap))

    for seconds in (40, 3_600):
        clock.advance(timedelta(seconds=seconds))
        await upkeep.run_once()

    assert [decision for _, decision in await told(desk, agent)] == decisions
    fires = await desk.history(agent, FireFilter())
    job_ids = [fire.job_id for fire in fires if fire.job_id is not None]
    runs = await router.get_runs(agent, job_ids)
    assert [run.status.value for run in reversed(runs)] == statuses


async def test_a_paused_schedule_decides_nothing_and_catches_nothing_up(
    desk: EventDesk, agent: Caller, upkeep: Maintenance, clock: Clock
) -> None:
    clock.advance(NOON - clock.now())
    await desk.register(agent, scheduled(catch_up="all"))
    await desk.pause(agent, "report")
    clock.advance(timedelta(hours=3))
    assert await upkeep.run_once() == 0

    await desk.resume(agent, "report")
    assert await upkeep.run_once() == 0
    clock.advance(timedelta(seconds=40))
    await upkeep.run_once()

    assert await told(desk, agent) == [("15:00", "fired")]


async def test_editing_a_schedule_never_fires(
    desk: EventDesk, agent: Caller, upkeep: Maintenance, clock: Clock
) -> None:
    clock.advance(NOON - clock.now())
    await desk.register(agent, scheduled())
    clock.advance(timedelta(minutes=10))

    changed = await desk.register(agent, scheduled(cron="5 * * * *"))
    off = await desk.register(agent, scheduled(cron="5 * * * *", is_enabled=False))
    on = await desk.register(agent, scheduled(cron="5 * * * *"))

    assert await upkeep.run_once() == 0
    assert changed.next_fire_at == on.next_fire_at == datetime(2027, 6, 1, 13, 5, tzinfo=UTC)
    assert off.next_fire_at is None


async def test_an_edit_of_the_input_keeps_the_time_that_is_due(
    desk: EventDesk, agent: Caller, upkeep: Maintenance, clock: Clock
) -> None:
    clock.advance(NOON - clock.now())
    await desk.register(agent, scheduled())
    clock.advance(timedelta(seconds=40))

    changed = await desk.register(agent, scheduled(input={"text": "new"}))
    await upkeep.run_once()

    assert changed.next_fire_at == datetime(2027, 6, 1, 12, tzinfo=UTC)
    assert await told(desk, agent) == [("12:00", "fired")]


async def test_a_schedule_whose_registrar_lost_its_token_is_switched_off(
    desk: EventDesk, agent: Caller, upkeep: Maintenance, clock: Clock, api_database: Database
) -> None:
    clock.advance(NOON - clock.now())
    await desk.register(replace(agent, token_id="tok", epoch=1), scheduled())
    await TokenRouter(api_database).revoke_tenant_tokens(agent, origin=CallOrigin())

    clock.advance(timedelta(seconds=40))
    await upkeep.run_once()

    assert await told(desk, agent) == [("12:00", "disabled")]
    (trigger,) = await desk.list_triggers(agent, TriggerFilter())
    assert (trigger.spec.is_enabled, trigger.next_fire_at) == (False, None)


async def test_jitter_delays_the_run_and_not_the_decision(
    desk: EventDesk, router: Router, agent: Caller, upkeep: Maintenance, clock: Clock
) -> None:
    clock.advance(NOON - clock.now())
    await desk.register(agent, scheduled(jitter_ms=3_600_000))

    clock.advance(timedelta(seconds=40))
    await upkeep.run_once()

    (fire,) = await desk.history(agent, FireFilter())
    assert fire.job_id is not None
    run = await router.get_run(agent, fire.job_id)
    assert fire.scheduled_at is not None
    assert timedelta() < run.run_at - fire.scheduled_at <= timedelta(hours=1)


async def test_what_is_due_soon_keeps_the_local_node_alive(
    desk: EventDesk, agent: Caller, clock: Clock, admin: psycopg.Connection
) -> None:
    async def has_work() -> bool:
        row = admin.execute("select jobforge.has_work('{}', 600000)").fetchone()
        assert row is not None
        return row[0]

    clock.advance(NOON - clock.now() - timedelta(minutes=20))
    await desk.register(agent, scheduled())
    assert not await has_work()

    clock.advance(timedelta(minutes=15))

    assert await has_work()


async def test_a_process_that_does_not_know_the_job_leaves_it_to_others_for_a_while(
    desk: EventDesk, agent: Caller, maintenance: MaintenanceRouter, clock: Clock
) -> None:
    clock.advance(NOON - clock.now())
    await desk.register(agent, scheduled())
    poor = Maintenance(maintenance, Registry([]))
    clock.advance(timedelta(seconds=60))
    assert await poor.run_once() == 0

    clock.advance(timedelta(minutes=3))
    await poor.run_once()

    assert await told(desk, agent) == [("12:00", "error")]


@pytest.mark.requirement("triggers.once")
async def test_no_time_is_missed_or_doubled_while_five_schedulers_are_killed(
    database: ScratchDatabase, clock: Clock
) -> None:
    """Half a minute: three weeks with changes of the clocks in four zones; `tests.measure.cron_simulation` runs 400 days."""
    outcome = await simulate(
        database, clock, start=datetime(2027, 3, 20, tzinfo=UTC), days=21, seed=7
    )

    assert (outcome.missed, outcome.double) == ([], [])
    assert outcome.expected == outcome.fired > 1_000
    assert outcome.kills > 0
