"""Every door of one server: memory, stdio, streamable HTTP, SSE, each in both eras of the protocol where it has both."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import anyio
from mcp.client import Client
from mcp.client.sse import sse_client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client

from jobforge_mcp.policy.gate import Credential, Door
from jobforge_mcp.server.build import build_server
from jobforge_mcp.server.http import serve_http
from tests.postgres import ScratchDatabase
from tests.server.stage import Stage

Kind: TypeAlias = Literal["memory", "stdio", "http", "sse"]
Era: TypeAlias = Literal["auto", "legacy"]
Connect: TypeAlias = Callable[[str], AbstractAsyncContextManager[Client]]
"""Opens a client that presents a token."""

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Server:
    """An HTTP server of this process."""

    url: str
    stop: anyio.Event


@asynccontextmanager
async def http_server(stage: Stage) -> AsyncGenerator[Server]:
    """Serve a stage on a free port of loopback."""
    stop, ready = anyio.Event(), anyio.Event()
    urls: list[str] = []

    def on_ready(url: str) -> None:
        urls.append(url)
        ready.set()

    async def serve() -> None:
        await serve_http(stage.parts, stop=stop, on_ready=on_ready)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        with anyio.fail_after(60):
            await ready.wait()
        try:
            yield Server(urls[0], stop)
        finally:
            stop.set()


@asynccontextmanager
async def http_client(url: str, token: str, mode: Era = "auto") -> AsyncGenerator[Client]:
    """Connect over streamable HTTP."""
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        create_mcp_http_client(headers) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


@asynccontextmanager
async def sse_door(url: str, token: str, mode: Era = "auto") -> AsyncGenerator[Client]:
    """Connect over the old transport."""
    headers = {"Authorization": f"Bearer {token}"}
    async with Client(sse_client(f"{url}/sse", headers), mode=mode) as client:
        yield client


def stdio_parameters(database: ScratchDatabase, stage: Stage, token: str) -> StdioServerParameters:
    """Say how to start the server as a process on a stage's database."""
    return StdioServerParameters(
        command=sys.executable,
        args=["-m", "tests.end_to_end.serve_stdio"],
        cwd=REPOSITORY,
        env={
            "DATABASE_URL": database.url("jobforge_api"),
            "JOBFORGE_WORKER_DATABASE_URL": database.url("jobforge_worker"),
            "JOBFORGE_TOKEN": token,
            "JOBFORGE_TOKEN_KEYS": str(stage.settings.token_keys),
            "JOBFORGE_STATE_DIR": str(stage.settings.state_dir),
            "JOBFORGE_JOBS": str(REPOSITORY / "tests/server/jobs.py"),
            "JOBFORGE_NODE": "off",
            "JOBFORGE_DRAIN_GRACE_SECONDS": "2",
            "PYTHONWARNINGS": "default",
            "PATH": os.environ["PATH"],
        },
    )


@asynccontextmanager
async def any_door(
    kind: Kind, mode: Era, stage: Stage, database: ScratchDatabase
) -> AsyncGenerator[Connect]:
    """Open the server's side of a door, and yield how to knock."""

    @asynccontextmanager
    async def memory(token: str) -> AsyncGenerator[Client]:
        server = build_server(stage.parts, Credential(token, Door.LOCAL))
        async with Client(server, mode=mode) as client:
            yield client

    @asynccontextmanager
    async def stdio(token: str) -> AsyncGenerator[Client]:
        transport = stdio_client(stdio_parameters(database, stage, token))
        async with Client(transport, mode=mode) as client:
            yield client

    match kind:
        case "memory":
            yield memory
        case "stdio":
            yield stdio
        case "http":
            async with http_server(stage) as server:
                yield lambda token: http_client(server.url, token, mode)
        case "sse":
            async with http_server(stage) as server:
                yield lambda token: sse_door(server.url, token, mode)
