"""The end of a soak: nothing is broken any more, and all that is open has to end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import anyio

from soak.history import History
from soak.server import Server

LOOK_SECONDS, TELL_SECONDS = 0.5, 5.0
MOVED, HOLDING = "claims", "workers that hold jobs"
_LEFT = """
    select 'ready: ' || r.job_type || case when r.is_suspect then ', suspect' else '' end as what, count(*) as n
    from jobforge.ready r group by 1
    union all
    select 'waiting for ' || w.waiting_for, count(*) from jobforge.waiting w group by 1
    union all
    select 'running', sum(cardinality(l.job_ids)) from jobforge.leases l having count(*) > 0
    union all
    select 'events', count(*) from jobforge.events e where e.processed_at is null having count(*) > 0
    union all
    select 'workers that hold jobs', count(distinct l.worker_id) from jobforge.leases l
    union all
    select 'claims', count(*) from soak.claims
    order by 2 desc"""


@dataclass(frozen=True)
class Drain:
    """How long it took, and what was there at its begin."""

    seconds: float
    is_whole: bool
    left: Mapping[str, int]


async def drain(
    server: Server, history: History, seconds: float, still_seconds: float, *, is_told: bool
) -> Drain:
    """Wait until every place is empty, or nothing has moved for so long; write down now and then what is left, and tell it if asked."""
    began = moved = time.monotonic()
    told, told_claims = began - TELL_SECONDS, 0
    first: dict[str, int] | None = None
    before: dict[str, int] = {}
    while (now := time.monotonic()) < min(began + seconds, moved + still_seconds):
        seen = {row["what"]: int(row["n"]) for row in server.fetch(_LEFT)}
        if seen != before:
            before, moved = seen, now
        left = {what: n for what, n in seen.items() if what not in {MOVED, HOLDING}}
        first = left if first is None else first
        if not left:
            return Drain(now - began, True, first)
        if now >= told + TELL_SECONDS:
            rate = (seen[MOVED] - told_claims) / (now - told) if told_claims else 0.0
            told, told_claims = now, seen[MOVED]
            history.note("left", places=seen, claims_a_second=rate)
            if is_told:
                print(f"  {now - began:3.0f} s: {rate:.0f} claims/s, {describe(seen)}", flush=True)
        await anyio.sleep(LOOK_SECONDS)
    return Drain(time.monotonic() - began, False, first or {})


def describe(left: Mapping[str, int]) -> str:
    """Say it in one line."""
    return ", ".join(f"{what} {n:,}" for what, n in left.items() if what != MOVED) or "nothing"
