"""Commands as people and programs run them: in this process, against a database of the test's own."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
import structlog

from jobforge_mcp.cli import main
from jobforge_mcp.settings import Settings, variable_name
from tests.postgres import ScratchDatabase

BROKEN_JOB = """
from pydantic import BaseModel
from jobforge_mcp import JobContext, PermanentError, job

class Nothing(BaseModel):
    pass

@job(name="demo.broken")
async def broken(input: Nothing, job: JobContext) -> None:
    raise PermanentError("the pen is empty", code="NO_INK")
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """What one command left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        assert self.out.count("\n") == 1
        return json.loads(self.out)


class Runner(Protocol):
    """Runs one command line."""

    def __call__(self, *arguments: str) -> Ran: ...


@pytest.fixture(autouse=True)
def quiet_logging() -> Generator[None]:
    """Commands set up logging for their process; here that is the process of all tests."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No settings but a state directory of the test's own."""
    for name in Settings.model_fields:
        monkeypatch.delenv(variable_name(name), raising=False)
    monkeypatch.delenv("JOBFORGE_DATABASE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JOBFORGE_STATE_DIR", str(tmp_path / "state"))
    return monkeypatch


@pytest.fixture
def jobforge(environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    """Run commands without a database."""

    def run(*arguments: str) -> Ran:
        capsys.readouterr()
        code = main(arguments)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def installed(
    jobforge: Runner,
    environment: pytest.MonkeyPatch,
    database: ScratchDatabase,
    tmp_path: Path,
) -> Runner:
    """Run commands on a database, with keys, as the holder of a token of tenant ``acme`` with every scope."""
    environment.setenv("DATABASE_URL", database.url("jobforge_api"))
    environment.setenv("JOBFORGE_WORKER_DATABASE_URL", database.url("jobforge_worker"))
    environment.setenv("JOBFORGE_ADMIN_DATABASE_URL", database.url("jobforge_admin"))
    jobs = tmp_path / "broken.py"
    jobs.write_text(BROKEN_JOB)
    environment.setenv("JOBFORGE_JOBS", str(jobs))
    keys = tmp_path / "keys"
    assert jobforge("token", "keys", "--folder", str(keys), "--json").code == 0
    environment.setenv("JOBFORGE_TOKEN_KEYS", str(keys))
    issued = jobforge("token", "issue", "--tenant", "acme", "--all-scopes")
    environment.setenv("JOBFORGE_TOKEN", issued.out.strip())
    return jobforge


@pytest.fixture
def worker_process(installed: Runner) -> Generator[subprocess.Popen[str]]:
    """A worker as a process of its own, ready to run jobs; drained at the end."""
    command = [
        sys.executable,
        "-m",
        "jobforge_mcp.entry",
        "worker",
        "--type",
        "demo.*",
        "--type",
        "report.*",
    ]
    environ = {**os.environ, "JOBFORGE_POLL_MS": "50", "JOBFORGE_DRAIN_GRACE_SECONDS": "1"}
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.endswith("ready\n"):
                break
        yield process
        process.terminate()
        process.communicate(timeout=60)
