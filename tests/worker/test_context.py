"""What a handler is told of its run, and what it can do for it."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from uuid import UUID

import anyio
import psycopg
import pytest

from jobforge_mcp.types import JobId, RunStatus
from jobforge_mcp.worker.pool import WorkerPool
from tests.worker.conftest import Desk, PoolMaker

SECRET = "hunter2-hunter2"


@pytest.fixture
async def pool(make_pool: PoolMaker) -> AsyncGenerator[WorkerPool]:
    async with make_pool(dict(os.environ) | {"JOBFORGE_SECRET_API_KEY": SECRET}) as made:
        yield made


@pytest.fixture
def effects(admin: psycopg.Connection) -> None:
    admin.execute("create schema app; create table app.effects (name text)")
    admin.execute("grant usage on schema app to jobforge_worker")
    admin.execute("grant select, insert on app.effects to jobforge_worker")


@pytest.mark.parametrize("name", ["context", "context.process"])
async def test_the_context_tells_the_facts_of_the_run(
    desk: Desk, pool: WorkerPool, name: str
) -> None:
    job_id = await desk.enqueue(name)

    run = await desk.until_final(job_id)

    assert run.result is not None
    facts = json.loads(run.result)
    assert UUID(facts.pop("uuid")).version == 4
    assert 0 <= facts.pop("random") < 1
    trace_id = facts.pop("trace_id")
    assert trace_id == run.trace_id
    assert facts == {
        "run_id": str(job_id),
        "tenant_id": "acme",
        "project_id": None,
        "attempt": 1,
        "max_attempts": 3,
        "epoch": 1,
        "dry_run": False,
        "has_time": True,
        "cancelled": False,
    }


async def test_progress_is_coalesced_and_the_last_one_wins(desk: Desk, pool: WorkerPool) -> None:
    job_id = await desk.enqueue("count", number=500)

    run = await desk.until_final(job_id)

    assert (run.progress_done, run.progress_total) == (500, 500)
    assert run.progress_message == "step 500"
    assert run.started_at is not None
    assert run.finished_at is not None
    seconds = (run.finished_at - run.started_at).total_seconds()
    # The first word at once, the last with the settle, which is a change as well.
    assert len(desk.changed) <= seconds / 0.25 + 3


async def test_a_thousand_lines_are_kept_and_then_one_says_so(desk: Desk, pool: WorkerPool) -> None:
    job_id = await desk.enqueue("chatter", number=1_200)

    await desk.until_final(job_id)
    lines = await desk.logs(job_id)
    lines += [
        (line.level, line.message)
        for line in await desk.router.list_logs(desk.caller, job_id, after=len(lines), limit=1_000)
    ]

    messages = [message for _, message in lines]
    assert messages[:1_000] == [f"line {number}" for number in range(1_000)]
    assert lines[1_000:] == [("warning", "further lines are dropped: 1000 are kept")]


async def test_a_line_is_capped_and_made_storable(desk: Desk, pool: WorkerPool) -> None:
    job_id = await desk.enqueue("chatter", number=0)

    run = await desk.until_final(job_id)
    ((_, line),) = await desk.logs(job_id)

    assert run.status is RunStatus.SUCCEEDED
    assert line.startswith("\ufffd and ? and xxx")
    assert len(line.encode()) <= 4_096


@pytest.mark.requirement("worker.secrets")
@pytest.mark.parametrize("name", ["tell", "tell.process"])
async def test_a_secret_is_struck_from_logs_progress_and_errors(
    desk: Desk, pool: WorkerPool, admin: psycopg.Connection, name: str
) -> None:
    job_id = await desk.enqueue(name)

    run = await desk.until_final(job_id)
    lines = await desk.logs(job_id)

    assert run.error is not None
    assert run.error.message == "refused [secret api-key]"
    assert ("info", "the key is [secret api-key]") in lines
    traceback = admin.execute("select traceback from jobforge.job_attempts").fetchone()
    assert SECRET not in repr((run, lines, traceback))


async def test_a_missing_secret_fails_the_run(desk: Desk, make_pool: PoolMaker) -> None:
    async with make_pool({}):
        run = await desk.until_final(await desk.enqueue("tell"))

    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error.code == "SECRET_MISSING"


@pytest.mark.parametrize("name", ["parent", "parent.process", "parent.thread"])
async def test_children_are_enqueued_under_keys_of_the_parent(
    desk: Desk, pool: WorkerPool, admin: psycopg.Connection, name: str
) -> None:
    job_id = await desk.enqueue(name, number=2)

    run = await desk.until_final(job_id)

    assert run.result is not None, run
    children = [JobId(UUID(text)) for text in json.loads(run.result)]
    runs = [await desk.until_final(child) for child in children]
    assert [child.result for child in runs] == ["0", "1"]
    assert {child.parent_id for child in runs} == {job_id}
    keys = admin.execute(
        "select idempotency_key from jobforge.idempotency_keys order by 1"
    ).fetchall()
    assert keys == [(f"{job_id}:1",), (f"{job_id}:2",)]


async def test_an_unknown_child_fails_the_parents_attempt_with_its_code(
    desk: Desk, pool: WorkerPool
) -> None:
    job_id = await desk.enqueue("parent.wrong")

    run = await desk.first_failure(job_id)

    assert run.error is not None
    assert (run.error.code, run.error.type) == ("JOB_NOT_FOUND", "NotFoundError")


@pytest.mark.requirement("worker.effects-once")
async def test_a_transaction_writes_and_completes_together(
    desk: Desk, pool: WorkerPool, effects: None, admin: psycopg.Connection
) -> None:
    run = await desk.until_final(await desk.enqueue("write", name="once"))
    reading = await desk.until_final(await desk.enqueue("read"))

    assert (run.status, run.result) == (RunStatus.SUCCEEDED, '"effect 1"')
    assert reading.result == "1"
    assert admin.execute("select name from app.effects").fetchall() == [("once",)]


@pytest.mark.requirement("worker.effects-once")
async def test_a_transaction_of_a_lost_attempt_leaves_nothing_behind(
    desk: Desk, make_pool: PoolMaker, effects: None, admin: psycopg.Connection, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    async with make_pool(worker_concurrency=1):
        job_id = await desk.enqueue("write.late", name=str(gate))
        await desk.until(job_id, lambda run: run.status is RunStatus.RUNNING)

        admin.execute("update jobforge.leases set lease_until = jobforge.now() - interval '1 s'")
        admin.execute("select jobforge.reap_expired()")
        await anyio.Path(gate).write_text("go")
        run = await desk.until_final(job_id)

    assert (run.status, run.result) == (RunStatus.SUCCEEDED, '"late"')
    assert run.epoch == 2
    assert admin.execute("select name from app.effects").fetchall() == [("late",)]


async def test_a_child_process_has_no_transaction(desk: Desk, pool: WorkerPool) -> None:
    run = await desk.until_final(await desk.enqueue("write.process"))

    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error.code == "HANDLER_USAGE"
