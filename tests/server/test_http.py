from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import httpx2
import psycopg
import pytest
from mcp.client import Client

from jobforge_mcp.errors import SettingsError
from jobforge_mcp.server.exposure import check_address, is_loopback
from tests.end_to_end.doors import http_client, http_server, sse_door
from tests.postgres import ScratchDatabase
from tests.server.stage import Stage, open_stage

MODERN = {
    "Accept": "application/json, text/event-stream",
    "MCP-Protocol-Version": "2026-07-28",
    "Mcp-Method": "tools/call",
}


def call(name: str, arguments: dict[str, Any], token: str | None = None) -> dict[str, Any]:
    """Return a request of 2026-07-28 as it is on the wire."""
    meta: dict[str, Any] = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    if token is not None:
        meta["progressToken"] = token
    return {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": name, "arguments": arguments, "_meta": meta},
    }


INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}


@pytest.mark.parametrize("path", ["/mcp", "/sse", "/messages/?session_id=0"])
@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer rubbish"}, {"Authorization": "Basic eDp5"}]
)
async def test_without_a_good_token_every_door_answers_401_and_says_how_to_get_one(
    path: str, headers: dict[str, str], stage: Stage
) -> None:
    async with http_server(stage) as server, httpx2.AsyncClient() as http:
        answer = await http.post(f"{server.url}{path}", json=INITIALIZE, headers=headers)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert "resource_metadata" not in answer.headers["www-authenticate"]
    assert answer.json()["error"]["code"] == "TOKEN_INVALID"
    assert "jobforge token issue" in answer.json()["error"]["hint"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://localhost:1234"}, 400),
        ({"Host": "jobs.example"}, 400),
        ({"Origin": "https://app.example"}, 400),
    ],
)
async def test_only_known_hosts_and_origins_get_past_the_door(
    headers: dict[str, str], status: int, database: ScratchDatabase, tmp_path: Path
) -> None:
    overrides = {"allowed_hosts": "jobs.example", "allowed_origins": "https://app.example"}
    async with (
        open_stage(database, tmp_path, has_pool=False, **overrides) as stage,
        http_server(stage) as server,
        httpx2.AsyncClient() as http,
    ):
        sent = {"Authorization": f"Bearer {stage.token()}", **MODERN, **headers}
        answer = await http.post(f"{server.url}/mcp", content=b"{", headers=sent)
        through_sse = await http.post(
            f"{server.url}/sse", headers={"Authorization": sent["Authorization"], **headers}
        )

    # 400 and 405 come from behind the door: no JSON, no GET.
    assert answer.status_code == status
    assert through_sse.status_code == (405 if status == 400 else status)


async def test_a_session_of_the_handshake_era_belongs_to_who_opened_it(stage: Stage) -> None:
    headers = {"Accept": "application/json, text/event-stream"}
    async with http_server(stage) as server, httpx2.AsyncClient() as http:

        async def post(tenant: str, body: dict[str, Any], session: str | None) -> httpx2.Response:
            more = {"Mcp-Session-Id": session} if session else {}
            bearer = {"Authorization": f"Bearer {stage.token(tenant)}"}
            return await http.post(
                f"{server.url}/mcp", json=body, headers={**headers, **bearer, **more}
            )

        opened = await post("acme", INITIALIZE, None)
        session = opened.headers["mcp-session-id"]
        listing = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
        stranger = await post("globex", listing, session)
        owner = await post("acme", listing, session)

    assert (opened.status_code, stranger.status_code, owner.status_code) == (200, 404, 200)


async def test_answers_are_streams_so_progress_comes_before_the_result(stage: Stage) -> None:
    body = call("execute-job", {"name": "test.steps", "input": {"steps": 3, "seconds": 0.4}}, "t")
    headers = {**MODERN, "Authorization": f"Bearer {stage.token()}", "Mcp-Name": "execute-job"}
    async with http_server(stage) as server, httpx2.AsyncClient() as http:
        answer = await http.post(f"{server.url}/mcp", json=body, headers=headers, timeout=20)

    frames = [
        json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")
    ]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [frame.get("method") for frame in frames[:-1]] == ["notifications/progress"] * (
        len(frames) - 1
    )
    assert len(frames) >= 2
    assert frames[-1]["result"]["structuredContent"]["result"] == 3


