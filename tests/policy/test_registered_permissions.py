"""What registered definitions ask of callers: for every action, on them and on their runs, for one run and for many."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import psycopg
import pytest
from pydantic import BaseModel

from jobforge_mcp.client import Client
from jobforge_mcp.definitions.model import Permission, job
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.errors import ConflictError, JobForgeError, NotFoundError, PolicyDeniedError
from jobforge_mcp.policy.permissions import EVERY_ROLE
from jobforge_mcp.policy.scopes import ALL_SCOPES
from jobforge_mcp.progress import RunWatcher
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.types import (
    BulkFilter,
    Caller,
    JobAction,
    JobId,
    JsonObject,
    RunFilter,
    TenantId,
)
from jobforge_mcp.worker.context import JobContext

pytestmark = [pytest.mark.anyio, pytest.mark.requirement("registering.permissions")]

NAME = "acme.pay"


class Amount(BaseModel):
    euros: int = 1


@job(name="pay.plain")
async def plain(input: Amount, job: JobContext) -> int:
    return input.euros


@job(
    name="pay.read",
    permissions=[
        Permission(action=JobAction.READ, roles=("ops",)),
        Permission(action=JobAction.CANCEL, roles=("ops",)),
    ],
)
async def readable(input: Amount, job: JobContext) -> int:
    return input.euros


ACME = Caller(
    TenantId("acme"), "author", scopes=frozenset(ALL_SCOPES), roles=frozenset({EVERY_ROLE})
)
ClientMaker = Callable[..., Client]


@pytest.fixture
async def make_client(router: Router) -> AsyncGenerator[ClientMaker]:
    async with RunWatcher(router) as watcher:

        def make(**changes: Any) -> Client:
            caller = replace(ACME, **changes)
            return Client(router, Registry([plain, readable]), caller, watcher=watcher)

        yield make


@pytest.fixture
def author(make_client: ClientMaker) -> Client:
    return make_client()


@pytest.fixture
def clerk(make_client: ClientMaker) -> Client:
    """Somebody with every scope, who lacks the role that is asked for."""
    return make_client(subject="clerk", roles=frozenset({"clerk"}))


def asking(action: str, handler: str = "pay.plain", **more: Any) -> JsonObject:
    return {
        "name": NAME,
        "handler": handler,
        "permissions": [{"action": action, "roles": ["ops"]}],
        **more,
    }


async def refusal(call: Any) -> tuple[type[JobForgeError], str, str, str | None]:
    with pytest.raises(JobForgeError) as caught:
        await call
    error = caught.value
    return type(error), error.code, error.message, error.hint


async def test_executing_is_asked(author: Client, clerk: Client) -> None:
    await author.register_job(asking("execute"))

    with pytest.raises(PolicyDeniedError):
        await clerk.enqueue(NAME)
    assert NAME not in [listed.name for listed in await clerk.list_jobs()]
    assert (await author.enqueue(NAME)).outcome.value == "created"


async def test_canceling_one_and_many_is_asked(author: Client, clerk: Client) -> None:
    await author.register_job(asking("cancel"))
    run_id = (await author.enqueue(NAME)).job_id

    with pytest.raises(PolicyDeniedError):
        await clerk.cancel(run_id)
    assert (await clerk.count_cancel(BulkFilter())).matched == 0
    assert (await clerk.cancel_many(BulkFilter(), most=10)).job_ids == ()
    assert (await author.count_cancel(BulkFilter())).matched == 1
    assert (await author.cancel_many(BulkFilter(), most=10)).job_ids == (run_id,)


async def test_retrying_one_and_many_is_asked_as_executing_is(
    author: Client, clerk: Client
) -> None:
    await author.register_job(asking("execute"))
    run_id = (await author.enqueue(NAME)).job_id
    await author.cancel(run_id)

    with pytest.raises(PolicyDeniedError):
        await clerk.retry(run_id)
    assert (await clerk.retry_many(BulkFilter(), most=10)).job_ids == ()
    assert (await author.retry_many(BulkFilter(), most=10)).job_ids == (run_id,)


async def test_the_version_of_the_run_is_asked_and_not_the_one_that_came_since(
    author: Client, clerk: Client
) -> None:
    await author.register_job(asking("cancel"))
    guarded = (await author.enqueue(NAME)).job_id
    await author.register_job({"name": NAME, "handler": "pay.plain"})
    free = (await author.enqueue(NAME)).job_id

    with pytest.raises(PolicyDeniedError):
        await clerk.cancel(guarded)
    assert (await clerk.cancel(free)).status.is_final


@pytest.mark.parametrize("handler", ["pay.plain", "pay.read"])
async def test_runs_that_may_not_be_read_do_not_exist(
    author: Client, clerk: Client, handler: str
) -> None:
    """By a permission of its own, or by that of the handler behind it."""
    own: JsonObject = {"name": NAME, "handler": handler}
    await author.register_job(asking("read") if handler == "pay.plain" else own)
    run_id = (await author.enqueue(NAME)).job_id
    unknown = JobId(UUID("01900000-0000-7000-8000-000000000000"))

    for verb in ("get", "payload", "cancel", "retry", "explain"):
        told = [await refusal(getattr(clerk, verb)(each)) for each in (run_id, unknown)]
        assert told[0][:2] == (NotFoundError, "RUN_NOT_FOUND")
        assert told[0][2].replace(str(run_id), str(unknown)) == told[1][2]
        assert told[0][3] == told[1][3]
    assert list(await clerk.attempts(run_id)) == []
    assert list(await clerk.logs(run_id)) == []
    assert await clerk.list_runs(RunFilter()) == []
    assert (await clerk.count_cancel(BulkFilter())).matched == 0
    assert (await author.get(run_id)).job_id == run_id
    assert len(await author.list_runs(RunFilter())) == 1


async def test_a_page_of_runs_is_full_where_some_between_may_not_be_read(
    author: Client, clerk: Client
) -> None:
    await author.register_job(asking("read"))
    for _ in range(3):
        await author.enqueue(NAME)
        await author.enqueue("pay.plain")

    shown = await clerk.list_runs(RunFilter(limit=2))

    assert [run.job_type for run in shown] == ["pay.plain", "pay.plain"]


@pytest.mark.parametrize("verb", ["register", "remove"])
async def test_changing_a_definition_is_asked_of_the_one_in_force(
    author: Client, clerk: Client, verb: str
) -> None:
    await author.register_job(asking("register"))
    act = {
        "register": lambda: clerk.register_job({"name": NAME, "handler": "pay.plain"}),
        "remove": lambda: clerk.remove_job(NAME),
    }[verb]

    with pytest.raises(PolicyDeniedError):
        await act()

    assert (await author.registered_job(NAME)).latest_version == "1"
    assert (await author.remove_job(NAME)).outcome == "removed"
    with pytest.raises(PolicyDeniedError):
        await clerk.register_job({"name": NAME, "handler": "pay.plain"})


async def test_approving_is_asked_of_what_waits_and_of_what_is_in_force(
    author: Client, clerk: Client, make_client: ClientMaker, admin: psycopg.Connection
) -> None:
    await author.register_job(asking("register"))
    admin.execute("select jobforge.require_approval('acme', true)")
    await author.register_job({"name": NAME, "handler": "pay.plain"})

    with pytest.raises(PolicyDeniedError):
        await clerk.approve_job(NAME)

    chief = make_client(subject="chief", roles=frozenset({"ops"}))
    assert (await chief.approve_job(NAME)).outcome == "approved"


async def test_what_may_not_be_listed_is_unknown_to_whoever_would_change_it(
    author: Client, clerk: Client
) -> None:
    await author.register_job(asking("list"))

    assert await refusal(clerk.remove_job(NAME)) == await refusal(clerk.remove_job("acme.none"))
    assert await refusal(clerk.approve_job(NAME)) == await refusal(clerk.approve_job("acme.none"))
    assert await refusal(clerk.registered_job(NAME)) == await refusal(
        clerk.registered_job("acme.none")
    )
    assert await clerk.registered_jobs() == []
    assert NAME not in [listed.name for listed in await clerk.list_jobs()]
    with pytest.raises(ConflictError) as caught:
        await clerk.register_job({"name": NAME, "handler": "pay.plain"})
    assert caught.value.code == "NAME_TAKEN"


async def test_a_definition_that_this_process_cannot_read_lets_nobody_at_its_runs(
    author: Client, clerk: Client, admin: psycopg.Connection
) -> None:
    await author.register_job({"name": NAME, "handler": "pay.plain"})
    run_id = (await author.enqueue(NAME)).job_id
    admin.execute(
        """update jobforge.job_definitions set definition = definition || '{"ofTheFuture": 1}'"""
    )

    with pytest.raises(NotFoundError):
        await clerk.get(run_id)
