"""``serve``, ``worker`` and ``demo``: the commands that stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from jobforge_mcp.cli.output import say
from jobforge_mcp.cli.working import WorkerOptions, run_on_loop, work
from jobforge_mcp.logs import configure_logging
from jobforge_mcp.settings import Settings, clear_token_from_environment, load_settings


def serve(
    http: Annotated[
        bool, typer.Option("--http", help="HTTP with /mcp, /sse, /health, /ready and /metrics.")
    ] = False,
    host: Annotated[str | None, typer.Option(help="Address to bind; loopback by default.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to bind.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Jobs to run at once in this process; 0 leaves them to others."),
    ] = None,
) -> None:
    """Serve MCP over stdio, or over HTTP."""
    settings = load_settings(
        host=host,
        port=port,
        workers=None if workers is None else workers > 0,
        worker_concurrency=workers or None,
    )
    configure_logging(settings.log_level, settings.log_format)
    run_on_loop(_serve_http if http else _serve_stdio, settings)


def worker(
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Jobs to run at the same time.")
    ] = None,
    tenant: Annotated[
        list[str] | None, typer.Option(help="Only jobs of this tenant; repeatable.")
    ] = None,
    type: Annotated[
        list[str] | None, typer.Option(help="Only job types like this: report.*; repeatable.")
    ] = None,
) -> None:
    """Run jobs until told to stop: SIGTERM lets them finish, a second one releases them at once."""
    work(WorkerOptions(concurrency, tuple(tenant or ()), tuple(type or ())))


def demo(
    once: Annotated[
        bool, typer.Option("--once", help="For scripts; it always ends by itself.")
    ] = False,
) -> int:
    """Show the main job end to end: a success, retries, a killed worker, a cancellation."""
    from jobforge_mcp.cli.demo import run_demo

    return run_demo()


async def _serve_http(settings: Settings) -> None:
    """Serve until a signal; the first one answers waiting calls and drains, the second gives up running jobs."""
    import anyio

    from jobforge_mcp.app import open_app
    from jobforge_mcp.server.http import serve_http
    from jobforge_mcp.server.signals import stop_on_signals
    from jobforge_mcp.worker.ending import end_for_certain

    # Callers bring their own; no handler and no child process may find ours.
    clear_token_from_environment()
    stop = anyio.Event()
    async with open_app(settings) as app, anyio.create_task_group() as tasks:
        tasks.start_soon(stop_on_signals, stop, app.pool.abandon if app.pool else None)
        await serve_http(app.parts, stop=stop, on_ready=_announce(app.gate.accepts_tokens))
        if app.pool is not None:
            await app.pool.drain(settings.drain_grace_seconds)
            end_for_certain()
        tasks.cancel_scope.cancel()


async def _serve_stdio(settings: Settings) -> None:
    """Serve until the client closes its end, or a signal comes."""
    import anyio

    from jobforge_mcp.app import open_app
    from jobforge_mcp.server.signals import stop_on_signals
    from jobforge_mcp.server.stdio import serve_stdio
    from jobforge_mcp.worker.ending import end_for_certain

    # The settings hold it; a job that waits in the queue may start as soon as the app is open, and must not find it.
    clear_token_from_environment()
    stop = anyio.Event()
    async with open_app(settings) as app, anyio.create_task_group() as tasks:
        tasks.start_soon(stop_on_signals, stop, app.pool.abandon if app.pool else None)
        await serve_stdio(app.parts, stop=stop)
        if app.pool is not None:
            await app.pool.drain(settings.drain_grace_seconds)
            end_for_certain()
        tasks.cancel_scope.cancel()


def _announce(accepts_tokens: bool) -> Callable[[str], None]:
    def announce(url: str) -> None:
        say(f"serving MCP at {url}/mcp (streamable HTTP) and {url}/sse")
        say(
            "every call needs a policy token: jobforge token issue --tenant TENANT --all-scopes"
            if accepts_tokens
            else "no call will be accepted: there are no keys to check tokens with; see jobforge token keys"
        )

    return announce
