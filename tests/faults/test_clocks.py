"""The clock of a worker's machine an hour off: nothing depends on it, since every time is the database's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from jobforge_mcp.types import NewJob, RunStatus
from tests.faults.conftest import missing
from tests.postgres import ScratchDatabase
from tests.worker.conftest import HANDLERS, Desk, eventually
from tests.worker.test_processes import PROGRAM

LEASE_MS = 4_000  # a heartbeat may come late on a busy machine


def faketime() -> str:
    """Find the library that moves a process's clock."""
    for path in Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"):
        return str(path)
    missing("libfaketime is not installed: apt-get install faketime")
    raise AssertionError


@pytest.fixture(params=["+1h", "-1h"])
def shifted(
    database: ScratchDatabase, request: pytest.FixtureRequest
) -> Generator[subprocess.Popen[bytes]]:
    """A worker process whose clock is off."""
    environ = os.environ | {
        "JOBFORGE_LEASE_MS": str(LEASE_MS),
        "JOBFORGE_POLL_MS": "100",
        "LD_PRELOAD": faketime(),
        "FAKETIME": request.param,
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    told = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time())"],
        env=environ, capture_output=True, check=True,
    )  # fmt: skip
    real = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time())"], capture_output=True, check=True
    )
    assert abs(float(told.stdout) - float(real.stdout)) > 3_000, "the clock is not moved"
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), str(HANDLERS), database.url("jobforge_worker")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environ,
    )
    yield process
    process.kill()
    process.wait()


@pytest.mark.requirement("faults.clock")
async def test_a_worker_whose_clock_is_an_hour_off_keeps_leases_timeouts_and_retries(
    desk: Desk, shifted: subprocess.Popen[bytes], admin: psycopg.Connection
) -> None:
    short = await desk.until_final(await desk.enqueue("echo", number=7))
    # longer than two leases: its heartbeats hold it
    held = await desk.until_final(await desk.enqueue("count", number=9_000))
    in_child = await desk.until_final(await desk.enqueue("echo.process", number=3))
    stopped = await desk.first_failure(await desk.enqueue("sleep.briefly"))
    retried = await desk.first_failure(await desk.enqueue("raise", name="again"))
    now = admin.execute("select jobforge.now()").fetchone()

    assert now is not None
    assert [run.error for run in (short, held, in_child)] == [None] * 3
    assert [run.status for run in (short, held, in_child)] == [RunStatus.SUCCEEDED] * 3
    assert (held.epoch, held.attempt_no) == (1, 1)
    assert stopped.error is not None
    assert stopped.error.code == "TIMED_OUT", stopped.error
    for run in (short, held, in_child):
        assert run.started_at is not None
        assert run.finished_at is not None
        assert run.created_at <= run.started_at <= run.finished_at <= now[0]
    assert abs(retried.finished_at - now[0]) < timedelta(minutes=30)
    shifted.send_signal(signal.SIGTERM)
    await eventually(lambda: shifted.poll() is not None)
    assert shifted.returncode == 0


@pytest.mark.requirement("faults.clock")
async def test_a_job_of_the_future_does_not_start_by_a_workers_fast_clock(
    desk: Desk, shifted: subprocess.Popen[bytes], admin: psycopg.Connection
) -> None:
    now = admin.execute("select jobforge.now()").fetchone()
    assert now is not None
    job = NewJob("echo", '{"number": 1}', run_at=now[0] + timedelta(minutes=30))
    later = (await desk.router.enqueue_job(desk.caller, job)).job_id
    for number in range(20):
        await desk.until_final(await desk.enqueue("echo", number=number))

    run = await desk.router.get_run(desk.caller, later)

    assert shifted.poll() is None
    assert (run.status, run.epoch) == (RunStatus.QUEUED, 0)
