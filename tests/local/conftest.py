from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mcp.client.stdio import StdioServerParameters

from jobforge_mcp import embedded
from jobforge_mcp.local import node, rendezvous
from jobforge_mcp.local.node import NodeStatus
from jobforge_mcp.local.place import Place
from jobforge_mcp.settings import Settings, load_settings

JOBFORGE = Path(sys.executable).with_name("jobforge")

INITIALIZE = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "test", "version": "1"},
}


@dataclass
class Chat:
    """What a host does: one process, lines in, lines out."""

    process: subprocess.Popen[bytes]
    ids: list[int] = field(default_factory=list[int])

    def say(
        self, method: str, params: dict[str, Any] | None = None, *, is_call: bool = True
    ) -> int:
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params or {}}
        if is_call:
            self.ids.append(len(self.ids) + 1)
            message["id"] = self.ids[-1]
        assert self.process.stdin
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()
        return self.ids[-1] if is_call else 0

    def hear(self) -> dict[str, Any]:
        """Return the next answer; notifications are passed over."""
        assert self.process.stdout
        while True:
            line = self.process.stdout.readline()
            assert line, "the bridge ended"
            message = json.loads(line)
            if "id" in message:
                return message

    def ask(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        number = self.say(method, params)
        answer = self.hear()
        assert answer["id"] == number
        return answer

    def initialize(self) -> dict[str, Any]:
        answer = self.ask("initialize", INITIALIZE)
        self.say("notifications/initialized", is_call=False)
        return answer

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        answer = self.ask("tools/call", {"name": tool, "arguments": arguments})
        return answer["result"]["structuredContent"]

    def close(self) -> int:
        assert self.process.stdin
        self.process.stdin.close()
        return self.process.wait(60)


@dataclass(frozen=True)
class Home:
    """A user's machine: one state directory, its node, its Postgres."""

    state_dir: Path

    def environment(self, **extra: str) -> dict[str, str]:
        return {
            "PATH": os.defpath,
            "HOME": str(self.state_dir),
            "JOBFORGE_STATE_DIR": str(self.state_dir),
            # A killed node's jobs are taken up again, and a stopped one's given up, within the test's patience.
            "JOBFORGE_LEASE_MS": "1500",
            "JOBFORGE_DRAIN_GRACE_SECONDS": "0.5",
            **extra,
        }

    @property
    def settings(self) -> Settings:
        return load_settings(state_dir=self.state_dir)

    @property
    def place(self) -> Place:
        return node.place_of(self.settings)

    @property
    def node(self) -> NodeStatus:
        return node.node_status(self.settings)

    @property
    def log(self) -> str:
        return Path(self.place.log_path).read_text()

    def server(self, **extra: str) -> StdioServerParameters:
        return StdioServerParameters(
            command=str(JOBFORGE), env=self.environment(**extra), cwd=self.state_dir
        )

    @contextmanager
    def chat(self, **extra: str) -> Generator[Chat]:
        process = subprocess.Popen(
            [JOBFORGE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment(**extra),
            cwd=self.state_dir,
        )
        with process:
            try:
                yield Chat(process)
            finally:
                process.kill()

    def kill_node(self) -> int:
        pid = self.node.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until(lambda: not is_alive(pid))
        return pid

    def start_node(self, *, keep: bool = False) -> NodeStatus:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment().items():
                patch.setenv(name, value)
            return node.start_node(self.settings, keep=keep)

    def stop_node(self) -> bool:
        return node.stop_node(self.settings)

    def node_pids(self) -> set[int]:
        """All node processes of this state directory, by their environment."""
        mark = f"JOBFORGE_STATE_DIR={self.state_dir}\0".encode()
        return {pid for pid in processes("jobforge_mcp.local.node") if mark in environment_of(pid)}


@pytest.fixture(scope="session")
def home() -> Generator[Home]:
    """One machine for all tests of a worker: each leaves a node that serves, or none."""
    made = Home(embedded.scratch_state_directory())
    try:
        yield made
        made.stop_node()
        until(lambda: not made.node_pids())
    finally:
        for pid in made.node_pids():
            os.kill(pid, signal.SIGKILL)
        embedded.stop(made.state_dir)
        shutil.rmtree(made.state_dir)
    assert not processes(str(made.state_dir))


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for what no event tells of."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)


def processes(text: str) -> set[int]:
    """Find living processes by their command line."""
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if text.encode() in command:
                found.add(int(entry.name))
    return found


def environment_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie, which nobody has waited for yet, does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


__all__ = ["Chat", "Home", "is_alive", "processes", "rendezvous", "until"]
