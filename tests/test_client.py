"""The Python client on a real database: its verbs, whom it acts as, and what it is refused."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import anyio
import psycopg
import pytest
from psycopg.rows import tuple_row
from pydantic import BaseModel

from jobforge_mcp.client import Client, Options, SyncClient, result_of
from jobforge_mcp.db.pool import Database
from jobforge_mcp.definitions.model import BoundJob, job
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.errors import (
    ConflictError,
    InvalidInputError,
    LimitError,
    NotFoundError,
    PolicyDeniedError,
)
from jobforge_mcp.policy.denials import Denials
from jobforge_mcp.policy.keys import KeyFolder
from jobforge_mcp.policy.scopes import ALL_SCOPES, Scope
from jobforge_mcp.policy.tokens import Grant, issue_token
from jobforge_mcp.progress import RunWatcher
from jobforge_mcp.router.audit import AuditRouter
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.router.leases import WorkerRouter
from jobforge_mcp.settings import Settings, load_settings
from jobforge_mcp.types import (
    Caller,
    Completion,
    EnqueueOutcome,
    Failure,
    FailureKind,
    Limits,
    RunError,
    RunFilter,
    RunStatus,
    TenantId,
    WorkerId,
)
from jobforge_mcp.worker.context import JobContext
from tests.postgres import ScratchDatabase


class GreetInput(BaseModel):
    name: str
    times: int = 1


@job(name="test.greet")
async def greet(input: GreetInput, job: JobContext) -> str:
    return f"hello {input.name}" * input.times


@job(name="test.charge", effects="external")
async def charge(input: GreetInput, job: JobContext) -> str:
    return input.name


@job(name="test.scan", scopes=["ops:read"])
async def scan(input: GreetInput, job: JobContext) -> str:
    return "clean"


@job(name="test.secret", scopes=["vault:open"])
async def open_vault(input: GreetInput, job: JobContext) -> str:
    return "open"


@job(name="test.render", cost=40)
async def render(input: GreetInput, job: JobContext) -> str:
    return "rendered"


JOBS: list[BoundJob] = [greet, charge, scan, open_vault, render]
WORKER = WorkerId("worker-1")


class ClientMaker(Protocol):
    def __call__(
        self,
        tenant: str = "acme",
        scopes: Iterable[str] = ...,
        projects: frozenset[str] | None = None,
    ) -> Client: ...


@pytest.fixture
async def make_client(router: Router) -> AsyncGenerator[ClientMaker]:
    async with RunWatcher(router) as watcher:

        def make(
            tenant: str = "acme",
            scopes: Iterable[str] = ALL_SCOPES,
            projects: frozenset[str] | None = None,
        ) -> Client:
            caller = Caller(TenantId(tenant), f"agent@{tenant}", frozenset(scopes), projects)
            return Client(router, Registry(JOBS), caller, watcher=watcher)

        yield make


async def complete_one(worker_router: WorkerRouter, result: str = '"hello"') -> None:
    claimed = await worker_router.claim_jobs(WORKER, [bound.name for bound in JOBS], 1)
    await worker_router.complete_jobs([Completion(claimed[0].fence, result)])


async def test_a_job_is_enqueued_waited_for_and_its_result_returned(
    make_client: ClientMaker, worker_router: WorkerRouter
) -> None:
    client = make_client()
    enqueued = await client.enqueue("test.greet", {"name": "Ada"})
    result = None

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(complete_one, worker_router)
            result = await client.result(enqueued.job_id)

    assert enqueued.outcome is EnqueueOutcome.CREATED
    assert result == "hello"
    assert await client.payload(str(enqueued.job_id)) == {"name": "Ada", "times": 1}


async def test_a_wait_that_ends_early_returns_the_run_and_cancels_nothing(
    make_client: ClientMaker,
) -> None:
    client = make_client()
    enqueued = await client.enqueue("test.greet", {"name": "Ada"})

    run = await client.wait(enqueued.job_id, timeout_seconds=0.05)

    assert run.status is RunStatus.QUEUED
    with pytest.raises(ConflictError) as caught:
        result_of(run)
    assert (caught.value.code, caught.value.retryable) == ("RUN_NOT_FINISHED", True)


async def test_the_result_of_a_failed_run_is_its_error(
    make_client: ClientMaker, worker_router: WorkerRouter
) -> None:
    client = make_client()
    enqueued = await client.enqueue("test.greet", {"name": "Ada"})
    claimed = await worker_router.claim_jobs(WORKER, ["test.greet"], 1)
    error = RunError("NO_INK", "the pen is empty", retryable=False)
    await worker_router.fail_jobs([Failure(claimed[0].fence, FailureKind.PERMANENT, error)])

    with pytest.raises(ConflictError, match="the pen is empty") as caught:
        await client.result(enqueued.job_id)

    assert caught.value.code == "NO_INK"


async def test_a_key_is_enqueued_once_and_conflicts_with_other_input(
    make_client: ClientMaker,
) -> None:
    client = make_client()
    key = Options(idempotency_key="greeting-1")
    first = await client.enqueue("test.greet", {"name": "Ada"}, key)

    again = await client.enqueue("test.greet", {"name": "Ada"}, key)
    with pytest.raises(ConflictError) as caught:
        await client.enqueue("test.greet", {"name": "Bob"}, key)

    assert (again.job_id, again.outcome) == (first.job_id, EnqueueOutcome.REPLAYED)
    assert caught.value.code == "IDEMPOTENCY_CONFLICT"


async def test_many_jobs_are_enqueued_in_one_call(make_client: ClientMaker) -> None:
    client = make_client()

    enqueued = await client.enqueue_many(
        ("test.greet", {"name": str(number)}, Options(labels={"n": str(number)}))
        for number in range(3)
    )

    runs = await client.list_runs(RunFilter(job_type="test.greet"))
    assert {run.job_id for run in runs} == {one.job_id for one in enqueued}


async def test_a_plan_writes_no_job(make_client: ClientMaker) -> None:
    client = make_client()

    planned = await client.plan("test.greet", {"name": "Ada"})

    assert planned.outcome is EnqueueOutcome.CREATED
    assert await client.list_runs() == []


async def test_a_run_is_canceled_and_queued_again(make_client: ClientMaker) -> None:
    client = make_client()
    enqueued = await client.enqueue("test.greet", {"name": "Ada"})

    canceled = await client.cancel(enqueued.job_id, reason="changed my mind")
    queued = await client.retry(enqueued.job_id, reset_attempts=True)

    assert canceled.status is RunStatus.CANCELED
    assert queued.status is RunStatus.QUEUED
    assert [cause.cause for cause in await client.explain(enqueued.job_id)] == ["no_worker"]


async def test_what_does_not_fit_is_refused_before_anything_is_written(
    make_client: ClientMaker,
) -> None:
    client = make_client()

    with pytest.raises(NotFoundError):
        await client.enqueue("test.gret", {})
    with pytest.raises(InvalidInputError):
        await client.enqueue("test.greet", {"name": 1})
    with pytest.raises(InvalidInputError) as caught:
        await client.enqueue("test.charge", {"name": "Ada"})
    with pytest.raises(LimitError):
        await client.enqueue("test.greet", {"name": "a"}, Options(idempotency_key="k" * 256))
    with pytest.raises(InvalidInputError) as malformed:
        await client.get("not-an-id")

    assert caught.value.code == "IDEMPOTENCY_KEY_REQUIRED"
    assert malformed.value.code == "INVALID_RUN_ID"
    assert await client.list_runs() == []


@pytest.mark.requirement("policy.gate")
async def test_every_verb_needs_its_scope(make_client: ClientMaker) -> None:
    owner = make_client()
    run_id = (await owner.enqueue("test.greet", {"name": "Ada"})).job_id
    nobody = make_client(scopes=[])

    calls = [
        lambda: nobody.enqueue("test.greet", {"name": "Ada"}),
        lambda: nobody.enqueue_many([("test.greet", {"name": "Ada"}, Options())]),
        lambda: nobody.plan("test.greet", {"name": "Ada"}),
        lambda: nobody.get(run_id),
        lambda: nobody.wait(run_id),
        nobody.list_runs,
        lambda: nobody.payload(run_id),
        lambda: nobody.attempts(run_id),
        lambda: nobody.logs(run_id),
        lambda: nobody.explain(run_id),
        lambda: nobody.cancel(run_id),
        lambda: nobody.retry(run_id),
    ]
    for call in calls:
        with pytest.raises(PolicyDeniedError):
            await call()

    assert len(await owner.list_runs()) == 1


async def test_a_job_may_need_a_scope_of_its_own(make_client: ClientMaker) -> None:
    with pytest.raises(PolicyDeniedError, match="ops:read"):
        await make_client(scopes=[Scope.JOBS_EXECUTE]).enqueue("test.scan", {"name": "all"})

    enqueued = await make_client(scopes=[Scope.JOBS_EXECUTE, Scope.OPS_READ]).enqueue(
        "test.scan", {"name": "all"}
    )
    assert enqueued.outcome is EnqueueOutcome.CREATED


async def test_another_tenants_run_is_not_found(make_client: ClientMaker) -> None:
    run_id = (await make_client("acme").enqueue("test.greet", {"name": "Ada"})).job_id

    with pytest.raises(NotFoundError):
        await make_client("globex").get(run_id)
    assert await make_client("globex").list_runs() == []


async def test_a_caller_of_one_project_enqueues_there(make_client: ClientMaker) -> None:
    client = make_client(projects=frozenset({"p1"}))

    run = await client.get((await client.enqueue("test.greet", {"name": "Ada"})).job_id)

    assert run.project_id == "p1"


@pytest.mark.requirement("client.transactional-enqueue")
@pytest.mark.parametrize("is_committed", [True, False])
async def test_a_job_enqueued_in_a_transaction_exists_if_that_commits(
    make_client: ClientMaker, database: ScratchDatabase, is_committed: bool
) -> None:
    client = make_client()
    url = database.url("jobforge_api")

    async with await psycopg.AsyncConnection.connect(url, row_factory=tuple_row) as connection:
        enqueued = await client.enqueue("test.greet", {"name": "Ada"}, connection=connection)
        assert await client.list_runs() == []
        await (connection.commit() if is_committed else connection.rollback())

    found = [run.job_id for run in await client.list_runs()]
    assert found == ([enqueued.job_id] if is_committed else [])


async def test_a_conflict_in_a_transaction_raises_and_leaves_it_usable(
    make_client: ClientMaker, database: ScratchDatabase
) -> None:
    client = make_client()
    key = Options(idempotency_key="k")
    await client.enqueue("test.greet", {"name": "Ada"}, key)

    async with await psycopg.AsyncConnection.connect(database.url("jobforge_api")) as connection:
        with pytest.raises(ConflictError):
            await client.enqueue("test.greet", {"name": "Bob"}, key, connection=connection)
        cursor = await connection.execute("select 1")
        assert await cursor.fetchone() == (1,)


@pytest.fixture
def settings(database: ScratchDatabase, tmp_path: Path) -> Settings:
    return load_settings(
        database_url=database.url("jobforge_api"), state_dir=tmp_path, token_keys=str(tmp_path)
    )


def issue(settings: Settings, tenant: str) -> str:
    key = KeyFolder(settings.state_dir).ensure()
    return issue_token(
        key,
        Grant(tenant, [Scope.JOBS_EXECUTE]),
        issuer=settings.token_issuer,
        audience=settings.token_audience,
    )


@pytest.mark.requirement("client.sync")
def test_the_blocking_client_connects_as_the_holder_of_a_token(
    settings: Settings, database: ScratchDatabase
) -> None:
    token = issue(settings, "acme")

    with SyncClient.connect(settings, token=token, registry=Registry(JOBS)) as client:
        first = client.enqueue("test.greet", {"name": "Ada"})
        with psycopg.connect(database.url("jobforge_api")) as connection:
            second = client.enqueue("test.greet", {"name": "Bob"}, connection=connection)
        runs = client.list_runs()
        run = client.wait(first.job_id, timeout_seconds=0)

    assert client.caller.tenant_id == "acme"
    assert {one.job_id for one in runs} == {first.job_id, second.job_id}
    assert run.created_by == "cli"


def test_nobody_connects_to_a_database_of_its_own_without_a_token(settings: Settings) -> None:
    with pytest.raises(PolicyDeniedError), SyncClient.connect(settings):
        pass


def test_options_are_a_value() -> None:
    assert replace(Options(), priority=1) == Options(priority=1)


async def test_a_scope_that_nobody_can_hold_is_refused_like_any_other(
    make_client: ClientMaker,
) -> None:
    with pytest.raises(PolicyDeniedError, match="vault:open"):
        await make_client().enqueue("test.secret", {"name": "Ada"})


async def test_a_run_uses_the_budget_as_its_definition_says(router: Router) -> None:
    limits = Limits(budget_units=100)
    caller = Caller(TenantId("acme"), "agent", ALL_SCOPES, token_id="t1", limits=limits)
    client = Client(router, Registry(JOBS), caller)

    await client.enqueue("test.render", {"name": "Ada"})
    await client.enqueue("test.render", {"name": "Ada"})
    with pytest.raises(LimitError) as caught:
        await client.enqueue("test.render", {"name": "Ada"})

    assert caught.value.code == "BUDGET_USED_UP"
    assert await client.enqueue("test.greet", {"name": "Ada"})


@pytest.mark.requirement("audit.denials")
async def test_what_a_client_is_refused_is_in_the_audit_log(
    router: Router, api_database: Database, admin: psycopg.Connection
) -> None:
    caller = Caller(TenantId("acme"), "agent", frozenset({"jobs:execute"}), token_id="t1")
    denials = Denials(AuditRouter(api_database))
    client = Client(router, Registry(JOBS), caller, denials=denials)
    made = await client.enqueue("test.greet", {"name": "Ada"})
    limited = replace(caller, limits=Limits(budget_jobs=0), token_id="t2")

    with pytest.raises(PolicyDeniedError):
        await client.cancel(made.job_id)
    with pytest.raises(PolicyDeniedError):
        await client.enqueue("test.scan", {"name": "Ada"})
    with pytest.raises(LimitError):
        await Client(router, Registry(JOBS), limited, denials=denials).enqueue(
            "test.greet", {"name": "Ada"}
        )
    with pytest.raises(InvalidInputError):
        await client.enqueue("test.greet", {"nome": "Ada"})

    rows = admin.execute(
        "select action, job_type, job_id, tool, token_id, detail->>'reason' from jobforge.audit_log"
        " where outcome = 'refused' order by id"
    ).fetchall()
    assert rows == [
        ("cancel", None, made.job_id, "client", "t1", "POLICY_DENIED"),
        ("enqueue", "test.scan", None, "client", "t1", "POLICY_DENIED"),
        ("enqueue", "test.greet", None, "client", "t2", "BUDGET_USED_UP"),
    ]


@pytest.mark.requirement("policy.retry-runnable")
async def test_a_run_whose_job_was_switched_off_is_not_queued_again(
    make_client: ClientMaker, router: Router, worker_router: WorkerRouter
) -> None:
    client = make_client()
    made = await client.enqueue("test.greet", {"name": "Ada"})
    await client.cancel(made.job_id)
    off = Registry(JOBS, switched_off={"test.greet": "JOBFORGE_ACTION_JOBS_ENABLED"})

    with pytest.raises(PolicyDeniedError) as caught:
        await Client(router, off, client.caller).retry(made.job_id)

    assert caught.value.code == "FEATURE_DISABLED"
    assert (await client.retry(made.job_id)).status is RunStatus.QUEUED


@pytest.mark.requirement("secrets.scan-of-arguments")
async def test_no_argument_holds_an_obvious_key(make_client: ClientMaker) -> None:
    client = make_client()
    key = "AKIA" + "ABCDEFGHIJKLMNOP"
    made = await client.enqueue("test.greet", {"name": "Ada"})

    for options in (
        Options(idempotency_key=key),
        Options(ordering_key=f"for {key}"),
        Options(labels={"key": key}),
    ):
        with pytest.raises(InvalidInputError) as caught:
            await client.enqueue("test.greet", {"name": "Ada"}, options)
        assert caught.value.code == "SECRET_IN_INPUT"
        assert key not in caught.value.message
    with pytest.raises(InvalidInputError):
        await client.cancel(made.job_id, reason=f"leaked {key}")

    assert len(await client.list_runs()) == 1


async def test_an_input_is_as_large_as_the_setting_allows(
    make_client: ClientMaker, router: Router
) -> None:
    caller = make_client().caller
    client = Client(router, Registry(JOBS, max_payload_bytes=2_000), caller)

    await client.enqueue("test.greet", {"name": "x" * 1_900})
    with pytest.raises(LimitError) as caught:
        await client.enqueue("test.greet", {"name": "x" * 2_000})

    assert caught.value.code == "INPUT_TOO_LARGE"
