"""The scopes a policy token may carry, and which of them carry others.

======================  ==========================================  ======================
Scope                   Allows                                      Carries
======================  ==========================================  ======================
``jobs:list``           see job definitions
``jobs:read``           see runs, their results and logs            ``jobs:list``
``jobs:execute``        enqueue jobs                                ``jobs:read``
``jobs:cancel``         cancel runs
``jobs:retry``          retry final runs
``definitions:register``  register and remove job definitions
``definitions:approve``  approve definitions that somebody else registered
``events:read``         see events and triggers
``events:submit``       submit events
``triggers:write``      register and remove triggers
``ops:read``            scan and inspect the installation itself
``action:execute``      let jobs act outside: those whose ``effects`` are ``external``
``admin:tenant``        revoke tokens of the tenant
``queues:write``        pause and resume queues
``audit:read``          see the tenant's audit log
======================  ==========================================  ======================

What the last column does not name is not implied: no scope is a wildcard, and nobody cancels or retries because they may
execute.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum

_LONGEST_SCOPE_CLAIM = 2_048


class Scope(StrEnum):
    """One permission, ``noun:verb``."""

    JOBS_LIST = "jobs:list"
    """See which jobs may be run, with their schemas."""
    JOBS_READ = "jobs:read"
    """See runs: status, progress, result, logs."""
    JOBS_EXECUTE = "jobs:execute"
    """Enqueue jobs and wait for them."""
    JOBS_CANCEL = "jobs:cancel"
    """Cancel runs that are not final."""
    JOBS_RETRY = "jobs:retry"
    """Retry runs that are final."""
    DEFINITIONS_REGISTER = "definitions:register"
    """Register and remove declarative job definitions."""
    DEFINITIONS_APPROVE = "definitions:approve"
    """Let definitions run that somebody else registered, where the tenant asks for that."""
    EVENTS_READ = "events:read"
    """See events and triggers."""
    EVENTS_SUBMIT = "events:submit"
    """Submit events, which may fire triggers."""
    TRIGGERS_WRITE = "triggers:write"
    """Register and remove triggers."""
    OPS_READ = "ops:read"
    """Scan the installation: settings, health and cost of its Postgres, across tenants."""
    ACTION_EXECUTE = "action:execute"
    """Enqueue and retry jobs that act outside this database, besides what enqueueing itself needs."""
    ADMIN_TENANT = "admin:tenant"
    """Revoke tokens of the tenant, one or all."""
    QUEUES_WRITE = "queues:write"
    """Pause and resume the tenant, its job types and its projects."""
    AUDIT_READ = "audit:read"
    """See the audit log of the tenant: who did what, and what was refused."""


ALL_SCOPES = frozenset(Scope)
"""What the local tenant holds, and ``token issue --all-scopes`` writes."""

CARRIES = {
    Scope.JOBS_EXECUTE: frozenset({Scope.JOBS_READ}),
    Scope.JOBS_READ: frozenset({Scope.JOBS_LIST}),
}
"""The hierarchy, one step at a time. A scope that is not a key carries nothing but itself."""


def expand_scopes(granted: Iterable[Scope]) -> frozenset[Scope]:
    """Add every scope that the granted ones carry."""
    known: set[Scope] = set()
    pending = list(granted)
    while pending:
        scope = pending.pop()
        if scope not in known:
            known.add(scope)
            pending.extend(CARRIES.get(scope, ()))
    return frozenset(known)


def parse_scopes(claim: str) -> frozenset[Scope] | None:
    """Read the ``scope`` claim of a token: words with one space between them; ``None`` if it is not of that form.

    A word that is no scope of ours grants nothing and is left out: an OAuth server adds words of its own.
    """
    if not claim:
        return frozenset()
    if len(claim) > _LONGEST_SCOPE_CLAIM or not _SCOPE_CLAIM.fullmatch(claim):
        return None
    return frozenset(_BY_VALUE[word] for word in claim.split(" ") if word in _BY_VALUE)


_BY_VALUE = {scope.value: scope for scope in Scope}

# RFC 6749 §3.3: words of printable ASCII without quote and backslash, one space between them.
_SCOPE_CLAIM = re.compile(r"[!#-\[\]-~]+(?: [!#-\[\]-~]+)*")
