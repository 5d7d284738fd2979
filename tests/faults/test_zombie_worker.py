"""A worker that was stopped past its lease and comes back: whatever it calls then changes nothing of what was its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from datetime import timedelta

import psycopg
import pytest

from jobforge_mcp.router.heartbeat import HeartbeatConnection
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.router.leases import WorkerRouter
from jobforge_mcp.types import (
    Caller,
    ClaimedJob,
    Completion,
    Failure,
    FailureKind,
    NewJob,
    Report,
    RunError,
    RunStatus,
    WorkerId,
)
from tests.postgres import Clock, ScratchDatabase
from tests.worker.conftest import Desk, eventually
from tests.worker.test_processes import Starter

ZOMBIE, HEIR = WorkerId("zombie"), WorkerId("heir")
Late = Callable[[WorkerRouter, ClaimedJob, ScratchDatabase], Awaitable[object]]


async def late_claim(router: WorkerRouter, mine: ClaimedJob, _: ScratchDatabase) -> object:
    return await router.claim_jobs(ZOMBIE, ["demo.echo"], 10)


async def late_heartbeat(_: WorkerRouter, mine: ClaimedJob, database: ScratchDatabase) -> object:
    with HeartbeatConnection(database.url("jobforge_worker")) as heart:
        return heart.beat(ZOMBIE, [(mine.fence.tenant_id, mine.fence.lease_id)], 30_000)


async def late_progress(router: WorkerRouter, mine: ClaimedJob, _: ScratchDatabase) -> object:
    answers = await router.report_progress(
        [Report(mine.fence, 99.0, 100.0, "late", (("info", "x"),))]
    )
    return [answer.job_id for answer in answers if answer.is_accepted]


async def late_complete(router: WorkerRouter, mine: ClaimedJob, _: ScratchDatabase) -> object:
    settled = await router.complete_jobs([Completion(mine.fence, '"late"')])
    return [each.job_id for each in settled if each.outcome.value == "accepted"]


async def late_fail(router: WorkerRouter, mine: ClaimedJob, _: ScratchDatabase) -> object:
    error = RunError("LATE", "too late", retryable=False)
    settled = await router.fail_jobs([Failure(mine.fence, FailureKind.PERMANENT, error)])
    return [each.job_id for each in settled if each.outcome.value == "accepted"]


@pytest.mark.requirement("faults.zombie")
@pytest.mark.parametrize(
    "is_settled", [False, True], ids=["running elsewhere", "settled elsewhere"]
)
@pytest.mark.parametrize(
    "late", [late_claim, late_heartbeat, late_progress, late_complete, late_fail]
)
async def test_no_call_of_a_worker_that_lost_its_lease_changes_the_run(
    router: Router,
    worker_router: WorkerRouter,
    database: ScratchDatabase,
    clock: Clock,
    acme: Caller,
    late: Late,
    is_settled: bool,
) -> None:
    job_id = (await router.enqueue_job(acme, NewJob("demo.echo", "{}"))).job_id
    (mine,) = await worker_router.claim_jobs(ZOMBIE, ["demo.echo"], 1)
    clock.advance(timedelta(seconds=31))
    await worker_router.reap_expired()
    (theirs,) = await worker_router.claim_jobs(HEIR, ["demo.echo"], 1)
    if is_settled:
        await worker_router.complete_jobs([Completion(theirs.fence, '"theirs"')])
    before = await router.get_run(acme, job_id)

    answer = await late(worker_router, mine, database)

    assert answer == []
    assert theirs.fence.epoch == mine.fence.epoch + 1
    assert await router.get_run(acme, job_id) == before
    assert await router.list_logs(acme, job_id, limit=10) == []


@pytest.mark.requirement("faults.zombie")
async def test_a_process_that_slept_past_its_lease_loses_its_job_and_goes_on_with_others(
    desk: Desk, start_worker: Starter, admin: psycopg.Connection
) -> None:
    """The real thing: SIGSTOP, another worker does the job, SIGCONT."""
    sleeper = start_worker()
    job_id = await desk.enqueue("count", number=4_000)
    admin.execute("update jobforge.jobs set max_attempts = 3")
    await desk.until(job_id, lambda run: run.progress_done is not None)
    before = await desk.router.get_run(desk.caller, job_id)

    os.kill(sleeper.pid, signal.SIGSTOP)
    try:
        start_worker()
        done = await desk.until_final(job_id)
    finally:
        os.kill(sleeper.pid, signal.SIGCONT)
    await eventually(
        lambda: (
            admin.execute(
                "select from jobforge.workers where pid = %s and seen_at > jobforge.now() - interval '1 second'",
                [sleeper.pid],
            ).rowcount
            == 1
        )
    )
    others = [await desk.until_final(await desk.enqueue("echo", number=n)) for n in range(20)]

    assert done.status is RunStatus.SUCCEEDED
    assert (done.epoch, done.worker_id == before.worker_id) == (before.epoch + 1, False)
    assert await desk.router.get_run(desk.caller, job_id) == done
    assert {run.status for run in others} == {RunStatus.SUCCEEDED}
    assert sleeper.poll() is None
