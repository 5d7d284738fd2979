"""Runs that wait for other runs: no wake-up is lost, none comes twice, and what ends takes with it what it should."""

from __future__ import annotations

import json
from uuid import UUID

import pytest

from tests.sql.acting import (
    API,
    ECHO,
    WORKER,
    Queue,
    Row,
    call,
    enter,
    fences,
    meanwhile,
    refused,
    wait_until_blocked,
)
from tests.sql.conftest import MakeQueue


def fence(claimed: Row) -> list[object]:
    return [row[0] for row in fences([claimed])]


def steps(queue: Queue, parent: Row, *names: str, **named: object) -> dict[str, UUID]:
    """Enqueue steps of a composition that is claimed."""
    count = len(names)
    nothing = [None] * count
    rows = queue.work(
        "enqueue_steps", *fence(parent), list(names), [ECHO] * count, ["{}"] * count, ["{}"] * count,
        nothing, ["1"] * count, [1] * count, [0] * count, [1.0] * count, [0] * count, [60_000] * count, nothing,
        named.get("lane_types", nothing),
    )  # fmt: skip
    return {row.step: row.child_id for row in rows}


def wait(queue: Queue, parent: Row, *children: UUID, may_remain: int = 0, **named: object) -> str:
    """Let a composition wait."""
    (row,) = queue.work("wait_for_steps", *fence(parent), list(children), may_remain, **named)
    return row.status if row.outcome == "accepted" else row.outcome


def listed(queue: Queue, parent: Row, *results: str) -> dict[str, str]:
    rows = queue.work("list_steps", *fence(parent), list(results) or None)
    return {row.step: row.result if results else row.status for row in rows}


def claim(queue: Queue, job_id: UUID) -> Row:
    """Claim until this job comes."""
    for _ in range(20):
        claimed = queue.claim_one()
        if claimed.job_id == job_id:
            return claimed
        queue.release(claimed)
    raise AssertionError("it does not come")


@pytest.fixture
def parent(queue: Queue) -> Row:
    queue.enqueue(trace_id="t1", max_attempts=2)
    return queue.claim_one()


@pytest.mark.requirement("compositions.wait")
def test_a_composition_waits_without_a_worker_and_spends_no_attempt(
    queue: Queue, parent: Row
) -> None:
    children = steps(queue, parent, "steps/a", "steps/b")
    before = queue.version(parent.job_id)

    assert wait(queue, parent, *children.values()) == "waiting"

    run = queue.run(parent.job_id)
    assert (run.status, run.waiting_for, run.attempt_no) == ("waiting", "child", 0)
    assert queue.place(parent.job_id) == ["waiting"]
    assert run.version > before
    first, second = queue.claim(2)
    queue.complete(first, result='{"n": 1}')
    assert queue.status(parent.job_id) == "waiting"
    queue.complete(second)
    assert queue.status(parent.job_id) == "queued"
    again = queue.claim_one()
    assert (again.job_id, again.epoch, again.attempt_no) == (parent.job_id, 2, 1)
    assert listed(queue, again) == {"steps/a": "succeeded", "steps/b": "succeeded"}
    assert json.loads(listed(queue, again, "steps/a")["steps/a"]) == {"n": 1}
    assert queue.look("select * from jobforge.job_dependencies") == []


@pytest.mark.requirement("compositions.once")
def test_a_step_is_enqueued_once_however_often_it_is_asked_for(queue: Queue, parent: Row) -> None:
    first = steps(queue, parent, "steps/a")
    again = steps(queue, parent, "steps/a", "steps/b")

    assert again["steps/a"] == first["steps/a"]
    child = queue.run(first["steps/a"])
    assert (child.parent_id, child.trace_id) == (parent.job_id, "t1")
    assert len(queue.look("select 1 from jobforge.jobs")) == 3


def test_only_the_living_claim_speaks_for_a_composition(queue: Queue, parent: Row) -> None:
    children = steps(queue, parent, "steps/a")
    queue.lose_worker()

    with refused("JF410"):
        steps(queue, parent, "steps/b")
    with refused("JF410"):
        listed(queue, parent)
    assert wait(queue, parent, *children.values()) == "stale"
    assert queue.place(parent.job_id) == ["ready"]


def test_some_of_the_steps_may_still_be_open_when_it_is_queued_again(
    queue: Queue, parent: Row
) -> None:
    children = steps(queue, parent, "steps/a", "steps/b", "steps/c")
    wait(queue, parent, *children.values(), may_remain=2)

    queue.complete(queue.claim_one())

    assert queue.status(parent.job_id) == "queued"
    assert queue.look("select * from jobforge.job_dependencies") == []


def test_nothing_is_waited_for_that_has_ended(queue: Queue, parent: Row) -> None:
    children = steps(queue, parent, "steps/a")
    queue.complete(queue.claim_one())

    assert wait(queue, parent, *children.values()) == "queued"


def test_a_failed_step_ends_the_wait_too(queue: Queue, parent: Row) -> None:
    children = steps(queue, parent, "steps/a")
    wait(queue, parent, *children.values())

    queue.fail(queue.claim_one(), kind="permanent")

    again = queue.claim_one()
    assert (again.job_id, listed(queue, again)) == (parent.job_id, {"steps/a": "failed"})


