"""Where the content of large artifacts lies: a directory that workers and servers share, or an S3-compatible store.

Content is found by tenant and hash. It is laid into ``incoming`` first, under a name of its own, flushed to disk, and then
moved to where it belongs in one step: whoever finds it there finds all of it. Nothing here speaks to the database, which
knows of every object before it is written; what is left in ``incoming`` by a process that died is swept by its age.

All calls block; they are made on a thread.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from jobforge_mcp.errors import DatabaseUnavailableError, OperatorError, SettingsError
from jobforge_mcp.settings import Settings
from jobforge_mcp.types import ArtifactStore

CHUNK_BYTES = 1024 * 1024

INCOMING_SECONDS = 24 * 3_600
"""Age at which what lies in ``incoming`` is nobody's: no attempt writes for a day."""


class StoreUnavailableError(DatabaseUnavailableError):
    """The store of artifacts cannot be reached or written; trying again may help."""

    default_code = "ARTIFACT_STORE_UNAVAILABLE"


class ContentStore(Protocol):
    """A place outside the database."""

    word: ArtifactStore
    """What rows call it."""

    @property
    def incoming(self) -> Path:
        """Folder where content is laid down before it is complete."""
        ...

    def keep(self, tenant_id: str, sha256: str, laid: Path) -> None:
        """Take over a complete file from ``incoming``."""
        ...

    def chunks(self, tenant_id: str, sha256: str) -> Iterator[bytes]:
        """Read content from its beginning.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def delete(self, tenant_id: str, sha256: str) -> None:
        """Delete content; it may be gone already."""
        ...


def open_store(settings: Settings) -> ContentStore:
    """Open the store that the settings name.

    Raises:
        SettingsError: the library for it is not installed.
    """
    if settings.artifact_url is None:
        return DirectoryStore(settings.artifacts_path)
    try:
        from jobforge_mcp.evidence.s3 import S3Store
    except ImportError:
        raise SettingsError(
            "JOBFORGE_ARTIFACT_URL names an S3 store, and the library for it is not installed",
            hint="pip install 'jobforge-mcp[s3]'",
        ) from None
    return S3Store(settings.artifact_url, settings.artifacts_path)


class DirectoryStore:
    """A directory: ``<tenant>/<two digits>/<hash>``, the tenant as a hash, too, for file systems that know no case."""

    word: ArtifactStore = "directory"

    def __init__(self, root: Path) -> None:
        """Keep content below this folder, which is made when it is first needed."""
        self._root = root

    @property
    def incoming(self) -> Path:
        """See `ContentStore.incoming`."""
        return self._root / "incoming"

    def keep(self, tenant_id: str, sha256: str, laid: Path) -> None:
        """See `ContentStore.keep`."""
        place = self._place(tenant_id, sha256)
        try:
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            laid.replace(place)
            _flush_folder(place.parent)
        except OSError as error:
            raise unavailable(error) from error

    def chunks(self, tenant_id: str, sha256: str) -> Iterator[bytes]:
        """See `ContentStore.chunks`."""
        with self._place(tenant_id, sha256).open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def delete(self, tenant_id: str, sha256: str) -> None:
        """See `ContentStore.delete`."""
        place = self._place(tenant_id, sha256)
        place.unlink(missing_ok=True)
        with suppress(OSError):  # not empty, as most are
            place.parent.rmdir()

    def _place(self, tenant_id: str, sha256: str) -> Path:
        return self._root / object_key(tenant_id, sha256)


def object_key(tenant_id: str, sha256: str) -> str:
    """Return where the content of a tenant lies, relative to its store."""
    return f"{hashlib.sha256(tenant_id.encode()).hexdigest()[:32]}/{sha256[:2]}/{sha256}"


def lay_down(incoming: Path, source: BinaryIO, most: int) -> tuple[Path, int, str]:
    """Copy a file into ``incoming`` and flush it to disk; return its path, size and hash.

    What is longer than ``most`` is left out, and the size says that it is: one byte more than allowed.
    """
    digest, size = hashlib.sha256(), 0
    laid: Path | None = None
    try:
        incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
        number, name = tempfile.mkstemp(dir=incoming)
        laid = Path(name)
        with os.fdopen(number, "wb") as file:
            while size <= most and (chunk := source.read(min(CHUNK_BYTES, most + 1 - size))):
                digest.update(chunk)
                file.write(chunk)
                size += len(chunk)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if laid is not None:
            laid.unlink(missing_ok=True)
        raise unavailable(error) from error
    return laid, size, digest.hexdigest()


def sweep_incoming(incoming: Path, *, older_than: float = INCOMING_SECONDS) -> int:
    """Delete what processes that died left in ``incoming``; return how many files there were."""
    count = 0
    if not incoming.is_dir():
        return 0
    for path in incoming.iterdir():
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > older_than:
                path.unlink()
                count += 1
    return count


def unavailable(error: Exception) -> OperatorError:
    """Make the error of a store that fails, without the words of its library, which may hold an address."""
    reason = (
        error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
    )
    return StoreUnavailableError(
        f"the store of artifacts could not be used: {reason}",
        hint="check JOBFORGE_ARTIFACT_DIR or JOBFORGE_ARTIFACT_URL on this host",
    )


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
