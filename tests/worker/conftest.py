from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Protocol, TypeAlias

import anyio
import psycopg
import pytest

from jobforge_mcp.db.notify import Listener
from jobforge_mcp.db.pool import Database
from jobforge_mcp.definitions.composition import COMPOSITION_TYPE
from jobforge_mcp.definitions.loader import load_jobs
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.router.leases import WorkerRouter
from jobforge_mcp.settings import Settings
from jobforge_mcp.types import (
    Attempt,
    Caller,
    CallOrigin,
    JobId,
    JsonValue,
    NewJob,
    Run,
    RunStatus,
)
from jobforge_mcp.worker.pool import WorkerPool
from tests.postgres import ScratchDatabase

HANDLERS = Path(__file__).with_name("handlers.py")

BUSY = timedelta(seconds=30)
"""What a busy machine may add to what takes a second: half of what a poll would take in the tests that use it."""

PoolMaker: TypeAlias = Callable[..., AbstractAsyncContextManager[WorkerPool]]


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry(load_jobs([HANDLERS]))


@dataclass
class Desk:
    """Enqueues jobs and waits for their runs, as a caller of one tenant."""

    router: Router
    registry: Registry
    caller: Caller
    seconds: float = 60.0
    changed: list[JobId] = field(default_factory=list[JobId])

    async def enqueue(self, name: str, /, **input: JsonValue) -> JobId:
        prepared = self.registry.prepare(name, dict(input))
        return await self.enqueue_raw(name, prepared.payload)

    async def enqueue_raw(self, name: str, payload: str) -> JobId:
        definition = self.registry.get(name).definition
        job = NewJob(
            name,
            payload,
            max_attempts=definition.retry.max_attempts,
            backoff_ms=definition.retry.backoff_ms,
            timeout_ms=definition.timeout_ms,
        )
        enqueued = await self.router.enqueue_job(self.caller, job, origin=CallOrigin("test"))
        return enqueued.job_id

    async def until(self, job_id: JobId, holds: Callable[[Run], bool]) -> Run:
        run = await self.router.get_run(self.caller, job_id)
        with anyio.move_on_after(self.seconds):
            while not holds(run):
                await anyio.sleep(0.02)
                run = await self.router.get_run(self.caller, job_id)
        assert holds(run), run
        return run

    async def until_final(self, job_id: JobId) -> Run:
        return await self.until(job_id, lambda run: run.status.is_final)

    async def first_failure(self, job_id: JobId) -> Attempt:
        """Wait for the first attempt that did not succeed: a run shows its error only when it is final."""
        attempts: list[Attempt] = []
        with anyio.move_on_after(self.seconds):
            while not attempts:
                await anyio.sleep(0.02)
                attempts = await self.router.list_attempts(self.caller, job_id)
        assert attempts
        return attempts[0]

    async def logs(self, job_id: JobId) -> list[tuple[str, str]]:
        lines = await self.router.list_logs(self.caller, job_id, limit=2_000)
        return [(line.level, line.message) for line in lines]


@pytest.fixture
def desk(router: Router, registry: Registry, acme: Caller) -> Desk:
    return Desk(router, registry, acme)


@pytest.fixture
def make_pool(database: ScratchDatabase, registry: Registry, desk: Desk) -> PoolMaker:
    url = database.url("jobforge_worker")

    @asynccontextmanager
    async def make(
        environ: dict[str, str] | None = None, blocked_seconds: float = 2.0, **settings: object
    ) -> AsyncGenerator[WorkerPool]:
        chosen: dict[str, object] = {
            "worker_concurrency": 4,
            "process_children": 1,
            "poll_ms": 100,
            "drain_grace_seconds": 0,
            "kill_grace_seconds": 0.5,
            **settings,
        }
        async with AsyncExitStack() as opened:
            database = await opened.enter_async_context(
                Database(url, role="jobforge_worker", max_size=4)
            )
            listener = await opened.enter_async_context(Listener(url, "jobforge_worker"))
            pool = WorkerPool(
                WorkerRouter(database),
                registry,
                Settings(**chosen),  # pyright: ignore[reportArgumentType]  # validated by the call itself
                listener=listener,
                on_change=desk.changed.append,
                heartbeat_url=url,
                blocked_seconds=blocked_seconds,
                environ=os.environ if environ is None else environ,
            )
            await opened.enter_async_context(pool)
            yield pool

    return make


async def eventually(holds: Callable[[], bool | Awaitable[bool]], seconds: float = 60) -> None:
    """Wait for something that no event tells of."""
    with anyio.fail_after(seconds):
        while True:
            answer = holds()
            if answer if isinstance(answer, bool) else await answer:
                return
            await anyio.sleep(0.02)


class Composer(Protocol):
    """Registers a composition and enqueues a run of it."""

    async def __call__(
        self,
        definition: object,
        input: JsonValue = None,
        *,
        version: str = "1",
        caller: Caller | None = None,
        **named: object,
    ) -> JobId: ...


@pytest.fixture
def compose(database: ScratchDatabase, desk: Desk) -> Composer:
    """Have a definition there, as ``register-job`` leaves it, and run it."""

    async def run(
        definition: object,
        input: JsonValue = None,
        *,
        version: str = "1",
        caller: Caller | None = None,
        **named: object,
    ) -> JobId:
        with database.connect() as connection:
            connection.execute(
                """insert into jobforge.job_definitions (tenant_id, job_type, job_version, definition,
                  definition_hash, created_at, lane_type, approved_at)
                values ('acme', 'acme.flow', %s, %s, '', jobforge.now(), %s, jobforge.now())""",
                [version, json.dumps(definition), COMPOSITION_TYPE],
            )
            connection.execute(
                """insert into jobforge.registered_jobs (tenant_id, job_type, name_key, job_version,
                  latest_version, version_no, search_text, created_at, updated_at)
                values ('acme', 'acme.flow', 'acme.flow', %s, %s, 1, '', jobforge.now(), jobforge.now())
                on conflict (tenant_id, job_type) do update set job_version = excluded.job_version""",
                [version, version],
            )
        job = NewJob(
            "acme.flow", json.dumps(input), job_version=version, lane_type=COMPOSITION_TYPE
        )
        job = job._replace(**named)
        enqueued = await desk.router.enqueue_job(
            caller or desk.caller, job, origin=CallOrigin("test")
        )
        return enqueued.job_id

    return run


async def result_of(desk: Desk, job_id: JobId) -> JsonValue:
    run = await desk.until_final(job_id)
    assert run.status is RunStatus.SUCCEEDED, run
    return json.loads(run.result or "null")


def steps_of(admin: psycopg.Connection, job_id: JobId) -> dict[str, tuple[str, str | None]]:
    """Read what became of the steps of a composition: type and final status, by path."""
    rows = admin.execute(
        """select s.step, j.job_type, j.final_status from jobforge.composition_steps s
        join jobforge.jobs j on j.tenant_id = s.tenant_id and j.id = s.child_id
        where s.job_id = %s""",
        [job_id],
    )
    return {step: (job_type, status) for step, job_type, status in rows}
