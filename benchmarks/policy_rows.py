"""What the policy path costs an enqueue: audit row, signed scope, token and limits, each added to the one before.

What is divided by is a real enqueue without any of them: through `Router`, one commit a call, fsync on, in a database
whose function had the audit row and the look for limits taken out of it. Ways take turns, so that all see the same disk.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import anyio
import psycopg

from benchmarks.figures import Figure, Sizes, median
from benchmarks.stage import Stage
from jobforge_mcp.db.context import ContextSigner, create_key, enforce_keys
from jobforge_mcp.db.migrate import migrate
from jobforge_mcp.db.pool import Database
from jobforge_mcp.router.gathering import MOST_UNDER_WAY
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.types import Caller, CallOrigin, Limits, NewJob, TenantId

MOST = 1_000_000
RATE_AND_QUEUE = {"rps": 1e6, "burst": MOST, "max_queued": MOST}
EVERY_KIND = {
    **RATE_AND_QUEUE,
    "budget_jobs": MOST,
    "budget_units": MOST,
    "max_payload_bytes": MOST,
    "max_priority": 0,
}
OF_TOKEN = Limits(
    rps=1e6,
    burst=MOST,
    max_queued=MOST,
    budget_units=MOST,
    max_payload_bytes=MOST,
    max_priority=0,
)
LIMITS = {"rated": {"tenant": RATE_AND_QUEUE}, "held": {"tenant": EVERY_KIND, "type": EVERY_KIND}}
JOB = NewJob("demo.echo", '{"text": "hello", "repeat": 3}', labels={"team": "a"})
ORIGIN = CallOrigin("execute-job", "4bf92f3577b34da6a3ce929d0e0e4736")

PLAIN = Caller(TenantId("plain"), "agent", frozenset())
HOLDER = replace(PLAIN, token_id="0193f7a2-9c1e-7b7e-b7d5-0f2a4a9c11aa", epoch=1_763_800_000_000)


BARE, AUDITED, SIGNED = "policy_bare", "policy_audited", "policy_signed"
CALLERS = (1, 8, 64)

MOST_OF_AUDIT = 0.05
MOST_OF_SIGNING = 0.08
MOST_OF_ALL = 0.15


@dataclass(slots=True)
class Way:
    """One way to enqueue, and what its calls took."""

    name: str
    database: str
    caller: Caller
    most_alone: float | None = None
    """What it may take of an enqueue beyond the way before it."""
    most: float | None = None
    """What it may take of an enqueue with all that came before it."""
    walls: list[float] = field(default_factory=list[float])
    """Milliseconds of each call of a lone caller."""
    cpu: dict[int, list[float]] = field(default_factory=dict[int, list[float]])
    """Milliseconds of the server's processor for a job, by callers, one for each turn."""

    @property
    def wall(self) -> float:
        return median(self.walls)

    def cpu_ms(self, callers: int) -> float:
        return median(self.cpu[callers])


def ways() -> list[Way]:
    """From nothing to everything; those with limits stand beside each other."""
    rated = replace(HOLDER, tenant_id=TenantId("rated"))
    held = replace(HOLDER, tenant_id=TenantId("held"))
    token = replace(HOLDER, limits=OF_TOKEN)
    return [
        Way("nothing of it", BARE, PLAIN),
        Way("the audit row", AUDITED, PLAIN, most_alone=MOST_OF_AUDIT),
        Way("a signed scope", SIGNED, PLAIN, most_alone=MOST_OF_SIGNING),
        Way("a token", SIGNED, HOLDER, most=MOST_OF_ALL),
        Way("a tenant's rate and queue", SIGNED, rated, most=MOST_OF_ALL),
        Way("limits of a token", SIGNED, token, most=MOST_OF_ALL),
        Way("all kinds of tenant and type", SIGNED, held, most=MOST_OF_ALL),
        Way(
            "all kinds of token, tenant and type",
            SIGNED,
            replace(held, limits=OF_TOKEN),
            most=MOST_OF_ALL,
        ),
    ]


