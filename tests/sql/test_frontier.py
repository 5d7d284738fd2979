"""A claim that is told from where to look reads nothing in front of it; a full look finds what came in there."""

from __future__ import annotations

import pytest

from tests.sql.acting import Queue, Row


def claim_behind(queue: Queue, row: Row, limit: int) -> list[Row]:
    return queue.claim(
        limit,
        from_tenants=[row.tenant_id],
        from_types=[row.job_type],
        from_priorities=[row.priority],
        from_run_ats=[row.run_at],
        from_ids=[row.job_id],
    )


@pytest.mark.requirement("sql.frontier")
def test_a_claim_goes_on_behind_the_last_job_that_was_taken(queue: Queue) -> None:
    queue.enqueue_many(10)
    first = queue.claim(4)

    rest = claim_behind(queue, first[-1], 10)

    assert len(rest) == 6
    assert not {row.job_id for row in first} & {row.job_id for row in rest}


def test_what_is_in_front_is_found_by_a_full_look(queue: Queue) -> None:
    queue.enqueue_many(5)
    last = queue.claim(5)[-1]
    early = queue.enqueue(run_at="2001-01-01 00:00:00+00").job_id

    assert claim_behind(queue, last, 5) == []
    assert [row.job_id for row in queue.claim(5)] == [early]


def test_other_tenants_types_and_priorities_are_looked_at_from_their_edge(queue: Queue) -> None:
    queue.enqueue_many(3)
    last = queue.claim(3)[-1]
    urgent = queue.enqueue(priority=0).job_id
    other = queue.enqueue(tenant="globex").job_id

    claimed = claim_behind(queue, last, 5)

    assert {row.job_id for row in claimed} == {urgent, other}


def test_a_job_whose_turn_has_come_is_behind_all_that_was_taken(queue: Queue) -> None:
    queue.enqueue(ordering_key="k")
    second = queue.enqueue(ordering_key="k").job_id
    queue.enqueue_many(3)
    first, *others = queue.claim(10)
    queue.complete(first, *others)

    last = max((first, *others), key=lambda row: (row.run_at, row.job_id))

    assert [row.job_id for row in claim_behind(queue, last, 5)] == [second]


def test_jobs_that_were_given_back_or_lost_are_behind_all_that_was_taken(queue: Queue) -> None:
    queue.enqueue_many(4)
    claimed = queue.claim(4)
    last = claimed[-1]

    queue.release(claimed[0])

    assert [row.job_id for row in claim_behind(queue, last, 5)] == [claimed[0].job_id]
