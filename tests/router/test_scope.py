"""What the database is told of a caller."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from jobforge_mcp.router.scope import claims_text, scope_arguments
from jobforge_mcp.types import Caller, CallOrigin, Limits, TenantId

PLAIN = Caller(TenantId("acme"), "agent", frozenset({"jobs:read"}))


def test_a_plain_caller_has_no_claims() -> None:
    arguments = scope_arguments(PLAIN, CallOrigin("execute-job", "t1"))

    assert arguments == ("acme", "agent", None, "execute-job", "t1", None, None)


def test_the_claims_are_what_the_token_carries_and_nothing_else() -> None:
    caller = Caller(
        TenantId("acme"),
        "agent",
        frozenset(),
        projects=frozenset({"b", "a"}),
        token_id="j1",
        expires_at=datetime(2030, 1, 1, tzinfo=UTC),
        job_types=("report.*",),
        deny_types=("*.delete",),
        limits=Limits(max_queued=5),
        epoch=3,
        is_single_use=True,
        single_use_ids=("j0",),
        actors=("user-9",),
    )

    assert json.loads(claims_text(caller) or "") == {
        "projects": ["a", "b"],
        "jobTypes": ["report.*"],
        "denyTypes": ["*.delete"],
        "limits": {"max_queued": 5},
        "epoch": 3,
        "once": True,
        "singleUse": ["j0"],
        "expiresAt": 1893456000,
        "jti": "j1",
        "actors": ["user-9"],
    }
