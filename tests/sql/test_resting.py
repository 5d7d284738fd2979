"""How long an idle worker may rest: until the first thing is due that would not be announced to it."""

from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest

from tests.postgres import ScratchDatabase
from tests.sql.acting import ECHO, Queue, refused
from tests.sql.conftest import MakeQueue

POLL_MS = 100_000
REST_MS = 3_000_000
"""Minutes on purpose: whatever a slow machine takes is nothing beside them."""


def rest(queue: Queue, types: list[str] | None = None, *, tend: bool = True) -> int:
    """For how many milliseconds a worker is told to rest."""
    arguments = ["w1", types or [ECHO], None, 60_000, POLL_MS, REST_MS, tend]
    return queue.work("look_for_work", *arguments)[0].look_for_work


def test_who_knows_of_nothing_rests_long_and_is_woken_by_what_comes(
    make_queue: MakeQueue, database: ScratchDatabase
) -> None:
    queue = make_queue()
    assert rest(queue) == REST_MS

    with database.connect("jobforge_api") as connection:
        connection.execute("listen jobforge_ready")
        queue.enqueue()
        connection.execute("select 1")
        assert [note.channel for note in connection.notifies(timeout=60, stop_after=1)] == [
            "jobforge_ready"
        ]
    assert rest(queue) == 0


def test_a_job_of_another_type_or_of_a_paused_tenant_ends_no_rest(queue: Queue) -> None:
    queue.enqueue(job_type="other.job")
    queue.enqueue("paused")
    queue.ask("pause_queue", "paused", "tenant", None, None)

    assert rest(queue) == REST_MS
    assert rest(queue, ["other.job"]) == 0


def test_a_rest_ends_when_a_job_is_due(queue: Queue) -> None:
    queue.enqueue(run_at=queue.now() + timedelta(seconds=2_000))

    assert 1_000_000 < rest(queue) <= 2_000_000
    queue.advance(2_000)
    assert rest(queue) == 0


def test_while_a_lease_is_held_a_rest_is_one_poll_and_ends_with_the_lease(queue: Queue) -> None:
    queue.enqueue()
    claimed = queue.claim_one("w2", lease_ms=3_600_000)
    assert rest(queue) == POLL_MS

    queue.heartbeat(claimed, worker="w2", lease_ms=50_000)
    assert 0 < rest(queue) <= 50_000
    queue.advance(50)
    assert rest(queue) == 0

    queue.reap()
    assert rest(queue) == 0  # it is ready again


def test_a_job_whose_waking_was_lost_is_found_by_a_look_that_tends(queue: Queue) -> None:
    queue.enqueue()
    queue.look("delete from jobforge.lanes")

    assert rest(queue, tend=False) == REST_MS
    assert rest(queue) == 0


@pytest.mark.parametrize(
    ("seconds", "wakes"), [pytest.param(5, True, id="soon"), pytest.param(600, False, id="later")]
)
@pytest.mark.parametrize("is_bulk", [False, True])
def test_a_job_of_the_future_is_announced_where_a_rest_could_miss_it(
    make_queue: MakeQueue, database: ScratchDatabase, seconds: float, *, wakes: bool, is_bulk: bool
) -> None:
    queue = make_queue()
    rest(queue)
    with database.connect("jobforge_api") as connection:
        connection.execute("listen jobforge_ready")
        run_at = queue.now() + timedelta(seconds=seconds)
        if is_bulk:
            queue.enqueue_many(2, run_ats=[run_at, run_at])
        else:
            queue.enqueue(run_at=run_at)
        connection.execute("select 1")
        heard = list(connection.notifies(timeout=0))

    assert bool(heard) is wakes


@pytest.mark.parametrize("ms", [0, None, 3_600_001])
def test_a_rest_has_bounds(queue: Queue, ms: int | None) -> None:
    with refused("JF400"):
        queue.work("look_for_work", "w1", [ECHO], None, 1_000, ms, 1_000, True)
    with refused("JF400"):
        queue.work("look_for_work", "w1", [ECHO], None, 1_000, 1_000, ms, True)


def test_a_look_waits_for_nobody_who_holds_lanes(
    make_queue: MakeQueue, admin: psycopg.Connection
) -> None:
    queue = make_queue()
    for number in range(20):
        queue.enqueue(f"tenant-{number}")
    with admin.transaction():
        admin.execute("select from jobforge.lanes for update")

        assert rest(queue) == 0
