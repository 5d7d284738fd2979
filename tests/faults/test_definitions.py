"""Definitions that go away while runs of theirs wait: those are neither lost nor run as something else."""

from __future__ import annotations

import json

import pytest

from jobforge_mcp.types import NewJob, RunStatus
from tests.sql.acting import ECHO, Queue
from tests.sql.conftest import queue
from tests.worker.conftest import Desk, PoolMaker

__all__ = ["queue"]


def registered(queue: Queue, description: str) -> str:
    definition = {"name": "acme.report", "handler": ECHO, "description": description}
    return queue.ask("register_definition", "acme", json.dumps(definition), ECHO)[0].job_version


@pytest.mark.requirement("faults.definitions")
def test_a_run_of_a_removed_definition_waits_and_then_runs_as_it_was_accepted(queue: Queue) -> None:
    first = registered(queue, "first")
    job = queue.enqueue("acme", "acme.report", job_version=first)
    queue.ask("remove_definition", "acme", "acme.report")

    while_removed = queue.claim(10)
    cause = queue.explain(job.job_id).cause
    registered(queue, "second")
    (claimed,) = queue.claim(10)

    assert while_removed == []
    assert cause == "definition_removed"
    assert (claimed.job_id, claimed.job_version) == (job.job_id, first)
    assert json.loads(claimed.definition)["description"] == "first"


@pytest.mark.requirement("faults.definitions")
async def test_a_run_whose_code_is_gone_waits_for_a_worker_that_has_it(
    desk: Desk, make_pool: PoolMaker
) -> None:
    gone = (await desk.router.enqueue_job(desk.caller, NewJob("code.of.yesterday", "{}"))).job_id
    async with make_pool():
        for number in range(5):
            run = await desk.until_final(await desk.enqueue("echo", number=number))
            assert run.status is RunStatus.SUCCEEDED

        left = await desk.router.get_run(desk.caller, gone)
        (said,) = await desk.router.explain_run(desk.caller, gone)

    assert (left.status, left.epoch) == (RunStatus.QUEUED, 0)
    assert "no_worker" in str(said.cause)
