"""Measures of a laptop: the bridge a chat starts, the node behind it, and what they weigh."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from benchmarks.contenders import STOP_SECONDS, jobforge, running_workers
from benchmarks.figures import Figure, Sizes, median, percentile
from benchmarks.processes import cpu_seconds, resident_mb
from benchmarks.server_rows import JOBFORGE, NOOP_JOB, Calls, figures_of
from benchmarks.stage import Stage, remove_state
from jobforge_mcp import embedded
from jobforge_mcp.local.node import node_status, stop_node
from jobforge_mcp.settings import Settings, load_settings

WARM_P95_MS = 60
COLD_MS = 2_000
BRIDGE_MB = 12

_HELLO = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "bench", "version": "1"},
}


@dataclass
class Chat:
    """What a host does: one process, lines in, lines out."""

    process: subprocess.Popen[bytes]
    calls: int = 0

    def ask(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        self._say({"id": self.calls, "method": method, "params": parameters})
        assert self.process.stdout
        while line := self.process.stdout.readline():
            message = cast("dict[str, Any]", json.loads(line))
            if message.get("id") == self.calls:
                return message["result"]
        raise RuntimeError("the bridge ended")

    def initialize(self) -> None:
        self.ask("initialize", _HELLO)
        self._say({"method": "notifications/initialized"})

    def call(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return self.ask("tools/call", {"name": tool, "arguments": arguments})["structuredContent"]

    def _say(self, message: dict[str, Any]) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        self.process.stdin.flush()


@dataclass(frozen=True)
class Laptop:
    """A state directory with an embedded server and a node of its own."""

    state_dir: Path

    @property
    def settings(self) -> Settings:
        return load_settings(state_dir=self.state_dir)

    @contextmanager
    def chat(self) -> Generator[Chat]:
        """Start a chat, which starts the node if none runs."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("JOBFORGE_", "DATABASE_"))}
        process = subprocess.Popen(
            [JOBFORGE],
            env={**kept, "JOBFORGE_STATE_DIR": str(self.state_dir), "JOBFORGE_JOBS": str(NOOP_JOB)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield Chat(process)
        finally:
            assert process.stdin
            process.stdin.close()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout
            process.stdout.close()

    def stop(self) -> None:
        """End node and server; the data stays."""
        stop_node(self.settings)
        embedded.stop(self.state_dir)


@contextmanager
def laptop() -> Generator[Laptop]:
    """Make one, and leave nothing of it."""
    state_dir = embedded.scratch_state_directory()
    made = Laptop(state_dir)
    try:
        yield made
    finally:
        stop_node(made.settings)
        remove_state(state_dir)


def stdio(_stage: Stage, sizes: Sizes) -> list[Figure]:
    """The round trips of ``http`` through bridge and node."""
    with laptop() as home, home.chat() as chat:
        chat.initialize()
        execute, trivial = ([0.0] * sizes.calls for _ in range(2))
        for number in range(5):
            chat.call("execute-job", {"name": "bench.noop", "input": {"i": number}})
        pid = node_status(home.settings).pid or 0
        cpu = cpu_seconds(pid)
        for number in range(sizes.calls):
            started = time.perf_counter()
            run = chat.call("execute-job", {"name": "bench.noop", "input": {"i": number}})
            execute[number] = 1_000 * (time.perf_counter() - started)
            assert run["status"] == "succeeded", run
            started = time.perf_counter()
            chat.call("list-jobs", {"query": "no such job"})
            trivial[number] = 1_000 * (time.perf_counter() - started)
        cpu = 1_000 * (cpu_seconds(pid) - cpu) / sizes.calls
    return figures_of("stdio", "stdio", Calls(execute, trivial, cpu))


def initialize(_stage: Stage, sizes: Sizes) -> list[Figure]:
    """From starting the bridge to the answer to ``initialize``: a node that runs, and one that does not."""
    with laptop() as home:
        _greet(home)  # the first ever start makes the database
        warm = [_greet(home) for _ in range(sizes.starts)]
        cold: list[float] = []
        for _ in range(sizes.cold_starts):
            home.stop()
            cold.append(_greet(home))
    return [
        Figure("initialize", "initialize, node running, p50", median(warm), "ms"),
        Figure(
            "initialize",
            "initialize, node running, p95",
            percentile(warm, 0.95),
            "ms",
            most=WARM_P95_MS,
        ),
        Figure("initialize", "initialize, node cold, worst", max(cold), "ms", most=COLD_MS),
    ]


def memory(stage: Stage, _sizes: Sizes) -> list[Figure]:
    """Resident memory of the processes, after a call; without PostgreSQL's."""
    with laptop() as home, home.chat() as chat:
        chat.initialize()
        chat.call("execute-job", {"name": "bench.noop", "input": {"i": 1}})
        bridge = resident_mb([chat.process.pid])
        node = resident_mb([node_status(home.settings).pid or 0])
    contender = jobforge(stage)
    contender.prepare()
    with running_workers(contender, 1) as workers:
        contender.call("bulk", 1)
        deadline = time.monotonic() + 20
        while workers.count() == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        worker = resident_mb([each.pid for each in workers.processes])
    return [
        Figure("memory", "resident memory, bridge", bridge, "MB", most=BRIDGE_MB),
        Figure("memory", "resident memory, node", node, "MB"),
        Figure("memory", "resident memory, worker", worker, "MB"),
    ]


def _greet(home: Laptop) -> float:
    started = time.perf_counter()
    with home.chat() as chat:
        chat.initialize()
        return 1_000 * (time.perf_counter() - started)
