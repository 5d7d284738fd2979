"""What kills workers and what cannot be read: each costs itself alone, and says why."""

from __future__ import annotations

import contextlib
import json

import psycopg
import pytest

from jobforge_mcp.types import RunStatus
from tests.worker.conftest import Desk, PoolMaker, eventually
from tests.worker.test_processes import Starter


@pytest.mark.requirement("worker.poison")
async def test_a_job_that_kills_every_worker_is_dead_with_the_reason_told(
    desk: Desk, start_worker: Starter
) -> None:
    poison_id = await desk.enqueue("poison")
    workers = [start_worker()]

    while not (await desk.router.get_run(desk.caller, poison_id)).status.is_final:
        if workers[-1].poll() is not None:
            workers.append(start_worker())
        with contextlib.suppress(TimeoutError):
            await eventually(lambda: workers[-1].poll() is not None, 0.2)
    run = await desk.until_final(poison_id)
    attempts = await desk.router.list_attempts(desk.caller, poison_id)

    assert (run.status, run.attempt_no) == (RunStatus.DEAD, 2)
    assert run.error is not None
    assert (run.error.code, run.error.message) == (
        "WORKER_LOST",
        "the worker was lost while it ran the job",
    )
    assert [attempt.outcome for attempt in attempts] == ["lost", "lost"]


@pytest.mark.requirement("faults.poison-row")
async def test_rows_that_cannot_be_understood_fail_alone_in_their_batch(
    desk: Desk, make_pool: PoolMaker, admin: psycopg.Connection
) -> None:
    """Rows that only somebody past our functions could have written."""
    deep = "[" * 3_000 + "]" * 3_000
    rows = {
        "too deep": json.dumps({"number": 1, "deep": None}).replace("null", deep),
        "no object": '"number"',
        "huge number": '{"number": 1e400}',
        "wrong type": '{"number": "many"}',
        "huge integer": '{"number": 123456789012345678901234567890}',
    }
    good = [await desk.enqueue("echo", number=n) for n in range(10)]
    bad = {name: await desk.enqueue("echo", number=0) for name in rows}
    for name, payload in rows.items():
        admin.execute(
            "update jobforge.jobs set payload = %s::jsonb, max_attempts = 1 where id = %s",
            [payload, bad[name]],
        )

    async with make_pool(worker_concurrency=2):
        succeeded = [await desk.until_final(job_id) for job_id in good]
        failed = {name: await desk.until_final(job_id) for name, job_id in bad.items()}

    assert {run.status for run in succeeded} == {RunStatus.SUCCEEDED}
    assert {run.attempt_no for run in succeeded} == {1}
    assert {name: run.status for name, run in failed.items()} == dict.fromkeys(
        rows, RunStatus.FAILED
    )
    assert all(run.error and run.error.code and run.error.message for run in failed.values())