def test_a_wait_ends_at_its_time(queue: Queue, parent: Row) -> None:
    children = steps(queue, parent, "steps/a")
    until = queue.look("select jobforge.now() + interval '1 minute' as at")[0].at
    wait(queue, parent, *children.values(), until_at=until)
    queue.reap()
    assert queue.status(parent.job_id) == "waiting"
    assert queue.explain(parent.job_id).until_at == until

    queue.advance(61)
    queue.reap()

    assert queue.status(parent.job_id) == "queued"


def test_explain_names_what_it_waits_for(queue: Queue, parent: Row) -> None:
    children = steps(queue, parent, "steps/a", "steps/b")
    wait(queue, parent, *children.values())

    cause = queue.explain(parent.job_id)

    assert (cause.cause, cause.blocked_by) == ("waiting_child", min(children.values()))


@pytest.mark.requirement("compositions.cancel")
def test_canceling_a_waiting_composition_cancels_its_steps(queue: Queue, parent: Row) -> None:
    """One runs, one is queued, one is itself a composition that waits for a step."""
    children = steps(queue, parent, "steps/a", "steps/b", "steps/c")
    held = {row.job_id: row for row in queue.claim(3)}
    inner = held[children["steps/c"]]
    grandchild = steps(queue, inner, "steps/x")["steps/x"]
    wait(queue, inner, grandchild)
    queue.release(held[children["steps/b"]])
    wait(queue, parent, *children.values())

    queue.cancel(parent.job_id)
    for _ in range(3):
        queue.reap()

    assert queue.status(parent.job_id) == "canceled"
    assert queue.status(children["steps/b"]) == "canceled"
    assert queue.status(children["steps/c"]) == "canceled"
    assert queue.status(grandchild) == "canceled"
    running = queue.run(children["steps/a"])
    assert (running.status, running.cancel_requested_at is not None) == ("running", True)
    queue.fail(held[children["steps/a"]], kind="canceled")
    assert queue.status(children["steps/a"]) == "canceled"
    assert queue.look("select * from jobforge.job_dependencies") == []


def test_a_composition_that_fails_takes_its_open_steps_with_it(queue: Queue, parent: Row) -> None:
    children = steps(queue, parent, "steps/a")

    queue.fail(parent, kind="permanent")
    queue.reap()

    assert queue.status(children["steps/a"]) == "canceled"
    assert queue.look("select * from jobforge.job_dependencies") == []


def test_a_canceled_composition_does_not_begin_to_wait(queue: Queue, parent: Row) -> None:
    children = steps(queue, parent, "steps/a")
    queue.cancel(parent.job_id)

    (row,) = queue.work("wait_for_steps", *fence(parent), list(children.values()))

    assert (row.outcome, row.status) == ("accepted", "canceled")
    queue.reap()
    assert queue.status(children["steps/a"]) == "canceled"


def test_the_end_of_a_canceled_step_reaches_a_composition_that_still_waits(
    queue: Queue, parent: Row
) -> None:
    children = steps(queue, parent, "steps/a")
    wait(queue, parent, *children.values())

    queue.cancel(children["steps/a"])

    assert queue.status(parent.job_id) == "queued"


def test_a_purged_step_is_told_as_such(queue: Queue, parent: Row) -> None:
    children = steps(queue, parent, "steps/a")
    queue.complete(queue.claim_one())
    queue.look("delete from jobforge.jobs where id = %s", children["steps/a"])

    assert listed(queue, parent) == {"steps/a": "purged"}
    assert wait(queue, parent, *children.values()) == "queued"


def as_composition(queue: Queue, job_id: UUID) -> None:
    """What `enqueue_jobs` notes of a registered composition."""
    queue.look("update jobforge.jobs set lane_type = %s where id = %s", ECHO, job_id)


@pytest.mark.requirement("compositions.retry")
def test_a_retried_composition_keeps_what_succeeded_and_does_the_rest_again(queue: Queue) -> None:
    parent = queue.enqueue()
    as_composition(queue, parent.job_id)
    held = queue.claim_one()
    children = steps(queue, held, "steps/a", "steps/b")
    first, second = queue.claim(2)
    queue.complete(first)
    queue.fail(second, kind="permanent")
    queue.fail(held, kind="permanent")

    queue.retry(parent.job_id)
    again = queue.claim_one()

    assert listed(queue, again) == {"steps/a": "succeeded"}
    redone = steps(queue, again, "steps/a", "steps/b")
    assert redone["steps/a"] == children["steps/a"]
    assert redone["steps/b"] != children["steps/b"]


def test_a_retried_child_is_waited_for_again(queue: Queue, parent: Row) -> None:
    children = steps(queue, parent, "steps/a", "steps/b")
    wait(queue, parent, *children.values())
    first, second = queue.claim(2)
    queue.fail(first, kind="permanent")
    queue.retry(first.job_id)
    queue.complete(second)

    again = claim(queue, parent.job_id)

    assert sorted(listed(queue, again).values()) == ["open", "succeeded"]
    assert wait(queue, again, *children.values()) == "waiting"


