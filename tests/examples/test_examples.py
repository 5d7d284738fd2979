"""Every story of ``examples/agents`` runs with one command, tells what it promises, and leaves nothing behind.

They take some seconds each: processes and a database of their own are what they are about.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.leftovers import folder_for_state, processes_around

FOLDER = Path(__file__).parents[2] / "examples/agents"

KEY_LINES = {
    "http_progress.py": [
        "tools of this token: list-jobs, execute-job, get-job-status, list-runs",
        "progress: 4 of 4, liftoff",
        'succeeded: {"message": "liftoff", "steps": 4}',
    ],
    "resume_after_restart.py": [
        "first chat: created, running",
        "the server is killed, with all its workers",
        "second chat: replayed, the same run",
        "succeeded on attempt 2: liftoff",
    ],
    "sse_remote.py": [
        "acme: succeeded on attempt 2",
        "globex: RUN_NOT_FOUND, there is no run with this runId",
        "globex: RUN_NOT_FOUND, there is no run with this runId",
    ],
    "register_and_run.py": [
        "register-job: launch.twice version 1 is created",
        "register-job: launch.twice version 1 is unchanged",
        'execute-job: succeeded, {"message": "liftoff", "steps": 1}',
    ],
    "event_to_job.py": [
        "register-trigger: launch is created",
        "submit-event: created, then replayed with the same run",
        "not fired: no_match, its condition does not hold",
        'run: succeeded, {"message": "liftoff", "steps": 1}',
    ],
    "scheduled_report.py": [
        "dry run: would be created",
        "register-trigger: created, 3 next times told",
        "trigger morning-report fired",
        "run: succeeded, liftoff",
    ],
    "stdio_poll.py": [
        "execute-job: created, and the agent is free to do other things",
        "get-job-status: succeeded after 1 call",
        'result: {"message": "liftoff", "steps": 2}',
    ],
}
"""What each prints, in this order. Lines in between tell of progress, whose number is a matter of timing."""


def test_every_story_is_checked_here() -> None:
    stories = {path.name for path in FOLDER.glob("[!_]*.py")}

    assert stories == set(KEY_LINES)


@pytest.mark.parametrize("name", KEY_LINES)
def test_a_story_is_short(name: str) -> None:
    lines = (FOLDER / name).read_text("utf-8").splitlines()

    assert len(lines) < 60
    assert f"    .venv/bin/python examples/agents/{name}" in lines


@pytest.mark.requirement("examples.run")
@pytest.mark.timeout(420)
@pytest.mark.parametrize("name", KEY_LINES)
def test_a_story_ends_as_told_and_leaves_nothing(name: str) -> None:
    with folder_for_state() as folder:
        done = subprocess.run(
            [sys.executable, str(FOLDER / name)],
            env=environment_without_settings() | {"TMPDIR": str(folder)},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        left = [*processes_around(folder), *folder.iterdir()]

    told = [line for line in done.stdout.splitlines() if line in KEY_LINES[name]]
    assert (done.returncode, told) == (0, KEY_LINES[name]), done.stderr
    assert left == []


def environment_without_settings() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("JOBFORGE_") and name != "DATABASE_URL"
    }
