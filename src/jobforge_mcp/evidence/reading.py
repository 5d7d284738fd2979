"""Reads artifacts: their content, checked against its hash, whole or by a range of bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import anyio.to_thread

from jobforge_mcp.errors import ConflictError, InvalidInputError
from jobforge_mcp.evidence.references import RESULT_NAME, reference_of
from jobforge_mcp.evidence.stores import ContentStore
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.types import Artifact, Caller, JobId

WHOLE_BYTES = 8 * 1024 * 1024
"""What is longer is read by ranges, so that one call does not take a process's memory."""


@dataclass(frozen=True, slots=True)
class Range:
    """Part of a content, in bytes."""

    offset: int = 0
    limit: int | None = None
    """Most bytes; all that follow if absent, where that is not too much."""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of a content, and where they are in it."""

    data: bytes
    offset: int
    size: int
    """Bytes of the whole."""
    mime_type: str
    sha256: str
    """Of the whole, in hexadecimal."""

    @property
    def next_offset(self) -> int | None:
        """Where the next part begins; ``None`` after the last."""
        end = self.offset + len(self.data)
        return end if end < self.size else None


async def read_artifact(
    router: Router,
    store: ContentStore,
    caller: Caller,
    job_id: JobId,
    name: str,
    *,
    attempt_no: int | None = None,
    range: Range | None = None,
) -> tuple[Artifact, Part]:
    """Read an artifact, or a range of it. All of it is checked against its hash, whatever the range.

    Raises:
        NotFoundError: ``ARTIFACT_NOT_FOUND``.
        InvalidInputError: ``RANGE_INVALID``, also for one that is too long.
        ConflictError: ``ARTIFACT_UNAVAILABLE`` or ``ARTIFACT_DAMAGED``.
    """
    artifact, content = await router.evidence.read_artifact(
        caller, job_id, name, attempt_no=attempt_no
    )
    range = checked(range or Range(), artifact.size)

    def read() -> bytes:
        chunks = iter([content]) if content is not None else _outside(store, caller, artifact)
        return _cut(chunks, artifact, range)

    data = await anyio.to_thread.run_sync(read)
    return artifact, Part(data, range.offset, artifact.size, artifact.mime_type, artifact.sha256)


async def read_result(
    router: Router,
    store: ContentStore,
    caller: Caller,
    job_id: JobId,
    text: str,
    *,
    range: Range | None = None,
) -> Part:
    """Read the result of a run, or a range of its JSON text, wherever the whole of it lies."""
    if reference_of(text) is not None:
        _, part = await read_artifact(router, store, caller, job_id, RESULT_NAME, range=range)
        return part
    data = text.encode()
    range = checked(range or Range(), len(data))
    end = len(data) if range.limit is None else range.offset + range.limit
    digest = hashlib.sha256(data).hexdigest()
    return Part(data[range.offset : end], range.offset, len(data), "application/json", digest)


def checked(range: Range, size: int) -> Range:
    """Refuse a range that is none, or more than one call may read."""
    if range.offset < 0 or (range.limit is not None and range.limit < 1):
        raise InvalidInputError(
            "a range begins at a byte from 0 on and has at least one",
            code="RANGE_INVALID",
            hint="offset and limit are numbers of bytes",
        )
    if range.offset > size:
        raise InvalidInputError(
            f"the range begins at byte {range.offset}, and there are {size}",
            code="RANGE_INVALID",
            hint="begin with offset 0, and go on where the part before ended",
        )
    wanted = size - range.offset if range.limit is None else range.limit
    if min(wanted, size - range.offset) > WHOLE_BYTES:
        raise InvalidInputError(
            f"{size} bytes are too many for one call, which reads at most {WHOLE_BYTES}",
            code="RANGE_INVALID",
            hint=f"read it by ranges, with offset and a limit of at most {WHOLE_BYTES}",
        )
    return range


def _outside(store: ContentStore, caller: Caller, artifact: Artifact) -> Iterator[bytes]:
    gone = ConflictError(
        f"the content of the artifact lies in a store ({artifact.store}) that this process does not see",
        code="ARTIFACT_UNAVAILABLE",
        hint="give servers and workers the same JOBFORGE_ARTIFACT_DIR or JOBFORGE_ARTIFACT_URL",
    )
    if store.word != artifact.store:
        raise gone
    try:
        yield from store.chunks(caller.tenant_id, artifact.sha256)
    except FileNotFoundError:
        raise gone from None


def _cut(chunks: Iterator[bytes], artifact: Artifact, range: Range) -> bytes:
    """Keep the range of a content, and look at all of it."""
    digest, place, kept = hashlib.sha256(), 0, bytearray()
    end = artifact.size if range.limit is None else range.offset + range.limit
    for chunk in chunks:
        digest.update(chunk)
        kept += chunk[max(range.offset - place, 0) : max(end - place, 0)]
        place += len(chunk)
    if place != artifact.size or digest.hexdigest() != artifact.sha256:
        raise ConflictError(
            f"the content of the artifact {artifact.name} is not what was recorded",
            code="ARTIFACT_DAMAGED",
            hint="tell the operator: the store lost or changed it",
        )
    return bytes(kept)
