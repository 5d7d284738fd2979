"""A run's version grows with every visible change, over every path, and with nothing else."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from uuid import UUID

import pytest

from tests.sql.acting import Queue, Row

STEPS: dict[str, Callable[[Queue, UUID], object]] = {
    "claim": lambda queue, _: claim(queue),
    "report": lambda queue, _: queue.report(holder(queue), 1),
    "complete": lambda queue, _: queue.complete(holder(queue)),
    "fail": lambda queue, _: (queue.fail(holder(queue)), queue.advance(90)),
    "fail for good": lambda queue, _: queue.fail(holder(queue), kind="permanent"),
    "defer": lambda queue, _: queue.fail(holder(queue), kind="deferred"),
    "release": lambda queue, _: queue.release(holder(queue)),
    "expire": lambda queue, _: queue.advance(31),
    "reap": lambda queue, _: queue.reap(),
    "cancel": lambda queue, job_id: queue.cancel(job_id),
    "retry": lambda queue, job_id: queue.retry(job_id, force=True),
    "retry afresh": lambda queue, job_id: queue.retry(job_id, force=True, reset_attempts=True),
}
PATHS = [
    "claim, report, report, complete, retry, claim, complete",
    "claim, report, release, claim, defer, claim, fail, claim, fail for good, retry, cancel",
    "claim, expire, reap, claim, expire, complete, retry afresh, claim, expire, reap, claim, fail",
    "claim, expire, reap, claim, expire, reap, claim, expire, reap, retry, claim, report, fail",
    "cancel, retry, cancel, retry afresh, claim, cancel, report, complete, retry, cancel",
    "claim, cancel, release, retry, claim, cancel, fail, retry, claim, report, expire, cancel",
    "claim, report, report, report, report, report, fail, cancel, retry, claim, complete",
]


def holder(queue: Queue) -> Row:
    """Find the living claim in the tables, so that a step needs no memory."""
    (row,) = queue.look(
        """select tenant_id, lease_id, job_ids[1] as job_id, epochs[1] as epoch
        from jobforge.leases"""
    )
    return row


def claim(queue: Queue) -> None:
    assert queue.claim(1) != []


@pytest.mark.requirement("sql.version")
@pytest.mark.parametrize("path", PATHS)
def test_the_version_grows_at_every_step(queue: Queue, path: str) -> None:
    job_id = queue.enqueue().job_id

    seen = [queue.run(job_id)]
    for step in path.split(", "):
        STEPS[step](queue, job_id)
        seen.append(queue.run(job_id))

    versions = [run.version for run in seen]
    assert versions == sorted(set(versions)), path


def test_the_version_grows_while_a_run_waits_for_its_turn(queue: Queue) -> None:
    head, job_id = (queue.enqueue(ordering_key="k").job_id for _ in range(2))

    versions = [queue.version(job_id)]
    queue.cancel(head)
    versions.append(queue.version(job_id))
    claimed = queue.claim_one()
    versions.append(queue.version(job_id))
    queue.enqueue(ordering_key="k")
    queue.complete(claimed)
    versions.append(queue.version(job_id))
    queue.enqueue(ordering_key="k")
    queue.retry(job_id, force=True)
    versions.append(queue.version(job_id))
    assert queue.status(job_id) == "waiting"
    queue.complete(*queue.claim(1))
    queue.complete(*queue.claim(1))
    versions.append(queue.version(job_id))
    assert queue.status(job_id) == "queued"

    assert versions == sorted(set(versions))


def test_what_changes_nothing_leaves_the_version_alone(queue: Queue) -> None:
    job_id = queue.enqueue(idempotency_key="k").job_id
    claimed = queue.claim_one()
    before = queue.version(job_id)

    queue.heartbeat(claimed)
    queue.enqueue(idempotency_key="k")
    queue.report(claimed, logs='[["info", "x"]]')
    queue.complete(SimpleNamespace(**{**vars(claimed), "epoch": 9}))
    queue.reap()

    assert queue.version(job_id) == before


def test_the_answer_of_an_enqueue_is_the_version_that_a_reader_sees(queue: Queue) -> None:
    plain = queue.enqueue()
    head = queue.enqueue(ordering_key="k")
    turn = queue.enqueue(ordering_key="k")
    leased = queue.ask("enqueue_jobs", "globex", ["demo.echo"], ["{}"], worker_id="w")[0]

    for row in (plain, head, turn):
        assert row.version == queue.version(row.job_id)
    assert leased.version == queue.version(leased.job_id, "globex")
