"""What a worker keeps in memory: a fleet pays for each module once a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Runner

NEVER_NEEDED = {
    "asyncpg",
    "cryptography",
    "httpx2",
    "jobforge_mcp.app",
    "jobforge_mcp.cli.program",
    "jobforge_mcp.client",
    "jobforge_mcp.server",
    "jwt",
    "mcp",
    "mcp_types",
    "numpy",
    "opentelemetry",
    "prometheus_client",
    "pygments",
    "rich",
    "starlette",
    "uvicorn",
}
"""Modules that no simple job needs. One that a worker does need leaves this list with a figure of what it costs."""

TELLS_WHAT_IS_LOADED = """
import sys
from pydantic import BaseModel
from jobforge_mcp import JobContext, job

class Nothing(BaseModel):
    pass

@job(name="acme.loaded")
async def loaded(input: Nothing, job: JobContext) -> list[str]:
    return sorted(sys.modules)
"""


@pytest.mark.requirement("worker.light")
def test_a_worker_that_runs_a_job_has_loaded_nothing_of_servers_and_commands(
    installed: Runner, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    jobs = tmp_path / "loaded.py"
    jobs.write_text(TELLS_WHAT_IS_LOADED)
    environment.setenv("JOBFORGE_JOBS", str(jobs))
    command = [sys.executable, "-m", "jobforge_mcp.entry", "worker", "--type", "acme.*"]
    with subprocess.Popen(command, env=dict(os.environ), stderr=subprocess.PIPE) as process:
        ran = installed("run", "acme.loaded", "--wait", "60", "--json")
        process.terminate()
        process.communicate(timeout=60)

    loaded = set(ran.document["result"])

    assert "jobforge_mcp.worker.pool" in loaded
    assert NEVER_NEEDED & loaded == set()
