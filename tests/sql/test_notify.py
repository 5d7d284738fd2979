"""NOTIFY: a hint, sent only while somebody listens, and never with content."""

from __future__ import annotations

from collections.abc import Generator

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.postgres import ScratchDatabase
from tests.sql.acting import Queue, refused
from tests.sql.conftest import MakeQueue

Listening = psycopg.Connection[tuple[object, ...]]


@pytest.fixture
def listening(database: ScratchDatabase) -> Generator[Listening]:
    with database.connect("jobforge_api") as connection:
        connection.execute("listen jobforge_ready")
        connection.execute("listen jobforge_runs")
        connection.execute("listen jobforge_events")
        yield connection


def heard(connection: Listening) -> list[tuple[str, str]]:
    """What has come until now: a notification arrives no later than the next answer."""
    connection.execute("select 1")
    return [(note.channel, note.payload) for note in connection.notifies(timeout=0)]


def test_nobody_is_notified_while_nobody_listens(
    make_queue: MakeQueue, listening: Listening
) -> None:
    queue = make_queue()
    queue.enqueue()
    queue.complete(queue.claim_one())

    assert heard(listening) == []


def test_a_sleeper_hears_of_due_work_and_nothing_about_it(
    make_queue: MakeQueue, listening: Listening
) -> None:
    queue = make_queue()
    queue.work("await_wakeup", "w1", "ready", 60_000)

    queue.enqueue()

    assert heard(listening) == [("jobforge_ready", "")]


def test_a_sleeper_is_not_woken_for_work_of_the_future(
    make_queue: MakeQueue, listening: Listening
) -> None:
    queue = make_queue()
    queue.work("await_wakeup", "w1", "ready", 60_000)

    queue.enqueue(run_at="2999-01-01 00:00Z")

    assert heard(listening) == []


def test_a_sleeper_is_not_woken_for_a_replay(make_queue: MakeQueue, listening: Listening) -> None:
    queue = make_queue()
    queue.enqueue(idempotency_key="k")
    queue.work("await_wakeup", "w1", "ready", 60_000)

    queue.enqueue(idempotency_key="k")

    assert heard(listening) == []


def test_who_asks_triggers_hears_of_events_and_workers_do_not(
    make_queue: MakeQueue, listening: Listening
) -> None:
    queue = make_queue()
    queue.work("await_wakeup", "m1", "events", 60_000)
    queue.work("await_wakeup", "w1", "ready", 60_000)
    queue.ask("register_trigger", "acme", "t", "event", "test.echo", event_type="order.paid")

    queue.ask("submit_event", "acme", "order.paid", Jsonb({}))

    assert heard(listening) == [("jobforge_events", "")]


def test_a_watcher_hears_that_a_run_changed(make_queue: MakeQueue, listening: Listening) -> None:
    queue = make_queue()
    queue.enqueue()
    claimed = queue.claim_one()
    queue.look("select jobforge.await_wakeup('s1', 'runs', 60000)")

    queue.report(claimed, 1)
    reported = heard(listening)
    queue.complete(claimed)

    assert reported == [("jobforge_runs", "")]
    assert heard(listening) == [("jobforge_runs", "")]


def test_a_promoted_job_wakes_a_sleeper(make_queue: MakeQueue, listening: Listening) -> None:
    queue = make_queue()
    queue.enqueue(ordering_key="k")
    queue.enqueue(ordering_key="k")
    claimed = queue.claim_one()
    queue.work("await_wakeup", "w1", "ready", 60_000)

    queue.complete(claimed)

    assert ("jobforge_ready", "") in heard(listening)


def test_a_listener_is_forgotten_when_its_time_is_over(
    make_queue: MakeQueue, listening: Listening
) -> None:
    queue = make_queue()
    queue.work("await_wakeup", "w1", "ready", 1000)
    queue.advance(2)

    queue.enqueue()

    assert heard(listening) == []


def test_old_listeners_are_cleared_by_later_ones(queue: Queue) -> None:
    queue.work("await_wakeup", "old", "ready", 1000)
    queue.advance(120)
    queue.work("await_wakeup", "new", "ready", 1000)

    rows = queue.look("select listener_id from jobforge.listeners")
    assert [row.listener_id for row in rows] == ["new"]


@pytest.mark.parametrize("for_ms", [0, 3_600_001, None])
def test_a_listener_names_a_time_of_use(queue: Queue, for_ms: int | None) -> None:
    with refused("JF400"):
        queue.work("await_wakeup", "w1", "ready", for_ms)


def test_a_listener_names_a_topic_that_exists(queue: Queue) -> None:
    with refused("23514"):
        queue.work("await_wakeup", "w1", "other", 1000)
