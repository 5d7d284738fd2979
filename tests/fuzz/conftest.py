"""A server as a process of its own, whose memory can be watched."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cli.conftest import Runner, environment, installed, jobforge, quiet_logging

__all__ = ["environment", "installed", "jobforge", "quiet_logging"]


@dataclass
class Live:
    """A running server."""

    process: subprocess.Popen[str]
    port: int
    token: str
    said: list[str] = field(default_factory=list[str])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def resident_mb(self) -> float:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", text)
        assert found
        return int(found[1]) / 1024


@pytest.fixture
def live(installed: Runner) -> Generator[Live]:
    command = [sys.executable, "-m", "jobforge_mcp.entry", "serve", "--http", "--port", "0", "--workers", "1"]  # fmt: skip
    chosen = {"REQUEST_SECONDS": 3, "WAIT_SECONDS_DEFAULT": 1, "WAIT_SECONDS_CAP": 1, "RATE_LIMITS_ENABLED": False} | dict.fromkeys(("EVENTS_ENABLED", "TRIGGERS_ENABLED", "REGISTER_JOB_ENABLED"), True)  # fmt: skip
    environ = os.environ | {f"JOBFORGE_{name}": str(value) for name, value in chosen.items()}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stderr is not None
        said: list[str] = []
        port = 0
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"serving MCP at http://127\.0\.0\.1:(\d+)/mcp", line):
                port = int(found[1])
                break
        assert port, said
        threading.Thread(target=lambda: said.extend(process.stderr or []), daemon=True).start()
        try:
            yield Live(process, port, os.environ["JOBFORGE_TOKEN"], said)
        finally:
            process.terminate()
            process.wait(60)
