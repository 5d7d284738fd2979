from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from jobforge_mcp.errors import LimitError
from jobforge_mcp.server.sessions import SessionBook
from tests.end_to_end.doors import http_client, http_server
from tests.postgres import ScratchDatabase
from tests.server.stage import Stage, open_stage
from tests.server.test_http import INITIALIZE

LISTING = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
ACME, GLOBEX = ("acme", "agent"), ("globex", "agent")


class Caller:
    """Somebody who opens sessions of the handshake era."""

    def __init__(self, http: httpx2.AsyncClient, stage: Stage, tenant: str) -> None:
        self._http = http
        self._bearer = {
            "Accept": "application/json, text/event-stream",
            "Authorization": f"Bearer {stage.token(tenant)}",
        }

    async def open(self) -> httpx2.Response:
        return await self._http.post("/mcp", json=INITIALIZE, headers=self._bearer)

    async def use(self, session: str, method: str = "POST") -> int:
        headers = {**self._bearer, "Mcp-Session-Id": session}
        body: dict[str, Any] = {"json": LISTING} if method == "POST" else {}
        return (await self._http.request(method, "/mcp", headers=headers, **body)).status_code


def session_of(answer: httpx2.Response) -> str:
    assert answer.status_code == 200
    return answer.headers["mcp-session-id"]


@pytest.mark.requirement("server.sessions")
async def test_a_caller_has_so_many_sessions_and_others_have_theirs(
    database: ScratchDatabase, tmp_path: Path
) -> None:
    limits = {"most_sessions_per_caller": 2, "most_sessions": 3}
    async with (
        open_stage(database, tmp_path, has_pool=False, **limits) as stage,
        http_server(stage) as server,
        httpx2.AsyncClient(base_url=server.url) as http,
        http_client(server.url, stage.token(), "auto") as modern,
    ):
        acme, globex = Caller(http, stage, "acme"), Caller(http, stage, "globex")
        first = session_of(await acme.open())
        session_of(await acme.open())
        third = await acme.open()
        other = session_of(await globex.open())
        over_all = await globex.open()
        of_the_new_era = await modern.list_tools()
        stolen = [await globex.use(first), await globex.use(first, "DELETE")]
        still_used = await acme.use(first)
        still_refused = await acme.open()
        ended = await acme.use(first, "DELETE")
        again = await acme.open()
        gone = await acme.use(first)
        unharmed = await globex.use(other)

    assert (third.status_code, over_all.status_code) == (429, 429)
    assert third.json()["error"]["code"] == "TOO_MANY_SESSIONS"
    assert "limit" in third.json()["error"]["message"]
    assert third.headers["retry-after"]
    assert of_the_new_era.tools
    assert stolen == [404, 404]
    assert (still_used, still_refused.status_code) == (200, 429)
    assert (ended, again.status_code, gone, unharmed) == (200, 200, 404, 200)


@pytest.mark.requirement("server.sessions")
async def test_a_session_that_nobody_uses_ends(database: ScratchDatabase, tmp_path: Path) -> None:
    limits = {"most_sessions_per_caller": 1, "session_idle_seconds": 2}
    async with (
        open_stage(database, tmp_path, has_pool=False, **limits) as stage,
        http_server(stage) as server,
        httpx2.AsyncClient(base_url=server.url) as http,
    ):
        acme = Caller(http, stage, "acme")
        session = session_of(await acme.open())
        refused = await acme.open()
        # Slow: idle for long enough to be refused before, on a busy machine too; and to look is to use.
        with anyio.fail_after(60):
            while (again := await acme.open()).status_code == 429:  # noqa: ASYNC110  # nothing tells
                await anyio.sleep(0.05)
            while await acme.use(session) != 404:  # noqa: ASYNC110  # nothing tells
                await anyio.sleep(2.5)

    assert (refused.status_code, again.status_code) == (429, 200)


@pytest.mark.requirement("server.sessions")
async def test_connections_of_the_old_transport_count_while_they_are_open(
    database: ScratchDatabase, tmp_path: Path
) -> None:
    async with (
        open_stage(database, tmp_path, has_pool=False, most_sessions_per_caller=1) as stage,
        http_server(stage) as server,
        httpx2.AsyncClient(base_url=server.url) as http,
    ):
        bearer = {"Authorization": f"Bearer {stage.token()}"}
        async with http.stream("GET", "/sse", headers=bearer) as first:
            second = await http.get("/sse", headers=bearer)
        with anyio.fail_after(60):
            while True:
                async with http.stream("GET", "/sse", headers=bearer) as third:
                    if third.status_code == 200:
                        break

    assert (first.status_code, second.status_code) == (200, 429)


def test_an_opening_that_fails_leaves_nothing() -> None:
    book = SessionBook(most=1, most_per_caller=1, idle_seconds=10)

    with book.opening(ACME):
        assert len(book) == 1
    with pytest.raises(ZeroDivisionError), book.opening(ACME):
        raise ZeroDivisionError

    assert len(book) == 0


def test_what_is_under_way_is_not_idle() -> None:
    now = [0.0]
    book = SessionBook(most=1, most_per_caller=1, idle_seconds=10, clock=lambda: now[0])
    with book.opening(ACME) as session:
        session.id = "s"

    with book.using("s", ACME):
        now[0] = 100
        with pytest.raises(LimitError), book.opening(GLOBEX):
            pass
    now[0] = 109
    with pytest.raises(LimitError), book.opening(GLOBEX):
        pass
    now[0] = 110
    with book.opening(GLOBEX):
        pass

    assert len(book) == 0
