"""``jobforge demo`` as a person or a script runs it: real processes, a node and a database of the test's own.

Each performance takes some seconds, because real jobs, a real lease and real processes do.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobforge_mcp import embedded
from tests.examples.leftovers import folder_for_state, processes_around

PROGRAM = str(Path(sys.executable).with_name("jobforge"))
RUN_ID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
SUMMARY = [
    rf"{RUN_ID}  demo\.countdown  success   succeeded  1",
    rf"{RUN_ID}  demo\.flaky      retries   succeeded  3",
    rf"{RUN_ID}  demo\.relay\.\w{{3}}  recovery  succeeded  [2-5]",
    rf"{RUN_ID}  demo\.stubborn   cancel    canceled   1",
]

pytestmark = pytest.mark.timeout(240)


@dataclass(frozen=True, slots=True)
class Place:
    """A state directory, and how to run programs on it."""

    folder: Path
    environment: dict[str, str]

    def start(self, *arguments: str, **settings: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [PROGRAM, *arguments],
            env=self.environment | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, **settings: str) -> tuple[int, str, str]:
        with self.start(*arguments, **settings) as process:
            out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def companions(self) -> list[str]:
        """What runs here and is neither the node nor its database."""
        return [
            command
            for command in processes_around(self.folder)
            if "worker --type" in command or " serve " in command or "jobforge demo" in command
        ]


@pytest.fixture(scope="module")
def place() -> Generator[Place]:
    """A node of the tests' own; it stays warm between them, as a user's would."""
    with folder_for_state() as folder:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("JOBFORGE_") and name != "DATABASE_URL"
        }
        made = Place(folder, kept | {"JOBFORGE_STATE_DIR": str(folder), "TMPDIR": str(folder)})
        yield made
        made.run("node", "stop")
        embedded.stop(folder)
        left = processes_around(folder)
    assert left == []


@pytest.mark.requirement("demo.promises")
def test_two_demos_at_once_both_keep_every_promise(place: Place) -> None:
    first, second = place.start("demo", "--once"), place.start("demo", "--once")
    try:
        told = [process.communicate(timeout=200) for process in (first, second)]
    finally:
        for process in (first, second):
            with process:  # closes its pipes
                process.kill()

    assert (first.returncode, second.returncode) == (0, 0), told
    for out, err in told:
        assert err == ""
        assert [line for line in SUMMARY if not re.search(f"(?m)^{line}$", out)] == []
        assert "All four ended as promised." in out
        assert "triggers are on for the local tenant, because" in " ".join(out.split())
        assert "       6/6 liftoff\n" in out
        assert "attempt 2 failed: DEMO_FAILURE, failure 2 of 2, as asked\n" in out
        assert "attempt 1 lost: WORKER_LOST" in out
        assert set(processes_named(out)) == {"killed", "finisher"}
    assert place.companions() == []


def processes_named(out: str) -> dict[str, str]:
    """Tell the two workers of a demo apart by what it says of them."""
    workers = re.search(r"started for this job alone: (\d+) and (\d+)\n", out)
    killed = re.search(r"kill -9 (\d+):", out)
    finisher = re.search(r'succeeded: {"process": (\d+)}', out)
    assert workers is not None
    assert killed is not None
    assert finisher is not None
    parts = {killed[1]: "killed", finisher[1]: "finisher"}
    return {parts[pid]: pid for pid in workers.groups()}


@pytest.mark.requirement("demo.leaves-nothing")
def test_an_interrupted_demo_ends_and_cancels_what_it_started(place: Place) -> None:
    with place.start("demo") as process:
        assert process.stdout is not None
        out = ""
        for line in process.stdout:
            out += line
            if "kill -9" in line:
                break
        process.send_signal(signal.SIGINT)
        out += process.stdout.read()

    run_id = re.findall(RUN_ID, out)[-1]
    assert (process.returncode, place.companions()) == (130, [])
    assert out.endswith("Interrupted: what the demo had started was canceled and ended.\n")
    assert '"status": "canceled"' in place.run("status", run_id, "--wait", "20", "--json")[1]


@pytest.mark.requirement("demo.promises")
def test_a_demo_that_may_not_run_jobs_says_what_was_not_as_promised(place: Place) -> None:
    _, token, _ = place.run("token", "issue", "--tenant", "acme", "--scope", "jobs:read")

    code, out, _ = place.run("demo", "--once", JOBFORGE_TOKEN=token.strip())

    refused = re.findall(r"(?m)^Not as promised: (.+?): execute-job was refused: ", out)
    assert (code, len(refused)) == (1, 4), out
    assert "All four" not in out


def test_a_demo_without_a_server_says_why(place: Place) -> None:
    code, _, err = place.run("demo", JOBFORGE_STATE_DIR="/dev/null/nowhere")

    assert code == 3
    assert err.startswith("jobforge: the demo has no server to talk to: the directory /dev/null")
    assert err.endswith("set JOBFORGE_STATE_DIR to a directory of your own\n")
