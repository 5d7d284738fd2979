"""A database put back to an earlier moment while workers live: no claim of the lost time is believed, and all goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from jobforge_mcp.db.pool import Database
from jobforge_mcp.embedded.binaries import find_binaries
from jobforge_mcp.embedded.cluster import SUPERUSER
from jobforge_mcp.errors import DatabaseUnavailableError
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.router.leases import WorkerRouter
from jobforge_mcp.types import (
    Caller,
    Completion,
    NewJob,
    Report,
    RunStatus,
    SettleOutcome,
    WorkerId,
)
from soak.server import Server
from tests.faults.conftest import migrated
from tests.worker.conftest import HANDLERS, Desk
from tests.worker.test_processes import LEASE_MS, PROGRAM

BEFORE, AFTER = WorkerId("before"), WorkerId("after")


def restore(server: Server, folder: Path, copy: Path) -> None:
    """Stop the server at once, put the copy in the place of its data, and start it."""
    server.stop()
    owner = (folder / "data").stat()
    shutil.rmtree(folder / "data")
    shutil.copytree(copy, folder / "data", symlinks=True)
    for path in [folder / "data", *(folder / "data").rglob("*")]:
        os.chown(path, owner.st_uid, owner.st_gid)
    server.start()
    server.wait_until_ready()


def take_copy(server: Server, folder: Path) -> Path:
    """Copy the running server with its own program for that."""
    copy = folder / "copy"
    where = ["-h", "127.0.0.1", "-p", str(server.port), "-U", SUPERUSER]
    command = [str(find_binaries({}) / "pg_basebackup"), "-D", str(copy), *where, "-c", "fast", "-X", "stream"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return copy


def start_live(server: Server) -> subprocess.Popen[bytes]:
    """Start a worker process that lives through all of it."""
    command = [sys.executable, str(PROGRAM), str(HANDLERS), server.url("jobforge_worker")]
    environ = os.environ | {"JOBFORGE_LEASE_MS": str(LEASE_MS), "JOBFORGE_POLL_MS": "100"}
    unheard = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=unheard, stdout=unheard, stderr=unheard, env=environ)


@pytest.mark.timeout(300)
@pytest.mark.requirement("faults.restore")
async def test_after_a_restore_no_claim_of_the_lost_time_is_believed(
    folder: Path, acme: Caller, desk: Desk
) -> None:
    server = Server(folder)
    rules = folder / "data" / "pg_hba.conf"
    rules.write_text(f"host replication all 127.0.0.1/32 trust\n{rules.read_text()}")
    migrated(server)
    live: subprocess.Popen[bytes] | None = None
    try:
        async with (
            Database(server.url("jobforge_api"), role="jobforge_api") as api,
            Database(server.url("jobforge_worker"), role="jobforge_worker") as work,
        ):
            router, worker = Router(api), WorkerRouter(work)
            held = (await router.enqueue_job(acme, NewJob("demo.echo", "{}"))).job_id
            (of_held,) = await worker.claim_jobs(BEFORE, ["demo.echo"], 1)
            open_id = (await router.enqueue_job(acme, NewJob("demo.echo", "{}"))).job_id
            copy = take_copy(server, folder)

            # The time that will be lost: what was open is claimed and settled, and more is enqueued.
            (of_open,) = await worker.claim_jobs(BEFORE, ["demo.echo"], 1)
            await worker.complete_jobs([Completion(of_open.fence, '"lost"')])
            lost = (await router.enqueue_job(acme, NewJob("demo.echo", "{}"))).job_id
            (of_lost,) = await worker.claim_jobs(BEFORE, ["demo.echo"], 1)
            live = start_live(server)
            served = Desk(router, desk.registry, acme, seconds=120)
            await served.until_final(await served.enqueue("echo", number=1))

            restore(server, folder, copy)

            first = await served.until_final(await _again(served))
            (again,) = await worker.claim_jobs(AFTER, ["demo.echo"], 1)
            stale = await worker.complete_jobs(
                [Completion(of_open.fence, '"stale"'), Completion(of_lost.fence, '"stale"')]
            )
            (late,) = await worker.report_progress([Report(of_open.fence, 1.0)])
            (mine,) = await worker.complete_jobs([Completion(of_held.fence, '"kept"')])
            (new,) = await worker.complete_jobs([Completion(again.fence, '"again"')])
            runs = {name: await router.get_run(acme, i) for name, i in [("held", held), ("open", open_id)]}  # fmt: skip
    finally:
        if live is not None:
            live.kill()
            live.wait()
        server.stop()

    assert first.status is RunStatus.SUCCEEDED  # the live worker found its way back
    assert (again.fence.job_id, again.fence.epoch) == (open_id, of_open.fence.epoch)
    assert again.fence.lease_id != of_open.fence.lease_id  # epochs are given anew, leases never
    assert {settled.outcome for settled in stale} == {SettleOutcome.STALE}
    assert not late.is_accepted
    assert (mine.outcome, new.outcome) == (SettleOutcome.ACCEPTED, SettleOutcome.ACCEPTED)
    assert {name: run.result for name, run in runs.items()} == {"held": '"kept"', "open": '"again"'}
    assert lost not in {held, open_id}


async def _again(desk: Desk):
    """Enqueue once the pool has found the server again."""
    with anyio.fail_after(120):
        while True:
            try:
                return await desk.enqueue("echo", number=2)
            except DatabaseUnavailableError:
                await anyio.sleep(0.1)
