"""What a worker keeps in memory: a fleet pays for each module once a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from jobforge_mcp.cli.services import SERVICES, new_program
from jobforge_mcp.cli.working import WorkerOptions, plain_options
from tests.cli.conftest import Runner

NEVER_NEEDED = {
    "cryptography",
    "httpx2",
    "jobforge_mcp.app",
    "jobforge_mcp.cli.program",
    "jobforge_mcp.client",
    "jobforge_mcp.embedded",
    "jobforge_mcp.maintenance",
    "jobforge_mcp.router.jobs",
    "jobforge_mcp.server",
    "jsonschema_rs",
    "jwt",
    "mcp",
    "mcp_types",
    "opentelemetry",
    "prometheus_client",
    "pydantic_settings",
    "pygments",
    "rich",
    "starlette",
    "typer",
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


def test_a_worker_reads_by_itself_every_option_that_the_program_knows() -> None:
    program = get_command(new_program(SERVICES))
    assert isinstance(program, TyperGroup)
    known = [option for each in program.commands["worker"].params for option in each.opts]

    read = [plain_options(["worker", option, "7"]) for option in known]

    assert read == [WorkerOptions(7), WorkerOptions(tenants=("7",)), WorkerOptions(types=("7",))]


def test_options_are_read_with_and_without_an_equals_sign_and_more_than_once() -> None:
    words = ["--concurrency=2", "--type", "a.*", "--type=b=c", "--concurrency", "3"]

    assert plain_options(["worker", *words]) == WorkerOptions(3, types=("a.*", "b=c"))
    assert plain_options(["worker"]) == WorkerOptions()


@pytest.mark.parametrize(
    "words",
    [
        ["serve"],
        ["worker", "--help"],
        ["worker", "--type"],
        ["worker", "--type", "--tenant"],
        ["worker", "--typ", "a"],
        ["worker", "--concurrency", "0"],
        ["worker", "--concurrency", "many"],
        ["worker", "a"],
    ],
)
def test_what_is_not_plain_is_left_to_the_whole_program(words: list[str]) -> None:
    assert plain_options(words) is None
