"""The processes of a soak: workers and a server that are replaced when they end, agents with their bridges, and callers."""

from __future__ import annotations

import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.to_thread

from jobforge_mcp.embedded.processes import die_with_parent
from jobforge_mcp.local import place, rendezvous
from jobforge_mcp.local.rendezvous import NodeError
from soak.history import History
from soak.server import is_answered

STOP_SECONDS = 60
READY_SECONDS = 30.0
"""What a new worker gets to be ready before the next old one is told to end."""
LEASE_SECONDS = 3.0
"""What the workers are given, and what a lost attempt must have lasted."""
GRACE_SECONDS = 3.0
"""What a worker that is told to end gives its jobs."""
WORK_SECONDS, SERVE_SECONDS, NODE_SECONDS = 1.0, 10.0, 12.0
"""How long a worker works and the server serves, and what a node has to start, before they are ended: on a loaded machine
nothing else would ever be seen of them."""
_READY = re.compile(rb"worker \S+:(\d+):[0-9a-f]+: .* ready")
JOBFORGE = str(Path(sys.executable).with_name("jobforge"))


class Crew:
    """Starts processes and ends them, by their numbers alone."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str], history: History, *, workers: int
    ) -> None:
        """Run so many workers with this environment; their logs go to ``folder``."""
        self._folder = folder
        self._environment = {**os.environ, **environment}
        self._history = history
        self._wanted = workers
        self._workers: list[subprocess.Popen[bytes]] = []
        self._leaving: list[subprocess.Popen[bytes]] = []
        self._callers: list[subprocess.Popen[bytes]] = []
        self._agents: list[subprocess.Popen[bytes]] = []
        self._server: subprocess.Popen[bytes] | None = None
        self._port: int | None = None
        self._ready: dict[int, float] = {}
        """When workers said that they are ready, by their numbers."""
        self._read = 0
        self._served_from = math.inf
        self._node_ended = time.monotonic()
        self.deaths = 0
        """Workers that ended by themselves: jobs that kill their worker did that."""

    def start_callers(self, seed: int, groups: list[list[str]]) -> None:
        """Start one process of callers for each group of tenants."""
        for number, tenants in enumerate(groups):
            command = [
                sys.executable,
                "-m",
                "soak.callers",
                str(self._folder),
                str(seed * 100 + number),
            ]
            self._callers.append(self._start([*command, *tenants], "callers"))

    def start_agents(self, port: int, seed: int, doors: Mapping[str, Sequence[str]]) -> None:
        """Serve MCP over HTTP at a port, and start the agents of each door."""
        self._port = port
        self.keep()
        for number, (door, tenants) in enumerate(doors.items()):
            command = [sys.executable, "-m", "soak.agents", str(self._folder), door]
            self._agents.append(
                self._start([*command, str(seed * 10 + number), *tenants], f"agents-{door}")
            )

    @property
    def has_agents(self) -> bool:
        """Whether anybody calls through MCP."""
        return bool(self._agents)

    def fallen(self) -> list[str]:
        """Tell which callers and agents have ended although nobody told them to: nothing is seen of them any more."""
        everybody = [*self._callers, *self._agents]
        return [
            f"process {each.pid} of those who call" for each in everybody if each.poll() is not None
        ]

    def stop_callers(self) -> None:
        """Let the callers and agents finish what they are at."""
        everybody = [*self._callers, *self._agents]
        for caller in everybody:
            caller.terminate()
        for caller in everybody:
            with suppress(subprocess.TimeoutExpired):
                caller.wait(STOP_SECONDS)

    def keep(self) -> None:
        """Replace what ended, and bury what was told to."""
        for worker in list(self._workers):
            if worker.poll() is not None:
                self._workers.remove(worker)
                self.deaths += 1
        while len(self._workers) < self._wanted:
            self._workers.append(self._start([JOBFORGE, "worker", "--concurrency", "8"], "worker"))
        if self._port is not None and (self._server is None or self._server.poll() is not None):
            command = [JOBFORGE, "serve", "--http", "--port", str(self._port), "--workers", "4"]
            self._server = self._start(command, "server")
            self._served_from = math.inf
        if self._port is not None and self._served_from == math.inf and is_answered(self._port):
            self._served_from = time.monotonic()
        for process in self._leaving:
            if process.poll() is not None:
                self._history.note("gone", pid=process.pid, code=process.returncode)
        self._leaving = [process for process in self._leaving if process.returncode is None]

    def pick(self, chance: random.Random) -> subprocess.Popen[bytes] | None:
        """Choose one of the workers that have worked for a moment."""
        self._read_log()
        limit = time.monotonic() - WORK_SECONDS
        old = [worker for worker in self._workers if self._ready.get(worker.pid, math.inf) < limit]
        return chance.choice(old) if old else None

    def replace(self, chance: random.Random, number: signal.Signals) -> bool:
        """Send one worker a signal that ends it; another takes its place."""
        worker = self.pick(chance)
        if worker is None:
            return False
        self._replace(worker, number)
        return True

    def _are_ready(self) -> bool:
        self._read_log()
        return all(worker.pid in self._ready for worker in self._workers)

    def _read_log(self) -> None:
        log = self._folder / "worker.log"
        if not log.exists():
            return
        with log.open("rb") as file:
            file.seek(self._read)
            text = file.read()
            self._read += len(text)
        for found in _READY.finditer(text):
            self._ready[int(found[1])] = time.monotonic()

    def replace_server(self, number: signal.Signals) -> bool:
        """End the server of HTTP, if it has served for a while; another takes its place."""
        if self._server is None or time.monotonic() < self._served_from + SERVE_SECONDS:
            return False
        self._served_from = math.inf
        self._end(self._server, number)
        return True

    def end_node(self, number: signal.Signals, *, is_young: bool = True) -> bool:
        """End the local node of the agents over stdio, unless its last end is too near; the next bridge starts another."""
        if not is_young and time.monotonic() < self._node_ended + NODE_SECONDS:
            return False
        self._node_ended = time.monotonic()
        pid = self._node()
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return pid is not None

    def end_bridge(self, chance: random.Random) -> bool:
        """Kill the bridge of one agent over stdio."""
        bridges = [pid for agent in self._agents for pid in _children(agent.pid)]
        if bridges:
            with suppress(ProcessLookupError):
                os.kill(chance.choice(bridges), signal.SIGKILL)
        return bool(bridges)

    async def roll(self) -> None:
        """Restart every process that runs jobs or serves, in good order, one after the other."""
        for worker in list(self._workers):
            if worker in self._workers and worker.poll() is None:
                self._replace(worker, signal.SIGTERM)
                with anyio.move_on_after(
                    READY_SECONDS
                ):  # one that jobs kill again and again holds up nobody
                    while not self._are_ready():  # noqa: ASYNC110 - a log tells nobody
                        await anyio.sleep(0.1)
        if self._server is not None:
            self._end(self._server, signal.SIGTERM)
        await anyio.to_thread.run_sync(self.end_node, signal.SIGTERM)

    def thaw(self) -> None:
        """Let everybody go on who was stopped."""
        for worker in [*self._workers, *self._leaving]:
            with suppress(ProcessLookupError):
                worker.send_signal(signal.SIGCONT)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End everybody, in good order unless told otherwise."""
        everybody = [*self._workers, *self._leaving, *self._callers, *self._agents]
        if self._server is not None:
            everybody.append(self._server)
        self.end_node(number)
        for process in everybody:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGCONT)
                    process.send_signal(number)
        for process in everybody:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.end_node(signal.SIGKILL)
        self._workers, self._leaving, self._callers, self._agents = [], [], [], []
        self._server = self._port = None

    def _replace(self, worker: subprocess.Popen[bytes], number: signal.Signals) -> None:
        self._workers.remove(worker)
        self._end(worker, number)
        self._leaving.append(worker)
        self.keep()

    def _end(self, process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
        self._history.note("told_to_end", pid=process.pid, signal=number.name)

    def _node(self) -> int | None:
        """Ask the local node for its number; nobody is started by that."""
        deadline = time.monotonic() + 2

        def check() -> None:
            if time.monotonic() > deadline:
                raise TimeoutError

        where, hello = place.find_place(self._environment), rendezvous.say_hello("status")
        try:
            connection, answer = rendezvous.join(where, hello, may_start=False, check=check)
        except (NodeError, OSError):
            return None
        connection.close()
        pid = answer.get("pid")
        return pid if isinstance(pid, int) else None

    def _start(self, command: list[str], name: str) -> subprocess.Popen[bytes]:
        """Start a process that dies with this one. To be called on the main thread."""
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 - on the main thread
            )


def _children(pid: int) -> list[int]:
    """Return the direct children of a process."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            text = entry.read_text()
            if int(text.rpartition(")")[2].split()[1]) == pid:
                found.append(int(entry.parent.name))
    return found
