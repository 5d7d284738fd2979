from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from mcp.client import Client

from jobforge_mcp.server.build import build_server
from tests.postgres import ScratchDatabase
from tests.server.stage import Stage, open_stage


@pytest.fixture
async def stage(database: ScratchDatabase, tmp_path: Path) -> AsyncGenerator[Stage]:
    async with open_stage(database, tmp_path) as opened:
        yield opened


@pytest.fixture
async def client(stage: Stage) -> AsyncGenerator[Client]:
    """An agent of tenant acme with every scope, in memory."""
    async with Client(build_server(stage.parts, stage.credential())) as opened:
        yield opened
