"""Submit many events with crashes: ``python -m tests.measure.event_storm [events]``, 100,000 if not said otherwise.

``--slice 3/8`` does the third of eight parts, with crashes of its own: eight short runs are one long one.

Three triggers of a thousand want each event. Submitters lose their answer or die at any moment and repeat the call with its key;
every fourth event comes as plain SQL would bring it and is processed by maintenance, which dies as well; and several times a
second the server ends somebody's connection, whatever is under way on it. At the end every event has its three jobs: none
missed, none double. With ``--ratio`` it measures instead what an event with three triggers
costs beside a plain enqueue, on a server that flushes every commit.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import LiteralString

import anyio
import psycopg

from jobforge_mcp.db.pool import Database
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.errors import DatabaseUnavailableError
from jobforge_mcp.maintenance import Maintenance
from jobforge_mcp.router.events import EventRouter
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.router.maintenance import MaintenanceRouter
from jobforge_mcp.triggers.desk import EventDesk
from jobforge_mcp.triggers.evaluating import job_for
from jobforge_mcp.types import Caller, NewEvent, TenantId, TriggerKind, TriggerSpec
from tests.postgres import DatabaseMaker, ScratchDatabase, choose_binaries, running_cluster
from tests.server.jobs import JOBS

SUBMITTERS = 8
KILL_SECONDS = 0.2
WANTED = 3
CALLER = Caller(
    TenantId("acme"), "storm", frozenset({"jobs:execute", "events:submit", "triggers:write"})
)
KILL: LiteralString = """
    select pg_terminate_backend(a.pid) from (
      select pid from pg_stat_activity
      where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
      order by random() limit 1) a"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a storm left behind."""

    events: int
    crashes: int
    killed: int
    """Connections that the server ended."""
    stored: int
    unprocessed: int
    jobs: int
    wrong: int
    """Events that have not exactly their three jobs."""


async def storm(
    database: ScratchDatabase, *, events: range, triggers: int, seed: int = 1
) -> Outcome:
    """Submit events of these numbers while everybody crashes, and count what is there at the end."""
    rng = random.Random(seed)  # not for secrets
    registry = Registry(JOBS)
    crashes = killed = 0
    async with (
        Database(database.url("jobforge_api"), role="jobforge_api", max_size=SUBMITTERS) as api,
        Database(database.url("jobforge_worker"), role="jobforge_worker", max_size=3) as workers,
    ):
        desk = EventDesk(EventRouter(api), registry)
        await register(desk, triggers)
        router = MaintenanceRouter(workers)

        async def submit(number: int) -> None:
            nonlocal crashes
            event = NewEvent("order.paid", f'{{"order": {number}}}', idempotency_key=f"o-{number}")
            while True:
                patience = rng.choice((None, None, 0.002, 0.01, 0.05))
                with anyio.move_on_after(patience) as scope:
                    try:
                        if number % 4 == 0:
                            await desk.router.submit_event(CALLER, event, None, most_depth=20)
                        else:
                            await desk.submit(CALLER, event)
                    except DatabaseUnavailableError:
                        continue
                if not scope.cancelled_caught:
                    return
                crashes += 1

        async def submit_some(first: int) -> None:
            for number in events[first::SUBMITTERS]:
                await submit(number)

        async def maintain() -> None:
            nonlocal crashes
            while True:
                with anyio.move_on_after(rng.choice((1.0, 0.05, 0.2))) as scope:
                    with suppress(DatabaseUnavailableError):
                        await Maintenance(router, registry).run_once()
                crashes += scope.cancelled_caught
                await anyio.sleep(0.01)

        async def kill() -> None:
            nonlocal killed
            with database.connect() as connection:
                while True:
                    await anyio.sleep(KILL_SECONDS)
                    killed += connection.execute(KILL).rowcount

        async with anyio.create_task_group() as upkeep:
            upkeep.start_soon(maintain)
            upkeep.start_soon(kill)
            async with anyio.create_task_group() as tasks:
                for first in range(SUBMITTERS):
                    tasks.start_soon(submit_some, first)
            upkeep.cancel_scope.cancel()
        with database.connect() as connection:
            # what a killed process had claimed is due to another after half a minute; nobody waits for that here
            connection.execute(
                "update jobforge.events set claimed_until = null where processed_at is null"
            )
        while await Maintenance(router, registry).run_once():
            pass
    with database.connect() as connection:
        return _count(connection, len(events), crashes, killed)


