"""Bundles: each item runs after all that it depends on, once, and none is left behind."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.sql.acting import (
    API,
    ECHO,
    SUPERUSER,
    WORKER,
    Queue,
    Row,
    call,
    fences,
    meanwhile,
    refused,
    wait_until_blocked,
)
from tests.sql.conftest import MakeQueue


def bundle(
    queue: Queue,
    depends_on: Sequence[Sequence[int]],
    policies: Sequence[str | None] | None = None,
    *,
    keys: Sequence[str | None] | None = None,
    payloads: Sequence[str] | None = None,
    ordering_keys: Sequence[str | None] | None = None,
    is_plan: bool = False,
) -> list[Row]:
    """Enqueue items that name what they depend on by place, counted from one."""
    count = len(depends_on)
    one = [1] * count
    return queue.ask(
        "enqueue_bundle", "acme", [ECHO] * count, list(payloads or ["{}"] * count), None,
        None if keys is None else list(keys), None if ordering_keys is None else list(ordering_keys),
        None, None, None, None, None, None, one, [0] * count, [1.0] * count, [0] * count, None, None, None, None,
        [json.dumps(list(places)) for places in depends_on], list(policies or [None] * count), is_plan,
    )  # fmt: skip


def statuses(queue: Queue, rows: Sequence[Row]) -> list[str]:
    return [queue.status(row.job_id) for row in rows]


@pytest.mark.requirement("bundles.order")
def test_items_wait_for_those_they_depend_on(queue: Queue) -> None:
    rows = bundle(queue, [[], [1], [1, 2]])

    assert [(row.outcome, row.status) for row in rows] == [
        ("created", "queued"),
        ("created", "waiting"),
        ("created", "waiting"),
    ]
    run = queue.run(rows[2].job_id)
    assert run.waiting_for == "dependency"
    assert queue.explain(rows[2].job_id).blocked_by == rows[0].job_id
    for row in rows:
        (claimed,) = queue.claim(5)
        assert claimed.job_id == row.job_id
        queue.complete(claimed)
    assert statuses(queue, rows) == ["succeeded"] * 3
    assert queue.look("select * from jobforge.job_dependencies") == []


@pytest.mark.requirement("bundles.failure")
def test_a_failure_cancels_all_that_stand_on_it_unless_they_say_otherwise(queue: Queue) -> None:
    rows = bundle(queue, [[], [1], [2], [2], []], [None, None, None, "continue", None])

    first = next(row for row in queue.claim(5) if row.job_id == rows[0].job_id)
    queue.fail(first, kind="permanent")

    assert statuses(queue, rows) == ["failed", "canceled", "canceled", "queued", "running"]
    error = queue.run(rows[1].job_id).error
    assert error["code"] == "DEPENDENCY_FAILED"
    assert str(rows[0].job_id) in error["message"]
    assert queue.look("select * from jobforge.job_dependencies") == []


def test_canceling_an_item_goes_on_to_those_behind_it(queue: Queue) -> None:
    rows = bundle(queue, [[], [1], [2]])

    queue.cancel(rows[1].job_id)

    assert statuses(queue, rows) == ["queued", "canceled", "canceled"]
    queue.complete(queue.claim_one())
    assert queue.look("select * from jobforge.job_dependencies") == []


@pytest.mark.requirement("bundles.idempotent")
def test_the_same_bundle_again_is_the_same_runs(queue: Queue) -> None:
    first = bundle(queue, [[], [1]], keys=["a", "b"])
    again = bundle(queue, [[], [1]], keys=["a", "b"])

    assert [row.outcome for row in again] == ["replayed"] * 2
    assert [row.job_id for row in again] == [row.job_id for row in first]
    assert len(queue.look("select 1 from jobforge.job_dependencies")) == 1


def test_a_new_item_may_depend_on_a_run_of_an_earlier_bundle(queue: Queue) -> None:
    bundle(queue, [[]], keys=["a"])
    rows = bundle(queue, [[], [1]], keys=["a", "b"])
    assert [(row.outcome, row.status) for row in rows] == [
        ("replayed", "queued"),
        ("created", "waiting"),
    ]
    queue.complete(queue.claim_one())
    assert queue.status(rows[1].job_id) == "queued"

    after = bundle(queue, [[], [1]], keys=["a", "c"])

    assert after[1].status == "queued"


def test_nothing_may_depend_on_a_conflict_or_on_what_failed(queue: Queue) -> None:
    bundle(queue, [[]], keys=["a"])
    with refused("JF409"):
        bundle(queue, [[], [1]], keys=["a", "b"], payloads=['{"other": 1}', "{}"])
    queue.fail(queue.claim_one(), kind="permanent")
    with refused("JF409"):
        bundle(queue, [[], [1]], keys=["a", "b"])

    rows = bundle(queue, [[], [1]], [None, "continue"], keys=["a", "b"])

    assert [row.status for row in rows] == ["failed", "queued"]
    alone = bundle(queue, [[], []], keys=["a", "d"], payloads=['{"other": 1}', "{}"])
    assert [row.outcome for row in alone] == ["conflict", "created"]


@pytest.mark.parametrize("depends_on", [[[1]], [[2], []], [[], [0]], [[], [3]]])
def test_circles_and_unknown_places_are_refused_whole(
    queue: Queue, depends_on: list[list[int]]
) -> None:
    with refused("JF400"):
        bundle(queue, depends_on)

    assert queue.look("select 1 from jobforge.jobs") == []


def test_a_plan_writes_nothing(queue: Queue) -> None:
    rows = bundle(queue, [[], [1]], keys=["a", "b"], is_plan=True)

    assert [row.outcome for row in rows] == ["created", "created"]
    assert queue.look("select 1 from jobforge.jobs") == []
    (audited,) = queue.look("select outcome, detail from jobforge.audit_log")
    assert (audited.outcome, audited.detail["count"]) == ("planned", 2)


def test_a_bundle_is_one_row_of_audit(queue: Queue) -> None:
    bundle(queue, [[], [1], [2]])

    (audited,) = queue.look("select action, outcome, detail from jobforge.audit_log")

    assert (audited.action, audited.outcome, audited.detail) == (
        "enqueue",
        "created",
        {"count": 3, "created": 3},
    )


def test_an_item_takes_its_turn_when_it_no_longer_waits(queue: Queue) -> None:
    """The key is free when its dependency ends; another run of the key that came meanwhile is before it."""
    rows = bundle(queue, [[], [1], [1]], ordering_keys=["k", "k", "k"])
    assert statuses(queue, rows) == ["queued", "waiting", "waiting"]
    other = queue.enqueue(ordering_key="k")
    assert queue.run(other.job_id).waiting_for == "turn"

    order: list[UUID] = []
    while claimed := queue.claim(5):
        assert len(claimed) == 1
        order.append(claimed[0].job_id)
        queue.complete(*claimed)

    assert order == [rows[0].job_id, other.job_id, rows[1].job_id, rows[2].job_id]
    assert queue.look("select * from jobforge.ordering_keys") == []


@pytest.mark.requirement("bundles.order")
@settings(
    max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(st.data())
def test_any_graph_runs_in_order_and_to_its_end(queue: Queue, data: st.DataObject) -> None:
    """Each item runs after all its dependencies, has one accepted result, and every run ends."""
    tables = "jobs, ready, leases, waiting, job_dependencies, ordering_keys"
    for table in tables.split(", "):
        queue.look("delete from jobforge." + table)
    count = data.draw(st.integers(1, 8))
    graph = [
        sorted(data.draw(st.sets(st.integers(1, max(1, n)), max_size=min(n, 4)))) if n else []
        for n in range(count)
    ]
    policies = [data.draw(st.sampled_from([None, "cancel", "continue"])) for _ in range(count)]
    ordering = [data.draw(st.sampled_from([None, None, "x", "y"])) for _ in range(count)]
    rows = bundle(queue, graph, policies, ordering_keys=ordering)
    place = {row.job_id: n for n, row in enumerate(rows)}
    ended: dict[int, str] = {}
    while claimed := queue.claim(3):
        for held in claimed:
            n = place[held.job_id]
            for needed in graph[n]:
                assert queue.status(rows[needed - 1].job_id) in {"succeeded", "failed", "canceled"}
            match data.draw(st.sampled_from(["complete", "complete", "fail", "release"])):
                case "complete":
                    queue.complete(held)
                    assert n not in ended
                    ended[n] = "succeeded"
                case "fail":
                    queue.fail(held, kind="permanent")
                    assert n not in ended
                    ended[n] = "failed"
                case _:
                    queue.release(held)

    found = statuses(queue, rows)
    for n, status in enumerate(found):
        bad = any(found[needed - 1] != "succeeded" for needed in graph[n])
        expected = "canceled" if bad and policies[n] != "continue" else ended[n]
        assert status == expected
    assert queue.look("select * from jobforge.job_dependencies") == []
    assert queue.look("select * from jobforge.waiting") == []
    assert queue.look("select * from jobforge.ordering_keys") == []


@pytest.mark.requirement("bundles.order")
def test_bundles_settled_by_a_crowd_never_deadlock_and_all_end(make_queue: MakeQueue) -> None:
    queues = [make_queue() for _ in range(5)]
    chance = random.Random(11)
    for _ in range(8):
        graph = [
            sorted(chance.sample(range(1, n + 1), min(n, chance.randint(0, 3)))) for n in range(12)
        ]
        ordering = [chance.choice([None, "x", "y"]) for _ in range(12)]
        bundle(
            queues[0],
            graph,
            [chance.choice(["cancel", "continue"]) for _ in graph],
            ordering_keys=ordering,
        )

    def work(number: int) -> None:
        queue, mine = queues[number], random.Random(number)
        idle = 0
        while idle < 40:
            claimed = queue.claim(mine.randint(1, 6), f"w{number}")
            if not claimed:
                idle += 1
                queue.reap()
                if not queue.look("select 1 from jobforge.jobs where final_status is null limit 1"):
                    return
                continue
            idle = 0
            mine.shuffle(claimed)
            failed = [row for row in claimed if mine.random() < 0.15]
            done = [row for row in claimed if row not in failed]
            if done:
                queue.complete(*done)
            if failed:
                queue.fail(*failed, kind="permanent")
            if mine.random() < 0.1:
                for row in queue.look(
                    "select job_id from jobforge.waiting order by random() limit 1"
                ):
                    late = meanwhile(lambda row=row: queue.cancel(row.job_id)).exception(60)
                    # it may have ended meanwhile
                    assert getattr(late, "sqlstate", None) in {None, "JF409", "40001"}, late

    for future in [meanwhile(lambda number=number: work(number)) for number in range(5)]:
        future.result(120)

    assert queues[0].look("select id from jobforge.jobs where final_status is null") == []
    for table in ("job_dependencies", "waiting", "ordering_keys", "leases", "ready"):
        assert queues[0].look("select count(*) as n from jobforge." + table)[0].n == 0


def test_a_cancel_gives_up_its_turn_only_with_the_keys_that_it_needs(
    make_queue: MakeQueue,
) -> None:
    queue, other, looking = make_queue(), make_queue(), make_queue()
    queue.enqueue(ordering_key="k")
    first, second = bundle(queue, [[], [1]], [None, "continue"], ordering_keys=["k", "k"])
    with other.acting(API) as api:
        canceler = api

    with queue.acting(SUPERUSER) as connection:  # as a settle would that lets the next one go
        connection.execute("select from jobforge.ordering_keys for update")
        canceled = meanwhile(lambda: other.cancel(first.job_id))
        wait_until_blocked(looking, canceler)
        connection.execute(
            "select from jobforge.waiting where job_id = %s for update nowait", [first.job_id]
        )
    canceled.result(60)

    assert statuses(queue, [first, second]) == ["canceled", "waiting"]


def test_two_last_dependencies_that_end_at_once_free_an_item_once(make_queue: MakeQueue) -> None:
    queue, other, looking = make_queue(), make_queue(), make_queue()
    rows = bundle(queue, [[], [], [1, 2]])
    first, second = queue.claim(1), queue.claim(1)
    with other.acting(WORKER) as worker:
        pid_of = worker

    with queue.acting(WORKER) as connection:
        call(connection, "complete_jobs", *fences(first), ["1"])
        settled = meanwhile(lambda: other.complete(*second))
        wait_until_blocked(looking, pid_of)
    settled.result(60)

    assert queue.place(rows[2].job_id) == ["ready"]
