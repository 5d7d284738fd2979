"""Artifacts in an S3-compatible store, through ``obstore``: the only module that knows it (extra ``s3``).

Endpoint, region and credentials are what the library finds in the environment, as for every tool that speaks S3
(``AWS_ENDPOINT``, ``AWS_REGION``, ``AWS_ACCESS_KEY_ID`` and so on). A put is atomic there: whoever finds an object finds
all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store as Bucket

from jobforge_mcp.evidence.stores import CHUNK_BYTES, object_key, unavailable
from jobforge_mcp.types import ArtifactStore

PART_BYTES = 8 * 1024 * 1024
"""Of an upload in parts, which larger files are."""


class S3Store:
    """A bucket, or a prefix in one."""

    word: ArtifactStore = "s3"

    def __init__(self, url: str, folder: Path) -> None:
        """Keep content below ``s3://BUCKET/PREFIX``; ``folder`` is for files on their way."""
        self._bucket = Bucket.from_url(url)
        self._folder = folder

    @property
    def incoming(self) -> Path:
        """See `ContentStore.incoming`."""
        return self._folder / "incoming"

    def keep(self, tenant_id: str, sha256: str, laid: Path) -> None:
        """See `ContentStore.keep`; the file stays where it is, for its owner to delete."""
        try:
            obstore.put(self._bucket, object_key(tenant_id, sha256), laid, chunk_size=PART_BYTES)
        except (BaseError, OSError) as error:
            raise unavailable(error) from None  # its words may hold the address

    def chunks(self, tenant_id: str, sha256: str) -> Iterator[bytes]:
        """See `ContentStore.chunks`."""
        try:
            found = obstore.get(self._bucket, object_key(tenant_id, sha256))
            for chunk in found.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(chunk)
        except FileNotFoundError:
            raise
        except (BaseError, OSError) as error:
            raise unavailable(error) from None

    def delete(self, tenant_id: str, sha256: str) -> None:
        """See `ContentStore.delete`."""
        try:
            with suppress(FileNotFoundError):
                obstore.delete(self._bucket, object_key(tenant_id, sha256))
        except (BaseError, OSError) as error:
            raise unavailable(error) from None
