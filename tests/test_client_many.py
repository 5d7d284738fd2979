"""The client's verbs on queues and on many runs: who may, and what is left out."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from pydantic import BaseModel

from jobforge_mcp.client import Client, Options
from jobforge_mcp.definitions.model import ConcurrencyLimit, Permission, job
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.errors import ConflictError, InvalidInputError, PolicyDeniedError
from jobforge_mcp.policy.scopes import ALL_SCOPES, Scope
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.router.leases import WorkerRouter
from jobforge_mcp.types import (
    BulkFilter,
    Caller,
    GuardedCall,
    JobAction,
    PauseKind,
    RunStatus,
    TenantId,
    WorkerId,
)
from jobforge_mcp.worker.context import JobContext


class Sync(BaseModel):
    customer: str = "x"


@job(name="test.sync", concurrency=ConcurrencyLimit(limit=1, key="/customer"))
async def sync(input: Sync, job: JobContext) -> None: ...


@job(
    name="test.payroll",
    permissions=[
        Permission(action=JobAction.CANCEL, scopes=("payroll:stop",)),
        Permission(action=JobAction.EXECUTE, scopes=("jobs:execute",)),
    ],
)
async def payroll(input: Sync, job: JobContext) -> None: ...


def only_ada(call: GuardedCall) -> bool:
    return call.action is not JobAction.EXECUTE or call.input is None or "Ada" in str(call.input)


@job(name="test.guarded", guard=only_ada)
async def guarded(input: Sync, job: JobContext) -> None: ...


JOBS = [sync, payroll, guarded]
ALL = BulkFilter()


def client_of(
    router: Router,
    scopes: Iterable[str] = ALL_SCOPES,
    *,
    projects: frozenset[str] | None = None,
    job_types: tuple[str, ...] | None = None,
) -> Client:
    caller = Caller(TenantId("acme"), "agent", frozenset(scopes), projects, job_types=job_types)
    return Client(router, Registry(JOBS), caller)


async def test_runs_of_one_customer_go_one_by_one(
    router: Router, worker_router: WorkerRouter
) -> None:
    client = client_of(router)
    for customer in ("a", "a", "b"):
        await client.enqueue("test.sync", {"customer": customer})

    claimed = await worker_router.claim_jobs(WorkerId("w1"), ["test.sync"], 10)

    assert [each.payload for each in claimed] == ['{"customer": "a"}', '{"customer": "b"}']


async def test_neighbours_in_one_call_share_nothing_but_what_they_are_given_together(
    router: Router, worker_router: WorkerRouter
) -> None:
    client, usual, urgent = client_of(router), Options(), Options(priority=0, labels={"team": "a"})

    enqueued = await client.enqueue_many(
        [
            ("test.sync", {"customer": "a"}, usual),
            ("test.sync", {"customer": "b"}, usual),
            ("test.sync", {"customer": "a"}, usual),
            ("test.guarded", {"customer": "Ada"}, usual),
            ("test.guarded", {"customer": "Ada Lovelace"}, urgent),
            ("test.guarded", {"customer": "Countess Ada"}, usual),
        ]
    )

    payloads = [await client.payload(one.job_id) for one in enqueued]
    runs = [await client.get(one.job_id) for one in enqueued]
    customers = ["a", "b", "a", "Ada", "Ada Lovelace", "Countess Ada"]
    assert payloads == [{"customer": customer} for customer in customers]
    assert [run.job_type for run in runs] == ["test.sync"] * 3 + ["test.guarded"] * 3
    assert [run.priority for run in runs] == [2, 2, 2, 2, 0, 2]
    assert [run.labels for run in runs[3:]] == [None, {"team": "a"}, None]
    claimed = await worker_router.claim_jobs(WorkerId("w1"), ["test.sync"], 10)
    assert [one.fence.job_id for one in claimed] == [enqueued[0].job_id, enqueued[1].job_id]


@pytest.mark.requirement("sql.bulk")
async def test_what_the_caller_may_not_cancel_is_left_out(router: Router) -> None:
    client = client_of(router)
    mine = await client.enqueue("test.sync")
    await client.enqueue("test.payroll")

    counted = await client.count_cancel(ALL)
    done = await client.cancel_many(ALL, expected=counted.matched)

    assert (counted.matched, done.job_ids) == (1, (mine.job_id,))


@pytest.mark.requirement("sql.bulk")
async def test_a_job_with_a_guard_is_retried_run_by_run(router: Router) -> None:
    client = client_of(router)
    run = await client.enqueue("test.guarded", {"customer": "Ada"})
    await client.cancel(run.job_id)

    assert (await client.count_retry(ALL)).matched == 0
    assert (await client.retry(run.job_id)).status is RunStatus.QUEUED


async def test_batches_go_on_to_the_cap(router: Router) -> None:
    client = client_of(router)
    await client.enqueue_many([("test.sync", None, Options())] * 130)

    done = await client.cancel_many(ALL, most=120)
    again = await client.retry_many(BulkFilter(statuses=[RunStatus.CANCELED]), expected=120)

    assert (len(done.job_ids), len(again.job_ids), again.skipped_ids) == (120, 120, ())


async def test_more_than_were_counted_are_refused(router: Router) -> None:
    client = client_of(router)
    await client.enqueue_many([("test.sync", None, Options())] * 2)

    with pytest.raises(ConflictError) as caught:
        await client.cancel_many(ALL, expected=1)

    assert caught.value.code == "COUNT_CHANGED"
    with pytest.raises(InvalidInputError):
        await client.cancel_many(ALL)


@pytest.mark.requirement("sql.pause")
async def test_a_queue_is_paused_and_resumed(router: Router) -> None:
    client = client_of(router)

    paused = await client.pause(job_type="test.sync", reason="down")

    assert (paused.kind, paused.name, paused.paused_by) == (PauseKind.TYPE, "test.sync", "agent")
    assert await client.pauses() == [paused]
    assert await client.resume(job_type="test.sync") is True
    assert await client.resume(job_type="test.sync") is False
    assert await client.queue_stats() == []


async def test_pausing_needs_its_scope(router: Router) -> None:
    with pytest.raises(PolicyDeniedError):
        await client_of(router, ALL_SCOPES - {Scope.QUEUES_WRITE}).pause()


async def test_a_confined_caller_pauses_its_own_alone(router: Router) -> None:
    confined = client_of(router, projects=frozenset({"p1"}))

    assert (await confined.pause(project="p1")).name == "p1"
    for wanted in ({"project": "p2"}, {"job_type": "test.sync"}, {}):
        with pytest.raises(PolicyDeniedError):
            await confined.pause(**wanted)
    typed = client_of(router, job_types=("test.sync",))
    assert (await typed.pause(job_type="test.sync")).name == "test.sync"
    with pytest.raises(PolicyDeniedError):
        await typed.pause(job_type="test.payroll")


@pytest.mark.parametrize(
    ("missing", "verb"),
    [(Scope.JOBS_CANCEL, "count_cancel"), (Scope.JOBS_RETRY, "count_retry")],
)
async def test_many_runs_need_the_scope_that_one_needs(
    router: Router, missing: Scope, verb: str
) -> None:
    client = client_of(router, ALL_SCOPES - {missing})

    with pytest.raises(PolicyDeniedError):
        await getattr(client, verb)(ALL)
