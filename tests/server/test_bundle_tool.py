"""execute-bundle: jobs that wait for each other, in one call."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from mcp.client import Client
from mcp.types import CallToolResult

from jobforge_mcp.policy.gate import Credential, Door
from jobforge_mcp.policy.scopes import ALL_SCOPES
from jobforge_mcp.policy.tokens import Grant, issue_token
from jobforge_mcp.server.build import build_server
from tests.postgres import ScratchDatabase
from tests.server.stage import Stage, open_stage

REQUESTS = [
    {"id": "then", "name": "test.echo", "input": {"text": "b"}, "dependsOn": ["first"]},
    {"id": "first", "name": "test.echo", "input": {"text": "a"}},
    {"id": "never", "name": "test.echo", "input": {"text": 1}},
    {"id": "after", "name": "test.noop", "dependsOn": ["never"]},
]


def told(answer: CallToolResult) -> dict[str, Any]:
    assert answer.structured_content is not None
    return answer.structured_content


@pytest.mark.requirement("bundles.idempotent")
async def test_a_bundle_runs_in_order_once_and_each_request_has_its_verdict(
    database: ScratchDatabase, tmp_path: Path
) -> None:
    async with (
        open_stage(database, tmp_path, bundles_enabled=True) as stage,
        Client(build_server(stage.parts, stage.credential())) as client,
    ):
        wanted = {"requests": REQUESTS, "idempotencyKey": "k"}
        planned = told(await client.call_tool("execute-bundle", {**wanted, "dryRun": True}))
        made = told(await client.call_tool("execute-bundle", wanted))
        again = told(await client.call_tool("execute-bundle", wanted))
        run_id = made["items"][0]["runId"]
        ended = told(await client.call_tool("get-job-status", {"runId": run_id, "waitSeconds": 40}))
        circle = await client.call_tool(
            "execute-bundle", {"requests": [{"id": "a", "name": "test.noop", "dependsOn": ["a"]}]}
        )
        waiting = await client.call_tool(
            "execute-bundle", {"requests": [{"id": "a", "name": "test.noop", "waitSeconds": 1}]}
        )

    outcomes = ["created", "created", "refused", "refused"]
    assert [item["outcome"] for item in planned["items"]] == outcomes
    assert [item["outcome"] for item in made["items"]] == outcomes
    assert [item.get("runId") for item in planned["items"]] == [None] * 4
    assert [item.get("code") for item in made["items"]][2:] == [
        "INVALID_INPUT",
        "DEPENDENCY_REFUSED",
    ]
    assert [item["outcome"] for item in again["items"]][:2] == ["replayed", "replayed"]
    assert again["items"][0]["runId"] == run_id
    assert (ended["status"], ended["result"]) == ("succeeded", {"said": "b"})
    assert [told(answer)["error"]["code"] for answer in (circle, waiting)] == ["BUNDLE_INVALID"] * 2


async def test_it_is_off_until_somebody_switches_it_on(stage: Stage) -> None:
    async with Client(build_server(stage.parts, stage.credential())) as client:
        tools = [tool.name for tool in (await client.list_tools()).tools]
        refused = await client.call_tool("execute-bundle", {"requests": REQUESTS})

    assert "execute-bundle" not in tools
    assert refused.is_error


@pytest.mark.requirement("audit.denials")
async def test_what_a_bundle_may_not_run_is_in_the_audit_log_and_its_verdict_names_the_code(
    database: ScratchDatabase, tmp_path: Path, admin: psycopg.Connection
) -> None:
    requests = [
        {"id": "allowed", "name": "test.noop", "idempotencyKey": "k"},
        {"id": "denied", "name": "test.echo", "input": {"text": "a"}},
        {"id": "after", "name": "test.noop", "dependsOn": ["denied"]},
    ]
    async with open_stage(database, tmp_path, bundles_enabled=True) as stage:
        grant = Grant("acme", ALL_SCOPES, job_types=["test.noop"], lifetime=timedelta(hours=1))
        token = issue_token(
            stage.keys.ensure(),
            grant,
            issuer=stage.settings.token_issuer,
            audience=stage.settings.token_audience,
        )
        async with Client(build_server(stage.parts, Credential(token, Door.LOCAL))) as client:
            made = told(await client.call_tool("execute-bundle", {"requests": requests}))
    rows = admin.execute(
        "select action, job_type, tool, detail from jobforge.audit_log where outcome = 'refused'"
    ).fetchall()

    assert [(item["outcome"], item.get("code")) for item in made["items"]] == [
        ("created", None), ("refused", "POLICY_DENIED"), ("refused", "DEPENDENCY_REFUSED"),
    ]  # fmt: skip
    assert rows == [("enqueue", "test.echo", "execute-bundle", {"reason": "POLICY_DENIED"})]


async def test_a_request_whose_key_was_used_otherwise_has_a_code(
    database: ScratchDatabase, tmp_path: Path
) -> None:
    async with (
        open_stage(database, tmp_path, bundles_enabled=True) as stage,
        Client(build_server(stage.parts, stage.credential())) as client,
    ):
        items: list[Any] = []
        for text in ("a", "b"):
            request = {
                "id": "one",
                "name": "test.echo",
                "input": {"text": text},
                "idempotencyKey": "k",
            }
            items += told(await client.call_tool("execute-bundle", {"requests": [request]}))[
                "items"
            ]

    assert [(item["outcome"], item.get("code")) for item in items] == [
        ("created", None), ("conflict", "IDEMPOTENCY_CONFLICT"),
    ]  # fmt: skip


async def test_a_request_that_does_not_fit_is_named_by_its_place(
    database: ScratchDatabase, tmp_path: Path
) -> None:
    requests = [{"id": "a", "name": "test.echo"}, {"id": "b", "nam": "test.echo"}]
    async with (
        open_stage(database, tmp_path, bundles_enabled=True) as stage,
        Client(build_server(stage.parts, stage.credential())) as client,
    ):
        answer = await client.call_tool("execute-bundle", {"requests": requests})

    assert answer.structured_content is not None
    error = answer.structured_content["error"]
    assert error["message"] == "in request 2: there is no argument nam"
    assert error["hint"] == "did you mean name?"
