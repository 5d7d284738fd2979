"""Progress and log lines of running jobs."""

from __future__ import annotations

from types import SimpleNamespace
from uuid import uuid4

import pytest

from tests.sql.acting import WORKER, Queue, Row, call, fences, meanwhile, wait_until_blocked
from tests.sql.conftest import MakeQueue


def progress(run: Row) -> tuple[float | None, float | None, str | None]:
    return run.progress_done, run.progress_total, run.progress_message


def test_progress_is_shown_with_the_run(queue: Queue) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()

    answer = queue.report(claimed, 1, 4, "one of four")

    assert (answer.is_accepted, answer.is_cancel_requested) == (True, False)
    assert progress(queue.run(job.job_id)) == (1, 4, "one of four")


def test_progress_never_goes_backwards_within_an_attempt(queue: Queue) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()
    queue.report(claimed, 3, 4, "three")

    queue.report(claimed, 2)

    assert progress(queue.run(job.job_id)) == (3, 4, "three")


def test_progress_of_an_attempt_before_is_not_shown(queue: Queue) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()
    queue.report(claimed, 3, 4, "three")
    queue.release(claimed)
    again = queue.claim_one()

    before = progress(queue.run(job.job_id))
    queue.report(again, 1)

    assert before == (None, None, None)
    assert progress(queue.run(job.job_id)) == (1, None, None)


def test_the_last_progress_of_a_run_that_ended_stays_shown(queue: Queue) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()
    queue.report(claimed, 4, 4, "done")
    queue.complete(claimed)

    assert progress(queue.run(job.job_id)) == (4, 4, "done")


@pytest.mark.parametrize(
    "fields",
    [{"epoch": 2}, {"lease_id": uuid4()}, {"tenant_id": "globex"}],
    ids=["epoch", "lease", "tenant"],
)
def test_a_stale_report_changes_nothing(queue: Queue, fields: dict[str, object]) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()
    before = queue.run(job.job_id)

    stale = SimpleNamespace(**{**vars(claimed), **fields})
    answer = queue.report(stale, 1, 2, "x", '[["info", "x"]]')

    assert answer.is_accepted is False
    assert queue.run(job.job_id) == before
    assert queue.ask("list_logs", "acme", job.job_id) == []


def test_a_report_after_the_settle_changes_nothing(queue: Queue) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()
    queue.complete(claimed)
    before = queue.run(job.job_id)

    assert queue.report(claimed, 1).is_accepted is False
    assert queue.run(job.job_id) == before


def test_a_batch_of_reports_answers_each_in_its_order(queue: Queue) -> None:
    queue.enqueue_many(3)
    claimed = queue.claim(3)
    queue.complete(claimed[1])
    queue.cancel(claimed[2].job_id)

    said = ([1.0, 1.0, 1.0], [None] * 3, [None] * 3, [None] * 3)
    answers = queue.work("report_progress", *fences(claimed), *said)

    assert [row.job_id for row in answers] == [row.job_id for row in claimed]
    assert [row.is_accepted for row in answers] == [True, False, True]
    assert [row.is_cancel_requested for row in answers] == [False, False, True]


def test_log_lines_are_numbered_and_listed_after_a_line(queue: Queue) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()
    queue.report(claimed, logs='[["info", "one"], ["warning", "two"]]')
    queue.report(claimed, logs='[["error", "three"]]')

    lines = queue.ask("list_logs", "acme", job.job_id)
    later = queue.ask("list_logs", "acme", job.job_id, after=1, limit=1)

    assert [(row.line_no, row.level, row.message) for row in lines] == [
        (1, "info", "one"),
        (2, "warning", "two"),
        (3, "error", "three"),
    ]
    assert [row.message for row in later] == ["two"]


def test_log_lines_of_each_attempt_follow_each_other(queue: Queue) -> None:
    job = queue.enqueue(backoff_ms=0)
    for text in ("one", "two"):
        claimed = queue.claim_one()
        queue.report(claimed, logs=f'[["info", "{text}"]]')
        queue.fail(claimed)

    lines = queue.ask("list_logs", "acme", job.job_id)

    assert [(row.line_no, row.attempt_no) for row in lines] == [(1, 1), (2, 2)]


def test_log_lines_alone_are_not_progress(queue: Queue) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()
    before = queue.version(job.job_id)

    queue.report(claimed, logs='[["info", "one"]]')

    assert queue.version(job.job_id) == before


def test_a_run_keeps_ten_thousand_lines(queue: Queue) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()
    many = "[" + ",".join(['["info", "x"]'] * 9_999) + "]"
    queue.report(claimed, logs=many)

    answer = queue.report(claimed, logs='[["info", "last"], ["info", "too many"]]')

    lines = queue.look("select max(line_no) as last from jobforge.run_logs")
    assert answer.is_accepted is True
    assert lines[0].last == 10_000
    assert queue.ask("list_logs", "acme", job.job_id, after=9_999)[0].message == "last"


def test_a_long_message_is_cut(queue: Queue) -> None:
    job = queue.enqueue()
    claimed = queue.claim_one()

    queue.report(claimed, message="x" * 5000)

    assert len(queue.run(job.job_id).progress_message) == 1000


def test_reports_of_one_attempt_at_once_keep_each_others_lines(make_queue: MakeQueue) -> None:
    """A worker repeats a report whose answer was lost while the first is still under way."""
    first, second, looking = make_queue(), make_queue(), make_queue()
    job = first.enqueue()
    claimed = first.claim_one()
    with second.acting(WORKER) as connection:
        other = connection
    said = ([1.0], [None], [None], ['[["info", "one"], ["info", "two"]]'])

    with first.acting(WORKER) as connection:
        call(connection, "report_progress", *fences([claimed]), *said)
        future = meanwhile(lambda: second.report(claimed, 1, logs='[["info", "three"]]'))
        wait_until_blocked(looking, other)
    answer = future.result(60)

    assert answer.is_accepted
    lines = first.ask("list_logs", "acme", job.job_id)
    assert [(line.line_no, line.message) for line in lines] == [
        (1, "one"),
        (2, "two"),
        (3, "three"),
    ]
