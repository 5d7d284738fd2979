"""Simulate schedules over days: ``python -m tests.measure.cron_simulation [days]``, 400 of them if not said otherwise.

Ten zones with three schedules each, five schedulers over the same database that are killed at any moment and start again, and
a clock that jumps by minutes to most of a day. At the end each time of each schedule, as a look at every minute finds it,
has one row and one job: none missed, none double. The suite runs it over the weeks around the changes of the clocks.
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import anyio
import psycopg

from jobforge_mcp.db.pool import Database
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.maintenance import Maintenance
from jobforge_mcp.router.events import EventRouter
from jobforge_mcp.router.maintenance import MaintenanceRouter
from jobforge_mcp.triggers.desk import EventDesk
from jobforge_mcp.types import Caller, TenantId, TriggerKind, TriggerSpec
from tests.postgres import (
    Clock,
    DatabaseMaker,
    ScratchDatabase,
    choose_binaries,
    running_cluster,
)
from tests.server.jobs import JOBS

ZONES = (
    "UTC",
    "Europe/Berlin",
    "Europe/London",
    "America/New_York",
    "America/Santiago",
    "America/St_Johns",
    "Australia/Lord_Howe",
    "Pacific/Auckland",
    "Asia/Kathmandu",
    "Africa/Casablanca",
)
SCHEDULES = {"daily": "30 2 * * *", "six-hourly": "15 */6 * * *", "weekly": "0 1 * * 0"}
SCHEDULERS = 5


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a simulation found."""

    expected: int
    fired: int
    kills: int
    missed: list[str]
    double: list[str]


async def simulate(
    database: ScratchDatabase, clock: Clock, *, start: datetime, days: int, seed: int = 1
) -> Outcome:
    """Let schedules run from a day on, and compare what they did with what was due."""
    rng = random.Random(seed)  # not for secrets
    clock.advance(start - clock.now())
    registry = Registry(JOBS)
    scopes = frozenset({"jobs:execute", "triggers:write"})
    async with (
        Database(database.url("jobforge_api"), role="jobforge_api") as api,
        Database(
            database.url("jobforge_worker"), role="jobforge_worker", max_size=SCHEDULERS
        ) as workers,
    ):
        desk = EventDesk(EventRouter(api), registry)
        for number, zone in enumerate(ZONES):
            caller = Caller(TenantId(f"tenant-{number % 3}"), "simulation", scopes)
            for name, cron in SCHEDULES.items():
                await desk.register(
                    caller,
                    TriggerSpec(
                        f"{name}-{number}",
                        TriggerKind.CRON,
                        "test.noop",
                        cron=cron,
                        timezone=zone,
                        catch_up="all",
                        catch_up_most=1_000,
                        overlap="queue",
                    ),
                )
        began = clock.now()
        kills = 0
        ends = began + timedelta(days=days)
        router = MaintenanceRouter(workers)
        while clock.now() < ends:
            clock.advance(timedelta(minutes=rng.choice((1, 7, 45, 180, 600, 1_300))))
            kills += await _run_all(router, registry, rng)
        for _ in range(3):
            await Maintenance(router, registry).run_once()
    with database.connect() as connection:
        return _compare(connection, began, clock.now(), kills)


async def _run_all(router: MaintenanceRouter, registry: Registry, rng: random.Random) -> int:
    """Let five schedulers look at once; some of them are killed while they do."""
    kills = 0

    async def look(patience: float | None) -> None:
        nonlocal kills
        with anyio.move_on_after(patience) as scope:
            await Maintenance(router, registry).run_once()
        kills += scope.cancelled_caught

    async with anyio.create_task_group() as tasks:
        for _ in range(SCHEDULERS):
            tasks.start_soon(look, rng.choice((None, 0.001, 0.005, 0.02, 0.05)))
    return kills


def _compare(
    connection: psycopg.Connection, began: datetime, ended: datetime, kills: int
) -> Outcome:
    expected: set[tuple[str, datetime]] = set()
    for number, zone in enumerate(ZONES):
        for name, cron in SCHEDULES.items():
            due = _times(cron, ZoneInfo(zone), began, ended)
            expected |= {(f"{name}-{number}", at) for at in due}
    rows = connection.execute(
        """select f.trigger_name, f.scheduled_at, f.decision::text, f.job_id,
             (select count(*) from jobforge.jobs j where j.tenant_id = f.tenant_id and j.id = f.job_id)
           from jobforge.trigger_fires f"""
    ).fetchall()
    found = {(row[0], row[1].astimezone(UTC)) for row in rows if row[4] == 1}
    jobs = connection.execute("select count(*) from jobforge.jobs").fetchone()
    assert jobs is not None
    double = [str(key) for key in sorted(found - expected)]
    if len({row[3] for row in rows}) != len(rows) or jobs[0] != len(rows):
        double.append(f"{jobs[0]} jobs for {len(rows)} decisions")
    return Outcome(
        len(expected), len(found), kills, [str(key) for key in sorted(expected - found)], double
    )


def _times(cron: str, zone: ZoneInfo, began: datetime, ended: datetime) -> list[datetime]:
    """Look at every quarter of an hour: what names hour and minute is due once a day, the first time or after a gap."""
    minute, hour, *_, weekday = cron.split()
    found: list[datetime] = []
    at = began.replace(minute=began.minute // 15 * 15, second=0, microsecond=0)
    while at <= ended:
        wall = at.astimezone(zone)
        if weekday == "*" or wall.isoweekday() % 7 == int(weekday):
            if hour.startswith("*"):
                is_due = wall.hour % 6 == 0 and wall.minute == int(minute)
            else:
                wanted = wall.replace(hour=int(hour), minute=int(minute), fold=0)
                real = wanted.astimezone(UTC)
                is_imaginary = real.astimezone(zone).replace(tzinfo=None) != wanted.replace(
                    tzinfo=None
                )
                is_due = _after_gap(wanted, zone) == at if is_imaginary else real == at
            if is_due and at > began:
                found.append(at)
        at += timedelta(minutes=15)
    return found


def _after_gap(wanted: datetime, zone: ZoneInfo) -> datetime:
    """Return the first moment that exists after a local time that does not."""
    local = wanted
    while local.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != local.replace(tzinfo=None):
        local = (local.replace(tzinfo=None) + timedelta(minutes=1)).replace(tzinfo=zone)
    return local.astimezone(UTC)


def main() -> None:
    """Run it on a server of its own, and print what came of it."""
    days = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    began = time.monotonic()
    with (
        running_cluster(choose_binaries()) as cluster,
        psycopg.connect(cluster.url(), autocommit=True) as raw,
    ):
        maker = DatabaseMaker(cluster, raw, "cron")
        maker.ensure_template()
        database = maker.create_migrated()
        with database.connect() as admin:

            async def work() -> Outcome:
                return await simulate(
                    database, Clock(admin), start=datetime(2027, 1, 1, tzinfo=UTC), days=days
                )

            outcome = anyio.run(work)
    sys.stdout.write(
        f"{days} days, {len(ZONES)} zones, {SCHEDULERS} schedulers, {outcome.kills} kills: "
        f"{outcome.expected} times due, {outcome.fired} fired, {len(outcome.missed)} missed, "
        f"{len(outcome.double)} double, {time.monotonic() - began:.0f} s\n"
    )
    for line in [*outcome.missed, *outcome.double][:20]:
        sys.stdout.write(f"  {line}\n")
    sys.exit(bool(outcome.missed or outcome.double))


if __name__ == "__main__":
    main()
