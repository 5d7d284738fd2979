"""Writes refusals into the audit log, without letting whoever is refused fill it.

What the database refuses is rolled back with its own audit row, and what the gate refuses never gets there. So each refused
write is written down here, in a transaction of its own. Ten rows a minute for the same token, action and reason; those
beyond are counted, and the next row says how many it stands for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from jobforge_mcp.errors import CallerError, JobForgeError
from jobforge_mcp.router.audit import AuditRouter
from jobforge_mcp.types import Caller, CallOrigin

ROWS_A_MINUTE = 10

_MOST_KEYS = 4_096
_ACTIONS = {"execute-job": "enqueue", "cancel-job": "cancel", "retry-job": "retry"}

log = structlog.stdlib.get_logger(__name__)


@dataclass(slots=True)
class _Window:
    since: float
    rows: int = 0
    unwritten: int = 0


class Denials:
    """Remembers refusals of one process and writes them down."""

    def __init__(self, router: AuditRouter, clock: Callable[[], float] = time.monotonic) -> None:
        self._router = router
        self._clock = clock
        self._windows: dict[tuple[str, str | None, str, str], _Window] = {}

    async def record(self, caller: Caller, tool: str, error: CallerError, trace_id: str) -> None:
        """Write down that this caller's write was refused; trouble is logged, since the refusal stands anyhow."""
        action = _ACTIONS.get(tool, tool)
        count = self._count((caller.tenant_id, caller.token_id, action, error.code))
        if count == 0:
            return
        origin = CallOrigin(tool=tool, trace_id=trace_id)
        try:
            await self._router.record_denial(caller, action, error.code, count=count, origin=origin)
        except JobForgeError as failure:
            log.warning("denial_not_recorded", code=failure.code, tenant_id=caller.tenant_id)

    def _count(self, key: tuple[str, str | None, str, str]) -> int:
        """Say for how many refusals a row is due now; 0 is none."""
        now = self._clock()
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= _MOST_KEYS:
                del self._windows[next(iter(self._windows))]
            window = self._windows[key] = _Window(now)
        elif now - window.since >= 60:
            window.since, window.rows = now, 0
        window.unwritten += 1
        if window.rows >= ROWS_A_MINUTE:
            return 0
        window.rows += 1
        count, window.unwritten = window.unwritten, 0
        return count
