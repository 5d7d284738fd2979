"""The statement that enqueues, and its arguments: the scope goes with the call, so that one function does it all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from operator import attrgetter
from typing import LiteralString

from jobforge_mcp.router.rows import (
    job_arrays,
    job_claim_limits,
    job_costs,
    job_lanes,
    text_array,
)
from jobforge_mcp.router.scope import ScopeSigner, scope_arguments
from jobforge_mcp.types import Caller, CallOrigin, InlineLease, NewJob

ENQUEUE_JOBS: LiteralString = """
    select r.* from jobforge.enqueue_jobs(%s, %s::text[], %s::text[], %s::text[], %s::text[],
      %s::text[], %s::int[], %s::timestamptz[], %s::text[], %s::text[], %s::text[], %s::text[], %s::int[], %s::int[],
      %s::float8[], %s::int[], %s::int[], %s::boolean[], %s::text, %s::int, %s::boolean, null::uuid, %s::int[],
      %s::text[], %s::text[], %s::text[], %s, %s, %s, %s, %s, %s) as r"""
"""Answers in the order of the jobs."""


def enqueue_arguments(
    caller: Caller,
    jobs: Sequence[NewJob],
    origin: CallOrigin,
    signer: ScopeSigner | None,
    *,
    inline: InlineLease | None = None,
    is_plan: bool = False,
    traces: list[str | None] | None = None,
) -> list[object]:
    """List what `ENQUEUE_JOBS` takes; traces are those of calls that go together."""
    tenant_id, *scope, signature = scope_arguments(caller, origin, signer)
    lease = [inline.worker_id, inline.lease_ms] if inline else [None, 30_000]
    if all(_options(job) == _USUAL and job.received in {None, job.payload} for job in jobs):
        arrays = [
            text_array([job.job_type for job in jobs]),
            text_array([job.payload for job in jobs]),
        ]
        values = [*arrays, *_NO_ARRAYS, *lease, is_plan, None, None, None]
    else:
        limits = [job_costs(jobs), job_lanes(jobs), job_claim_limits(jobs)]
        values = [*job_arrays(jobs), *lease, is_plan, *limits]
    return [tenant_id, *values, traces, *scope, signature or ""]


_OPTIONS = [
    field for field in fields(NewJob) if field.name not in {"job_type", "payload", "received"}
]
_options = attrgetter(*(field.name for field in _OPTIONS))
_USUAL = tuple(field.default for field in _OPTIONS)
_NO_ARRAYS = [None] * 15
"""The function knows what jobs are that say nothing else: it is asked for no array of each such value."""
