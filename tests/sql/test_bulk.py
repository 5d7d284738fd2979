"""Cancel and retry by filter: the count first, batches, and nothing that was not meant."""

from __future__ import annotations

import json
from uuid import UUID

import pytest

from tests.sql.acting import ECHO, Queue, Row, refused

OTHER = "other.type"


def cancel(queue: Queue, **named: object) -> Row:
    return queue.ask("cancel_runs", "acme", **named)[0]


def retry(queue: Queue, **named: object) -> Row:
    return queue.ask("retry_runs", "acme", **named)[0]


def dead(queue: Queue, count: int = 1, job_type: str = ECHO) -> list[UUID]:
    ids = queue.enqueue_many(count, job_type=job_type, max_attempts=[1] * count)
    queue.fail(*queue.claim(count, types=[job_type]))
    return ids


@pytest.mark.requirement("sql.bulk")
def test_a_plan_counts_and_touches_nothing(queue: Queue) -> None:
    ids = queue.enqueue_many(12)
    queue.enqueue(job_type=OTHER)

    planned = cancel(queue, job_type=ECHO, is_plan=True)

    assert (planned.matched, planned.job_ids) == (12, ids[:10])
    assert {queue.status(job) for job in ids} == {"queued"}


@pytest.mark.requirement("sql.bulk")
def test_open_runs_are_canceled_wherever_they_are(queue: Queue) -> None:
    queued = queue.enqueue().job_id
    head = queue.enqueue(ordering_key="o").job_id
    waiting = queue.enqueue(ordering_key="o").job_id
    running = queue.enqueue(priority=0).job_id
    queue.claim_one()
    done = queue.enqueue(job_type=OTHER).job_id

    answer = cancel(queue, job_type=ECHO, reason="not needed")

    assert set(answer.job_ids) == {queued, head, waiting, running}
    assert answer.after_id is None
    assert [queue.status(job) for job in (queued, head, waiting, done)] == [
        *["canceled"] * 3,
        "queued",
    ]
    assert queue.run(running).cancel_requested_at is not None


def test_batches_go_on_where_the_last_one_ended(queue: Queue) -> None:
    ids = queue.enqueue_many(5)
    seen: list[UUID] = []
    after = None
    while True:
        answer = cancel(queue, limit=2, after_id=after)
        seen += answer.job_ids
        after = answer.after_id
        if after is None:
            break

    assert seen == ids


@pytest.mark.requirement("sql.bulk")
def test_more_runs_than_were_counted_are_not_touched(queue: Queue) -> None:
    queue.enqueue_many(3)

    with refused("JF409"):
        cancel(queue, expected=2)

    assert len(queue.ask("list_runs", "acme", status="queued")) == 3
    assert len(cancel(queue, expected=3).job_ids) == 3


@pytest.mark.parametrize(
    ("status", "expected"),
    [("queued", {"queued"}), ("waiting", {"waiting"}), ("running", {"running"})],
)
def test_a_status_names_a_part_of_them(queue: Queue, status: str, expected: set[str]) -> None:
    queue.enqueue()
    queue.claim_one()
    for _ in range(2):
        queue.enqueue(ordering_key="o")
    runs = {run.job_id: run.status for run in queue.ask("list_runs", "acme")}

    answer = cancel(queue, statuses=[status])

    assert {runs[job] for job in answer.job_ids} == expected


def test_filters_narrow(queue: Queue) -> None:
    wanted = queue.enqueue(
        project_id="p1", trace_id="t1", labels=json.dumps({"team": "a", "x": "y"})
    ).job_id
    for named in (
        {"project_id": "p2", "trace_id": "t1", "labels": '{"team": "a"}'},
        {"project_id": "p1", "trace_id": "t2", "labels": '{"team": "a"}'},
        {"project_id": "p1", "trace_id": "t1", "labels": '{"team": "b"}'},
    ):
        queue.enqueue(**named)

    answer = cancel(queue, project_ids=["p1"], trace_id="t1", labels='{"team": "a"}')

    assert answer.job_ids == [wanted]


@pytest.mark.requirement("sql.bulk")
def test_dead_runs_are_queued_again(queue: Queue) -> None:
    lost = dead(queue, 3)
    other = dead(queue, 1, OTHER)
    succeeded = queue.enqueue().job_id
    queue.complete(queue.claim_one())

    answer = retry(queue, job_type=ECHO, statuses=["dead"], reset_attempts=True)

    assert (answer.job_ids, answer.skipped_ids) == (lost, [])
    assert {queue.status(job) for job in lost} == {"queued"}
    assert (queue.status(other[0]), queue.status(succeeded)) == ("dead", "succeeded")
    assert len(queue.claim(10)) == 3


def test_runs_are_retried_by_the_code_they_failed_with(queue: Queue) -> None:
    lost = dead(queue, 2)

    assert retry(queue, error_code="OTHER", is_plan=True).matched == 0
    assert retry(queue, error_code="OOPS", is_plan=True).job_ids == lost


@pytest.mark.parametrize("statuses", [["succeeded"], ["queued"], ["nonsense"]])
def test_what_a_bulk_retry_cannot_mean_is_refused(queue: Queue, statuses: list[str]) -> None:
    with refused("JF400"):
        retry(queue, statuses=statuses)


@pytest.mark.requirement("sql.bulk")
def test_each_call_leaves_one_audit_row(queue: Queue) -> None:
    queue.enqueue_many(3)
    cancel(queue, is_plan=True)
    cancel(queue, reason="why")

    rows = queue.look(
        "select action, outcome, detail from jobforge.audit_log where action <> 'enqueue' order by id"
    )
    assert [(row.action, row.outcome, row.detail["count"]) for row in rows] == [
        ("cancel_runs", "planned", 3),
        ("cancel_runs", "done", 3),
    ]
    assert rows[1].detail["reason"] == "why"


def test_callers_who_are_confined_reach_their_own_alone(queue: Queue) -> None:
    queue.enqueue(project_id="p1")
    queue.enqueue(project_id="p2")
    queue.enqueue(project_id="p1", job_type=OTHER)
    claims = json.dumps({"projects": ["p1"], "jobTypes": [ECHO]})

    with queue.acting("jobforge_api") as connection:
        row = connection.execute(
            """select r.matched from jobforge.enter_scope('acme', 'a', 't', 'x', null, %s) s(t),
            lateral jobforge.cancel_runs(s.t, p_is_plan => true) r""",
            [claims],
        ).fetchone()

    assert row == (1,)


def test_limits_hold_for_a_batch(queue: Queue) -> None:
    lost = dead(queue, 3)
    queue.look("select jobforge.set_limit('acme', 'tenant', null, '{\"max_queued\": 2}')")

    with refused("JF429"):
        retry(queue)

    assert {queue.status(job) for job in lost} == {"dead"}
