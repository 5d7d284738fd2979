"""The tools about events and triggers, as an agent calls them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mcp.client import Client

from jobforge_mcp.policy.scopes import ALL_SCOPES
from jobforge_mcp.server.build import build_server
from tests.postgres import ScratchDatabase
from tests.server.stage import Stage, open_stage
from tests.server.tokens import count_tokens

pytestmark = pytest.mark.anyio


async def ask(client: Client, tool: str, **arguments: object) -> dict[str, Any]:
    answer = await client.call_tool(tool, arguments)
    assert answer.structured_content is not None
    return answer.structured_content


@pytest.mark.requirement("events.jobs")
async def test_an_agent_registers_a_trigger_submits_an_event_and_follows_the_run(
    client: Client,
) -> None:
    registered = await ask(
        client,
        "register-trigger",
        name="bill",
        kind="event",
        jobName="test.echo",
        eventType="order.*",
        match={"$ref": "/event/payload/total", "equals": 3},
        inputMapping={"text": {"$ref": "/event/payload/word"}},
    )
    planned = await ask(
        client, "submit-event", type="order.paid", payload={"total": 3, "word": "x"}, dryRun=True
    )
    submitted = await ask(
        client,
        "submit-event",
        type="order.paid",
        payload={"total": 3, "word": "hi"},
        idempotencyKey="o-1",
    )
    again = await ask(
        client,
        "submit-event",
        type="order.paid",
        payload={"total": 3, "word": "hi"},
        idempotencyKey="o-1",
    )
    other = await ask(client, "submit-event", type="order.paid", payload={"total": 4})

    assert (registered["outcome"], registered["version"]) == ("created", 1)
    assert planned["skipped"] == [{"trigger": "bill", "decision": "planned"}]
    assert submitted["outcome"] == "created"
    assert again["outcome"] == "replayed"
    assert again["runs"] == submitted["runs"]
    assert other["runs"] == []
    assert other["skipped"][0]["decision"] == "no_match"
    run_id = submitted["runs"][0]["runId"]
    run = await ask(client, "get-job-status", runId=run_id, waitSeconds=30)
    assert run["result"] == {"said": "hi"}
    listed = await ask(client, "list-events", type="order.*")
    assert [event["startedRuns"] for event in listed["events"]] == [0, 1]
    triggers = await ask(client, "list-triggers", name="bill", history=True)
    decisions = [fire["decision"] for fire in triggers["triggers"][0]["history"]]
    assert decisions == ["no_match", "fired"]
    removed = await ask(client, "remove-trigger", name="bill")
    assert removed["outcome"] == "removed"


async def test_personal_data_does_not_come_back(client: Client) -> None:
    await ask(
        client,
        "submit-event",
        type="user.created",
        payload={"mail": "secret", "city": "Bonn"},
        containsPii=True,
        redactFields=["mail"],
    )

    answer = await client.call_tool("list-events", {})

    assert "secret" not in answer.model_dump_json()
    assert answer.structured_content is not None
    assert answer.structured_content["events"][0]["payload"]["city"] == "Bonn"


async def test_unknown_arguments_and_bad_values_are_refused_in_words(client: Client) -> None:
    for tool, arguments in (
        ("submit-event", {"type": "a b"}),
        ("submit-event", {"kind": "x"}),
        ("list-events", {"cursor": "nope"}),
        ("register-trigger", {"name": "x", "kind": "event", "jobName": "test.echo"}),
        ("remove-trigger", {"name": "unknown"}),
    ):
        answer = await client.call_tool(tool, arguments)
        assert answer.is_error, tool
        assert answer.structured_content is not None
        assert answer.structured_content["error"]["code"] != "INTERNAL"


@pytest.mark.requirement("server.features")
async def test_what_is_switched_off_is_neither_listed_nor_called(
    database: ScratchDatabase, tmp_path: Path
) -> None:
    async with (
        open_stage(database, tmp_path, events_enabled=False) as stage,
        Client(build_server(stage.parts, stage.credential())) as client,
    ):
        names = {tool.name for tool in (await client.list_tools()).tools}
        answer = await client.call_tool("submit-event", {"type": "x"})

    assert "submit-event" not in names
    assert "register-trigger" in names
    assert answer.structured_content is not None
    assert answer.structured_content["error"]["code"] == "FEATURE_DISABLED"


async def test_the_tools_for_every_scope_cost_at_most_3200_tokens(stage: Stage) -> None:
    async with Client(build_server(stage.parts, stage.credential("acme", ALL_SCOPES))) as client:
        tools = (await client.list_tools()).tools

    shown = [
        {"name": tool.name, "description": tool.description, "inputSchema": tool.input_schema}
        for tool in tools
    ]
    assert count_tokens(json.loads(json.dumps(shown))) <= 3_200
