"""Steps are held to the token of whoever started the run: what it refuses is a failed step that never ran."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import cast

import psycopg
import pytest

from jobforge_mcp import registering
from jobforge_mcp.db.pool import Database
from jobforge_mcp.definitions.catalog import Catalog
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.maintenance import Maintenance
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.router.events import EventRouter
from jobforge_mcp.router.maintenance import MaintenanceRouter
from jobforge_mcp.triggers.desk import EventDesk
from jobforge_mcp.types import (
    Caller,
    CallOrigin,
    FireFilter,
    JobId,
    JsonObject,
    JsonValue,
    Limits,
    NewEvent,
    RunStatus,
    TriggerKind,
    TriggerSpec,
)
from tests.conftest import CallerMaker
from tests.postgres import Clock
from tests.worker.conftest import Composer, Desk, PoolMaker, result_of, steps_of

ORIGIN = CallOrigin("test")
TWO: JsonObject = {
    "chain": [
        {"name": "one", "handler": "echo", "input": {"number": 1}},
        {"name": "two", "handler": "echo.process", "input": {"number": 2}},
    ]
}
"""Two steps, of which the tokens of these tests allow the first."""


def confined(caller: Caller, **claims: object) -> Caller:
    """Return the same caller with a token of these claims."""
    return replace(caller, token_id="t-1", **claims)


def types_run(admin: psycopg.Connection) -> set[str]:
    rows = admin.execute("select distinct job_type from jobforge.jobs").fetchall()
    return {job_type for (job_type,) in rows}


@pytest.mark.requirement("policy.steps")
@pytest.mark.parametrize(
    ("claims", "claim"),
    [
        ({"deny_types": ("echo.*",)}, "deny_types"),
        ({"job_types": ("acme.*", "echo")}, "job_types"),
        ({"job_types": ("**",), "deny_types": ("echo.process",)}, "deny_types"),
    ],
)
async def test_a_step_of_a_type_that_the_token_denies_is_refused_by_name_and_never_runs(
    desk: Desk,
    make_pool: PoolMaker,
    compose: Composer,
    admin: psycopg.Connection,
    claims: dict[str, object],
    claim: str,
) -> None:
    async with make_pool():
        job_id = await compose(TWO, caller=confined(desk.caller, **claims))
        run = await desk.until_final(job_id)

    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error.code == "POLICY_DENIED"
    assert "step two (echo.process) was refused and never ran" in run.error.message
    assert f"its claim {claim}" in run.error.message
    assert steps_of(admin, job_id) == {"one": ("echo", "succeeded")}
    assert types_run(admin) == {"acme.flow", "echo"}


@pytest.mark.requirement("policy.steps")
@pytest.mark.parametrize(
    ("definition", "expected"),
    [
        (
            {"map": {"items": [1, 2], "do": {"handler": "echo.process", "input": {}}, "onFailure": "continue"}},
            [None, None],
        ),
        (
            {
                "chain": [
                    {"name": "a", "onFailure": "continue", "handler": "echo.process"},
                    {"name": "b", "handler": "echo", "input": {"number": 7}},
                ],
                "result": [{"$ref": "/steps/a/error/code"}, {"$ref": "/steps/b/result"}],
            },
            ["POLICY_DENIED", 7],
        ),
        (
            {
                "chain": [
                    {"name": "a", "onFailure": "continue", "switch": {
                        "cases": [{"when": True, "do": {"map": {"items": [1], "do": {"handler": "echo.process"}}}}]}},
                ],
                "result": {"$ref": "/steps/a/error/code"},
            },
            "POLICY_DENIED",
        ),
    ],
)  # fmt: skip
async def test_a_refused_step_fails_as_any_other_wherever_it_stands(
    desk: Desk,
    make_pool: PoolMaker,
    compose: Composer,
    admin: psycopg.Connection,
    definition: JsonObject,
    expected: JsonValue,
) -> None:
    async with make_pool():
        job_id = await compose(definition, caller=confined(desk.caller, deny_types=("echo.*",)))

        assert await result_of(desk, job_id) == expected

    assert "echo.process" not in types_run(admin)


@pytest.mark.requirement("policy.steps")
async def test_of_steps_that_are_due_together_only_the_refused_fail(
    desk: Desk, make_pool: PoolMaker, compose: Composer
) -> None:
    either = {
        "cases": [{"when": {"$jmespath": "item > `2`"}, "do": {"handler": "echo.process"}}],
        "default": {"handler": "echo", "input": {"number": {"$ref": "/item"}}},
    }
    each = {"items": [1, 2, 3, 4], "do": {"switch": either}, "onFailure": "continue"}
    async with make_pool():
        job_id = await compose(
            {"map": each}, caller=confined(desk.caller, deny_types=("echo.process",))
        )

        assert await result_of(desk, job_id) == [1, 2, None, None]


@pytest.mark.requirement("policy.steps")
@pytest.mark.parametrize(
    ("limits", "step", "code"),
    [
        (Limits(max_priority=2), {"priority": 0}, "PRIORITY_TOO_HIGH"),
        (Limits(max_depth=0), {}, "TOO_DEEP"),
        (Limits(max_payload_bytes=64), {"input": {"name": "x" * 80}}, "PAYLOAD_TOO_LARGE"),
    ],
)  # fmt: skip
async def test_a_step_beyond_a_cap_of_the_token_is_refused(
    desk: Desk,
    make_pool: PoolMaker,
    compose: Composer,
    admin: psycopg.Connection,
    limits: Limits,
    step: dict[str, object],
    code: str,
) -> None:
    async with make_pool():
        job_id = await compose(
            {"chain": [{"name": "a", "handler": "raise", "input": {"name": "permanent"}, **step}]},
            caller=confined(desk.caller, limits=limits),
        )
        run = await desk.until_final(job_id)

    assert run.error is not None
    assert (run.status, run.error.code) == (RunStatus.FAILED, code)
    assert steps_of(admin, job_id) == {}


@pytest.mark.requirement("policy.steps")
async def test_a_map_enqueues_no_more_steps_than_the_token_allows_children(
    desk: Desk, make_pool: PoolMaker, compose: Composer, admin: psycopg.Connection
) -> None:
    do = {"handler": "echo", "input": {"number": {"$ref": "/item"}}}
    each = {"items": [1, 2, 3, 4, 5], "do": do, "concurrency": 2, "onFailure": "continue"}
    async with make_pool():
        job_id = await compose(
            {"map": cast("JsonValue", each)},
            caller=confined(desk.caller, limits=Limits(max_children=3)),
        )

        assert await result_of(desk, job_id) == [1, 2, 3, None, None]

    assert len(steps_of(admin, job_id)) == 3


@pytest.mark.requirement("policy.steps")
async def test_steps_and_their_children_stay_in_the_project_of_the_run(
    desk: Desk, make_pool: PoolMaker, compose: Composer, admin: psycopg.Connection
) -> None:
    steps = {"chain": [{"name": "a", "handler": "parent", "input": {"number": 2}}]}
    async with make_pool():
        job_id = await compose(
            steps,
            caller=confined(desk.caller, projects=frozenset({"p1"})),
            project_id="p1",
        )
        await result_of(desk, job_id)

    rows = admin.execute("select project_id, count(*) from jobforge.jobs group by 1").fetchall()
    assert rows == [("p1", 4)]


@pytest.mark.requirement("policy.steps")
async def test_what_the_handler_of_a_step_enqueues_is_held_to_the_same_token(
    desk: Desk, make_pool: PoolMaker, compose: Composer, admin: psycopg.Connection
) -> None:
    steps = {"chain": [{"name": "a", "handler": "parent", "input": {"number": 1}}]}
    async with make_pool():
        job_id = await compose(steps, caller=confined(desk.caller, deny_types=("echo",)))
        run = await desk.until_final(job_id)

    assert run.error is not None
    assert (run.status, run.error.code) == (RunStatus.FAILED, "POLICY_DENIED")
    assert types_run(admin) == {"acme.flow", "parent"}


# Triggers: the token of whoever registered one, whoever submits the event


@pytest.fixture
def author(make_caller: CallerMaker) -> Caller:
    """Somebody who may do everything."""
    return make_caller("acme", scopes=list(Scope))


@pytest.fixture
def events(api_database: Database, registry: Registry) -> EventDesk:
    return EventDesk(EventRouter(api_database), registry)


@pytest.fixture
async def registered(events: EventDesk, registry: Registry, author: Caller) -> str:
    """Name of a composition that somebody registered who is confined to nothing."""
    catalog = Catalog(registry, events.router.definitions)
    document: JsonObject = {"name": "acme.flow", **TWO}
    registration = await registering.register(catalog, author, document, origin=ORIGIN)
    return registration.job_type


async def assert_the_second_step_was_refused(
    desk: Desk, admin: psycopg.Connection, job_id: JobId
) -> None:
    run = await desk.until_final(job_id)
    assert run.error is not None
    assert (run.status, run.error.code) == (RunStatus.FAILED, "POLICY_DENIED")
    assert "its claim deny_types" in run.error.message
    assert types_run(admin) == {"acme.flow", "echo"}


@pytest.mark.requirement("policy.steps")
async def test_a_composition_that_an_event_starts_has_the_authority_of_who_registered_the_trigger(
    desk: Desk,
    events: EventDesk,
    registered: str,
    make_pool: PoolMaker,
    author: Caller,
    admin: psycopg.Connection,
) -> None:
    weak = replace(confined(author, deny_types=("echo.*",)), subject="weak")
    trigger = TriggerSpec("t", TriggerKind.EVENT, event_type="a.b", job_name=registered, input={})
    await events.register(weak, trigger)
    submitted = await events.submit(author, NewEvent("a.b", "{}"))
    job_id = submitted.decisions[0].job_id
    assert job_id is not None

    async with make_pool():
        await assert_the_second_step_was_refused(desk, admin, job_id)


@pytest.mark.requirement("policy.steps")
async def test_an_event_of_somebody_confined_starts_what_the_trigger_may(
    desk: Desk,
    events: EventDesk,
    registered: str,
    make_pool: PoolMaker,
    author: Caller,
) -> None:
    trigger = TriggerSpec("t", TriggerKind.EVENT, event_type="a.b", job_name=registered, input={})
    await events.register(author, trigger)
    weak = replace(confined(author, deny_types=("echo.*",)), subject="weak")
    submitted = await events.submit(weak, NewEvent("a.b", "{}"))
    job_id = submitted.decisions[0].job_id
    assert job_id is not None

    async with make_pool():
        assert cast("JsonObject", await result_of(desk, job_id))["number"] == 2


@pytest.mark.requirement("policy.steps")
async def test_a_composition_that_a_schedule_starts_has_the_authority_of_who_registered_it(
    desk: Desk,
    events: EventDesk,
    registered: str,
    registry: Registry,
    worker_database: Database,
    make_pool: PoolMaker,
    author: Caller,
    admin: psycopg.Connection,
    clock: Clock,
) -> None:
    weak = replace(confined(author, deny_types=("echo.*",)), subject="weak")
    trigger = TriggerSpec("t", TriggerKind.CRON, cron="* * * * *", job_name=registered, input={})
    await events.register(weak, trigger)
    clock.advance(timedelta(seconds=70))
    await Maintenance(MaintenanceRouter(worker_database), registry).fire_due()
    fires = await events.history(author, FireFilter(trigger_name="t"))
    (job_id,) = [fire.job_id for fire in fires if fire.job_id is not None]

    async with make_pool():
        await assert_the_second_step_was_refused(desk, admin, job_id)
