"""Measure what limits cost an enqueue: ``python -m tests.measure.limits_cost``.

One database, four tenants' ways to enqueue that take turns over one connection of ``jobforge_api``: without limits, with
limits of the token, with limits of the tenant and the job type, and with all. The server holds its data in memory; with
``--disk`` it flushes each commit, as it does for users, and a limit is then a smaller part of more.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg

from jobforge_mcp.db.migrate import migrate
from jobforge_mcp.router.jobs import ENQUEUE_JOBS
from jobforge_mcp.router.rows import job_arrays
from jobforge_mcp.router.scope import scope_arguments
from jobforge_mcp.types import Caller, CallOrigin, Limits, NewJob, TenantId
from tests.postgres import ADMIN, DatabaseMaker, choose_binaries, running_cluster

ROUNDS = 20
CALLS = 50
MOST = 1_000_000
ALL = {
    "rps": 1e6,
    "burst": MOST,
    "max_queued": MOST,
    "budget_jobs": MOST,
    "budget_units": MOST,
    "max_payload_bytes": MOST,
    "max_priority": 0,
}
OF_TOKEN = Limits(
    rps=1e6,
    burst=MOST,
    max_queued=MOST,
    budget_units=MOST,
    max_payload_bytes=MOST,
    max_priority=0,
)


@dataclass(slots=True)
class Way:
    """One way to enqueue, and the milliseconds of a call in each round."""

    name: str
    caller: Caller
    walls: list[float] = field(default_factory=list[float])

    def enqueue(self, connection: psycopg.Connection[Any]) -> None:
        """Commit one job as the router does."""
        job = NewJob("demo.echo", '{"text": "hello", "repeat": 3}', labels={"team": "a"})
        scope = scope_arguments(self.caller, CallOrigin("execute-job"))
        connection.execute(
            ENQUEUE_JOBS, [*scope, *job_arrays([job]), None, 30_000, False, *[None] * 4]
        )


def main() -> None:
    """Print the cost of each way next to none."""
    with (
        running_cluster(choose_binaries()) as cluster,
        psycopg.connect(cluster.url(), autocommit=True) as admin,
    ):
        if "--disk" in sys.argv:
            admin.execute("alter system set fsync = on")
            admin.execute("select pg_reload_conf()")
        database = DatabaseMaker(cluster, admin, "measure").create_empty()
        migrate(database.url(ADMIN))
        plain = Caller(TenantId("plain"), "agent", frozenset(), token_id="0193f7a2")
        held = replace(plain, tenant_id=TenantId("held"))
        rated = replace(plain, tenant_id=TenantId("rated"))
        ways = [
            Way("none", plain),
            Way("a tenant's rate and queue", rated),
            Way("the token's", replace(plain, tenant_id=TenantId("token"), limits=OF_TOKEN)),
            Way("the tenant's and the type's", held),
            Way("token, tenant and type", replace(held, limits=OF_TOKEN)),
        ]
        with psycopg.connect(database.url(), autocommit=True) as operator:
            for tenant, kind, name, limits in (
                ("held", "tenant", None, ALL),
                ("held", "type", "demo.echo", ALL),
                ("rated", "tenant", None, {"rps": 1e6, "burst": MOST, "max_queued": MOST}),
            ):
                operator.execute(
                    "select jobforge.set_limit(%s, %s, %s, %s)",
                    [tenant, kind, name, json.dumps(limits)],
                )
        with database.connect("jobforge_api", autocommit=True) as connection:
            connection.prepare_threshold = 1
            for number in range(ROUNDS + 1):
                for way in ways if number % 2 else reversed(ways):
                    way.walls.append(_timed(way.enqueue, connection))
    for way in ways:
        pairs = zip(ways[0].walls[1:], way.walls[1:], strict=True)
        more = statistics.median(limited / free for free, limited in pairs) - 1
        wall = statistics.median(way.walls[1:])
        sys.stdout.write(f"limits of {way.name}: {wall:.3f} ms, {more:+.1%}\n")


def _timed(
    enqueue: Callable[[psycopg.Connection[Any]], None], connection: psycopg.Connection[Any]
) -> float:
    began = time.perf_counter()
    for _ in range(CALLS):
        enqueue(connection)
    return (time.perf_counter() - began) * 1000 / CALLS


if __name__ == "__main__":
    main()
