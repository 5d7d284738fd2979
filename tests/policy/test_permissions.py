"""What definitions ask of callers, at every door and for every action."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from jobforge_mcp.client import Client, Options
from jobforge_mcp.definitions.model import BoundJob, Permission, job
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.errors import NotFoundError, PolicyDeniedError
from jobforge_mcp.policy.permissions import EVERY_ROLE, confine, may, may_list, require_job
from jobforge_mcp.policy.scopes import ALL_SCOPES
from jobforge_mcp.progress import RunWatcher
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.router.leases import WorkerRouter
from jobforge_mcp.types import (
    Caller,
    Completion,
    Effects,
    GuardedCall,
    JobAction,
    JsonValue,
    RunFilter,
    TenantId,
    WorkerId,
)
from jobforge_mcp.worker.context import JobContext


class Amount(BaseModel):
    euros: int = 1


def at_most_ten(call: GuardedCall) -> bool:
    if call.action is not JobAction.EXECUTE:
        return True
    return isinstance(call.input, dict) and call.input.get("euros") in range(11)


def broken(call: GuardedCall) -> bool:
    raise RuntimeError("the guard fell asleep")


@job(name="open.job")
async def open_job(input: Amount, job: JobContext) -> int:
    return input.euros


@job(
    name="pay.read",
    permissions=[
        Permission(action=JobAction.READ, roles=("auditor", "ops")),
        Permission(action=JobAction.CANCEL, scopes=("ops:read",), roles=("ops",)),
        Permission(action=JobAction.LIST, roles=("auditor", "ops", "clerk")),
    ],
)
async def read_job(input: Amount, job: JobContext) -> int:
    return input.euros


@job(name="pay.role", permissions=[Permission(roles=("clerk",))])
async def role_job(input: Amount, job: JobContext) -> int:
    return input.euros


@job(name="pay.out", effects="external")
async def outside(input: Amount, job: JobContext) -> int:
    return input.euros


@job(name="pay.small", guard=at_most_ten)
async def small(input: Amount, job: JobContext) -> int:
    return input.euros


@job(name="pay.broken", guard=broken)
async def never(input: Amount, job: JobContext) -> int:
    return input.euros


JOBS: list[BoundJob] = [open_job, read_job, role_job, outside, small, never]
ClientMaker = Callable[..., Client]


@pytest.fixture
async def make_client(router: Router) -> AsyncGenerator[ClientMaker]:
    async with RunWatcher(router) as watcher:

        def make(**caller: Any) -> Client:
            everything = {"scopes": frozenset(ALL_SCOPES), "roles": frozenset({EVERY_ROLE})}
            given: dict[str, Any] = everything | caller
            acting = Caller(TenantId("acme"), "agent", **given)
            return Client(router, Registry(JOBS), acting, watcher=watcher)

        yield make


def caller(**given: Any) -> Caller:
    given = {"scopes": frozenset(ALL_SCOPES), **given}
    return Caller(TenantId("acme"), "agent", **given)


@pytest.mark.requirement("policy.permissions")
@pytest.mark.parametrize(
    ("roles", "scopes", "is_allowed"),
    [
        ({"ops"}, {"ops:read"}, True),
        ({EVERY_ROLE}, {"ops:read"}, True),
        ({"auditor"}, {"ops:read"}, False),
        ({"ops"}, set[str](), False),
        (set[str](), {"ops:read"}, False),
    ],
)
def test_a_permission_asks_for_all_scopes_and_one_role(
    roles: set[str], scopes: set[str], is_allowed: bool
) -> None:
    acting = caller(roles=frozenset(roles), scopes=frozenset(scopes))

    assert may(acting, read_job, JobAction.CANCEL) is is_allowed
    assert may(acting, read_job, JobAction.EXECUTE)


@pytest.mark.requirement("policy.permissions")
def test_what_acts_outside_needs_a_scope_of_its_own() -> None:
    assert outside.effects is Effects.EXTERNAL
    require_job(caller(), outside, JobAction.EXECUTE)

    with pytest.raises(PolicyDeniedError, match="action:execute"):
        require_job(caller(scopes=frozenset({"jobs:execute"})), outside, JobAction.EXECUTE)
    assert may_list(caller(scopes=frozenset({"jobs:list"})))(outside)


@pytest.mark.requirement("policy.permissions")
def test_a_guard_that_fails_lets_nothing_through() -> None:
    assert not may(caller(), never, JobAction.READ)


@pytest.mark.requirement("policy.patterns")
def test_a_type_that_the_token_leaves_out_is_not_listed() -> None:
    acting = caller(job_types=("pay.**",), deny_types=("pay.small",), roles=frozenset({"clerk"}))

    shown = [bound.name for bound in Registry(JOBS).list(is_visible=may_list(acting))]

    assert shown == ["pay.out", "pay.read", "pay.role"]


def test_who_is_not_confined_stays_who_it_was() -> None:
    acting = caller(roles=frozenset({"ops"}))

    assert confine(acting, [open_job, read_job, role_job, outside]) is acting
    assert confine(caller(), [read_job]).hidden_types == {"pay.read"}


@pytest.mark.parametrize("given", [{}, {"roles": ["a b"]}, {"action": "own", "roles": ["a"]}])
def test_a_permission_that_asks_for_nothing_is_none(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Permission.model_validate(given)


@pytest.mark.requirement("policy.permissions")
async def test_execution_is_refused_to_those_without_role_scope_or_the_guards_yes(
    make_client: ClientMaker,
) -> None:
    clerk, other = make_client(roles=frozenset({"clerk"})), make_client(roles=frozenset())
    keyed = Options(idempotency_key="k")

    await clerk.enqueue("pay.role")
    await other.enqueue("pay.small", {"euros": 10})
    cases: list[tuple[Client, str, JsonValue]] = [
        (other, "pay.role", None),
        (other, "pay.small", {"euros": 11}),
        (other, "pay.broken", None),
        (make_client(scopes=frozenset({"jobs:execute"})), "pay.out", None),
    ]
    for client, name, input in cases:
        with pytest.raises(PolicyDeniedError):
            await client.enqueue(name, input, keyed)

    assert sorted(run.job_type for run in await make_client().list_runs()) == [
        "pay.role",
        "pay.small",
    ]


@pytest.mark.requirement("policy.permissions")
async def test_runs_that_may_not_be_read_do_not_exist(make_client: ClientMaker) -> None:
    ops, stranger = make_client(roles=frozenset({"ops"})), make_client(roles=frozenset())
    hidden = (await ops.enqueue("pay.read")).job_id
    shown = [(await ops.enqueue("open.job")).job_id for _ in range(3)]
    await ops.enqueue("pay.read")

    assert (await ops.get(hidden)).job_id == hidden
    listed = await stranger.list_runs(RunFilter(limit=2))
    assert [run.job_id for run in listed] == shown[:0:-1]
    for call in (stranger.get, stranger.payload, stranger.cancel, stranger.retry, stranger.explain):
        with pytest.raises(NotFoundError):
            await call(hidden)
    assert await stranger.attempts(hidden) == []


@pytest.mark.requirement("policy.permissions")
async def test_cancel_asks_for_what_the_definition_says(make_client: ClientMaker) -> None:
    run_id = (await make_client().enqueue("pay.read")).job_id

    with pytest.raises(PolicyDeniedError, match="roles ops"):
        await make_client(roles=frozenset({"auditor"})).cancel(run_id)
    canceled = await make_client(roles=frozenset({"ops"})).cancel(run_id)

    assert canceled.status == "canceled"


@pytest.mark.requirement("policy.permissions")
async def test_a_retry_asks_for_what_execution_asks_for(
    make_client: ClientMaker, worker_router: WorkerRouter
) -> None:
    run_id = (await make_client().enqueue("pay.out", {}, Options(idempotency_key="k"))).job_id
    claimed = await worker_router.claim_jobs(WorkerId("w"), ["pay.out"], 1)
    await worker_router.complete_jobs([Completion(claimed[0].fence, "1")])
    limited = make_client(scopes=frozenset({"jobs:execute", "jobs:read", "jobs:retry"}))

    with pytest.raises(PolicyDeniedError, match="action:execute"):
        await limited.retry(run_id, force=True)
    again = await make_client().retry(run_id, force=True)

    assert again.status == "queued"


@pytest.mark.requirement("policy.patterns")
async def test_runs_of_types_outside_the_token_do_not_exist(make_client: ClientMaker) -> None:
    run_id = (await make_client().enqueue("open.job")).job_id
    limited = make_client(job_types=("pay.*",))

    assert await limited.list_runs() == []
    with pytest.raises(NotFoundError):
        await limited.get(run_id)
    with pytest.raises(NotFoundError):
        await limited.cancel(run_id)


@pytest.mark.requirement("policy.patterns")
async def test_a_type_outside_the_token_and_an_unknown_one_are_refused_alike(
    make_client: ClientMaker,
) -> None:
    limited = make_client(job_types=("pay.*",))
    said: list[tuple[str, str | None]] = []

    for name in ("open.job", "no.such.job"):
        with pytest.raises(PolicyDeniedError) as refused:
            await limited.enqueue(name)
        said.append((refused.value.message, refused.value.hint))

    assert said[0] == said[1]


async def test_a_name_that_was_mistyped_is_not_completed_to_one_that_is_hidden(
    make_client: ClientMaker,
) -> None:
    with pytest.raises(NotFoundError) as refused:
        await make_client(roles=frozenset({"clerk"}), deny_types=("pay.small",)).enqueue("pay.smal")

    assert "pay.small" not in (refused.value.hint or "")
