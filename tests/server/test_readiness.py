"""``/ready`` of a composed application: each part that it asks, the worker pool among them."""

from __future__ import annotations

from pathlib import Path

import anyio
import httpx2
import pytest

from jobforge_mcp.app import open_app
from jobforge_mcp.policy.keys import KeyFolder
from jobforge_mcp.server.http import http_app
from jobforge_mcp.settings import load_settings
from tests.postgres import ScratchDatabase


async def ready(web: httpx2.AsyncClient) -> httpx2.Response:
    """Ask once notifications arrive, which takes a moment after the start."""
    with anyio.fail_after(30):
        while True:
            answer = await web.get("/ready")
            if answer.json()["checks"]["listener"] == "ok":
                return answer
            await anyio.sleep(0.05)


@pytest.mark.requirement("operations.ready-pool")
async def test_a_server_whose_pool_claims_nothing_is_not_ready(
    database: ScratchDatabase, tmp_path: Path
) -> None:
    KeyFolder(tmp_path / "keys").ensure()
    settings = load_settings(
        database_url=database.url("jobforge_api"),
        worker_database_url=database.url("jobforge_worker"),
        token_keys=str(tmp_path / "keys"),
        state_dir=tmp_path,
        drain_grace_seconds=1,
    )
    answers: list[httpx2.Response] = []
    async with (
        open_app(settings) as app,
        http_app(app.parts) as asgi,
        httpx2.AsyncClient(
            transport=httpx2.ASGITransport(asgi), base_url="http://127.0.0.1"
        ) as web,
    ):
        answers.append(await ready(web))
        assert app.pool is not None
        await app.pool.drain(1)
        answers.append(await web.get("/ready"))

    checks = [answer.json()["checks"] for answer in answers]
    assert [answer.status_code for answer in answers] == [200, 503]
    assert [check["pool"] for check in checks] == ["ok", "failed"]
    assert checks[1]["database"] == "ok"


@pytest.mark.requirement("operations.ready-pool")
async def test_a_server_without_workers_is_ready_without_a_pool(
    database: ScratchDatabase, tmp_path: Path
) -> None:
    settings = load_settings(
        database_url=database.url("jobforge_api"), state_dir=tmp_path, workers=False
    )
    async with (
        open_app(settings) as app,
        http_app(app.parts) as asgi,
        httpx2.AsyncClient(
            transport=httpx2.ASGITransport(asgi), base_url="http://127.0.0.1"
        ) as web,
    ):
        answer = await ready(web)

    assert (answer.status_code, "pool" in answer.json()["checks"]) == (200, False)
