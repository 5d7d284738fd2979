"""Thirty-two workers at once against limits of jobs: no instant sees more runs of a key than may be, and all of them end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Barrier
from time import monotonic, sleep
from typing import Any, Final

import psycopg
import pytest

from tests.postgres import ScratchDatabase

WORKERS: Final = 32
ECHO: Final = "demo.echo"
KEYS: Final = ("a", "b", "c", "d")
PATIENCE: Final = 300
Connection = psycopg.Connection[Any]


@pytest.fixture
def workers(database: ScratchDatabase) -> Generator[list[Connection]]:
    with ExitStack() as opened:
        yield [
            opened.enter_context(database.connect("jobforge_worker", autocommit=True))
            for _ in range(WORKERS)
        ]


def enqueue(admin: Connection, said: list[str | None]) -> None:
    count = len(said)
    admin.execute(
        """select from jobforge.enter_scope('acme', 'tester') as s(tenant_id),
          lateral jobforge.enqueue_jobs(s.tenant_id, %s::text[], %s::text[], p_claim_limits => %s::text[]) e""",
        [[ECHO] * count, ["{}"] * count, said],
    )


def claim(worker: Connection, number: int, limit: int) -> list[tuple[Any, ...]]:
    return worker.execute(
        "select tenant_id, lease_id, job_id, epoch from jobforge.claim_jobs(%s, %s, %s)",
        [f"w{number}", [ECHO], limit],
    ).fetchall()


def settle(worker: Connection, number: int, claimed: list[tuple[Any, ...]]) -> None:
    columns = [list(column) for column in zip(*claimed, strict=True)]
    if number % 3:
        worker.execute(
            "select from jobforge.complete_jobs(%s, %s, %s, %s, %s)",
            [*columns, ["null"] * len(claimed)],
        )
    else:  # the other way out of a lease
        worker.execute("select from jobforge.release_jobs(%s, %s, %s, %s)", columns)


def held(admin: Connection) -> Counter[str]:
    """Count what leases hold by key, from one snapshot, whatever the counters say."""
    rows = admin.execute(
        """select j.slot_key, count(*) from jobforge.leases l cross join lateral unnest(l.job_ids) h(id)
        join jobforge.jobs j on j.tenant_id = l.tenant_id and j.id = h.id
        where j.slot_key is not null group by 1"""
    ).fetchall()
    return Counter({str(key).rsplit(":", 1)[1]: int(count) for key, count in rows})


def is_open(admin: Connection) -> bool:
    row = admin.execute(
        "select exists (select from jobforge.jobs where final_status is null)"
    ).fetchone()
    assert row is not None
    return bool(row[0])


@pytest.mark.timeout(700)
@pytest.mark.requirement("sql.concurrency", "sql.concurrency-goes-on")
@pytest.mark.parametrize("limit", [1, 3])
def test_no_key_ever_has_more_runs_than_its_limit_and_none_is_forgotten(
    admin: Connection, workers: list[Connection], limit: int
) -> None:
    said = [
        json.dumps({"concurrency": {"limit": limit, "key": KEYS[number % len(KEYS)]}})
        for number in range(240)
    ]
    enqueue(admin, [*said, *[None] * 60])
    barrier = Barrier(WORKERS + 1)
    until = monotonic() + PATIENCE
    is_done = False

    def work(number: int) -> None:
        barrier.wait(30)
        while not is_done and monotonic() < until:
            claimed = claim(workers[number], number, 1 + number % 5)
            if claimed:
                settle(workers[number], number, claimed)
            elif number == 0:
                workers[number].execute("select from jobforge.tend_lanes()")
            else:
                sleep(0.005)

    most: Counter[str] = Counter()
    with ThreadPoolExecutor(WORKERS) as threads:
        running = [threads.submit(work, number) for number in range(WORKERS)]
        barrier.wait(30)
        while monotonic() < until and is_open(admin) and not any(each.done() for each in running):
            most |= held(admin)
        is_done = True
        for each in running:
            each.result(PATIENCE)

    assert not is_open(admin)
    assert max(most.values()) <= limit
    assert admin.execute(
        "select count(*) from jobforge.claim_counters where running <> 0"
    ).fetchone() == (0,)


@pytest.mark.requirement("sql.start-rate")
def test_no_period_sees_more_starts_than_its_rate(
    admin: Connection, workers: list[Connection]
) -> None:
    period_ms, count = 500, 20
    limit = json.dumps({"rateLimit": {"count": count, "periodMs": period_ms}})
    enqueue(admin, [limit] * 100)
    barrier = Barrier(WORKERS)
    until = monotonic() + PATIENCE

    def work(number: int) -> None:
        barrier.wait(30)
        while monotonic() < until and is_open(workers_admin[number % 4]):
            if claimed := claim(workers[number], number, 5):
                columns = [list(column) for column in zip(*claimed, strict=True)]
                workers[number].execute(
                    "select from jobforge.complete_jobs(%s, %s, %s, %s, %s)",
                    [*columns, ["null"] * len(claimed)],
                )
            sleep(0.01)

    workers_admin = [admin] * 4
    with ThreadPoolExecutor(WORKERS) as threads:
        for each in [threads.submit(work, number) for number in range(WORKERS)]:
            each.result(PATIENCE)

    rows = admin.execute(
        "select extract(epoch from started_at) from jobforge.jobs order by started_at"
    ).fetchall()
    starts = [float(row[0]) for row in rows]
    assert len(starts) == 100
    gaps = [later - earlier for earlier, later in zip(starts, starts[count:], strict=False)]
    assert min(gaps) >= period_ms / 1_000
