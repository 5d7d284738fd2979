"""Complete, fail and release: the fence, what follows, and what a repeated call is told."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from uuid import uuid4

import pytest

from tests.sql.acting import ECHO, Queue, Row, fences, refused


def changed(claimed: Row, **fields: object) -> Row:
    """Make a fence that differs."""
    return SimpleNamespace(**{**vars(claimed), **fields})


# --- complete


def test_a_completed_run_succeeded_with_its_result(queue: Queue) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()

    (settled,) = queue.complete(claimed, result='{"answer": 42}')

    run = queue.run(job.job_id)
    assert (settled.outcome, settled.status) == ("accepted", "succeeded")
    assert (run.status, run.result, run.error) == ("succeeded", {"answer": 42}, None)
    assert (run.attempt_no, run.epoch, run.worker_id) == (1, 1, "w1")
    assert run.started_at == claimed.claimed_at
    assert run.finished_at is not None
    assert queue.place(job.job_id) == []
    assert queue.attempts(job.job_id) == []


def test_a_missing_result_is_null(queue: Queue) -> None:
    job = queue.enqueue()
    queue.work("complete_jobs", *fences([queue.claim_one()]), [None])

    assert (queue.status(job.job_id), queue.run(job.job_id).result) == ("succeeded", None)


def test_completing_again_says_repeated_and_writes_nothing(queue: Queue) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()
    queue.complete(claimed, result="1")

    (again,) = queue.complete(claimed, result="2")

    assert (again.outcome, again.status) == ("repeated", "succeeded")
    assert queue.run(job.job_id).result == 1


@pytest.mark.parametrize(
    "fields",
    [{"epoch": 2}, {"epoch": 0}, {"lease_id": uuid4()}, {"tenant_id": "globex"}],
    ids=["later epoch", "earlier epoch", "other lease", "other tenant"],
)
@pytest.mark.parametrize("verb", ["complete", "fail", "release"])
def test_a_fence_that_is_not_the_living_one_settles_nothing(
    queue: Queue, verb: str, fields: dict[str, object]
) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()

    (settled,) = getattr(queue, verb)(changed(claimed, **fields))

    assert settled.outcome == "stale"
    assert queue.status(job.job_id) == "running"
    assert queue.place(job.job_id) == ["lease"]


@pytest.mark.requirement("sql.fence")
def test_an_attempt_that_was_replaced_cannot_complete(queue: Queue) -> None:
    job = queue.enqueue()
    old = queue.claim_one("w1")
    queue.lose_worker()
    new = queue.claim_one("w2")

    stale = queue.complete(old, result="1")
    accepted = queue.complete(new, result="2")
    late = queue.complete(old, result="3")

    assert [stale[0].outcome, accepted[0].outcome, late[0].outcome] == [
        "stale",
        "accepted",
        "stale",
    ]
    assert queue.run(job.job_id).result == 2


def test_a_batch_settles_what_it_holds_and_names_what_it_does_not(queue: Queue) -> None:
    queue.enqueue_many(3)
    first, second, third = queue.claim(3)
    queue.complete(second)

    settled = queue.complete(first, second, changed(third, epoch=7))

    assert [row.outcome for row in settled] == ["accepted", "repeated", "stale"]
    assert [row.status for row in settled] == ["succeeded", "succeeded", "queued"]
    assert queue.place(third.job_id) == ["lease"]


def test_a_job_named_twice_in_a_batch_is_settled_once(queue: Queue) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()

    settled = queue.complete(claimed, claimed)

    assert sorted(row.outcome for row in settled) == ["accepted", "repeated"]
    assert queue.status(job.job_id) == "succeeded"


def test_a_job_failed_twice_in_a_batch_is_queued_once(queue: Queue) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()

    settled = queue.fail(claimed, claimed)

    assert sorted(row.outcome for row in settled) == ["accepted", "repeated"]
    assert queue.place(job.job_id) == ["ready"]
    assert len(queue.attempts(job.job_id)) == 1


def test_one_batch_settles_jobs_of_several_tenants_and_leases(queue: Queue) -> None:
    queue.enqueue_many(2, "acme")
    queue.enqueue_many(2, "globex")
    claimed = [*queue.claim(2), *queue.claim(2)]

    settled = queue.complete(*claimed)

    assert {row.outcome for row in settled} == {"accepted"}
    assert queue.look("select 1 as one from jobforge.leases") == []


def test_the_other_jobs_of_a_lease_stay_in_it(queue: Queue) -> None:
    queue.enqueue_many(3)
    first, second, third = queue.claim(3)

    queue.complete(second)

    (lease,) = queue.look("select job_ids, epochs, attempt_nos from jobforge.leases")
    assert lease.job_ids == [first.job_id, third.job_id]
    assert (lease.epochs, lease.attempt_nos) == ([1, 1], [1, 1])


def test_a_result_above_one_mebibyte_is_refused_and_the_job_stays_held(queue: Queue) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()

    with refused("JF413"):
        queue.complete(claimed, result=f'"{"x" * 1_048_575}"')

    assert queue.place(job.job_id) == ["lease"]


@pytest.mark.parametrize("function", ["complete_jobs", "fail_jobs"])
def test_a_batch_whose_arrays_differ_in_length_leaves_no_job_nowhere(
    queue: Queue, function: str
) -> None:
    queue.enqueue_many(2)
    claimed = queue.claim(2)
    short = {"complete_jobs": [["null"]], "fail_jobs": [["failed"], [None], [None], [None]]}

    with refused("JF400"):
        queue.work(function, *fences(claimed), *short[function])

    assert [queue.place(row.job_id) for row in claimed] == [["lease"], ["lease"]]


def test_a_batch_without_results_is_refused(queue: Queue) -> None:
    queue.enqueue()
    claimed = queue.claim_one()

    with refused("JF400"):
        queue.work("complete_jobs", *fences([claimed]), None)


def test_an_empty_batch_settles_nothing(queue: Queue) -> None:
    assert queue.complete() == queue.fail() == queue.release() == []


# --- fail


def test_a_failed_attempt_is_tried_again_after_its_backoff(queue: Queue) -> None:
    job = queue.enqueue(backoff_ms=10_000)
    claimed = queue.claim_one()
    before = queue.now()

    (settled,) = queue.fail(claimed)

    run = queue.run(job.job_id)
    assert (settled.outcome, settled.status) == ("accepted", "queued")
    assert (run.status, run.attempt_no, run.error) == ("queued", 1, None)
    assert timedelta(seconds=10) <= run.run_at - before <= timedelta(seconds=12.6)
    (attempt,) = queue.attempts(job.job_id)
    assert (attempt.attempt_no, attempt.epoch, attempt.outcome) == (1, 1, "failed")
    assert (attempt.worker_id, attempt.error["code"]) == ("w1", "OOPS")


def test_the_backoff_doubles_and_is_capped(queue: Queue) -> None:
    job = queue.enqueue(backoff_ms=1000, max_backoff_ms=3000, max_attempts=9)

    waits: list[float] = []
    for _ in range(4):
        claimed = queue.claim_one()
        now = queue.now()
        queue.fail(claimed)
        waits.append((queue.run(job.job_id).run_at - now).total_seconds())
        queue.advance(60)

    for wait, least in zip(waits, [1, 2, 3, 3], strict=True):
        assert least <= wait <= least * 1.25 + 0.2


def test_a_delay_the_receiver_asked_for_is_never_undercut(queue: Queue) -> None:
    job = queue.enqueue(backoff_ms=0)
    claimed = queue.claim_one()
    before = queue.now()

    queue.fail(claimed, delay_ms=60_000)

    assert queue.run(job.job_id).run_at - before >= timedelta(seconds=60)


def test_a_backoff_beyond_all_numbers_is_capped(queue: Queue) -> None:
    job = queue.enqueue(
        backoff_ms=2_147_483_647,
        backoff_multiplier=100,
        max_backoff_ms=1000,
        max_attempts=1000,
    )
    queue.look("update jobforge.ready set attempt_no = 998")
    claimed = queue.claim_one()
    before = queue.now()

    queue.fail(claimed)

    assert queue.run(job.job_id).run_at - before <= timedelta(seconds=1.5)


def test_the_last_attempt_that_fails_leaves_the_run_dead(queue: Queue) -> None:
    job = queue.enqueue(max_attempts=2, backoff_ms=0)
    queue.fail(queue.claim_one())
    (settled,) = queue.fail(queue.claim_one())

    run = queue.run(job.job_id)
    assert (settled.outcome, settled.status) == ("accepted", "dead")
    assert (run.status, run.attempt_no, run.error["code"]) == ("dead", 2, "OOPS")
    assert [row.outcome for row in queue.attempts(job.job_id)] == ["failed", "failed"]


def test_a_failure_not_worth_retrying_leaves_the_run_failed(queue: Queue) -> None:
    job = queue.enqueue()

    (settled,) = queue.fail(queue.claim_one(), kind="permanent")

    run = queue.run(job.job_id)
    assert settled.status == "failed"
    assert (run.status, run.attempt_no) == ("failed", 1)
    assert queue.attempts(job.job_id)[0].outcome == "permanent"


def test_an_attempt_that_timed_out_is_charged_and_tried_again(queue: Queue) -> None:
    job = queue.enqueue()

    queue.fail(queue.claim_one(), kind="timed_out")

    assert (queue.status(job.job_id), queue.run(job.job_id).attempt_no) == ("queued", 1)


def test_a_deferred_attempt_is_not_charged_however_often(queue: Queue) -> None:
    job = queue.enqueue(max_attempts=1)

    for _ in range(3):
        before = queue.now()
        queue.fail(queue.claim_one(), kind="deferred", delay_ms=5000)
        run = queue.run(job.job_id)
        assert (run.status, run.attempt_no) == ("queued", 0)
        assert timedelta(seconds=5) <= run.run_at - before < timedelta(seconds=6)
        queue.advance(6)

    claimed = queue.claim_one()
    assert (claimed.attempt_no, claimed.epoch) == (1, 4)


def test_a_negative_delay_does_not_put_a_job_ahead_of_others(queue: Queue) -> None:
    queue.enqueue()
    claimed = queue.claim_one()
    before = queue.now()

    queue.fail(claimed, kind="deferred", delay_ms=-3_600_000)

    assert queue.run(claimed.job_id).run_at >= before


def test_an_unknown_kind_of_failure_is_refused(queue: Queue) -> None:
    queue.enqueue()
    claimed = queue.claim_one()

    with refused("JF400"):
        queue.fail(claimed, kind="lost")


@pytest.mark.parametrize("kind", ["failed", "permanent", "deferred"])
def test_failing_again_says_repeated_and_writes_nothing(queue: Queue, kind: str) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()
    first = queue.fail(claimed, kind=kind)

    again = queue.fail(claimed, kind=kind)

    assert (again[0].outcome, again[0].status) == ("repeated", first[0].status)
    assert len(queue.attempts(job.job_id)) == 1
    assert len(queue.place(job.job_id)) == (first[0].status == "queued")


def test_completing_what_failed_is_stale(queue: Queue) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()
    queue.fail(claimed, kind="permanent")

    (late,) = queue.complete(claimed)

    assert (late.outcome, late.status) == ("stale", "failed")
    assert queue.run(job.job_id).result is None


def test_failing_what_succeeded_is_stale(queue: Queue) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()
    queue.complete(claimed)

    (late,) = queue.fail(claimed)

    assert (late.outcome, late.status) == ("stale", "succeeded")
    assert queue.place(job.job_id) == []


# --- release


def test_a_released_job_is_due_at_once_and_not_charged(queue: Queue) -> None:
    job = queue.enqueue(max_attempts=1)

    (settled,) = queue.release(queue.claim_one())

    run = queue.run(job.job_id)
    assert (settled.outcome, settled.status) == ("accepted", "queued")
    assert (run.status, run.attempt_no, run.epoch) == ("queued", 0, 1)
    assert run.run_at <= queue.now()
    assert queue.claim_one("w2").epoch == 2


def test_releasing_again_says_repeated(queue: Queue) -> None:
    queue.enqueue()
    claimed = queue.claim_one()
    queue.release(claimed)

    assert queue.release(claimed)[0].outcome == "repeated"


def test_a_released_job_keeps_its_priority_and_type(queue: Queue) -> None:
    job = queue.enqueue(priority=0)
    queue.release(queue.claim_one())

    (row,) = queue.look("select job_type, priority, run_at from jobforge.ready")

    assert (row.job_type, row.priority) == (ECHO, 0)
    assert row.run_at == queue.run(job.job_id).run_at
