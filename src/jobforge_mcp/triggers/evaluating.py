"""Works out what a trigger would do about an event: whether its condition holds, and the job it would make.

What comes out is a `Fire`, on which the database has the last word: whether the trigger still is what was evaluated, is
switched on, cools down or has fired for the same key is decided there, in the transaction of the event. Whatever goes wrong
here is a reason and no exception, because one rule must not keep an event from being stored.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import cast

import structlog

from jobforge_mcp.definitions.catalog import BoundDefinitions
from jobforge_mcp.definitions.enqueuing import job_of
from jobforge_mcp.definitions.json_limits import load_limited
from jobforge_mcp.definitions.mapping import evaluate, matches
from jobforge_mcp.definitions.model import BoundJob
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.errors import CallerError, DefinitionError, InvalidInputError, NotFoundError
from jobforge_mcp.policy.permissions import ask_guards, require_job, require_type
from jobforge_mcp.router.scope import registrar_caller
from jobforge_mcp.types import (
    Caller,
    Candidate,
    Fire,
    FireDecision,
    JobAction,
    JsonObject,
    JsonValue,
    NewEvent,
    NewJob,
    PendingEvent,
    TenantId,
)

LONGEST_KEY_BYTES = 160
"""Longer deduplication keys are told apart by their hash."""

_log = structlog.stdlib.get_logger(__name__)


def event_scope(event: NewEvent | PendingEvent, payload: str) -> JsonObject:
    """Return what conditions, mappings and keys of triggers see of an event: ``{"event": …}``, absent rather than null."""
    seen: JsonObject = {"type": event.event_type, "payload": load_limited(payload)}
    said = {
        "source": event.source,
        "subject": event.subject,
        "projectId": event.project_id,
        "traceId": event.trace_id,
        "occurredAt": _time(event.occurred_at),
    }
    return {"event": {**seen, **{name: text for name, text in said.items() if text is not None}}}


def evaluate_trigger(
    definitions: BoundDefinitions, tenant_id: TenantId, candidate: Candidate, scope: JsonObject
) -> Fire:
    """Say what a trigger would do about an event; never raises."""
    try:
        if candidate.match is not None and not matches(candidate.match, scope):
            return _refusal(candidate, FireDecision.NO_MATCH, "its condition does not hold")
        job = prepare_job(definitions, tenant_id, candidate, _input_of(candidate, scope))
        key = None if candidate.dedupe_key is None else _key_of(candidate.dedupe_key, scope)
    except (CallerError, DefinitionError) as error:
        return _refusal(candidate, FireDecision.ERROR, f"{error.code}: {error.message}")
    except Exception:  # noqa: BLE001  # a rule that breaks in a way nobody thought of must not lose the event
        _log.exception("trigger_failed", tenant_id=tenant_id, trigger=candidate.trigger_name)
        return _refusal(candidate, FireDecision.ERROR, "INTERNAL: it could not be evaluated")
    return Fire(
        candidate.trigger_name,
        candidate.version,
        job,
        key=key,
        definition=_version_of(candidate),
    )


def prepare_job(
    definitions: BoundDefinitions, tenant_id: TenantId, candidate: Candidate, given: JsonObject
) -> NewJob:
    """Check that whoever registered the trigger may start its job with this input, and return it ready.

    Raises:
        CallerError: the job is unknown or switched off, the input does not fit, or the registrar may not.
        DefinitionError: the job is registered, and does not fit the handler that is installed here.
    """
    caller = registrar_caller(tenant_id, candidate.registrar)
    require_type(caller, candidate.job_name)
    if candidate.is_removed and not definitions.registry.is_installed(candidate.job_name):
        raise NotFoundError(
            f"the job {candidate.job_name} was removed; register it again, or remove this trigger",
            code="JOB_REMOVED",
        )
    bound = definitions.current(tenant_id, candidate.job_name, candidate.definition)
    return job_for(definitions.registry, caller, bound, given)


def job_for(registry: Registry, caller: Caller, bound: BoundJob, given: JsonObject) -> NewJob:
    """Check that a caller may start a job with this input, and return it ready."""
    require_type(caller, bound.name)
    require_job(caller, bound, JobAction.EXECUTE)
    prepared = registry.prepare_bound(bound, given)
    if bound.guards:
        ask_guards(caller, bound, JobAction.EXECUTE, json.loads(prepared.payload))
    return job_of(prepared, bound.lane_type)


def _input_of(candidate: Candidate, scope: JsonObject) -> JsonObject:
    """The fixed members, and over them what the mapping makes of the event; without either the event's payload."""
    if candidate.input_mapping is None:
        event = cast("JsonObject", scope["event"])
        return (
            candidate.input if candidate.input is not None else cast("JsonObject", event["payload"])
        )
    mapped = evaluate(candidate.input_mapping, scope)
    if not isinstance(mapped, dict):
        raise InvalidInputError(
            "the input mapping does not make an object",
            code="MAPPING_FAILED",
            hint="an input is one object: map each of its members",
        )
    return {**(candidate.input or {}), **mapped}


def _key_of(template: JsonValue, scope: JsonObject) -> str:
    value = evaluate(template, scope)
    if value is None:
        raise InvalidInputError("the deduplication key is null", code="MAPPING_FAILED")
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    written = text.encode(errors="replace")
    if not text or len(written) > LONGEST_KEY_BYTES or "\0" in text:
        return f"sha256-{hashlib.sha256(written).hexdigest()}"
    return text


def _refusal(candidate: Candidate, decision: FireDecision, reason: str) -> Fire:
    return Fire(
        candidate.trigger_name,
        candidate.version,
        None,
        decision=decision,
        reason=reason,
        definition=_version_of(candidate),
    )


def _version_of(candidate: Candidate) -> str | None:
    return None if candidate.definition is None else candidate.definition.job_version


def _time(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat()
