"""Calls that come at the same time: one statement, and each is answered and audited as if it had come alone."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import anyio
import anyio.lowlevel
import psycopg
import pytest

from jobforge_mcp.db.pool import Database
from jobforge_mcp.errors import InvalidInputError, LimitError
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.types import Caller, CallOrigin, Enqueued, EnqueueOutcome, Limits, NewJob

MANY = 40


async def enqueue_at_once(
    router: Router, caller: Caller, jobs: list[NewJob]
) -> list[Enqueued | Exception]:
    answers: list[Enqueued | Exception | None] = [None] * len(jobs)

    async def enqueue(place: int) -> None:
        origin = CallOrigin("execute-job", f"trace-{place}")
        try:
            answers[place] = await router.enqueue_job(caller, jobs[place], origin=origin)
        except (InvalidInputError, LimitError) as error:
            answers[place] = error

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for place in range(len(jobs)):
                tasks.start_soon(enqueue, place)
    return [answer for answer in answers if answer is not None]


def commits(admin: psycopg.Connection) -> int:
    row = admin.execute("select count(distinct xact_no) from jobforge.audit_log").fetchone()
    assert row is not None
    return int(row[0])


async def test_calls_that_come_at_the_same_time_share_commits(
    router: Router, acme: Caller, admin: psycopg.Connection
) -> None:
    jobs = [NewJob("demo.echo", f'{{"a": {place}}}') for place in range(MANY)]

    answers = await enqueue_at_once(router, acme, jobs)

    runs = [
        await router.get_payload(acme, answer.job_id)
        for answer in answers
        if isinstance(answer, Enqueued) and answer.outcome is EnqueueOutcome.CREATED
    ]
    assert runs == [job.payload for job in jobs]
    assert commits(admin) < MANY / 2


async def test_callers_that_were_answered_together_go_together_again(
    router: Router, acme: Caller, admin: psycopg.Connection
) -> None:
    callers, calls = 8, 10

    async def enqueue() -> None:
        for _ in range(calls):
            await router.enqueue_job(acme, NewJob("demo.echo", "{}"))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for _ in range(callers):
                tasks.start_soon(enqueue)

    assert calls <= commits(admin) < callers * calls / 2


async def test_whoever_has_other_rights_under_the_same_name_goes_alone(
    router: Router, acme: Caller, admin: psycopg.Connection
) -> None:
    confined = replace(acme, projects=frozenset({"p1"}))

    async with anyio.create_task_group() as tasks:
        for place in range(MANY):
            caller = confined if place % 2 else acme
            project = "p1" if place % 2 else None
            job = NewJob("demo.echo", "{}", project_id=project)
            tasks.start_soon(router.enqueue_job, caller, job)

    rows = admin.execute(
        "select project_id, count(*) from jobforge.jobs group by 1 order by 1"
    ).fetchall()
    assert rows == [("p1", MANY / 2), (None, MANY / 2)]


async def test_each_of_them_is_audited_under_its_own_trace(
    router: Router, acme: Caller, admin: psycopg.Connection
) -> None:
    answers = await enqueue_at_once(router, acme, [NewJob("demo.echo", "{}")] * MANY)

    rows = admin.execute(
        "select job_id, trace_id, tool, outcome, job_type, detail from jobforge.audit_log"
    ).fetchall()
    ids = [answer.job_id for answer in answers if isinstance(answer, Enqueued)]
    told: dict[UUID, tuple[object, ...]] = {row[0]: row[1:] for row in rows}
    assert [told[job_id] for job_id in ids] == [
        (f"trace-{place}", "execute-job", "created", "demo.echo", None) for place in range(MANY)
    ]


async def test_one_that_is_refused_takes_no_other_along(
    router: Router, acme: Caller, admin: psycopg.Connection
) -> None:
    jobs = [NewJob("demo.echo", "{}") for _ in range(MANY)]
    jobs[17] = jobs[17]._replace(priority=9)

    answers = await enqueue_at_once(router, acme, jobs)

    assert isinstance(answers.pop(17), InvalidInputError)
    assert all(isinstance(answer, Enqueued) for answer in answers)
    row = admin.execute("select count(*) from jobforge.jobs").fetchone()
    assert row == (MANY - 1,)


async def test_a_limit_lets_exactly_as_many_pass(
    router: Router, acme: Caller, admin: psycopg.Connection
) -> None:
    limited = replace(acme, token_id="t1", limits=Limits(budget_jobs=7))

    answers = await enqueue_at_once(router, limited, [NewJob("demo.echo", "{}")] * MANY)

    assert sum(isinstance(answer, Enqueued) for answer in answers) == 7
    row = admin.execute("select count(*) from jobforge.jobs").fetchone()
    assert row == (7,)


async def test_callers_are_not_mixed(
    router: Router, acme: Caller, globex: Caller, admin: psycopg.Connection
) -> None:
    async with anyio.create_task_group() as tasks:
        for caller in (acme, globex):
            tasks.start_soon(enqueue_at_once, router, caller, [NewJob("demo.echo", "{}")] * MANY)

    rows = admin.execute(
        "select tenant_id, count(*) from jobforge.jobs group by 1 order by 1"
    ).fetchall()
    assert rows == [("acme", MANY), ("globex", MANY)]


async def test_one_that_leaves_does_not_hold_up_the_others(
    router: Router, acme: Caller, admin: psycopg.Connection
) -> None:
    scopes = [anyio.CancelScope() for _ in range(MANY)]
    ended = 0

    async def enqueue(place: int) -> None:
        nonlocal ended
        with scopes[place]:
            await router.enqueue_job(acme, NewJob("demo.echo", "{}"))
        ended += 1

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for place in range(MANY):
                tasks.start_soon(enqueue, place)
            await anyio.lowlevel.checkpoint()
            for scope in scopes[::2]:
                scope.cancel()
        last = await router.enqueue_job(acme, NewJob("demo.echo", "{}"))

    assert ended == MANY
    assert last.outcome is EnqueueOutcome.CREATED
    row = admin.execute("select count(*) from jobforge.jobs").fetchone()
    assert row is not None
    assert MANY / 2 + 1 <= row[0] <= MANY + 1


@pytest.mark.parametrize("key", ["idempotency_key", "ordering_key"])
async def test_a_key_that_somebody_holds_keeps_nobody_else_waiting(
    router: Router, acme: Caller, api_database: Database, key: str
) -> None:
    held = NewJob("demo.echo", "{}")._replace(**{key: "k"})
    async with api_database.transaction() as transaction, anyio.create_task_group() as tasks:
        await transaction.fetch("select jobforge.enter_scope('acme')")
        await transaction.fetch(
            "select jobforge.enqueue_job('acme', 'demo.echo', p_idempotency_key => 'k', p_ordering_key => 'k')"
        )
        tasks.start_soon(router.enqueue_job, acme, held)
        with anyio.fail_after(60):
            answers = await enqueue_at_once(router, acme, [NewJob("demo.echo", "{}")] * MANY)
        assert all(isinstance(answer, Enqueued) for answer in answers)
        await transaction.fetch("rollback")
