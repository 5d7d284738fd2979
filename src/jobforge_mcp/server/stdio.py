"""Serve MCP over this process's standard streams, and end when told to.

The SDK reads standard input on a thread that no cancellation reaches, so a server that is told to stop would hang until
the client closes the pipe. Here input is read when it is there, without a thread; so stopping is an ordinary cancellation
and everything around it, the worker pool above all, drains as usual. While serving, descriptor 0 is the null device and
descriptor 1 is standard error: what a handler prints or reads cannot touch the protocol.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import contextmanager
from typing import cast

import anyio
from mcp.server.stdio import stdio_server

from jobforge_mcp.policy.gate import Credential, Door
from jobforge_mcp.server.build import build_server
from jobforge_mcp.server.parts import ServerParts
from jobforge_mcp.settings import clear_token_from_environment

LAST_ANSWERS_SECONDS = 1.0
"""How long calls that waited may take to answer after the end was announced."""

FLUSH_SECONDS = 0.05
"""How long their answers may take from here to the pipe."""

_CHUNK = 65_536


async def serve_stdio(parts: ServerParts, *, stop: anyio.Event | None = None) -> None:
    """Serve until the client closes its end, or ``stop`` is set.

    The token of the settings says who acts; it leaves the environment, so that no handler inherits it.
    """
    token = parts.settings.token
    credential = Credential(token.get_secret_value() if token is not None else None, Door.LOCAL)
    clear_token_from_environment()
    server = build_server(parts, credential)
    with _own_input() as descriptor:
        lines = _Lines(descriptor)
        async with (
            anyio.create_task_group() as tasks,
            stdio_server(stdin=cast("anyio.AsyncFile[str]", lines)) as (incoming, outgoing),
        ):
            if stop is not None:
                tasks.start_soon(_end_on, stop, parts, lines)
            await server.run(incoming, outgoing, server.create_initialization_options())
            tasks.cancel_scope.cancel()


async def _end_on(stop: anyio.Event, parts: ServerParts, lines: _Lines) -> None:
    """Let waiting calls answer, then end the input: the rest follows as if the client had closed it."""
    await stop.wait()
    parts.watcher.stop_waiting()
    with anyio.move_on_after(LAST_ANSWERS_SECONDS):
        await parts.watcher.wait_until_nobody_waits()
        await anyio.sleep(FLUSH_SECONDS)
    lines.close()


class _Lines:
    """Lines of a descriptor, read when they are there; what :func:`stdio_server` iterates over."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._closed = anyio.Event()
        self._scope: anyio.CancelScope | None = None

    def close(self) -> None:
        """End the iteration."""
        self._closed.set()
        if self._scope is not None:
            self._scope.cancel()

    async def __aiter__(self) -> AsyncIterator[str]:
        rest = b""
        while chunk := await self._read():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line.strip():
                    yield line.decode("utf-8", "replace")
        if rest.strip():
            yield rest.decode("utf-8", "replace")

    async def _read(self) -> bytes:
        if self._closed.is_set():
            return b""
        with anyio.CancelScope() as self._scope:
            try:
                await anyio.wait_readable(self._descriptor)
            except PermissionError:  # a file is always ready, and the selector refuses to say so
                await anyio.lowlevel.checkpoint()
            return os.read(self._descriptor, _CHUNK)
        return b""


@contextmanager
def _own_input():
    """Keep the real standard input to ourselves, and leave the null device in its place."""
    private = os.dup(sys.stdin.fileno())
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        os.dup2(null, 0)
        yield private
    finally:
        os.dup2(private, 0)
        os.close(null)
        os.close(private)
