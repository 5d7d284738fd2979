"""WorkerRouter: each function of workers, against the real SQL; the fence on every call about a claimed job."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import psycopg
import pytest

from jobforge_mcp.errors import LeaseLostError, LimitError
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.router.leases import WorkerRouter
from jobforge_mcp.types import (
    Caller,
    ClaimedJob,
    Completion,
    Failure,
    FailureKind,
    Fence,
    LeaseId,
    NewJob,
    Report,
    RunError,
    RunStatus,
    SettleOutcome,
    TenantId,
    WorkerId,
)
from tests.postgres import Clock

ECHO = NewJob("demo.echo", '{"a": 1}')
WORKER = WorkerId("worker-1")
OTHER = WorkerId("worker-2")
BOOM = RunError("BOOM", "it broke", True, "ValueError", "mend it")


async def claim(worker_router: WorkerRouter, limit: int = 10) -> list[ClaimedJob]:
    return await worker_router.claim_jobs(WORKER, ["demo.echo"], limit)


async def test_a_claimed_job_brings_all_its_worker_needs(
    router: Router, worker_router: WorkerRouter, acme: Caller
) -> None:
    job = ECHO._replace(
        project_id="p1", trace_id="t", timeout_ms=99, max_attempts=7, is_dry_run=True
    )
    enqueued = await router.enqueue_job(acme, job)

    claimed = (await claim(worker_router))[0]

    assert (claimed.fence.tenant_id, claimed.fence.job_id) == ("acme", enqueued.job_id)
    assert (claimed.fence.epoch, claimed.attempt_no, claimed.max_attempts) == (1, 1, 7)
    assert (claimed.job_type, claimed.job_version, claimed.payload) == (
        "demo.echo",
        "1",
        '{"a": 1}',
    )
    assert (claimed.project_id, claimed.trace_id, claimed.timeout_ms) == ("p1", "t", 99)
    assert (claimed.is_dry_run, claimed.is_suspect) == (True, False)
    assert claimed.lease_until - claimed.claimed_at == timedelta(seconds=30)


async def test_only_wanted_types_and_tenants_are_claimed(
    router: Router, worker_router: WorkerRouter, acme: Caller, globex: Caller
) -> None:
    await router.enqueue_job(acme, ECHO)
    await router.enqueue_job(globex, ECHO)

    of_other_type = await worker_router.claim_jobs(WORKER, ["demo.other"], 10)
    of_globex = await worker_router.claim_jobs(
        WORKER, ["demo.echo"], 10, tenant_ids=[TenantId("globex")]
    )

    assert of_other_type == []
    assert [job.fence.tenant_id for job in of_globex] == ["globex"]


async def test_claims_take_turns_between_tenants(
    router: Router, worker_router: WorkerRouter, acme: Caller, globex: Caller
) -> None:
    await router.enqueue_jobs(acme, [ECHO] * 5)
    await router.enqueue_jobs(globex, [ECHO] * 5)

    after_acme = await worker_router.claim_jobs(WORKER, ["demo.echo"], 1, after_tenant="acme")
    both = await worker_router.claim_jobs(WORKER, ["demo.echo"], 4)

    assert [job.fence.tenant_id for job in after_acme] == ["globex"]
    assert sorted(job.fence.tenant_id for job in both) == ["acme", "acme", "globex", "globex"]


async def test_progress_is_stored_and_answers_with_the_wish_to_cancel(
    router: Router, worker_router: WorkerRouter, acme: Caller
) -> None:
    enqueued = await router.enqueue_job(acme, ECHO)
    fence = (await claim(worker_router))[0].fence

    first = await worker_router.report_progress([Report(fence, 1, 2, "half")])
    await router.cancel_job(acme, enqueued.job_id)
    second = await worker_router.report_progress([Report(fence)])

    assert [(a.job_id, a.is_accepted, a.is_cancel_requested) for a in first + second] == [
        (enqueued.job_id, True, False),
        (enqueued.job_id, True, True),
    ]


async def test_odd_characters_of_a_handler_keep_nobody_from_reporting_or_settling(
    router: Router, worker_router: WorkerRouter, acme: Caller
) -> None:
    enqueued = await router.enqueue_job(acme, ECHO)
    fence = (await claim(worker_router))[0].fence
    odd = "nul \0, half \ud800, backslash \\u0000"

    await worker_router.report_progress([Report(fence, message=odd, logs=(("info", odd),))])
    error = RunError("ODD", odd, False, odd, odd)
    await worker_router.fail_jobs([Failure(fence, FailureKind.PERMANENT, error, odd)])

    run = await router.get_run(acme, enqueued.job_id)
    lines = await router.list_logs(acme, enqueued.job_id)
    stored = "nul \ufffd, half ?, backslash \\u0000"
    assert run.error == RunError("ODD", stored, False, stored, stored)
    assert [line.message for line in lines] == [stored]


async def test_a_batch_is_settled_in_order_each_by_its_own_fence(
    router: Router, worker_router: WorkerRouter, acme: Caller
) -> None:
    await router.enqueue_jobs(acme, [ECHO] * 3)
    fences = [job.fence for job in await claim(worker_router)]
    forged = fences[1]._replace(lease_id=LeaseId(uuid4()))
    batch = [Completion(fences[0], "1"), Completion(forged, "2"), Completion(fences[2], "3")]

    settled = await worker_router.complete_jobs(batch)
    repeated = await worker_router.complete_jobs(batch)

    assert [one.job_id for one in settled] == [fence.job_id for fence in fences]
    assert [one.outcome.value for one in settled] == ["accepted", "stale", "accepted"]
    assert [one.outcome.value for one in repeated] == ["repeated", "stale", "repeated"]
    assert settled[0].status is RunStatus.SUCCEEDED


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (FailureKind.FAILED, RunStatus.QUEUED),
        (FailureKind.TIMED_OUT, RunStatus.QUEUED),
        (FailureKind.PERMANENT, RunStatus.FAILED),
        (FailureKind.DEFERRED, RunStatus.QUEUED),
    ],
)
async def test_a_failure_is_followed_by_what_the_database_decides(
    router: Router, worker_router: WorkerRouter, acme: Caller, kind: FailureKind, status: RunStatus
) -> None:
    enqueued = await router.enqueue_job(acme, ECHO)
    fence = (await claim(worker_router))[0].fence

    settled = await worker_router.fail_jobs([Failure(fence, kind, BOOM, "Traceback", 3_600_000)])
    run = await router.get_run(acme, enqueued.job_id)

    assert [(one.outcome, one.status) for one in settled] == [(SettleOutcome.ACCEPTED, status)]
    assert run.status is status
    if status is RunStatus.QUEUED:
        assert run.run_at > run.created_at + timedelta(minutes=59)


async def test_a_released_job_can_be_claimed_at_once_with_the_same_attempt(
    router: Router, worker_router: WorkerRouter, acme: Caller
) -> None:
    await router.enqueue_job(acme, ECHO)
    fence = (await claim(worker_router))[0].fence

    released = await worker_router.release_jobs([fence])
    again = (await claim(worker_router))[0]

    assert [one.outcome for one in released] == [SettleOutcome.ACCEPTED]
    assert (again.fence.epoch, again.attempt_no) == (2, 1)


async def test_an_expired_lease_is_reaped_and_its_fence_is_dead(
    router: Router, worker_router: WorkerRouter, acme: Caller, clock: Clock
) -> None:
    await router.enqueue_job(acme, ECHO)
    fence = (await claim(worker_router))[0].fence
    clock.advance(timedelta(seconds=31))

    reaped = await worker_router.reap_expired()
    again = await worker_router.claim_jobs(OTHER, ["demo.echo"], 10)

    assert reaped == 1
    assert [job.fence.job_id for job in again] == [fence.job_id]
    assert [one.outcome for one in await worker_router.complete_jobs([Completion(fence, "1")])] == [
        SettleOutcome.STALE
    ]
    assert [a.is_accepted for a in await worker_router.report_progress([Report(fence, 1)])] == [
        False
    ]
    with pytest.raises(LeaseLostError):
        await worker_router.enqueue_child(fence, ECHO)


async def test_a_claim_can_reap_first(
    router: Router, worker_router: WorkerRouter, acme: Caller, clock: Clock
) -> None:
    await router.enqueue_job(acme, ECHO)
    await claim(worker_router)
    clock.advance(timedelta(seconds=31))

    again = await worker_router.claim_jobs(OTHER, ["demo.echo"], 10, reap=True)

    assert [job.fence.epoch for job in again] == [2]


async def test_a_child_belongs_to_its_parent_and_its_key_makes_it_once(
    router: Router, worker_router: WorkerRouter, acme: Caller
) -> None:
    parent = await router.enqueue_job(acme, ECHO._replace(project_id="p1", trace_id="t"))
    fence = (await claim(worker_router))[0].fence
    job = NewJob("demo.child", "{}", idempotency_key=f"{parent.job_id}:1", labels={"a": "b"})

    child = await worker_router.enqueue_child(fence, job)
    again = await worker_router.enqueue_child(fence, job)

    run = await router.get_run(acme, child.job_id)
    assert again.job_id == child.job_id
    assert (run.parent_id, run.project_id, run.trace_id) == (parent.job_id, "p1", "t")
    assert run.labels == {"a": "b"}


async def test_a_result_too_large_is_refused(
    router: Router, worker_router: WorkerRouter, acme: Caller
) -> None:
    await router.enqueue_job(acme, ECHO)
    fence = (await claim(worker_router))[0].fence

    with pytest.raises(LimitError):
        await worker_router.complete_jobs([Completion(fence, f'"{"x" * 1_048_576}"')])


async def test_workers_come_and_go(worker_router: WorkerRouter, admin: psycopg.Connection) -> None:
    await worker_router.register_worker(
        WORKER, host="h", pid=1, version="0", job_types=["demo.echo"], concurrency=4
    )
    rows = admin.execute("select w.worker_id, w.job_types from jobforge.workers w").fetchall()
    await worker_router.forget_worker(WORKER)

    assert rows == [(WORKER, ["demo.echo"])]
    assert admin.execute("select from jobforge.workers").fetchall() == []


async def test_an_idle_worker_tends_lanes_and_asks_to_be_woken(
    worker_router: WorkerRouter, admin: psycopg.Connection
) -> None:
    await worker_router.tend_lanes()
    await worker_router.await_wakeup(WORKER, "ready", 1_000)

    rows = admin.execute("select l.listener_id, l.topic from jobforge.listeners l").fetchall()
    assert rows == [(WORKER, "ready")]


async def test_empty_batches_ask_nothing(worker_router: WorkerRouter) -> None:
    assert await worker_router.report_progress([]) == []
    assert await worker_router.complete_jobs([]) == []
    assert await worker_router.fail_jobs([]) == []
    assert await worker_router.release_jobs([]) == []


@pytest.fixture
def effects(admin: psycopg.Connection) -> psycopg.Connection:
    """A table of an application in the same database, open to handlers."""
    admin.execute("create table public.effects (note text)")
    admin.execute("grant select, insert on public.effects to jobforge_worker")
    return admin


async def write_and_complete(worker_router: WorkerRouter, fence: Fence) -> None:
    async with worker_router.transaction(fence) as transaction:
        await transaction.execute("insert into public.effects values (%s)", ["done"])
        assert await transaction.fetch("select e.note from public.effects e") == [{"note": "done"}]
        await transaction.complete('{"b": 2}')


def written(effects: psycopg.Connection) -> list[tuple[str]]:
    return effects.execute("select e.note from public.effects e").fetchall()


@pytest.mark.requirement("router.effects-once")
async def test_an_effect_and_its_completion_are_one_transaction(
    router: Router, worker_router: WorkerRouter, acme: Caller, effects: psycopg.Connection
) -> None:
    enqueued = await router.enqueue_job(acme, ECHO)
    fence = (await claim(worker_router))[0].fence

    await write_and_complete(worker_router, fence)

    assert written(effects) == [("done",)]
    assert (await router.get_run(acme, enqueued.job_id)).result == '{"b": 2}'


@pytest.mark.requirement("router.effects-once")
async def test_an_effect_of_a_lost_claim_is_rolled_back(
    router: Router,
    worker_router: WorkerRouter,
    acme: Caller,
    effects: psycopg.Connection,
    clock: Clock,
) -> None:
    await router.enqueue_job(acme, ECHO)
    fence = (await claim(worker_router))[0].fence
    clock.advance(timedelta(seconds=31))
    await worker_router.reap_expired()

    with pytest.raises(LeaseLostError):
        await write_and_complete(worker_router, fence)

    assert written(effects) == []
