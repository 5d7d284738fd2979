"""Runs go when they were kept long enough, in small batches, and nothing that is still needed goes with them."""

from __future__ import annotations

from uuid import uuid4

import psycopg
import pytest

from tests.sql.acting import ECHO, SUPERUSER, WORKER, Queue

DAY = 86_400


def purge(queue: Queue, limit: int = 1_000) -> tuple[int, int]:
    (row,) = queue.work("purge_finished", limit)
    return row.runs, row.idempotency_keys


def set_retention(queue: Queue, tenant: str, days: int) -> None:
    with queue.acting(SUPERUSER) as connection:
        connection.execute("select jobforge.set_retention(%s, %s)", [tenant, days])


def age(queue: Queue, days: float) -> None:
    """Make every run as old as it would be: ids carry the time of their making, which no clock of a test moves."""
    queue.look(
        """
        update jobforge.jobs set id = overlay(id::text placing
            left(jobforge.lowest_id(created_at - %s * interval '1 day')::text, 13) from 1)::uuid,
          created_at = created_at - %s * interval '1 day', finished_at = finished_at - %s * interval '1 day'""",
        days,
        days,
        days,
    )


def ended(queue: Queue, count: int = 1, tenant: str = "acme") -> None:
    queue.enqueue_many(count, tenant)
    queue.complete(*queue.claim(count, tenant_ids=[tenant]))


@pytest.mark.requirement("sql.retention")
def test_a_run_is_kept_for_ninety_days_after_its_end_and_then_goes(queue: Queue) -> None:
    ended(queue, 2)
    age(queue, 89)
    assert purge(queue) == (0, 0)

    age(queue, 2)

    assert purge(queue) == (2, 0)
    assert queue.look("select id from jobforge.jobs") == []


def test_each_tenant_keeps_its_runs_for_as_long_as_it_was_told(queue: Queue) -> None:
    ended(queue, 1, "acme")
    ended(queue, 1, "globex")
    set_retention(queue, "acme", 30)
    age(queue, 40)

    assert purge(queue) == (1, 0)
    assert [row.tenant_id for row in queue.look("select tenant_id from jobforge.jobs")] == [
        "globex"
    ]


def test_a_run_that_has_not_ended_stays_however_old_it_is(queue: Queue) -> None:
    queue.enqueue()
    queue.look("update jobforge.jobs set created_at = created_at - interval '1 year'")

    assert purge(queue) == (0, 0)


def test_a_purge_takes_no_more_than_it_was_asked_to(queue: Queue) -> None:
    ended(queue, 5)
    age(queue, 100)

    assert [purge(queue, 2)[0] for _ in range(4)] == [2, 2, 1, 0]


def test_a_child_stays_while_its_parent_is_open(queue: Queue) -> None:
    parent = queue.enqueue().job_id
    ended(queue, 1, "globex")
    queue.look(
        "update jobforge.jobs set parent_id = %s, tenant_id = 'acme' where tenant_id = 'globex'",
        parent,
    )
    queue.look(
        "update jobforge.jobs set finished_at = finished_at - interval '1 year' where parent_id is not null"
    )
    queue.look(
        "update jobforge.jobs set id = overlay(id::text placing left(jobforge.lowest_id(created_at - interval '1 year')::text, 13)"
        " from 1)::uuid where parent_id is not null"
    )

    assert purge(queue) == (0, 0)
    queue.cancel(parent)
    assert purge(queue) == (1, 0)


def test_a_key_goes_when_it_has_expired_and_answers_until_then(queue: Queue) -> None:
    first = queue.enqueue(idempotency_key="k")
    queue.advance(29 * DAY)
    assert queue.enqueue(idempotency_key="k").job_id == first.job_id
    assert purge(queue)[1] == 0

    queue.advance(2 * DAY)

    assert purge(queue)[1] == 1


@pytest.mark.parametrize("days", [0, 29, 36_501])
def test_a_time_shorter_than_a_key_answers_is_refused(queue: Queue, days: int) -> None:
    with pytest.raises(psycopg.Error, match="runs are kept for") as caught:
        set_retention(queue, "acme", days)

    assert caught.value.sqlstate == "JF400"


@pytest.mark.parametrize("limit", [0, 10_001])
def test_a_purge_of_too_few_or_too_many_is_refused(queue: Queue, limit: int) -> None:
    with pytest.raises(psycopg.Error, match="a purge takes"), queue.acting(WORKER) as connection:
        connection.execute("select jobforge.purge_finished(%s)", [limit])


def test_views_show_what_runs_what_failed_and_what_waits(queue: Queue) -> None:
    queue.enqueue_many(3)
    running, failing, _ = queue.claim(3)
    queue.fail(failing, kind="permanent")
    queue.enqueue()

    def see(view: str) -> list[tuple[object, ...]]:
        with queue.acting("jobforge_readonly") as connection, connection.transaction():
            connection.execute("select jobforge.enter_scope('acme', 'reader', null, 'psql', null)")
            return connection.execute(view.encode()).fetchall()

    assert see("select count(*) from jobforge.running_runs") == [(2,)]
    assert see("select job_id, status, error_code from jobforge.failed_runs") == [
        (failing.job_id, "failed", "OOPS")
    ]
    assert see("select job_type, queued, due, running, waiting from jobforge.queue_depth") == [
        (ECHO, 1, 1, 2, 0)
    ]
    assert see("select count(*) from jobforge.trigger_status") == [(0,)]
    assert running.job_id is not None


def test_views_show_nothing_of_others(queue: Queue) -> None:
    queue.enqueue_many(2)
    queue.claim(1)

    with queue.acting("jobforge_readonly") as connection:
        connection.execute("select jobforge.enter_scope('globex', 'reader', null, 'psql', null)")
        seen = connection.execute("select count(*) from jobforge.queue_depth").fetchall()

    assert seen == [(0,)]


@pytest.mark.requirement("tools.dry-run")
def test_a_planned_cancel_or_retry_changes_nothing_but_the_audit_log(queue: Queue) -> None:
    job_id = queue.enqueue().job_id
    before = queue.run(job_id)

    planned = queue.ask("cancel_job", "acme", job_id, None, is_plan=True)[0]

    assert planned == before == queue.run(job_id)
    queue.cancel(job_id)
    canceled = queue.run(job_id)
    assert queue.retry(job_id, is_plan=True) == canceled == queue.run(job_id)
    planned_rows = queue.look("select action from jobforge.audit_log where outcome = 'planned'")
    assert [row.action for row in planned_rows] == ["cancel", "retry"]


def test_a_plan_is_refused_like_the_act(queue: Queue) -> None:
    ended(queue)
    job_id = queue.look("select id from jobforge.jobs")[0].id

    for function, arguments in (("cancel_job", (None,)), ("retry_job", ())):
        with pytest.raises(psycopg.Error) as caught:
            queue.ask(function, "acme", job_id, *arguments, is_plan=True)
        assert caught.value.sqlstate == "JF409"
    with pytest.raises(psycopg.Error) as unknown:
        queue.ask("cancel_job", "acme", uuid4(), None, is_plan=True)
    assert unknown.value.sqlstate == "JF404"
