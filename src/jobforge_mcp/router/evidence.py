"""What runs leave behind: artifacts and manifests, written under a worker's fence and read by callers.

Content that is too large for the table lies in a store outside, which is not this module's: it announces, records and
forgets objects there by their hash, and others write and delete them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import LiteralString

from jobforge_mcp.db.pool import Database, Row
from jobforge_mcp.errors import NotFoundError
from jobforge_mcp.router.errors import run_not_found, translated
from jobforge_mcp.router.rows import to_run_error
from jobforge_mcp.router.scope import SCOPE
from jobforge_mcp.router.scoped import ScopedRouter
from jobforge_mcp.types import (
    Artifact,
    ArtifactStore,
    Caller,
    ChildRun,
    Fence,
    JobId,
    ManifestFacts,
    NewArtifact,
    RunStatus,
    TenantId,
    WorkerId,
)

_ANNOUNCE: LiteralString = """
    select from jobforge.announce_artifact(%s::text, %s::uuid, %s::uuid, %s::int, %s::text, %s::bigint, %s::text)"""
_RECORD: LiteralString = """
    select r.* from jobforge.record_artifact(%s::text, %s::uuid, %s::uuid, %s::int, %s::text, %s::text, %s::bigint, %s::text,
      %s::text, %s::bytea, %s::bigint) as r"""
_LIST: LiteralString = (
    f"select r.* from {SCOPE}, lateral jobforge.list_artifacts(s.tenant_id, %s) as r"
)
_READ: LiteralString = f"""
    select r.* from {SCOPE}, lateral jobforge.read_artifact(s.tenant_id, %s, %s::text, %s::int) as r"""
_MANIFEST: LiteralString = (
    f"select r.* from {SCOPE}, lateral jobforge.get_manifest(s.tenant_id, %s, %s::int) as r"
)
_CHILDREN: LiteralString = (
    f"select r.* from {SCOPE}, lateral jobforge.list_child_runs(s.tenant_id, %s, %s::int) as r"
)


@dataclass(frozen=True, slots=True)
class StoredObject:
    """Content outside the database that nothing needs any more."""

    tenant_id: TenantId
    store: ArtifactStore
    sha256: str


class ArtifactRouter:
    """The functions of workers about what their attempts leave behind."""

    def __init__(self, database: Database) -> None:
        """Speak through this pool, of role ``jobforge_worker``."""
        self._database = database

    async def announce_artifact(self, fence: Fence, artifact: NewArtifact) -> None:
        """Say that content is about to be written outside, so that it can be swept whatever becomes of us.

        Raises:
            LeaseLostError: the claim is no longer the living one.
        """
        arguments = [*_fence(fence), artifact.sha256, artifact.size, artifact.store]
        await self._fetch(_ANNOUNCE, arguments)

    async def record_artifact(self, fence: Fence, artifact: NewArtifact) -> None:
        """Store an artifact of a running attempt; repeating it changes nothing.

        Raises:
            LeaseLostError: the claim is no longer the living one.
            ConflictError: content outside was not announced within the last hour.
            LimitError: the attempt made too many.
        """
        arguments = [
            *_fence(fence),
            artifact.name,
            artifact.mime_type,
            artifact.size,
            artifact.sha256,
            artifact.store,
            artifact.content,
            artifact.keep_ms,
        ]
        await self._fetch(_RECORD, arguments)

    async def keep_environment(self, worker_id: WorkerId, environment: str) -> None:
        """Remember what a worker runs with, as a JSON object."""
        await self._fetch("select from jobforge.keep_environment(%s, %s)", [worker_id, environment])

    @asynccontextmanager
    async def purge_artifacts(
        self, store: ArtifactStore, limit: int = 100
    ) -> AsyncGenerator[list[StoredObject]]:
        """Forget what ended, and yield the objects of a store to delete inside the block, after which they are forgotten.

        When the block raises they are yielded again next time.
        """
        async with self._database.transaction() as transaction:
            with translated():
                rows = await transaction.fetch(
                    "select r.* from jobforge.purge_artifacts(%s, %s) as r", [limit, store]
                )
            yield [
                StoredObject(TenantId(row["tenant_id"]), row["store"], row["sha256"])
                for row in rows
            ]

    async def _fetch(self, query: LiteralString, arguments: Sequence[object]) -> list[Row]:
        with translated():
            return await self._database.fetch(query, arguments, is_repeatable=True)


class EvidenceRouter(ScopedRouter):
    """The functions of callers about what runs left behind."""

    async def list_artifacts(self, caller: Caller, job_id: JobId) -> list[Artifact]:
        """List the artifacts of a run, oldest first, without their content."""
        return [
            to_artifact(row)
            for row in await self._fetch(caller, _LIST, [job_id], is_repeatable=True)
        ]

    async def read_artifact(
        self, caller: Caller, job_id: JobId, name: str, *, attempt_no: int | None = None
    ) -> tuple[Artifact, bytes | None]:
        """Read an artifact of the newest attempt that made it; its content only where that lies in the table.

        Raises:
            NotFoundError: ``ARTIFACT_NOT_FOUND``: there is none of this name, or not for this caller.
        """
        rows = await self._fetch(caller, _READ, [job_id, name, attempt_no], is_repeatable=True)
        if not rows:
            raise artifact_not_found()
        content: bytes | None = rows[0]["content"]
        return to_artifact(rows[0]), content

    async def get_manifest(
        self, caller: Caller, job_id: JobId, *, attempt_no: int | None = None
    ) -> ManifestFacts:
        """Read what is known of the newest attempt of a run, or of one that is named.

        Raises:
            NotFoundError: there is no such run for this caller, or no such attempt.
        """
        rows = await self._fetch(caller, _MANIFEST, [job_id, attempt_no], is_repeatable=True)
        if not rows:
            raise run_not_found(job_id)
        return to_manifest_facts(rows[0])

    async def list_child_runs(
        self, caller: Caller, job_id: JobId, *, limit: int = 20
    ) -> list[ChildRun]:
        """List runs that a run's handler enqueued, oldest first."""
        rows = await self._fetch(caller, _CHILDREN, [job_id, limit], is_repeatable=True)
        return [
            ChildRun(JobId(row["job_id"]), row["job_type"], RunStatus(row["status"]))
            for row in rows
        ]


def artifact_not_found() -> NotFoundError:
    """Make the one answer for an artifact that is not there, or not for this caller."""
    return NotFoundError(
        "the run has no such artifact",
        code="ARTIFACT_NOT_FOUND",
        hint="the manifest of the run lists its artifacts",
    )


def to_artifact(row: Row) -> Artifact:
    """Read an artifact without its content."""
    return Artifact(
        name=row["name"],
        attempt_no=row["attempt_no"],
        epoch=row["epoch"],
        mime_type=row["mime_type"],
        size=row["size"],
        sha256=row["sha256"],
        store=row["store"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
    )


def to_manifest_facts(row: Row) -> ManifestFacts:
    """Read what is known of an attempt."""
    return ManifestFacts(
        attempt_no=row["attempt_no"],
        epoch=row["epoch"],
        outcome=row["outcome"],
        worker_id=row["worker_id"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        error=to_run_error(row["error"]),
        input_hash=row["input_hash"],
        input_bytes=row["input_bytes"],
        result_hash=row["result_hash"],
        result_bytes=row["result_bytes"],
        log_lines=row["log_lines"],
        facts=row["facts"] or {},
        environment_hash=row["environment_hash"],
        environment=row["environment"] or {},
    )


def _fence(fence: Fence) -> list[object]:
    return [fence.tenant_id, fence.lease_id, fence.job_id, fence.epoch]
