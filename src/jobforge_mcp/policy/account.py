"""What a caller's credential allows here and now, what is left of each limit, and why a call would be refused.

Asked by agents as the resource ``jobforge://token`` and by people as ``jobforge token check``. Looking changes nothing: no
limit is charged and no token is used up, so the answer is of this moment and promises nothing for the next.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from jobforge_mcp.errors import CallerError, LimitError, PolicyDeniedError
from jobforge_mcp.policy.claims import Confinement
from jobforge_mcp.policy.permissions import GuardedJob, require_job, require_scope, require_type
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.router.tokens import TokenRouter
from jobforge_mcp.types import Caller, CallOrigin, JobAction, JsonObject, LimitLeft, TokenState


@dataclass(frozen=True, slots=True)
class Question:
    """A call that is asked about and not made."""

    job: str | None = None
    project: str | None = None
    tool: str = "execute-job"
    """Whose limits count as well."""


FindJob = Callable[[str], Awaitable[tuple[GuardedJob, int]]]
"""Finds a job and its cost for the caller, or refuses as running it would."""


@dataclass(frozen=True, slots=True)
class Account:
    """The answer."""

    facts: JsonObject
    refusal: CallerError | None
    """Why the call that was asked about, or every call, would be refused."""


async def look(
    tokens: TokenRouter,
    caller: Caller,
    question: Question,
    *,
    find: FindJob,
    origin: CallOrigin,
    asking: Caller | None = None,
) -> Account:
    """Look up what a caller may do; ``asking`` is who looks, where that is not the caller."""
    asking = asking or caller
    state = None
    if caller.token_id is not None:
        ids = [caller.token_id, *caller.links]
        state = await tokens.check_token(asking, ids, origin=origin)
    limits = await tokens.limits_left(
        asking,
        token_id=caller.token_id,
        token_limits=caller.limits,
        job_type=question.job,
        tool=question.tool,
        origin=origin,
    )
    dead = None if state is None else _why_dead(caller, state)
    refusal = dead or await _why_not(caller, question, limits, find)
    return Account({"isGood": dead is None, **_facts(caller, state, limits)}, refusal)


async def _why_not(
    caller: Caller, question: Question, limits: Sequence[LimitLeft], find: FindJob
) -> CallerError | None:
    try:
        if question.project is not None:
            _require_project(caller, question.project)
        if question.job is not None:
            require_scope(caller, Scope.JOBS_EXECUTE)
            require_type(caller, question.job)
            job, cost = await find(question.job)
            require_job(caller, job, JobAction.EXECUTE)
            _require_room(limits, cost)
    except CallerError as error:
        return error
    return None


def _require_project(caller: Caller, project: str) -> None:
    if caller.projects is not None and project not in caller.projects:
        raise PolicyDeniedError(
            f"the policy token is confined to projects, and {project} is none of them",
            hint=f"it allows {', '.join(sorted(caller.projects))}",
        )


def _why_dead(caller: Caller, state: TokenState) -> CallerError | None:
    if state.revoked_at is not None:
        why = f": {state.revoked_reason}" if state.revoked_reason else ""
        return PolicyDeniedError(
            f"it was revoked at {state.revoked_at.isoformat()}{why}", code="TOKEN_REVOKED"
        )
    if state.token_epoch > (caller.epoch or 0):
        return PolicyDeniedError(
            "all tokens of its tenant were revoked after it was issued", code="TOKEN_REVOKED"
        )
    if caller.is_single_use and state.used_at is not None:
        return PolicyDeniedError(
            f"it is good for one write, and was used at {state.used_at.isoformat()}",
            code="TOKEN_USED",
        )
    return None


_CODES = {"rps": "RATE_LIMITED", "max_queued": "QUEUE_FULL"}


def _require_room(limits: Sequence[LimitLeft], cost: int) -> None:
    """Refuse where a limit has no room for one more run; one that is at its most running runs is only queued."""
    for limit in limits:
        needed = cost if limit.limit_name == "budget_units" else 1
        if limit.limit_name == "max_running" or limit.remaining is None:
            continue
        if limit.remaining < needed:
            of = f"{limit.kind} {limit.name}".strip()
            raise LimitError(
                f"the limit {limit.limit_name} of {of} is used up",
                code=_CODES.get(limit.limit_name, "BUDGET_USED_UP"),
            )


def _facts(caller: Caller, state: TokenState | None, limits: Sequence[LimitLeft]) -> JsonObject:
    within = Confinement(
        caller.tenant_id,
        caller.projects,
        caller.job_types,
        caller.deny_types,
        caller.events,
        caller.roles,
        caller.limits,
        caller.is_single_use,
        caller.epoch,
        caller.actors,
    )
    facts: JsonObject = {
        "tenant": caller.tenant_id,
        "subject": caller.subject,
        "scopes": [*sorted(caller.scopes)],
        **{_WORDS.get(name, name): said for name, said in within.to_claim().items() if name != "v"},
    }
    if caller.token_id is not None:
        facts["tokenId"] = caller.token_id
    if caller.expires_at is not None:
        facts["expiresAt"] = caller.expires_at.isoformat()
    if state is not None:
        facts["used"] = {
            "jobs": state.used_jobs,
            "units": state.used_units,
            "runMs": state.used_run_ms,
        }
    facts["limits"] = [_limit(limit) for limit in limits]
    return facts


_WORDS = {"job_types": "jobTypes", "deny_types": "denyTypes"}
"""Members of the claim that are not written so on the wire."""


def _limit(limit: LimitLeft) -> JsonObject:
    said: JsonObject = {
        "scope": f"{limit.kind} {limit.name}".strip(),
        "limit": limit.limit_name,
        "value": limit.value,
        "used": limit.used,
        "left": limit.remaining,
        "resetsAt": None if limit.resets_at is None else limit.resets_at.isoformat(),
    }
    return {name: value for name, value in said.items() if value is not None}
