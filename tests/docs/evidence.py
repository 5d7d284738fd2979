from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from jobforge_mcp import JobContext, job


class ScanInput(BaseModel):
    folder: str


@job(name="notes.scan", effects="none")
def scan(input: ScanInput, job: JobContext) -> int:
    found = sorted(Path(input.folder).glob("*.txt"))
    job.decide("order", "by name", "names begin with dates here")
    job.artifact_sync("index.md", "\n".join(path.name for path in found).encode())
    for path in found[:3]:
        job.artifact_sync(path.name, path)
    return len(found)
