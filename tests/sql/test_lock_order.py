"""Pairs of calls in flight on the same jobs: each pair ends, and never by a deadlock.

The first of a pair keeps its transaction open, the second is seen to wait or to be done; then the first commits.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from itertools import product
from time import monotonic, sleep

import psycopg
import pytest
from psycopg import sql

from tests.sql.acting import (
    API,
    ECHO,
    WORKER,
    Connection,
    Queue,
    Row,
    call,
    enter,
    fences,
    meanwhile,
)
from tests.sql.conftest import MakeQueue

Act = Callable[[Connection, list[Row]], object]


def as_caller(function: str, **named: object) -> Act:
    """Act on the first job of the lease."""

    def act(connection: Connection, claimed: list[Row]) -> object:
        enter(connection, "acme")
        return call(connection, function, "acme", claimed[0].job_id, **named)

    return act


def enqueue(connection: Connection, _: list[Row]) -> object:
    enter(connection, "acme")
    keys = [["i1", "i2"], ["o1", "o2"]]
    return call(connection, "enqueue_jobs", "acme", [ECHO] * 2, ["{}"] * 2, None, *keys)


def enqueue_crossed(connection: Connection, _: list[Row]) -> object:
    enter(connection, "acme")
    keys = [["i2", "i1"], ["o2", "o1"]]
    return call(connection, "enqueue_jobs", "acme", [ECHO] * 2, ["{}"] * 2, None, *keys)


def complete(connection: Connection, claimed: list[Row]) -> object:
    return call(connection, "complete_jobs", *fences(claimed), ["null"] * len(claimed))


def fail(connection: Connection, claimed: list[Row]) -> object:
    crossed = claimed[::-1]
    count = len(crossed)
    nothing = [None] * count
    return call(
        connection, "fail_jobs", *fences(crossed), ["permanent"] * count, nothing, nothing, nothing
    )


def release(connection: Connection, claimed: list[Row]) -> object:
    return call(connection, "release_jobs", *fences(claimed))


def report(connection: Connection, claimed: list[Row]) -> object:
    count = len(claimed)
    said = ([1.0] * count, [None] * count, [None] * count, [None] * count)
    return call(connection, "report_progress", *fences(claimed[::-1]), *said)


def heartbeat(connection: Connection, claimed: list[Row]) -> object:
    tenants, leases, *_ = fences(claimed)
    return call(connection, "heartbeat", "w1", tenants, leases)


def claim(connection: Connection, _: list[Row]) -> object:
    return call(connection, "claim_jobs", "w2", [ECHO], 10, reap=True)


CALLERS: dict[str, Act] = {
    "cancel": as_caller("cancel_job"),
    "enqueue": enqueue,
    "enqueue crossed": enqueue_crossed,
}
WORKERS: dict[str, Act] = {
    "complete": complete,
    "fail": fail,
    "release": release,
    "report": report,
    "heartbeat": heartbeat,
    "claim": claim,
}
ACTS = {**{name: (API, act) for name, act in CALLERS.items()}} | {
    name: (WORKER, act) for name, act in WORKERS.items()
}


def settle_down(queue: Queue, connection: Connection, future: Future[object]) -> None:
    """Wait until the second call waits for a lock or is done: until then it was not in flight."""
    pid = connection.info.backend_pid
    deadline = monotonic() + 60
    while monotonic() < deadline and not future.done():
        if queue.look("select 1 as one from pg_locks where pid = %s and not granted", pid):
            return
        sleep(0.002)
    assert future.done()


@pytest.mark.requirement("sql.lock-order")
def test_no_pair_of_calls_deadlocks(make_queue: MakeQueue) -> None:
    """Slower than a second: some eighty pairs."""
    arranging, first, second, looking = (make_queue() for _ in range(4))
    with second.acting(API) as api, second.acting(WORKER) as worker:
        connections = {API: api, WORKER: worker}

    for (name, (role, act)), (other_name, (other_role, other_act)) in product(
        ACTS.items(), repeat=2
    ):
        with arranging.acting("super") as connection:
            for table in ("leases", "ready", "waiting", "idempotency_keys", "ordering_keys"):
                connection.execute(sql.SQL("delete from jobforge.{}").format(sql.Identifier(table)))
        arranging.enqueue_many(4, ordering_keys=["o1", "o2", "o1", "o2"])
        claimed = arranging.claim(2)
        assert len(claimed) == 2

        def answer(
            role: str = other_role, act: Act = other_act, claimed: list[Row] = claimed
        ) -> object:
            with second.acting(role) as connection:
                return act(connection, claimed)

        with first.acting(role) as connection:
            act(connection, claimed)
            future = meanwhile(answer)
            settle_down(looking, connections[other_role], future)
        error = future.exception(10)

        state = getattr(error, "sqlstate", None)
        assert state in {None, "JF409"}, f"{name} before {other_name}: {error}"


@pytest.mark.parametrize("rounds", [5])
def test_crowds_of_calls_on_few_keys_never_deadlock(make_queue: MakeQueue, rounds: int) -> None:
    queues = [make_queue() for _ in range(6)]
    keys = ["o1", "o2", "o3"]

    def work(number: int) -> int:
        queue, done = queues[number], 0
        for turn in range(rounds):
            order = keys if (number + turn) % 2 else keys[::-1]
            ids = queue.enqueue_many(3, ordering_keys=order, idempotency_keys=[None] * 3)
            claimed = queue.claim(6, f"w{number}")
            if (number + turn) % 3 == 0:
                try:
                    queue.cancel(ids[0])
                except psycopg.Error as error:
                    if error.sqlstate != "JF409":  # another worker may have finished it
                        raise
            done += len(queue.complete(*claimed[::-1]))
        return done

    futures = [meanwhile(lambda number=number: work(number)) for number in range(6)]
    settled = sum(future.result(30) for future in futures)
    queues[0].tend()
    while claimed := queues[0].claim(50):
        settled += len(queues[0].complete(*claimed))

    rows = queues[0].look(
        """select count(*) as jobs, count(*) filter (where final_status is null) as open,
          count(*) filter (where final_status = 'canceled') as canceled from jobforge.jobs"""
    )
    assert (rows[0].jobs, rows[0].open) == (6 * rounds * 3, 0)
    assert settled >= rows[0].jobs - rows[0].canceled
    assert queues[0].look("select ordering_key from jobforge.ordering_keys") == []
