"""jobforge-mcp as a contender: real ``jobforge worker`` processes, and the router's own way of enqueueing.

Roles, row level security, fence, attempts and results are all on; inputs and results are validated as ever.
"""

from __future__ import annotations

import os
import sys
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path

from contract import CONCURRENCY, DSN, Contender, main

from jobforge_mcp.client import Client, Options
from jobforge_mcp.db.migrate import migrate
from jobforge_mcp.db.pool import Database
from jobforge_mcp.definitions.loader import load_jobs
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.types import Caller, TenantId

NOOP_JOB = Path(__file__).with_name("noop_job.py")
CHUNK = 1_000


class Jobforge(Contender):
    name = "jobforge"
    version = version("jobforge-mcp")
    config = f"jobforge worker --concurrency {CONCURRENCY or 'default'}; results, attempts, fence and RLS on"
    pending_sql = (
        "select (select count(*) from jobforge.ready)"
        " + (select coalesce(sum(cardinality(job_ids)), 0) from jobforge.leases)"
    )

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._clients: list[Client] = []

    async def setup(self) -> None:
        migrate(DSN)

    async def open(self, clients: int) -> None:
        registry = Registry(load_jobs([NOOP_JOB]))
        caller = Caller(TenantId("bench"), "bench", frozenset({"jobs:execute"}))
        database = Database(DSN, role="jobforge_api", min_size=clients, max_size=clients)
        router = Router(await self._stack.enter_async_context(database))
        self._clients = [Client(router, registry, caller) for _ in range(clients)]

    async def close(self) -> None:
        await self._stack.aclose()

    async def enqueue(self, client: int, number: int, sent_at: float) -> None:
        await self._clients[client].enqueue("bench.noop", {"i": number, "t": sent_at})

    async def bulk(self, count: int) -> None:
        for start in range(0, count, CHUNK):
            numbers = range(start, min(start + CHUNK, count))
            await self._clients[0].enqueue_many(
                ("bench.noop", {"i": number, "t": 0.0}, Options()) for number in numbers
            )

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


if __name__ == "__main__":
    main(Jobforge())
