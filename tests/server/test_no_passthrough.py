from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

import anyio
import psycopg
import pytest
from mcp.client import Client

from jobforge_mcp.definitions.installed import load_registry
from jobforge_mcp.settings import load_settings
from tests.egress.test_client import Receiver, answer, started
from tests.end_to_end.doors import http_client, http_server, sse_door
from tests.postgres import ScratchDatabase
from tests.server.stage import Stage, open_stage

CONNECTOR = "connector.http.request"
NOSY = Path(__file__).with_name("nosy.py")


@dataclass(frozen=True, slots=True)
class Scene:
    stage: Stage
    url: str
    token: str
    receiver: Receiver


@pytest.fixture
async def scene(
    database: ScratchDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Scene]:
    """A server that may call one receiver, and whose jobs look for the token of their caller."""
    async with anyio.create_task_group() as tasks:
        receiver = await started(tasks)
        receiver.answers["/"] = answer(b"200 OK", b"hello")
        monkeypatch.setenv("JOBFORGE_HTTP_ALLOW_PORTS", str(receiver.port))
        monkeypatch.setenv("JOBFORGE_HTTP_ALLOW_PRIVATE", "true")
        monkeypatch.setenv("JOBFORGE_HTTP_CONNECTOR_ENABLED", "true")
        registry = load_registry(load_settings(jobs=str(NOSY), state_dir=tmp_path))
        policy = vars(sys.modules[registry.get(CONNECTOR).handler.__module__])["policy"]
        policy.cache_clear()
        async with (
            open_stage(database, tmp_path, registry=registry) as stage,
            http_server(stage) as server,
        ):
            yield Scene(stage, server.url, stage.token(), receiver)
        policy.cache_clear()
        tasks.cancel_scope.cancel()


async def result_of(client: Client, name: str, **more: object) -> object:
    arguments = {"name": name, "idempotencyKey": name, **more}
    answer = await client.call_tool("execute-job", arguments)
    assert answer.structured_content is not None
    assert answer.structured_content["status"] == "succeeded", answer.structured_content
    return answer.structured_content["result"]


@pytest.mark.requirement("server.no-passthrough")
@pytest.mark.parametrize("door", ["http", "legacy", "sse"])
async def test_the_token_of_a_caller_stops_at_the_door(
    door: str, scene: Scene, admin: psycopg.Connection
) -> None:
    opened = (
        sse_door(scene.url, scene.token)
        if door == "sse"
        else http_client(scene.url, scene.token, "legacy" if door == "legacy" else "auto")
    )
    async with opened as client:
        await result_of(client, CONNECTOR, input={"url": scene.receiver.url("/")})
        from_loop = await result_of(client, "nosy.loop")
        from_child = await result_of(client, "nosy.child")

    secret = scene.token.rpartition(".")[2]
    ((asked, headers, body),) = scene.receiver.asked
    assert asked == "GET /"
    assert "authorization" not in headers
    assert secret not in f"{headers}{body!r}{from_loop}{from_child}"
    tables = admin.execute(
        "select oid::regclass::text from pg_catalog.pg_class where relnamespace = 'jobforge'::regnamespace and relkind = 'r'"
    ).fetchall()
    for (table,) in tables:
        query = f"select count(*) from {table} as kept where kept::text like %s"
        assert admin.execute(query.encode(), [f"%{secret}%"]).fetchone() == (0,)
