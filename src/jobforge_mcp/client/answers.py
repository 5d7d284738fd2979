"""What a client makes of run ids it is given and of answers it gets."""

from __future__ import annotations

import json
from typing import TypeAlias, cast
from uuid import UUID

from jobforge_mcp.errors import ConflictError, InvalidInputError
from jobforge_mcp.types import (
    Enqueued,
    EnqueueOutcome,
    JobId,
    JsonValue,
    Run,
    RunStatus,
)

RunRef: TypeAlias = JobId | UUID | str
"""A run's id, as the database or as an agent writes it."""


def result_of(run: Run) -> JsonValue:
    """Return what a run's handler returned.

    Raises:
        ConflictError: the run is not final, or ended without a result.
    """
    if run.status is RunStatus.SUCCEEDED:
        return cast("JsonValue", json.loads(run.result)) if run.result is not None else None
    if not run.status.is_final:
        raise ConflictError(
            f"run {run.job_id} is still {run.status.value}",
            code="RUN_NOT_FINISHED",
            hint="wait longer; leaving a wait does not stop the run",
            retryable=True,
        )
    error = run.error
    raise ConflictError(
        f"run {run.job_id} is {run.status.value}" + (f": {error.message}" if error else ""),
        code=error.code if error else "RUN_CANCELED",
        hint=error.hint if error else None,
    )


def refuse_conflict(enqueued: Enqueued) -> Enqueued:
    """Raise for an idempotency key that was used with another input; nothing was written then."""
    if enqueued.outcome is EnqueueOutcome.CONFLICT:
        raise ConflictError(
            "this idempotency key was used before with another input, so nothing was created",
            code="IDEMPOTENCY_CONFLICT",
            hint="use a new key for new work, or repeat the first input unchanged",
        )
    return enqueued


def to_job_id(run_id: RunRef) -> JobId:
    """Read a run's id.

    Raises:
        InvalidInputError: it is not one.
    """
    if isinstance(run_id, UUID):
        return JobId(run_id)
    try:
        return JobId(UUID(run_id))
    except ValueError:
        raise InvalidInputError(
            "the run id is not a UUID",
            code="INVALID_RUN_ID",
            hint="it was printed when the job was enqueued",
        ) from None
