"""The Python client on what runs left behind, and the examples of its page."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from jobforge_mcp.client import Client, Range, SyncClient
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.errors import InvalidInputError, NotFoundError, PolicyDeniedError
from jobforge_mcp.evidence.stores import open_store
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.settings import Settings
from tests.docs.evidence import scan
from tests.docs.evidence_client import index_of
from tests.postgres import ScratchDatabase
from tests.server.jobs import JOBS
from tests.server.stage import Stage, open_stage


def client_of(stage: Stage, *scopes: Scope) -> Client:
    caller = stage.parts.gate.caller_of(stage.token(scopes=scopes or set(Scope)))
    return Client(
        stage.parts.router,
        stage.parts.registry,
        caller,
        watcher=stage.parts.watcher,
        open_store=lambda: open_store(stage.settings),
    )


async def run(client: Client, name: str, **input: str | int) -> str:
    enqueued = await client.enqueue(name, dict(input))
    with anyio.fail_after(30):
        await client.wait(enqueued.job_id)
    return str(enqueued.job_id)


@pytest.mark.requirement("evidence.artifacts")
async def test_the_client_reads_what_a_run_left(stage: Stage) -> None:
    client = client_of(stage)
    run_id = await run(client, "test.leaves", text="hello")

    manifest = await client.manifest(run_id, attempt=1)
    report = await client.report(run_id)
    names = [made.name for made in await client.artifacts(run_id)]
    part = await client.read_artifact(run_id, "letter.md", range=Range(1, 3))

    assert manifest["status"] == "complete"
    assert report.startswith("# Run of `test.leaves`: succeeded")
    assert names == ["letter.md", "picture.png"]
    assert (part.data, part.next_offset, part.size) == (b"ell", 4, 5)
    with pytest.raises(NotFoundError) as unknown:
        await client.read_artifact(run_id, "other.md")
    assert unknown.value.code == "ARTIFACT_NOT_FOUND"
    with pytest.raises(NotFoundError):
        await client.manifest(run_id, attempt=2)
    with pytest.raises(InvalidInputError):
        await client.read_artifact(run_id, "letter.md", range=Range(9))
    with pytest.raises(PolicyDeniedError):
        await client_of(stage, Scope.JOBS_LIST).artifacts(run_id)


@pytest.mark.requirement("evidence.results")
async def test_the_client_finds_a_result_wherever_it_lies(stage: Stage) -> None:
    client = client_of(stage)
    run_id = await run(client, "test.leaves", text="é" * 1_000, times=3_000)
    short = await run(client, "test.echo", text="hello")

    result = await client.result(run_id)
    part = await client.read_result(run_id, range=Range(0, 8))

    assert result == {"said": "é" * 3_000_000}
    assert part.data == b'{"said":'
    assert [made.name for made in await client.artifacts(run_id)] == ["letter.md", "picture.png"]
    assert await client.result(short) == {"said": "hello"}
    assert (await client.read_result(short)).data == b'{"said": "hello"}'


async def test_the_examples_of_the_page_run(database: ScratchDatabase, tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "2026-11-22.txt").write_text("today")
    registry = Registry([*JOBS, scan])
    async with open_stage(database, tmp_path, registry=registry) as stage:
        run_id = await run(client_of(stage), "notes.scan", folder=str(folder))

        def ask() -> tuple[tuple[str, list[str]], str]:
            connect = partial(SyncClient.connect, registry=registry, token=stage.token())
            settings: Settings = stage.settings
            with connect(settings) as client:
                return index_of(client, run_id), client.report(run_id)

        (index, names), report = await anyio.to_thread.run_sync(ask)

    assert index == "2026-11-22.txt"
    assert names == ["index.md", "2026-11-22.txt"]
    assert "by name" in report
    assert json.dumps("by name") in report