def policy(stage: Stage, sizes: Sizes) -> list[Figure]:
    """Enqueue in each way: one caller, then 8 and 64 whose calls gather."""
    signers = {name: _prepare(stage, name) for name in (BARE, AUDITED, SIGNED)}
    measured = ways()
    anyio.run(_measure, stage, measured, signers, sizes)
    bare = measured[0]
    figures = [Figure("policy", "enqueue with nothing of the policy path, p50", bare.wall, "ms")]
    figures += [
        Figure("policy", f"server CPU of it, {_callers(count)}", bare.cpu_ms(count), "ms")
        for count in CALLERS
    ]
    for before, way in pairwise(measured):
        if way.most_alone is not None:
            share = (way.wall - before.wall) / bare.wall
            figures.append(
                Figure("policy", f"{way.name} alone: more time", share, "x", most=way.most_alone)
            )
        if way.most is not None:
            more = way.wall / bare.wall - 1
            figures.append(Figure("policy", f"{way.name}: more time", more, "x", most=way.most))
        figures += [
            Figure(
                "policy",
                f"{way.name}: more server CPU, {_callers(count)}",
                way.cpu_ms(count) / bare.cpu_ms(count) - 1,
                "x",
            )
            for count in CALLERS
        ]
    return figures


def _callers(count: int) -> str:
    return f"{count} caller{'s' if count > 1 else ''}"


def _prepare(stage: Stage, name: str) -> ContextSigner | None:
    url = stage.fresh_database(name)
    migrate(url)
    with psycopg.connect(url, autocommit=True) as connection:
        if name == BARE:
            row = connection.execute(
                "select pg_get_functiondef('jobforge.enqueue_any_jobs'::regproc)"
            ).fetchone()
            assert row is not None
            connection.execute(without_policy(row[0]).encode())
        for tenant, limits in LIMITS.items():
            for kind, wanted in limits.items():
                connection.execute(
                    "select jobforge.set_limit(%s, %s, %s, %s)",
                    [tenant, kind, JOB.job_type if kind == "type" else None, json.dumps(wanted)],
                )
    if name != SIGNED:
        return None
    key = create_key(url)
    enforce_keys(url)
    return ContextSigner(key)


LOOK = " or exists (select from jobforge.rate_limits l where l.tenant_id = p_tenant_id)"


def without_policy(text: str) -> str:
    """Take out the audit row of calls that made jobs, and the look for limits."""
    assert LOOK in text
    text = text.replace(LOOK, "")
    start = text.index("with audited as (")
    text = text[:start] + "with " + text[text.index("queued as (", start) :]
    start = text.index("if p_call_traces is null then")
    return text[:start] + text[text.index("-- what was made just now is known", start) :]


async def _measure(
    stage: Stage, measured: list[Way], signers: dict[str, ContextSigner | None], sizes: Sizes
) -> None:
    async with AsyncExitStack() as stack:
        lines = [
            await stack.enter_async_context(_open(stage, way, number, signers[way.database]))
            for number, way in enumerate(measured)
        ]
        for callers in CALLERS:
            turns = sizes.passes * (20 if callers == 1 else 3)
            for turn in range(-2, turns):
                if turn == 0:  # what came before warmed everything
                    for way in measured:
                        way.cpu[callers] = []
                        if callers == 1:
                            way.walls.clear()
                order = list(zip(measured, lines, strict=True))
                random.shuffle(order)
                for way, line in order:
                    await _take_turn(
                        way, *line, callers, sizes.seconds / (80 if callers == 1 else 10)
                    )


@asynccontextmanager
async def _open(
    stage: Stage, way: Way, number: int, signer: ContextSigner | None
) -> AsyncGenerator[tuple[Router, list[int]]]:
    name = f"way {number}"
    size = MOST_UNDER_WAY
    url = stage.url(way.database)
    async with Database(
        url, role="jobforge_api", min_size=size, max_size=size, name=name
    ) as database:
        with psycopg.connect(url) as connection:
            rows = connection.execute(
                "select pid from pg_stat_activity where application_name = %s", [name]
            ).fetchall()
        yield Router(database, signer=signer), [row[0] for row in rows]


async def _take_turn(
    way: Way, router: Router, pids: list[int], callers: int, seconds: float
) -> None:
    done = 0

    async def call() -> None:
        nonlocal done
        ended = 0.0
        while ended < until:
            started = time.perf_counter()
            await router.enqueue_job(way.caller, JOB, origin=ORIGIN)
            ended = time.perf_counter()
            if callers == 1:
                way.walls.append(1_000 * (ended - started))
            done += 1

    before = _cpu_ms(pids)
    until = time.perf_counter() + seconds
    async with anyio.create_task_group() as group:
        for _ in range(callers):
            group.start_soon(call)
    way.cpu.setdefault(callers, []).append((_cpu_ms(pids) - before) / done)


def _cpu_ms(pids: list[int]) -> float:
    """Processor time of some processes, to the nanosecond where the kernel tells it."""
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) / 1e6
