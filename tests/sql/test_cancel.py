"""Cancel: at once where nobody runs it, by request where somebody does, and one winner in every race."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest

from tests.sql.acting import (
    API,
    ECHO,
    WORKER,
    Queue,
    call,
    enter,
    fences,
    meanwhile,
    refused,
    wait_until_blocked,
)
from tests.sql.conftest import MakeQueue


def test_a_queued_run_is_canceled_at_once(queue: Queue) -> None:
    job = queue.enqueue()

    run = queue.cancel(job.job_id, reason="changed my mind")

    assert (run.status, run.cancel_reason) == ("canceled", "changed my mind")
    assert run.error == {"code": "CANCELED", "message": "changed my mind", "retryable": False}
    assert queue.place(job.job_id) == []
    assert queue.claim(10) == []


def test_a_run_of_the_future_is_canceled_at_once(queue: Queue) -> None:
    job = queue.enqueue(run_at=queue.now() + timedelta(hours=1))

    assert queue.cancel(job.job_id).status == "canceled"


def test_a_run_that_waits_for_its_next_attempt_is_canceled_at_once(queue: Queue) -> None:
    job = queue.enqueue()
    queue.fail(queue.claim_one())

    run = queue.cancel(job.job_id)

    assert (run.status, run.attempt_no, run.epoch) == ("canceled", 1, 1)


def test_a_waiting_run_is_canceled_at_once(queue: Queue) -> None:
    queue.enqueue(ordering_key="k")
    job = queue.enqueue(ordering_key="k")

    assert queue.cancel(job.job_id).status == "canceled"
    assert queue.place(job.job_id) == []


def test_a_running_run_is_asked_to_stop_and_its_worker_hears_of_it(queue: Queue) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()

    run = queue.cancel(job.job_id, reason="enough")

    assert (run.status, run.cancel_reason) == ("running", "enough")
    assert run.cancel_requested_at is not None
    assert queue.heartbeat(claimed)[0].cancel_ids == [job.job_id]
    assert queue.report(claimed, 1).is_cancel_requested is True


def test_a_run_that_stopped_as_asked_is_canceled(queue: Queue) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()
    queue.cancel(job.job_id)

    (settled,) = queue.fail(claimed, kind="canceled")

    assert settled.status == "canceled"
    assert queue.attempts(job.job_id)[0].outcome == "canceled"


@pytest.mark.parametrize("kind", ["failed", "timed_out", "deferred", "canceled"])
def test_a_run_that_fails_after_it_was_asked_to_stop_is_canceled(queue: Queue, kind: str) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()
    queue.cancel(job.job_id)

    assert queue.fail(claimed, kind=kind)[0].status == "canceled"
    assert queue.place(job.job_id) == []


def test_a_run_released_after_it_was_asked_to_stop_is_canceled(queue: Queue) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()
    queue.cancel(job.job_id)

    assert queue.release(claimed)[0].status == "canceled"


def test_a_run_that_completes_after_it_was_asked_to_stop_succeeded(queue: Queue) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()
    queue.cancel(job.job_id)

    assert queue.complete(claimed)[0].status == "succeeded"
    assert queue.status(job.job_id) == "succeeded"


def test_asking_twice_keeps_the_first_time_and_reason(queue: Queue) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()
    first = queue.cancel(job.job_id, reason="one")
    queue.advance(1)

    second = queue.cancel(job.job_id, reason="two")

    assert second.cancel_requested_at == first.cancel_requested_at
    assert second.cancel_reason == "one"
    assert queue.heartbeat(claimed)[0].cancel_ids == [job.job_id]


def test_canceling_a_canceled_run_returns_it_unchanged(queue: Queue) -> None:
    job = queue.enqueue()
    first = queue.cancel(job.job_id)

    assert queue.cancel(job.job_id) == first


@pytest.mark.parametrize("status", ["succeeded", "failed", "dead"])
def test_a_run_that_ended_otherwise_cannot_be_canceled(queue: Queue, status: str) -> None:
    job = queue.enqueue(max_attempts=1)
    claimed = queue.claim_one()
    if status == "succeeded":
        queue.complete(claimed)
    else:
        queue.fail(claimed, kind="permanent" if status == "failed" else "failed")

    with refused("JF409"):
        queue.cancel(job.job_id)

    assert queue.status(job.job_id) == status


def test_a_run_whose_lease_expired_is_canceled_at_once(queue: Queue) -> None:
    job = queue.enqueue()
    queue.claim_one()
    queue.advance(31)

    run = queue.cancel(job.job_id)

    assert run.status == "canceled"
    assert queue.attempts(job.job_id)[0].outcome == "lost"


def test_canceling_a_run_whose_last_attempt_was_lost_tells_that_it_is_dead(queue: Queue) -> None:
    """A refusal would undo what it tells of: the run would be open again."""
    job = queue.enqueue(max_attempts=1)
    queue.claim_one(lease_ms=1_000)
    queue.advance(2)

    run = queue.cancel(job.job_id)

    assert (run.status, run.attempt_no) == ("dead", 1)
    assert queue.place(job.job_id) == []
    with refused("JF409"):
        queue.cancel(job.job_id)


def test_an_unknown_run_cannot_be_canceled(queue: Queue) -> None:
    with refused("JF404"):
        queue.cancel(uuid4())


def test_a_long_reason_is_cut(queue: Queue) -> None:
    job = queue.enqueue()

    assert len(queue.cancel(job.job_id, reason="x" * 5000).cancel_reason) == 1000


def test_other_runs_of_a_batch_are_not_canceled_with_it(queue: Queue) -> None:
    queue.enqueue_many(2)
    first, second = queue.claim(2)
    queue.cancel(first.job_id)

    queue.fail(first, second)

    assert [queue.status(row.job_id) for row in (first, second)] == ["canceled", "queued"]


def test_a_retried_run_does_not_remember_that_it_was_canceled(queue: Queue) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()
    queue.cancel(job.job_id)
    queue.fail(claimed, kind="canceled")

    run = queue.retry(job.job_id)
    claimed = queue.claim_one()

    assert (run.cancel_requested_at, run.cancel_reason) == (None, None)
    assert queue.heartbeat(claimed)[0].cancel_ids == []
    assert queue.fail(claimed)[0].status == "queued"


def test_each_cancel_is_audited(queue: Queue) -> None:
    job = queue.enqueue()
    queue.cancel(job.job_id)
    queue.cancel(job.job_id)

    audit = queue.look(
        "select outcome, job_id from jobforge.audit_log where action = 'cancel' order by id"
    )
    assert [(row.outcome, row.job_id) for row in audit] == [
        ("canceled", job.job_id),
        ("unchanged", job.job_id),
    ]


# --- in flight


def test_a_cancel_that_meets_a_claim_asks_the_new_worker(make_queue: MakeQueue) -> None:
    canceling, claiming = make_queue(), make_queue()
    job = canceling.enqueue()
    with canceling.acting(API) as connection:
        pass

    with claiming.acting(WORKER) as holding:
        (claimed,) = call(holding, "claim_jobs", "w1", [ECHO], 1)
        canceled = meanwhile(lambda: canceling.cancel(job.job_id))
        wait_until_blocked(make_queue(), connection)

    assert canceled.result(5).status == "running"
    assert claiming.heartbeat(claimed)[0].cancel_ids == [job.job_id]


def test_a_claim_passes_over_a_run_that_is_being_canceled(make_queue: MakeQueue) -> None:
    canceling, claiming = make_queue(), make_queue()
    job = canceling.enqueue()

    with canceling.acting(API) as holding:
        enter(holding, "acme")
        call(holding, "cancel_job", "acme", job.job_id)
        assert claiming.claim(10) == []

    assert canceling.status(job.job_id) == "canceled"


@pytest.mark.requirement("sql.cancel")
def test_a_cancel_that_meets_a_completion_loses(make_queue: MakeQueue) -> None:
    canceling, settling = make_queue(), make_queue()
    job = canceling.enqueue()
    claimed = settling.claim_one()
    with canceling.acting(API) as connection:
        pass

    with settling.acting(WORKER) as holding:
        call(holding, "complete_jobs", *fences([claimed]), ["1"])
        canceled = meanwhile(lambda: canceling.cancel(job.job_id))
        wait_until_blocked(make_queue(), connection)

    with refused("JF409"):
        canceled.result(5)
    assert settling.status(job.job_id) == "succeeded"


def test_a_failure_that_meets_a_cancel_ends_canceled(make_queue: MakeQueue) -> None:
    canceling, settling = make_queue(), make_queue()
    job = canceling.enqueue()
    claimed = settling.claim_one()
    with settling.acting(WORKER) as connection:
        pass

    with canceling.acting(API) as holding:
        enter(holding, "acme")
        call(holding, "cancel_job", "acme", job.job_id)
        settled = meanwhile(lambda: settling.fail(claimed))
        wait_until_blocked(make_queue(), connection)

    assert settled.result(5)[0].status == "canceled"


def test_a_cancel_of_an_expired_run_waits_for_whoever_settles_it(make_queue: MakeQueue) -> None:
    canceling, settling = make_queue(), make_queue()
    job = canceling.enqueue()
    claimed = settling.claim_one()
    canceling.advance(31)
    with canceling.acting(API) as connection:
        pass

    with settling.acting(WORKER) as holding:
        call(holding, "fail_jobs", *fences([claimed]), ["failed"], [None], [None], [None])
        canceled = meanwhile(lambda: canceling.cancel(job.job_id))
        wait_until_blocked(make_queue(), connection)

    assert canceled.result(5).status == "canceled"
    assert len(settling.attempts(job.job_id)) == 1
