"""Compositions, run by real workers on a real database."""

from __future__ import annotations

from typing import cast

import anyio
import psycopg
import pytest

from jobforge_mcp.types import JsonObject, JsonValue, RunStatus
from tests.worker.conftest import (
    Composer,
    Desk,
    PoolMaker,
    eventually,
    result_of,
    steps_of,
)
from tests.worker.test_processes import Starter, start_worker

__all__ = ["start_worker"]


CHAIN: JsonObject = {
    "chain": [
        {"name": "one", "handler": "echo", "input": {"number": {"$ref": "/input/n"}}},
        {"name": "two", "handler": "echo.process", "input": {"number": {"$jmespath": "steps.one.result"}}},
    ],
    "result": {"both": [{"$ref": "/steps/one/result"}, {"$ref": "/steps/two/result/number"}]},
}  # fmt: skip


@pytest.mark.requirement("compositions.once")
async def test_a_chain_runs_from_end_to_end(
    desk: Desk, make_pool: PoolMaker, compose: Composer, admin: psycopg.Connection
) -> None:
    async with make_pool():
        job_id = await compose(CHAIN, {"n": 7}, trace_id="t-1")

        assert await result_of(desk, job_id) == {"both": [7, 7]}

    run = await desk.router.get_run(desk.caller, job_id)
    assert run.attempt_no == 1
    assert steps_of(admin, job_id) == {
        "one": ("echo", "succeeded"),
        "two": ("echo.process", "succeeded"),
    }
    assert admin.execute(
        "select distinct trace_id, created_by from jobforge.jobs where parent_id = %s", [job_id]
    ).fetchall() == [("t-1", f"job:{job_id}")]


async def test_a_map_gives_results_in_order(
    desk: Desk, make_pool: PoolMaker, compose: Composer
) -> None:
    each = {"handler": "echo", "input": {"number": {"$ref": "/item"}}}
    numbers = list(range(40))
    async with make_pool():
        job_id = await compose(
            {"map": {"items": {"$ref": "/input"}, "do": each, "concurrency": 7}},
            cast("JsonValue", numbers),
        )

        assert await result_of(desk, job_id) == numbers


async def test_a_switch_inside_of_a_map_inside_of_a_chain(
    desk: Desk, make_pool: PoolMaker, compose: Composer, admin: psycopg.Connection
) -> None:
    number = {"number": {"$ref": "/item"}}
    way = {
        "cases": [
            {"when": {"$jmespath": "item > `1`"}, "do": {"handler": "echo", "input": number}}
        ],
        "default": {"handler": "echo.thread", "input": number},
    }
    inner = {"items": {"$ref": "/input"}, "do": {"switch": way}}
    async with make_pool():
        job_id = await compose({"chain": [{"name": "all", "map": inner}]}, [1, 2])

        assert await result_of(desk, job_id) == [1, 2]

    assert steps_of(admin, job_id) == {
        "all/0/default": ("echo.thread", "succeeded"),
        "all/1/case-0": ("echo", "succeeded"),
    }


async def test_a_step_that_fails_fails_the_run_in_its_words(
    desk: Desk, make_pool: PoolMaker, compose: Composer
) -> None:
    chain = [{"name": "try", "handler": "raise", "input": {"name": "permanent"}}]
    async with make_pool():
        run = await desk.until_final(await compose({"chain": chain}))

    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error.code == "NEVER"
    assert "step try (raise) ended failed: this will never work" in run.error.message


@pytest.mark.parametrize(
    ("step", "code"),
    [
        ({"handler": "echo", "input": {"number": "x"}}, "INVALID_INPUT"),
        ({"handler": "nobody.knows"}, "JOB_NOT_FOUND"),
        ({"handler": "echo", "input": {"number": {"$ref": "/input/none"}}}, "MAPPING_FAILED"),
    ],
)
async def test_a_step_that_cannot_be_enqueued_has_failed(
    desk: Desk,
    make_pool: PoolMaker,
    compose: Composer,
    step: dict[str, object],
    code: str,
) -> None:
    async with make_pool():
        strict = await desk.until_final(await compose({"chain": [{"name": "a", **step}]}, {}))
        assert strict.error is not None
        assert (strict.status, strict.error.code) == (RunStatus.FAILED, code)

        goes_on = {"name": "a", "onFailure": "continue", **step}
        told = {"name": "b", "handler": "echo"}
        both = {
            "chain": [goes_on, told],
            "result": {"$ref": "/steps/a/error/code", "$default": "?"},
        }
        job_id = await compose(both, {}, version="2")
        if code != "MAPPING_FAILED":  # the mapping of the definition is wrong, not the step
            assert await result_of(desk, job_id) == code


