"""Throws away what was kept long enough, in small batches, now and then: runs, keys, events and artifacts.

Any number of processes may do it; each batch is one statement, which passes over what others hold. What is kept how long
is decided in the database.
"""

from __future__ import annotations

import random

import anyio
import structlog

from jobforge_mcp.errors import JobForgeError
from jobforge_mcp.evidence.purging import purge_artifacts
from jobforge_mcp.evidence.stores import ContentStore
from jobforge_mcp.router.evidence import ArtifactRouter
from jobforge_mcp.router.maintenance import MaintenanceRouter

ROUND_SECONDS = 60.0
BATCH = 1_000
PAUSE_SECONDS = 0.2
"""Between two batches: a purge never takes more than a part of the database's time."""

_log = structlog.stdlib.get_logger(__name__)


class Purger:
    """Keeps one database tidy."""

    def __init__(
        self, router: MaintenanceRouter, artifacts: ArtifactRouter, store: ContentStore
    ) -> None:
        """Act through these routers; ``store`` holds the content of large artifacts."""
        self._router = router
        self._artifacts = artifacts
        self._store = store

    async def run(self) -> None:
        """Purge about once a minute, until cancelled; trouble is logged and waited out."""
        while True:
            await anyio.sleep(ROUND_SECONDS * random.uniform(0.5, 1.5))
            try:
                await self.run_once()
            except JobForgeError as error:
                _log.warning("purge_failed", code=error.code, reason=error.message)
            except Exception:  # noqa: BLE001  # the next round may do better, and serving goes on
                _log.exception("purge_failed")

    async def run_once(self) -> int:
        """Purge until nothing is left that was kept long enough; return how many rows and objects went."""
        gone = 0
        while done := (
            await self._router.purge_finished(BATCH)
            + await self._router.purge_events(BATCH)
            + await purge_artifacts(self._artifacts, self._store)
        ):
            gone += done
            await anyio.sleep(PAUSE_SECONDS)
        if gone:
            _log.info("purged", rows=gone)
        return gone
