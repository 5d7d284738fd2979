"""Lists of runs, and what a queue holds."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest

from tests.sql.acting import ECHO, Queue, refused


def ids(queue: Queue, **named: object) -> list[UUID]:
    return [row.job_id for row in queue.ask("list_runs", "acme", **named)]


def test_runs_are_listed_newest_first(queue: Queue) -> None:
    made = queue.enqueue_many(3)

    assert ids(queue) == made[::-1]


def test_pages_follow_each_other_without_gap_or_overlap(queue: Queue) -> None:
    made = queue.enqueue_many(5)

    first = ids(queue, limit=2)
    second = ids(queue, limit=2, before_id=first[-1])
    third = ids(queue, limit=2, before_id=second[-1])

    assert [*first, *second, *third] == made[::-1]


def test_every_status_is_listed_and_only_its_runs(queue: Queue) -> None:
    expected: dict[str, UUID] = {}
    for status in ("succeeded", "failed", "dead", "running"):
        expected[status] = queue.enqueue(max_attempts=1).job_id
        claimed = queue.claim_one()
        if status == "succeeded":
            queue.complete(claimed)
        elif status != "running":
            queue.fail(claimed, kind="permanent" if status == "failed" else "failed")
    expected["canceled"] = queue.enqueue().job_id
    queue.cancel(expected["canceled"])
    expected["queued"] = queue.enqueue(ordering_key="k").job_id
    expected["waiting"] = queue.enqueue(ordering_key="k").job_id

    assert {status: ids(queue, status=status) for status in expected} == {
        status: [job_id] for status, job_id in expected.items()
    }


@pytest.mark.parametrize("status", [None, "queued"])
@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({"job_type": "demo.other"}, {"job_type": "demo.other"}),
        ({"project_id": "p1"}, {"project_ids": ["p1", "p2"]}),
        ({"trace_id": "t1"}, {"trace_id": "t1"}),
    ],
    ids=["type", "project", "trace"],
)
def test_runs_are_filtered(
    queue: Queue, given: dict[str, str], asked: dict[str, object], status: str | None
) -> None:
    queue.enqueue()
    wanted = queue.ask("enqueue_job", "acme", **{"job_type": ECHO, **given})[0].job_id

    assert ids(queue, status=status, **asked) == [wanted]


def test_runs_since_a_time_are_listed(queue: Queue) -> None:
    queue.enqueue()
    queue.advance(10)
    since = queue.now()
    later = queue.enqueue().job_id

    assert ids(queue, since=since) == [later]


def test_lists_carry_no_results(queue: Queue) -> None:
    job = queue.enqueue()
    queue.complete(queue.claim_one(), result='"large"')

    assert queue.ask("list_runs", "acme")[0].result is None
    assert queue.ask("get_runs", "acme", [job.job_id])[0].result is None
    assert queue.run(job.job_id).result == "large"


@pytest.mark.parametrize("limit", [0, 1001, None])
def test_a_page_has_bounds(queue: Queue, limit: int | None) -> None:
    with refused("JF400"):
        queue.ask("list_runs", "acme", limit=limit)


def test_an_unknown_status_is_refused(queue: Queue) -> None:
    with refused("JF400"):
        queue.ask("list_runs", "acme", status="pending")


def test_get_runs_returns_those_found(queue: Queue) -> None:
    mine, other = queue.enqueue("acme").job_id, queue.enqueue("globex").job_id

    found = queue.ask("get_runs", "acme", [mine, other])

    assert [row.job_id for row in found] == [mine]


def test_get_runs_has_a_bound(queue: Queue) -> None:
    with refused("JF413"):
        queue.ask("get_runs", "acme", [UUID(int=number) for number in range(1001)])


def test_a_queue_is_counted_by_type_and_place(queue: Queue) -> None:
    queue.enqueue_many(3)
    queue.claim_one()
    later = queue.now() + timedelta(hours=1)
    queue.enqueue(run_at=later)
    queue.enqueue(job_type="demo.other", ordering_key="k")
    queue.enqueue(job_type="demo.other", ordering_key="k")
    queue.enqueue("globex")

    stats = queue.ask("queue_stats", "acme")

    counts = [(row.job_type, row.queued, row.due, row.running, row.waiting) for row in stats]
    assert counts == [(ECHO, 3, 2, 1, 0), ("demo.other", 1, 1, 0, 1)]
    assert stats[0].oldest_due_at < later
