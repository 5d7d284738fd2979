"""``bundle``: enqueue jobs that depend on each other, from a file."""

from __future__ import annotations

import json as json_text
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from jobforge_mcp.cli.options import Json
from jobforge_mcp.cli.output import CALLER_EXIT, show
from jobforge_mcp.cli.runs import parse_time
from jobforge_mcp.cli.session import call, open_client, read_settings
from jobforge_mcp.errors import InvalidInputError
from jobforge_mcp.types import JsonObject, JsonValue

if TYPE_CHECKING:
    from jobforge_mcp.client import BundleRequest, Verdict

_KNOWN = {
    "id",
    "name",
    "input",
    "dependsOn",
    "onFailure",
    "idempotencyKey",
    "orderingKey",
    "priority",
    "runAt",
    "projectId",
    "labels",
}


def bundle(
    file: Annotated[str, typer.Argument(help="JSON file with requests, or - for standard input.")],
    key: Annotated[
        str | None, typer.Option("--key", help="Idempotency key of the whole bundle.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
    json: Json = False,
) -> int:
    """Enqueue up to 100 jobs at once, some of which wait until others of them have ended."""
    from jobforge_mcp.cli.output import table

    requests, own_key = _read(file)

    async def work() -> list[Verdict]:
        async with open_client(read_settings(), "bundle", needs_worker=not dry_run) as client:
            return await client.enqueue_bundle(
                requests, idempotency_key=key or own_key, is_plan=dry_run
            )

    verdicts = call(work)
    rows = [
        (
            verdict.id,
            verdict.outcome,
            str(verdict.run_id or ""),
            verdict.status.value if verdict.status else "",
            verdict.error.message if verdict.error else "",
        )
        for verdict in verdicts
    ]
    show(
        {"dryRun": dry_run, "items": [_document(verdict) for verdict in verdicts]},
        is_json=json,
        people=lambda console: console.print(
            table(("id", "outcome", "run", "status", "reason"), rows),
            *(["nothing was enqueued: this is what would come of it"] if dry_run else ()),
        ),
    )
    is_whole = all(verdict.outcome in {"created", "replayed"} for verdict in verdicts)
    return 0 if is_whole else CALLER_EXIT


def _document(verdict: Verdict) -> JsonObject:
    document: JsonObject = {"id": verdict.id, "outcome": verdict.outcome}
    if verdict.run_id is not None and verdict.outcome != "conflict":
        document["runId"] = str(verdict.run_id)
    if verdict.status is not None:
        document["status"] = verdict.status.value
    if verdict.error is not None:
        document["error"] = {"code": verdict.error.code, "message": verdict.error.message}
    return document


def _read(file: str) -> tuple[list[BundleRequest], str | None]:
    """Read a list of requests, or an object with ``requests`` and ``idempotencyKey``."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        document = json_text.loads(text)
    except OSError as error:
        raise InvalidInputError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError:
        raise InvalidInputError(f"{file} is not JSON") from None
    key: object = None
    if isinstance(document, dict):
        whole = cast("dict[str, object]", document)
        document, key = whole.get("requests"), whole.get("idempotencyKey")
    if not isinstance(document, list) or not (key is None or isinstance(key, str)):
        raise _wrong("the file holds no list of requests")
    return [_request(one) for one in cast("list[object]", document)], key


def _request(given: object) -> BundleRequest:
    from jobforge_mcp.client import BundleRequest, Options

    if not isinstance(given, dict):
        raise _wrong("a request is no object")
    request = cast("dict[str, Any]", given)
    unknown = sorted(set(request) - _KNOWN)
    if unknown:
        raise _wrong(f"a request has the unknown property {unknown[0][:100]!r}")
    given_needs: object = request.get("dependsOn", [])
    needed = cast("list[Any]", given_needs if isinstance(given_needs, list) else [None])
    texts = [request.get("id"), request.get("name"), *needed]  # fmt: skip
    if not all(isinstance(text, str) for text in texts):
        raise _wrong("id and name of a request are text, and dependsOn is a list of ids")
    if request.get("onFailure", "cancel") not in {"cancel", "continue"}:
        raise _wrong("onFailure is cancel or continue")
    run_at = request.get("runAt")
    options = Options(
        idempotency_key=request.get("idempotencyKey"),
        ordering_key=request.get("orderingKey"),
        priority=request.get("priority", 2),
        run_at=parse_time(run_at) if run_at is not None else None,
        project_id=request.get("projectId"),
        labels=request.get("labels"),
    )
    return BundleRequest(
        id=request["id"],
        name=request["name"],
        input=cast("JsonValue", request.get("input")),
        depends_on=tuple(needed),
        on_failure=request.get("onFailure", "cancel"),
        options=options,
    )


def _wrong(why: str) -> InvalidInputError:
    return InvalidInputError(
        f"the bundle is wrong: {why}",
        code="BUNDLE_INVALID",
        hint=f"a request has id, name and any of {', '.join(sorted(_KNOWN - {'id', 'name'}))}",
    )
