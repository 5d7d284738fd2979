"""Serve MCP over HTTP: ``/mcp`` (streamable, both eras), ``/sse`` with ``/messages/`` (old clients), and the health routes.

uvicorn runs inside our own event loop and handles no signals. Leaving is orderly: waiting calls answer with what is known,
streams end, then the port closes; the worker pool is not here and drains after. Answers are streams, never the SDK's JSON
mode, which would lose progress and would not notice a client that left.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import anyio
import uvicorn
from mcp.server import Server
from mcp.server.sse import SseServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from jobforge_mcp.errors import SettingsError
from jobforge_mcp.server.build import build_server
from jobforge_mcp.server.doorkeeper import Doorkeeper
from jobforge_mcp.server.exposure import check_exposure
from jobforge_mcp.server.health import health_routes
from jobforge_mcp.server.hooks import hook_routes
from jobforge_mcp.server.oauth import ResourceServer
from jobforge_mcp.server.origins import Origins
from jobforge_mcp.server.parts import ServerParts
from jobforge_mcp.server.sessions import CountedConnections, CountedSessions, SessionBook
from jobforge_mcp.server.subscriptions import Connection

LAST_ANSWERS_SECONDS = 0.5
"""How long port and old SSE streams stay open after the end was announced, for the answers of calls that waited."""

SHUTDOWN_SECONDS = 3
"""After which uvicorn cuts connections that still talk."""


@contextlib.asynccontextmanager
async def http_app(parts: ServerParts) -> AsyncGenerator[Starlette]:
    """Make the ASGI app, and run what its sessions need while it is used."""
    settings = parts.settings
    origins, resource = Origins.from_settings(settings), ResourceServer.from_settings(settings)
    server, book = build_server(parts), SessionBook.from_settings(settings)
    # Hosts and origins are checked by the doorkeeper, for every door and more strictly than by the SDK.
    manager = StreamableHTTPSessionManager(
        app=server,
        session_idle_timeout=settings.session_idle_seconds,
        max_sessions=settings.most_sessions,
    )
    messages = SseServerTransport("/messages/")

    def guarded(app: ASGIApp) -> ASGIApp:
        return Doorkeeper(app, parts, origins=origins, resource=resource)

    app = Starlette(
        routes=[
            Route("/mcp", guarded(CountedSessions(StreamableHTTPASGIApp(manager), book))),
            Route("/sse", guarded(CountedConnections(_SseDoor(parts, server, messages), book))),
            Mount("/messages", guarded(messages.handle_post_message)),
            *(resource.routes() if resource is not None else ()),
            *hook_routes(parts),
            *health_routes(parts),
        ]
    )
    async with manager.run():
        yield app


async def serve_http(
    parts: ServerParts,
    *,
    stop: anyio.Event,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve on the address of the settings until ``stop`` is set or the task is cancelled.

    Raises:
        SettingsError: The address cannot be bound, or the settings together are not safe.
    """
    settings = parts.settings
    check_exposure(settings, accepts_tokens=parts.gate.accepts_tokens)
    listening = _bind(settings.host, settings.port)
    async with http_app(parts) as app:
        uvicorn_server = _QuietServer(_config(app, settings.request_seconds))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_run, uvicorn_server, listening)
            try:
                await uvicorn_server.is_listening.wait()
                if on_ready is not None:
                    on_ready(_url(settings.host, listening))
                await stop.wait()
            finally:
                with anyio.CancelScope(shield=True):
                    await _let_waiting_calls_answer(parts)
                uvicorn_server.should_exit = True


class _SseDoor:
    """The old transport: one connection, one pipe, one run of the server; nothing of the app is started for it."""

    def __init__(
        self, parts: ServerParts, server: Server[Connection], transport: SseServerTransport
    ) -> None:
        self._parts = parts
        self._server = server
        self._transport = transport

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "GET":
            await Response(status_code=405, headers={"Allow": "GET"})(scope, receive, send)
            return
        async with self._transport.connect_sse(scope, receive, send) as (incoming, outgoing):  # noqa: SIM117  # see below
            # Not one statement: when the inner one is cancelled, the response of the outer still ends as a whole one.
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._end_with_the_process, tasks.cancel_scope)
                await self._server.run(
                    incoming, outgoing, self._server.create_initialization_options()
                )
                tasks.cancel_scope.cancel()

    async def _end_with_the_process(self, scope: anyio.CancelScope) -> None:
        await self._parts.watcher.stopped()
        await anyio.sleep(LAST_ANSWERS_SECONDS)
        scope.cancel()


class _QuietServer(uvicorn.Server):
    """uvicorn without hands on the process's signals: those belong to whoever started the loop."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_listening = anyio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


async def _let_waiting_calls_answer(parts: ServerParts) -> None:
    """End all waits, and keep the port open a moment where there were any: an answer makes clients ask once more."""
    was_waited = parts.watcher.waiting > 0
    parts.watcher.stop_waiting()
    if was_waited:
        await anyio.sleep(LAST_ANSWERS_SECONDS)


async def _run(server: uvicorn.Server, listening: socket.socket) -> None:
    # Shielded, so that a cancelled app still ends its connections in order; bounded by SHUTDOWN_SECONDS.
    with anyio.CancelScope(shield=True):
        await server.serve(sockets=[listening])


def _config(app: ASGIApp, request_seconds: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_protocol(request_seconds),
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


def _protocol(request_seconds: float) -> Any:
    try:
        from jobforge_mcp.server.slow_clients import protocol_with_patience
    except ImportError:  # no wheel of httptools here: h11 bounds the headers, and nothing the time
        return "auto"
    return protocol_with_patience(request_seconds)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2_048)
    except OSError as error:
        raise SettingsError(
            f"{host} port {port} cannot be bound: {error.strerror}",
            hint="choose another with --port, or 0 for a free one",
        ) from None


def _url(host: str, listening: socket.socket) -> str:
    port = listening.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
