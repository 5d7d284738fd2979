"""What a handler asks of its worker, before it is checked, and what it gets for it.

Loaded by child processes as well, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

from jobforge_mcp.errors import JobForgeError
from jobforge_mcp.types import JsonObject, JsonValue


@dataclass(frozen=True, slots=True)
class ChildRequest:
    """A job that a handler asks to be enqueued, before it is validated."""

    name: str
    input: JsonValue
    key: str | None = None
    ordering_key: str | None = None
    priority: int = 2
    run_at: datetime | None = None
    labels: Mapping[str, str] | None = field(default=None)


@dataclass(frozen=True, slots=True)
class ArtifactRequest:
    """What a handler wants to leave behind, before it is checked."""

    name: str
    content: bytes | Path
    mime: str | None = None
    keep: timedelta | None = None
    is_spooled: bool = False
    """The path is a file of ours, to be deleted once it was read."""


@dataclass(frozen=True, slots=True)
class ArtifactRef:
    """What was left behind, and how it is found."""

    name: str
    uri: str
    """Address of the resource that holds it, once the attempt did not lose its lease."""
    size: int
    sha256: str
    """In hexadecimal."""
    mime: str


@dataclass(frozen=True, slots=True)
class EventRequest:
    """An event that a handler wants to submit, before it is checked."""

    event_type: str
    payload: JsonObject
    key: str | None = None
    source: str | None = None
    subject: str | None = None
    occurred_at: datetime | None = None
    contains_pii: bool = False
    redaction_hints: JsonObject | None = None
    attributes: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class EventRef:
    """What became of an event that a handler submitted."""

    event_id: UUID | None
    """``None`` in a dry run, which stores none."""
    outcome: str
    """``created``; ``replayed``, if an earlier attempt submitted it; ``planned`` in a dry run."""


def artifact_request(
    name: str, content: object, mime: str | None, keep: timedelta | None
) -> ArtifactRequest:
    """Take what a handler gave. A text could be meant as a path or as the content, so it is refused."""
    match content:
        case bytes():
            return ArtifactRequest(name, content, mime, keep)
        case bytearray():
            return ArtifactRequest(name, bytes(content), mime, keep)
        case Path():
            return ArtifactRequest(name, content.absolute(), mime, keep)
        case _:
            raise UsageError(
                f"an artifact is made of bytes or of a Path, not of {type(content).__name__}",
                hint="text.encode() is the content, pathlib.Path(text) the file of that name",
            )


class UsageError(JobForgeError):
    """A handler used its context in a way that cannot work; mending it means changing the handler."""

    default_code = "HANDLER_USAGE"
