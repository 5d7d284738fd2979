"""A server on standard streams, as a process of its own: what an MCP client starts."""

from __future__ import annotations

import anyio

from jobforge_mcp.app import open_app
from jobforge_mcp.logs import configure_logging
from jobforge_mcp.server.signals import stop_on_signals
from jobforge_mcp.server.stdio import serve_stdio
from jobforge_mcp.settings import load_settings


async def main() -> None:
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    stop = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_on_signals, stop)
        async with open_app(settings) as app:
            await serve_stdio(app.parts, stop=stop)
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main)
