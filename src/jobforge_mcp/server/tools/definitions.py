"""Tools that change which jobs there are: register-job and remove-job."""

from __future__ import annotations

from typing import Literal, cast

from jobforge_mcp import registering
from jobforge_mcp.server import arguments as args
from jobforge_mcp.server import wire
from jobforge_mcp.server.parts import Call, ServerParts
from jobforge_mcp.types import Registration

_NEXT = {
    "created": "Run it with execute-job, name {name}.",
    "unchanged": "It was registered so before; run it with execute-job, name {name}.",
    "quarantined": "New runs are refused until somebody else approves it: jobforge jobs approve {name}.",
    "planned": "Nothing was written; call again without dryRun.",
    "planned_approval": "Nothing was written; without dryRun it is quarantined until somebody else approves it.",
}
_NEXT_AFTER_REMOVAL = {
    "removed": "New runs are refused; register-job with a definition of this name brings it back.",
    "unchanged": "It was removed before.",
    "planned": "Nothing was written; call again without dryRun.",
}


async def register_job(parts: ServerParts, call: Call, given: args.RegisterJob) -> wire.Answer:
    """Register a definition, or say what that would do."""
    registration = await registering.register(
        parts.catalog,
        call.caller,
        given.definition(),
        is_plan=bool(given.dry_run),
        origin=call.origin,
    )
    is_held = registration.outcome == "planned" and registration.needs_approval
    return _answer(registration, _NEXT["planned_approval" if is_held else registration.outcome])


async def remove_job(parts: ServerParts, call: Call, given: args.RemoveJob) -> wire.Answer:
    """Remove a registered definition, or say what that would do."""
    registration = await registering.remove(
        parts.catalog, call.caller, given.name, is_plan=bool(given.dry_run), origin=call.origin
    )
    return _answer(registration, _NEXT_AFTER_REMOVAL[registration.outcome])


def _answer(registration: Registration, then: str) -> wire.Answer:
    view = wire.RegistrationView(
        name=registration.job_type,
        outcome=cast("Literal['created']", registration.outcome),
        version=registration.job_version,
        hash=registration.definition_hash,
        queued_runs=registration.runs or None,
        next=then.format(name=registration.job_type),
    )
    version = f" version {view.version}" if view.version is not None else ""
    queued = f", {view.queued_runs} queued runs" if view.queued_runs is not None else ""
    return wire.Answer(
        view.wire(), f"job {view.name}{version} is {view.outcome}{queued}\n{view.next}"
    )
