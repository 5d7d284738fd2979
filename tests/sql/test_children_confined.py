"""What a handler enqueues is held to the patterns of the token that enqueued the first run of its line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.sql.acting import API, Queue, Row, call, refused
from tests.sql.test_limits import spawn

PARENT = "report.build"


def claim(queue: Queue, job_type: str) -> Row:
    """Claim the one job of this type."""
    (claimed,) = queue.claim(1, types=[job_type])
    return claimed


def enqueue_confined(queue: Queue, **claims: Any) -> Row:
    """Enqueue the parent with a token of these patterns, and claim it."""
    with queue.acting(API) as connection:
        connection.execute(
            "select jobforge.enter_scope('acme', 'tester', 't1', null, null, %s)",
            [json.dumps({"jti": "t1", **claims})],
        )
        call(connection, "enqueue_job", "acme", PARENT, "{}")
    return claim(queue, PARENT)


@pytest.mark.requirement("policy.children")
@pytest.mark.parametrize(
    ("claims", "refused_type"),
    [
        ({"jobTypes": ["report.*"]}, "mail.send"),
        ({"denyTypes": ["*.delete"]}, "data.delete"),
        ({"jobTypes": ["report.**", "data.**"], "denyTypes": ["data.delete"]}, "data.delete"),
    ],
)
def test_a_child_of_a_type_that_the_token_did_not_allow_is_refused(
    queue: Queue, claims: dict[str, Any], refused_type: str
) -> None:
    parent = enqueue_confined(queue, **claims)

    child = spawn(queue, parent, "a", "report.part")
    with refused("JF403"):
        spawn(queue, parent, "b", refused_type)

    assert child.outcome == "created"


def test_grandchildren_are_held_to_the_same_token(queue: Queue) -> None:
    parent = enqueue_confined(queue, jobTypes=["report.*"])
    spawn(queue, parent, "a", "report.part")
    child = claim(queue, "report.part")

    with refused("JF403"):
        spawn(queue, child, "b", "mail.send")

    assert spawn(queue, child, "c", "report.page").outcome == "created"


def test_what_the_token_said_at_enqueue_outlasts_a_retry_with_another_token(queue: Queue) -> None:
    parent = enqueue_confined(queue, jobTypes=["report.*"])
    queue.fail(parent, kind="permanent")
    queue.retry(parent.job_id)

    again = claim(queue, PARENT)

    with refused("JF403"):
        spawn(queue, again, "b", "mail.send")


def test_children_of_a_run_that_nothing_confined_may_be_of_every_type(queue: Queue) -> None:
    queue.enqueue("acme", PARENT)
    parent = claim(queue, PARENT)

    assert spawn(queue, parent, "a", "mail.send").outcome == "created"
    (row,) = queue.look("select count(*) as count from jobforge.jobs where confinement is not null")
    assert row.count == 0