async def register(desk: EventDesk, triggers: int) -> None:
    """Register three triggers that want the events, and others that do not."""
    for number in range(triggers):
        wants = number < WANTED
        await desk.register(
            CALLER,
            TriggerSpec(
                f"t{number}",
                TriggerKind.EVENT,
                "test.echo",
                event_type=("order.paid", "order.*", "order.**")[number % 3]
                if wants
                else f"other-{number}.happened",
                input_mapping={"text": {"$jmespath": "to_string(event.payload.order)"}},
            ),
        )


def _count(connection: psycopg.Connection, events: int, crashes: int, killed: int) -> Outcome:
    row = connection.execute(
        """select (select count(*) from jobforge.events),
             (select count(*) from jobforge.events where processed_at is null),
             (select count(*) from jobforge.jobs),
             (select count(*) from jobforge.events e where 3 <> (
               select count(distinct f.job_id) from jobforge.trigger_fires f
               join jobforge.jobs j on j.tenant_id = f.tenant_id and j.id = f.job_id
               where f.tenant_id = e.tenant_id and f.event_id = e.id))"""
    ).fetchone()
    assert row is not None
    return Outcome(events, crashes, killed, *row)


async def ratio(database: ScratchDatabase, *, calls: int = 300) -> tuple[float, float]:
    """Return the median milliseconds of a plain enqueue, and of an event with three triggers of a thousand."""
    registry = Registry(JOBS)
    walls: tuple[list[float], list[float]] = ([], [])
    async with Database(database.url("jobforge_api"), role="jobforge_api") as api:
        desk, router = EventDesk(EventRouter(api), registry), Router(api)
        await register(desk, 1_000)
        job = job_for(registry, CALLER, registry.get("test.echo"), {"text": "17"})
        for number in range(calls + 50):
            for place in (0, 1):
                began = time.perf_counter()
                if place == 0:
                    await router.enqueue_job(CALLER, job)
                else:
                    await desk.submit(CALLER, NewEvent("order.paid", f'{{"order": {number}}}'))
                if number >= 50:
                    walls[place].append((time.perf_counter() - began) * 1_000)
    return statistics.median(walls[0]), statistics.median(walls[1])


def main() -> None:
    """Run it on a server of its own, and print what came of it."""
    is_ratio = "--ratio" in sys.argv
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    events = range(numbers[0] if numbers else 100_000)
    part, parts = 1, 1
    if "--slice" in sys.argv:
        part, parts = map(int, sys.argv[sys.argv.index("--slice") + 1].split("/"))
        size = -(-len(events) // parts)
        events = events[(part - 1) * size : part * size]
    with (
        running_cluster(choose_binaries()) as cluster,
        psycopg.connect(cluster.url(), autocommit=True) as raw,
    ):
        if is_ratio:
            raw.execute("alter system set fsync = on")
            raw.execute("select pg_reload_conf()")
        maker = DatabaseMaker(cluster, raw, "storm")
        maker.ensure_template()
        database = maker.create_migrated()
        if is_ratio:
            plain, event = anyio.run(lambda: ratio(database))
            sys.stdout.write(
                f"p50 of an enqueue {plain:.2f} ms, of an event with 3 of 1,000 triggers {event:.2f} ms: "
                f"{event / plain:.2f} times\n"
            )
            return
        began = time.monotonic()
        outcome = anyio.run(lambda: storm(database, events=events, triggers=1_000, seed=part))
    sys.stdout.write(f"{part}/{parts}: {outcome}, {time.monotonic() - began:.0f} s\n")
    sys.exit(outcome.wrong + outcome.unprocessed + abs(outcome.jobs - WANTED * outcome.events) > 0)


if __name__ == "__main__":
    main()
