from __future__ import annotations

from jobforge_mcp.types import RunStatus
from tests.worker.conftest import Desk, PoolMaker


async def test_a_job_runs_and_its_result_is_stored(desk: Desk, make_pool: PoolMaker) -> None:
    async with make_pool():
        job_id = await desk.enqueue("echo", number=7)

        run = await desk.until_final(job_id)

    assert (run.status, run.result, run.attempt_no) == (RunStatus.SUCCEEDED, "7", 1)
    assert job_id in desk.changed
