"""Claim: which jobs a worker gets, in which order, and under what lease."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest

from tests.sql.acting import ECHO, SUPERUSER, WORKER, Queue, call, refused
from tests.sql.conftest import MakeQueue


def test_a_claim_hands_over_everything_a_worker_needs(queue: Queue) -> None:
    job = queue.enqueue(payload='{"a": 1}', project_id="p1", trace_id="t1", timeout_ms=1000)

    claimed = queue.claim_one(lease_ms=5000)

    assert (claimed.tenant_id, claimed.job_id, claimed.job_type) == ("acme", job.job_id, ECHO)
    assert (claimed.epoch, claimed.attempt_no, claimed.max_attempts) == (1, 1, 3)
    assert (claimed.payload, claimed.project_id, claimed.trace_id) == ('{"a": 1}', "p1", "t1")
    assert (claimed.timeout_ms, claimed.is_dry_run, claimed.is_suspect) == (1000, False, False)
    assert claimed.lease_until - claimed.claimed_at == timedelta(seconds=5)


def test_a_claimed_job_is_running_and_nowhere_else(queue: Queue) -> None:
    job = queue.enqueue()

    claimed = queue.claim_one()

    run = queue.run(job.job_id)
    assert queue.place(job.job_id) == ["lease"]
    assert (run.status, run.worker_id, run.epoch) == ("running", "w1", 1)
    assert (run.started_at, run.lease_until) == (claimed.claimed_at, claimed.lease_until)


def test_a_claimed_job_is_not_claimed_again(queue: Queue) -> None:
    queue.enqueue()
    queue.claim_one()

    assert queue.claim(10, "w2") == []


def test_a_claim_takes_no_more_than_its_limit(queue: Queue) -> None:
    queue.enqueue_many(5)

    assert len(queue.claim(3)) == 3
    assert len(queue.claim(3)) == 2


def test_a_job_is_not_claimed_before_its_time(queue: Queue) -> None:
    queue.enqueue(run_at=queue.now() + timedelta(hours=1))

    early = queue.claim()
    queue.advance(3601)

    assert early == []
    assert len(queue.claim()) == 1


def test_only_named_types_are_claimed(queue: Queue) -> None:
    queue.enqueue(job_type="demo.other")

    assert queue.claim(10) == []
    assert len(queue.claim(10, types=["demo.other"])) == 1


def test_a_claim_can_be_confined_to_tenants(queue: Queue) -> None:
    queue.enqueue("acme")
    globex = queue.enqueue("globex")

    claimed = queue.claim(10, tenant_ids=["globex"])

    assert [row.job_id for row in claimed] == [globex.job_id]


def test_the_lowest_priority_number_comes_first_and_then_the_oldest(queue: Queue) -> None:
    ids = queue.enqueue_many(4, priorities=[2, 0, 2, 1])

    claimed = queue.claim(4)

    assert [row.job_id for row in claimed] == [ids[1], ids[3], ids[0], ids[2]]


def test_priorities_are_compared_across_the_types_of_a_tenant(queue: Queue) -> None:
    queue.enqueue_many(5, job_type="demo.a", priorities=[2] * 5)
    urgent = queue.enqueue_many(2, job_type="demo.b", priorities=[0] * 2)

    claimed = queue.claim(2, types=["demo.a", "demo.b"])

    assert [row.job_id for row in claimed] == urgent


def test_urgent_jobs_of_the_future_do_not_hide_those_that_are_due(queue: Queue) -> None:
    later = queue.now() + timedelta(hours=1)
    queue.enqueue_many(5, priorities=[0] * 5, run_ats=[later] * 5)
    due = queue.enqueue(priority=3)

    assert queue.claim_one().job_id == due.job_id


def test_the_epoch_grows_by_one_with_each_claim(queue: Queue) -> None:
    queue.enqueue()

    epochs: list[int] = []
    for _ in range(3):
        claimed = queue.claim_one()
        epochs.append(claimed.epoch)
        queue.release(claimed)

    assert epochs == [1, 2, 3]


def test_the_epoch_grows_through_cancel_and_retry(queue: Queue) -> None:
    job = queue.enqueue()
    queue.release(queue.claim_one())
    queue.cancel(job.job_id)
    queue.retry(job.job_id)

    assert queue.claim_one().epoch == 2


def test_the_epoch_grows_through_death_and_retry_with_fresh_attempts(queue: Queue) -> None:
    job = queue.enqueue(max_attempts=1)
    queue.fail(queue.claim_one())
    queue.retry(job.job_id, reset_attempts=True)

    claimed = queue.claim_one()

    assert (claimed.epoch, claimed.attempt_no) == (2, 1)


def test_one_claim_writes_one_lease_for_each_tenant(queue: Queue) -> None:
    queue.enqueue_many(3, "acme")
    queue.enqueue_many(2, "globex")

    claimed = queue.claim(5)

    leases = queue.look("select tenant_id, cardinality(job_ids) as jobs from jobforge.leases")
    assert sorted((row.tenant_id, row.jobs) for row in leases) == [("acme", 3), ("globex", 2)]
    assert len({row.lease_id for row in claimed}) == 1


@pytest.mark.parametrize("limit", [0, -1, 1001, None])
def test_a_claim_of_too_few_or_too_many_is_refused(queue: Queue, limit: int | None) -> None:
    with refused("JF400"):
        queue.work("claim_jobs", "w1", [ECHO], limit)


@pytest.mark.parametrize("lease_ms", [0, 99, 3_600_001, None])
def test_a_lease_of_no_use_is_refused(queue: Queue, lease_ms: int | None) -> None:
    with refused("JF400"):
        queue.claim(lease_ms=lease_ms)


def test_a_row_whose_job_vanished_does_not_spoil_the_claim(queue: Queue) -> None:
    gone, kept = queue.enqueue_many(2)
    queue.look("delete from jobforge.jobs where id = %s", gone)

    claimed = queue.claim(2)

    assert [row.job_id for row in claimed] == [kept]
    assert queue.place(gone) == []


def test_a_claim_that_finds_only_vanished_jobs_writes_no_lease(queue: Queue) -> None:
    queue.enqueue()
    queue.look("delete from jobforge.jobs")

    assert queue.claim(2) == []
    assert queue.look("select 1 as one from jobforge.leases") == []


def test_a_claim_can_reap_first(queue: Queue) -> None:
    queue.enqueue()
    queue.claim_one("w1")
    queue.advance(31)

    (again,) = queue.claim(1, "w2", reap=True)

    assert (again.epoch, again.attempt_no) == (2, 2)


def test_two_workers_in_flight_get_different_jobs(make_queue: MakeQueue) -> None:
    first, second = make_queue(), make_queue()
    first.enqueue_many(6)

    with first.acting(WORKER) as connection:
        held = call(connection, "claim_jobs", "w1", [ECHO], 3)
        others = second.claim(6, "w2")

    assert len(held) == len(others) == 3
    assert {row.job_id for row in held}.isdisjoint({row.job_id for row in others})


def test_a_claim_that_is_rolled_back_took_nothing(make_queue: MakeQueue) -> None:
    queue, other = make_queue(), make_queue()
    job = queue.enqueue()

    with queue.acting(WORKER) as connection, connection.transaction(force_rollback=True):
        (lost,) = call(connection, "claim_jobs", "w1", [ECHO], 1)
    claimed = other.claim_one("w2")

    assert (claimed.job_id, claimed.epoch) == (job.job_id, lost.epoch)
    assert claimed.lease_id != lost.lease_id
    assert queue.complete(lost)[0].outcome == "stale"


def test_a_claim_sees_what_another_committed_while_the_rest_is_locked(
    make_queue: MakeQueue,
) -> None:
    first, second = make_queue(), make_queue()
    first.enqueue_many(10, priorities=[0] * 5 + [1] * 5)

    with first.acting(WORKER) as connection:
        call(connection, "claim_jobs", "w1", [ECHO], 5)
        claimed = second.claim(10, "w2")

    assert len(claimed) == 5


def test_an_unknown_worker_may_claim_since_correctness_never_depends_on_its_row(
    queue: Queue,
) -> None:
    queue.enqueue()

    assert len(queue.claim(1, f"w-{uuid4()}")) == 1


# --- lanes


def test_a_lane_that_was_forgotten_is_found_again(queue: Queue) -> None:
    queue.enqueue()
    queue.look("delete from jobforge.lanes")

    unseen = queue.claim()
    queue.work("tend_lanes")

    assert unseen == []
    assert len(queue.claim()) == 1


def test_lanes_without_work_are_forgotten_after_a_minute(queue: Queue) -> None:
    queue.enqueue()
    queue.complete(queue.claim_one())
    queue.enqueue(job_type="demo.other")
    queue.advance(61)

    queue.work("tend_lanes")

    lanes = queue.look("select job_type from jobforge.lanes")
    assert [row.job_type for row in lanes] == ["demo.other"]


def test_a_lane_is_found_while_the_transaction_that_woke_it_stays_open(
    make_queue: MakeQueue,
) -> None:
    application, others = make_queue(), make_queue()

    with application.acting("jobforge_api") as connection:
        connection.execute("select jobforge.enter_scope('acme')")
        call(connection, "enqueue_job", "acme", ECHO, "{}")
        job = others.enqueue()
        others.work("tend_lanes")
        claimed = others.claim(10)

    assert [row.job_id for row in claimed] == [job.job_id]


def test_a_lane_that_was_found_and_woken_gives_each_job_once(queue: Queue) -> None:
    queue.enqueue_many(4)
    queue.look("delete from jobforge.lanes")
    queue.work("tend_lanes")
    queue.advance(11)
    queue.enqueue_many(4)

    lanes = queue.look("select is_found from jobforge.lanes order by 1")
    claimed = queue.claim(10)

    assert [row.is_found for row in lanes] == [False, True]
    assert len({row.job_id for row in claimed}) == len(claimed) == 8


# --- suspects


def test_a_suspect_is_claimed_in_a_lease_of_its_own(queue: Queue) -> None:
    queue.enqueue_many(2)
    queue.claim(2)
    queue.lose_worker()
    queue.enqueue()

    claimed = queue.claim(3, "w2")

    assert [row.is_suspect for row in claimed] == [True, False]
    leases = queue.look("select is_suspect, cardinality(job_ids) as jobs from jobforge.leases")
    assert sorted((row.is_suspect, row.jobs) for row in leases) == [(False, 1), (True, 1)]


def test_a_worker_holds_one_suspect_at_a_time(queue: Queue) -> None:
    queue.enqueue_many(3)
    queue.claim(3)
    queue.lose_worker()

    assert len(queue.claim(3, "w2")) == 1
    assert len(queue.claim(3, "w2")) == 0
    assert len(queue.claim(3, "w3")) == 1


def test_a_suspect_of_another_type_or_tenant_is_left_alone(queue: Queue) -> None:
    queue.enqueue_many(2)
    queue.claim(2)
    queue.lose_worker()

    assert queue.claim(2, "w2", types=["demo.other"]) == []
    assert queue.claim(2, "w2", tenant_ids=["globex"]) == []


def test_a_suspect_counts_towards_the_limit(queue: Queue) -> None:
    queue.enqueue_many(2)
    queue.claim(2)
    queue.lose_worker()
    queue.enqueue_many(5)

    assert len(queue.claim(1, "w2")) == 1
    assert len(queue.claim(2, "w3")) == 2


def test_a_suspect_that_fails_by_itself_is_no_suspect_any_more(queue: Queue) -> None:
    queue.enqueue_many(2, backoff_ms=[0, 0])
    queue.claim(2)
    queue.lose_worker()
    queue.fail(queue.claim_one("w2"))

    suspects = queue.look("select is_suspect from jobforge.ready order by 1")

    assert [row.is_suspect for row in suspects] == [False, True]


def test_no_claim_waits_for_the_disk_unless_it_is_part_of_more(make_queue: MakeQueue) -> None:
    queue = make_queue()
    queue.enqueue()

    with queue.acting(WORKER) as connection:
        call(connection, "claim_jobs", "w1", [ECHO], 1)
        setting = connection.execute("show synchronous_commit").fetchone()

    assert setting == ("off",)


def test_a_claim_inside_a_transaction_that_wrote_leaves_its_durability_alone(
    make_queue: MakeQueue,
) -> None:
    queue = make_queue()
    queue.enqueue()

    with queue.acting(SUPERUSER) as connection:
        connection.execute("update jobforge_test.clock set shift = shift")
        call(connection, "claim_jobs", "w1", [ECHO], 1)
        setting = connection.execute("show synchronous_commit").fetchone()

    assert setting == ("on",)
