"""Handlers in child processes: what they may see, and that they can really be ended."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from jobforge_mcp.types import CallOrigin, RunStatus
from jobforge_mcp.worker.pool import WorkerPool
from tests.worker.conftest import Desk, PoolMaker, eventually


@pytest.fixture
async def pool(make_pool: PoolMaker) -> AsyncGenerator[WorkerPool]:
    async with make_pool() as made:
        yield made


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.requirement("worker.child-knows-nothing")
async def test_a_child_is_used_again_and_knows_no_credentials(
    desk: Desk, make_pool: PoolMaker
) -> None:
    environ = {"PATH": os.environ["PATH"]} | {
        "DATABASE_URL": "postgresql://secret",
        "JOBFORGE_TOKEN": "secret",
        "JOBFORGE_SECRET_API_KEY": "secret",
        "PGPASSWORD": "secret",
        "JOBFORGE_HTTP_ALLOW_HOSTS": "api.example.com",
    }
    async with make_pool(environ):
        first = await desk.until_final(await desk.enqueue("echo.process", number=1))
        second = await desk.until_final(await desk.enqueue("echo.process", number=2))

    assert first.result is not None
    assert second.result is not None
    one, two = json.loads(first.result), json.loads(second.result)
    assert one["pid"] == two["pid"] != os.getpid()
    kept = [n for n in one["environment"] if n.startswith(("DATABASE", "JOBFORGE", "PG"))]
    assert kept == ["JOBFORGE_HTTP_ALLOW_HOSTS"]


async def test_progress_logs_and_output_of_a_child_reach_the_run(
    desk: Desk, pool: WorkerPool, capfd: pytest.CaptureFixture[str]
) -> None:
    job_id = await desk.enqueue("echo.process", number=5)

    run = await desk.until_final(job_id)

    assert (run.progress_done, run.progress_total, run.progress_message) == (5, 10, "half")
    assert sorted(await desk.logs(job_id)) == [
        ("info", "printed by the handler"),
        ("warning", "in a process"),
    ]
    assert "printed by the handler" not in capfd.readouterr().out


@pytest.mark.requirement("worker.child-dies-alone")
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("kill", "signal SIGKILL"),
        ("segfault", "signal SIGSEGV"),
        ("exit", "code 7"),
        ("garbage", "no message of ours"),
    ],
)
async def test_a_child_that_dies_fails_its_attempt_alone(
    desk: Desk, pool: WorkerPool, how: str, said: str
) -> None:
    run = await desk.until_final(await desk.enqueue("die.process", name=how))
    neighbour = await desk.until_final(await desk.enqueue("echo.process"))

    assert run.status is RunStatus.DEAD
    assert run.error is not None
    assert run.error.code == "CHILD_DIED"
    assert said in run.error.message
    assert neighbour.status is RunStatus.SUCCEEDED


async def test_a_child_above_its_memory_limit_fails_its_attempt(
    desk: Desk, make_pool: PoolMaker
) -> None:
    async with make_pool(child_memory_mb=1_024):
        run = await desk.until_final(await desk.enqueue("eat.process"))

    assert run.status is RunStatus.DEAD
    assert run.error is not None
    assert run.error.type == "MemoryError"


@pytest.mark.requirement("worker.stops-for-real")
async def test_cancel_kills_a_stubborn_child_and_its_children(
    desk: Desk, make_pool: PoolMaker
) -> None:
    async with make_pool(lease_ms=4_000):
        job_id = await desk.enqueue("stubborn.process")
        run = await desk.until(job_id, lambda run: run.progress_message is not None)
        assert run.progress_message is not None
        pids = [int(pid) for pid in run.progress_message.split()]
        assert all(is_alive(pid) for pid in pids)

        await desk.router.cancel_job(desk.caller, job_id, reason=None, origin=CallOrigin("test"))
        run = await desk.until_final(job_id)
        await eventually(lambda: not any(is_alive(pid) for pid in pids))

    assert run.status is RunStatus.CANCELED


@pytest.mark.requirement("worker.stops-for-real")
async def test_a_timeout_kills_a_stubborn_child(
    desk: Desk, pool: WorkerPool, tmp_path: Path
) -> None:
    noted = tmp_path / "pid"
    await desk.until_final(
        await desk.enqueue("echo.process")
    )  # a child is warm: its start takes time as well

    run = await desk.until_final(await desk.enqueue("stubborn.briefly", name=str(noted)))

    assert run.status is RunStatus.DEAD
    assert run.error is not None
    assert run.error.code == "TIMED_OUT"
    assert not is_alive(int(noted.read_text()))


async def test_a_child_that_is_ended_may_clean_up(
    desk: Desk, make_pool: PoolMaker, tmp_path: Path
) -> None:
    noted = tmp_path / "noted"
    async with make_pool(kill_grace_seconds=30):
        await desk.until_final(await desk.enqueue("echo.process"))

        run = await desk.until_final(await desk.enqueue("clean-up.process", name=str(noted)))

    assert run.error is not None
    assert run.error.code == "TIMED_OUT"
    assert noted.read_text() == "cleaned up"


async def test_a_child_that_watches_ends_by_itself_when_canceled(
    desk: Desk, make_pool: PoolMaker, tmp_path: Path
) -> None:
    noted = tmp_path / "noted"
    async with make_pool(lease_ms=1_500, kill_grace_seconds=30) as pool:
        job_id = await desk.enqueue("obey.process", name=str(noted))
        await desk.until(job_id, lambda run: run.progress_message is not None)
        pids = pool.child_pids

        await desk.router.cancel_job(desk.caller, job_id, reason=None, origin=CallOrigin("test"))
        run = await desk.until_final(job_id)

        assert run.status is RunStatus.CANCELED
        assert noted.read_text() == "ended by itself"
        assert pool.child_pids == pids


async def test_no_child_outlives_its_pool(desk: Desk, make_pool: PoolMaker) -> None:
    async with make_pool() as pool:
        await desk.until_final(await desk.enqueue("echo.process"))
        pids = pool.child_pids
        assert all(is_alive(pid) for pid in pids)

    assert pids
    assert not any(is_alive(pid) for pid in pids)
