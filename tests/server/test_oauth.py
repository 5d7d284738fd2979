from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.client.auth.utils import (
    build_protected_resource_metadata_discovery_urls,
    extract_scope_from_www_auth,
)
from mcp.shared.auth import ProtectedResourceMetadata

from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.policy.tokens import Grant, issue_token
from tests.end_to_end.doors import http_client, http_server
from tests.postgres import ScratchDatabase
from tests.server.stage import Stage, open_stage
from tests.server.test_http import INITIALIZE, MODERN, call

ISSUER = "https://login.example"
RESOURCE = "https://jobs.example/mcp"
DOCUMENT = "https://jobs.example/.well-known/oauth-protected-resource/mcp"


@pytest.fixture
async def protected(database: ScratchDatabase, tmp_path: Path) -> AsyncGenerator[Stage]:
    """A server whose tokens an OAuth server gives out."""
    overrides = {"oauth_issuer": ISSUER, "resource_url": RESOURCE}
    async with open_stage(database, tmp_path, has_pool=True, **overrides) as stage:
        yield stage


@asynccontextmanager
async def asking(stage: Stage) -> AsyncGenerator[httpx2.AsyncClient]:
    async with http_server(stage) as server, httpx2.AsyncClient(base_url=server.url) as http:
        yield http


def modern(name: str, token: str | None, method: str = "tools/call") -> dict[str, str]:
    bearer = {"Authorization": f"Bearer {token}"} if token is not None else {}
    return {**MODERN, "Mcp-Method": method, "Mcp-Name": name, **bearer}


def fields(answer: httpx2.Response) -> dict[str, str]:
    scheme, _, rest = answer.headers["www-authenticate"].partition(" ")
    assert scheme == "Bearer"
    return {
        name: value.strip('"')
        for name, _, value in (part.partition("=") for part in rest.split(", "))
    }


@pytest.mark.requirement("oauth.metadata")
@pytest.mark.parametrize(
    "path",
    ["/.well-known/oauth-protected-resource", "/.well-known/oauth-protected-resource/mcp"],
)
async def test_the_resource_describes_itself_where_clients_look(
    path: str, protected: Stage
) -> None:
    async with asking(protected) as http:
        answer = await http.get(path)
        posted = await http.post(path)

    described = ProtectedResourceMetadata.model_validate_json(answer.content)
    assert answer.headers["content-type"] == "application/json"
    assert str(described.resource) == RESOURCE
    assert [str(url).rstrip("/") for url in described.authorization_servers] == [ISSUER]
    assert described.scopes_supported == ["jobs:list"]
    assert described.bearer_methods_supported == ["header"]
    assert DOCUMENT in build_protected_resource_metadata_discovery_urls(None, RESOURCE)
    assert posted.status_code == 405


async def test_without_an_oauth_server_nothing_is_advertised(stage: Stage) -> None:
    async with asking(stage) as http:
        answer = await http.get("/.well-known/oauth-protected-resource")
        refused = await http.post("/mcp", headers=modern("execute-job", None), content=b"{")

    assert answer.status_code == 404
    assert refused.headers["www-authenticate"] == "Bearer"


@pytest.mark.requirement("oauth.challenge")
@pytest.mark.parametrize(
    ("path", "headers", "scope"),
    [
        ("/mcp", {}, "jobs:list"),
        ("/sse", {}, "jobs:list"),
        ("/messages/?session_id=0", {}, "jobs:list"),
        ("/mcp", modern("", None, "tools/list"), "jobs:list"),
        ("/mcp", modern("execute-job", None), "jobs:execute"),
        ("/mcp", modern("execute_job", None), "jobs:execute"),
        ("/mcp", modern("=?base64?Y2FuY2VsLWpvYg==?=", None), "jobs:cancel"),
        ("/mcp", modern("jobforge://runs/01890a5d-ac96-774b-bcce-b302099a8057", None, "resources/read"), "jobs:read"),
        ("/mcp", modern("no-such-tool", None), "jobs:list"),
    ],
)  # fmt: skip
async def test_without_a_token_the_challenge_says_where_to_get_one_and_for_what(
    path: str, headers: dict[str, str], scope: str, protected: Stage
) -> None:
    async with asking(protected) as http:
        answer = await http.post(path, headers=headers, content=b"not even json")

    assert answer.status_code == 401
    assert fields(answer) == {"resource_metadata": DOCUMENT, "scope": scope}
    assert extract_scope_from_www_auth(answer) == scope
    assert answer.json()["error"]["code"] == "TOKEN_INVALID"


@pytest.mark.requirement("oauth.challenge")
async def test_a_token_for_another_resource_or_of_another_issuer_is_invalid(
    protected: Stage,
) -> None:
    def token(issuer: str, audience: str) -> str:
        return issue_token(
            protected.keys.ensure(),
            Grant("acme", [Scope.JOBS_LIST]),
            issuer=issuer,
            audience=audience,
        )

    others = [
        token(ISSUER, "https://other.example/mcp"),
        token(ISSUER, "https://jobs.example"),
        token(ISSUER, f"{RESOURCE}/"),
        token(ISSUER, "jobforge"),
        token("jobforge", RESOURCE),
        token(f"{ISSUER}/", RESOURCE),
        "rubbish",
    ]
    async with asking(protected) as http:
        answers = [
            await http.post("/mcp", headers=modern("list-jobs", other), content=b"{")
            for other in others
        ]
        good = await http.post(
            "/mcp",
            headers=modern("list-jobs", token(ISSUER, RESOURCE)),
            json=call("list-jobs", {}),
        )

    assert {answer.status_code for answer in answers} == {401}
    assert {fields(answer)["error"] for answer in answers} == {"invalid_token"}
    assert {fields(answer)["resource_metadata"] for answer in answers} == {DOCUMENT}
    assert len({answer.text for answer in answers}) == 1
    assert good.status_code == 200


