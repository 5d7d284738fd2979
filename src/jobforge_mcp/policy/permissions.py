"""Whether a caller may do something to jobs of one type: the patterns of its token, the permissions and guards of the definition.

Every door asks here, for every action. Three walls stand one behind the other, and all must let the call through: the
token's patterns (deny beats allow), each permission of the definition that speaks of the action (all of its scopes, and one
of its roles if it names any), and each guard, which is code of the definition's author and refuses unless it says ``True``.
A job that acts outside this database needs the scope ``action:execute`` besides.

A type that the patterns leave out is refused before it is looked up, so that nobody learns whether it exists; runs of a type
that a caller may not read do not exist for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NoReturn, Protocol

import structlog

from jobforge_mcp.errors import PolicyDeniedError
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.router.patterns import allows_type
from jobforge_mcp.types import (
    Caller,
    Effects,
    Guard,
    GuardedCall,
    JobAction,
    JobId,
    JsonValue,
    Run,
)

EVERY_ROLE = "*"
"""The role of the local tenant, which has every other."""

_logger = structlog.stdlib.get_logger("jobforge.policy")


class Permission(Protocol):
    """What one action on a job asks of its caller."""

    @property
    def action(self) -> JobAction:
        """Which action."""
        ...

    @property
    def roles(self) -> Sequence[str]:
        """Of these the caller has one, if there are any."""
        ...

    @property
    def scopes(self) -> Sequence[str]:
        """Of these the caller has all."""
        ...


class GuardedJob(Protocol):
    """What this module needs to know of a job definition."""

    @property
    def name(self) -> str:
        """Name of the job type."""
        ...

    @property
    def effects(self) -> Effects:
        """What the job changes besides its own run."""
        ...

    @property
    def permissions(self) -> Sequence[Permission]:
        """What its actions ask of callers."""
        ...

    @property
    def guards(self) -> Sequence[Guard]:
        """What is asked besides, as code."""
        ...


class RunReader(Protocol):
    """What it takes to find out of which type a run is."""

    async def get_runs(self, caller: Caller, job_ids: Sequence[JobId]) -> list[Run]:
        """Read those of these runs that exist for this caller."""
        ...


def require_type(caller: Caller, job_type: str) -> None:
    """Refuse a job type that the caller's token does not let it name.

    Raises:
        PolicyDeniedError: a pattern denies it, or none allows it.
    """
    if not allows_type(caller, job_type):
        _deny(
            caller,
            "job_type",
            "the policy token does not allow jobs of this type",
            "list-jobs shows those it allows",
        )


def require_job(caller: Caller, job: GuardedJob, action: JobAction) -> None:
    """Refuse an action that the caller's token, the definition's permissions or its effects do not allow.

    Raises:
        PolicyDeniedError: it is not allowed; the message says what is missing.
    """
    require_type(caller, job.name)
    for permission in job.permissions:
        if permission.action != action:
            continue
        for scope in permission.scopes:
            if scope not in caller.scopes:
                _deny_scope(caller, scope)
        if not _has_role(caller, permission.roles):
            _deny(
                caller,
                "role",
                f"{job.name} asks of whoever may {action} it for one of the roles {', '.join(permission.roles)}",
                "ask whoever issues tokens for one with such a role",
            )
    needs_action = action is JobAction.EXECUTE and job.effects is Effects.EXTERNAL
    if needs_action and Scope.ACTION_EXECUTE not in caller.scopes:
        _deny_scope(caller, Scope.ACTION_EXECUTE)


def ask_guards(caller: Caller, job: GuardedJob, action: JobAction, input: JsonValue = None) -> None:
    """Refuse what a guard of the definition does not let through.

    Raises:
        PolicyDeniedError: a guard said no, raised, or said nothing.
    """
    for guard in job.guards:
        if not _is_let_through(guard, GuardedCall(caller, action, job.name, input)):
            _deny(
                caller,
                "guard",
                f"a guard of {job.name} does not allow this call",
                "its author decides: another input, or another token, may be allowed",
            )


def may(caller: Caller, job: GuardedJob, action: JobAction) -> bool:
    """Whether the caller may do this, as far as that can be said without an input."""
    return (
        allows_type(caller, job.name)
        and _is_permitted(caller, job, action)
        and all(
            _is_let_through(guard, GuardedCall(caller, action, job.name)) for guard in job.guards
        )
    )


def may_list(caller: Caller) -> Callable[[GuardedJob], bool]:
    """Return what tells whether a definition is shown: to those who may list it and have what it takes to execute it.

    That a job acts outside does not hide it: who may not execute it for that reason is told which scope is missing.
    """

    def is_shown(job: GuardedJob) -> bool:
        return may(caller, job, JobAction.LIST) and _is_permitted(caller, job, JobAction.EXECUTE)

    return is_shown


def confine(caller: Caller, jobs: Iterable[GuardedJob]) -> Caller:
    """Return the caller without the types whose runs it may not read; the same caller where there are none."""
    hidden = frozenset(
        job.name
        for job in jobs
        if speaks_of(job, JobAction.READ) and not may(caller, job, JobAction.READ)
    )
    return caller if hidden == caller.hidden_types else replace(caller, hidden_types=hidden)


class Switchboard(Protocol):
    """What knows which jobs are switched off."""

    @property
    def has_switched_off(self) -> bool:
        """Whether any is."""
        ...

    def require_on(self, name: str) -> None:
        """Refuse a job that is switched off."""
        ...


async def require_runnable(
    runs: RunReader, jobs: Switchboard, caller: Caller, job_id: JobId
) -> None:
    """Refuse to queue a run again whose job is switched off meanwhile; costs a read only where any is.

    Raises:
        PolicyDeniedError: ``FEATURE_DISABLED``.
    """
    if jobs.has_switched_off:
        for run in await runs.get_runs(caller, [job_id]):
            jobs.require_on(run.job_type)


def speaks_of(job: GuardedJob, action: JobAction) -> bool:
    """Whether a definition asks anything of whoever does this."""
    return (
        bool(job.guards)
        or any(permission.action == action for permission in job.permissions)
        or (action is JobAction.EXECUTE and job.effects is Effects.EXTERNAL)
    )


def _is_permitted(caller: Caller, job: GuardedJob, action: JobAction) -> bool:
    return all(
        caller.scopes.issuperset(permission.scopes) and _has_role(caller, permission.roles)
        for permission in job.permissions
        if permission.action == action
    )


def _has_role(caller: Caller, roles: Sequence[str]) -> bool:
    return not roles or EVERY_ROLE in caller.roles or not caller.roles.isdisjoint(roles)


def _is_let_through(guard: Guard, call: GuardedCall) -> bool:
    try:
        return guard(call) is True
    except Exception:  # an author's code: whatever it raises must not let the call through
        _logger.exception(
            "guard_failed",
            job_type=call.job_name,
            action=call.action.value,
            tenant_id=call.caller.tenant_id,
        )
        return False


def _deny_scope(caller: Caller, scope: str) -> NoReturn:
    _deny(
        caller,
        "scope",
        f"the policy token does not allow this: it lacks the scope {scope}",
        f"ask whoever issues tokens for one with {scope}",
        scope=str(scope),
    )


def _deny(caller: Caller, reason: str, message: str, hint: str, **facts: str) -> NoReturn:
    _logger.warning(
        "policy_refused",
        reason=reason,
        **facts,
        tenant_id=caller.tenant_id,
        token_id=caller.token_id,
    )
    raise PolicyDeniedError(message, hint=hint)


def require_scope(caller: Caller, scope: Scope | str) -> None:
    """Refuse a caller whose token does not allow this, and record the refusal.

    A definition may name a scope that is none of ours: nobody holds it.

    Raises:
        PolicyDeniedError: the scope is not among the caller's.
    """
    if scope not in caller.scopes:
        _deny_scope(caller, scope)
