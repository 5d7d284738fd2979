"""Concurrency and rate limits of jobs, decided in the claim."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from tests.sql.acting import ECHO, Queue, Row, refused


def limits(**given: object) -> str:
    return json.dumps(given)


def at_once(most: int, key: str | None = None) -> str:
    return limits(concurrency={"limit": most, "key": key})


def per_second(count: int, key: str | None = None) -> str:
    return limits(rateLimit={"count": count, "periodMs": 1_000, "key": key})


def enqueue(queue: Queue, count: int, said: str, **named: Any) -> list[UUID]:
    return queue.enqueue_many(count, claim_limits=[said] * count, **named)


def ids(claimed: list[Row]) -> list[UUID]:
    return [row.job_id for row in claimed]


def parked(queue: Queue) -> int:
    return queue.look("select count(*) from jobforge.waiting where waiting_for = 'limit'")[0].count


def test_no_more_runs_of_a_key_start_than_its_limit(queue: Queue) -> None:
    jobs = enqueue(queue, 5, at_once(2, "a"))

    assert ids(queue.claim(10)) == jobs[:2]
    assert queue.claim(10) == []


def test_keys_have_slots_of_their_own(queue: Queue) -> None:
    first = enqueue(queue, 2, at_once(1, "a"))
    second = enqueue(queue, 2, at_once(1, "b"))

    assert ids(queue.claim(10)) == [first[0], second[0]]


def test_jobs_without_a_limit_pass_a_backlog_that_is_over_its_own(queue: Queue) -> None:
    enqueue(queue, 700, at_once(1, "a"))
    free = queue.enqueue().job_id

    assert ids(queue.claim(1)) != [free]
    assert ids(queue.claim(1)) == [free]


def test_a_job_over_its_limit_looks_queued_and_its_version_stays(queue: Queue) -> None:
    jobs = enqueue(queue, 2, at_once(1))
    before = queue.run(jobs[1])

    queue.claim(10)

    assert queue.place(jobs[1]) == ["waiting"]
    assert queue.run(jobs[1]) == before
    assert (before.status, before.waiting_for) == ("queued", None)
    assert [row.job_id for row in queue.ask("list_runs", "acme", status="queued")] == [jobs[1]]
    assert queue.ask("list_runs", "acme", status="waiting") == []
    (stats,) = queue.ask("queue_stats", "acme")
    assert (stats.queued, stats.due, stats.running, stats.waiting) == (1, 1, 1, 0)


@pytest.mark.parametrize("ending", ["complete", "fail", "release"])
def test_a_settle_lets_the_next_of_the_key_follow(queue: Queue, ending: str) -> None:
    jobs = enqueue(queue, 3, at_once(1))
    (first,) = queue.claim(10)

    getattr(queue, ending)(first)

    assert ids(queue.claim(10)) == [jobs[0] if ending == "release" else jobs[1]]
    assert queue.claim(10) == []


def test_the_slot_of_a_lost_worker_is_free_again(queue: Queue) -> None:
    jobs = enqueue(queue, 2, at_once(1))
    queue.claim(10)

    queue.lose_worker()

    assert len(queue.claim(10, worker="w2")) == 1
    assert queue.claim(10, worker="w2") == []
    assert {queue.status(job) for job in jobs} == {"queued", "running"}


def test_suspects_obey_their_limit(queue: Queue) -> None:
    enqueue(queue, 2, at_once(2))
    queue.claim(10)
    queue.lose_worker()  # together: both are suspects now, which are claimed alone
    enqueue(queue, 1, at_once(2), priorities=[0])
    (urgent,) = queue.claim(1, worker="w2")[:1]

    claimed = [*queue.claim(1, worker="w3"), *queue.claim(1, worker="w4")]

    assert urgent.epoch in (1, 2)
    assert len(claimed) == 1


def test_parked_jobs_come_back_by_priority_and_then_by_age(queue: Queue) -> None:
    jobs = enqueue(queue, 3, at_once(1), priorities=[1, 3, 2])
    (running,) = queue.claim(10)

    order: list[UUID] = []
    for _ in range(2):
        queue.complete(running)
        (running,) = queue.claim(10)
        order.append(running.job_id)

    assert order == [jobs[2], jobs[1]]


def test_a_canceled_job_passes_its_turn_on(queue: Queue) -> None:
    jobs = enqueue(queue, 3, at_once(1))
    (first,) = queue.claim(10)
    queue.complete(first)
    assert queue.place(jobs[1]) == ["ready"]

    queue.cancel(jobs[1])

    assert ids(queue.claim(10)) == [jobs[2]]


def test_a_parked_job_can_be_canceled(queue: Queue) -> None:
    jobs = enqueue(queue, 2, at_once(1))
    queue.claim(10)

    assert queue.cancel(jobs[1]).status == "canceled"
    assert queue.place(jobs[1]) == []


def test_a_retry_stands_under_the_limit_again(queue: Queue) -> None:
    jobs = enqueue(queue, 2, at_once(1))
    (first,) = queue.claim(10)
    queue.fail(first, kind="permanent")
    queue.claim(10)

    queue.retry(jobs[0])

    assert queue.claim(10) == []


@pytest.mark.parametrize(("before", "after", "started"), [(1, 3, 3), (3, 1, 1)])
def test_a_new_limit_holds_for_older_jobs_of_the_key_too(
    queue: Queue, before: int, after: int, started: int
) -> None:
    old = enqueue(queue, 3, at_once(before))
    enqueue(queue, 3, at_once(after))

    assert ids(queue.claim(10)) == old[:started]


def test_a_raised_limit_lets_those_start_that_were_held_back_by_the_old_one(queue: Queue) -> None:
    old = enqueue(queue, 3, at_once(1))
    queue.claim(10)
    new = enqueue(queue, 1, at_once(3))

    claimed = ids(queue.claim(10))
    queue.tend()

    assert [*claimed, *ids(queue.claim(10))] == [*new, old[1]]


def test_a_job_that_is_not_due_holds_no_slot(queue: Queue) -> None:
    jobs = enqueue(queue, 2, at_once(1), run_ats=[None, None])
    later = enqueue(
        queue,
        1,
        at_once(1),
        run_ats=[queue.look("select jobforge.now() + interval '1 h' as at")[0].at],
    )

    assert ids(queue.claim(10)) == jobs[:1]
    assert queue.place(later[0]) == ["ready"]


def test_counters_are_forgotten_when_nothing_needs_them(queue: Queue) -> None:
    enqueue(queue, 2, at_once(1, "a"))
    enqueue(queue, 1, per_second(5, "a"))
    for _ in range(2):
        queue.complete(*queue.claim(10))

    queue.advance(2)
    queue.tend()

    assert queue.look("select counter from jobforge.claim_counters") == []


def test_a_rate_is_never_exceeded_within_any_period(queue: Queue) -> None:
    enqueue(queue, 10, per_second(3))
    starts: list[datetime] = []
    for _ in range(60):
        claimed = queue.claim(10)
        starts += [row.claimed_at for row in claimed]
        if claimed:
            queue.complete(*claimed)
        queue.advance(0.1)

    assert len(starts) == 10
    gaps = [later - earlier for earlier, later in zip(starts, starts[3:], strict=False)]
    assert min(gaps) >= timedelta(seconds=1)


def test_a_run_over_its_rate_goes_on_when_there_is_room(queue: Queue) -> None:
    jobs = enqueue(queue, 2, per_second(1))
    queue.register()
    assert ids(queue.claim(10)) == jobs[:1]
    cause = queue.explain(jobs[1])
    assert (cause.cause, cause.until_at > queue.now()) == ("rate_limited", True)

    queue.advance(1.1)

    assert ids(queue.claim(10)) == jobs[1:]


def test_a_slot_is_not_kept_by_a_job_that_its_rate_holds_back(queue: Queue) -> None:
    def both(rate: str) -> str:
        return limits(
            concurrency={"limit": 1, "key": "x"},
            rateLimit={"count": 1, "periodMs": 60_000, "key": rate},
        )

    first = enqueue(queue, 2, both("a"))
    other = enqueue(queue, 1, both("b"))
    running = queue.claim(10)
    assert ids(running) == first[:1]
    queue.complete(*running)

    assert ids(queue.claim(10)) == other
    assert queue.place(first[1]) == ["waiting"]


def test_explain_names_the_limit_and_who_holds_it(queue: Queue) -> None:
    queue.register()
    jobs = enqueue(queue, 2, at_once(1, "customer 7"))
    queue.claim(10)

    cause = queue.explain(jobs[1])

    assert (cause.cause, cause.blocked_by) == ("limit_reached", jobs[0])
    assert (
        cause.message
        == f"At most 1 runs of {ECHO} with the key customer 7 may run at once, and 1 do."
    )


def test_an_inline_call_does_not_pass_a_limit(queue: Queue) -> None:
    (row,) = queue.ask(
        "enqueue_jobs", "acme", [ECHO], ["{}"], worker_id="w1", claim_limits=[at_once(1)]
    )

    assert row.lease_id is None


@pytest.mark.parametrize(
    "bad",
    [
        limits(concurrency={"limit": 0}),
        limits(concurrency={}),
        limits(rateLimit={"count": 1, "periodMs": 99}),
        limits(concurrency={"limit": 1, "key": "x" * 256}),
    ],
)
def test_limits_out_of_range_are_refused(queue: Queue, bad: str) -> None:
    with refused("JF400"):
        enqueue(queue, 1, bad)


@pytest.mark.requirement("sql.concurrency-goes-on")
def test_a_slot_that_nobody_uses_is_found_by_tending(queue: Queue) -> None:
    jobs = enqueue(queue, 3, at_once(1))
    queue.claim(10)
    queue.look("delete from jobforge.leases")
    queue.look("update jobforge.claim_counters set running = 0")

    queue.tend()

    assert ids(queue.claim(10)) == [jobs[1]]


def test_a_parked_job_without_its_counter_is_found_by_a_whole_look(queue: Queue) -> None:
    jobs = enqueue(queue, 2, at_once(1))
    enqueue(queue, 2, at_once(1, "b"))
    queue.claim(10)
    queue.look("delete from jobforge.leases")
    queue.look("delete from jobforge.claim_counters where counter = 'slot:demo.echo:'")

    queue.look("select jobforge.tend_limits(true)")

    assert ids(queue.claim(10)) == jobs[1:]


def test_other_tenants_do_not_share_a_key(queue: Queue) -> None:
    enqueue(queue, 1, at_once(1))
    enqueue(queue, 1, at_once(1), tenant="zeta")

    assert len(queue.claim(10)) == 2
