"""Retry by hand: which runs, with how many attempts, and against which version."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from tests.sql.acting import ECHO, Queue, refused


def ended(queue: Queue, status: str) -> UUID:
    """Make a run that ended so."""
    job_id: UUID = queue.enqueue(max_attempts=1).job_id
    if status == "canceled":
        queue.cancel(job_id)
        return job_id
    claimed = queue.claim_one()
    if status == "succeeded":
        queue.complete(claimed)
    else:
        queue.fail(claimed, kind="permanent" if status == "failed" else "failed")
    return job_id


@pytest.mark.parametrize("status", ["failed", "dead", "canceled"])
def test_a_run_that_ended_without_success_is_queued_again(queue: Queue, status: str) -> None:
    job_id = ended(queue, status)

    run = queue.retry(job_id)

    assert (run.status, run.error, run.finished_at, run.worker_id) == ("queued", None, None, None)
    assert queue.place(job_id) == ["ready"]
    assert queue.claim_one().job_id == job_id


def test_a_retry_grants_one_attempt_more(queue: Queue) -> None:
    job_id = ended(queue, "dead")
    run = queue.retry(job_id)

    (settled,) = queue.fail(queue.claim_one())

    assert (run.attempt_no, run.max_attempts) == (1, 2)
    assert settled.status == "dead"
    assert queue.run(job_id).attempt_no == 2


def test_a_retry_with_fresh_attempts_counts_from_the_start(queue: Queue) -> None:
    job_id = ended(queue, "dead")

    run = queue.retry(job_id, reset_attempts=True)

    assert (run.attempt_no, run.max_attempts) == (0, 1)
    assert queue.claim_one().attempt_no == 1


def test_attempts_of_before_a_retry_stay_listed(queue: Queue) -> None:
    job_id = ended(queue, "dead")
    queue.retry(job_id, reset_attempts=True)
    queue.fail(queue.claim_one())

    assert [(row.epoch, row.attempt_no) for row in queue.attempts(job_id)] == [(1, 1), (2, 1)]


def test_a_run_with_as_many_attempts_as_can_be_is_retried_all_the_same(queue: Queue) -> None:
    job_id = ended(queue, "dead")
    queue.look("update jobforge.jobs set max_attempts = 1000, attempt_no = 1000")

    run = queue.retry(job_id)

    assert (run.status, run.max_attempts) == ("queued", 1000)
    assert queue.fail(queue.claim_one())[0].status == "dead"


@pytest.mark.parametrize("force", [False, None])
def test_a_succeeded_run_is_not_repeated_without_force(queue: Queue, force: bool | None) -> None:
    job_id = ended(queue, "succeeded")

    with refused("JF409"):
        queue.retry(job_id, force=force)

    assert queue.status(job_id) == "succeeded"


def test_a_succeeded_run_is_repeated_with_force(queue: Queue) -> None:
    job_id = ended(queue, "succeeded")

    run = queue.retry(job_id, force=True)

    assert (run.status, run.result) == ("queued", None)


@pytest.mark.parametrize("place", ["ready", "lease", "waiting"])
def test_an_open_run_is_not_retried(queue: Queue, place: str) -> None:
    job_id = queue.enqueue(ordering_key="k").job_id
    if place == "lease":
        queue.claim_one()
    elif place == "waiting":
        job_id = queue.enqueue(ordering_key="k").job_id

    with refused("JF409"):
        queue.retry(job_id)

    assert queue.place(job_id) == [place]


def test_a_retry_against_another_version_is_refused(queue: Queue) -> None:
    job_id = ended(queue, "dead")
    version = queue.version(job_id)

    with refused("JF409"):
        queue.retry(job_id, if_version=version - 1)
    run = queue.retry(job_id, if_version=version)

    assert run.status == "queued"


def test_two_retries_against_one_version_have_one_winner(queue: Queue) -> None:
    job_id = ended(queue, "dead")
    version = queue.version(job_id)
    queue.retry(job_id, if_version=version)

    with refused("JF409"):
        queue.retry(job_id, if_version=version)


def test_a_retry_can_be_due_later(queue: Queue) -> None:
    job_id = ended(queue, "dead")
    later = queue.now() + timedelta(hours=1)

    run = queue.retry(job_id, run_at=later)

    assert run.run_at == later
    assert queue.claim(10) == []
    queue.advance(3601)
    assert queue.claim_one().job_id == job_id


def test_a_retry_that_is_not_yet_due_can_be_canceled(queue: Queue) -> None:
    job_id = ended(queue, "dead")
    queue.retry(job_id, run_at=queue.now() + timedelta(hours=1))

    assert queue.cancel(job_id).status == "canceled"


def test_an_unknown_run_is_not_retried(queue: Queue) -> None:
    with refused("JF404"):
        queue.retry(uuid4())


def test_the_old_fence_does_not_settle_the_retried_run(queue: Queue) -> None:
    job = queue.enqueue(max_attempts=1)
    old = queue.claim_one()
    queue.fail(old)
    queue.retry(job.job_id)
    queue.claim_one("w2")

    assert queue.complete(old)[0].outcome == "stale"
    assert queue.status(job.job_id) == "running"


def test_each_retry_is_audited(queue: Queue) -> None:
    job_id = ended(queue, "dead")
    queue.retry(job_id, reset_attempts=True)

    (audit,) = queue.look("select job_id, detail from jobforge.audit_log where action = 'retry'")
    assert (audit.job_id, audit.detail) == (job_id, {"resetAttempts": True, "force": False})


@pytest.mark.requirement("policy.retry-runnable")
def test_a_run_whose_definition_was_removed_is_not_queued_again(queue: Queue) -> None:
    job_id = ended(queue, "failed")
    queue.look(
        """insert into jobforge.registered_jobs
        (tenant_id, job_type, name_key, latest_version, version_no, search_text, created_at, updated_at, removed_at)
        values ('acme', %s, %s, '1', 1, '', jobforge.now(), jobforge.now(), jobforge.now())""",
        ECHO,
        ECHO,
    )

    with refused("JF409"):
        queue.retry(job_id)

    assert queue.status(job_id) == "failed"


@pytest.mark.parametrize("run_at", ["10000-01-01 00:00Z", "infinity", "1969-12-31 23:59Z"])
def test_a_run_cannot_be_retried_at_a_time_that_no_calendar_has(queue: Queue, run_at: str) -> None:
    job_id = queue.enqueue().job_id
    queue.cancel(job_id)

    with refused("JF400"):
        queue.retry(job_id, run_at=run_at)
