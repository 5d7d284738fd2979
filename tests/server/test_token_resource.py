"""``jobforge://token``: an agent asks what its own token allows, what is left, and why a call would be refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp.types import TextResourceContents

from jobforge_mcp.policy.gate import Credential, Door
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.policy.tokens import Grant, issue_token
from jobforge_mcp.server.build import build_server
from jobforge_mcp.types import CallOrigin, Limits
from tests.server.stage import Stage

NARROW = Grant(
    "acme",
    [Scope.JOBS_EXECUTE, Scope.JOBS_READ],
    ["p1"],
    subject="agent@acme",
    job_types=("test.*",),
    deny_types=("test.fails",),
    limits=Limits(budget_jobs=2, max_payload_bytes=1_000),
)


def agent(stage: Stage, grant: Grant) -> Client:
    settings = stage.settings
    token = issue_token(
        stage.keys.ensure(), grant, issuer=settings.token_issuer, audience=settings.token_audience
    )
    return Client(build_server(stage.parts, Credential(token, Door.LOCAL)))


async def account(client: Client, query: str = "") -> dict[str, Any]:
    answer = await client.read_resource(f"jobforge://token{query}")
    assert isinstance(answer.contents[0], TextResourceContents)
    return json.loads(answer.contents[0].text)


async def refused(client: Client, **arguments: object) -> dict[str, Any]:
    answer = await client.call_tool("execute-job", {"background": True, **arguments})
    assert answer.structured_content is not None
    return answer.structured_content["error"]


@pytest.mark.requirement("policy.check-token")
async def test_an_agent_is_told_what_its_token_allows_and_what_is_left(stage: Stage) -> None:
    async with agent(stage, NARROW) as client:
        run = {"name": "test.noop", "projectId": "p1", "background": True}
        await client.call_tool("execute-job", run)
        told = await account(client)
        listed = [resource.uri for resource in (await client.list_resources()).resources]

    limits = {limit["limit"]: limit.get("left") for limit in told["limits"]}
    assert "jobforge://token" in listed
    assert (told["isGood"], told["tenant"], told["projects"]) == (True, "acme", ["p1"])
    assert told["scopes"] == ["jobs:execute", "jobs:list", "jobs:read"]
    assert (told["jobTypes"], told["denyTypes"]) == (["test.*"], ["test.fails"])
    assert limits == {"budget_jobs": 1, "max_payload_bytes": None}
    assert told["used"]["jobs"] == 1
    assert datetime.now(UTC) < datetime.fromisoformat(told["expiresAt"])
    assert "refusal" not in told


@pytest.mark.requirement("policy.check-token")
async def test_asking_why_answers_as_the_call_itself_would_and_uses_nothing_up(
    stage: Stage,
) -> None:
    async with agent(stage, NARROW) as client:
        fits = await account(client, "?job=test.noop&project=p1")
        asked = {
            "test.fails": (await account(client, "?job=test.fails"))["refusal"],
            "ops.database.scan": (await account(client, "?job=ops.database.scan"))["refusal"],
            "test.nothing": (await account(client, "?job=test.nothing"))["refusal"],
        }
        answered = {name: await refused(client, name=name, projectId="p1") for name in asked}
        project = (await account(client, "?project=p2"))["refusal"]
        for _ in range(2):
            await client.call_tool("execute-job", {"name": "test.noop", "projectId": "p1"})
        spent = (await account(client, "?job=test.noop"))["refusal"]
        spent_for_real = await refused(client, name="test.noop", projectId="p1")

    assert "refusal" not in fits
    assert asked == answered
    assert project["code"] == "POLICY_DENIED"
    assert (spent["code"], spent_for_real["code"]) == ("BUDGET_USED_UP", "BUDGET_USED_UP")


@pytest.mark.requirement("policy.check-token")
async def test_a_token_without_any_other_right_may_be_asked_about_and_a_revoked_one_is_told(
    stage: Stage,
) -> None:
    poor = Grant("acme", [Scope.AUDIT_READ], subject="agent@acme")
    async with agent(stage, poor) as client:
        told = await account(client, "?job=test.noop")
        for strange in ("?job=a&job=b", "?run=1", "?job", "/x"):
            with pytest.raises(MCPError) as unknown:
                await account(client, strange)
            assert unknown.value.error.data["code"] == "RESOURCE_NOT_FOUND"
        operator = stage.parts.gate.caller_of(stage.token())
        assert stage.parts.living is not None
        await stage.parts.living.router.revoke_token(
            operator, told["tokenId"], origin=CallOrigin("test")
        )
        with pytest.raises(MCPError) as revoked:
            await account(client, "?tool=execute-job")

    assert told["scopes"] == ["audit:read"]
    assert told["refusal"]["code"] == "POLICY_DENIED"
    assert "jobs:execute" in told["refusal"]["message"]
    assert revoked.value.error.data["code"] == "TOKEN_REVOKED"
