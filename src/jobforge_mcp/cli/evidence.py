"""``artifacts``: lists what a run left, and fetches one of it into a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobforge_mcp.cli.options import Json
from jobforge_mcp.cli.output import say, show, table
from jobforge_mcp.cli.runs import RunId
from jobforge_mcp.cli.session import call, open_client, read_settings
from jobforge_mcp.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobforge_mcp.types import Artifact, JsonObject

_CHUNK_BYTES = 4 * 1024 * 1024


def artifacts(
    run_id: RunId,
    name: Annotated[
        str | None, typer.Argument(help="Fetch this one.", metavar="[NAME]", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="File to write it to, which must not exist; - is stdout.", metavar="FILE"
        ),
    ] = None,
    attempt: Annotated[int | None, typer.Option(help="Of this attempt, not the newest.")] = None,
    json: Json = False,
) -> None:
    """List what a run's handler left behind, or fetch one of it."""
    if name is None:
        _list(run_id, is_json=json)
        return
    target = output or Path(name)
    _fetch(run_id, name, target, attempt)
    if str(target) != "-":
        show(
            {"name": name, "output": str(target)},
            is_json=json,
            people=lambda console: console.print(f"wrote {target}", markup=False),
        )


def _list(run_id: str, *, is_json: bool) -> None:
    async def work() -> Sequence[Artifact]:
        async with open_client(read_settings(), "artifacts") as client:
            return await client.artifacts(run_id)

    found = call(work)
    rows = [
        (made.name, str(made.attempt_no), made.mime_type, str(made.size), made.sha256[:12])
        for made in found
    ]
    show(
        {"artifacts": [artifact_document(made) for made in found]},
        is_json=is_json,
        people=lambda console: console.print(
            table(("name", "attempt", "type", "bytes", "sha256"), rows) if rows else "no artifacts"
        ),
    )


def artifact_document(made: Artifact) -> JsonObject:
    """Return an artifact as one element of a list."""
    from jobforge_mcp.server.wire import iso

    document: JsonObject = {
        "name": made.name,
        "attempt": made.attempt_no,
        "mimeType": made.mime_type,
        "size": made.size,
        "sha256": made.sha256,
        "createdAt": iso(made.created_at),
    }
    if made.expires_at is not None:
        document["expiresAt"] = iso(made.expires_at)
    return document


def _fetch(run_id: str, name: str, target: Path, attempt: int | None) -> None:
    """Write an artifact piece by piece; a file that is there already is left alone."""
    from jobforge_mcp.evidence.reading import Part, Range

    async def work() -> None:
        async with open_client(read_settings(), "artifacts") as client:

            async def read(offset: int) -> Part:
                piece = Range(offset, _CHUNK_BYTES)
                return await client.read_artifact(run_id, name, attempt=attempt, range=piece)

            part = await read(0)  # what cannot be read makes no file
            with _Output(target) as file:
                file.write(part.data)
                while part.next_offset is not None:
                    part = await read(part.next_offset)
                    file.write(part.data)

    call(work)


class _Output:
    """A new file, or stdout; a file that was not finished is removed."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __enter__(self) -> _Output:
        if str(self._target) == "-":
            self._file = sys.stdout.buffer
        else:
            try:
                self._file = self._target.open("xb")
            except OSError as error:
                raise InvalidInputError(
                    f"{self._target} cannot be written: {error.strerror}",
                    hint="name another file with --output",
                ) from None
        return self

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._file is sys.stdout.buffer:
            self._file.flush()
            return
        self._file.close()
        if error is not None:
            self._target.unlink(missing_ok=True)
            say(f"{self._target} was not finished and is removed")