@pytest.mark.requirement("oauth.step-up")
@pytest.mark.parametrize(
    ("name", "method", "scope"),
    [
        ("execute-job", "tools/call", "jobs:execute"),
        ("execute_job", "tools/call", "jobs:execute"),
        ("=?base64?ZXhlY3V0ZS1qb2I=?=", "tools/call", "jobs:execute"),
        ("cancel_job", "tools/call", "jobs:cancel"),
        ("retry-job", "tools/call", "jobs:retry"),
        ("get_job_status", "tools/call", "jobs:read"),
        ("jobforge://runs/01890a5d-ac96-774b-bcce-b302099a8057/logs", "resources/read", "jobs:read"),
    ],
)  # fmt: skip
async def test_a_call_that_needs_more_is_answered_with_its_scopes_before_its_body_is_read(
    name: str, method: str, scope: str, protected: Stage
) -> None:
    token = protected.token(scopes=[Scope.JOBS_LIST])
    async with asking(protected) as http:
        answer = await http.post("/mcp", headers=modern(name, token, method), content=b"no json")

    assert answer.status_code == 403
    assert fields(answer).pop("error_description")
    assert {**fields(answer), "error_description": ""} == {
        "error": "insufficient_scope",
        "error_description": "",
        "scope": scope,
        "resource_metadata": DOCUMENT,
    }
    assert answer.json()["error"]["code"] == "POLICY_DENIED"


@pytest.mark.requirement("oauth.step-up")
@pytest.mark.parametrize(
    ("named", "called"),
    [
        ("list-jobs", "execute-job"),
        ("list_jobs", "list-jobs"),
        ("execute-job", "execute_job"),
        (None, "execute-job"),
    ],
)
async def test_a_header_that_differs_from_the_body_is_refused(
    named: str | None, called: str, protected: Stage
) -> None:
    headers = modern(named or "", protected.token())
    if named is None:
        del headers["Mcp-Name"]
    async with asking(protected) as http:
        answer = await http.post(
            "/mcp", headers=headers, json=call(called, {"name": "test.noop", "background": True})
        )
        doubled = await http.post(
            "/mcp",
            headers=[*modern("list-jobs", protected.token()).items(), ("Mcp-Name", "execute-job")],
            json=call("execute-job", {"name": "test.noop"}),
        )
        async with http_client(str(http.base_url).rstrip("/"), protected.token()) as client:
            listed = await client.call_tool("list-runs", {})

    assert (answer.status_code, doubled.status_code) == (400, 400)
    assert (listed.structured_content or {})["runs"] == []


@pytest.mark.requirement("oauth.step-up")
async def test_without_the_headers_of_the_new_era_the_tool_itself_refuses(
    protected: Stage,
) -> None:
    token = protected.token(scopes=[Scope.JOBS_LIST])
    async with (
        http_server(protected) as server,
        http_client(server.url, token, "legacy") as client,
    ):
        answer = await client.call_tool("execute-job", {"name": "test.noop"})

    assert answer.is_error
    assert (answer.structured_content or {})["error"]["code"] == "POLICY_DENIED"


@pytest.mark.requirement("oauth.step-up")
async def test_what_no_scope_would_cure_is_a_tool_error(protected: Stage) -> None:
    other, own = protected.token("globex"), protected.token(projects=["billing"])

    async def ask(http: httpx2.AsyncClient, token: str, tool: str, **given: Any) -> dict[str, Any]:
        headers = modern(tool, token)
        answer = await http.post("/mcp", headers=headers, json=call(tool, given), timeout=20)
        assert answer.status_code == 200
        text = answer.text
        lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
        return json.loads(lines[-1] if lines else text)["result"]

    async with asking(protected) as http:
        foreign = await ask(http, other, "execute-job", name="test.noop")
        run_id = foreign["structuredContent"]["runId"]
        answers = [
            await ask(http, own, "execute-job", name="test.noop", projectId="sales"),
            await ask(http, own, "get-job-status", runId=run_id),
            await ask(http, own, "cancel-job", runId=run_id),
            await ask(http, own, "execute-job", name="no.such.job"),
        ]

    assert [answer["isError"] for answer in answers] == [True] * 4
    assert [answer["structuredContent"]["error"]["code"] for answer in answers] == [
        "POLICY_DENIED",
        "RUN_NOT_FOUND",
        "RUN_NOT_FOUND",
        "JOB_NOT_FOUND",
    ]


@pytest.mark.requirement("oauth.challenge")
async def test_a_token_counts_in_the_header_alone(protected: Stage) -> None:
    token = protected.token()
    async with asking(protected) as http:
        in_query = await http.post(f"/mcp?access_token={token}", json=INITIALIZE)
        in_body = await http.post("/mcp", data={"access_token": token})
        in_cookie = await http.post(
            "/mcp", json=INITIALIZE, headers={"Cookie": f"access_token={token}"}
        )
        twice = await http.post(
            "/mcp", json=INITIALIZE, headers=[("Authorization", f"Bearer {token}")] * 2
        )

    assert {answer.status_code for answer in (in_query, in_body, in_cookie, twice)} == {401}
