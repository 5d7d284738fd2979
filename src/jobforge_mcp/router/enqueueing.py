"""The statements that enqueue, and their arguments: the scope goes with the call, so that one function does it all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, LiteralString, NamedTuple

from jobforge_mcp.router.rows import (
    chosen_arrays,
    job_arrays,
    job_claim_limits,
    job_costs,
    job_lanes,
    text_array,
    to_enqueued,
    to_enqueued_together,
)
from jobforge_mcp.router.scope import ScopeSigner, scope_arguments, split_signature
from jobforge_mcp.types import Caller, CallOrigin, Enqueued, InlineLease, NewJob

ENQUEUE_JOBS: LiteralString = """
    select r.* from jobforge.enqueue_jobs(%s, %s::text[], %s::text[], %s::text[], %s::text[],
      %s::text[], %s::int[], %s::timestamptz[], %s::text[], %s::text[], %s::text[], %s::text[], %s::int[], %s::int[],
      %s::float8[], %s::int[], %s::int[], %s::boolean[], %s::text, %s::int, %s::boolean, null::uuid, %s::int[],
      %s::text[], %s::text[], %s::text[], %s, %s, %s, %s, %s, %s) as r"""
"""Answers in the order of the jobs."""

_ENQUEUE_PLAIN_JOBS: LiteralString = """
    select r.* from jobforge.enqueue_plain_jobs(%s, %s, %s, %s, %s, %s, %s, %s::bigint, %s::bytea, %s, %s::text[], %s::text[]) as r"""
"""Jobs of one type that say nothing else: each value that a statement has costs both sides something."""

_ENQUEUE_CHOSEN_JOBS: LiteralString = """
    select r.* from jobforge.enqueue_plain_jobs(%s, %s, %s, %s, %s, %s, %s, %s::bigint, %s::bytea, %s, %s::text[], %s::text[], %s::int[], %s::text[],
      %s::text[], %s::int[], %s::int[], %s::float8[], %s::int[], %s::int[], %s::boolean[]) as r"""
"""Jobs of one type that choose what every job has."""

_ENQUEUE_LEASED_JOB: LiteralString = """
    select r.* from jobforge.enqueue_leased_job(%s, %s, %s, %s, %s, %s, %s, %s::bigint, %s::bytea, %s, %s, %s, %s::int, %s::int,
      %s, %s, %s::int, %s::int, %s::float8, %s::int, %s::int, %s::boolean) as r"""
"""One job that a slot of the caller's own pool is kept for."""


class EnqueueCall(NamedTuple):
    """A statement that enqueues."""

    query: LiteralString
    arguments: list[object]
    read: Callable[[Iterable[Iterable[Any]]], list[Enqueued]]
    """Makes the answers, in the order of the jobs, of the values of its rows."""


def enqueue_call(
    caller: Caller,
    jobs: Sequence[NewJob],
    origin: CallOrigin,
    signer: ScopeSigner | None,
    *,
    inline: InlineLease | None = None,
    is_plan: bool = False,
    traces: list[str | None] | None = None,
) -> EnqueueCall:
    """Choose a statement and list what it takes; traces are those of calls that go together."""
    *scope, signature = scope_arguments(caller, origin, signer)
    kinds = _kinds(jobs)
    is_plain = not is_plan and _asks_nothing(caller) and _is_alike(kinds)
    if signature is not None and is_plain:
        signed = [*scope, *split_signature(signature), jobs[0].job_type]
        if inline is not None:
            leased = [*signed, *_leased(jobs[0], inline)]
            return EnqueueCall(_ENQUEUE_LEASED_JOB, leased, _read_each)
        values = [*signed, text_array([job.payload for job in jobs]), traces]
        if all(_chosen(job) == _USUAL for job in kinds):
            return EnqueueCall(_ENQUEUE_PLAIN_JOBS, values, to_enqueued_together)
        values += chosen_arrays(jobs)
        return EnqueueCall(_ENQUEUE_CHOSEN_JOBS, values, to_enqueued_together)
    tenant_id, *said = scope
    lease = [inline.worker_id, inline.lease_ms] if inline else [None, 30_000]
    limits = [job_costs(jobs), job_lanes(jobs), job_claim_limits(jobs)]
    values = [
        tenant_id,
        *job_arrays(jobs),
        *lease,
        is_plan,
        *limits,
        traces,
        *said,
        signature or "",
    ]
    return EnqueueCall(ENQUEUE_JOBS, values, _read_each)


def _read_each(rows: Iterable[Iterable[Any]]) -> list[Enqueued]:
    return [to_enqueued(values) for _, *values in rows]


def _leased(job: NewJob, inline: InlineLease) -> list[object]:
    """List the arguments of ``enqueue_leased_job`` from ``p_payload`` on; what is usual is not said."""
    chosen = zip(_chosen(job), _USUAL, strict=True)
    return [
        job.payload,
        inline.worker_id,
        inline.lease_ms,
        *(None if value == usual else value for value, usual in chosen),
    ]


def _asks_nothing(caller: Caller) -> bool:
    """Tell whether nothing that the caller's token says is to be compared with a job."""
    return (
        caller.limits is None
        and caller.projects is None
        and caller.job_types is None
        and not caller.deny_types
        and caller.events is None
        and not caller.is_single_use
    )


def _kinds(jobs: Sequence[NewJob]) -> Sequence[NewJob]:
    """Return one job that stands for all where they differ in their inputs alone, as those of a bulk do, or else all."""
    job_type, others = jobs[0].job_type, jobs[0][3:]
    is_same = all(job.job_type == job_type and job[3:] == others for job in jobs)
    return jobs[:1] if is_same else jobs


def _is_alike(jobs: Sequence[NewJob]) -> bool:
    """Tell whether these are jobs of one type without anything that has to be looked up.

    What was received counts for an idempotency key alone, and these have none.
    """
    job_type = jobs[0].job_type
    return all(job.job_type == job_type and _others(job) == _NONE for job in jobs)


_PLAIN = {"job_type", "payload", "received"}
_CHOSEN = (
    "priority",
    "trace_id",
    "job_version",
    "max_attempts",
    "backoff_ms",
    "backoff_multiplier",
    "max_backoff_ms",
    "timeout_ms",
    "is_dry_run",
)
"""In the order in which the short functions take them."""
_defaults = {name: value for name, value in NewJob._field_defaults.items() if name not in _PLAIN}
_chosen = attrgetter(*_CHOSEN)
_USUAL = tuple(_defaults[name] for name in _CHOSEN)
_others = attrgetter(*sorted(_defaults.keys() - set(_CHOSEN)))
_NONE = tuple(_defaults[name] for name in sorted(_defaults.keys() - set(_CHOSEN)))
