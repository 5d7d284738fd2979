"""Worker processes that are killed, and those that are asked to end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias

import psycopg
import pytest

from jobforge_mcp.types import RunStatus
from tests.postgres import ScratchDatabase
from tests.worker.conftest import BUSY, HANDLERS, Desk, eventually
from tests.worker.test_children import is_alive

PROGRAM = Path(__file__).with_name("worker_process.py")
LEASE_MS = 1_500

Starter: TypeAlias = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start_worker(database: ScratchDatabase) -> Generator[Starter]:
    started: list[subprocess.Popen[bytes]] = []

    def start(**settings: object) -> subprocess.Popen[bytes]:
        chosen = {"lease_ms": LEASE_MS, "poll_ms": 100, "kill_grace_seconds": 0.5, **settings}
        environ = os.environ | {f"JOBFORGE_{n.upper()}": str(v) for n, v in chosen.items()}
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(HANDLERS), database.url("jobforge_worker")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


async def exit_of(process: subprocess.Popen[bytes], seconds: float = 60) -> int:
    await eventually(lambda: process.poll() is not None, seconds)
    assert process.returncode is not None
    return process.returncode


@pytest.mark.requirement("worker.rescue")
async def test_the_job_of_a_killed_worker_starts_again_within_lease_and_a_second(
    desk: Desk, start_worker: Starter, admin: psycopg.Connection
) -> None:
    first, job_id = start_worker(), await desk.enqueue("sleep")
    await desk.until(job_id, lambda run: run.status is RunStatus.RUNNING)
    # Whoever finds the lease is no poll: that is due in a minute.
    start_worker(poll_ms=60_000)
    await eventually(lambda: admin.execute("select from jobforge.workers").rowcount == 2)
    before = await desk.router.get_run(desk.caller, job_id)

    first.kill()
    after = await desk.until(job_id, lambda run: run.epoch == 2 and run.status is RunStatus.RUNNING)

    assert before.worker_id != after.worker_id
    assert before.lease_until is not None
    assert after.started_at is not None
    assert timedelta() <= after.started_at - before.lease_until < BUSY


@pytest.mark.requirement("worker.poison")
async def test_a_job_that_kills_its_worker_goes_dead_and_its_neighbours_live(
    desk: Desk, start_worker: Starter
) -> None:
    """Takes some leases: the batch is lost together, then the poison twice alone."""
    poison_id = await desk.enqueue("poison")
    neighbours = [await desk.enqueue("echo", number=n) for n in range(3)]
    workers = [start_worker()]
    deaths = 0

    while not (await desk.router.get_run(desk.caller, poison_id)).status.is_final:
        if workers[-1].poll() is not None:
            deaths += 1
            assert workers[-1].returncode == -signal.SIGKILL
            workers.append(start_worker())
        with contextlib.suppress(TimeoutError):
            await eventually(lambda: workers[-1].poll() is not None, 0.2)
    poison = await desk.until_final(poison_id)
    echoes = [await desk.until_final(job_id) for job_id in neighbours]

    assert (poison.status, poison.attempt_no) == (RunStatus.DEAD, 2)
    assert deaths <= 3
    assert {run.status for run in echoes} == {RunStatus.SUCCEEDED}
    assert {run.attempt_no for run in echoes} == {1}


@pytest.mark.requirement("worker.ends")
async def test_a_handler_that_swallows_its_cancellation_does_not_keep_its_process(
    desk: Desk, start_worker: Starter, tmp_path: Path
) -> None:
    """Takes as long as a drained process gets to end by itself."""
    first = start_worker(drain_grace_seconds=0.2)
    job_id = await desk.enqueue("swallow.long", name=str(tmp_path / "never"))
    await desk.until(job_id, lambda run: run.progress_message == "swallowing")

    first.terminate()
    code = await exit_of(first, 120)
    start_worker()
    again = await desk.until(job_id, lambda run: run.epoch >= 2 and run.worker_id is not None)

    assert code == 1
    assert b"could not be stopped" in (first.stderr.read() if first.stderr else b"")
    assert (again.status, again.attempt_no) == (RunStatus.RUNNING, 1)


@pytest.mark.requirement("worker.drain")
async def test_sigterm_lets_jobs_finish_releases_the_rest_and_burns_no_attempt(
    desk: Desk, start_worker: Starter
) -> None:
    worker = start_worker(drain_grace_seconds=4)
    short_id = await desk.enqueue("count", number=100)
    long_id = await desk.enqueue("sleep")
    child_id = await desk.enqueue("stubborn.process")
    for job_id in (short_id, long_id, child_id):
        await desk.until(job_id, lambda run: run.progress_done is not None)
    run = await desk.router.get_run(desk.caller, child_id)
    pids = [int(pid) for pid in (run.progress_message or "").split()]

    worker.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    code = await exit_of(worker)
    seconds = time.monotonic() - asked
    runs = [await desk.router.get_run(desk.caller, i) for i in (short_id, long_id, child_id)]

    assert code == 0
    # Nothing but the grace ends them: both would go on for half a minute.
    assert seconds < 25, worker.stderr and worker.stderr.read().decode()
    assert [run.status.value for run in runs] == ["succeeded", "queued", "queued"]
    assert [run.attempt_no for run in runs] == [1, 0, 0]
    assert len(pids) == 2
    assert not any(is_alive(pid) for pid in pids)


async def test_a_second_signal_ends_a_worker_at_once(desk: Desk, start_worker: Starter) -> None:
    worker = start_worker(drain_grace_seconds=600)
    job_id = await desk.enqueue("sleep")
    await desk.until(job_id, lambda run: run.status is RunStatus.RUNNING)

    worker.send_signal(signal.SIGTERM)
    assert worker.stderr is not None
    lines = iter(worker.stderr.readline, b"")
    assert any(b"worker_draining" in line for line in lines)
    worker.send_signal(signal.SIGINT)
    code = await exit_of(worker)
    run = await desk.router.get_run(desk.caller, job_id)

    assert code == 0
    assert (run.status, run.attempt_no) == (RunStatus.QUEUED, 0)


async def test_children_and_theirs_die_with_a_killed_worker(
    desk: Desk, start_worker: Starter
) -> None:
    worker = start_worker()
    job_id = await desk.enqueue("stubborn.process")
    run = await desk.until(job_id, lambda run: run.progress_message is not None)
    pids = [int(pid) for pid in (run.progress_message or "").split()]
    assert [is_alive(pid) for pid in pids] == [True, True]

    worker.kill()

    await eventually(lambda: not any(is_alive(pid) for pid in pids))


@pytest.mark.requirement("worker.stdout")
async def test_a_worker_says_nothing_on_stdout(desk: Desk, start_worker: Starter) -> None:
    worker = start_worker()
    await desk.until_final(await desk.enqueue("echo.process"))

    worker.send_signal(signal.SIGTERM)
    await exit_of(worker)

    assert worker.stdout is not None
    assert worker.stdout.read() == b""
