"""Takes what handlers leave behind: checks it, stores its content, and records it under the fence of the attempt.

Small content goes into the database with its row. Large content is laid down and flushed to disk, announced, moved to its
place in the store, and only then recorded: whoever dies in between leaves nothing that could be shown, and what it left
is swept. Results that are too large for their run go the same way.
"""

from __future__ import annotations

import hashlib
import mimetypes
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from jobforge_mcp.errors import PermanentError
from jobforge_mcp.evidence.references import RESULT_NAME, reference_text
from jobforge_mcp.evidence.stores import ContentStore, lay_down
from jobforge_mcp.router.evidence import ArtifactRouter
from jobforge_mcp.settings import Settings
from jobforge_mcp.types import ArtifactStore, NewArtifact
from jobforge_mcp.worker.attempt import Attempt
from jobforge_mcp.worker.evidence import capped
from jobforge_mcp.worker.requests import ArtifactRef, ArtifactRequest

ROW_RESULT_BYTES = 1024 * 1024
"""Larger results are artifacts; the database refuses them in the run's own row."""

PREVIEW_CHARS = 600

REDACTED_BYTES = 16 * 1024 * 1024
"""Texts up to this size are freed of secrets; what is larger is stored as it is."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MIME = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,60}/[a-z0-9][a-z0-9!#$&^_.+-]{0,60}")
_ANYTHING = "application/octet-stream"
_T = TypeVar("_T")


def fits_row(text: str) -> bool:
    """Tell whether a result is small enough for the row of its run."""
    return len(text) <= ROW_RESULT_BYTES // 4 or len(text.encode()) <= ROW_RESULT_BYTES


@dataclass(frozen=True, slots=True)
class ArtifactLimits:
    """What one attempt may leave behind, and for how long."""

    inline_bytes: int
    most_bytes: int
    most_count: int
    keep: timedelta | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> ArtifactLimits:
        """Take what the operator set."""
        return cls(
            min(settings.artifact_inline_bytes, settings.artifact_max_bytes),
            settings.artifact_max_bytes,
            settings.artifacts_per_attempt,
            timedelta(days=settings.artifact_days) if settings.artifact_days else None,
        )


@dataclass(frozen=True, slots=True)
class Keeper:
    """Stores the artifacts of one worker's attempts."""

    router: ArtifactRouter
    store: ContentStore
    limits: ArtifactLimits
    _few: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(4))

    async def keep(self, attempt: Attempt, request: ArtifactRequest) -> ArtifactRef:
        """Store an artifact of a running attempt.

        Raises:
            PermanentError: its name, type, size or number is not allowed, or its file cannot be read.
            LeaseLostError: the attempt is no longer the living one.
        """
        try:
            mime = _check(request)
            self._count(attempt, request.name)
            return await self._store(attempt, request, mime)
        finally:
            if request.is_spooled and isinstance(request.content, Path):
                await self._on_thread(lambda: _forget(request.content))

    async def keep_result(self, attempt: Attempt, text: str) -> str:
        """Return a result as its run's row can hold it: as it is, or as a reference to an artifact."""
        if fits_row(text):
            return text
        data = text.encode()
        request = ArtifactRequest(RESULT_NAME, data, "application/json")
        ref = await self._store(attempt, request, "application/json", is_limited=False)
        preview = capped(text[:PREVIEW_CHARS], PREVIEW_CHARS * 4)
        return reference_text(attempt.fence.job_id, ref.size, ref.sha256, preview)

    async def _store(
        self, attempt: Attempt, request: ArtifactRequest, mime: str, *, is_limited: bool = True
    ) -> ArtifactRef:
        most = self.limits.most_bytes if is_limited else 2**40
        keep = request.keep or (self.limits.keep if is_limited else None)
        data = await self._on_thread(lambda: self._small(attempt, request, mime))
        laid: Path | None = None
        if data is not None and len(data) <= self.limits.inline_bytes:
            artifact = _artifact(request.name, mime, len(data), _hash(data), "table", keep, data)
        else:
            laid, size, sha256 = await self._on_thread(lambda: self._lay(request, data, most))
            artifact = _artifact(request.name, mime, size, sha256, self.store.word, keep)
        try:
            if artifact.size > most:
                raise _too_large(request.name, most)
            if laid is not None:
                await self._keep_outside(attempt, artifact, laid)
            await self.router.record_artifact(attempt.fence, artifact)
        finally:
            if laid is not None:
                with anyio.CancelScope(shield=True):
                    await self._on_thread(lambda: _forget(laid))
        uri = f"jobforge://runs/{attempt.fence.job_id}/artifacts/{request.name}"
        return ArtifactRef(request.name, uri, artifact.size, artifact.sha256, mime)

    async def _keep_outside(self, attempt: Attempt, artifact: NewArtifact, laid: Path) -> None:
        tenant = attempt.fence.tenant_id
        await self.router.announce_artifact(attempt.fence, artifact)
        await self._on_thread(lambda: self.store.keep(tenant, artifact.sha256, laid))

    def _small(self, attempt: Attempt, request: ArtifactRequest, mime: str) -> bytes | None:
        """Read content that is small, or a text that secrets have to be struck from; ``None`` leaves it where it is."""
        content = request.content
        is_text = mime.startswith("text/") or mime.endswith(("json", "xml", "yaml", "csv"))
        most = REDACTED_BYTES if is_text and attempt.has_secrets else self.limits.inline_bytes
        if isinstance(content, Path):
            try:
                if content.stat().st_size > most:
                    return None
                content = content.read_bytes()
            except OSError as error:
                raise _unreadable(request.name, error) from None
        return attempt.redact_bytes(content) if is_text else content

    def _lay(
        self, request: ArtifactRequest, data: bytes | None, most: int
    ) -> tuple[Path, int, str]:
        content = request.content if data is None else data
        if isinstance(content, bytes):
            return lay_down(self.store.incoming, BytesIO(content), most)
        try:
            file = content.open("rb")
        except OSError as error:
            raise _unreadable(request.name, error) from None
        with file:
            return lay_down(self.store.incoming, file, most)

    def _count(self, attempt: Attempt, name: str) -> None:
        if name not in attempt.artifacts and len(attempt.artifacts) >= self.limits.most_count:
            raise PermanentError(
                f"the attempt has made {self.limits.most_count} artifacts, and no more are allowed",
                code="TOO_MANY_ARTIFACTS",
                hint="put several into one, or let the operator raise JOBFORGE_ARTIFACTS_PER_ATTEMPT",
            )
        attempt.artifacts.add(name)

    async def _on_thread(self, call: Callable[[], _T]) -> _T:
        return await anyio.to_thread.run_sync(call, limiter=self._few)


