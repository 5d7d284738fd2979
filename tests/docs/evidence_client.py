from __future__ import annotations

from jobforge_mcp.client import Range, SyncClient


def index_of(client: SyncClient, run_id: str) -> tuple[str, list[str]]:
    names = [artifact.name for artifact in client.artifacts(run_id)]
    first = client.read_artifact(run_id, "index.md", range=Range(0, 1_000))
    return first.data.decode(), names
