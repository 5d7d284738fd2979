"""The demo jobs do what their descriptions promise."""

from __future__ import annotations

import time

import pytest

from jobforge_mcp.types import RunStatus
from tests.jobs.conftest import Runner, result_of
from tests.worker.conftest import Desk, PoolMaker


@pytest.mark.requirement("jobs.demo")
async def test_a_countdown_takes_its_time_in_steps_with_progress(run: Runner) -> None:
    started = time.monotonic()

    counted = await run("demo.countdown", seconds=0.3, steps=3)

    assert time.monotonic() - started >= 0.3
    assert counted.status is RunStatus.SUCCEEDED
    assert result_of(counted) == {"steps": 3, "message": "liftoff"}
    assert (counted.progress_done, counted.progress_total) == (3, 3)
    assert counted.progress_message == "liftoff"


@pytest.mark.requirement("jobs.demo")
async def test_a_countdown_is_canceled_between_two_steps(make_pool: PoolMaker, desk: Desk) -> None:
    async with make_pool():
        job_id = await desk.enqueue("demo.countdown", seconds=600)
        await desk.until(job_id, lambda run: run.progress_message is not None)
        await desk.router.cancel_job(desk.caller, job_id, reason="enough")

        run = await desk.until_final(job_id)

    assert run.status is RunStatus.CANCELED


@pytest.mark.requirement("jobs.demo")
async def test_a_flaky_run_fails_as_often_as_it_is_told(run: Runner, desk: Desk) -> None:
    flaky = await run("demo.flaky", failures=2)

    assert flaky.status is RunStatus.SUCCEEDED
    assert result_of(flaky) == {"attempts": 3, "message": "succeeded on attempt 3"}
    attempts = await desk.router.list_attempts(desk.caller, flaky.job_id)
    assert [attempt.outcome for attempt in attempts] == ["failed", "failed"]
    assert {attempt.error.code for attempt in attempts if attempt.error} == {"DEMO_FAILURE"}


@pytest.mark.requirement("jobs.demo")
async def test_a_stubborn_run_is_ended_by_the_kill_of_its_process(
    make_pool: PoolMaker, desk: Desk
) -> None:
    async with make_pool(kill_grace_seconds=0.2):
        job_id = await desk.enqueue("demo.stubborn", seconds=600)
        await desk.until(job_id, lambda run: run.status is RunStatus.RUNNING)
        await desk.router.cancel_job(desk.caller, job_id)

        run = await desk.until_final(job_id)

    assert run.status is RunStatus.CANCELED


@pytest.mark.requirement("jobs.demo")
async def test_a_stubborn_run_ends_by_itself_when_nobody_stops_it(run: Runner) -> None:
    stubborn = await run("demo.stubborn", seconds=0.1)

    assert stubborn.status is RunStatus.SUCCEEDED
    assert result_of(stubborn)["seconds"] == 0.1


@pytest.mark.requirement("definitions.declarative")
async def test_a_launch_is_a_countdown_with_fixed_input(
    run: Runner,
) -> None:  # takes the three seconds that its definition fixes
    launched = await run("demo.launch")

    assert result_of(launched) == {"steps": 3, "message": "liftoff"}
