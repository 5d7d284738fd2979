"""Count the sessions of the older eras: so many for one caller, so many in all, and none that nobody uses.

A session costs memory until its client ends it, and many never do. The SDK keeps the sessions, binds each to the principal
that opened it and ends the idle ones; here it is only decided who may open another one. An SSE connection counts as long as
it is open. Requests of 2026-07-28 have no session and pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from mcp.server.streamable_http import MCP_SESSION_ID_HEADER
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobforge_mcp.errors import LimitError
from jobforge_mcp.server.eras import is_modern
from jobforge_mcp.server.refusals import refusal
from jobforge_mcp.settings import Settings

PRINCIPAL_KEY = "jobforge.principal"
"""Where the door leaves in the ASGI scope who acts: tenant and subject."""

RETRY_AFTER_SECONDS = 60

Principal: TypeAlias = tuple[str, str]


@dataclass(eq=False, slots=True)
class _Session:
    principal: Principal
    used_at: float
    requests: int = 0
    """Under way at this moment; such a session is not idle."""
    id: str | None = None


class SessionBook:
    """Which sessions are open, and whose they are."""

    def __init__(
        self,
        *,
        most: int,
        most_per_caller: int,
        idle_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._most_per_caller = most_per_caller
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._open: set[_Session] = set()
        self._by_id: dict[str, _Session] = {}

    @classmethod
    def from_settings(cls, settings: Settings) -> SessionBook:
        """Make the book of a server."""
        return cls(
            most=settings.most_sessions,
            most_per_caller=settings.most_sessions_per_caller,
            idle_seconds=settings.session_idle_seconds,
        )

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def opening(self, principal: Principal) -> Generator[_Session]:
        """Count a new session for this block, and on if it was given its id by then.

        Raises:
            LimitError: ``TOO_MANY_SESSIONS``: of this caller's, or in all.
        """
        self._forget_idle()
        own = sum(session.principal == principal for session in self._open)
        if own >= self._most_per_caller or len(self._open) >= self._most:
            whose, limit = (
                ("this caller", self._most_per_caller)
                if own >= self._most_per_caller
                else ("this server", self._most)
            )
            raise LimitError(
                f"{whose} has {limit} sessions open, which is the limit",
                code="TOO_MANY_SESSIONS",
                hint="end sessions with DELETE, wait until idle ones have ended, or use protocol 2026-07-28",
                retry_after_ms=RETRY_AFTER_SECONDS * 1_000,
            )
        session = _Session(principal, self._clock())
        self._open.add(session)
        with self._used(session):
            yield session
        if session.id is None:
            self._open.discard(session)
        else:
            self._by_id[session.id] = session

    @contextmanager
    def using(self, session_id: str, principal: Principal) -> Generator[Callable[[], None]]:
        """Keep a session from being idle in this block; yields how to say that it has ended."""
        session = self._by_id.get(session_id)
        if session is None or session.principal != principal:
            # Not there for this caller: the SDK answers so.
            yield lambda: None
            return
        with self._used(session):
            yield lambda: self._forget(session)

    @contextmanager
    def _used(self, session: _Session) -> Generator[None]:
        session.requests += 1
        try:
            yield
        except BaseException:
            if session.id is None:
                self._open.discard(session)
            raise
        finally:
            session.requests -= 1
            session.used_at = self._clock()

    def _forget_idle(self) -> None:
        before = self._clock() - self._idle_seconds
        for session in [*self._open]:
            if session.requests == 0 and session.used_at <= before:
                self._forget(session)

    def _forget(self, session: _Session) -> None:
        self._open.discard(session)
        if session.id is not None:
            self._by_id.pop(session.id, None)


class CountedSessions:
    """ASGI middleware before streamable HTTP."""

    def __init__(self, app: ASGIApp, book: SessionBook) -> None:
        self._app = app
        self._book = book

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, unless it would open one session too many."""
        request = Request(scope)
        session_id = request.headers.get(MCP_SESSION_ID_HEADER)
        answer = _Answer(send)
        if is_modern(request):
            await self._app(scope, receive, send)
        elif session_id is None:
            try:
                with self._book.opening(scope[PRINCIPAL_KEY]) as session:
                    await self._app(scope, receive, answer.send)
                    session.id = answer.session_id
            except LimitError as error:
                await _too_many(error)(scope, receive, send)
        else:
            with self._book.using(session_id, scope[PRINCIPAL_KEY]) as end:
                await self._app(scope, receive, answer.send)
                if answer.status == 404 or (scope["method"] == "DELETE" and answer.is_good):
                    end()


class CountedConnections:
    """ASGI middleware before an app whose sessions last as long as their request."""

    def __init__(self, app: ASGIApp, book: SessionBook) -> None:
        self._app = app
        self._book = book

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, unless it is one too many."""
        try:
            with self._book.opening(scope[PRINCIPAL_KEY]):
                await self._app(scope, receive, send)
        except LimitError as error:
            await _too_many(error)(scope, receive, send)


class _Answer:
    """Watches how a request is answered."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 500
        self.session_id: str | None = None

    @property
    def is_good(self) -> bool:
        return self.status < 400

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.is_good:
                self.session_id = Headers(scope=message).get(MCP_SESSION_ID_HEADER)
        await self._send(message)


def _too_many(error: LimitError):
    return refusal(429, error, {"Retry-After": str(RETRY_AFTER_SECONDS)})
