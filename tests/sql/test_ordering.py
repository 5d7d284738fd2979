"""Ordering keys: one at a time, in the order in which enqueues committed."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest

from tests.sql.acting import (
    API,
    ECHO,
    SUPERUSER,
    WORKER,
    Queue,
    Row,
    call,
    enter,
    fences,
    meanwhile,
    wait_until_blocked,
)
from tests.sql.conftest import MakeQueue


def drain(queue: Queue) -> list[UUID]:
    """Claim and complete until nothing is left; tell in which order jobs started."""
    started: list[UUID] = []
    queue.tend()
    while claimed := queue.claim(10):
        started += [row.job_id for row in claimed]
        queue.complete(*claimed)
    return started


def keys(queue: Queue) -> list[Row]:
    return queue.look("select ordering_key, head_job_id from jobforge.ordering_keys order by 1")


def test_at_most_one_job_of_a_key_is_claimed(queue: Queue) -> None:
    first, second = (queue.enqueue(ordering_key="k").job_id for _ in range(2))

    claimed = queue.claim(10)

    assert [row.job_id for row in claimed] == [first]
    assert (queue.status(second), queue.run(second).waiting_for) == ("waiting", "turn")


def test_jobs_of_a_key_start_in_the_order_of_their_enqueues(queue: Queue) -> None:
    ids = [queue.enqueue(ordering_key="k").job_id for _ in range(5)]

    assert drain(queue) == ids


def test_jobs_of_a_key_enqueued_in_bulk_start_in_the_order_of_the_call(queue: Queue) -> None:
    first = queue.enqueue(ordering_key="k").job_id
    more = queue.enqueue_many(4, ordering_keys=["k"] * 4)
    last = queue.enqueue(ordering_key="k").job_id

    assert drain(queue) == [first, *more, last]


def test_a_bulk_call_may_mix_keys_and_jobs_without_one(queue: Queue) -> None:
    ids = queue.enqueue_many(5, ordering_keys=["a", None, "b", "a", None])

    assert [queue.status(job_id) for job_id in ids] == [
        "queued",
        "queued",
        "queued",
        "waiting",
        "queued",
    ]
    assert set(drain(queue)) == set(ids)


def test_the_turn_beats_the_priority_inside_a_key(queue: Queue) -> None:
    calm = queue.enqueue(ordering_key="k", priority=3).job_id
    urgent = queue.enqueue(ordering_key="k", priority=0).job_id

    assert drain(queue) == [calm, urgent]


def test_keys_do_not_wait_for_each_other_or_for_other_tenants(queue: Queue) -> None:
    queue.enqueue("acme", ordering_key="a")
    queue.enqueue("acme", ordering_key="b")
    queue.enqueue("globex", ordering_key="a")

    assert len(queue.claim(10)) == 3


def test_a_retry_blocks_its_key(queue: Queue) -> None:
    first = queue.enqueue(ordering_key="k", backoff_ms=60_000).job_id
    second = queue.enqueue(ordering_key="k").job_id
    queue.fail(queue.claim_one())

    blocked = queue.claim(10)
    queue.advance(80)

    assert blocked == []
    assert drain(queue) == [first, second]


@pytest.mark.parametrize("kind", ["deferred", "released", "lost"])
def test_a_head_that_did_not_end_keeps_its_place(queue: Queue, kind: str) -> None:
    first = queue.enqueue(ordering_key="k").job_id
    second = queue.enqueue(ordering_key="k").job_id
    claimed = queue.claim_one()
    if kind == "deferred":
        queue.fail(claimed, kind="deferred")
    elif kind == "released":
        queue.release(claimed)
    else:
        queue.lose_worker()

    assert drain(queue) == [first, second]


@pytest.mark.parametrize("kind", ["failed", "permanent", "timed_out"])
def test_a_head_that_ended_badly_lets_the_next_go(queue: Queue, kind: str) -> None:
    queue.enqueue(ordering_key="k", max_attempts=1)
    second = queue.enqueue(ordering_key="k").job_id
    queue.fail(queue.claim_one(), kind=kind)

    assert drain(queue) == [second]


def test_a_head_that_died_with_its_worker_lets_the_next_go(queue: Queue) -> None:
    queue.enqueue(ordering_key="k", max_attempts=1)
    second = queue.enqueue(ordering_key="k").job_id
    queue.claim_one()
    queue.lose_worker()

    assert drain(queue) == [second]


def test_a_head_due_later_blocks_its_key(queue: Queue) -> None:
    queue.enqueue(ordering_key="k", run_at=queue.now() + timedelta(hours=1))
    queue.enqueue(ordering_key="k")

    assert queue.claim(10) == []


def test_a_canceled_head_lets_the_next_go(queue: Queue) -> None:
    first, second, third = (queue.enqueue(ordering_key="k").job_id for _ in range(3))

    queue.cancel(first)

    assert [queue.place(job_id) for job_id in (first, second, third)] == [
        [],
        ["ready"],
        ["waiting"],
    ]
    assert drain(queue) == [second, third]


def test_a_canceled_job_in_the_middle_is_passed_over(queue: Queue) -> None:
    first, second, third = (queue.enqueue(ordering_key="k").job_id for _ in range(3))

    queue.cancel(second)

    assert drain(queue) == [first, third]


def test_a_key_is_forgotten_after_its_last_job(queue: Queue) -> None:
    queue.enqueue_many(3, ordering_keys=["k"] * 3)

    drain(queue)

    assert keys(queue) == []


def test_a_key_that_was_forgotten_starts_anew(queue: Queue) -> None:
    queue.enqueue(ordering_key="k")
    drain(queue)

    ids = [queue.enqueue(ordering_key="k").job_id for _ in range(2)]

    assert drain(queue) == ids


def test_one_batch_promotes_the_next_of_every_key(queue: Queue) -> None:
    names = [f"k{number}" for number in range(5)]
    queue.enqueue_many(5, ordering_keys=names)
    seconds = queue.enqueue_many(5, ordering_keys=names)

    queue.complete(*queue.claim(5))

    assert {row.job_id for row in queue.claim(10)} == set(seconds)


def test_a_retried_run_joins_the_end_of_its_key(queue: Queue) -> None:
    first = queue.enqueue(ordering_key="k", max_attempts=1).job_id
    second, third = (queue.enqueue(ordering_key="k").job_id for _ in range(2))
    queue.fail(queue.claim_one())

    queue.retry(first)

    assert queue.status(first) == "waiting"
    assert drain(queue) == [second, third, first]


def test_a_retried_run_whose_key_is_free_is_its_head(queue: Queue) -> None:
    job = queue.enqueue(ordering_key="k", max_attempts=1).job_id
    queue.fail(queue.claim_one())

    queue.retry(job)
    follower = queue.enqueue(ordering_key="k").job_id

    assert queue.status(follower) == "waiting"
    assert drain(queue) == [job, follower]


def test_a_waiting_run_that_is_canceled_and_retried_waits_again(queue: Queue) -> None:
    head, other = (queue.enqueue(ordering_key="k").job_id for _ in range(2))
    queue.cancel(other)

    queue.retry(other)

    assert queue.place(other) == ["waiting"]
    assert drain(queue) == [head, other]


# --- in flight


@pytest.mark.requirement("sql.order")
def test_the_job_that_committed_first_starts_first(make_queue: MakeQueue) -> None:
    """The trap: job 1 is written first and commits last; job 2 must not slip in before it."""
    slow, fast = make_queue(), make_queue()
    with fast.acting(API) as connection:
        pass

    with slow.acting(API) as holding:
        enter(holding, "acme")
        first = call(holding, "enqueue_job", "acme", ECHO, "{}", ordering_key="k")[0].job_id
        enqueuing = meanwhile(lambda: fast.enqueue(ordering_key="k").job_id)
        wait_until_blocked(make_queue(), connection)
        assert make_queue().claim(10) == []
    second = enqueuing.result(5)

    assert drain(slow) == [first, second]


def test_an_enqueue_that_was_rolled_back_leaves_no_gap(make_queue: MakeQueue) -> None:
    slow, fast = make_queue(), make_queue()
    with fast.acting(API) as connection:
        pass

    with slow.acting(API) as holding, holding.transaction(force_rollback=True):
        enter(holding, "acme")
        call(holding, "enqueue_job", "acme", ECHO, "{}", ordering_key="k")
        enqueuing = meanwhile(lambda: fast.enqueue(ordering_key="k").job_id)
        wait_until_blocked(make_queue(), connection)

    job_id = enqueuing.result(5)

    assert drain(slow) == [job_id]
    assert keys(slow) == []


def test_a_job_enqueued_while_the_head_ends_is_not_stranded(make_queue: MakeQueue) -> None:
    enqueuing, settling = make_queue(), make_queue()
    enqueuing.enqueue(ordering_key="k")
    head = settling.claim_one()
    with settling.acting(WORKER) as connection:
        pass

    with enqueuing.acting(API) as holding:
        enter(holding, "acme")
        follower = call(holding, "enqueue_job", "acme", ECHO, "{}", ordering_key="k")[0].job_id
        settled = meanwhile(lambda: settling.complete(head))
        wait_until_blocked(make_queue(), connection)
    settled.result(5)

    assert drain(enqueuing) == [follower]


def test_a_job_enqueued_while_the_key_is_being_forgotten_becomes_its_head(
    make_queue: MakeQueue,
) -> None:
    enqueuing, settling = make_queue(), make_queue()
    enqueuing.enqueue(ordering_key="k")
    head = settling.claim_one()
    with enqueuing.acting(API) as connection:
        pass

    with settling.acting(WORKER) as holding:
        call(holding, "complete_jobs", *fences([head]), ["null"])
        follower = meanwhile(lambda: enqueuing.enqueue(ordering_key="k").job_id)
        wait_until_blocked(make_queue(), connection)
    job_id = follower.result(5)

    assert drain(enqueuing) == [job_id]


def test_followers_survive_when_the_next_is_canceled_while_the_head_ends(
    make_queue: MakeQueue,
) -> None:
    canceling, settling = make_queue(), make_queue()
    _, second, third = (canceling.enqueue(ordering_key="k").job_id for _ in range(3))
    head = settling.claim_one()
    with settling.acting(WORKER) as connection:
        pass

    with canceling.acting(API) as holding:
        enter(holding, "acme")
        call(holding, "cancel_job", "acme", second)
        settled = meanwhile(lambda: settling.complete(head))
        wait_until_blocked(make_queue(), connection)
    settled.result(5)

    assert drain(canceling) == [third]


def test_a_next_whose_cancel_was_rolled_back_keeps_its_turn(make_queue: MakeQueue) -> None:
    canceling, settling = make_queue(), make_queue()
    _, second, third = (canceling.enqueue(ordering_key="k").job_id for _ in range(3))
    head = settling.claim_one()
    with settling.acting(WORKER) as connection:
        pass

    with canceling.acting(API) as holding, holding.transaction(force_rollback=True):
        enter(holding, "acme")
        call(holding, "cancel_job", "acme", second)
        settled = meanwhile(lambda: settling.complete(head))
        wait_until_blocked(make_queue(), connection)
    settled.result(5)

    assert drain(canceling) == [second, third]


def test_cancel_finds_a_job_that_is_promoted_meanwhile(make_queue: MakeQueue) -> None:
    canceling, settling = make_queue(), make_queue()
    _, second, third = (canceling.enqueue(ordering_key="k").job_id for _ in range(3))
    head = settling.claim_one()
    with canceling.acting(API) as connection:
        pass

    with settling.acting(WORKER) as holding:
        call(holding, "complete_jobs", *fences([head]), ["null"])
        canceled = meanwhile(lambda: canceling.cancel(second))
        wait_until_blocked(make_queue(), connection)

    assert canceled.result(5).status == "canceled"
    assert drain(settling) == [third]


def test_every_key_with_an_open_job_has_one_head_and_nothing_else_has(queue: Queue) -> None:
    queue.enqueue_many(6, ordering_keys=["a", "a", "b", "b", "c", "c"])
    claimed = queue.claim(3)
    queue.complete(claimed[0])
    queue.fail(claimed[1])

    with queue.acting(SUPERUSER) as connection:
        stray = connection.execute(
            """select w.job_id from jobforge.waiting w
            left join jobforge.ordering_keys k using (tenant_id, ordering_key)
            where k.head_job_id is null or k.head_job_id = w.job_id"""
        ).fetchall()

    assert stray == []
    assert [row.ordering_key for row in keys(queue)] == ["a", "b", "c"]
