"""Scopes: nothing is implied but what the table says."""

from __future__ import annotations

import pytest

from jobforge_mcp.policy.scopes import ALL_SCOPES, Scope, expand_scopes, parse_scopes


@pytest.mark.parametrize(
    ("granted", "carried"),
    [
        (Scope.JOBS_EXECUTE, {Scope.JOBS_EXECUTE, Scope.JOBS_READ, Scope.JOBS_LIST}),
        (Scope.JOBS_READ, {Scope.JOBS_READ, Scope.JOBS_LIST}),
        *[
            (scope, {scope})
            for scope in Scope
            if scope not in {Scope.JOBS_EXECUTE, Scope.JOBS_READ}
        ],
    ],
)
def test_a_scope_carries_what_the_table_says(granted: Scope, carried: set[Scope]) -> None:
    assert expand_scopes([granted]) == carried


def test_no_scope_carries_all() -> None:
    assert all(expand_scopes([scope]) != ALL_SCOPES for scope in Scope)


def test_a_word_that_is_no_scope_grants_nothing() -> None:
    assert parse_scopes("openid jobs:read * jobs:* JOBS:CANCEL admin") == {Scope.JOBS_READ}
    assert parse_scopes("") == frozenset()
