"""The job that every drain runs: it counts itself and does nothing else."""

from __future__ import annotations

import os

from pydantic import BaseModel

from jobforge_mcp import JobContext, job
from jobforge_mcp.definitions.model import ConcurrencyLimit, RateLimit

from .contract import Counter  # noqa: TID252 - a file of job definitions has no other name for its neighbours

# Only a worker that is measured has the file; who merely enqueues has none.
_counter = Counter(os.environ["BENCH_COUNTER"]) if "BENCH_COUNTER" in os.environ else None


class Numbered(BaseModel):
    i: int
    t: float = 0.0
    """When it was sent, for a probe; else 0."""


class Keyed(Numbered):
    key: int
    """Whose slots it takes."""


class Done(BaseModel):
    i: int


@job(name="bench.noop", effects="none")
async def noop(input: Numbered, _: JobContext) -> Done:
    """Count one run."""
    return _count(input)


@job(name="bench.free", effects="none")
async def free(input: Numbered, _: JobContext) -> Done:
    """Count one run; another type that nothing limits."""
    return _count(input)


@job(name="bench.wide", effects="none", concurrency=ConcurrencyLimit(limit=10_000))
async def wide(input: Numbered, _: JobContext) -> Done:
    """Count one run, under a limit that is never reached."""
    return _count(input)


@job(name="bench.keyed", effects="none", concurrency=ConcurrencyLimit(limit=20, key="/key"))
async def keyed(input: Keyed, _: JobContext) -> Done:
    """Count one run, under one of many keys."""
    return _count(input)


@job(name="bench.tight", effects="none", concurrency=ConcurrencyLimit(limit=10))
async def tight(input: Numbered, _: JobContext) -> Done:
    """Count one run, under a limit as large as the slots of one worker."""
    return _count(input)


@job(name="bench.single", effects="none", concurrency=ConcurrencyLimit(limit=1, key="/key"))
async def single(input: Keyed, _: JobContext) -> Done:
    """Count one run, one of its key at a time."""
    return _count(input)


@job(name="bench.ten", effects="none", concurrency=ConcurrencyLimit(limit=10, key="/key"))
async def ten(input: Keyed, _: JobContext) -> Done:
    """Count one run, of each key as many at a time as a worker has slots."""
    return _count(input)


@job(name="bench.rated", effects="none", rate_limit=RateLimit(count=1_000_000, period_ms=60_000))
async def rated(input: Numbered, _: JobContext) -> Done:
    """Count one run, under a rate that is never reached."""
    return _count(input)


def _count(input: Numbered) -> Done:
    if _counter is not None:
        _counter.hit(input.t)
    return Done(i=input.i)
