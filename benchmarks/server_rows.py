"""Measures of ``jobforge serve --http``: what an agent's call costs, and how often it waits for the disk."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import anyio
import httpx2
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

from benchmarks.contenders import STOP_SECONDS
from benchmarks.figures import Figure, Sizes, median, percentile
from benchmarks.processes import cpu_seconds
from benchmarks.stage import Stage
from jobforge_mcp.db.context import ensure_own_key
from jobforge_mcp.db.migrate import migrate
from jobforge_mcp.policy.keys import KeyFolder
from jobforge_mcp.policy.scopes import ALL_SCOPES
from jobforge_mcp.policy.tokens import Grant, issue_token
from jobforge_mcp.settings import load_settings

JOBFORGE = str(Path(sys.executable).with_name("jobforge"))
NOOP_JOB = Path(__file__).parent / "peers" / "noop_job.py"
DATABASE = "bench_server"

EXTRA_MS = 3
FLUSHES = 2
START_SECONDS = 20


@dataclass(frozen=True, slots=True)
class HttpServer:
    """A running server, and a token it accepts."""

    url: str
    token: str
    pid: int


@dataclass(frozen=True, slots=True)
class Calls:
    """Milliseconds of each call."""

    execute: list[float]
    trivial: list[float]
    cpu_ms: float
    """CPU of the server's process for each pair of the two."""


def roundtrip(stage: Stage, sizes: Sizes) -> list[Figure]:
    """An inline ``execute-job`` of a no-op, in turn with a ``list-jobs`` that finds nothing."""
    _prepare(stage)
    with http_server(stage) as server:
        calls = anyio.run(_call, server, sizes.calls)
    return figures_of("http", "HTTP", calls)


def figures_of(row: str, door: str, calls: Calls) -> list[Figure]:
    extra = median(calls.execute) - median(calls.trivial)
    return [
        Figure(row, f"execute-job over {door}, p50", median(calls.execute), "ms"),
        Figure(row, f"execute-job over {door}, p99", percentile(calls.execute, 0.99), "ms"),
        Figure(row, f"trivial call over {door}, p50", median(calls.trivial), "ms"),
        Figure(row, f"execute-job over {door}, above a trivial call", extra, "ms", most=EXTRA_MS),
        Figure(row, f"server CPU of both calls over {door}", calls.cpu_ms, "ms"),
    ]


def flushes(stage: Stage, sizes: Sizes) -> list[Figure]:
    """Times the server's log is forced to disk for one inline ``execute-job``.

    A backend tells its counters for certain when it ends, so two servers live and die: what one with few calls flushes
    is taken off.
    """
    _prepare(stage)
    few = max(1, sizes.calls // 10)
    counts: list[int] = []
    for calls in (few, few + sizes.calls):
        before = stage.vitals(DATABASE).flushes
        with http_server(stage) as server:
            anyio.run(_call, server, calls)
        counts.append(stage.vitals(DATABASE).flushes - before)
    each = (counts[1] - counts[0]) / sizes.calls
    return [Figure("flushes", "flushed commits per inline execute-job", each, "", most=FLUSHES)]


@contextmanager
def http_server(stage: Stage, database: str = DATABASE) -> Generator[HttpServer]:
    """Run ``jobforge serve --http`` on a free port."""
    state_dir = stage.cluster.state_dir / "server"
    keys = KeyFolder(state_dir / "keys")
    state_dir.mkdir(exist_ok=True)
    settings = load_settings(state_dir=state_dir)
    token = issue_token(
        keys.ensure(),
        Grant("bench", ALL_SCOPES, subject="bench"),
        issuer=settings.token_issuer,
        audience=settings.token_audience,
    )
    environment = {
        **os.environ,
        "DATABASE_URL": stage.url(database, "jobforge_api"),
        "JOBFORGE_WORKER_DATABASE_URL": stage.url(database, "jobforge_worker"),
        "JOBFORGE_STATE_DIR": str(state_dir),
        "JOBFORGE_TOKEN_KEYS": str(state_dir / "keys"),
        "JOBFORGE_CONTEXT_KEY": signing_key(stage, database),
        "JOBFORGE_JOBS": str(NOOP_JOB),
        "JOBFORGE_LOG_LEVEL": "warning",
    }
    log = state_dir / "server.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [JOBFORGE, "serve", "--http", "--port", "0"], env=environment, stderr=errors
        )
    try:
        yield HttpServer(_wait_for_url(process, log), token, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def signing_key(stage: Stage, database: str) -> str:
    """Have the database refuse scopes that are not signed, as it does in an installation; return the key."""
    key = ensure_own_key(stage.url(database))
    assert key is not None
    return key.text()


def _prepare(stage: Stage) -> None:
    migrate(stage.fresh_database(DATABASE))


def _wait_for_url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        for word in log.read_text().split():
            if word.startswith("http://") and word.endswith("/mcp"):
                return word
        time.sleep(0.02)
    raise RuntimeError(f"the server did not start: {log.read_text()[-2_000:]}")


async def _call(server: HttpServer, count: int) -> Calls:
    headers = {"Authorization": f"Bearer {server.token}"}
    execute: list[float] = []
    trivial: list[float] = []
    cpu = 0.0
    with anyio.fail_after(120):
        async with (
            httpx2.AsyncClient(headers=headers, timeout=30) as http,
            Client(streamable_http_client(server.url, http_client=http)) as agent,
        ):
            for number in range(-5, count):  # the first five warm everything
                if number == 0:
                    cpu = cpu_seconds(server.pid)
                    execute.clear()
                    trivial.clear()
                started = time.perf_counter()
                answer = await agent.call_tool(
                    "execute-job", {"name": "bench.noop", "input": {"i": number}}
                )
                execute.append(1_000 * (time.perf_counter() - started))
                run = cast("dict[str, object]", answer.structured_content or {})
                assert run.get("status") == "succeeded", answer
                started = time.perf_counter()
                await agent.call_tool("list-jobs", {"query": "no such job"})
                trivial.append(1_000 * (time.perf_counter() - started))
    return Calls(execute, trivial, 1_000 * (cpu_seconds(server.pid) - cpu) / count)
