"""The tool that enqueues jobs which wait for each other: execute-bundle."""

from __future__ import annotations

from typing import Literal, cast

from jobforge_mcp.definitions.bundle import Place, arrange
from jobforge_mcp.definitions.json_limits import check_key
from jobforge_mcp.definitions.model import is_job_name
from jobforge_mcp.errors import CallerError, InvalidInputError
from jobforge_mcp.server import arguments as args
from jobforge_mcp.server import wire
from jobforge_mcp.server.parts import Call, ServerParts
from jobforge_mcp.server.tools.executing import find_job, new_job
from jobforge_mcp.types import EnqueueOutcome, JsonObject, NewJob

_OF_ONE_CALL = ("background", "wait_seconds", "dry_run", "cancel_on_disconnect")


async def execute_bundle(parts: ServerParts, call: Call, given: args.ExecuteBundle) -> wire.Answer:
    """Enqueue what can be run, and say of each request what became of it."""
    if given.idempotency_key is not None:
        check_key(given.idempotency_key, "idempotencyKey")
    requests = [_request(number, one) for number, one in enumerate(given.requests, 1)]
    prepared = [await _prepared(parts, call, one, given.idempotency_key) for one in requests]
    places = [
        Place(one.id, tuple(one.depends_on or ()), one.on_failure or "cancel") for one in requests
    ]
    arranged = arrange(places, prepared)
    found = await parts.router.enqueue_bundle(
        call.caller, arranged.items, origin=call.origin, is_plan=bool(given.dry_run)
    )
    if parts.denials is not None:
        refused = [
            (one.name, arranged.refused[one.id])
            for one in requests
            if one.id in arranged.refused and is_job_name(one.name)
        ]
        await parts.denials.record_each(call.caller, "enqueue", call.origin, refused)
    verdicts = {
        name: wire.VerdictView(id=name, outcome="refused", code=error.code, message=error.message)
        for name, error in arranged.refused.items()
    }
    for name, row in zip(arranged.ids, found, strict=True):
        is_plan = bool(given.dry_run) and row.status is None
        is_conflict = row.outcome is EnqueueOutcome.CONFLICT
        verdicts[name] = wire.VerdictView(
            id=name,
            outcome=cast("Literal['created']", row.outcome.value),
            run_id=None if is_plan or is_conflict else str(row.job_id),
            status=row.status.value if row.status is not None else None,
            code="IDEMPOTENCY_CONFLICT" if is_conflict else None,
            message="its idempotencyKey was used with another input" if is_conflict else None,
        )
    view = wire.BundleView(
        dry_run=True if given.dry_run else None,
        items=[verdicts[one.id] for one in requests],
        next=_next(given, is_empty=not found),
    )
    lines = [
        " ".join(filter(None, (item.id, item.outcome, item.run_id, item.code, item.message)))
        for item in view.items
    ]
    return wire.Answer(view.wire(), "\n".join([*lines, view.next]))


def _next(given: args.ExecuteBundle, *, is_empty: bool) -> str:
    if is_empty:
        return "Nothing was enqueued: mend the requests by their messages."
    if given.dry_run:
        return "Nothing was enqueued; call again without dryRun."
    return "Call get-job-status with runIds and waitSeconds."


def _request(number: int, given: object) -> args.BundleRequest:
    if not isinstance(given, dict):
        raise InvalidInputError("a request of a bundle is one object", code="BUNDLE_INVALID")
    try:
        request = args.parse(args.BundleRequest, cast("JsonObject", given))
    except InvalidInputError as error:
        raise InvalidInputError(
            f"in request {number}: {error.message}", code=error.code, hint=error.hint
        ) from None
    if any(getattr(request, name) is not None for name in _OF_ONE_CALL):
        raise InvalidInputError(
            "a request of a bundle is not waited for, and dryRun is for the whole",
            code="BUNDLE_INVALID",
            hint="leave background, waitSeconds, dryRun and cancelOnDisconnect out of requests",
        )
    return request


async def _prepared(
    parts: ServerParts, call: Call, request: args.BundleRequest, key: str | None
) -> NewJob | CallerError:
    try:
        bound = await find_job(parts, call, request)
        if request.idempotency_key is None and key is not None:
            request = request.model_copy(update={"idempotency_key": f"{key}/{request.id}"})
        return new_job(parts, call, request, bound)
    except CallerError as error:
        return error
