"""The watcher over a real router: what ends a wait, and what a wait costs."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import anyio
import pytest

from jobforge_mcp import progress
from jobforge_mcp.db.notify import Listener
from jobforge_mcp.errors import NotFoundError
from jobforge_mcp.progress import RunWatcher
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.types import Caller, JobId, NewJob, Run
from tests.postgres import ScratchDatabase


@pytest.fixture
async def watcher(router: Router, database: ScratchDatabase) -> AsyncGenerator[RunWatcher]:
    async with (
        Listener(database.url("jobforge_api")) as listener,
        RunWatcher(router, listener) as opened,
    ):
        yield opened


async def enqueue(router: Router, caller: Caller) -> JobId:
    return (await router.enqueue_job(caller, NewJob("test.noop", "{}"))).job_id


async def test_a_wait_ends_when_another_process_ends_the_run(
    watcher: RunWatcher, router: Router, acme: Caller
) -> None:
    job_id = await enqueue(router, acme)
    ended: list[Run] = []

    async def wait() -> None:
        ended.append(
            await watcher.wait_for_change(acme, job_id, since_version=None, timeout_seconds=120)
        )

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(wait)
            while watcher.waiting < 5:
                await anyio.lowlevel.checkpoint()
            await router.cancel_job(acme, job_id)

    assert [run.status for run in ended] == ["canceled"] * 5
    assert watcher.waiting == 0


async def test_a_wait_whose_time_is_up_returns_the_run_as_it_stands(
    watcher: RunWatcher, router: Router, acme: Caller
) -> None:
    job_id = await enqueue(router, acme)

    with anyio.fail_after(60):
        run = await watcher.wait_for_change(acme, job_id, since_version=None, timeout_seconds=0.1)

    assert run.status == "queued"


async def test_an_unknown_run_cannot_be_waited_for(
    watcher: RunWatcher, router: Router, acme: Caller, globex: Caller
) -> None:
    job_id = await enqueue(router, acme)

    with pytest.raises(NotFoundError):
        await watcher.wait_for_change(globex, job_id, since_version=None, timeout_seconds=120)

    assert watcher.waiting == 0


async def test_a_waiter_that_is_cancelled_leaves_nothing_behind(
    watcher: RunWatcher, router: Router, acme: Caller
) -> None:
    job_id = await enqueue(router, acme)

    with anyio.move_on_after(0.1):
        await watcher.wait_for_change(acme, job_id, since_version=None, timeout_seconds=120)

    assert watcher.waiting == 0
    assert (await router.get_run(acme, job_id)).status == "queued"


async def test_when_the_process_stops_all_waits_return(
    watcher: RunWatcher, router: Router, acme: Caller
) -> None:
    job_id = await enqueue(router, acme)

    run = None
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stop_when_waited_for, watcher)
            run = await watcher.wait_for_change(
                acme, job_id, since_version=None, timeout_seconds=120
            )

    assert run is not None
    assert run.status == "queued"


async def test_a_run_that_began_here_just_now_is_not_read_when_others_are(
    watcher: RunWatcher, router: Router, acme: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is told by the pool of this process, and a claim of it announced to nobody."""
    monkeypatch.setattr(progress, "POLL_SECONDS", 600.0)
    mine, others = await enqueue(router, acme), await enqueue(router, acme)
    created = await router.get_run(acme, mine)

    with anyio.fail_after(60), watcher.watch(acme, mine, created=created) as here:
        await router.cancel_job(acme, mine)
        with watcher.watch(acme, others) as elsewhere:
            watcher.look_soon()
            read = await elsewhere.until(since_version=0, timeout_seconds=120)
        known = here._waiter.run  # pyright: ignore[reportPrivateUsage]  # what it was told
        watcher.publish(mine)
        told = await here.until(since_version=None, timeout_seconds=120)

    assert read.status == "queued"
    assert known is None
    assert told.status == "canceled"


async def stop_when_waited_for(watcher: RunWatcher) -> None:
    while watcher.waiting == 0:
        await anyio.lowlevel.checkpoint()
    watcher.stop_waiting()


async def test_without_a_listener_polling_alone_ends_a_wait(router: Router, acme: Caller) -> None:
    job_id = await enqueue(router, acme)

    run = None
    async with RunWatcher(router) as deaf, anyio.create_task_group() as tasks:
        tasks.start_soon(cancel_when_waited_for, deaf, router, acme, job_id)
        with anyio.fail_after(60):
            run = await deaf.wait_for_change(acme, job_id, since_version=None, timeout_seconds=120)

    assert run is not None
    assert run.status == "canceled"


async def cancel_when_waited_for(
    watcher: RunWatcher, router: Router, caller: Caller, job_id: JobId
) -> None:
    while watcher.waiting == 0:
        await anyio.lowlevel.checkpoint()
    await router.cancel_job(caller, job_id)
