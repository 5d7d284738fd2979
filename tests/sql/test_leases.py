"""Leases: how they live, how they end, and who pays when a worker is lost."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.sql.acting import (
    API,
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


def test_a_heartbeat_extends_a_lease(queue: Queue) -> None:
    queue.enqueue()
    claimed = queue.claim_one()
    queue.advance(20)

    (held,) = queue.heartbeat(claimed)

    assert held.lease_until >= claimed.lease_until + timedelta(seconds=20)
    queue.advance(20)
    assert queue.reap() == 0
    assert queue.status(claimed.job_id) == "running"


def test_a_lease_that_expired_is_not_revived(queue: Queue) -> None:
    queue.enqueue()
    claimed = queue.claim_one()
    queue.advance(31)

    assert queue.heartbeat(claimed) == []


def test_a_heartbeat_of_another_worker_extends_nothing(queue: Queue) -> None:
    queue.enqueue()
    claimed = queue.claim_one("w1")

    assert queue.heartbeat(claimed, worker="w2") == []


def test_a_heartbeat_never_extends_past_the_deadline_of_the_last_job(queue: Queue) -> None:
    queue.enqueue(timeout_ms=20_000)
    claimed = queue.claim_one()
    queue.advance(20)

    (held,) = queue.heartbeat(claimed)

    assert held.lease_until == claimed.claimed_at + timedelta(seconds=35)


def test_an_expired_run_is_as_good_as_queued(queue: Queue) -> None:
    job = queue.enqueue()
    queue.claim_one()
    queue.advance(31)

    assert queue.status(job.job_id) == "queued"
    assert [row.job_id for row in queue.ask("list_runs", "acme", status="queued")] == [job.job_id]
    assert queue.ask("list_runs", "acme", status="running") == []


def test_a_job_lost_alone_pays_with_its_attempt(queue: Queue) -> None:
    job = queue.enqueue()
    queue.claim_one()

    assert queue.lose_worker() == 1

    run = queue.run(job.job_id)
    assert (run.status, run.attempt_no, run.epoch) == ("queued", 1, 1)
    (attempt,) = queue.attempts(job.job_id)
    assert (attempt.outcome, attempt.error["code"]) == ("lost", "WORKER_LOST")
    assert queue.claim_one("w2").attempt_no == 2


def test_jobs_lost_together_do_not_pay_and_become_suspects(queue: Queue) -> None:
    ids = queue.enqueue_many(3)
    queue.claim(3)

    assert queue.lose_worker() == 3

    assert [queue.run(job_id).attempt_no for job_id in ids] == [0, 0, 0]
    suspects = queue.look("select is_suspect from jobforge.ready")
    assert [row.is_suspect for row in suspects] == [True] * 3


def test_together_is_what_a_worker_held_in_all_its_leases(queue: Queue) -> None:
    ids = queue.enqueue_many(2)
    queue.claim(1)
    queue.claim(1)

    queue.lose_worker()

    assert [queue.run(job_id).attempt_no for job_id in ids] == [0, 0]


@pytest.mark.requirement("sql.poison")
def test_a_job_that_kills_its_worker_goes_dead_and_its_neighbours_do_not_pay(
    queue: Queue,
) -> None:
    poison, *others = queue.enqueue_many(5)
    queue.claim(5)
    queue.lose_worker()

    workers_lost = 1
    for number in range(20):
        claimed = queue.claim(1, f"w{number}", types=["demo.echo"])
        if not claimed:
            break
        if claimed[0].job_id == poison:
            workers_lost += 1
            queue.lose_worker()
        else:
            queue.complete(*claimed)

    run = queue.run(poison)
    assert (run.status, run.attempt_no, run.error["code"]) == ("dead", 3, "WORKER_LOST")
    assert [queue.status(job_id) for job_id in others] == ["succeeded"] * 4
    assert [queue.run(job_id).attempt_no for job_id in others] == [1] * 4
    assert workers_lost == 4


def test_of_many_lost_together_the_root_of_them_are_tried_in_one_lease(queue: Queue) -> None:
    queue.enqueue_many(16)
    queue.claim(16)
    queue.lose_worker()

    tried = queue.claim(16, "w2")
    assert [row.is_suspect for row in tried] == [True] * 4
    assert len({row.lease_id for row in tried}) == 1
    assert queue.claim(16, "w2") == []
    assert len(queue.claim(16, "w3")) == 4
    assert len(queue.claim(2, "w4")) == 2
    queue.complete(*tried)
    assert len(queue.claim(16, "w2")) == 4


def test_suspects_lost_together_do_not_pay_and_are_tried_alone(queue: Queue) -> None:
    queue.enqueue_many(16)
    queue.claim(16)
    queue.lose_worker()
    tried = {row.job_id for row in queue.claim(16, "w2")}

    queue.lose_worker()

    assert [queue.run(job_id).attempt_no for job_id in tried] == [0] * 4
    alone = [row for number in range(7) for row in [queue.claim(16, f"w{number}")] if len(row) == 1]
    assert {row.job_id for (row,) in alone} == tried


def test_the_last_suspect_of_a_lease_pays_when_it_is_lost(queue: Queue) -> None:
    queue.enqueue_many(16)
    queue.claim(16)
    queue.lose_worker()
    *settled, last = queue.claim(16, "w2")
    queue.complete(*settled)

    queue.lose_worker()

    assert queue.run(last.job_id).attempt_no == 1


@pytest.mark.requirement("sql.poison")
def test_a_job_that_kills_its_worker_is_found_among_many(queue: Queue) -> None:
    poison, *others = queue.enqueue_many(100)
    queue.claim(100)
    queue.lose_worker()

    workers_lost, claims = 1, 0
    while claimed := queue.claim(100, f"w{claims}"):
        claims += 1
        if poison in [row.job_id for row in claimed]:
            workers_lost += 1
            queue.lose_worker()
        else:
            queue.complete(*claimed)

    run = queue.run(poison)
    assert (run.status, run.attempt_no) == ("dead", 3)
    assert [queue.run(job_id).attempt_no for job_id in others] == [1] * 99
    assert workers_lost == 5
    assert claims < 30


def test_a_job_past_its_deadline_is_taken_out_of_a_living_lease(queue: Queue) -> None:
    short, long = queue.enqueue_many(2, timeout_ms=[1000, 600_000])
    claimed = queue.claim(2)
    queue.advance(10)
    queue.heartbeat(*claimed)
    queue.advance(10)

    assert queue.reap() == 1

    assert (queue.status(short), queue.status(long)) == ("queued", "running")
    assert queue.run(short).attempt_no == 1
    assert queue.attempts(short)[0].outcome == "timed_out"
    assert queue.heartbeat(*claimed) != []


def test_an_overdue_job_is_taken_out_only_once(queue: Queue) -> None:
    queue.enqueue_many(2, timeout_ms=[1000, 600_000])
    claimed = queue.claim(2)
    queue.advance(10)
    queue.heartbeat(*claimed)
    queue.advance(10)
    queue.reap()

    assert queue.reap() == 0


def test_a_settle_after_the_job_was_taken_out_is_stale(queue: Queue) -> None:
    queue.enqueue_many(2, timeout_ms=[1000, 600_000])
    short, long = queue.claim(2)
    queue.advance(10)
    queue.heartbeat(short, long)
    queue.advance(10)
    queue.reap()

    outcomes = [row.outcome for row in queue.complete(short, long)]

    assert outcomes == ["stale", "accepted"]


def test_an_expired_lease_that_nobody_reaped_still_settles(queue: Queue) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()
    queue.advance(31)

    assert queue.complete(claimed)[0].outcome == "accepted"
    assert queue.status(job.job_id) == "succeeded"


def test_an_expired_lease_takes_no_progress(queue: Queue) -> None:
    queue.enqueue()
    claimed = queue.claim_one()
    queue.advance(31)

    assert queue.report(claimed, 1, 2).is_accepted is False


def test_a_run_canceled_before_its_worker_was_lost_is_canceled(queue: Queue) -> None:
    job = queue.enqueue()
    queue.claim_one()
    queue.cancel(job.job_id)

    queue.lose_worker()

    assert queue.status(job.job_id) == "canceled"


def test_reaping_takes_a_bounded_number_of_leases(queue: Queue) -> None:
    queue.enqueue_many(3)
    for number in range(3):
        queue.claim_one(f"w{number}")
    queue.advance(31)

    assert queue.work("reap_expired", 2)[0].reap_expired == 2
    assert queue.work("reap_expired", 2)[0].reap_expired == 1


def test_two_reapers_in_flight_share_the_work_without_waiting(make_queue: MakeQueue) -> None:
    first, second = make_queue(), make_queue()
    job = first.enqueue()
    first.claim_one()
    first.advance(31)

    with first.acting(WORKER) as connection:
        call(connection, "reap_expired")
        assert second.reap() == 0

    assert second.place(job.job_id) == ["ready"]
    assert len(second.attempts(job.job_id)) == 1


def test_a_job_is_running_again_within_a_second_of_its_expiry(queue: Queue) -> None:
    queue.enqueue()
    queue.claim_one("w1")
    queue.advance(29.5)
    early = queue.claim(1, "w2", reap=True)
    queue.advance(1)

    late = queue.claim(1, "w2", reap=True)

    assert early == []
    assert len(late) == 1


# --- children


CHILD = (None, None, 2, None, None, "1", 3, 1000, 2.0, 60_000, 300_000)


def test_a_running_job_enqueues_a_child_in_its_own_tenant_project_and_trace(queue: Queue) -> None:
    queue.enqueue("acme", project_id="p1", trace_id="t1")
    parent = queue.claim_one()
    fence = (parent.tenant_id, parent.lease_id, parent.job_id, parent.epoch)

    (child,) = queue.work("enqueue_child", *fence, "demo.child", "{}", None, *CHILD)

    run = queue.run(child.job_id)
    assert (child.outcome, run.parent_id, run.created_by) == (
        "created",
        parent.job_id,
        f"job:{parent.job_id}",
    )
    assert (run.project_id, run.trace_id) == ("p1", "t1")


@pytest.mark.parametrize("change", ["epoch", "expired", "settled", "tenant"])
def test_an_attempt_without_its_lease_enqueues_no_child(queue: Queue, change: str) -> None:
    queue.enqueue()
    parent = queue.claim_one()
    tenant, epoch = parent.tenant_id, parent.epoch
    if change == "epoch":
        epoch += 1
    elif change == "tenant":
        tenant = "globex"
    elif change == "settled":
        queue.complete(parent)
    else:
        queue.advance(31)

    with refused("JF410"):
        fence = (tenant, parent.lease_id, parent.job_id, epoch)
        queue.work("enqueue_child", *fence, "demo.child", "{}", None, *CHILD)

    assert queue.look("select 1 as one from jobforge.jobs where job_type = 'demo.child'") == []


def test_the_scope_of_a_child_does_not_outlast_the_call(make_queue: MakeQueue) -> None:
    queue = make_queue()
    queue.enqueue()
    parent = queue.claim_one()
    fence = (parent.tenant_id, parent.lease_id, parent.job_id, parent.epoch)

    with queue.acting(WORKER) as connection:
        call(connection, "enqueue_child", *fence, "demo.child", "{}", None, *CHILD)
        after = connection.execute("select jobforge.current_tenant()").fetchone()

    assert after == (None,)


def test_heartbeats_and_cancels_do_not_wait_for_a_handlers_transaction(
    make_queue: MakeQueue,
) -> None:
    handler, others = make_queue(), make_queue()
    handler.enqueue()
    parent = handler.claim_one()
    fence = (parent.tenant_id, parent.lease_id, parent.job_id, parent.epoch)

    with handler.acting(WORKER) as connection:
        call(connection, "enqueue_child", *fence, "demo.child", "{}", None, *CHILD)
        with others.acting(WORKER) as other:
            other.execute("set local lock_timeout = '1s'")
            tenants, leases, *_ = fences([parent])
            held = call(other, "heartbeat", "w1", tenants, leases)
            told = call(other, "report_progress", *fences([parent]), [1.0], [None], [None], [None])
        with others.acting(API) as other:
            other.execute("set local lock_timeout = '1s'")
            enter(other, "acme")
            call(other, "cancel_job", "acme", parent.job_id)

    assert len(held) == 1
    assert told[0].is_accepted is True


def test_a_settle_waits_for_a_handlers_transaction(make_queue: MakeQueue) -> None:
    handler, others = make_queue(), make_queue()
    handler.enqueue()
    parent = handler.claim_one()
    fence = (parent.tenant_id, parent.lease_id, parent.job_id, parent.epoch)
    with others.acting(WORKER) as other:
        pass

    with handler.acting(WORKER) as connection:
        call(connection, "enqueue_child", *fence, "demo.child", "{}", None, *CHILD)
        settling = meanwhile(lambda: others.complete(parent))
        wait_until_blocked(make_queue(), other)

    assert settling.result(5)[0].outcome == "accepted"
