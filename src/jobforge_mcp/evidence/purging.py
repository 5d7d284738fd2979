"""Deletes artifacts that ended and content that nothing needs: one round, for whoever keeps an installation tidy."""

from __future__ import annotations

import anyio.to_thread

from jobforge_mcp.evidence.stores import ContentStore, sweep_incoming
from jobforge_mcp.router.evidence import ArtifactRouter, StoredObject


async def purge_artifacts(router: ArtifactRouter, store: ContentStore, limit: int = 100) -> int:
    """Do one round for one store and return how many objects were deleted; as many as ``limit``: there may be more.

    The content goes before the transaction ends that forgets it. Whoever dies in between, or cannot delete, leaves it to
    the next round.
    """

    def delete(objects: list[StoredObject]) -> None:
        for found in objects:
            store.delete(found.tenant_id, found.sha256)

    async with router.purge_artifacts(store.word, limit) as objects:
        await anyio.to_thread.run_sync(delete, objects)
    await anyio.to_thread.run_sync(sweep_incoming, store.incoming)
    return len(objects)