@pytest.mark.requirement("compositions.retry")
async def test_a_retry_goes_on_where_it_failed(
    desk: Desk, make_pool: PoolMaker, compose: Composer, admin: psycopg.Connection
) -> None:
    chain = [
        {"name": "one", "handler": "echo", "input": {"number": 5}},
        {"name": "two", "handler": "echo.process", "input": {"number": 6}, "maxAttempts": 1},
    ]
    async with make_pool():
        job_id = await compose({"chain": chain})
        await result_of(desk, job_id)
        admin.execute(
            """update jobforge.jobs set final_status = 'failed', result = null, error = '{}'
            where id = %s or job_type = 'echo.process'""",
            [job_id],
        )

        await desk.router.retry_job(desk.caller, job_id)
        await result_of(desk, job_id)

    kinds = admin.execute("select job_type from jobforge.jobs order by created_at").fetchall()
    assert kinds == [("acme.flow",), ("echo",), ("echo.process",), ("echo.process",)]


@pytest.mark.requirement("compositions.cancel")
async def test_a_canceled_composition_stops_what_it_runs(
    desk: Desk, make_pool: PoolMaker, compose: Composer, admin: psycopg.Connection
) -> None:
    async with make_pool():
        job_id = await compose({"map": {"items": [1, 2, 3], "do": {"handler": "sleep"}}})
        await desk.until(job_id, lambda run: run.waiting_for == "child")

        canceled = await desk.router.cancel_job(desk.caller, job_id)

        assert canceled.status is RunStatus.CANCELED
        await eventually(
            lambda: {status for _, status in steps_of(admin, job_id).values()} == {"canceled"}
        )


async def test_a_composition_has_a_time_for_all_of_it(
    desk: Desk, make_pool: PoolMaker, compose: Composer, admin: psycopg.Connection
) -> None:
    async with make_pool():
        chain = {"chain": [{"name": "long", "handler": "sleep"}]}
        run = await desk.until_final(await compose(chain, timeout_ms=1_500))

        assert run.error is not None
        assert (run.status, run.error.code) == (RunStatus.FAILED, "TIMED_OUT")
        assert "waits for step long" in run.error.message
        await eventually(lambda: steps_of(admin, run.job_id) == {"long": ("sleep", "canceled")})


async def test_a_run_shows_how_far_it_is(
    desk: Desk, make_pool: PoolMaker, compose: Composer
) -> None:
    chain = [{"name": "a", "handler": "echo"}, {"name": "b", "handler": "sleep"}]
    async with make_pool():
        job_id = await compose({"chain": chain})

        run = await desk.until(job_id, lambda run: run.progress_done == 1)

        assert (run.progress_total, run.progress_message) == (2, "waits for step b")


async def test_a_run_keeps_the_definition_it_began_with(
    desk: Desk, make_pool: PoolMaker, compose: Composer
) -> None:
    old = {"chain": [{"name": "a", "handler": "echo", "input": {"number": 1}}]}
    new = {"chain": [{"name": "a", "handler": "echo", "input": {"number": 2}}]}
    first = await compose(old, version="1")
    second = await compose(new, version="2")

    async with make_pool():
        assert (await result_of(desk, first), await result_of(desk, second)) == (1, 2)


@pytest.mark.requirement("compositions.once")
async def test_workers_that_are_killed_neither_lose_nor_double_a_step(
    desk: Desk, start_worker: Starter, compose: Composer, admin: psycopg.Connection
) -> None:
    """Takes a dozen deaths at whatever place; each step has one run, and the result is whole."""
    each = {
        "chain": [
            {"name": "wait", "handler": "count", "input": {"number": 40}, "maxAttempts": 500},
            {"name": "say", "handler": "echo", "input": {"number": {"$ref": "/item"}}, "maxAttempts": 500},
        ]
    }  # fmt: skip
    job_ids = [
        await compose(
            {"map": {"items": {"$ref": "/input"}, "do": each, "concurrency": 3}},
            [1, 2, 3, 4, 5, 6],
            version=str(number),
            max_attempts=500,
        )
        for number in range(3)
    ]
    deaths = 0
    while deaths < 60:
        runs = [await desk.router.get_run(desk.caller, job_id) for job_id in job_ids]
        if all(run.status.is_final for run in runs):
            break
        worker = start_worker(lease_ms=1_000)
        await eventually(
            lambda: admin.execute("select from jobforge.leases").rowcount > 0 or is_idle(admin)
        )
        if deaths < 12:
            await anyio.sleep(0.05 * (deaths % 8))
        else:
            with anyio.move_on_after(20):
                for job_id in job_ids:
                    await desk.until_final(job_id)
        worker.kill()
        worker.communicate()
        deaths += 1

    for job_id in job_ids:
        assert await result_of(desk, job_id) == [1, 2, 3, 4, 5, 6]
        assert len(steps_of(admin, job_id)) == 12
    assert admin.execute("select from jobforge.jobs").rowcount == 3 * 13
    assert deaths >= 5


def is_idle(admin: psycopg.Connection) -> bool:
    """Whether every run has ended."""
    return admin.execute("select from jobforge.jobs where final_status is null").rowcount == 0
