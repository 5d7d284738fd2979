"""Events that running jobs submit: fenced, once for each key, in the run's project and trace, held to its token."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.sql.acting import API, Queue, Row, call, fences, refused
from tests.sql.test_children_confined import PARENT, claim, enqueue_confined
from tests.sql.test_limits import spawn


def submit(
    queue: Queue, claimed: Row, key: str = "k", event_type: str = "order.paid", payload: str = "{}"
) -> Row:
    (tenant,), (lease,), (job,), (epoch,) = fences([claimed])
    (row,) = queue.work("submit_run_event", tenant, lease, job, epoch, event_type, payload, key)
    return row


def running(queue: Queue, **values: Any) -> Row:
    queue.enqueue("acme", PARENT, **values)
    return claim(queue, PARENT)


@pytest.mark.requirement("events.from-runs")
def test_an_event_of_a_run_has_its_project_its_trace_and_one_audit_row(queue: Queue) -> None:
    claimed = running(queue, project_id="p1", trace_id="t1")

    first, again, other = (
        submit(queue, claimed),
        submit(queue, claimed),
        submit(queue, claimed, payload='{"x": 1}'),
    )

    assert (first.outcome, again.outcome, other.outcome) == ("created", "replayed", "conflict")
    assert again.event_id == first.event_id
    (event,) = queue.look("select * from jobforge.events")
    assert (event.project_id, event.trace_id, event.actor) == ("p1", "t1", f"job:{claimed.job_id}")
    audited = queue.look(
        "select outcome, actor from jobforge.audit_log where action = 'submit_event' order by id"
    )
    assert [row.outcome for row in audited] == ["created", "replayed", "conflict"]
    assert {row.actor for row in audited} == {f"job:{claimed.job_id}"}


@pytest.mark.requirement("events.from-runs")
def test_a_run_without_a_trace_begins_one(queue: Queue) -> None:
    claimed = running(queue)

    submit(queue, claimed, "a")
    submit(queue, claimed, "b")

    traces = queue.look("select distinct trace_id from jobforge.events")
    assert [row.trace_id for row in traces] == [str(claimed.job_id)]


@pytest.mark.requirement("events.from-runs")
def test_an_attempt_that_lost_its_lease_submits_nothing(queue: Queue) -> None:
    claimed = running(queue)
    queue.release(claimed)

    with refused("JF410"):
        submit(queue, claimed)

    assert queue.look("select from jobforge.events") == []


@pytest.mark.requirement("events.from-runs")
def test_the_next_attempt_finds_what_the_last_submitted(queue: Queue) -> None:
    claimed = running(queue)
    first = submit(queue, claimed)
    queue.release(claimed)

    again = submit(queue, claim(queue, PARENT))

    assert (again.outcome, again.event_id) == ("replayed", first.event_id)


@pytest.mark.requirement("events.from-runs")
def test_a_dry_run_plans_its_events(queue: Queue) -> None:
    claimed = running(queue)
    queue.look("update jobforge.jobs set is_dry_run = true")

    planned = submit(queue, claimed)

    assert (planned.outcome, planned.event_id) == ("planned", None)
    assert queue.look("select from jobforge.events") == []


@pytest.mark.requirement("events.from-runs")
def test_a_run_and_its_children_are_held_to_the_event_patterns_of_their_token(queue: Queue) -> None:
    parent = enqueue_confined(queue, events=["order.*"])
    spawn(queue, parent, "a", "report.part")
    child = claim(queue, "report.part")

    allowed = [submit(queue, parent, "a"), submit(queue, child, "b")]
    for claimed in (parent, child):
        with refused("JF403"):
            submit(queue, claimed, "c", "user.created")

    assert [row.outcome for row in allowed] == ["created"] * 2


@pytest.mark.requirement("events.from-runs")
def test_an_event_stands_one_deeper_than_what_started_its_run(queue: Queue) -> None:
    queue.ask("register_trigger", "acme", "again", "event", PARENT, event_type="loop.step")
    fires = [
        {"trigger": "again", "version": 1, "decision": "fire", "payload": "{}", "received": "{}"}
    ]
    with queue.acting(API) as connection:
        connection.execute("select jobforge.enter_scope('acme', 'tester')")
        call(
            connection,
            "submit_event",
            "acme",
            "loop.step",
            "{}",
            trace_id="t1",
            fires=json.dumps(fires),
        )

    submit(queue, claim(queue, PARENT), "next", "loop.step")

    events = queue.look("select depth, trace_id, processed_at from jobforge.events order by id")
    assert [(row.depth, row.trace_id, row.processed_at is None) for row in events] == [
        (0, "t1", False), (1, "t1", True),
    ]  # fmt: skip


def test_no_scope_is_left_when_an_event_was_submitted(queue: Queue) -> None:
    claimed = running(queue)

    submit(queue, claimed)

    (left,) = queue.look("select current_setting('jobforge.tenant_id', true) as tenant")
    assert left.tenant in (None, "")
