"""The contract every contender is driven by: one program with these sub-commands, results as one line of JSON.

    setup                     create the contender's schema in an empty database
    meta                      name, version, config, and pending_sql, which counts the jobs that are not finished
    enqueue1 SECONDS CLIENTS  one job per call, one commit per call         -> {"n", "s"}
    bulk N                    N jobs through the contender's bulk API       -> {"n", "s"}
    probe N INTERVAL          N jobs, each carrying its time of sending     -> {"n"}
    backlog N FUTURE          N more jobs, due now or (FUTURE 1) tomorrow   -> {"n"}
    tenants N EACH            EACH jobs of each of N tenants                -> {"n"}
    limited KIND N            N jobs under a limit of that kind; KIND:KEYS says how many keys they have
    beside KIND TENANT N      N jobs without a limit, after one of that kind and tenant
    newcomer N                N jobs of another tenant, carrying their time of sending
    fair BIG SMALL            BIG jobs of one tenant, then SMALL of another, the small ones carrying their time of sending
    worker FILE               run one worker process until SIGTERM; the handler counts in FILE and, for a probe,
                              appends the seconds from sending to its start to FILE.lat

The database is named by ``BENCH_DSN``; ``BENCH_CONC`` is the batch or concurrency of a worker, 0 the contender's choice.
Nothing of jobforge is imported here: other contenders live in environments of their own.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Never

import anyio

DSN = os.environ.get("BENCH_DSN", "")
CONCURRENCY = int(os.environ.get("BENCH_CONC", "0"))
MAX_SECONDS = 600.0


class Counter:
    """Counts handled jobs in a file that another process reads, for the cost of one memory write."""

    def __init__(self, path: str) -> None:
        with Path(path).open("a+b") as file:
            file.truncate(8)
            file.flush()
            self._words = memoryview(mmap.mmap(file.fileno(), 8)).cast("q")
        self._latencies = Path(f"{path}.lat").open("a", buffering=1, encoding="ascii")  # noqa: SIM115 - open for the process's life

    def hit(self, sent_at: float) -> None:
        """Count a job; ``sent_at`` is 0 unless the job is a probe."""
        if sent_at:
            self._latencies.write(f"{time.time() - sent_at:.6f}\n")
        self._words[0] += 1


class Contender(ABC):
    """Subclass it, and call `main` with an instance. The rows that are not abstract a contender may leave out."""

    name = ""
    version = ""
    config = ""
    pending_sql = ""

    def meta(self) -> dict[str, str]:
        return {
            "name": self.name,
            "version": self.version,
            "config": self.config,
            "pending_sql": self.pending_sql,
        }

    @abstractmethod
    async def setup(self) -> None:
        """Create the schema in an empty database."""

    @abstractmethod
    async def open(self, clients: int) -> None:
        """Connect for so many clients."""

    @abstractmethod
    async def close(self) -> None:
        """Let the connections go."""

    @abstractmethod
    async def enqueue(self, client: int, number: int, sent_at: float) -> None:
        """Enqueue one job and commit."""

    @abstractmethod
    async def bulk(self, count: int) -> None:
        """Enqueue so many jobs at once."""

    async def backlog(self, count: int, *, is_future: bool) -> None:
        self._leave_out("backlog")

    async def fair(self, big: int, small: int) -> None:
        self._leave_out("fair")

    async def tenants(self, count: int, each: int) -> None:
        self._leave_out("tenants")

    async def limited(self, kind: str, count: int) -> None:
        self._leave_out("limited")

    async def beside(self, kind: str, tenant: str, count: int) -> None:
        self._leave_out("beside")

    async def newcomer(self, count: int) -> None:
        self._leave_out("newcomer")

    async def work(self, counter: Counter, stop: anyio.Event) -> None:
        self._leave_out("work")

    def _leave_out(self, row: str) -> Never:
        raise SystemExit(f"{self.name} takes no part in {row}")

    def run_worker(self, path: str) -> None:
        """Run until SIGTERM; a contender that brings a worker program of its own replaces this."""
        anyio.run(self._work, path, backend_options={"use_uvloop": True})

    async def _work(self, path: str) -> None:
        stop = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.work, Counter(path), stop)
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for _ in signals:
                    stop.set()
                    break


def main(contender: Contender) -> None:
    """Do what the command line says."""
    command, *arguments = sys.argv[1:]
    if command == "meta":
        print(json.dumps(contender.meta()))
    elif command == "worker":
        contender.run_worker(arguments[0])
    else:
        print(
            json.dumps(
                anyio.run(_run, contender, command, arguments, backend_options={"use_uvloop": True})
            )
        )


async def _run(contender: Contender, command: str, arguments: list[str]) -> dict[str, float]:
    with anyio.fail_after(MAX_SECONDS):
        match command, arguments:
            case "setup", []:
                await contender.setup()
                return {"ok": 1}
            case "enqueue1", [seconds, clients]:
                return await _enqueue(contender, float(seconds), int(clients))
            case "bulk", [count]:
                return await _bulk(contender, int(count))
            case "probe", [count, interval]:
                return await _probe(contender, int(count), float(interval))
            case "backlog", [count, future]:
                await contender.open(1)
                await contender.backlog(int(count), is_future=future == "1")
                await contender.close()
                return {"n": int(count)}
            case "tenants", [count, each]:
                await contender.open(1)
                await contender.tenants(int(count), int(each))
                await contender.close()
                return {"n": int(count) * int(each)}
            case "limited", [kind, count]:
                await contender.open(1)
                await contender.limited(kind, int(count))
                await contender.close()
                return {"n": int(count)}
            case "beside", [kind, tenant, count]:
                await contender.open(1)
                await contender.beside(kind, tenant, int(count))
                await contender.close()
                return {"n": int(count) + 1}
            case "newcomer", [count]:
                await contender.open(1)
                await contender.newcomer(int(count))
                await contender.close()
                return {"n": int(count)}
            case "fair", [big, small]:
                await contender.open(1)
                await contender.fair(int(big), int(small))
                await contender.close()
                return {"ok": 1}
            case _:
                raise SystemExit(f"unknown command {command} {arguments}")


async def _enqueue(contender: Contender, seconds: float, clients: int) -> dict[str, float]:
    await contender.open(clients)
    for client in range(clients):
        await contender.enqueue(client, 0, 0.0)  # warms its connection
    count = 0
    started = time.perf_counter()

    async def call(client: int) -> None:
        nonlocal count
        while time.perf_counter() < started + seconds:
            await contender.enqueue(client, count, 0.0)
            count += 1

    async with anyio.create_task_group() as tasks:
        for client in range(clients):
            tasks.start_soon(call, client)
    elapsed = time.perf_counter() - started
    await contender.close()
    return {"n": count, "s": elapsed}


async def _bulk(contender: Contender, count: int) -> dict[str, float]:
    await contender.open(1)
    started = time.perf_counter()
    await contender.bulk(count)
    elapsed = time.perf_counter() - started
    await contender.close()
    return {"n": count, "s": elapsed}


async def _probe(contender: Contender, count: int, interval: float) -> dict[str, float]:
    await contender.open(1)
    for number in range(count):
        await anyio.sleep(interval)
        await contender.enqueue(0, number, time.time())
    await contender.close()
    return {"n": count}