def test_compositions_inside_each_other_end_at_a_depth(queue: Queue) -> None:
    held = queue.claim_one() if queue.enqueue() else None
    depth = 0
    with refused("JF429"):
        while held is not None:
            steps(queue, held, "steps/again")
            held = queue.claim_one()
            depth += 1

    assert depth == 10


# --- two sessions


@pytest.fixture
def waiting_pair(make_queue: MakeQueue) -> tuple[Queue, Queue, Row, Row]:
    """A composition and its step, both claimed, and two sessions."""
    queue, other = make_queue(), make_queue()
    queue.enqueue()
    parent = queue.claim_one()
    steps(queue, parent, "steps/a")
    return queue, other, parent, queue.claim_one()


@pytest.mark.requirement("compositions.wait")
def test_a_step_that_ends_while_its_composition_begins_to_wait_ends_after_that(
    waiting_pair: tuple[Queue, Queue, Row, Row], make_queue: MakeQueue
) -> None:
    queue, other, parent, child = waiting_pair
    looking = make_queue()
    with other.acting(WORKER) as worker:
        pid_of = worker

    with queue.acting(WORKER) as connection:
        call(connection, "wait_for_steps", *fence(parent), [child.job_id])
        settled = meanwhile(lambda: other.complete(child))
        wait_until_blocked(looking, pid_of)
    settled.result(60)

    assert queue.status(parent.job_id) == "queued"
    assert queue.claim_one().job_id == parent.job_id


@pytest.mark.requirement("compositions.wait")
def test_a_composition_does_not_wait_for_a_step_whose_end_is_being_written(
    waiting_pair: tuple[Queue, Queue, Row, Row],
) -> None:
    queue, other, parent, child = waiting_pair

    with queue.acting(WORKER) as connection:
        call(connection, "complete_jobs", *fences([child]), ["1"])
        (answer,) = other.work("wait_for_steps", *fence(parent), [child.job_id])

    assert (answer.outcome, answer.status) == ("accepted", "queued")
    queue.advance(1)
    again = queue.claim_one()
    assert listed(queue, again) == {"steps/a": "succeeded"}


@pytest.mark.requirement("compositions.wait")
def test_two_last_steps_that_end_at_once_wake_it_once(make_queue: MakeQueue) -> None:
    queue, other, looking = make_queue(), make_queue(), make_queue()
    queue.enqueue()
    parent = queue.claim_one()
    children = steps(queue, parent, "steps/a", "steps/b")
    first, second = queue.claim(1), queue.claim(1)
    wait(queue, parent, *children.values())
    with other.acting(WORKER) as worker:
        pid_of = worker

    with queue.acting(WORKER) as connection:
        call(connection, "complete_jobs", *fences(first), ["1"])
        settled = meanwhile(lambda: other.complete(*second))
        wait_until_blocked(looking, pid_of)
    settled.result(60)

    assert queue.place(parent.job_id) == ["ready"]


def test_a_cancel_and_the_last_step_never_leave_it_waiting(make_queue: MakeQueue) -> None:
    queue, other, looking = make_queue(), make_queue(), make_queue()
    for is_cancel_first in (True, False):
        queue.enqueue()
        parent = queue.claim_one()
        children = steps(queue, parent, "steps/a")
        child = queue.claim_one()
        wait(queue, parent, *children.values())
        role = WORKER if is_cancel_first else API
        with other.acting(role) as second:
            pid_of = second

        with queue.acting(API if is_cancel_first else WORKER) as connection:
            if is_cancel_first:
                enter(connection, "acme")
                call(connection, "cancel_job", "acme", parent.job_id)
                late = meanwhile(lambda child=child: other.complete(child))
            else:
                call(connection, "complete_jobs", *fences([child]), ["1"])
                late = meanwhile(lambda parent=parent: other.cancel(parent.job_id))
            wait_until_blocked(looking, pid_of)
        late.result(60)
        queue.reap()

        assert queue.status(parent.job_id) == "canceled"
        assert queue.place(parent.job_id) == []
        assert queue.look("select * from jobforge.job_dependencies") == []


@pytest.mark.requirement("compositions.once")
def test_steps_that_are_enqueued_twice_at_once_are_made_once(make_queue: MakeQueue) -> None:
    """A worker repeats a call whose answer was lost while the first is still under way."""
    first, second, looking = make_queue(), make_queue(), make_queue()
    first.enqueue()
    parent = first.claim_one()
    with second.acting(WORKER) as connection:
        other = connection
    one = [ECHO], ["{}"], ["{}"], [None], ["1"], [1], [0], [1.0], [0], [60_000], [None], [None]

    with first.acting(WORKER) as connection:
        (made,) = call(connection, "enqueue_steps", *fence(parent), ["a"], *one)
        future = meanwhile(lambda: second.work("enqueue_steps", *fence(parent), ["a"], *one))
        wait_until_blocked(looking, other)
    (again,) = future.result(60)

    assert again.child_id == made.child_id
    assert looking.look("select count(*) as count from jobforge.jobs")[0].count == 2
