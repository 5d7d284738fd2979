"""The processes that the demo starts beside the local node: two workers, one of which it will kill, and a server.

All three know one job more than every other process here: the demo's own, under a name that is made anew for each demo.
The node's workers leave it alone, because they do not know it, and two demos at once leave each other's alone. None of
these processes outlives the demo: they are ended when it ends, and the kernel ends the workers when it is killed.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TextIO

import anyio
import anyio.to_thread
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from jobforge_mcp.cli import demo_job
from jobforge_mcp.embedded.processes import die_with_parent
from jobforge_mcp.local.install import Command
from jobforge_mcp.types import JsonObject

LEASE_MS = 2_000
"""Short, so that nobody waits half a minute for a demonstration; a worker that lives extends it every third of it."""

_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"
_STOP_SECONDS = 3.0


@asynccontextmanager
async def open_crew(command: Command) -> AsyncGenerator[tuple[Crew, Client]]:
    """Start the workers and the server, and connect to it; leaving ends them all."""
    with TemporaryDirectory(prefix="jobforge-demo-") as folder:
        crew = Crew(command, Path(folder))
        crew.start()
        try:
            with crew.open_log("server.log") as log:
                async with Client(stdio_client(crew.server(), errlog=log)) as client:
                    try:
                        yield crew, client
                    finally:
                        crew.dismiss()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(crew.stop)


class Crew:
    """Two workers for one job."""

    def __init__(self, command: Command, folder: Path) -> None:
        """Make the job's definition; nothing is started yet."""
        self.job = f"{demo_job.HANDLER}.{''.join(secrets.choice(_LETTERS) for _ in range(3))}"
        self.killed: int | None = None
        """Process that was killed."""
        self._command = command
        self._folder = folder
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self._definition = folder / "relay.json"
        self._definition.write_text(json.dumps(_definition(self.job)), encoding="utf-8")

    @property
    def pids(self) -> tuple[int, ...]:
        """The worker processes, dead or alive."""
        return tuple(self._workers)

    def server(self) -> StdioServerParameters:
        """Say how to start an MCP server that knows the job and has no workers of its own."""
        return StdioServerParameters(
            command=self._command.program,
            args=[*self._command.arguments, "serve", "--workers", "0"],
            env=self._environment(),
        )

    def start(self) -> None:
        """Start the workers; they need a second before they take anything."""
        arguments = [*self._command.arguments, "worker", "--type", self.job]
        arrange = die_with_parent(signal.SIGKILL)
        for number in (1, 2):
            with self.open_log(f"worker-{number}.log") as log:
                worker = subprocess.Popen(
                    [self._command.program, *arguments],
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=arrange,  # noqa: PLW1509 - one call of the kernel, nothing that could wait for a lock
                )
            self._workers[worker.pid] = worker

    def open_log(self, name: str) -> TextIO:
        """Open a file for what a process says that nobody is to see unless it fails."""
        return (self._folder / name).open("w", encoding="utf-8")

    def kill(self, pid: int) -> None:
        """End a worker the hardest way there is: it can say nothing and finish nothing."""
        worker = self._workers[pid]
        worker.kill()
        worker.wait()
        self.killed = pid

    def last_words(self) -> str:
        """Return what a worker said that ended although nobody killed it; empty when all is well."""
        for number, (pid, worker) in enumerate(self._workers.items(), 1):
            if pid != self.killed and worker.poll() is not None:
                log = (self._folder / f"worker-{number}.log").read_text("utf-8", "replace")
                return f"worker process {pid} ended by itself: {log.strip()[-500:]}"
        return ""

    def dismiss(self) -> None:
        """Tell the workers that still live to end, and wait for nothing."""
        for worker in self._workers.values():
            worker.terminate()

    def stop(self) -> None:
        """End the workers that still live, for certain."""
        self.dismiss()
        for worker in self._workers.values():
            try:
                worker.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "JOBFORGE_JOBS": f"{demo_job.__name__},{self._definition}",
            "JOBFORGE_LEASE_MS": str(LEASE_MS),
            "JOBFORGE_HEARTBEAT_MS": str(LEASE_MS // 3),
            "JOBFORGE_DRAIN_GRACE_SECONDS": "0",
            "JOBFORGE_PROCESS_CHILDREN": "0",
        }


def _definition(name: str) -> JsonObject:
    """Return the demo's job under a name of its own, as a definition that is data."""
    return {
        "name": name,
        "handler": demo_job.HANDLER,
        "input": {"steps": 6, "step_seconds": 0.5},
        "title": "Relay",
        "description": "The job of one demo, known to its own workers only.",
        "timeoutMs": 60_000,
        "retry": {"maxAttempts": 5, "backoffMs": 100},
        "tags": ["demo"],
    }
