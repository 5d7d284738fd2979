"""Results that are too large for their run: what stands in the run instead, and how it is told from a result."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import cast

from jobforge_mcp.types import JobId, JsonObject

RESULT_NAME = "$result"
"""Artifact that holds a result which was too large for its run."""

_REFERENCE = '{"$artifact": {'
"""How a result begins that says where the whole one is; Postgres writes jsonb with these blanks."""


@dataclass(frozen=True, slots=True)
class ResultReference:
    """What a run's result says when the whole one is an artifact."""

    size: int
    sha256: str
    preview: str


def reference_of(result: str | None) -> ResultReference | None:
    """Return what a result refers to when it is not the whole one itself."""
    if result is None or not result.startswith(_REFERENCE):
        return None
    said = cast("JsonObject", json.loads(result))["$artifact"]
    if not isinstance(said, dict) or said.get("name") != RESULT_NAME:
        return None
    size, sha256, preview = said.get("size"), said.get("sha256"), said.get("preview")
    if not isinstance(size, int) or not isinstance(sha256, str) or not isinstance(preview, str):
        return None
    return ResultReference(size, sha256, preview)


def reference_text(job_id: JobId, size: int, sha256: str, preview: str) -> str:
    """Write the result of a run whose whole result is an artifact."""
    said: JsonObject = {
        "$artifact": {
            "name": RESULT_NAME,
            "uri": f"jobforge://runs/{job_id}/result",
            "size": size,
            "sha256": sha256,
            "preview": preview,
        }
    }
    return json.dumps(said, ensure_ascii=False)
