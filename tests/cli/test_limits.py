"""limit set, list and remove."""

from __future__ import annotations

import json

import psycopg
import pytest

from tests.cli.conftest import Runner


def test_an_operator_sets_lists_and_removes_limits(
    installed: Runner, admin: psycopg.Connection
) -> None:
    of_type = ("--tenant", "acme", "--type", "demo.broken")
    assert installed("limit", "set", *of_type, "max_queued=1", "rps=2.5").code == 0
    changed = installed("limit", "set", *of_type, "rps=", "budget_jobs=9", "--json")
    assert changed.document["limits"] == {"max_queued": 1, "budget_jobs": 9}

    start = ("run", "demo.broken", "--background", "--json")
    first = installed(*start)
    refused = installed(*start)

    assert first.code == 0
    assert (refused.code, refused.document["error"]["code"]) == (1, "QUEUE_FULL")
    listed = json.loads(installed("limit", "list", "--json").out)[0]
    assert (listed["tenant"], listed["kind"], listed["name"]) == ("acme", "type", "demo.broken")
    assert listed["used"]["jobs"] == 1
    assert "max_queued=1" in installed("limit", "list", "--tenant", "acme").out
    assert installed("limit", "remove", *of_type).code == 0
    assert installed("limit", "remove", *of_type).code == 1
    assert installed(*start).code == 0
    actors = admin.execute(
        "select distinct actor from jobforge.audit_log where action = 'set_limit'"
    )
    assert actors.fetchall() == [("login:jobforge_admin",)]


@pytest.mark.parametrize(
    "arguments",
    [
        ("max_queued",),
        ("nonsense=1",),
        ("max_queued=-1",),
        ("max_queued=x",),
        ("burst=5",),
        ("max_queued=1e400",),
        ("rps=1", "--type", "a.b", "--tool", "execute-job"),
    ],
)
def test_what_is_no_limit_is_refused_in_words(
    installed: Runner, arguments: tuple[str, ...]
) -> None:
    ran = installed("limit", "set", *arguments, "--json")

    assert (ran.code, ran.document["error"]["code"]) == (1, "INVALID_INPUT")
