"""Tell clients when a run they subscribed to changed, in the manner of their protocol's era.

Handshake clients subscribe to one resource at a time and hear of it on their session; clients of 2026-07-28 hold one
``subscriptions/listen`` request open. Either way a subscription is a place at the watcher, made only for runs that the
caller may read, and ends with the connection, with the caller's token, or when the run is final.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import anyio
import anyio.abc
import structlog

from jobforge_mcp.errors import NotFoundError
from jobforge_mcp.server.parts import ServerParts
from jobforge_mcp.server.resources import RunAddress
from jobforge_mcp.types import Caller

LOOK_SECONDS = 60.0
"""After which a subscription looks whether its caller may and can still hear it."""

MOST_SUBSCRIPTIONS = 100
"""Per connection, and per listen request."""

log = structlog.stdlib.get_logger(__name__)

Tell = Callable[[], Awaitable[None]]
StillThere = Callable[[], Awaitable[bool]]


async def follow(
    parts: ServerParts,
    caller: Caller,
    address: RunAddress,
    tell: Tell,
    is_still_there: StillThere | None = None,
) -> None:
    """Call ``tell`` on every change of a run until it is final."""
    try:
        run = await parts.router.get_run(caller, address.job_id)
        while not run.status.is_final and not parts.watcher.is_stopping:
            seen = run.version
            run = await parts.watcher.wait_for_change(
                caller, address.job_id, since_version=seen, timeout_seconds=LOOK_SECONDS
            )
            if run.version > seen:
                await tell()
            elif not _may_still_hear(caller) or not (
                is_still_there is None or await is_still_there()
            ):
                return
    except NotFoundError:
        return


@dataclass(slots=True)
class Connection:
    """What one connection subscribed to; lives in the SDK's lifespan, which is one per pipe and one per HTTP server."""

    tasks: anyio.abc.TaskGroup
    subscriptions: dict[tuple[str, str], anyio.CancelScope] = field(
        default_factory=dict[tuple[str, str], anyio.CancelScope]
    )
    """By session and address."""

    def add(self, session: str, uri: str, work: Callable[[], Awaitable[None]]) -> bool:
        """Run ``work`` until it ends, is removed, or the connection ends; ``False`` when there are too many."""
        self.remove(session, uri)
        if sum(known == session for known, _ in self.subscriptions) >= MOST_SUBSCRIPTIONS:
            return False
        scope = self.subscriptions[session, uri] = anyio.CancelScope()
        self.tasks.start_soon(self._run, session, uri, scope, work)
        return True

    def remove(self, session: str, uri: str) -> None:
        """End one subscription; one that is not there is no error."""
        scope = self.subscriptions.pop((session, uri), None)
        if scope is not None:
            scope.cancel()

    async def _run(
        self, session: str, uri: str, scope: anyio.CancelScope, work: Callable[[], Awaitable[None]]
    ) -> None:
        with scope:
            try:
                await work()
            except Exception:  # one subscription that fails must not end its connection
                log.exception("subscription_failed", uri=uri)
        if self.subscriptions.get((session, uri)) is scope:
            del self.subscriptions[session, uri]


@asynccontextmanager
async def open_connection() -> AsyncGenerator[Connection]:
    """Hold the subscriptions of one connection."""
    async with anyio.create_task_group() as tasks:
        yield Connection(tasks)
        tasks.cancel_scope.cancel()


def _may_still_hear(caller: Caller) -> bool:
    return caller.expires_at is None or datetime.now(UTC) < caller.expires_at
