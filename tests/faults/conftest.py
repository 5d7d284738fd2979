"""What the faults are made with: the worker's fixtures, and a server of a test's own that may be filled, stopped and restored."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from jobforge_mcp.db.migrate import migrate
from soak.server import Server
from tests.worker.conftest import Desk, desk, make_pool, registry
from tests.worker.test_processes import start_worker

__all__ = ["desk", "make_pool", "registry", "start_worker"]


def missing(what: str) -> None:
    """Skip aloud what cannot run here; where everything must run, fail."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}, and this is where it must be tried")
    pytest.skip(what)


@pytest.fixture
def folder() -> Generator[Path]:
    """A directory that PostgreSQL's own account may pass."""
    with tempfile.TemporaryDirectory(prefix="jobforge-faults-", dir="/var/tmp") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.fixture
def own_desk(desk: Desk) -> Desk:
    """A desk that waits longer: servers are stopped and started meanwhile."""
    desk.seconds = 120.0
    return desk


def migrated(server: Server) -> None:
    """Start a server and give it our schema."""
    server.start()
    server.wait_until_ready()
    migrate(server.url())
