"""Debounce: a newer run of a key takes the place of the pending one."""

from __future__ import annotations

import json
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest

from tests.sql.acting import ECHO, Queue, meanwhile
from tests.sql.conftest import MakeQueue


def said(key: str = "k", window_ms: int = 1_000, max_wait_ms: int = 5_000) -> str:
    return json.dumps({"debounce": {"key": key, "windowMs": window_ms, "maxWaitMs": max_wait_ms}})


def enqueue(queue: Queue, limits: str, **named: Any) -> UUID:
    return queue.enqueue_many(1, claim_limits=[limits], **named)[0]


@pytest.mark.requirement("sql.debounce")
def test_a_newer_run_of_a_key_takes_the_place_of_the_pending_one(queue: Queue) -> None:
    old = enqueue(queue, said())
    new = enqueue(queue, said())

    run = queue.run(old)
    assert (run.status, run.error["code"], run.error["replacedBy"]) == (
        "canceled",
        "DEBOUNCED",
        str(new),
    )
    cause = queue.explain(old)
    assert (cause.cause, cause.blocked_by) == ("debounced", new)
    queue.register()
    assert queue.explain(new).cause == "debouncing"
    assert queue.claim(10) == []
    queue.advance(1.1)
    assert [row.job_id for row in queue.claim(10)] == [new]


def test_other_keys_and_other_types_are_left_alone(queue: Queue) -> None:
    runs = [
        enqueue(queue, said("a")),
        enqueue(queue, said("b")),
        enqueue(queue, said("a"), job_type="other.type"),
        enqueue(queue, said("a"), tenant="zeta"),
    ]

    assert [queue.status(run) for run in runs[:3]] == ["queued"] * 3
    assert queue.status(runs[3], "zeta") == "queued"


@pytest.mark.requirement("sql.debounce")
def test_the_wait_of_a_series_is_bounded(queue: Queue) -> None:
    limits = said(window_ms=1_000, max_wait_ms=3_000)
    began = queue.now()
    last = enqueue(queue, limits)
    for _ in range(7):
        queue.advance(0.5)
        last = enqueue(queue, limits)
    queue.advance(0.5)

    first = queue.look("select min(created_at) as at from jobforge.jobs")[0].at
    assert queue.run(last).run_at <= first + timedelta(seconds=3.1)
    assert queue.run(last).run_at >= began
    assert [row.job_id for row in queue.claim(10)] == [last]


def test_a_run_that_has_started_is_not_replaced(queue: Queue) -> None:
    old = enqueue(queue, said())
    queue.advance(1.1)
    (running,) = queue.claim(1)
    new = enqueue(queue, said())

    assert (queue.status(old), queue.status(new)) == ("running", "queued")
    queue.fail(running)
    newer = enqueue(queue, said())
    assert [queue.status(run) for run in (old, new, newer)] == ["queued", "canceled", "queued"]


def test_of_several_in_one_call_the_last_stays(queue: Queue) -> None:
    rows = queue.ask(
        "enqueue_jobs",
        "acme",
        [ECHO] * 3,
        ["{}"] * 3,
        claim_limits=[said("a"), said("b"), said("a")],
    )

    assert [row.status for row in rows] == ["canceled", "queued", "queued"]


def test_a_replayed_call_replaces_nothing(queue: Queue) -> None:
    first = enqueue(queue, said(), idempotency_keys=["i"])
    second = enqueue(queue, said())
    again = enqueue(queue, said(), idempotency_keys=["i"])

    assert again == first
    assert queue.status(second) == "queued"


def test_a_replaced_head_of_an_ordering_key_lets_the_next_follow(queue: Queue) -> None:
    old = enqueue(queue, said(), ordering_keys=["o"])
    other = queue.enqueue(ordering_key="o").job_id
    new = enqueue(queue, said(), ordering_keys=["o"])

    assert queue.status(old) == "canceled"
    assert [row.job_id for row in queue.claim(10)] == [other]
    assert queue.place(new) == ["waiting"]


def test_a_parked_run_is_replaced(queue: Queue) -> None:
    both = json.dumps(
        {"debounce": {"key": "k", "windowMs": 10, "maxWaitMs": 100}, "concurrency": {"limit": 1}}
    )
    enqueue(queue, both)
    queue.advance(1)
    queue.claim(1)
    parked = enqueue(queue, both)
    queue.advance(1)
    assert queue.claim(1) == []

    new = enqueue(queue, both)

    assert [queue.status(parked), queue.status(new)] == ["canceled", "queued"]


@pytest.mark.requirement("sql.debounce")
def test_two_callers_at_once_leave_one_run_pending(make_queue: MakeQueue) -> None:
    limits = said(window_ms=60_000, max_wait_ms=600_000)

    def enqueue_some(queue: Queue) -> None:
        for _ in range(20):
            enqueue(queue, limits)

    callers = [meanwhile(partial(enqueue_some, make_queue())) for _ in range(4)]
    for each in callers:
        each.result(60)

    rows = make_queue().look(
        """select count(*) filter (where final_status is null) as pending,
          count(*) filter (where error ->> 'code' = 'DEBOUNCED') as replaced from jobforge.jobs"""
    )
    assert (rows[0].pending, rows[0].replaced) == (1, 79)
