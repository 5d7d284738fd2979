"""The same calls with the same answers through memory, stdio, streamable HTTP and SSE, in both eras."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp.types import CallToolResult, TextContent, TextResourceContents

from jobforge_mcp.policy.scopes import Scope
from tests.end_to_end.doors import Connect, Era
from tests.server.stage import Stage


def run_of(answer: CallToolResult) -> dict[str, Any]:
    assert answer.structured_content is not None
    return answer.structured_content


def text_of(answer: CallToolResult) -> str:
    assert isinstance(answer.content[0], TextContent)
    return answer.content[0].text


async def test_an_agent_runs_a_job_and_reads_it_again(connect: Connect, stage: Stage) -> None:
    async with connect(stage.token()) as client:
        listed = await client.call_tool("list-jobs", {"query": "echo"})
        answer = await client.call_tool("execute-job", {"name": "test.echo", "idempotencyKey": "a"})
        run = run_of(answer)
        again = await client.call_tool("get-job-status", {"runId": run["runId"]})
        resource = await client.read_resource(f"jobforge://runs/{run['runId']}/result")

    assert [job["name"] for job in run_of(listed)["jobs"]] == ["test.echo"]
    assert (answer.is_error, run["status"], run["result"]) == (
        False,
        "succeeded",
        {"said": "hello"},
    )
    assert {**run_of(again), "outcome": "created"} == run
    assert run["runId"] in text_of(answer)
    assert '{"said":"hello"}' in text_of(answer)
    assert isinstance(resource.contents[0], TextResourceContents)
    assert json.loads(resource.contents[0].text) == {"said": "hello"}


async def test_progress_arrives_while_the_call_waits_and_only_grows(
    connect: Connect, stage: Stage
) -> None:
    heard: list[tuple[float, float | None, str | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total, message))

    async with connect(stage.token()) as client:
        answer = await client.call_tool(
            "execute-job",
            {"name": "test.steps", "input": {"steps": 5, "seconds": 0.3}},
            progress_callback=hear,
        )

    amounts = [done for done, _, _ in heard]
    assert run_of(answer)["result"] == 5
    assert len(heard) >= 2
    assert amounts == sorted(set(amounts))
    assert any(message is not None and message.startswith("step") for _, _, message in heard)


async def test_a_failed_job_is_an_error_of_the_call_but_not_of_a_later_look(
    connect: Connect, stage: Stage
) -> None:
    async with connect(stage.token()) as client:
        failed = await client.call_tool("execute-job", {"name": "test.fails"})
        looked = await client.call_tool("get-job-status", {"runId": run_of(failed)["runId"]})

    expected = {
        "code": "CABLE_CUT",
        "message": "the cable is cut",
        "hint": "mend the cable",
        "retryable": False,
    }
    assert (failed.is_error, looked.is_error) == (True, False)
    assert (run_of(failed)["status"], run_of(failed)["error"]) == ("failed", expected)
    assert run_of(looked)["error"] == expected


async def test_a_run_is_canceled_and_retried(connect: Connect, stage: Stage) -> None:
    async with connect(stage.token()) as client:
        started = await client.call_tool("execute-job", {"name": "test.forever", "waitSeconds": 0})
        run_id = run_of(started)["runId"]
        await client.call_tool("cancel-job", {"runId": run_id, "reason": "enough"})
        ended = await client.call_tool("get-job-status", {"runId": run_id, "waitSeconds": 40})
        retried = await client.call_tool(
            "retry-job", {"runId": run_id, "runAt": "2099-01-01T00:00:00Z"}
        )
        refused = await client.call_tool("retry-job", {"runId": run_id})
        await client.call_tool("cancel-job", {"runId": run_id})

    assert run_of(started)["status"] in {"queued", "running"}
    assert run_of(ended)["status"] == "canceled"
    assert run_of(retried)["status"] == "queued"
    assert (refused.is_error, run_of(refused)["error"]["code"]) == (True, "CONFLICT")


async def test_a_repeated_key_is_replayed_and_another_input_is_a_conflict(
    connect: Connect, stage: Stage
) -> None:
    call = {"name": "test.echo", "idempotencyKey": "order-7", "input": {"text": "a"}}
    async with connect(stage.token()) as client:
        first = run_of(await client.call_tool("execute-job", call))
        second = run_of(await client.call_tool("execute-job", call))
        third = await client.call_tool("execute-job", {**call, "input": {"text": "b"}})

    assert (first["outcome"], second["outcome"]) == ("created", "replayed")
    assert first["runId"] == second["runId"]
    assert (third.is_error, run_of(third)["error"]["code"]) == (True, "IDEMPOTENCY_CONFLICT")


async def test_a_token_sees_only_the_tools_of_its_scopes_and_may_call_no_other(
    connect: Connect, stage: Stage
) -> None:
    async with connect(stage.token(scopes=[Scope.JOBS_LIST])) as client:
        tools = [tool.name for tool in (await client.list_tools()).tools]
        refused = await client.call_tool("execute-job", {"name": "test.echo"})

    assert tools == ["list-jobs"]
    assert (refused.is_error, run_of(refused)["error"]["code"]) == (True, "POLICY_DENIED")


async def test_another_tenants_run_and_an_unknown_run_are_the_same(
    connect: Connect, stage: Stage
) -> None:
    async with connect(stage.token("globex")) as client:
        foreign = run_of(await client.call_tool("execute-job", {"name": "test.noop"}))["runId"]
    unknown = "01890a5d-ac96-774b-bcce-b302099a8057"

    async with connect(stage.token("acme")) as client:
        answers = [
            [
                (await client.call_tool(tool, {"runId": run_id})).model_dump_json()
                for tool in ("get-job-status", "cancel-job", "retry-job")
            ]
            for run_id in (foreign, unknown)
        ]

    assert "RUN_NOT_FOUND" in answers[0][0]
    assert answers[0] == answers[1]


async def test_underscores_are_taken_but_not_listed_and_an_unknown_tool_is_an_error_of_the_protocol(
    connect: Connect, stage: Stage
) -> None:
    async with connect(stage.token()) as client:
        tools = [tool.name for tool in (await client.list_tools()).tools]
        alias = await client.call_tool("list_jobs", {"limit": 1})
        with pytest.raises(MCPError) as caught:
            await client.call_tool("drop-database", {})

    assert tools[:6] == [
        "list-jobs", "execute-job", "get-job-status", "list-runs", "cancel-job", "retry-job",
    ]  # fmt: skip
    assert not [name for name in tools if "_" in name]
    assert alias.is_error is False
    assert caught.value.code == -32602


async def test_the_clients_timeout_does_not_cancel_the_job(connect: Connect, stage: Stage) -> None:
    async with connect(stage.token()) as client:
        with pytest.raises(MCPError):
            await client.call_tool(
                "execute-job",
                {
                    "name": "test.steps",
                    "input": {"steps": 2, "seconds": 1.5},
                    "idempotencyKey": "k",
                },
                read_timeout_seconds=2,
            )
        runs = run_of(await client.call_tool("list-runs", {}))["runs"]
        ended = await client.call_tool(
            "get-job-status", {"runId": runs[0]["runId"], "waitSeconds": 40}
        )

    assert run_of(ended)["status"] == "succeeded"


async def test_a_caller_may_tie_the_job_to_the_call(connect: Connect, stage: Stage) -> None:
    async with connect(stage.token()) as client:
        with pytest.raises(MCPError):
            await client.call_tool(
                "execute-job",
                {"name": "test.forever", "cancelOnDisconnect": True},
                read_timeout_seconds=2,
            )
        runs = run_of(await client.call_tool("list-runs", {}))["runs"]
        with anyio.fail_after(60):
            ended = await client.call_tool(
                "get-job-status", {"runId": runs[0]["runId"], "waitSeconds": 40}
            )

    assert run_of(ended)["status"] == "canceled"


async def test_what_a_handler_prints_does_not_reach_the_protocol(
    connect: Connect, stage: Stage
) -> None:
    async with connect(stage.token()) as client:
        printed = await client.call_tool("execute-job", {"name": "test.prints"})
        environment = await client.call_tool("execute-job", {"name": "test.environment"})

    assert run_of(printed)["result"] == "printed"
    assert run_of(environment)["result"] is False


async def test_instructions_are_given_in_both_eras(
    connect: Connect, stage: Stage, era: Era
) -> None:
    async with connect(stage.token()) as client:
        assert isinstance(client, Client)
        assert client.instructions is not None
        assert client.protocol_version == ("2025-11-25" if era == "legacy" else "2026-07-28")
