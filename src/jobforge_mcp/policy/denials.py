"""Writes refusals into the audit log, without letting whoever is refused fill it.

What the database refuses is rolled back with its own audit row, and what the gate refuses never gets there. So each refused
write is written down here, in a transaction of its own: by servers, by the Python client, by commands. Ten rows a minute for
the same token, action and reason; those beyond are counted, and the next row says how many it stands for. The database counts
once more, for all processes together.

Whoever came to HTTP without a good token belongs to no tenant; such refusals are written down under a tenant of their own.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import anyio
import structlog

from jobforge_mcp.errors import CallerError, JobForgeError, PolicyDeniedError
from jobforge_mcp.router.audit import AuditRouter
from jobforge_mcp.router.limits import CODES as LIMIT_CODES
from jobforge_mcp.types import Caller, CallOrigin, JobId, TenantId

ROWS_A_MINUTE: Final = 10

NOBODYS_TENANT: Final = TenantId("jobforge:nobody")
"""Whose audit log has the calls of those who could not say who they are."""

NOBODY: Final = Caller(NOBODYS_TENANT, "nobody", frozenset())

_MOST_KEYS = 4_096
_WINDOW_SECONDS = 60.0
_ACTIONS = {"execute-job": "enqueue", "cancel-job": "cancel", "retry-job": "retry"}
_FLUSH_SECONDS = 5.0

log = structlog.stdlib.get_logger(__name__)


@dataclass(slots=True)
class _Window:
    since: float
    rows: int = 0
    unwritten: int = 0


@dataclass(frozen=True, slots=True)
class Denial:
    """What was refused, as far as it is known."""

    action: str
    reason: str
    job_type: str | None = None
    job_id: JobId | None = None
    tool: str | None = None
    trace_id: str | None = None


def is_denial(error: CallerError) -> bool:
    """Whether an error is a refusal to be written down: a limit of the input itself is only a mistake."""
    return isinstance(error, PolicyDeniedError) or error.code in LIMIT_CODES


def action_of(tool: str) -> str:
    """Return what the audit log calls a use of a tool."""
    return _ACTIONS.get(tool, tool)


class Denials:
    """Remembers refusals of one process and writes them down."""

    def __init__(self, router: AuditRouter, clock: Callable[[], float] = time.monotonic) -> None:
        self._router = router
        self._clock = clock
        self._windows: dict[tuple[str, str | None, str, str], _Window] = {}
        self._last: dict[tuple[str, str | None, str, str], tuple[Caller, Denial]] = {}

    async def record(self, caller: Caller, denial: Denial) -> None:
        """Write down that this caller was refused; trouble is logged, since the refusal stands anyhow."""
        key = (caller.tenant_id, caller.token_id, denial.action, denial.reason)
        count = self._count(key)
        if count > 0:
            self._last.pop(key, None)
            await self._write(caller, denial, count)
        else:
            self._last[key] = (caller, denial)

    @asynccontextmanager
    async def recording(
        self,
        caller: Caller,
        action: str,
        origin: CallOrigin,
        *,
        job_type: str | None = None,
        job_id: JobId | None = None,
    ) -> AsyncGenerator[None]:
        """Write down what is refused in this block; the error goes on."""
        try:
            yield
        except CallerError as error:
            if is_denial(error):
                said = Denial(action, error.code, job_type, job_id, origin.tool, origin.trace_id)
                await self.record(caller, said)
            raise

    async def record_each(
        self,
        caller: Caller,
        action: str,
        origin: CallOrigin,
        refused: Iterable[tuple[str, CallerError]],
    ) -> None:
        """Write down what of one call was refused, by the name of each job, where the rest of the call went on."""
        for job_type, error in refused:
            if is_denial(error):
                said = Denial(action, error.code, job_type, None, origin.tool, origin.trace_id)
                await self.record(caller, said)

    async def flush(self) -> None:
        """Write down what was only counted; called before the process ends."""
        with anyio.move_on_after(_FLUSH_SECONDS, shield=True):
            for key, (caller, denial) in list(self._last.items()):
                window = self._windows.get(key)
                if window is not None and window.unwritten > 0:
                    count, window.unwritten = window.unwritten, 0
                    await self._write(caller, denial, count)
        self._last.clear()

    async def _write(self, caller: Caller, denial: Denial, count: int) -> None:
        origin = CallOrigin(tool=denial.tool, trace_id=denial.trace_id)
        try:
            await self._router.record_denial(
                caller,
                denial.action,
                denial.reason,
                job_type=denial.job_type,
                job_id=denial.job_id,
                count=count,
                origin=origin,
            )
        except JobForgeError as failure:
            log.warning("denial_not_recorded", code=failure.code, tenant_id=caller.tenant_id)

    def _count(self, key: tuple[str, str | None, str, str]) -> int:
        """Say for how many refusals a row is due now; 0 is none."""
        now = self._clock()
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= _MOST_KEYS:
                oldest = next(iter(self._windows))
                del self._windows[oldest]
                self._last.pop(oldest, None)
            window = self._windows[key] = _Window(now)
        elif now - window.since >= _WINDOW_SECONDS:
            window.since, window.rows = now, 0
        window.unwritten += 1
        if window.rows >= ROWS_A_MINUTE:
            return 0
        window.rows += 1
        count, window.unwritten = window.unwritten, 0
        return count
