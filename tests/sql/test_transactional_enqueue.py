"""Enqueue inside an application's own transaction: the job exists if and only if that commits."""

from __future__ import annotations

import pytest

from tests.sql.acting import API, ECHO, SUPERUSER, Queue, call, enter
from tests.sql.conftest import MakeQueue


def arrange(queue: Queue) -> None:
    with queue.acting(SUPERUSER) as connection:
        connection.execute("create table public.orders (id integer primary key)")
        connection.execute("grant insert, select on public.orders to jobforge_api")


def test_a_job_and_its_order_are_committed_together(make_queue: MakeQueue) -> None:
    application, worker = make_queue(), make_queue()
    arrange(application)

    with application.acting(API) as connection:
        connection.execute("insert into public.orders values (1)")
        enter(connection, "acme")
        job = call(connection, "enqueue_job", "acme", ECHO, '{"order": 1}')[0]
        assert worker.claim(10) == []

    assert [row.job_id for row in worker.claim(10)] == [job.job_id]


@pytest.mark.requirement("sql.transactional-enqueue")
def test_an_order_that_is_rolled_back_leaves_no_job(make_queue: MakeQueue) -> None:
    application = make_queue()
    arrange(application)

    with application.acting(API) as connection, connection.transaction(force_rollback=True):
        connection.execute("insert into public.orders values (1)")
        enter(connection, "acme")
        call(connection, "enqueue_job", "acme", ECHO, "{}", "key", "ordering")

    left = application.look(
        """select count(*) as rows from (
          select job_id from jobforge.ready union all select id from jobforge.jobs
          union all select job_id from jobforge.idempotency_keys
          union all select head_job_id from jobforge.ordering_keys
          union all select job_id from jobforge.audit_log) x"""
    )
    assert left[0].rows == 0
    assert application.look("select id from public.orders") == []


def test_a_savepoint_takes_only_its_own_job_back(make_queue: MakeQueue) -> None:
    application = make_queue()

    with application.acting(API) as connection:
        enter(connection, "acme")
        kept = call(connection, "enqueue_job", "acme", ECHO, "{}")[0]
        with connection.transaction(force_rollback=True):
            call(connection, "enqueue_job", "acme", ECHO, "{}")

    assert [row.job_id for row in application.claim(10)] == [kept.job_id]


def test_a_worker_is_not_held_up_by_an_application_that_has_not_committed(
    make_queue: MakeQueue,
) -> None:
    application, others = make_queue(), make_queue()

    with application.acting(API) as connection:
        enter(connection, "acme")
        call(connection, "enqueue_job", "acme", ECHO, "{}")
        with others.acting(API) as other:
            other.execute("set local lock_timeout = '1s'")
            enter(other, "acme")
            call(other, "enqueue_job", "acme", ECHO, "{}")
        others.work("tend_lanes")
        (claimed,) = others.claim(10)
        settled = others.complete(claimed)

    assert settled[0].outcome == "accepted"
    others.work("tend_lanes")
    assert len(others.claim(10)) == 1


def test_a_job_can_be_read_and_canceled_before_its_transaction_commits(queue: Queue) -> None:
    with queue.acting(API) as connection:
        enter(connection, "acme")
        job = call(connection, "enqueue_job", "acme", ECHO, "{}")[0]
        seen = call(connection, "get_run", "acme", job.job_id)[0]
        canceled = call(connection, "cancel_job", "acme", job.job_id)[0]

    assert (seen.status, canceled.status) == ("queued", "canceled")
