"""Thirty-two callers at once against a limit of N: N pass, whichever limit it is, and nobody deadlocks."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Barrier
from typing import Any, Final

import psycopg
import pytest

from tests.postgres import ScratchDatabase

CALLERS: Final = 32
ROUNDS: Final = 3
ECHO: Final = "demo.echo"
Connections = list[psycopg.Connection[Any]]
Act = Callable[[psycopg.Connection[Any], int], str | None]


@pytest.fixture
def callers(database: ScratchDatabase) -> Generator[Connections]:
    with ExitStack() as opened:
        yield [
            opened.enter_context(database.connect("jobforge_api", autocommit=True))
            for _ in range(CALLERS)
        ]


@pytest.fixture
def workers(database: ScratchDatabase) -> Generator[Connections]:
    with ExitStack() as opened:
        yield [
            opened.enter_context(database.connect("jobforge_worker", autocommit=True))
            for _ in range(CALLERS)
        ]


def set_limit(
    admin: psycopg.Connection[Any], kind: str, name: str | None, limits: dict[str, Any]
) -> None:
    admin.execute("select jobforge.set_limit('acme', %s, %s, %s)", [kind, name, json.dumps(limits)])


def enqueue(claims: dict[str, Any] | None, count: int = 1, key: str | None = None) -> Act:
    """Enqueue as the holder of these claims; answers the code of the refusal, if there was one."""
    said = None if claims is None else json.dumps(claims)

    def act(connection: psycopg.Connection[Any], number: int) -> str | None:
        return refusal(
            connection,
            """select e.outcome
            from jobforge.enter_scope('acme', 'a', 't1', 'execute-job', null, %s) as s(tenant_id),
            lateral jobforge.enqueue_jobs(s.tenant_id, %s, %s, null, %s) e""",
            [
                said,
                [ECHO, "other.type"][: min(count, 2)] + [ECHO] * (count - 2),
                ["{}"] * count,
                None if key is None else [f"{key}{number}-{n}" for n in range(count)],
            ],
        )

    return act


def refusal(connection: psycopg.Connection[Any], query: str, parameters: list[Any]) -> str | None:
    try:
        connection.execute(query.encode(), parameters).fetchall()
    except psycopg.Error as error:
        if error.sqlstate != "JF429":
            raise
        return str(json.loads(error.diag.message_detail or "{}")["code"])
    return None


def all_at_once(connections: Connections, act: Act) -> list[str | None]:
    barrier = Barrier(len(connections))

    def run(number: int) -> str | None:
        barrier.wait(10)
        return act(connections[number], number)

    with ThreadPoolExecutor(len(connections)) as threads:
        return list(threads.map(run, range(len(connections))))


def clear(admin: psycopg.Connection[Any]) -> None:
    admin.execute(
        """truncate jobforge.jobs, jobforge.ready, jobforge.waiting, jobforge.leases,
        jobforge.limited_jobs, jobforge.idempotency_keys,
        jobforge.run_progress, jobforge.job_attempts, jobforge.run_logs cascade"""
    )
    admin.execute(
        """with forgotten as (delete from jobforge.limit_usage where counter ~ '^(token|run):')
        update jobforge.limit_usage set jobs = 0, units = 0, permits = null, open_ceiling = null, counted_at = null"""
    )


def count(admin: psycopg.Connection[Any]) -> int:
    row = admin.execute("select count(*) from jobforge.jobs").fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize("by", ["tenant", "type", "tool", "token"])
@pytest.mark.parametrize(
    "limits",
    [
        {"rps": 0.0001, "burst": 7},
        {"max_queued": 7},
        {"budget_jobs": 7},
        {"budget_units": 7},
    ],
    ids=["rate", "queued", "jobs", "units"],
)
def test_no_more_pass_than_may(
    admin: psycopg.Connection[Any], callers: Connections, by: str, limits: dict[str, Any]
) -> None:
    claims = {"jti": "t1", "limits": limits} if by == "token" else None
    if claims is None:
        set_limit(admin, by, {"type": ECHO, "tool": "execute-job"}.get(by), limits)
    for number in range(ROUNDS):
        clear(admin)
        # a key of each caller's own is another way through the same check
        act = enqueue(claims, key=None if number % 2 else f"round{number}-")

        answers = all_at_once(callers, act)

        assert (answers.count(None), count(admin)) == (7, 7)
        assert len(set(answers)) == 2


def test_all_limits_at_once_do_not_deadlock(
    admin: psycopg.Connection[Any], callers: Connections
) -> None:
    most = {"rps": 0.0001, "burst": 40, "max_queued": 40, "budget_jobs": 40, "budget_units": 40}
    for kind, name in (
        ("tenant", None),
        ("type", ECHO),
        ("type", "other.type"),
        ("tool", "execute-job"),
    ):
        set_limit(admin, kind, name, most)
    both = enqueue({"jti": "t1", "limits": most}, count=3)
    for _ in range(ROUNDS):
        clear(admin)

        answers = all_at_once(callers, both)

        assert (answers.count(None), count(admin)) == (13, 39)


@pytest.mark.parametrize("by", ["tenant", "type", "token"])
def test_no_more_run_than_may(
    admin: psycopg.Connection[Any],
    callers: Connections,
    workers: Connections,
    by: str,
) -> None:
    claims = {"jti": "t1", "limits": {"max_running": 7}} if by == "token" else None
    if claims is None:
        set_limit(admin, by, ECHO if by == "type" else None, {"max_running": 7})
    for _ in range(ROUNDS):
        clear(admin)
        all_at_once(callers, enqueue(claims))

        def claim(connection: psycopg.Connection[Any], number: int) -> str | None:
            for _ in range(5):
                connection.execute(
                    "select job_id from jobforge.claim_jobs(%s, %s, 3)", [f"w{number}", [ECHO]]
                ).fetchall()
            return None

        admin.execute("select jobforge.tend_lanes()")
        all_at_once(workers, claim)
        claim(workers[0], 0)  # those at once may all have passed over a tenant at which another was

        row = admin.execute("select sum(cardinality(job_ids)) from jobforge.leases").fetchone()
        assert row == (7,)


def test_no_more_children_than_may(
    admin: psycopg.Connection[Any], callers: Connections, workers: Connections
) -> None:
    claims = {"jti": "t1", "limits": {"max_children": 7, "max_queued": 100}}
    for _ in range(ROUNDS):
        clear(admin)
        assert enqueue(claims)(callers[0], 0) is None
        admin.execute("select jobforge.tend_lanes()")
        row = (
            workers[0]
            .execute(
                "select tenant_id, lease_id, job_id, epoch from jobforge.claim_jobs('w', %s, 1)",
                [[ECHO]],
            )
            .fetchone()
        )
        assert row is not None
        parent = list(row)

        def spawn(
            connection: psycopg.Connection[Any], child: int, parent: list[Any] = parent
        ) -> str | None:
            return refusal(
                connection,
                """select * from jobforge.enqueue_child(%s, %s, %s, %s, %s, '{}', null, %s, null, 2, null, null, '1', 3,
                  0, 1, 0, 1000)""",
                [*parent, ECHO, f"{parent[2]}:{child}"],
            )

        answers = all_at_once(workers, spawn)

        assert answers.count(None) == 7
        assert count(admin) == 8
        assert all_at_once(workers, spawn).count(None) == 7  # the seven replays