def _check(request: ArtifactRequest) -> str:
    """Refuse a name or a type that is none, and return the type."""
    if not _NAME.fullmatch(request.name):
        raise PermanentError(
            f"the artifact name {request.name[:100]!r} is not 1 to 100 letters, digits, dots, hyphens or underscores",
            code="ARTIFACT_NAME",
            hint="begin it with a letter or digit; it is no path",
        )
    guessed = mimetypes.guess_type(request.name, strict=False)[0]
    mime = request.mime or guessed or ("text/markdown" if request.name.endswith(".md") else None)
    mime = (mime or _ANYTHING).lower()
    if not _MIME.fullmatch(mime):
        raise PermanentError(
            f"the type of the artifact {request.name} is not one such as text/plain",
            code="ARTIFACT_TYPE",
            hint="leave it out to have it guessed from the name, and leave out parameters such as charset",
        )
    if request.keep is not None and request.keep < timedelta(0):
        raise PermanentError(
            f"the artifact {request.name} would have to be kept for less than no time",
            code="ARTIFACT_TYPE",
            hint="keep is how long from now on",
        )
    return mime


def _artifact(
    name: str,
    mime: str,
    size: int,
    sha256: str,
    store: ArtifactStore,
    keep: timedelta | None,
    content: bytes | None = None,
) -> NewArtifact:
    keep_ms = None if keep is None else int(keep.total_seconds() * 1_000)
    return NewArtifact(name, mime, size, sha256, store, content, keep_ms)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _too_large(name: str, most: int) -> PermanentError:
    return PermanentError(
        f"the artifact {name} has more than the {most} bytes that one may have",
        code="ARTIFACT_TOO_LARGE",
        hint="compress or split it, or let the operator raise JOBFORGE_ARTIFACT_MAX_BYTES",
    )


def _unreadable(name: str, error: OSError) -> PermanentError:
    return PermanentError(
        f"the file for the artifact {name} cannot be read: {error.strerror or type(error).__name__}",
        code="ARTIFACT_UNREADABLE",
        hint="give the bytes, or the path of a file that is there when the call is made",
    )


def _forget(content: object) -> None:
    if isinstance(content, Path):
        content.unlink(missing_ok=True)
