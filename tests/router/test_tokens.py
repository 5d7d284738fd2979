"""Tokens that were revoked or used up are refused by the database, in the very call they come with."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import anyio
import psycopg
import pytest

from jobforge_mcp.db.pool import Database
from jobforge_mcp.errors import JobForgeError, NotFoundError, PolicyDeniedError
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.router.patterns import allows_type
from jobforge_mcp.router.tokens import TokenRouter
from jobforge_mcp.types import Caller, CallOrigin, Limits, NewJob, RunFilter, TenantId
from tests.postgres import Clock

ORIGIN = CallOrigin(tool="test")
JOB = NewJob("demo.echo", "{}")
Calls = dict[str, Callable[[], Awaitable[object]]]


@pytest.fixture
def tokens(api_database: Database) -> TokenRouter:
    return TokenRouter(api_database)


@pytest.fixture
def holder(acme: Caller) -> Caller:
    """Somebody who came with a token."""
    now = int(datetime.now(UTC).timestamp() * 1_000)
    return replace(acme, token_id="t-1", epoch=now - 60_000)


def single(caller: Caller, token_id: str = "once-1") -> Caller:
    return replace(caller, token_id=token_id, is_single_use=True, single_use_ids=(token_id,))


async def code_of(call: Callable[[], Awaitable[object]]) -> str:
    try:
        await call()
    except JobForgeError as error:
        return error.code
    return "ok"


@pytest.mark.requirement("policy.revocation")
async def test_a_revoked_token_can_do_nothing_more(
    router: Router, tokens: TokenRouter, acme: Caller, holder: Caller
) -> None:
    job_id = (await router.enqueue_job(holder, JOB)).job_id

    assert await tokens.revoke_token(acme, "t-1", reason="lost", origin=ORIGIN)
    assert not await tokens.revoke_token(acme, "t-1", origin=ORIGIN)

    calls: Calls = {
        "enqueue": lambda: router.enqueue_job(holder, JOB),
        "plan": lambda: router.enqueue_job(holder, JOB, is_plan=True),
        "get": lambda: router.get_run(holder, job_id),
        "list": lambda: router.list_runs(holder, RunFilter()),
        "cancel": lambda: router.cancel_job(holder, job_id),
        "retry": lambda: router.retry_job(holder, job_id),
        "stats": lambda: router.queue_stats(holder),
        "revoke": lambda: tokens.revoke_token(holder, "other", origin=ORIGIN),
    }
    assert {name: await code_of(call) for name, call in calls.items()} == dict.fromkeys(
        calls, "TOKEN_REVOKED"
    )
    assert len(await router.list_runs(acme, RunFilter())) == 1
    assert await code_of(lambda: router.enqueue_job(replace(holder, token_id="t-2"), JOB)) == "ok"


@pytest.mark.requirement("policy.revocation")
async def test_what_was_narrowed_from_a_revoked_token_is_revoked_too(
    router: Router, tokens: TokenRouter, acme: Caller, holder: Caller
) -> None:
    child = replace(holder, links=("c-1", "c-2"))
    other = replace(holder, links=("c-3",))

    await tokens.revoke_token(acme, "c-1", origin=ORIGIN)
    assert await code_of(lambda: router.enqueue_job(child, JOB)) == "TOKEN_REVOKED"
    assert await code_of(lambda: router.enqueue_job(other, JOB)) == "ok"
    assert await code_of(lambda: router.enqueue_job(holder, JOB)) == "ok"

    await tokens.revoke_token(acme, "t-1", origin=ORIGIN)
    assert await code_of(lambda: router.enqueue_job(other, JOB)) == "TOKEN_REVOKED"


@pytest.mark.requirement("policy.revocation")
async def test_all_tokens_of_a_tenant_are_revoked_at_once_and_later_ones_are_good(
    router: Router, tokens: TokenRouter, acme: Caller, holder: Caller, globex: Caller
) -> None:
    stranger = replace(globex, token_id="t-1", epoch=holder.epoch)

    epoch = await tokens.revoke_tenant_tokens(acme, origin=ORIGIN)
    again = await tokens.revoke_tenant_tokens(acme, origin=ORIGIN)

    assert again > epoch
    assert await code_of(lambda: router.enqueue_job(holder, JOB)) == "TOKEN_REVOKED"
    assert await code_of(lambda: router.enqueue_job(replace(holder, epoch=None), JOB)) == (
        "TOKEN_REVOKED"
    )
    assert await code_of(lambda: router.enqueue_job(replace(holder, epoch=again), JOB)) == "ok"
    assert await code_of(lambda: router.enqueue_job(stranger, JOB)) == "ok"
    assert await code_of(lambda: router.enqueue_job(acme, JOB)) == "ok"


async def test_a_tenant_revokes_its_own_tokens_only(
    router: Router, tokens: TokenRouter, globex: Caller, holder: Caller
) -> None:
    await tokens.revoke_token(globex, "t-1", origin=ORIGIN)
    await tokens.revoke_tenant_tokens(globex, origin=ORIGIN)

    assert await code_of(lambda: router.enqueue_job(holder, JOB)) == "ok"


@pytest.mark.requirement("policy.single-use")
async def test_a_token_for_one_write_reads_as_often_as_it_likes_and_writes_once(
    router: Router, acme: Caller
) -> None:
    once = single(acme)
    await router.enqueue_job(once, JOB, is_plan=True)
    job_id = (await router.enqueue_job(once, JOB)).job_id

    assert (await router.get_run(once, job_id)).job_id == job_id
    assert await code_of(lambda: router.enqueue_job(once, JOB)) == "TOKEN_USED"
    assert await code_of(lambda: router.cancel_job(once, job_id)) == "TOKEN_USED"
    assert await code_of(lambda: router.enqueue_job(single(acme, "once-2"), JOB)) == "ok"


@pytest.mark.requirement("policy.single-use")
async def test_of_many_writes_with_one_token_one_is_done(router: Router, acme: Caller) -> None:
    codes: list[str] = []

    async def write() -> None:
        codes.append(await code_of(lambda: router.enqueue_job(single(acme), JOB)))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for _ in range(32):
                tasks.start_soon(write)

    assert sorted(codes) == ["TOKEN_USED"] * 31 + ["ok"]
    assert len(await router.list_runs(acme, RunFilter(limit=50))) == 1


@pytest.mark.requirement("policy.single-use")
async def test_a_write_that_was_refused_uses_nothing_up(router: Router, acme: Caller) -> None:
    once = replace(single(acme), limits=Limits(max_payload_bytes=4))

    assert await code_of(lambda: router.enqueue_job(once, NewJob("demo.echo", '{"a": 1}'))) != "ok"
    assert await code_of(lambda: router.enqueue_job(once, JOB)) == "ok"


@pytest.mark.requirement("policy.single-use")
async def test_children_of_a_token_for_one_write_share_that_one(
    router: Router, acme: Caller
) -> None:
    first = replace(single(acme), links=("c-1",), single_use_ids=("once-1", "c-1"))
    second = replace(single(acme), links=("c-2",), single_use_ids=("once-1", "c-2"))

    assert await code_of(lambda: router.enqueue_job(first, JOB)) == "ok"
    assert await code_of(lambda: router.enqueue_job(second, JOB)) == "TOKEN_USED"


async def test_what_happened_to_a_token_can_be_looked_up(
    router: Router, tokens: TokenRouter, acme: Caller
) -> None:
    limited = replace(single(acme), limits=Limits(budget_units=5))
    fresh = await tokens.check_token(acme, ["once-1", "c-1"], origin=ORIGIN)
    await router.enqueue_job(limited, JOB)
    await tokens.revoke_token(acme, "c-1", reason="lost", origin=ORIGIN)

    state = await tokens.check_token(acme, ["once-1", "c-1"], origin=ORIGIN)

    assert (fresh.token_epoch, fresh.revoked_id, fresh.used_id, fresh.used_units) == (
        0,
        None,
        None,
        0,
    )
    assert (state.revoked_id, state.revoked_reason) == ("c-1", "lost")
    assert (state.used_id, state.used_jobs, state.used_units) == ("once-1", 1, 1)


async def test_rows_of_tokens_that_ended_are_forgotten(
    tokens: TokenRouter, acme: Caller, clock: Clock
) -> None:
    await tokens.revoke_token(acme, "old", expires_at=datetime.now(UTC), origin=ORIGIN)
    clock.advance(timedelta(hours=2))
    await tokens.revoke_token(acme, "new", origin=ORIGIN)

    state = await tokens.check_token(acme, ["old"], origin=ORIGIN)

    assert state.revoked_id is None


@pytest.mark.requirement("policy.patterns")
async def test_the_database_holds_the_patterns_too(
    router: Router, acme: Caller, api_database: Database
) -> None:
    job_id = (await router.enqueue_job(acme, JOB)).job_id
    await router.enqueue_job(acme, NewJob("report.generate", "{}"))
    limited = replace(acme, job_types=("report.*",), deny_types=("report.delete",))

    with pytest.raises(PolicyDeniedError):
        await router.enqueue_job(limited, JOB)
    with pytest.raises(PolicyDeniedError):
        await router.enqueue_jobs(
            limited, [NewJob("report.x", "{}"), NewJob("report.delete", "{}")]
        )
    for call in (router.cancel_job, router.retry_job, router.get_run, router.explain_run):
        with pytest.raises(NotFoundError):
            await call(limited, job_id)
    assert [run.job_type for run in await router.list_runs(limited, RunFilter())] == [
        "report.generate"
    ]


@pytest.mark.requirement("policy.patterns")
def test_a_pattern_means_the_same_in_sql_and_in_python(admin: psycopg.Connection) -> None:
    rng = random.Random(20_261_122)

    def patterns() -> list[str]:
        return [
            ".".join([*rng.choices("ab*", k=rng.randint(0, 2)), rng.choice(("a", "b", "*", "**"))])
            for _ in range(rng.randint(1, 3))
        ]

    cases = [
        (
            patterns() if rng.random() < 0.7 else None,
            patterns() if rng.random() < 0.4 else [],
            ".".join(rng.choices("ab", k=rng.randint(1, 4))),
        )
        for _ in range(3_000)
    ]
    claims = [
        json.dumps({"denyTypes": deny} | ({} if allow is None else {"jobTypes": allow}))
        for allow, deny, _ in cases
    ]
    here = [
        allows_type(
            Caller(
                TenantId("acme"),
                "a",
                frozenset(),
                job_types=None if allow is None else tuple(allow),
                deny_types=tuple(deny),
            ),
            name,
        )
        for allow, deny, name in cases
    ]

    rows = admin.execute(
        """select jobforge.allows_type(u.claims::jsonb, u.name)
        from unnest(%s::text[], %s::text[]) with ordinality u(claims, name, ord) order by u.ord""",
        [claims, [name for _, _, name in cases]],
    ).fetchall()

    assert [row[0] for row in rows] == here
    assert 500 < sum(here) < 2_500
