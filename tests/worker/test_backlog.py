from __future__ import annotations

import time
from itertools import groupby

import psycopg
import pytest

from jobforge_mcp.types import CallOrigin, NewJob, RunStatus
from jobforge_mcp.worker import backlog
from jobforge_mcp.worker.backlog import AHEAD_SECONDS, MAX_AHEAD, TURN, Backlog
from tests.worker.conftest import Desk, PoolMaker, eventually
from tests.worker.test_runners import an_attempt


def at_pace(seconds: float, slots: int = 10) -> Backlog:
    made = Backlog(slots)
    for _ in range(300):
        made.note_end(time.monotonic() - seconds)
    return made


def test_nothing_is_fetched_ahead_before_a_job_has_ended() -> None:
    assert Backlog(10).room_when_empty == 0


@pytest.mark.parametrize("seconds", [AHEAD_SECONDS * 11, 5.0])
def test_nothing_is_fetched_ahead_of_long_jobs(seconds: float) -> None:
    assert at_pace(seconds).room_when_empty == 0


def test_as_much_is_fetched_ahead_as_the_slots_work_off_in_a_moment() -> None:
    assert at_pace(1e-5).room_when_empty == MAX_AHEAD
    assert 45 <= at_pace(AHEAD_SECONDS / 5).room_when_empty <= 50


def test_one_long_job_ends_the_fetching_ahead_at_once() -> None:
    quick = at_pace(1e-5)

    quick.note_end(time.monotonic() - 5.0)

    assert quick.room_when_empty == 0


def test_slots_that_stand_still_end_it_as_well() -> None:
    quick = at_pace(1e-5)

    time.sleep(0.15)

    assert quick.room_when_empty == 0


def test_what_waits_too_long_is_named_and_slows_the_pace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick = at_pace(1e-5)
    early, late = an_attempt(), an_attempt()
    early.received_at -= 1
    quick.put(early)
    quick.put(late)

    assert quick.overdue() == [early]
    assert quick.room_when_empty <= 1


def test_who_comes_later_waits_for_a_turn_of_the_others_and_not_for_all_they_have() -> None:
    waiting = Backlog(10)
    for tenant, count in (("large", 4 * TURN), ("small", 10), ("large", TURN), ("other", 2)):
        for _ in range(count):
            waiting.put(an_attempt(tenant_id=tenant))

    order = [waiting.pop().lease.tenant_id for _ in range(len(waiting))]

    turns = [(tenant, len(list(group))) for tenant, group in groupby(order)]
    assert turns == [("large", TURN), ("small", 10), ("other", 2), ("large", 4 * TURN)]
    assert not waiting


def test_jobs_of_one_tenant_keep_their_order_and_any_can_be_taken_out() -> None:
    waiting = Backlog(10)
    attempts = [an_attempt(tenant_id=tenant) for tenant in ("one", "one", "two", "one", "three")]
    for attempt in attempts:
        waiting.put(attempt)

    waiting.remove(attempts[1])
    waiting.remove(attempts[2])

    assert attempts[1] not in waiting
    assert attempts[2] not in waiting
    assert set(waiting.all()) == {attempts[0], attempts[3], attempts[4]}
    assert len(waiting) == 3
    assert [waiting.pop() for _ in range(3)] == [attempts[0], attempts[3], attempts[4]]


async def test_jobs_fetched_ahead_of_slots_that_stay_taken_are_given_back_uncharged(
    desk: Desk,
    make_pool: PoolMaker,
    admin: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backlog, "LONGEST_WAIT_SECONDS", 0.2)
    async with make_pool(worker_concurrency=1, poll_ms=60_000) as pool:
        # Make the worker believe that its jobs are short.
        quick = [NewJob("echo", '{"number": 1}') for _ in range(200)]
        made = await desk.router.enqueue_jobs(desk.caller, quick, origin=CallOrigin("test"))
        long = [NewJob("sleep", "{}") for _ in range(40)]
        last = await desk.router.enqueue_jobs(desk.caller, long, origin=CallOrigin("test"))
        for enqueued in made:
            await desk.until_final(enqueued.job_id)
        await eventually(lambda: pool.running == 1)

        async def one_is_held() -> bool:
            row = admin.execute(
                "select coalesce(sum(cardinality(job_ids)), 0) from jobforge.leases"
            ).fetchone()
            return row == (1,)

        await eventually(one_is_held)
        runs = [await desk.router.get_run(desk.caller, each.job_id) for each in last]

    assert [run.status for run in runs].count(RunStatus.RUNNING) == 1
    assert [run.status for run in runs].count(RunStatus.QUEUED) == 39
    assert {run.attempt_no for run in runs if run.status is RunStatus.QUEUED} <= {0}


async def test_a_drain_gives_back_what_was_fetched_ahead(
    desk: Desk, make_pool: PoolMaker, admin: psycopg.Connection
) -> None:
    async with make_pool(worker_concurrency=1, drain_grace_seconds=0):
        quick = [NewJob("echo", '{"number": 1}') for _ in range(2_000)]
        made = await desk.router.enqueue_jobs(desk.caller, quick, origin=CallOrigin("test"))
        await desk.until_final(made[0].job_id)

    held = admin.execute("select count(*) from jobforge.leases").fetchone()
    done, open_ = admin.execute(
        "select count(*) filter (where final_status = 'succeeded'), count(*) filter (where final_status is null) from jobforge.jobs"
    ).fetchone() or (0, 0)
    ready = admin.execute("select count(*) from jobforge.ready").fetchone()
    assert held == (0,)
    assert done + open_ == 2_000
    assert ready == (open_,)
