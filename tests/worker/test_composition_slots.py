"""Compositions and handlers do not wait for each other's slots."""

from __future__ import annotations

import psycopg
import pytest

from jobforge_mcp.types import JsonObject, RunStatus
from tests.postgres import ScratchDatabase
from tests.worker.conftest import Composer, Desk, PoolMaker, eventually, result_of

AT_ONCE: JsonObject = {"switch": {"cases": [{"when": False, "do": {"handler": "echo"}}]}}
"""A composition that ends without running anything."""


@pytest.mark.requirement("compositions.slots")
@pytest.mark.parametrize("poll_ms", [100, 60_000])
async def test_a_worker_full_of_handlers_still_drives_compositions(
    desk: Desk, make_pool: PoolMaker, compose: Composer, poll_ms: int
) -> None:
    """With a long poll only the look at the moment the worker became full finds it: nothing but handlers' ends wakes it."""
    long = [await desk.enqueue("sleep") for _ in range(4)]
    late = await compose(AT_ONCE) if poll_ms > 1_000 else None
    async with make_pool(worker_concurrency=2, poll_ms=poll_ms) as pool:
        await eventually(lambda: pool.free_slots == 0)

        job_id = late or await compose(AT_ONCE)

        assert await result_of(desk, job_id) is None
        running = [(await desk.router.get_run(desk.caller, each)).status for each in long]
        assert running.count(RunStatus.RUNNING) == 2


@pytest.mark.requirement("compositions.slots")
async def test_a_composition_goes_on_while_other_handlers_hold_all_slots_but_the_one_of_its_step(
    desk: Desk, make_pool: PoolMaker, compose: Composer
) -> None:
    steps = [{"name": f"s{n}", "handler": "echo", "input": {"number": n}} for n in range(3)]
    async with make_pool(worker_concurrency=2):
        busy = await desk.enqueue("sleep")
        await desk.until(busy, lambda run: run.status is RunStatus.RUNNING)

        assert await result_of(desk, await compose({"chain": steps})) == 2


@pytest.mark.requirement("compositions.slots")
async def test_compositions_that_get_nowhere_leave_handlers_their_slots(
    desk: Desk,
    make_pool: PoolMaker,
    compose: Composer,
    database: ScratchDatabase,
    admin: psycopg.Connection,
) -> None:
    """Fifty that were due before wait for a lock that somebody holds; handlers run all the while."""
    job_ids = [await compose(AT_ONCE, version=str(number)) for number in range(50)]
    with database.connect() as holder:
        holder.autocommit = False
        holder.execute("lock table jobforge.composition_steps in access exclusive mode")
        async with make_pool(worker_concurrency=1):
            for number in range(5):
                assert await result_of(desk, await desk.enqueue("echo", number=number)) == number
            open_now = admin.execute(
                "select count(*) from jobforge.jobs where job_type = 'acme.flow' and final_status is null"
            ).fetchone()
            holder.rollback()

            assert open_now == (50,)
            for job_id in job_ids:
                await desk.until_final(job_id)
