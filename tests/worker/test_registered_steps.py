"""Steps that are registered jobs: pinned when the composition is registered, and run in that version."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import psycopg
import pytest

from jobforge_mcp.client import Client, Options
from jobforge_mcp.definitions.model import Permission, job
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.errors import ConflictError, InvalidInputError, NotFoundError, PolicyDeniedError
from jobforge_mcp.policy.permissions import EVERY_ROLE
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.types import Caller, JobId, JsonObject, JsonValue, RunStatus
from jobforge_mcp.worker.context import JobContext
from tests.conftest import CallerMaker
from tests.worker.conftest import Desk, PoolMaker, result_of
from tests.worker.handlers import Numbered

pytestmark = pytest.mark.requirement("compositions.registered")


@job(name="tell.world", effects="external", permissions=[Permission(roles=("ops",))])
async def tell_world(input: Numbered, job: JobContext) -> int:
    return input.number


@pytest.fixture
def author(make_caller: CallerMaker) -> Caller:
    return replace(
        make_caller("acme", scopes=[str(scope) for scope in Scope]), roles=frozenset({EVERY_ROLE})
    )


@pytest.fixture
def client(router: Router, registry: Registry, author: Caller) -> Client:
    return Client(router, Registry([*registry.by_name.values(), tell_world]), author)


def saying(number: int, name: str = "acme.say") -> JsonObject:
    """A registered job that says a number, whatever its input."""
    return {
        "name": name,
        "handler": "echo",
        "input": {"number": {"$literal": number}},
        "inputSchema": {"type": "object"},
    }


def running(*names: str, name: str = "acme.flow", **more: JsonValue) -> JsonObject:
    """A composition whose steps are these jobs."""
    steps: list[JsonValue] = [
        {"name": f"s{place}", "handler": each, "input": {}} for place, each in enumerate(names)
    ]
    return {"name": name, "chain": steps, **more}


async def run(client: Client, name: str = "acme.flow") -> JobId:
    return (await client.enqueue(name)).job_id


async def test_a_step_runs_the_version_that_was_pinned(
    client: Client, desk: Desk, make_pool: PoolMaker, admin: psycopg.Connection
) -> None:
    await client.register_job(saying(1))
    first = await client.register_job(running("acme.say", "echo"))
    await client.register_job(saying(2))

    async with make_pool():
        before = await run(client)
        same = await client.register_job(running("acme.say", "echo"))
        after = await run(client)
        await result_of(desk, before)
        await result_of(desk, after)

    assert (first.outcome, same.outcome, same.job_version) == ("created", "created", "2")
    rows = admin.execute(
        """select s.job_id, j.job_version, j.lane_type, j.result from jobforge.composition_steps s
        join jobforge.jobs j on j.id = s.child_id where j.job_type = 'acme.say'"""
    ).fetchall()
    assert sorted(rows) == sorted([(before, "1", "echo", 1), (after, "2", "echo", 2)])


async def test_the_same_definition_again_is_unchanged_while_its_steps_are(client: Client) -> None:
    await client.register_job(saying(1))
    first = await client.register_job(running("acme.say"))
    again = await client.register_job(running("acme.say"))

    assert (first.outcome, again.outcome) == ("created", "unchanged")


async def test_compositions_run_inside_each_other_and_end(
    client: Client, desk: Desk, make_pool: PoolMaker
) -> None:
    """Two that name each other pin versions that were there before: nothing runs itself."""
    await client.register_job(saying(5))
    await client.register_job(running("acme.say", name="flow.first"))
    await client.register_job(running("flow.first", name="flow.other"))
    await client.register_job(running("flow.other", name="flow.first"))

    async with make_pool():
        assert await result_of(desk, await run(client, "flow.first")) == 5


async def test_compositions_stand_only_so_deep_inside_each_other(client: Client) -> None:
    await client.register_job(saying(5))
    inner = "acme.say"
    for place in range(5):
        await client.register_job(running(inner, name=f"deep.{place}00"))
        inner = f"deep.{place}00"

    with pytest.raises(InvalidInputError, match="at most 5 deep"):
        await client.register_job(running(inner, name="deep.500"))


@pytest.mark.parametrize(
    ("definition", "code"),
    [
        (running("acme.flow"), "DEFINITION_INVALID"),
        (running("nobody.knows"), "JOB_NOT_FOUND"),
        ({**running("acme.say"), "pinned": {"jobs": {"acme.say": "1"}}}, "DEFINITION_INVALID"),
        ({"name": "acme.flow", "handler": "acme.say"}, "JOB_NOT_FOUND"),
    ],
)
async def test_what_could_never_run_is_refused(
    client: Client, definition: JsonObject, code: str
) -> None:
    await client.register_job(saying(1))

    with pytest.raises((InvalidInputError, NotFoundError)) as caught:
        await client.register_job(definition)

    assert caught.value.code == code


async def test_a_job_that_is_a_step_is_not_removed_while_it_is(
    client: Client, desk: Desk, make_pool: PoolMaker
) -> None:
    await client.register_job(saying(1))
    await client.register_job(running("acme.say", name="flow.one"))
    await client.register_job(running("acme.say", name="flow.two"))
    waiting = await run(client, "flow.one")

    with pytest.raises(ConflictError, match=r"is a step of flow\.one, flow\.two") as caught:
        await client.remove_job("acme.say")
    await client.remove_job("flow.two")
    await client.register_job(running("echo", name="flow.one"))
    removed = await client.remove_job("acme.say")

    assert (caught.value.code, removed.outcome) == ("JOB_IN_USE", "removed")
    with pytest.raises(NotFoundError):
        await client.register_job(running("acme.say", name="flow.two"))
    async with make_pool():
        ended = await desk.until_final(waiting)
    assert ended.error is not None
    assert (ended.status, ended.error.code) == (RunStatus.FAILED, "JOB_REMOVED")


async def test_a_composition_declares_the_effects_of_its_steps(client: Client) -> None:
    outside: JsonObject = {"name": "acme.tell", "handler": "tell.world"}
    await client.register_job(outside)

    for steps in (("acme.tell",), ("tell.world",)):
        with pytest.raises(InvalidInputError, match="effects: a step is external"):
            await client.register_job(running(*steps))
    assert (await client.register_job(running("acme.tell", effects="external"))).job_version == "1"


async def test_whoever_runs_a_composition_is_asked_what_its_steps_ask(
    client: Client, router: Router, author: Caller
) -> None:
    await client.register_job({"name": "acme.tell", "handler": "tell.world"})
    ask: list[JsonValue] = [{"action": "execute", "roles": ["boss"]}]
    await client.register_job({**saying(1), "permissions": ask})
    await client.register_job(running("acme.tell", name="flow.tell", effects="external"))
    await client.register_job(running("flow.tell", name="flow.outer", effects="external"))
    await client.register_job(running("acme.say", name="flow.say"))

    for names, roles in {
        ("flow.tell", "flow.outer"): {"boss"},
        ("flow.say",): {"ops"},
    }.items():
        weak = Client(router, client.registry, replace(author, roles=frozenset(roles)))
        for name in names:
            with pytest.raises((PolicyDeniedError, NotFoundError)):
                await weak.enqueue(name, None, Options(idempotency_key="k"))


@pytest.mark.requirement("policy.steps")
async def test_a_registered_step_that_the_token_denies_is_refused(
    client: Client, router: Router, author: Caller, desk: Desk, make_pool: PoolMaker
) -> None:
    await client.register_job(saying(1))
    await client.register_job(running("acme.say"))
    weak = replace(author, token_id="t-1", deny_types=("echo",))
    started = await Client(router, client.registry, weak).enqueue("acme.flow")

    async with make_pool():
        ended = await desk.until_final(started.job_id)

    assert ended.error is not None
    assert (ended.status, ended.error.code) == (RunStatus.FAILED, "POLICY_DENIED")


async def test_a_step_that_waits_for_approval_cannot_be_pinned(
    client: Client, admin: psycopg.Connection
) -> None:
    admin.execute("select jobforge.require_approval('acme', true)")
    await client.register_job(saying(1))

    with pytest.raises(NotFoundError) as caught:
        await client.register_job(running("acme.say"))

    assert caught.value.code == "JOB_QUARANTINED"


async def test_the_input_of_a_registered_step_is_checked_before_it_runs(
    client: Client, desk: Desk, make_pool: PoolMaker
) -> None:
    strict: dict[str, Any] = {"type": "object", "required": ["who"]}
    await client.register_job({**saying(1), "inputSchema": cast("JsonValue", strict)})
    await client.register_job(running("acme.say"))

    async with make_pool():
        ended = await desk.until_final(await run(client))

    assert ended.error is not None
    assert (ended.status, ended.error.code) == (RunStatus.FAILED, "INVALID_INPUT")
