"""The job that every drain runs: it counts itself and does nothing else."""

from __future__ import annotations

import os

from pydantic import BaseModel

from jobforge_mcp import JobContext, job

from .contract import Counter  # noqa: TID252 - a file of job definitions has no other name for its neighbours

# Only a worker that is measured has the file; who merely enqueues has none.
_counter = Counter(os.environ["BENCH_COUNTER"]) if "BENCH_COUNTER" in os.environ else None


class Numbered(BaseModel):
    i: int
    t: float = 0.0
    """When it was sent, for a probe; else 0."""


class Done(BaseModel):
    i: int


@job(name="bench.noop", effects="none")
async def noop(input: Numbered, _: JobContext) -> Done:
    """Count one run."""
    if _counter is not None:
        _counter.hit(input.t)
    return Done(i=input.i)
