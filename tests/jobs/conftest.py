"""The shipped jobs on a real worker: ``run("demo.flaky", failures=1)`` enqueues, waits and returns the run."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeAlias

import pytest

from jobforge_mcp.definitions.loader import load_jobs
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.resources import job_definitions_folder
from jobforge_mcp.types import Run
from tests.worker.conftest import Desk, PoolMaker, desk, make_pool

__all__ = ["desk", "make_pool"]

Runner: TypeAlias = Callable[..., Awaitable[Run]]


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry(load_jobs([job_definitions_folder()]))


@pytest.fixture
async def run(make_pool: PoolMaker, desk: Desk) -> AsyncGenerator[Runner]:
    """Run a job to its end."""

    async def until_final(name: str, /, **input: Any) -> Run:
        return await desk.until_final(await desk.enqueue(name, **input))

    async with make_pool():
        yield until_final


def result_of(run: Run) -> dict[str, Any]:
    assert run.result is not None, run
    return json.loads(run.result)
