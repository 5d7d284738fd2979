"""What becomes of an attempt, by how its handler ends."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import timedelta

import psycopg
import pytest

from jobforge_mcp.types import RunStatus
from jobforge_mcp.worker.pool import WorkerPool
from tests.worker.conftest import Desk, PoolMaker

ISOLATIONS = ["raise", "raise.process"]


@pytest.fixture
async def pool(make_pool: PoolMaker) -> AsyncGenerator[WorkerPool]:
    async with make_pool() as made:
        yield made


@pytest.mark.parametrize("name", ["echo", "echo.thread", "echo.async-process"])
async def test_every_isolation_gives_the_same_result(
    desk: Desk, pool: WorkerPool, name: str
) -> None:
    run = await desk.until_final(await desk.enqueue(name, number=5))

    assert (run.status, run.result) == (RunStatus.SUCCEEDED, "5")


@pytest.mark.parametrize("name", ISOLATIONS)
async def test_a_permanent_error_fails_the_run_at_once(
    desk: Desk, pool: WorkerPool, name: str
) -> None:
    run = await desk.until_final(await desk.enqueue(name, name="permanent"))

    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert (run.error.code, run.error.message) == ("NEVER", "this will never work")
    assert (run.error.type, run.error.retryable, run.attempt_no) == ("PermanentError", False, 1)


@pytest.mark.parametrize("name", ISOLATIONS)
async def test_an_error_is_retried_with_code_type_and_message(
    desk: Desk, pool: WorkerPool, name: str
) -> None:
    job_id = await desk.enqueue(name, name="wing")

    run = await desk.first_failure(job_id)

    assert run.error is not None
    assert (run.error.code, run.error.type) == ("HANDLER_ERROR", "ValueError")
    assert (run.error.message, run.error.retryable) == ("broken wing", True)


@pytest.mark.parametrize("name", ISOLATIONS)
async def test_retry_later_spends_no_attempt(desk: Desk, pool: WorkerPool, name: str) -> None:
    job_id = await desk.enqueue(name, name="later")

    run = await desk.until(job_id, lambda r: r.status is RunStatus.QUEUED and r.epoch == 1)

    assert run.attempt_no == 0
    assert run.run_at - run.created_at > timedelta(seconds=59)


@pytest.mark.parametrize("name", ISOLATIONS)
async def test_the_delay_a_receiver_asked_for_is_kept(
    desk: Desk, pool: WorkerPool, name: str
) -> None:
    job_id = await desk.enqueue(name, name="retry_after")

    run = await desk.until(job_id, lambda r: r.status is RunStatus.QUEUED and r.epoch == 1)

    assert run.attempt_no == 1
    assert run.run_at - run.created_at > timedelta(seconds=119)


@pytest.mark.parametrize("name", ISOLATIONS)
async def test_a_permanent_error_is_found_in_a_group(
    desk: Desk, pool: WorkerPool, name: str
) -> None:
    run = await desk.until_final(await desk.enqueue(name, name="group"))

    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error.message == "other"


@pytest.mark.parametrize("name", ISOLATIONS)
async def test_a_handler_that_exits_fails_and_harms_nobody(
    desk: Desk, pool: WorkerPool, name: str
) -> None:
    job_id = await desk.enqueue(name, name="exit")

    run = await desk.first_failure(job_id)
    neighbour = await desk.until_final(await desk.enqueue("echo"))

    assert run.error is not None
    assert run.error.type == "SystemExit"
    assert neighbour.status is RunStatus.SUCCEEDED


async def test_a_long_error_is_capped_and_its_traceback_stays_with_the_attempt(
    desk: Desk, pool: WorkerPool, admin: psycopg.Connection
) -> None:
    job_id = await desk.enqueue("raise", name="long")

    run = await desk.first_failure(job_id)

    assert run.error is not None
    assert len(run.error.message.encode()) <= 2_048
    row = admin.execute(
        "select traceback from jobforge.job_attempts where job_id = %s", [job_id]
    ).fetchone()
    assert row is not None
    assert len(row[0].encode()) <= 16_384
    assert "handlers.py" in row[0]


@pytest.mark.parametrize("name", ["wrong-result", "wrong-result.process"])
async def test_a_result_that_does_not_fit_fails_the_run(
    desk: Desk, pool: WorkerPool, name: str
) -> None:
    run = await desk.until_final(await desk.enqueue(name))

    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error.code == "OUTPUT_INVALID"


@pytest.mark.requirement("worker.fails-alone")
async def test_an_input_that_does_not_fit_fails_alone(desk: Desk, make_pool: PoolMaker) -> None:
    payloads = ['{"number": 1}', '{"number": "many"}', "[]", '{"number": 2}']
    job_ids = [await desk.enqueue_raw("echo", payload) for payload in payloads]
    job_ids.append(await desk.enqueue_raw("echo.process", '{"number": {}}'))

    async with make_pool(worker_concurrency=10):
        runs = [await desk.until_final(job_id) for job_id in job_ids]

    assert [run.status.value for run in runs] == [
        "succeeded",
        "failed",
        "failed",
        "succeeded",
        "failed",
    ]
    codes = {run.error.code for run in runs if run.error is not None}
    assert codes == {"INVALID_INPUT"}
