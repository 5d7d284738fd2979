"""Manifest, report, artifacts and ranges, as an agent gets them."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp.types import BlobResourceContents, ResourceLink, TextResourceContents

from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.server.build import build_server
from tests.server.stage import Stage
from tests.server.tokens import count_tokens

LETTER = "Dear reader, é"


async def run(client: Client, name: str, **input: object) -> str:
    answer = await client.call_tool("execute-job", {"name": name, "input": input})
    assert answer.structured_content is not None
    return answer.structured_content["runId"]


async def look(client: Client, run_id: str, *include: str) -> Any:
    return await client.call_tool("get-job-status", {"runId": run_id, "include": [*include]})


async def read(client: Client, uri: str) -> Any:
    return (await client.read_resource(uri)).contents[0]


@pytest.mark.requirement("evidence.manifest")
async def test_a_manifest_tells_what_an_attempt_got_made_and_decided(client: Client) -> None:
    run_id = await run(client, "test.leaves", text=LETTER)

    answer = await look(client, run_id, "manifest")
    shown = answer.structured_content["manifest"]
    whole = json.loads((await read(client, f"jobforge://runs/{run_id}/manifest")).text)

    assert shown == whole
    assert shown["status"] == "complete"
    assert shown["attempt"] == 1
    assert len(shown["input"]["sha256"]) == 64
    assert shown["logs"] == {"ref": f"jobforge://runs/{run_id}/logs", "lines": 1}
    assert shown["metrics"]["durationMs"] >= 0
    assert shown["environment"]["runtime"].startswith("CPython")
    assert "psycopg" in shown["toolVersions"]
    assert shown["decisions"][0]["name"] == "tone"
    outputs = {output["name"]: output for output in shown["outputs"]}
    assert set(outputs) == {"result", "letter.md", "picture.png"}
    assert outputs["letter.md"]["sha256"] == hashlib.sha256(LETTER.encode()).hexdigest()
    links = [content for content in answer.content if isinstance(content, ResourceLink)]
    assert [link.uri for link in links] == [
        f"jobforge://runs/{run_id}/artifacts/letter.md",
        f"jobforge://runs/{run_id}/artifacts/picture.png",
    ]
    assert count_tokens(answer.structured_content) < 8_000


@pytest.mark.requirement("evidence.manifest")
async def test_a_failed_and_a_plain_run_have_manifests_as_well(client: Client) -> None:
    failed = await look(client, await run(client, "test.fails"), "manifest")
    plain = await look(client, await run(client, "test.echo"), "manifest")

    assert failed.structured_content["manifest"]["status"] == "failed"
    assert failed.structured_content["manifest"]["error"]["code"]
    assert plain.structured_content["manifest"]["status"] == "complete"
    assert "decisions" not in plain.structured_content["manifest"]


@pytest.mark.requirement("evidence.artifacts")
async def test_an_artifact_is_a_resource_whole_and_by_ranges(client: Client) -> None:
    run_id = await run(client, "test.leaves", text=LETTER)
    uri = f"jobforge://runs/{run_id}/artifacts"

    letter = await read(client, f"{uri}/letter.md")
    picture = await read(client, f"{uri}/picture.png")
    first = await read(client, f"{uri}/letter.md?offset=0&limit=4")
    cut = await read(client, f"{uri}/letter.md?offset=12&limit=2")
    rest = await read(client, f"{uri}/letter.md?attempt=1&offset=13")

    assert isinstance(letter, TextResourceContents)
    assert (letter.text, letter.mime_type) == (LETTER, "text/markdown")
    assert isinstance(picture, BlobResourceContents)
    assert base64.b64decode(picture.blob) == bytes(range(256))
    assert first.text == "Dear"
    assert first.meta["jobforge/nextOffset"] == 4
    assert first.meta["jobforge/size"] == len(LETTER.encode())
    assert (cut.text, cut.meta["jobforge/nextOffset"]) == (" ", 13)
    assert rest.text == "é"
    assert "jobforge/nextOffset" not in rest.meta


@pytest.mark.parametrize(
    "rest",
    [
        "artifacts/nothing.md",
        "artifacts/",
        "artifacts/letter.md?attempt=2",
        "artifacts/letter.md?offset=1&offset=2",
        "artifacts/letter.md?offset=-1",
        "artifacts/letter.md?limit=x",
        "artifacts/letter.md?other=1",
        "artifacts/a/b",
        "artifacts/%24result",
        "result/letter.md",
        "manifest?attempt=7",
        "report?limit=1",
    ],
)
async def test_what_is_no_address_of_something_is_not_there(client: Client, rest: str) -> None:
    run_id = await run(client, "test.leaves")

    with pytest.raises(MCPError) as caught:
        await client.read_resource(f"jobforge://runs/{run_id}/{rest}")

    assert caught.value.message == "there is no such resource"


@pytest.mark.requirement("isolation.tools")
async def test_nothing_of_it_is_there_for_another_tenant_or_without_the_scope(stage: Stage) -> None:
    async with Client(build_server(stage.parts, stage.credential())) as owner:
        run_id = await run(owner, "test.leaves")
    parts = ("manifest", "report", "artifacts/letter.md")

    async with Client(build_server(stage.parts, stage.credential("globex"))) as other:
        for part in parts:
            with pytest.raises(MCPError) as caught:
                await other.read_resource(f"jobforge://runs/{run_id}/{part}")
            assert caught.value.message == "there is no such resource"
        answer = await look(other, run_id, "manifest", "report")
        assert answer.structured_content["error"]["code"] == "RUN_NOT_FOUND"
    weak = stage.credential(scopes=[Scope.JOBS_LIST])
    async with Client(build_server(stage.parts, weak)) as client:
        for part in parts:
            with pytest.raises(MCPError):
                await client.read_resource(f"jobforge://runs/{run_id}/{part}")


@pytest.mark.requirement("evidence.report")
async def test_a_report_tells_a_run_and_is_the_same_every_time(client: Client) -> None:
    run_id = await run(client, "test.leaves", text=LETTER)

    first = await look(client, run_id, "report")
    second = await look(client, run_id, "report")
    resource = await read(client, f"jobforge://runs/{run_id}/report")

    report = first.structured_content["report"]
    assert report == second.structured_content["report"] == resource.text
    assert resource.mime_type == "text/markdown"
    assert report.startswith("# Run of `test.leaves`: succeeded\n")
    for said in ("## Input", "letter.md", "decided `tone`", "warning", "## What to do next"):
        assert said in report
    assert "\n## forged" not in report
    assert count_tokens(first.structured_content) < 8_000
    assert report in first.content[0].text


@pytest.mark.requirement("evidence.results")
async def test_a_result_above_a_mebibyte_is_told_by_reference_and_read_by_ranges(
    client: Client,
) -> None:
    answer = await client.call_tool(
        "execute-job", {"name": "test.leaves", "input": {"text": "é" * 1_000, "times": 600}}
    )
    assert answer.structured_content is not None
    uri = answer.structured_content["resultUri"]

    whole = await read(client, uri)
    part = await read(client, f"{uri}?offset=9&limit=5")
    manifest = await look(client, answer.structured_content["runId"], "manifest")

    assert answer.structured_content["resultPreview"].startswith('{"said":"ééé')
    assert "result" not in answer.structured_content
    assert json.loads(whole.text) == {"said": "é" * 600_000}
    assert part.text == "éé"
    assert part.meta["jobforge/nextOffset"] == 13
    links = [content for content in answer.content if isinstance(content, ResourceLink)]
    assert [link.uri for link in links] == [uri]
    names = [output["name"] for output in manifest.structured_content["manifest"]["outputs"]]
    assert names == ["result", "letter.md", "picture.png"]


async def test_a_result_of_the_row_is_read_by_ranges_too(client: Client) -> None:
    run_id = await run(client, "test.echo", text="hello")
    uri = f"jobforge://runs/{run_id}/result"

    part = await read(client, f"{uri}?offset=2&limit=4")
    with pytest.raises(MCPError) as caught:
        await client.read_resource(f"{uri}?offset=1000")

    assert part.text == "said"
    assert "begins at byte 1000" in caught.value.message
