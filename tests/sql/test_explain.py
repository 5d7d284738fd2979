"""Why is it not running: one named cause."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest

from tests.sql.acting import ECHO, Queue, refused


def test_no_living_worker_can_run_it(queue: Queue) -> None:
    job = queue.enqueue()
    queue.register(types=["demo.other"])

    assert queue.explain(job.job_id).cause == "no_worker"


def test_a_worker_unseen_for_a_minute_does_not_count(queue: Queue) -> None:
    job = queue.enqueue()
    queue.register()
    queue.advance(61)

    assert queue.explain(job.job_id).cause == "no_worker"


def test_a_heartbeat_keeps_a_worker_counted(queue: Queue) -> None:
    job = queue.enqueue()
    queue.register()
    queue.advance(50)
    queue.heartbeat()
    queue.advance(50)

    assert queue.explain(job.job_id).cause == "queued_behind"


def test_a_worker_that_said_goodbye_does_not_count(queue: Queue) -> None:
    job = queue.enqueue()
    queue.register()
    queue.work("forget_worker", "w1")

    assert queue.explain(job.job_id).cause == "no_worker"


def test_it_was_asked_to_run_later(queue: Queue) -> None:
    later = queue.now() + timedelta(hours=1)
    job = queue.enqueue(run_at=later)
    queue.register()

    cause = queue.explain(job.job_id)

    assert (cause.cause, cause.until_at) == ("not_due", later)


def test_it_waits_for_its_next_attempt(queue: Queue) -> None:
    job = queue.enqueue(backoff_ms=60_000)
    queue.register()
    queue.fail(queue.claim_one())

    cause = queue.explain(job.job_id)

    assert (cause.cause, cause.until_at) == ("retrying", queue.run(job.job_id).run_at)


def test_it_waits_for_its_turn_behind_a_run_that_is_named(queue: Queue) -> None:
    head, job = (queue.enqueue(ordering_key="k").job_id for _ in range(2))

    cause = queue.explain(job)

    assert (cause.cause, cause.blocked_by) == ("waiting_turn", head)


def test_it_runs(queue: Queue) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()

    cause = queue.explain(job.job_id)

    assert (cause.cause, cause.until_at) == ("running", claimed.lease_until)


def test_it_was_asked_to_stop(queue: Queue) -> None:
    job = queue.enqueue()
    queue.claim_one()
    queue.cancel(job.job_id)

    assert queue.explain(job.job_id).cause == "canceling"


def test_its_worker_was_lost(queue: Queue) -> None:
    job = queue.enqueue()
    queue.claim_one()
    queue.advance(31)
    queue.register()

    assert queue.explain(job.job_id).cause == "lease_expired"


def test_it_ended(queue: Queue) -> None:
    job = queue.enqueue()
    queue.complete(queue.claim_one())

    cause = queue.explain(job.job_id)

    assert (cause.cause, cause.until_at) == ("final", queue.run(job.job_id).finished_at)


def test_others_of_its_type_come_first(queue: Queue) -> None:
    queue.enqueue_many(3)
    job = queue.enqueue()
    queue.enqueue(priority=3)
    queue.register()

    cause = queue.explain(job.job_id)

    assert cause.cause == "queued_behind"
    assert cause.message.startswith("3 ")


def test_it_is_the_next(queue: Queue) -> None:
    job = queue.enqueue()
    queue.register()

    cause = queue.explain(job.job_id)

    assert cause.cause == "queued_behind"
    assert "next of its type" in cause.message


def test_its_definition_was_removed(queue: Queue) -> None:
    job = queue.enqueue()
    queue.register()
    queue.look(
        """insert into jobforge.registered_jobs
        (tenant_id, job_type, name_key, latest_version, version_no, search_text, created_at, updated_at, removed_at)
        values ('acme', %s, %s, '1', 1, '', jobforge.now(), jobforge.now(), jobforge.now())""",
        ECHO,
        ECHO,
    )

    assert queue.explain(job.job_id).cause == "definition_removed"


def test_a_type_that_nobody_knows_stays_queued_and_spends_no_attempt(queue: Queue) -> None:
    job = queue.enqueue(job_type="demo.unknown")
    queue.register()

    assert queue.claim(10) == []
    assert queue.explain(job.job_id).cause == "no_worker"
    assert queue.run(job.job_id).attempt_no == 0


@pytest.mark.parametrize("tenant", ["acme", "globex"])
def test_an_unknown_run_is_not_explained(queue: Queue, tenant: str) -> None:
    queue.enqueue("acme")

    with refused("JF404"):
        queue.explain(uuid4(), tenant)
