"""jobforge-mcp as a contender: real ``jobforge worker`` processes, and the router's own way of enqueueing.

Roles, row level security, signed scopes, the look at the token, fence, attempts and results are all on; inputs and results are validated as ever.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import anyio
from contract import CONCURRENCY, DSN, Contender, main

from jobforge_mcp.client import Client, Options
from jobforge_mcp.db.context import ContextSigner, ensure_own_key
from jobforge_mcp.db.migrate import migrate
from jobforge_mcp.db.pool import Database
from jobforge_mcp.definitions.loader import load_jobs
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.types import Caller, JsonValue, TenantId

NOOP_JOB = Path(__file__).with_name("noop_job.py")
CHUNK = 2_000
"""Jobs of one bulk call."""
CALLS = 3
"""Bulk calls at a time: while the database works on some, this process makes the next."""
KEYS = 500


class Jobforge(Contender):
    name = "jobforge"
    version = version("jobforge-mcp")
    config = f"jobforge worker --concurrency {CONCURRENCY or 'default'}; results, attempts, fence and RLS on"
    pending_sql = (
        "select (select count(*) from jobforge.ready) + (select count(*) from jobforge.waiting)"
        " + (select coalesce(sum(cardinality(job_ids)), 0) from jobforge.leases)"
    )

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._clients: list[Client] = []

    async def setup(self) -> None:
        migrate(DSN)

    async def open(self, clients: int) -> None:
        database = Database(
            DSN, role="jobforge_api", min_size=max(clients, CALLS), max_size=max(clients, CALLS)
        )
        await self._stack.enter_async_context(database)
        key = ensure_own_key(DSN)
        self._router = Router(database, signer=None if key is None else ContextSigner(key))
        self._registry = Registry(load_jobs([NOOP_JOB]))
        self._clients = [self._client("bench") for _ in range(clients)]

    async def close(self) -> None:
        await self._stack.aclose()

    async def enqueue(self, client: int, number: int, sent_at: float) -> None:
        await self._clients[client].enqueue("bench.noop", {"i": number, "t": sent_at})

    async def bulk(self, count: int) -> None:
        await _enqueue_many(self._clients[0], count)

    async def backlog(self, count: int, *, is_future: bool) -> None:
        run_at = datetime.now(UTC) + timedelta(days=1) if is_future else None
        await _enqueue_many(self._clients[0], count, run_at=run_at)

    async def fair(self, big: int, small: int) -> None:
        await _enqueue_many(self._client("large"), big)
        await _enqueue_many(self._client("small"), small, sent_at=time.time())

    async def tenants(self, count: int, each: int) -> None:
        for number in range(count):
            await _enqueue_many(self._client(f"tenant-{number:04}"), each)

    async def limited(self, kind: str, count: int) -> None:
        name, _, keys = kind.partition(":")
        for start in range(0, count, CHUNK):
            await self._clients[0].enqueue_many(
                (f"bench.{name}", _input(name, number, int(keys or KEYS)), Options())
                for number in range(start, min(start + CHUNK, count))
            )

    async def beside(self, kind: str, tenant: str, count: int) -> None:
        await self._client(tenant).enqueue(f"bench.{kind}", {"i": 0})
        await _enqueue_many(self._clients[0], count)

    async def newcomer(self, count: int) -> None:
        await _enqueue_many(self._client("newcomer"), count, sent_at=time.time())

    def _client(self, tenant: str) -> Client:
        caller = Caller(
            TenantId(tenant), "bench", frozenset({"jobs:execute"}), token_id="bench-token"
        )
        return Client(self._router, self._registry, caller)

    def run_worker(self, path: str) -> None:
        environment = {
            **os.environ,
            "BENCH_COUNTER": path,
            "JOBFORGE_DATABASE_URL": DSN,
            "JOBFORGE_JOBS": str(NOOP_JOB),
            "JOBFORGE_LOG_LEVEL": "warning",
        }
        program = str(Path(sys.executable).with_name("jobforge"))
        arguments = [program, "worker", "--type", "bench.*"]
        if CONCURRENCY:
            arguments += ["--concurrency", str(CONCURRENCY)]
        os.execve(program, arguments, environment)  # noqa: S606 - the process that was started is to be the worker


def _input(kind: str, number: int, keys: int) -> dict[str, JsonValue]:
    if kind in {"keyed", "single", "ten"}:
        return {"i": number, "key": number % keys}
    return {"i": number}


async def _enqueue_many(
    client: Client, count: int, *, run_at: datetime | None = None, sent_at: float = 0.0
) -> None:
    options = Options(run_at=run_at)
    starts = iter(range(0, count, CHUNK))

    async def call() -> None:
        for start in starts:
            numbers = range(start, min(start + CHUNK, count))
            await client.enqueue_many(
                ("bench.noop", {"i": number, "t": sent_at}, options) for number in numbers
            )

    async with anyio.create_task_group() as tasks:
        for _ in range(CALLS):
            tasks.start_soon(call)


if __name__ == "__main__":
    main(Jobforge())
