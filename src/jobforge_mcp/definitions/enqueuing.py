"""What a new job takes from its definition, whoever enqueues it: a server, a client, a trigger or a handler."""

from __future__ import annotations

from jobforge_mcp.definitions.claim_limits import claim_limits
from jobforge_mcp.definitions.registry import Prepared
from jobforge_mcp.types import NewJob


def job_like(neighbour: NewJob, prepared: Prepared) -> NewJob:
    """Return a job that differs in its input alone from another of the same definition; a bulk makes thousands."""
    job = NewJob(neighbour.job_type, prepared.payload, prepared.received, *neighbour[3:])
    if job.claim_limits is None:
        return job
    return job._replace(claim_limits=claim_limits(prepared.definition, prepared.payload))


def job_of(prepared: Prepared, lane_type: str | None = None) -> NewJob:
    """Return a job with nothing of its own yet but its input; ``lane_type`` is that of a registered definition."""
    definition = prepared.definition
    return NewJob(
        job_type=definition.name,
        payload=prepared.payload,
        received=prepared.received,
        job_version=definition.version,
        max_attempts=definition.retry.max_attempts,
        backoff_ms=definition.retry.backoff_ms,
        backoff_multiplier=definition.retry.backoff_multiplier,
        max_backoff_ms=definition.retry.max_backoff_ms,
        timeout_ms=definition.timeout_ms,
        cost=definition.cost,
        lane_type=lane_type,
        claim_limits=claim_limits(definition, prepared.payload),
    )