async def test_closing_the_stream_leaves_the_job_running(stage: Stage) -> None:
    body = call("execute-job", {"name": "test.steps", "input": {"steps": 2, "seconds": 2}}, "t")
    headers = {**MODERN, "Authorization": f"Bearer {stage.token()}", "Mcp-Name": "execute-job"}
    async with http_server(stage) as server, httpx2.AsyncClient(timeout=60) as http:
        async with http.stream("POST", f"{server.url}/mcp", json=body, headers=headers) as answer:
            first = await anext(line async for line in answer.aiter_lines() if line)
        async with http_client(server.url, stage.token()) as client:
            listed = (await client.call_tool("list-runs", {})).structured_content
            assert listed is not None
            at_closing = listed["runs"][0]
            ended = await client.call_tool(
                "get-job-status", {"runId": at_closing["runId"], "waitSeconds": 40}
            )

    assert "notifications/progress" in first or first.startswith("event:")
    assert (ended.structured_content or {})["status"] == "succeeded"


async def test_connections_of_the_old_transport_share_one_pool(
    stage: Stage, admin: psycopg.Connection
) -> None:
    async with (
        http_server(stage) as server,
        sse_door(server.url, stage.token()) as first,
        sse_door(server.url, stage.token("globex")) as second,
    ):
        answers = [
            await client.call_tool("execute-job", {"name": "test.noop"})
            for client in (first, second)
        ]
        workers = admin.execute("select count(*) from jobforge.workers").fetchone()

    assert [answer.is_error for answer in answers] == [False, False]
    assert workers == (1,)


async def test_health_ready_and_metrics_need_no_token(
    database: ScratchDatabase, tmp_path: Path
) -> None:
    async with (
        open_stage(database, tmp_path) as stage,
        http_server(stage) as server,
        httpx2.AsyncClient() as http,
    ):

        async def fails() -> None:
            raise RuntimeError("not yet")

        health = await http.get(f"{server.url}/health")
        ready = await http.get(f"{server.url}/ready")
        checks = stage.parts.checks
        assert isinstance(checks, dict)
        checks["database"] = fails
        not_ready = await http.get(f"{server.url}/ready")
        async with http_client(server.url, stage.token()) as client:
            await client.call_tool("execute-job", {"name": "test.noop"})
        metrics = await http.get(f"{server.url}/metrics")

    assert (health.status_code, health.json()["status"]) == (200, "ok")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert (not_ready.status_code, not_ready.json()["checks"]) == (503, {"database": "failed"})
    assert 'jobforge_tool_calls_total{outcome="ok",tool="execute-job"} 1.0' in metrics.text


async def test_a_server_that_stops_lets_waiting_calls_answer_first(stage: Stage) -> None:
    answers: list[dict[str, Any]] = []
    async with (
        http_server(stage) as server,
        http_client(server.url, stage.token()) as modern,
        sse_door(server.url, stage.token()) as old,
    ):

        async def wait(client: Client) -> None:
            answer = await client.call_tool("execute-job", {"name": "test.forever"})
            assert answer.structured_content is not None
            answers.append(answer.structured_content)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait, modern)
            tasks.start_soon(wait, old)
            with anyio.fail_after(60):
                while stage.parts.watcher.waiting < 2:
                    await anyio.lowlevel.checkpoint()
            server.stop.set()

    assert [run["status"] for run in answers] == ["running", "running"]


def test_without_keys_only_loopback_is_bound() -> None:
    check_address("127.0.0.1", accepts_tokens=False)
    check_address("0.0.0.0", accepts_tokens=True)  # noqa: S104  # asked about, not bound
    with pytest.raises(SettingsError) as caught:
        check_address("0.0.0.0", accepts_tokens=False)  # noqa: S104  # asked about, not bound

    assert caught.value.hint is not None
    assert "jobforge token issue" in caught.value.hint


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104  # asked about, not bound
        ("::", False),
        ("10.0.0.5", False),
        ("jobs.example", False),
    ],
)
def test_what_loopback_is(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
