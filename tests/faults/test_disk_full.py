"""A disk without room: what was acknowledged stays, what is refused may be tried again, and work goes on when there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Generator
from pathlib import Path

import anyio
import pytest

from jobforge_mcp.db.pool import Database
from jobforge_mcp.errors import DatabaseUnavailableError
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.router.leases import WorkerRouter
from jobforge_mcp.types import Caller, Completion, JobId, NewJob, RunStatus, WorkerId
from soak.server import Server
from tests.faults.conftest import migrated, missing

MEGABYTES = 220


@pytest.fixture
def small(folder: Path) -> Generator[Path]:
    """A file system in memory of its own."""
    mounted = folder / "small"
    mounted.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={MEGABYTES}m,mode=0711", "tmpfs", str(mounted)]
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", *options], capture_output=True, check=False).returncode
    ):
        missing("only root may mount a small file system to fill")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=False)


@pytest.mark.requirement("faults.disk-full")
async def test_a_full_disk_refuses_what_may_be_tried_again_and_loses_nothing(
    small: Path, acme: Caller
) -> None:
    server = Server(small)
    migrated(server)
    payload = '{"text": "' + os.urandom(100_000).hex() + '"}'
    acknowledged: list[JobId] = []
    refused: DatabaseUnavailableError | None = None
    try:
        async with (
            Database(server.url("jobforge_api"), role="jobforge_api") as api,
            Database(server.url("jobforge_worker"), role="jobforge_worker") as work,
        ):
            router, worker = Router(api), WorkerRouter(work)
            filler = small / "filler"
            room = os.statvfs(small)
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - (6 << 20))

            while refused is None:
                try:
                    acknowledged.append((await router.enqueue_job(acme, NewJob("demo.echo", payload))).job_id)  # fmt: skip
                except DatabaseUnavailableError as error:
                    refused = error
                assert len(acknowledged) < 1_000
            read = await router.get_run(acme, acknowledged[-1])
            filler.unlink()

            after: JobId | None = None
            with anyio.fail_after(120):
                while after is None:
                    try:
                        after = (await router.enqueue_job(acme, NewJob("demo.echo", "{}"))).job_id
                    except DatabaseUnavailableError:
                        await anyio.sleep(0.1)
            done: set[JobId] = set()
            while claimed := await worker.claim_jobs(WorkerId("w"), ["demo.echo"], 50):
                await worker.complete_jobs([Completion(job.fence, "null") for job in claimed])
                done |= {job.fence.job_id for job in claimed}
    finally:
        server.stop()

    assert refused.retryable
    assert read.status is RunStatus.QUEUED
    assert {*acknowledged, after} <= done
