"""Router: each function of callers, against the real SQL; tenants and projects apart."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from jobforge_mcp.db.pool import Database
from jobforge_mcp.errors import (
    ConflictError,
    InvalidInputError,
    JobForgeError,
    LimitError,
    NotFoundError,
    PolicyDeniedError,
)
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.router.leases import WorkerRouter
from jobforge_mcp.types import (
    Caller,
    CallOrigin,
    Completion,
    EnqueueOutcome,
    Failure,
    FailureKind,
    InlineLease,
    JobId,
    NewJob,
    QueueStats,
    Report,
    RunError,
    RunFilter,
    RunStatus,
    WorkerId,
)
from tests.conftest import CallerMaker
from tests.postgres import Clock

ECHO = NewJob("demo.echo", '{"a": 1}')
WORKER = WorkerId("worker-1")


async def test_an_enqueued_run_is_read_back_with_all_it_was_given(
    router: Router, acme: Caller, clock: Clock
) -> None:
    run_at = clock.now() + timedelta(hours=1)
    job = NewJob(
        "demo.echo",
        '{"a": 1}',
        ordering_key="k",
        priority=1,
        run_at=run_at,
        project_id="p1",
        labels={"team": "ops"},
        trace_id="t-1",
        job_version="3",
        max_attempts=5,
        timeout_ms=1_000,
    )

    enqueued = await router.enqueue_job(acme, job, origin=CallOrigin("execute-job", "t-1"))
    run = await router.get_run(acme, enqueued.job_id)

    assert enqueued.outcome is EnqueueOutcome.CREATED
    assert run.status is RunStatus.QUEUED
    assert (run.job_type, run.job_version, run.project_id) == ("demo.echo", "3", "p1")
    assert (run.ordering_key, run.priority, run.run_at) == ("k", 1, run_at)
    assert (run.labels, run.trace_id, run.max_attempts) == ({"team": "ops"}, "t-1", 5)
    assert (run.timeout_ms, run.created_by, run.version) == (1_000, "agent@acme", enqueued.version)
    assert await router.get_payload(acme, enqueued.job_id) == '{"a": 1}'


async def test_the_audit_row_names_who_and_through_which_door(
    router: Router, acme: Caller, admin: psycopg.Connection
) -> None:
    await router.enqueue_job(acme, ECHO, origin=CallOrigin("execute-job", "t-1"))

    rows = admin.execute(
        "select a.tenant_id, a.action, a.actor, a.tool, a.trace_id from jobforge.audit_log a"
    )
    assert rows.fetchall() == [("acme", "enqueue", "agent@acme", "execute-job", "t-1")]


async def test_jobs_are_enqueued_together_and_answered_in_order(
    router: Router, acme: Caller
) -> None:
    jobs = [NewJob("demo.echo", f'{{"a": {n}}}', labels={"n": str(n)}) for n in range(20)]

    enqueued = await router.enqueue_jobs(acme, jobs)

    payloads = [await router.get_payload(acme, one.job_id) for one in enqueued]
    assert payloads == [job.payload for job in jobs]
    assert await router.enqueue_jobs(acme, []) == []


async def test_a_key_is_created_then_replayed_and_a_conflict_for_another_input(
    router: Router, acme: Caller
) -> None:
    keyed = NewJob("demo.echo", '{"a": 1}', idempotency_key="k")

    created = await router.enqueue_job(acme, keyed)
    replayed = await router.enqueue_job(acme, keyed)
    conflict = await router.enqueue_job(acme, NewJob("demo.echo", '{"a": 2}', idempotency_key="k"))

    outcomes = [one.outcome.value for one in (created, replayed, conflict)]
    assert outcomes == ["created", "replayed", "conflict"]
    assert replayed.job_id == created.job_id == conflict.job_id


async def test_a_plan_writes_no_job(router: Router, acme: Caller) -> None:
    planned = await router.enqueue_job(acme, ECHO, is_plan=True)

    assert (planned.outcome, planned.job_id, planned.version) == (
        EnqueueOutcome.CREATED,
        UUID(int=0),
        0,
    )
    assert await router.list_runs(acme, RunFilter()) == []


async def test_an_inline_job_is_born_leased(
    router: Router, worker_router: WorkerRouter, acme: Caller
) -> None:
    enqueued = await router.enqueue_job(acme, ECHO, inline=InlineLease(WORKER, 30_000))
    run = await router.get_run(acme, enqueued.job_id)

    assert enqueued.lease_id is not None
    assert (run.status, run.worker_id, run.lease_until) == (
        RunStatus.RUNNING,
        WORKER,
        enqueued.lease_until,
    )


async def test_a_succeeded_run_has_its_result_and_lists_have_not(
    router: Router, worker_router: WorkerRouter, acme: Caller
) -> None:
    enqueued = await router.enqueue_job(acme, ECHO)
    claimed = await worker_router.claim_jobs(WORKER, ["demo.echo"], 1)
    await worker_router.complete_jobs([Completion(claimed[0].fence, '{"b": 2}')])

    assert (await router.get_run(acme, enqueued.job_id)).result == '{"b": 2}'
    assert [run.result for run in await router.list_runs(acme, RunFilter())] == [None]
    assert [run.result for run in await router.get_runs(acme, [enqueued.job_id])] == [None]


async def test_lists_are_filtered_and_paged_newest_first(router: Router, acme: Caller) -> None:
    made = [
        await router.enqueue_job(acme, NewJob(job_type, "{}", project_id=project, trace_id=trace))
        for job_type, project, trace in [
            ("demo.a", "p1", "t1"),
            ("demo.b", "p2", None),
            ("demo.a", None, None),
        ]
    ]
    ids = [one.job_id for one in made]

    async def listed(wanted: RunFilter) -> list[JobId]:
        return [run.job_id for run in await router.list_runs(acme, wanted)]

    assert await listed(RunFilter()) == ids[::-1]
    assert await listed(RunFilter(limit=1)) == [ids[2]]
    assert await listed(RunFilter(before_id=ids[2])) == [ids[1], ids[0]]
    assert await listed(RunFilter(job_type="demo.a")) == [ids[2], ids[0]]
    assert await listed(RunFilter(project_id="p1")) == [ids[0]]
    assert await listed(RunFilter(projects=frozenset({"p2"}))) == [ids[1]]
    assert await listed(RunFilter(project_id="p1", projects=frozenset({"p2"}))) == []
    assert await listed(RunFilter(trace_id="t1")) == [ids[0]]
    assert await listed(RunFilter(status=RunStatus.RUNNING)) == []
    assert await listed(RunFilter(since=made[1].created_at)) == [ids[2], ids[1]]


async def test_a_queued_run_is_canceled_at_once_and_again_to_no_effect(
    router: Router, acme: Caller
) -> None:
    enqueued = await router.enqueue_job(acme, ECHO)

    first = await router.cancel_job(acme, enqueued.job_id, reason="not needed")
    second = await router.cancel_job(acme, enqueued.job_id)

    assert (first.status, first.cancel_reason) == (RunStatus.CANCELED, "not needed")
    assert second == first


async def test_a_final_run_cannot_be_canceled_but_retried(
    router: Router, worker_router: WorkerRouter, acme: Caller
) -> None:
    enqueued = await router.enqueue_job(acme, ECHO)
    claimed = await worker_router.claim_jobs(WORKER, ["demo.echo"], 1)
    error = RunError("BOOM", "it broke", False, "ValueError", "mend it")
    await worker_router.fail_jobs([Failure(claimed[0].fence, FailureKind.PERMANENT, error)])

    failed = await router.get_run(acme, enqueued.job_id)
    with pytest.raises(ConflictError) as refused:
        await router.cancel_job(acme, enqueued.job_id)
    retried = await router.retry_job(acme, enqueued.job_id, if_version=failed.version)

    assert (failed.status, failed.error) == (RunStatus.FAILED, error)
    assert refused.value.hint is not None
    assert retried.status is RunStatus.QUEUED
    assert retried.version > failed.version
    with pytest.raises(ConflictError):
        await router.retry_job(acme, enqueued.job_id, if_version=failed.version)


async def test_a_run_is_explained_with_its_attempts_and_log(
    router: Router, worker_router: WorkerRouter, acme: Caller
) -> None:
    enqueued = await router.enqueue_job(acme, ECHO)
    no_worker = await router.explain_run(acme, enqueued.job_id)
    claimed = await worker_router.claim_jobs(WORKER, ["demo.echo"], 1)
    fence = claimed[0].fence
    await worker_router.report_progress(
        [Report(fence, 1, 2, "half", (("info", "one"), ("warning", "two")))]
    )
    half = await router.get_run(acme, enqueued.job_id)
    error = RunError("BOOM", "it broke", True)
    await worker_router.fail_jobs([Failure(fence, FailureKind.FAILED, error, "Traceback …")])

    attempts = await router.list_attempts(acme, enqueued.job_id)
    lines = await router.list_logs(acme, enqueued.job_id)

    assert [cause.cause for cause in no_worker] == ["no_worker"]
    assert (half.progress_done, half.progress_total, half.progress_message) == (1, 2, "half")
    assert [(a.attempt_no, a.outcome, a.worker_id, a.error) for a in attempts] == [
        (1, "failed", WORKER, error)
    ]
    assert [(line.level, line.message) for line in lines] == [("info", "one"), ("warning", "two")]
    rest = await router.list_logs(acme, enqueued.job_id, after=lines[0].line_no)
    assert rest == lines[1:]


async def test_queues_are_counted_by_type(router: Router, acme: Caller, globex: Caller) -> None:
    enqueued = await router.enqueue_jobs(acme, [ECHO, ECHO, NewJob("demo.other", "{}")])
    await router.enqueue_job(globex, ECHO)

    stats = await router.queue_stats(acme)

    due = enqueued[0].run_at
    assert stats == [
        QueueStats("demo.echo", 2, 2, 0, 0, due),
        QueueStats("demo.other", 1, 1, 0, 0, due),
    ]


async def test_whoever_sleeps_is_woken_by_an_enqueue(
    router: Router, acme: Caller, database_listens: Callable[[], list[str]]
) -> None:
    await router.await_wakeup("me", "ready", 60_000)
    await router.enqueue_job(acme, ECHO)

    assert database_listens() == ["jobforge_ready"]


@pytest.fixture
def database_listens(admin: psycopg.Connection) -> Callable[[], list[str]]:
    """Tell which channels were notified so far."""
    admin.execute("listen jobforge_ready")
    return lambda: [hint.channel for hint in admin.notifies(timeout=60, stop_after=1)]


OF_ONE_RUN: dict[str, Callable[[Router, Caller, JobId], Awaitable[object]]] = {
    "get_run": lambda router, caller, job_id: router.get_run(caller, job_id),
    "get_payload": lambda router, caller, job_id: router.get_payload(caller, job_id),
    "cancel_job": lambda router, caller, job_id: router.cancel_job(caller, job_id),
    "retry_job": lambda router, caller, job_id: router.retry_job(caller, job_id),
    "explain_run": lambda router, caller, job_id: router.explain_run(caller, job_id),
}
LISTS: dict[str, Callable[[Router, Caller, JobId], Awaitable[object]]] = {
    "get_runs": lambda router, caller, job_id: router.get_runs(caller, [job_id]),
    "list_attempts": lambda router, caller, job_id: router.list_attempts(caller, job_id),
    "list_logs": lambda router, caller, job_id: router.list_logs(caller, job_id),
}


def shown(error: JobForgeError, job_id: JobId) -> str:
    """Everything a caller sees of an error, but for the id that was asked for."""
    parts = [type(error).__name__, error.code, error.message, error.hint, error.retryable]
    return repr(parts).replace(str(job_id), "RUN")


@pytest.mark.parametrize("who", ["another tenant", "another project", "no project"])
@pytest.mark.parametrize("name", OF_ONE_RUN)
@pytest.mark.requirement("router.strangers")
async def test_a_run_of_others_answers_in_the_words_of_an_unknown_one_and_is_untouched(
    router: Router, acme: Caller, make_caller: CallerMaker, who: str, name: str
) -> None:
    project = None if who == "no project" else "p1"
    enqueued = await router.enqueue_job(acme, NewJob("demo.echo", "{}", project_id=project))
    before = await router.get_run(acme, enqueued.job_id)
    tenant = "globex" if who == "another tenant" else "acme"
    stranger = make_caller(tenant, projects=None if who == "another tenant" else ["p2"])
    unknown = JobId(uuid4())

    with pytest.raises(NotFoundError) as foreign_answer:
        await OF_ONE_RUN[name](router, stranger, enqueued.job_id)
    with pytest.raises(NotFoundError) as unknown_answer:
        await OF_ONE_RUN[name](router, stranger, unknown)

    assert foreign_answer.value.code == "RUN_NOT_FOUND"
    assert shown(foreign_answer.value, enqueued.job_id) == shown(unknown_answer.value, unknown)
    assert await router.get_run(acme, enqueued.job_id) == before


@pytest.mark.parametrize("name", LISTS)
async def test_a_run_of_others_is_in_no_list(
    router: Router,
    worker_router: WorkerRouter,
    acme: Caller,
    globex: Caller,
    make_caller: CallerMaker,
    name: str,
) -> None:
    enqueued = await router.enqueue_job(acme, NewJob("demo.echo", "{}", project_id="p1"))
    claimed = await worker_router.claim_jobs(WORKER, ["demo.echo"], 1)
    await worker_router.report_progress([Report(claimed[0].fence, logs=(("info", "secret"),))])
    error = RunError("BOOM", "it broke", True)
    await worker_router.fail_jobs([Failure(claimed[0].fence, FailureKind.FAILED, error)])

    for stranger in (globex, make_caller("acme", projects=["p2"])):
        assert await LISTS[name](router, stranger, enqueued.job_id) == []
        assert await router.list_runs(stranger, RunFilter()) == []
    for owner in (acme, make_caller("acme", projects=["p1"])):
        assert await LISTS[name](router, owner, enqueued.job_id) != []
        assert len(await router.list_runs(owner, RunFilter())) == 1


@pytest.mark.requirement("router.projects")
async def test_a_caller_confined_to_projects_works_within_them(
    router: Router, make_caller: CallerMaker
) -> None:
    confined = make_caller("acme", projects=["p1"])
    enqueued = await router.enqueue_job(confined, NewJob("demo.echo", "{}", project_id="p1"))

    assert (await router.get_run(confined, enqueued.job_id)).project_id == "p1"
    assert (await router.cancel_job(confined, enqueued.job_id)).status is RunStatus.CANCELED
    assert (await router.retry_job(confined, enqueued.job_id)).status is RunStatus.QUEUED
    for project in (None, "p2"):
        with pytest.raises(PolicyDeniedError):
            await router.enqueue_job(confined, NewJob("demo.echo", "{}", project_id=project))
    with pytest.raises(PolicyDeniedError):
        await router.queue_stats(confined)


async def test_what_blocks_a_run_is_not_named_to_who_may_not_see_it(
    router: Router, acme: Caller, make_caller: CallerMaker
) -> None:
    head = await router.enqueue_job(
        acme, NewJob("demo.echo", "{}", project_id="p1", ordering_key="k")
    )
    second = await router.enqueue_job(
        acme, NewJob("demo.echo", "{}", project_id="p2", ordering_key="k")
    )

    of_tenant = await router.explain_run(acme, second.job_id)
    of_project = await router.explain_run(make_caller("acme", projects=["p2"]), second.job_id)

    assert [cause.blocked_by for cause in of_tenant] == [head.job_id]
    assert [cause.blocked_by for cause in of_project] == [None]
    assert str(head.job_id) not in of_project[0].message


@pytest.mark.parametrize(
    ("job", "error"),
    [
        (NewJob("demo.echo", "not json"), InvalidInputError),
        (NewJob("demo.echo", '{"a": "\\u0000"}'), InvalidInputError),
        (NewJob("Demo Echo", "{}"), InvalidInputError),
        (NewJob("demo.echo", "{}", ordering_key="k" * 256), InvalidInputError),
        (NewJob("demo.echo", "{}", idempotency_key="\0"), InvalidInputError),
        (NewJob("demo.echo", "{}", trace_id="\ud800"), InvalidInputError),
        (NewJob("demo.echo", "{}", priority=9), InvalidInputError),
        (NewJob("demo.echo", "{}", max_attempts=10**12), InvalidInputError),
        (NewJob("demo.echo", f'"{"x" * 1_048_576}"'), LimitError),
    ],
)
async def test_a_value_that_does_not_fit_is_refused_without_being_quoted(
    router: Router, acme: Caller, job: NewJob, error: type[JobForgeError]
) -> None:
    with pytest.raises(error) as refused:
        await router.enqueue_job(acme, job)

    assert "not json" not in refused.value.message
    assert refused.value.hint is not None
    assert await router.list_runs(acme, RunFilter()) == []


async def test_a_page_of_runs_has_a_limit(router: Router, acme: Caller) -> None:
    with pytest.raises(InvalidInputError):
        await router.list_runs(acme, RunFilter(limit=0))
    with pytest.raises(LimitError):
        await router.get_runs(acme, [JobId(uuid4()) for _ in range(1_001)])


async def test_no_tenant_is_left_behind_on_the_connection(
    router: Router, acme: Caller, api_database: Database
) -> None:
    await router.enqueue_job(acme, ECHO)

    rows = await api_database.fetch("select jobforge.current_tenant() as tenant")
    assert rows == [{"tenant": None}]
