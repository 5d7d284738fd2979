"""Fair between tenants: equal shares in turn, and what is left over to those with more."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.sql.acting import ECHO, SUPERUSER, Queue, Row
from tests.sql.conftest import MakeQueue


def shares(claimed: list[Row]) -> dict[str, int]:
    return dict(Counter(row.tenant_id for row in claimed))


@pytest.mark.requirement("sql.fair")
def test_a_small_tenant_is_not_behind_a_large_one(queue: Queue) -> None:
    queue.enqueue_many(100, "acme")
    queue.enqueue_many(10, "globex")

    assert shares(queue.claim(10)) == {"acme": 5, "globex": 5}


def test_what_one_tenant_leaves_goes_to_the_other_in_the_same_claim(queue: Queue) -> None:
    queue.enqueue_many(100, "acme")
    queue.enqueue_many(3, "globex")

    assert shares(queue.claim(20)) == {"acme": 17, "globex": 3}


def test_leftovers_of_many_tenants_are_shared_by_the_rest(queue: Queue) -> None:
    queue.enqueue_many(50, "big-a")
    queue.enqueue_many(50, "big-b")
    for number in range(8):
        queue.enqueue(f"small-{number}")

    claimed = shares(queue.claim(40))

    assert sum(claimed.values()) == 40
    assert all(claimed[f"small-{number}"] == 1 for number in range(8))
    assert claimed["big-a"] == claimed["big-b"] == 16


@pytest.mark.parametrize("busy", [0, 1, 2, 16, 17, 30])
def test_lanes_that_are_awake_and_empty_take_no_share(queue: Queue, busy: int) -> None:
    for number in range(40):
        queue.enqueue(f"t-{number:02}")
    queue.claim(1000)
    for number in range(busy):
        queue.enqueue_many(2 * busy, f"t-{number:02}")
    queue.advance(seconds=1)  # none of them is new any more

    claimed = shares(queue.claim(2 * busy or 1, after_tenant="t-20"))

    # as many as one window holds have a share each
    assert sum(claimed.values()) == 2 * busy
    assert busy > 16 or claimed == {f"t-{number:02}": 2 for number in range(busy)}


def test_a_tenant_that_comes_is_claimed_at_once_among_awake_and_empty_ones(
    make_queue: MakeQueue,
) -> None:
    queue = make_queue()
    for number in range(40):
        queue.enqueue(f"t-{number:02}")
    queue.claim(1000)

    for tenant in ("t-39", "t-00", "another"):
        job = queue.enqueue(tenant)
        (claimed,) = queue.claim(10, after_tenant="t-20")
        assert (claimed.tenant_id, claimed.job_id) == (tenant, job.job_id)
        assert queue.claim(10) == []


def test_a_suspect_is_claimed_among_awake_and_empty_lanes(queue: Queue) -> None:
    for number in range(40):
        queue.enqueue(f"t-{number:02}")
    queue.claim(1000)
    job = queue.enqueue("t-07")
    queue.look("update jobforge.ready set is_suspect = true")

    (claimed,) = queue.claim(10)

    assert (claimed.job_id, claimed.is_suspect) == (job.job_id, True)


def test_claims_of_one_job_take_turns(queue: Queue) -> None:
    for tenant in ("a", "b", "c"):
        queue.enqueue_many(3, tenant)
    queue.advance(seconds=1)  # none of them is new any more

    after, order = "", ""
    for _ in range(9):
        (claimed,) = queue.claim(1, after_tenant=after)
        after = claimed.tenant_id
        order += after

    assert order == "abcabcabc"


def test_a_turn_wraps_around_and_passes_over_tenants_without_work(queue: Queue) -> None:
    for tenant in ("a", "c"):
        queue.enqueue_many(2, tenant)
    queue.enqueue("b")
    queue.cancel(queue.ask("list_runs", "b")[0].job_id, "b")
    queue.advance(seconds=1)  # none of them is new any more

    assert queue.claim(1, after_tenant="a")[0].tenant_id == "c"
    assert queue.claim(1, after_tenant="c")[0].tenant_id == "a"
    assert queue.claim(1, after_tenant="zzz")[0].tenant_id == "a"


def test_a_claim_smaller_than_the_number_of_tenants_follows_the_turn(queue: Queue) -> None:
    for tenant in "abcde":
        queue.enqueue_many(2, tenant)
    queue.advance(seconds=1)  # none of them is new any more

    claimed = queue.claim(3, after_tenant="c")

    assert shares(claimed) == {"d": 1, "e": 1, "a": 1}


def test_a_priority_is_an_order_within_a_tenant_and_not_against_others(queue: Queue) -> None:
    queue.enqueue_many(10, "acme", priorities=[0] * 10)
    queue.enqueue_many(10, "globex", priorities=[3] * 10)

    assert shares(queue.claim(10)) == {"acme": 5, "globex": 5}


def test_types_of_a_tenant_share_what_the_tenant_gets(queue: Queue) -> None:
    queue.enqueue_many(50, "acme", "demo.a")
    queue.enqueue_many(50, "acme", "demo.b")
    queue.enqueue_many(50, "globex", "demo.a")

    assert shares(queue.claim(20, types=["demo.a", "demo.b"])) == {"acme": 10, "globex": 10}


def test_urgent_jobs_of_every_type_come_first_within_a_tenant(queue: Queue) -> None:
    for job_type in ("demo.a", "demo.b", "demo.c"):
        queue.enqueue_many(4, "acme", job_type, priorities=[2, 0, 2, 2])

    claimed = queue.claim(3, types=["demo.a", "demo.b", "demo.c"])

    assert {row.job_type for row in claimed} == {"demo.a", "demo.b", "demo.c"}


def test_tenants_whose_jobs_are_of_the_future_take_no_share(queue: Queue) -> None:
    queue.enqueue_many(4, "acme")
    queue.enqueue_many(4, "globex", run_ats=["2999-01-01 00:00Z"] * 4)

    assert shares(queue.claim(4)) == {"acme": 4}


def test_many_empty_lanes_do_not_hide_work(queue: Queue) -> None:
    with queue.acting(SUPERUSER) as connection:
        connection.execute(
            """insert into jobforge.lanes (tenant_id, job_type, seen_at)
            select 't' || n, %s, jobforge.now() from generate_series(1, 2000) n""",
            [ECHO],
        )
    queue.enqueue_many(20, "acme")

    assert len(queue.claim(10)) == 10
    assert len(queue.claim(20, after_tenant="t5")) == 10


def test_everything_is_claimed_exactly_once_whatever_the_batch(queue: Queue) -> None:
    for number, count in enumerate([1, 7, 30, 2, 13]):
        queue.enqueue_many(count, f"t{number}", priorities=[n % 4 for n in range(count)])

    seen: list[Row] = []
    after = ""
    while claimed := queue.claim(7, after_tenant=after):
        seen += claimed
        after = claimed[-1].tenant_id

    assert len(seen) == len({row.job_id for row in seen}) == 53


def test_a_newcomer_goes_first_however_many_are_in_line(queue: Queue) -> None:
    for number in range(40):
        queue.enqueue_many(20, f"tenant-{number:02}")
    queue.advance(seconds=1)
    queue.enqueue_many(10, "zz-newcomer")

    claimed = queue.claim(200, after_tenant="tenant-05")

    assert shares(claimed)["zz-newcomer"] == 10


def test_the_turn_goes_on_after_the_last_that_was_in_line_and_not_after_a_newcomer(
    queue: Queue,
) -> None:
    for tenant in ("a", "b", "c", "d"):
        queue.enqueue_many(5, tenant)
    queue.advance(seconds=1)
    queue.enqueue_many(1, "newcomer")

    claimed = queue.claim(3, after_tenant="a")

    assert shares(claimed) == {"newcomer": 1, "b": 1, "c": 1}
    assert {row.after_tenant for row in claimed} == {"c"}
