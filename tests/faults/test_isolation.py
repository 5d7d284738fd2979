"""Handlers that ignore everything are ended for certain, with all that they started, and cost nobody else anything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from jobforge_mcp.definitions.loader import load_jobs
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.types import CallOrigin, JobId, Run, RunStatus
from jobforge_mcp.worker.pool import WorkerPool
from tests.worker.conftest import HANDLERS, Desk, PoolMaker, eventually
from tests.worker.test_children import is_alive

UNRULY = Path(__file__).with_name("unruly.py")
KINDS = ["ignores", "counts", "reads", "daemon", "forks"]
LEASE_MS = 4_000


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry(load_jobs([HANDLERS, UNRULY]))


@pytest.fixture
async def pool(make_pool: PoolMaker) -> AsyncGenerator[WorkerPool]:
    async with make_pool(lease_ms=LEASE_MS, worker_concurrency=10, process_children=2) as made:
        yield made


async def let_loose(desk: Desk, tmp_path: Path) -> dict[str, JobId]:
    """Start one of each kind beside a job that must keep its lease."""
    return {kind: await desk.enqueue(f"unruly.{kind}", file=str(tmp_path / kind)) for kind in KINDS}


async def are_gone(desk: Desk, jobs: dict[str, JobId], tmp_path: Path) -> dict[str, Run]:
    """Wait for the ends of the runs, and of every process that was noted."""
    runs = {kind: await desk.until_final(job_id) for kind, job_id in jobs.items()}
    for kind in KINDS:
        pids = [int(pid) for pid in (tmp_path / kind).read_text().split()]
        assert pids
        await eventually(lambda pids=pids: not any(is_alive(pid) for pid in pids))
    return runs


@pytest.mark.requirement("worker.stops-for-real", "faults.isolation")
async def test_a_timeout_ends_every_kind_of_handler_and_no_neighbour_loses_its_lease(
    desk: Desk, pool: WorkerPool, tmp_path: Path
) -> None:
    """As long as their timeout, which leaves a busy machine the time to start five interpreters."""
    neighbour = await desk.enqueue("count", number=10_000)

    runs = await are_gone(desk, await let_loose(desk, tmp_path), tmp_path)
    beside = await desk.until_final(neighbour)

    assert {kind: run.status for kind, run in runs.items()} == dict.fromkeys(KINDS, RunStatus.DEAD)
    assert {run.error and run.error.code for run in runs.values()} == {"TIMED_OUT"}
    # ten seconds of work under a lease of four: nobody took it away
    assert (beside.status, beside.epoch, beside.attempt_no) == (RunStatus.SUCCEEDED, 1, 1)


@pytest.mark.requirement("worker.stops-for-real", "faults.isolation")
async def test_a_cancel_ends_every_kind_of_handler(
    desk: Desk, pool: WorkerPool, tmp_path: Path
) -> None:
    jobs = await let_loose(desk, tmp_path)
    for kind in KINDS:
        await eventually((tmp_path / kind).exists)

    for job_id in jobs.values():
        await desk.router.cancel_job(desk.caller, job_id, reason=None, origin=CallOrigin("test"))
    runs = await are_gone(desk, jobs, tmp_path)

    assert {kind: run.status for kind, run in runs.items()} == dict.fromkeys(
        KINDS, RunStatus.CANCELED
    )


@pytest.mark.requirement("faults.isolation")
async def test_a_job_that_uses_up_its_cpu_is_ended_and_the_next_has_its_own(
    desk: Desk, make_pool: PoolMaker
) -> None:
    async with make_pool(child_cpu_seconds=2):
        burnt = await desk.until_final(await desk.enqueue("unruly.burns", file="unused"))
        others = [await desk.until_final(await desk.enqueue("echo.process")) for _ in range(3)]

    assert burnt.status is RunStatus.DEAD
    assert burnt.error is not None
    assert (burnt.error.code, "JOBFORGE_CHILD_CPU_SECONDS" in burnt.error.message) == (
        "CHILD_DIED",
        True,
    )
    assert {run.status for run in others} == {RunStatus.SUCCEEDED}


@pytest.mark.requirement("faults.isolation")
async def test_limits_of_one_definition_hold_for_its_runs_and_for_no_others(
    desk: Desk, make_pool: PoolMaker
) -> None:
    """One warm child: each limit is a process of its own."""
    names = ["eats", "eats-freely", "eats", "burns-little", "eats-freely"]
    async with make_pool(process_children=1):
        runs = [
            await desk.until_final(await desk.enqueue(f"unruly.{name}", file="unused"))
            for name in names
        ]

    assert [run.error and (run.error.type or run.error.code) for run in runs] == [
        "MemoryError", None, "MemoryError", "CHILD_DIED", None,
    ]  # fmt: skip


@pytest.mark.requirement("faults.isolation")
async def test_no_definition_may_take_more_than_the_worker_allows(
    desk: Desk, make_pool: PoolMaker
) -> None:
    async with make_pool(child_memory_mb=768, child_cpu_seconds=1):
        eaten = await desk.until_final(await desk.enqueue("unruly.eats", file="unused"))
        burnt = await desk.until_final(await desk.enqueue("unruly.burns", file="unused"))

    assert eaten.error is not None
    assert eaten.error.type == "MemoryError"
    assert burnt.error is not None
    assert burnt.error.code == "CHILD_DIED"


FORK_UNTIL_REFUSED = """
import os, resource
from jobforge_mcp.worker.child import limit_resources
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
limit_resources({"memory_mb": 0, "cpu_seconds": 0, "processes": 20})
made = []
try:
    while len(made) < 1000:
        pid = os.fork()
        if pid == 0:
            os.read(os.pipe()[0], 1)
        made.append(pid)
except BlockingIOError:
    pass
for pid in made:
    os.kill(pid, 9)
print(len(made))
"""


@pytest.mark.requirement("faults.isolation")
def test_a_fork_bomb_ends_at_the_limit_of_processes() -> None:
    """The kernel holds root to no such limit: the child gives its rights up first, as a worker should have."""
    command = [sys.executable, "-c", FORK_UNTIL_REFUSED]
    told = subprocess.run(command, capture_output=True, check=False, timeout=60)

    assert told.returncode == 0, told.stderr
    assert int(told.stdout) <= 20
