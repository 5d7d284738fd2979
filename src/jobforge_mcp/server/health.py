"""``/health``, ``/ready`` and ``/metrics``: whether the process lives, whether it can do its work, and its figures.

They need no token, so they say no more than names and yes or no.
"""

from __future__ import annotations

from importlib.metadata import version

import anyio
import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from jobforge_mcp.server.metrics import CONTENT_TYPE
from jobforge_mcp.server.parts import Check, ServerParts

CHECK_SECONDS = 3.0

log = structlog.stdlib.get_logger(__name__)


def health_routes(parts: ServerParts) -> list[Route]:
    """Return the three routes."""

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok", "version": version("jobforge-mcp")})

    async def ready(_: Request) -> Response:
        answers = await ask(parts)
        is_ready = all(answer == "ok" for answer in answers.values())
        body = {"status": "ready" if is_ready else "not ready", "checks": answers}
        return JSONResponse(body, status_code=200 if is_ready else 503)

    async def metrics(_: Request) -> Response:
        if parts.pool is not None:
            parts.metrics.free_slots.set(parts.pool.free_slots)
        return Response(parts.metrics.render(), media_type=CONTENT_TYPE)

    return [
        Route("/health", health, methods=["GET"]),
        Route("/ready", ready, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
    ]


async def ask(parts: ServerParts) -> dict[str, str]:
    """Run every check at the same time; ``ok``, ``failed`` or ``timeout`` each."""
    answers = dict.fromkeys(parts.checks, "timeout")

    async def run(name: str, check: Check) -> None:
        try:
            with anyio.move_on_after(CHECK_SECONDS):
                await check()
                answers[name] = "ok"
        except Exception:  # a check says no by raising whatever it likes
            answers[name] = "failed"
            log.warning("not_ready", check=name, exc_info=True)

    async with anyio.create_task_group() as tasks:
        for name, check in parts.checks.items():
            tasks.start_soon(run, name, check)
    if parts.watcher.is_stopping:
        answers["stopping"] = "failed"
    return answers
