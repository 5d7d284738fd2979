"""Registered jobs by plain SQL: `enqueue_job` finds version and lane by the name, and refuses what may not be run."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

import pytest

from jobforge_mcp.definitions.claim_limits import claim_limits
from jobforge_mcp.definitions.model import JobDefinition
from tests.sql.acting import API, SUPERUSER, Queue, Row, call, enter, refused

NAME = "acme.hello"
HANDLER = "demo.echo"


def register(queue: Queue, version: str | None = None, lane: str = HANDLER, **members: Any) -> Row:
    """Register a version of the definition."""
    definition = {"name": NAME, "handler": HANDLER, **members}
    (registered,) = queue.ask("register_definition", "acme", json.dumps(definition), lane, version)
    return registered


def jobs(queue: Queue) -> list[tuple[str, str, str | None]]:
    rows = queue.look("select job_type, job_version, lane_type from jobforge.jobs order by id")
    return [(row.job_type, row.job_version, row.lane_type) for row in rows]


@pytest.mark.requirement("registering.sql")
def test_a_registered_name_runs_in_its_lane_and_current_version(queue: Queue) -> None:
    register(queue)
    register(queue, input={"loud": True})

    queue.enqueue("acme", NAME)
    queue.enqueue("acme", NAME, job_version="1")
    queue.enqueue("acme", HANDLER)

    assert jobs(queue) == [(NAME, "2", HANDLER), (NAME, "1", HANDLER), (HANDLER, "1", None)]
    claimed = queue.claim(10, types=[HANDLER])
    assert sorted((row.job_type, row.lane_type) for row in claimed) == [
        (NAME, HANDLER),
        (NAME, HANDLER),
        (HANDLER, None),
    ]
    assert {row.definition is None for row in claimed if row.job_type == NAME} == {False}


@pytest.mark.requirement("registering.sql")
def test_what_the_caller_leaves_out_is_as_the_definition_says(queue: Queue) -> None:
    retry = {"maxAttempts": 7, "backoffMs": 50, "backoffMultiplier": 3, "maxBackoffMs": 500}
    register(queue, retry=retry, timeoutMs=1_234, cost=5)

    queue.enqueue("acme", NAME)
    queue.enqueue("acme", NAME, max_attempts=2, timeout_ms=99)
    queue.enqueue("acme", HANDLER)

    rows = queue.look(
        """select max_attempts, backoff_ms, backoff_multiplier, max_backoff_ms, timeout_ms, cost
        from jobforge.jobs order by id"""
    )
    assert [tuple(vars(row).values()) for row in rows] == [
        (7, 50, 3, 500, 1_234, 5),
        (2, 50, 3, 500, 99, 5),
        (3, 1_000, 2, 60_000, 300_000, None),
    ]


@pytest.mark.requirement("registering.sql")
def test_the_same_key_again_is_a_replay_of_the_run_it_made(queue: Queue) -> None:
    register(queue, effects="external")
    with refused("JF400"):
        queue.enqueue("acme", NAME)

    first = queue.enqueue("acme", NAME, idempotency_key="k")
    register(queue, effects="external", input={"loud": True})
    again = queue.enqueue("acme", NAME, idempotency_key="k")

    assert (first.outcome, again.outcome, again.job_id) == ("created", "replayed", first.job_id)


@pytest.mark.requirement("registering.sql")
def test_what_may_not_be_run_is_refused(queue: Queue) -> None:
    register(queue)
    with refused("JF404"):
        queue.enqueue("acme", NAME, job_version="9")
    queue.ask("remove_definition", "acme", NAME)
    with refused("JF404"):
        queue.enqueue("acme", NAME)
    register(queue)
    assert queue.enqueue("acme", NAME).outcome == "created"
    with queue.acting(SUPERUSER) as connection:
        connection.execute("select jobforge.require_approval('acme', true)")
    register(queue, input={"loud": True})

    queue.enqueue("acme", NAME)

    with refused("JF404"):
        queue.enqueue("acme", NAME, job_version="2")
    assert jobs(queue) == [(NAME, "1", HANDLER), (NAME, "1", HANDLER)]


@pytest.mark.requirement("registering.sql")
def test_a_definition_that_waits_for_its_first_approval_is_refused(queue: Queue) -> None:
    with queue.acting(SUPERUSER) as connection:
        connection.execute("select jobforge.require_approval('acme', true)")
    register(queue)

    with refused("JF404"):
        queue.enqueue("acme", NAME)

    with queue.acting(API) as connection:
        connection.execute("select jobforge.enter_scope('acme', 'somebody else')")
        call(connection, "approve_definition", "acme", NAME)
    assert queue.enqueue("acme", NAME).outcome == "created"


@pytest.mark.requirement("registering.sql")
def test_another_tenant_knows_nothing_of_it(queue: Queue) -> None:
    register(queue)

    queue.enqueue("globex", NAME)

    assert jobs(queue) == [(NAME, "1", None)]


@pytest.mark.requirement("registering.sql")
def test_a_definition_that_asks_for_roles_is_not_for_plain_sql(queue: Queue) -> None:
    register(queue, permissions=[{"action": "execute", "roles": ["ops"]}])

    with refused("JF403"):
        queue.enqueue("acme", NAME)


@pytest.mark.requirement("policy.steps")
@pytest.mark.parametrize(
    ("claims", "is_refused"),
    [
        ({"denyTypes": [HANDLER]}, True),
        ({"denyTypes": ["acme.*"]}, True),
        ({"jobTypes": ["demo.*"]}, True),
        ({"jobTypes": ["acme.*"]}, False),
        ({"jobTypes": ["acme.*"], "denyTypes": ["demo.**"]}, True),
    ],
)
def test_what_a_token_denies_it_denies_under_every_name(
    queue: Queue, claims: dict[str, Any], is_refused: bool
) -> None:
    register(queue)

    with refused("JF403") if is_refused else nullcontext(), queue.acting(API) as connection:
        connection.execute(
            "select jobforge.enter_scope('acme', 'tester', 't1', null, null, %s)",
            [json.dumps({"jti": "t1", **claims})],
        )
        call(connection, "enqueue_job", "acme", NAME, "{}")

    assert len(jobs(queue)) == (0 if is_refused else 1)


@pytest.mark.requirement("registering.sql")
@pytest.mark.parametrize(
    "input",
    [
        {"who": "ann"},
        {"who": None},
        {},
        {"who": 7},
        {"who": 1.5},
        {"who": 2.0},
        {"who": True},
        {"who": [1, "two", None]},
        {"who": "x" * 300},
    ],
)
def test_limits_count_an_input_as_clients_do(queue: Queue, input: dict[str, Any]) -> None:
    limits: dict[str, Any] = {
        "concurrency": {"limit": 3, "key": "/who"},
        "rateLimit": {"count": 2, "periodMs": 1_000, "key": "shared"},
        "debounce": {"windowMs": 100, "key": "/who"},
    }
    register(queue, **limits)
    definition = JobDefinition.model_validate({"name": NAME, "handler": HANDLER, **limits})

    with queue.acting(SUPERUSER) as connection:
        enter(connection, "acme")
        (found,) = call(connection, "resolve_job", "acme", NAME, None, json.dumps(input), None)

    assert json.loads(found.claim_limits) == json.loads(
        claim_limits(definition, json.dumps(input)) or ""
    )


@pytest.mark.requirement("registering.sql")
def test_a_limit_by_an_object_is_left_to_clients(queue: Queue) -> None:
    register(queue, concurrency={"limit": 1, "key": "/who"})

    with refused("JF400"):
        queue.enqueue("acme", NAME, json.dumps({"who": {"b": 1, "a": 2}}))
    queue.enqueue("acme", NAME, json.dumps({"who": "ann"}))

    (job,) = queue.look("select slot_key, slot_limit from jobforge.jobs")
    assert job.slot_limit == 1
    assert "ann" in job.slot_key
