"""What is noted of registered jobs that are steps of a composition: their versions, and what stands behind these.

A composition keeps the versions that its steps had when it was registered. What they do and ask of callers is therefore known
from then on, and nothing can run itself: what is pinned was there before what pins it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import cast

from jobforge_mcp.definitions.composition import jobs_of
from jobforge_mcp.definitions.declarative import STRENGTH
from jobforge_mcp.definitions.model import JobDefinition, Pinned
from jobforge_mcp.errors import DefinitionError
from jobforge_mcp.types import Effects, RegisteredDefinition

MAX_NESTED = 5
"""Compositions inside each other, the outermost counted as one."""


def pin(rows: Sequence[RegisteredDefinition], effects: Sequence[Effects]) -> Pinned:
    """Note these versions, whose jobs have these effects.

    Raises:
        DefinitionError: compositions would stand too deep inside each other.
    """
    steps = [JobDefinition.model_validate_json(row.definition) for row in rows]
    depth = 1 + max(_depth(step) for step in steps)
    if depth > MAX_NESTED:
        raise DefinitionError(f"compositions stand at most {MAX_NESTED} deep inside each other")
    return Pinned(
        jobs={row.job_type: row.job_version for row in rows},
        handlers=tuple(sorted({name for step in steps for name in handlers_of(step)})),
        permissions=tuple(
            dict.fromkeys(
                permission
                for step in steps
                for permission in (
                    *step.permissions,
                    *(step.pinned.permissions if step.pinned is not None else ()),
                )
            )
        ),
        effects=max(effects, key=STRENGTH.__getitem__),
        depth=depth,
    )


def handlers_of(definition: JobDefinition) -> list[str]:
    """Return the handlers that a definition runs, those behind its pinned steps included."""
    composition, pinned = definition.composition, definition.pinned
    if composition is None:
        return [definition.handler or ""]
    if pinned is None:
        return jobs_of(composition)
    return [*(name for name in jobs_of(composition) if name not in pinned.jobs), *pinned.handlers]


def pinned_jobs(text: str | None) -> dict[str, str]:
    """Return the versions that the stored text of a composition pins, by the names of their jobs."""
    document: object = json.loads(text) if text is not None else None
    found = (
        cast("dict[str, object]", document).get("pinned") if isinstance(document, dict) else None
    )
    return cast("dict[str, dict[str, str]]", found)["jobs"] if isinstance(found, dict) else {}


def _depth(step: JobDefinition) -> int:
    if step.composition is None:
        return 0
    return step.pinned.depth if step.pinned is not None else 1
