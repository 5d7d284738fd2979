from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.end_to_end.doors import Connect, Era, Kind, any_door
from tests.postgres import ScratchDatabase
from tests.server.stage import Stage, open_stage

DOORS: list[tuple[Kind, Era]] = [
    ("memory", "auto"),
    ("memory", "legacy"),
    ("stdio", "auto"),  # a process for each test: its other era has a test of its own
    ("http", "auto"),
    ("http", "legacy"),
    ("sse", "auto"),
    ("sse", "legacy"),
]


@pytest.fixture(params=DOORS, ids="-".join)
def door(request: pytest.FixtureRequest) -> tuple[Kind, Era]:
    return request.param


@pytest.fixture
def kind(door: tuple[Kind, Era]) -> Kind:
    return door[0]


@pytest.fixture
def era(door: tuple[Kind, Era]) -> Era:
    return door[1]


@pytest.fixture
async def stage(
    database: ScratchDatabase, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncGenerator[Stage]:
    # Behind stdio the pool is the process's own; a second one here would take its work.
    kind = request.getfixturevalue("kind") if "kind" in request.fixturenames else None
    async with open_stage(database, tmp_path, has_pool=kind != "stdio") as opened:
        yield opened


@pytest.fixture
async def connect(
    kind: Kind, era: Era, stage: Stage, database: ScratchDatabase
) -> AsyncGenerator[Connect]:
    async with any_door(kind, era, stage, database) as door:
        yield door
