"""Idempotency keys: one run however often and from wherever it is asked for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import psycopg
import pytest

from tests.sql.acting import API, ECHO, Queue, call, enter, meanwhile, refused, wait_until_blocked
from tests.sql.conftest import MakeQueue


def test_the_same_key_and_input_answer_with_the_same_run(queue: Queue) -> None:
    first = queue.enqueue(idempotency_key="k", payload='{"a": 1}')

    again = queue.enqueue(idempotency_key="k", payload='{"a": 1}')

    assert (first.outcome, again.outcome) == ("created", "replayed")
    assert (again.job_id, again.created_at) == (first.job_id, first.created_at)
    assert len(queue.claim(10)) == 1


def test_a_replay_tells_how_the_run_stands_now(queue: Queue) -> None:
    queue.enqueue(idempotency_key="k")
    queue.complete(queue.claim_one())

    again = queue.enqueue(idempotency_key="k")

    assert (again.outcome, again.status) == ("replayed", "succeeded")


def test_the_same_key_with_another_input_is_a_conflict(queue: Queue) -> None:
    first = queue.enqueue(idempotency_key="k", payload='{"a": 1}')

    other = queue.enqueue(idempotency_key="k", payload='{"a": 2}')

    assert (other.outcome, other.job_id) == ("conflict", first.job_id)
    assert queue.ask("get_payload", "acme", first.job_id)[0].get_payload == '{"a": 1}'


@pytest.mark.parametrize(
    "same",
    ['{"b":2,"a":1}', '{ "a" : 1, "b" : 2 }', '{"b": 9, "a": 1, "b": 2}'],
    ids=["order", "spaces", "repeated key"],
)
def test_how_an_object_is_written_does_not_matter(queue: Queue, same: str) -> None:
    queue.ask("enqueue_jobs", "acme", [ECHO], ['{"a":1,"b":2}'], None, ["k"])

    again = queue.ask("enqueue_jobs", "acme", [ECHO], [same], None, ["k"])[0]

    assert again.outcome == "replayed"


def test_the_input_as_received_is_compared_and_not_its_defaults(queue: Queue) -> None:
    queue.ask("enqueue_jobs", "acme", [ECHO], ['{"a":1,"new":0}'], ['{"a":1}'], ["k"])

    again = queue.ask("enqueue_jobs", "acme", [ECHO], ['{"a":1,"newer":0}'], ['{"a":1}'], ["k"])

    assert again[0].outcome == "replayed"


@pytest.mark.parametrize("other", ["tenant", "project", "type"])
def test_a_key_belongs_to_its_tenant_project_and_type(queue: Queue, other: str) -> None:
    first = queue.enqueue(idempotency_key="k")

    named = {"project_id": "p1"} if other == "project" else {}
    second = queue.enqueue(
        "globex" if other == "tenant" else "acme",
        "demo.other" if other == "type" else ECHO,
        idempotency_key="k",
        **named,
    )

    assert second.outcome == "created"
    assert second.job_id != first.job_id


def test_a_key_twice_in_one_call_makes_one_run(queue: Queue) -> None:
    payloads = ['{"a":1}', '{"a":1}', '{"a":2}', "{}"]

    rows = queue.ask("enqueue_jobs", "acme", [ECHO] * 4, payloads, None, ["k", "k", "k", None])

    assert [row.outcome for row in rows] == ["created", "replayed", "conflict", "created"]
    assert len({row.job_id for row in rows[:3]}) == 1
    assert len(queue.claim(10)) == 2


def test_a_bulk_call_mixes_new_and_used_keys(queue: Queue) -> None:
    used = queue.enqueue(idempotency_key="b").job_id

    rows = queue.ask("enqueue_jobs", "acme", [ECHO] * 3, ["{}"] * 3, None, ["a", "b", "c"])

    assert [row.outcome for row in rows] == ["created", "replayed", "created"]
    assert rows[1].job_id == used


def test_a_key_can_be_used_anew_after_thirty_days(queue: Queue) -> None:
    first = queue.enqueue(idempotency_key="k")
    queue.advance(timedelta(days=30).total_seconds() - 60)
    before = queue.enqueue(idempotency_key="k")
    queue.advance(61)

    after = queue.enqueue(idempotency_key="k")

    assert (before.outcome, before.job_id) == ("replayed", first.job_id)
    assert after.outcome == "created"
    assert after.job_id != first.job_id
    assert queue.enqueue(idempotency_key="k").job_id == after.job_id


def test_a_refused_job_does_not_use_up_its_key(queue: Queue) -> None:
    with refused("JF400"):
        queue.enqueue_many(1, idempotency_keys=["k"], priorities=[9])

    assert queue.enqueue(idempotency_key="k").outcome == "created"


# --- in flight


@pytest.mark.requirement("sql.idempotency")
def test_many_racers_with_one_key_get_one_run(make_queue: MakeQueue) -> None:
    queues = [make_queue() for _ in range(8)]
    barrier = Barrier(len(queues))

    def race(queue: Queue) -> list[tuple[object, str]]:
        answers: list[tuple[object, str]] = []
        for number in range(5):
            barrier.wait(10)
            row = queue.enqueue(idempotency_key=f"k{number}")
            answers.append((row.job_id, row.outcome))
        return answers

    with ThreadPoolExecutor(len(queues)) as pool:
        rounds = list(zip(*pool.map(race, queues), strict=True))

    for answers in rounds:
        assert len({job_id for job_id, _ in answers}) == 1
        assert sorted(outcome for _, outcome in answers) == ["created"] + ["replayed"] * 7
    queues[0].tend()
    assert len(queues[0].claim(100)) == 5


def test_a_racer_gets_the_key_when_the_first_rolls_back(make_queue: MakeQueue) -> None:
    slow, fast = make_queue(), make_queue()
    with fast.acting(API) as connection:
        pass

    with slow.acting(API) as holding, holding.transaction(force_rollback=True):
        enter(holding, "acme")
        lost = call(holding, "enqueue_job", "acme", ECHO, "{}", idempotency_key="k")[0]
        enqueuing = meanwhile(lambda: fast.enqueue(idempotency_key="k"))
        wait_until_blocked(make_queue(), connection)
    row = enqueuing.result(5)
    slow.tend()

    assert row.outcome == "created"
    assert row.job_id != lost.job_id
    assert [claimed.job_id for claimed in slow.claim(10)] == [row.job_id]


def test_a_racer_finds_the_run_when_the_first_commits(make_queue: MakeQueue) -> None:
    slow, fast = make_queue(), make_queue()
    with fast.acting(API) as connection:
        pass

    with slow.acting(API) as holding:
        enter(holding, "acme")
        first = call(holding, "enqueue_job", "acme", ECHO, "{}", idempotency_key="k")[0]
        enqueuing = meanwhile(lambda: fast.enqueue(idempotency_key="k"))
        wait_until_blocked(make_queue(), connection)
    row = enqueuing.result(5)

    assert (row.outcome, row.job_id, row.status) == ("replayed", first.job_id, "queued")


def test_bulk_calls_with_crossed_keys_do_not_deadlock(make_queue: MakeQueue) -> None:
    queues = [make_queue() for _ in range(2)]
    barrier = Barrier(2)

    def race(number: int) -> int:
        names = [f"k{key}" for key in range(30)]
        ordered = names if number == 0 else names[::-1]
        barrier.wait(10)
        arguments = ([ECHO] * 30, ["{}"] * 30, None, ordered)
        rows = queues[number].ask("enqueue_jobs", "acme", *arguments)
        return sum(row.outcome == "created" for row in rows)

    with ThreadPoolExecutor(2) as pool:
        created = list(pool.map(race, range(2)))

    assert sum(created) == 30


def test_a_repeatable_read_caller_is_told_to_try_again(make_queue: MakeQueue) -> None:
    """Its snapshot cannot show the run that another made, so no honest answer exists but 40001."""
    application, other = make_queue(), make_queue()

    with application.acting(API) as connection:
        connection.execute("set transaction isolation level repeatable read")
        enter(connection, "acme")
        connection.execute("select count(*) from jobforge.queue_stats('acme')")
        other.enqueue(idempotency_key="k")
        with pytest.raises(psycopg.errors.SerializationFailure), connection.transaction():
            call(connection, "enqueue_job", "acme", ECHO, "{}", idempotency_key="k")

    assert application.enqueue(idempotency_key="k").outcome == "replayed"
