"""Events that handlers submit, wherever they run."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator

import psycopg
import pytest

from jobforge_mcp.types import RunStatus
from jobforge_mcp.worker.pool import WorkerPool
from tests.worker.conftest import Desk, PoolMaker

SECRET = "hunter2-hunter2"


@pytest.fixture
async def pool(make_pool: PoolMaker) -> AsyncGenerator[WorkerPool]:
    environ = dict(os.environ) | {"JOBFORGE_SECRET_API_KEY": SECRET}
    async with make_pool(environ, events_enabled=True) as made:
        yield made


@pytest.mark.requirement("events.from-runs")
@pytest.mark.parametrize("name", ["announce", "announce.process", "announce.thread"])
async def test_a_second_attempt_finds_the_events_of_the_first(
    desk: Desk, pool: WorkerPool, admin: psycopg.Connection, name: str
) -> None:
    job_id = await desk.enqueue(name, number=2)

    run = await desk.until_final(job_id)

    assert run.result is not None, run
    events = admin.execute(
        "select id, idempotency_key, subject, payload from jobforge.events order by id"
    ).fetchall()
    assert json.loads(run.result) == [f"replayed {row[0]}" for row in events]
    assert [row[1:] for row in events] == [
        (f"run:{job_id}:{n + 1}", "s", {"n": n, "key": "[secret api-key]"}) for n in range(2)
    ]


@pytest.mark.requirement("events.from-runs")
@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ("type", "INVALID_INPUT"),
        ("nan", "EVENT_INVALID"),
        ("key", "IDEMPOTENCY_CONFLICT"),
        ("sync", "HANDLER_USAGE"),
    ],
)
async def test_an_event_that_does_not_fit_fails_the_attempt_with_its_code(
    desk: Desk, pool: WorkerPool, wrong: str, code: str
) -> None:
    run = await desk.first_failure(await desk.enqueue("announce.wrong", name=wrong))

    assert run.error is not None
    assert run.error.code == code


async def test_no_handler_submits_events_where_they_are_switched_off(
    desk: Desk, make_pool: PoolMaker, admin: psycopg.Connection
) -> None:
    async with make_pool(events_enabled=False):
        run = await desk.until_final(await desk.enqueue("announce.wrong"))

    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error.code == "FEATURE_DISABLED"
    assert admin.execute("select from jobforge.events").fetchall() == []
