"""Claims, leases, slots and the end of a worker."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import anyio
import psycopg
import pytest
import structlog.testing

from jobforge_mcp.router.leases import WorkerRouter
from jobforge_mcp.types import (
    Caller,
    CallOrigin,
    ClaimedJob,
    Completion,
    Fence,
    InlineLease,
    NewJob,
    RunFilter,
    RunStatus,
    SettleOutcome,
    WorkerId,
)
from jobforge_mcp.worker.pool import WorkerPool
from tests.postgres import ScratchDatabase
from tests.worker.conftest import BUSY, Desk, PoolMaker, eventually

ORIGIN = CallOrigin("test")


async def enqueue_inline(desk: Desk, pool: WorkerPool, job_type: str) -> ClaimedJob:
    """Insert a job already leased to a pool, as a server does for execute-job."""
    job = NewJob(job_type, "{}")
    inline = InlineLease(pool.worker_id, 30_000)
    enqueued = await desk.router.enqueue_job(desk.caller, job, origin=ORIGIN, inline=inline)
    assert enqueued.lease_id is not None
    assert enqueued.lease_until is not None
    return ClaimedJob(
        fence=Fence(desk.caller.tenant_id, enqueued.lease_id, enqueued.job_id, 1),
        job_type=job.job_type,
        job_version=job.job_version,
        payload=job.payload,
        project_id=None,
        trace_id=None,
        attempt_no=1,
        max_attempts=job.max_attempts,
        timeout_ms=job.timeout_ms,
        is_dry_run=False,
        is_suspect=False,
        claimed_at=enqueued.created_at,
        lease_until=enqueued.lease_until,
    )


async def test_a_job_runs_and_whoever_watches_is_told(desk: Desk, make_pool: PoolMaker) -> None:
    async with make_pool():
        job_id = await desk.enqueue("echo", number=7)

        run = await desk.until_final(job_id)

    assert (run.status, run.result, run.attempt_no) == (RunStatus.SUCCEEDED, "7", 1)
    assert desk.changed == [job_id]


async def test_an_idle_worker_is_woken_long_before_it_polls(
    desk: Desk, make_pool: PoolMaker
) -> None:
    async with make_pool(poll_ms=60_000):
        await desk.until_final(await desk.enqueue("echo"))

        started = time.monotonic()
        await desk.until_final(await desk.enqueue("echo"))

    assert time.monotonic() - started < 30


async def test_many_jobs_run_on_few_slots_and_each_once(
    desk: Desk, make_pool: PoolMaker, admin: psycopg.Connection
) -> None:
    jobs = [NewJob("echo", f'{{"number": {number}}}') for number in range(300)]
    made = await desk.router.enqueue_jobs(desk.caller, jobs, origin=ORIGIN)

    async with make_pool(worker_concurrency=7) as pool:
        runs = [await desk.until_final(enqueued.job_id) for enqueued in made]
        await eventually(lambda: pool.free_slots == 7)

    assert [run.result for run in runs] == [str(number) for number in range(300)]
    assert {run.attempt_no for run in runs} == {1}
    assert admin.execute("select count(*) from jobforge.leases").fetchone() == (0,)


async def test_a_reserved_slot_is_not_claimed_for(desk: Desk, make_pool: PoolMaker) -> None:
    async with make_pool(worker_concurrency=1) as pool:
        await eventually(lambda: pool.free_slots == 1)
        reservation = pool.try_reserve()
        assert reservation is not None
        assert pool.try_reserve() is None
        job_id = await desk.enqueue("echo")
        with anyio.move_on_after(0.5):
            await desk.until(job_id, lambda run: run.status is not RunStatus.QUEUED)

        run = await desk.router.get_run(desk.caller, job_id)
        reservation.release()
        reservation.release()
        after = await desk.until_final(job_id)

    assert run.status is RunStatus.QUEUED
    assert after.status is RunStatus.SUCCEEDED
    assert pool.free_slots == 0


async def test_an_adopted_job_runs_in_its_reserved_slot(desk: Desk, make_pool: PoolMaker) -> None:
    async with make_pool() as pool:
        reservation = pool.try_reserve()
        assert reservation is not None

        with reservation:
            claimed = await enqueue_inline(desk, pool, "echo")
            reservation.adopt(claimed)
        run = await desk.until_final(claimed.fence.job_id)
        await eventually(lambda: pool.free_slots == 4)

    assert (run.status, run.attempt_no, run.worker_id) == (
        RunStatus.SUCCEEDED,
        1,
        pool.worker_id,
    )


async def test_a_held_job_without_a_handler_fails_alone(desk: Desk, make_pool: PoolMaker) -> None:
    async with make_pool() as pool:
        claimed = await enqueue_inline(desk, pool, "nobody.knows")
        pool.adopt(claimed)

        run = await desk.until_final(claimed.fence.job_id)

    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error.code == "JOB_NOT_FOUND"


async def test_an_unknown_type_is_never_claimed(desk: Desk, make_pool: PoolMaker) -> None:
    job = NewJob("nobody.knows", "{}")
    enqueued = await desk.router.enqueue_job(desk.caller, job, origin=ORIGIN)

    async with make_pool():
        await desk.until_final(await desk.enqueue("echo"))
        run = await desk.router.get_run(desk.caller, enqueued.job_id)

    assert (run.status, run.attempt_no) == (RunStatus.QUEUED, 0)


async def test_a_cancel_stops_a_handler_that_never_looks(desk: Desk, make_pool: PoolMaker) -> None:
    async with make_pool(lease_ms=1_500):
        job_id = await desk.enqueue("sleep")
        await desk.until(job_id, lambda run: run.status is RunStatus.RUNNING)

        await desk.router.cancel_job(desk.caller, job_id, reason="enough", origin=ORIGIN)
        run = await desk.until_final(job_id)

    assert (run.status, run.cancel_reason) == (RunStatus.CANCELED, "enough")


async def test_a_handler_that_looks_ends_by_itself_when_canceled(
    desk: Desk, make_pool: PoolMaker
) -> None:
    async with make_pool(kill_grace_seconds=60):
        job_id = await desk.enqueue("obey")
        await desk.until(job_id, lambda run: run.progress_done is not None)

        # Its own reports bring the request: no heartbeat is due for ten seconds.
        await desk.router.cancel_job(desk.caller, job_id, reason=None, origin=ORIGIN)
        run = await desk.until_final(job_id)

    assert run.status is RunStatus.CANCELED


@pytest.mark.requirement("worker.stops-for-real")
async def test_a_timeout_ends_the_work(desk: Desk, make_pool: PoolMaker) -> None:
    async with make_pool() as pool:
        job_id = await desk.enqueue("sleep.briefly")

        run = await desk.first_failure(job_id)
        await eventually(lambda: pool.running == 0)

    assert run.error is not None
    assert (run.error.code, run.error.retryable) == ("TIMED_OUT", True)


@pytest.mark.requirement("worker.unstoppable")
@pytest.mark.parametrize("name", ["swallow", "wait.thread"])
async def test_a_handler_that_cannot_be_stopped_keeps_its_slot_and_is_named(
    desk: Desk, make_pool: PoolMaker, tmp_path: Path, name: str
) -> None:
    gate = tmp_path / "gate"
    with structlog.testing.capture_logs() as logs:
        async with make_pool(worker_concurrency=1, kill_grace_seconds=0.2) as pool:
            job_id = await desk.enqueue(name, name=str(gate))

            run = await desk.until_final(job_id)
            held = (pool.running, pool.free_slots)
            await anyio.Path(gate).write_text("go")
            neighbour = await desk.until_final(await desk.enqueue("echo"))

    assert (run.status, run.result, held) == (RunStatus.DEAD, None, (1, 0))
    assert run.error is not None
    assert run.error.code == "TIMED_OUT"
    assert neighbour.status is RunStatus.SUCCEEDED
    warnings = [entry for entry in logs if entry["event"] == "handler_not_stoppable"]
    assert [(entry["job_type"], entry["job_id"]) for entry in warnings] == [(name, str(job_id))]


@pytest.mark.requirement("worker.blocked-loop")
async def test_a_blocked_loop_is_reported_by_name_and_costs_no_lease(
    desk: Desk, make_pool: PoolMaker
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with make_pool(lease_ms=2_000, blocked_seconds=2):
            neighbour_id = await desk.enqueue("sleep")
            await desk.until(neighbour_id, lambda run: run.status is RunStatus.RUNNING)

            # Blocks this test as well; more than two leases long.
            job_id = await desk.enqueue("block", number=50)
            run = await desk.until_final(job_id)
            neighbour = await desk.router.get_run(desk.caller, neighbour_id)

    assert (run.status, run.attempt_no) == (RunStatus.SUCCEEDED, 1)
    assert (neighbour.status, neighbour.epoch) == (RunStatus.RUNNING, 1)
    blocked = [
        entry
        for entry in logs
        if entry["event"] == "event_loop_blocked" and entry.get("job_type") == "block"
    ]
    assert [entry["job_id"] for entry in blocked] == [str(job_id)]
    assert "handlers.py" in blocked[0]["place"]


@pytest.mark.requirement("worker.fence")
@pytest.mark.requirement("worker.fence")
async def test_a_claim_of_many_tenants_keeps_the_leases_of_all(
    desk: Desk, globex: Caller, make_pool: PoolMaker, admin: psycopg.Connection
) -> None:
    other = Desk(desk.router, desk.registry, globex)
    ids = [await desk.enqueue("sleep"), await other.enqueue("sleep")]

    async with make_pool(lease_ms=1_500) as pool:
        await eventually(lambda: pool.running == 2)
        claimed = _epochs_and_leases(admin)
        # Two leases long: what nobody extends is gone by then, and comes back with another epoch.
        await anyio.sleep(4)
        still = _epochs_and_leases(admin)

    assert len(claimed) == len(ids)
    assert still == claimed


def _epochs_and_leases(admin: psycopg.Connection) -> list[tuple[object, ...]]:
    return admin.execute(
        "select l.tenant_id, l.lease_id, l.job_ids, l.epochs from jobforge.leases l order by 1"
    ).fetchall()


async def test_an_attempt_whose_lease_was_taken_is_stopped_and_settles_nothing(
    desk: Desk, make_pool: PoolMaker, admin: psycopg.Connection
) -> None:
    async with make_pool(lease_ms=1_500, poll_ms=60_000) as pool:
        job_id = await desk.enqueue("sleep")
        await desk.until(job_id, lambda run: run.status is RunStatus.RUNNING)
        admin.execute("update jobforge.jobs set run_at = now() + interval '1 h'")

        admin.execute("delete from jobforge.leases")
        await eventually(lambda: pool.running == 0)

    assert pool.free_slots == 0
    assert admin.execute("select count(*) from jobforge.job_attempts").fetchone() == (0,)


@pytest.mark.requirement("worker.fence")
async def test_a_settle_after_the_lease_was_lost_is_refused(
    desk: Desk, make_pool: PoolMaker, worker_router: WorkerRouter
) -> None:
    job_id = await desk.enqueue("echo", number=1)
    (stale,) = await worker_router.claim_jobs(WorkerId("gone"), ["echo"], 1, lease_ms=100)

    async with make_pool():
        run = await desk.until_final(job_id)
        (settled,) = await worker_router.complete_jobs([Completion(stale.fence, '"stale"')])

    assert settled.outcome is SettleOutcome.STALE
    assert (run.status, run.result, run.epoch) == (RunStatus.SUCCEEDED, "1", 2)


@pytest.mark.requirement("worker.gives-up-first")
async def test_a_worker_gives_its_leases_up_before_the_database_takes_them(
    desk: Desk, make_pool: PoolMaker, admin: psycopg.Connection
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with make_pool(lease_ms=2_000) as pool:
            job_id = await desk.enqueue("sleep")
            await desk.until(job_id, lambda run: run.status is RunStatus.RUNNING)

            # From now on no beat is allowed to extend anything.
            admin.execute(
                "revoke execute on function jobforge.heartbeat(text, text[], uuid[], integer)"
                " from jobforge_worker"
            )
            admin.execute("update jobforge.leases set lease_until = now() + interval '1 h'")
            await eventually(lambda: pool.running == 0)

    assert "lease_given_up" in [entry["event"] for entry in logs]
    assert admin.execute("select count(*) from jobforge.job_attempts").fetchone() == (0,)


async def test_an_expired_lease_is_found_within_a_second_by_a_worker_that_rarely_polls(
    desk: Desk, make_pool: PoolMaker, worker_router: WorkerRouter
) -> None:
    job_id = await desk.enqueue("echo")
    (lost,) = await worker_router.claim_jobs(WorkerId("gone"), ["echo"], 1, lease_ms=2_000)

    async with make_pool(poll_ms=60_000):
        run = await desk.until_final(job_id)

    assert run.finished_at is not None
    assert run.attempt_no == 2
    # No poll found it: that is due in a minute.
    assert timedelta() <= run.finished_at - lost.lease_until < BUSY


async def test_the_next_suspect_is_claimed_when_the_last_one_has_ended_not_at_the_next_poll(
    desk: Desk, make_pool: PoolMaker, database: ScratchDatabase
) -> None:
    job_ids = [await desk.enqueue("echo") for _ in range(10)]
    with database.connect() as connection:
        connection.execute("update jobforge.ready set is_suspect = true")

    async with make_pool(poll_ms=60_000):
        with anyio.fail_after(45):  # the first poll is due later
            runs = [await desk.until_final(job_id) for job_id in job_ids]

    assert [run.status for run in runs] == [RunStatus.SUCCEEDED] * 10


async def test_leaving_the_pool_lets_running_jobs_finish_within_the_grace(
    desk: Desk, make_pool: PoolMaker
) -> None:
    async with make_pool(drain_grace_seconds=60) as pool:
        job_ids = [await desk.enqueue("count", number=300) for _ in range(3)]
        await eventually(lambda: pool.running == 3)

    runs = [await desk.router.get_run(desk.caller, job_id) for job_id in job_ids]
    assert {run.status for run in runs} == {RunStatus.SUCCEEDED}


@pytest.mark.requirement("worker.drain")
@pytest.mark.parametrize("name", ["sleep", "obey", "stubborn.process"])
async def test_what_does_not_finish_within_the_grace_is_released_uncharged(
    desk: Desk, make_pool: PoolMaker, name: str
) -> None:
    async with make_pool(drain_grace_seconds=0.2) as pool:
        job_id = await desk.enqueue(name)
        await desk.until(job_id, lambda run: run.progress_done is not None)
        started = time.monotonic()

        await pool.drain(0.2)
        seconds = time.monotonic() - started
        run = await desk.router.get_run(desk.caller, job_id)

    assert (run.status, run.attempt_no, run.epoch) == (RunStatus.QUEUED, 0, 1)
    # Nothing but the grace ends them: each would go on for half a minute.
    assert seconds < 20


async def test_a_draining_worker_claims_nothing_and_gives_adopted_jobs_back(
    desk: Desk, make_pool: PoolMaker
) -> None:
    async with make_pool() as pool:
        reservation = pool.try_reserve()
        assert reservation is not None
        claimed = await enqueue_inline(desk, pool, "echo")

        await pool.drain(0)
        reservation.adopt(claimed)
        queued_id = await desk.enqueue("echo")
        adopted = await desk.until(claimed.fence.job_id, lambda run: run.status is RunStatus.QUEUED)
        queued = await desk.router.get_run(desk.caller, queued_id)

    assert (adopted.attempt_no, queued.status) == (0, RunStatus.QUEUED)
    assert pool.try_reserve() is None


async def test_abandoning_ends_the_grace_at_once(desk: Desk, make_pool: PoolMaker) -> None:
    async with make_pool() as pool:
        job_id = await desk.enqueue("sleep")
        await desk.until(job_id, lambda run: run.status is RunStatus.RUNNING)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pool.drain, 60.0)
                await anyio.lowlevel.checkpoint()
                pool.abandon()
        run = await desk.router.get_run(desk.caller, job_id)

    assert (run.status, run.attempt_no) == (RunStatus.QUEUED, 0)


@pytest.mark.requirement("worker.fails-alone")
async def test_one_outcome_the_database_refuses_does_not_take_the_others_with_it(
    desk: Desk, make_pool: PoolMaker, admin: psycopg.Connection
) -> None:
    admin.execute(
        "alter table jobforge.jobs add constraint no_thirteen check (result::text is distinct from '13')"
    )
    numbers = [11, 12, 13, 14]
    job_ids = [await desk.enqueue("echo", number=number) for number in numbers]

    async with make_pool():
        runs = [await desk.until_final(job_id) for job_id in job_ids]

    assert [run.status.value for run in runs] == ["succeeded", "succeeded", "failed", "succeeded"]
    assert runs[2].error is not None
    assert runs[2].error.code == "OUTCOME_REFUSED"


async def test_outcomes_survive_a_broken_connection(
    desk: Desk, make_pool: PoolMaker, admin: psycopg.Connection
) -> None:
    async with make_pool():
        job_id = await desk.enqueue("count", number=500)
        await desk.until(job_id, lambda run: run.progress_done is not None)

        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'jobforge_worker'"
        )
        run = await desk.until_final(job_id)

    assert (run.status, run.attempt_no) == (RunStatus.SUCCEEDED, 1)


async def test_claims_go_in_turn_through_the_tenants(
    desk: Desk, make_pool: PoolMaker, globex: Caller
) -> None:
    crowd = [NewJob("echo", '{"number": 1}') for _ in range(400)]
    await desk.router.enqueue_jobs(desk.caller, crowd, origin=ORIGIN)
    neighbour = Desk(desk.router, desk.registry, globex)
    job_id = await neighbour.enqueue("echo")

    async with make_pool(worker_concurrency=2):
        run = await neighbour.until_final(job_id)
        rows = await desk.router.list_runs(desk.caller, RunFilter(limit=100))

    assert run.status is RunStatus.SUCCEEDED
    assert run.finished_at is not None
    assert rows[0].finished_at is None or rows[0].finished_at > run.finished_at
