from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from mcp.client import Client, IncomingMessage
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import ResourceUpdated
from mcp.types import ResourceUpdatedNotification, TextResourceContents

from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.server.build import build_server
from tests.server.stage import Stage


def text_of(contents: Any) -> str:
    assert isinstance(contents[0], TextResourceContents)
    return contents[0].text


async def start(client: Client, name: str, **more: object) -> str:
    answer = await client.call_tool("execute-job", {"name": name, "background": True, **more})
    assert answer.structured_content is not None
    return answer.structured_content["runId"]


async def test_a_run_its_result_its_log_and_its_job_are_resources(client: Client) -> None:
    answer = await client.call_tool("execute-job", {"name": "test.echo"})
    assert answer.structured_content is not None
    run_id = answer.structured_content["runId"]

    run = await client.read_resource(f"jobforge://runs/{run_id}")
    result = await client.read_resource(f"jobforge://runs/{run_id}/result")
    logs = await client.read_resource(f"jobforge://runs/{run_id}/logs")
    job = await client.read_resource("jobforge://jobs/test.echo")
    listed = await client.list_resources()
    templates = await client.list_resource_templates()

    assert json.loads(text_of(run.contents))["status"] == "succeeded"
    assert json.loads(text_of(result.contents)) == {"said": "hello"}
    assert text_of(logs.contents).endswith("1 info echoing")
    assert json.loads(text_of(job.contents))["inputSchema"]["properties"]["text"]
    assert "jobforge://jobs/test.echo" in [resource.uri for resource in listed.resources]
    assert len(templates.resource_templates) == 8


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_what_is_foreign_unknown_unfinished_or_no_address_is_not_there(
    mode: Any, stage: Stage
) -> None:
    async with Client(build_server(stage.parts, stage.credential("globex"))) as other:
        foreign = await start(other, "test.forever")
    uris = [
        f"jobforge://runs/{foreign}",
        "jobforge://runs/01890a5d-ac96-774b-bcce-b302099a8057",
        "jobforge://runs/01890a5d-ac96-774b-bcce-b302099a8057/result",
        "jobforge://runs/rubbish",
        "jobforge://runs/",
        "jobforge://jobs/nothing",
        "file:///etc/passwd",
    ]
    errors: list[MCPError] = []

    async with Client(build_server(stage.parts, stage.credential()), mode=mode) as client:
        own = await start(client, "test.forever")
        for uri in (*uris, f"jobforge://runs/{own}/result"):
            with pytest.raises(MCPError) as caught:
                await client.read_resource(uri)
            errors.append(caught.value)

    code = -32602 if mode == "auto" else -32002
    assert {(error.code, error.message) for error in errors} == {
        (code, "there is no such resource")
    }


async def test_reading_a_run_needs_its_scope(stage: Stage) -> None:
    credential = stage.credential(scopes=[Scope.JOBS_LIST])
    async with Client(build_server(stage.parts, credential)) as client:
        with pytest.raises(MCPError) as caught:
            await client.read_resource("jobforge://runs/01890a5d-ac96-774b-bcce-b302099a8057")

    assert caught.value.data["code"] == "POLICY_DENIED"


async def test_a_client_of_2026_listens_to_its_own_runs_and_to_no_others(stage: Stage) -> None:
    async with Client(build_server(stage.parts, stage.credential("globex"))) as other:
        foreign = await start(other, "test.forever")
    async with Client(build_server(stage.parts, stage.credential())) as client:
        own = await start(client, "test.steps", input={"steps": 200, "seconds": 0.3})
        uris = [f"jobforge://runs/{own}", f"jobforge://runs/{foreign}", "jobforge://jobs/test.echo"]
        async with client.listen(resource_subscriptions=uris, tools_list_changed=True) as heard:
            honored = heard.honored
            first = None
            with anyio.fail_after(60):
                first = await anext(aiter(heard))

    assert honored.resource_subscriptions == [uris[0]]
    assert honored.tools_list_changed is None
    assert first == ResourceUpdated(uri=uris[0])


@pytest.mark.filterwarnings("ignore:resources/:mcp.shared.exceptions.MCPDeprecationWarning")
async def test_a_client_of_the_handshake_era_subscribes_and_is_told(stage: Stage) -> None:
    told: list[str] = []
    changed = anyio.Event()

    async def hear(message: IncomingMessage) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            told.append(str(message.params.uri))
            changed.set()

    server = build_server(stage.parts, stage.credential())
    async with Client(server, mode="legacy", message_handler=hear) as client:
        run_id = await start(client, "test.steps", input={"steps": 200, "seconds": 0.3})
        uri = f"jobforge://runs/{run_id}"
        await client.session.subscribe_resource(uri)  # pyright: ignore[reportDeprecated]
        with anyio.fail_after(60):
            await changed.wait()
        await client.session.unsubscribe_resource(uri)  # pyright: ignore[reportDeprecated]
        with pytest.raises(MCPError):
            await client.session.subscribe_resource(  # pyright: ignore[reportDeprecated]
                "jobforge://runs/01890a5d-ac96-774b-bcce-b302099a8057"
            )

    assert set(told) == {uri}
