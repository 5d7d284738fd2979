"""Measure what signing the scope costs a real call: ``python -m tests.measure.scope_cost``.

Two databases of one server, alike but for a key that is enforced in one, take turns at the router's own statements, over
a connection of ``jobforge_api`` each. The server holds its data in memory and flushes nothing, so what is compared is
work and not waiting: on a disk the same difference is a smaller part.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString

import psycopg

from jobforge_mcp.db.context import ContextSigner, create_key, enforce_keys
from jobforge_mcp.db.migrate import migrate
from jobforge_mcp.router.jobs import ENQUEUE_JOBS
from jobforge_mcp.router.rows import job_arrays
from jobforge_mcp.router.scope import SCOPE, scope_arguments
from jobforge_mcp.router.scoped import NO_ORIGIN
from jobforge_mcp.types import Caller, NewJob, TenantId
from tests.postgres import ADMIN, DatabaseMaker, choose_binaries, running_cluster

ROUNDS = 60
CALLS = 50
CALLER = Caller(TenantId("acme"), "agent", frozenset(), token_id="0193f7a2")
GET_RUN: LiteralString = (
    f"select r.job_id from {SCOPE}, lateral jobforge.get_run(s.tenant_id, %s) r"
)
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Side:
    """One of the two databases, and what its calls took."""

    connection: psycopg.Connection[Any]
    signer: ContextSigner | None
    walls: list[float] = field(default_factory=list[float])
    """Milliseconds of a call, one mean for each round."""
    ticks: int = 0
    """Of the backend's processor time."""
    run_id: object = None

    def enqueue(self) -> None:
        """Commit one job as the router does."""
        job = NewJob("demo.echo", '{"text": "hello", "repeat": 3}', labels={"team": "a"})
        arguments = [*scope_arguments(CALLER, NO_ORIGIN, self.signer), *job_arrays([job])]
        row = self.connection.execute(
            ENQUEUE_JOBS, [*arguments, None, 30_000, False, *[None] * 4]
        ).fetchone()
        assert row is not None
        self.run_id = row[1]

    def read(self) -> None:
        """Read the run of the last enqueue."""
        arguments = [*scope_arguments(CALLER, NO_ORIGIN, self.signer), self.run_id]
        self.connection.execute(GET_RUN, arguments).fetchall()

    def take_turn(self, call: Callable[[], None]) -> None:
        """Call some times in a row."""
        pid = self.connection.info.backend_pid
        before, began = _ticks(pid), time.perf_counter()
        for _ in range(CALLS):
            call()
        self.walls.append((time.perf_counter() - began) * 1000 / CALLS)
        self.ticks += _ticks(pid) - before


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def main() -> None:
    """Print the cost of an enqueue and of a read."""
    with (
        running_cluster(choose_binaries()) as cluster,
        psycopg.connect(cluster.url(), autocommit=True) as admin,
    ):
        maker = DatabaseMaker(cluster, admin, "measure")
        plain, strict = maker.create_empty(), maker.create_empty()
        for database in (plain, strict):
            migrate(database.url(ADMIN))
        key = create_key(strict.url(ADMIN))
        enforce_keys(strict.url(ADMIN))
        sides = [
            Side(database.connect("jobforge_api"), signer)
            for database, signer in ((plain, None), (strict, ContextSigner(key)))
        ]
        for side in sides:
            side.connection.prepare_threshold = 1
        for name in ("enqueue", "read"):
            _compare(name, sides)
        for side in sides:
            side.connection.close()


def _compare(name: str, sides: list[Side]) -> None:
    for side in sides:
        call = side.enqueue if name == "enqueue" else side.read
        for _ in range(CALLS):
            call()
        side.walls.clear()
        side.ticks = 0
    for number in range(ROUNDS):
        for side in sides if number % 2 else reversed(sides):
            side.take_turn(side.enqueue if name == "enqueue" else side.read)
    off, on = (statistics.median(side.walls) for side in sides)
    cpu_off, cpu_on = (side.ticks * 1000 / TICKS / ROUNDS / CALLS for side in sides)
    more = (
        statistics.median(
            strict / plain for plain, strict in zip(sides[0].walls, sides[1].walls, strict=True)
        )
        - 1
    )
    sys.stdout.write(
        f"{name}: unsigned {off:.3f} ms, signed {on:.3f} ms, {more:+.1%} (median of {ROUNDS} pairs of {CALLS});"
        f" backend's processor {cpu_off:.3f} ms, {cpu_on:.3f} ms, {cpu_on / cpu_off - 1:+.1%}\n"
    )


if __name__ == "__main__":
    main()
