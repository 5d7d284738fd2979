"""What handlers leave behind, wherever they run: artifacts, decisions, and results too large for their run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from jobforge_mcp.errors import ConflictError, InvalidInputError
from jobforge_mcp.evidence.purging import purge_artifacts
from jobforge_mcp.evidence.reading import Range, read_artifact, read_result
from jobforge_mcp.evidence.references import reference_of
from jobforge_mcp.evidence.stores import DirectoryStore, lay_down, sweep_incoming
from jobforge_mcp.router.leases import WorkerRouter
from jobforge_mcp.types import RunStatus
from jobforge_mcp.worker.pool import WorkerPool
from tests.worker.conftest import Desk, PoolMaker

SECRET = "hunter2-hunter2"
EVERYWHERE = ["leave", "leave.thread", "leave.process", "leave.async-process"]
LARGE = 300_000


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "artifacts")


@pytest.fixture
async def pool(make_pool: PoolMaker, tmp_path: Path) -> AsyncGenerator[WorkerPool]:
    environ = dict(os.environ) | {"JOBFORGE_SECRET_API_KEY": SECRET}
    async with make_pool(
        environ,
        artifact_dir=tmp_path / "artifacts",
        artifact_max_bytes=400_000,
        artifacts_per_attempt=3,
    ) as made:
        yield made


def files(store: DirectoryStore) -> list[Path]:
    root = store.incoming.parent
    return [path for path in root.rglob("*") if path.is_file()]


@pytest.mark.requirement("evidence.artifacts")
@pytest.mark.parametrize("as_file", [False, True], ids=["bytes", "file"])
@pytest.mark.parametrize("size", [0, 5, LARGE])
@pytest.mark.parametrize("name", EVERYWHERE)
async def test_an_artifact_is_stored_from_wherever_the_handler_runs(
    desk: Desk, pool: WorkerPool, store: DirectoryStore, name: str, size: int, as_file: bool
) -> None:
    job_id = await desk.enqueue(name, size=size, as_file=as_file)

    run = await desk.until_final(job_id)
    artifact, part = await read_artifact(desk.router, store, desk.caller, job_id, "report.md")

    content = (b"hello" * (size // 5 + 1))[:size]
    assert json.loads(run.result or "null") == [f"jobforge://runs/{job_id}/artifacts/report.md"]
    assert part.data == content
    assert artifact.sha256 == hashlib.sha256(content).hexdigest()
    assert (artifact.size, artifact.mime_type, artifact.attempt_no) == (size, "text/markdown", 1)
    assert artifact.store == ("directory" if size == LARGE else "table")
    assert len(files(store)) == (1 if size == LARGE else 0)


@pytest.mark.requirement("evidence.artifacts")
async def test_a_range_is_read_and_all_of_it_is_checked(
    desk: Desk, pool: WorkerPool, store: DirectoryStore
) -> None:
    job_id = await desk.enqueue("leave", size=LARGE)
    await desk.until_final(job_id)

    async def read(offset: int, limit: int | None) -> tuple[bytes, int | None]:
        range = Range(offset, limit)
        _, part = await read_artifact(
            desk.router, store, desk.caller, job_id, "report.md", range=range
        )
        return part.data, part.next_offset

    assert await read(0, 7) == (b"hellohe", 7)
    assert await read(7, 3) == (b"llo", 10)
    assert await read(LARGE - 5, None) == (b"hello", None)
    assert await read(LARGE, 5) == (b"", None)
    for offset, limit in ((-1, 1), (0, 0), (LARGE + 1, 1)):
        with pytest.raises(InvalidInputError) as refused:
            await read(offset, limit)
        assert refused.value.code == "RANGE_INVALID"

    (file,) = files(store)
    file.write_bytes(b"HELLO" + file.read_bytes()[5:])
    with pytest.raises(ConflictError) as damaged:
        await read(LARGE - 5, None)
    file.unlink()
    with pytest.raises(ConflictError) as gone:
        await read(0, 7)
    assert (damaged.value.code, gone.value.code) == ("ARTIFACT_DAMAGED", "ARTIFACT_UNAVAILABLE")


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"name": "../../etc/passwd"}, "ARTIFACT_NAME"),
        ({"name": "$result"}, "ARTIFACT_NAME"),
        ({"mime": "text/html; charset=utf-8"}, "ARTIFACT_TYPE"),
        ({"size": 400_001}, "ARTIFACT_TOO_LARGE"),
        ({"size": 400_001, "as_file": True}, "ARTIFACT_TOO_LARGE"),
        ({"count": 4}, "TOO_MANY_ARTIFACTS"),
    ],
)
@pytest.mark.parametrize("name", ["leave", "leave.process"])
async def test_what_is_not_allowed_is_refused_in_words(
    desk: Desk, pool: WorkerPool, store: DirectoryStore, name: str, given: dict[str, str], code: str
) -> None:
    job_id = await desk.enqueue(name, **given)

    run = await desk.until_final(job_id)

    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error.code == code
    assert run.error.hint
    assert files(store) == []


async def test_a_text_is_neither_taken_as_a_path_nor_as_content(
    desk: Desk, pool: WorkerPool
) -> None:
    run = await desk.until_final(await desk.enqueue("leave.text"))

    assert run.error is not None
    assert run.error.code == "HANDLER_USAGE"


@pytest.mark.requirement("worker.secrets")
async def test_a_secret_is_struck_from_texts_and_decisions(
    desk: Desk, pool: WorkerPool, store: DirectoryStore
) -> None:
    job_id = await desk.enqueue("leave.secret")

    await desk.until_final(job_id)
    _, part = await read_artifact(desk.router, store, desk.caller, job_id, "log.txt")
    manifest = await desk.router.evidence.get_manifest(desk.caller, job_id)

    assert part.data == b"the key is [secret api_key]"
    assert SECRET not in json.dumps(manifest.facts)


# --- decisions and measures


@pytest.mark.requirement("evidence.manifest")
@pytest.mark.parametrize("name", ["decide", "decide.thread", "decide.process"])
async def test_decisions_and_readings_are_told_from_wherever_the_handler_runs(
    desk: Desk, pool: WorkerPool, name: str
) -> None:
    job_id = await desk.enqueue(name, number=502)

    await desk.until_final(job_id)
    facts: Any = (await desk.router.evidence.get_manifest(desk.caller, job_id)).facts

    decisions = facts["decisions"]
    assert len(decisions) == 500
    assert decisions[0] == {
        "name": "model",
        "choice": {"name": "m0"},
        "reason": "it is cheap\ufffd",
    }
    assert facts["decisionsDropped"] == 2
    assert [reading[0] for reading in facts["readings"]] == ["random"]
    assert facts["seed"] == f"{job_id}:1"
    expected: dict[str, set[str]] = {
        "decide": set(),
        "decide.thread": {"cpuMs"},
        "decide.process": {"cpuMs", "memoryMb"},
    }
    assert set(facts.get("metrics") or {}) == expected[name]


@pytest.mark.requirement("evidence.manifest")
@pytest.mark.parametrize(("name", "choice"), [("decide.fail", True), ("decide.die", "now")])
async def test_what_was_decided_is_known_of_attempts_that_failed_or_died(
    desk: Desk, pool: WorkerPool, name: str, choice: object
) -> None:
    job_id = await desk.enqueue(name)

    run = await desk.until_final(job_id)
    manifest = await desk.router.evidence.get_manifest(desk.caller, job_id)

    assert run.status in {RunStatus.FAILED, RunStatus.DEAD}
    facts: Any = manifest.facts
    assert facts["decisions"][0]["choice"] == choice
    assert manifest.error == run.error
    assert manifest.environment["tools"]


async def test_a_choice_that_is_too_large_is_refused(desk: Desk, pool: WorkerPool) -> None:
    run = await desk.until_final(await desk.enqueue("decide.much"))

    assert run.error is not None
    assert run.error.code == "DECISION_INVALID"


async def test_a_plain_success_writes_no_manifest(
    desk: Desk, pool: WorkerPool, admin: psycopg.Connection
) -> None:
    await desk.until_final(await desk.enqueue("echo"))

    assert admin.execute("select from jobforge.artifact_manifests").fetchall() == []


# --- results


@pytest.mark.requirement("evidence.results")
@pytest.mark.parametrize("name", ["long", "long.process", "long.transaction"])
async def test_a_result_above_a_mebibyte_becomes_an_artifact(
    desk: Desk, pool: WorkerPool, store: DirectoryStore, name: str
) -> None:
    job_id = await desk.enqueue(name, number=600)

    run = await desk.until_final(job_id)
    whole = json.dumps(["é" * 1_000] * 600, ensure_ascii=False, separators=(",", ":")).encode()
    part = await read_result(desk.router, store, desk.caller, job_id, run.result or "")
    piece = await read_result(
        desk.router, store, desk.caller, job_id, run.result or "", range=Range(2, 4)
    )

    assert run.status is RunStatus.SUCCEEDED
    reference = reference_of(run.result)
    assert reference is not None
    assert reference.size == len(whole) > 1024 * 1024
    assert part.data == whole
    assert piece.data == "éé".encode()


async def test_a_result_that_looks_like_a_reference_is_told_as_it_is() -> None:
    for text in ('{"$artifact": {"name": "x"}}', '{"$artifact": {}}', '{"$artifact": 1}', "1"):
        assert reference_of(text) is None


# --- what is left over


@pytest.mark.requirement("evidence.orphans")
async def test_a_purge_deletes_what_nothing_needs_and_nothing_else(
    desk: Desk,
    pool: WorkerPool,
    store: DirectoryStore,
    worker_router: WorkerRouter,
    admin: psycopg.Connection,
) -> None:
    kept = await desk.enqueue("leave", size=LARGE)
    gone = await desk.enqueue("leave", size=LARGE + 1)
    for job_id in (kept, gone):
        await desk.until_final(job_id)
    admin.execute(
        "update jobforge.artifact_objects set announced_at = announced_at - interval '2 h'"
    )
    assert await purge_artifacts(worker_router.artifacts, store) == 0

    admin.execute("delete from jobforge.jobs where id = %s", [gone])
    deleted = await purge_artifacts(worker_router.artifacts, store)

    assert deleted == 1
    assert len(files(store)) == 1
    _, part = await read_artifact(desk.router, store, desk.caller, kept, "report.md")
    assert part.size == LARGE


@pytest.mark.requirement("evidence.orphans")
async def test_a_purge_that_dies_before_it_forgets_does_it_again(
    desk: Desk,
    pool: WorkerPool,
    store: DirectoryStore,
    worker_router: WorkerRouter,
    admin: psycopg.Connection,
) -> None:
    job_id = await desk.enqueue("leave", size=LARGE)
    await desk.until_final(job_id)
    admin.execute("delete from jobforge.jobs")
    admin.execute(
        "update jobforge.artifact_objects set announced_at = announced_at - interval '2 h'"
    )

    async def die() -> None:
        async with worker_router.artifacts.purge_artifacts("directory") as objects:
            store.delete(objects[0].tenant_id, objects[0].sha256)
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        await die()

    assert await purge_artifacts(worker_router.artifacts, store) == 1
    assert await purge_artifacts(worker_router.artifacts, store) == 0
    assert files(store) == []


@pytest.mark.requirement("evidence.orphans")
def test_what_a_dead_process_laid_down_is_swept_by_its_age(store: DirectoryStore) -> None:
    source = Path(__file__)
    with source.open("rb") as file:
        old, size, _ = lay_down(store.incoming, file, 10**9)
    with source.open("rb") as file:
        new, _, _ = lay_down(store.incoming, file, 10**9)
    os.utime(old, (0, 0))

    swept = sweep_incoming(store.incoming)

    assert size == source.stat().st_size
    assert swept == 1
    assert files(store) == [new]
