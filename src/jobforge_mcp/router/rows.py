"""Makes the frozen rows of `jobforge_mcp.types` from what the database returned, and argument arrays from ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, LiteralString, cast
from uuid import UUID

from jobforge_mcp.db.pool import Row
from jobforge_mcp.types import (
    Attempt,
    Cause,
    ClaimedJob,
    Enqueued,
    EnqueueOutcome,
    Fence,
    HeldLease,
    JobId,
    JsonValue,
    LogLine,
    NewJob,
    QueueStats,
    ReportAnswer,
    Run,
    RunError,
    RunStatus,
    Settled,
    SettleOutcome,
)

_NO_ID = UUID(int=0)

# Makes a named tuple without its own constructor, which is Python: claims and settles make hundreds.
_NEW = cast("Callable[..., Any]", tuple.__new__)

# Looked up rather than called: a bulk answers with thousands.
_OUTCOMES = {outcome.value: outcome for outcome in EnqueueOutcome}
_STATUSES = {None: RunStatus.QUEUED} | {status.value: status for status in RunStatus}


def to_json(value: JsonValue) -> str | None:
    """Write a value as JSON text; ``None`` stays what the database calls null."""
    return None if value is None else json.dumps(value, ensure_ascii=False)


def to_enqueued(row: Iterable[Any]) -> Enqueued:
    """Read an answer to an enqueue, from its id on. A planned job has no id, no status and no version yet."""
    job_id, outcome, status, version, run_at, created_at, *lease = row
    return Enqueued(
        JobId(job_id or _NO_ID),
        _OUTCOMES[outcome],
        _STATUSES[status],
        version or 0,
        run_at,
        created_at or run_at,
        *lease,
    )


def to_enqueued_together(rows: Iterable[Iterable[Any]]) -> list[Enqueued]:
    """Read the answers to plain jobs: a row stands for neighbours that differ in their ids alone."""
    found: list[Enqueued] = []
    for job_ids, outcome, status, version, run_at, created_at in rows:
        same = (_OUTCOMES[outcome], _STATUSES[status], version, run_at, created_at, None, None)
        found += [_NEW(Enqueued, (job_id, *same)) for job_id in job_ids]
    return found


def to_run(row: Row) -> Run:
    """Read a row of the view ``runs``, with the result where it was asked for."""
    return Run(
        tenant_id=row["tenant_id"],
        job_id=row["job_id"],
        project_id=row["project_id"],
        job_type=row["job_type"],
        job_version=row["job_version"],
        status=RunStatus(row["status"]),
        waiting_for=row["waiting_for"],
        attempt_no=row["attempt_no"],
        max_attempts=row["max_attempts"],
        epoch=row["epoch"],
        version=row["version"],
        priority=row["priority"],
        run_at=row["run_at"],
        ordering_key=row["ordering_key"],
        labels=row["labels"],
        trace_id=row["trace_id"],
        parent_id=row["parent_id"],
        timeout_ms=row["timeout_ms"],
        created_at=row["created_at"],
        created_by=row["created_by"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        worker_id=row["worker_id"],
        lease_until=row["lease_until"],
        progress_done=row["progress_done"],
        progress_total=row["progress_total"],
        progress_message=row["progress_message"],
        cancel_requested_at=row["cancel_requested_at"],
        cancel_reason=row["cancel_reason"],
        error=to_run_error(row["error"]),
        result=row.get("result"),
        is_dry_run=row["is_dry_run"],
    )


def to_run_error(stored: Mapping[str, Any] | None) -> RunError | None:
    """Read a stored error; what an unknown writer left out gets a neutral value."""
    if stored is None:
        return None
    return RunError(
        code=str(stored.get("code", "INTERNAL")),
        message=str(stored.get("message", "")),
        retryable=bool(stored.get("retryable", False)),
        type=stored.get("type"),
        hint=stored.get("hint"),
    )


def to_cause(row: Row) -> Cause:
    """Read why a run is not running."""
    return Cause(row["cause"], row["message"], row["until_at"], row["blocked_by"])


def to_attempt(row: Row) -> Attempt:
    """Read a try that did not succeed."""
    return Attempt(
        attempt_no=row["attempt_no"],
        epoch=row["epoch"],
        outcome=row["outcome"],
        worker_id=row["worker_id"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        error=to_run_error(row["error"]),
    )


def to_log_line(row: Row) -> LogLine:
    """Read one line of a handler's log."""
    return LogLine(
        line_no=row["line_no"],
        attempt_no=row["attempt_no"],
        level=row["level"],
        message=row["message"],
        logged_at=row["logged_at"],
    )


def to_queue_stats(row: Row) -> QueueStats:
    """Read how many open jobs of a type there are."""
    return QueueStats(
        job_type=row["job_type"],
        queued=row["queued"],
        due=row["due"],
        running=row["running"],
        waiting=row["waiting"],
        oldest_due_at=row["oldest_due_at"],
    )


CLAIMED_COLUMNS: LiteralString = """r.tenant_id, r.lease_id, r.job_id, r.epoch, r.job_type, r.job_version, r.payload, r.project_id,
      r.trace_id, r.attempt_no, r.max_attempts, r.timeout_ms, r.is_dry_run, r.is_suspect, r.claimed_at, r.lease_until,
      r.lane_type, r.definition, r.priority, r.run_at, r.after_tenant"""
"""In the order in which `to_claimed_job` takes them."""


def to_claimed_job(row: tuple[Any, ...]) -> ClaimedJob:
    """Read one claimed job; its payload stays text, so that only its own attempt can fail on it."""
    return _NEW(ClaimedJob, (_NEW(Fence, row[:4]), *row[4:]))


def to_report_answer(row: Row) -> ReportAnswer:
    """Read the answer to a report."""
    return ReportAnswer(row["job_id"], row["is_accepted"], row["is_cancel_requested"])


def to_settled(row: Row) -> Settled:
    """Read the answer for one settled attempt."""
    return Settled(
        job_id=row["job_id"],
        epoch=row["epoch"],
        outcome=SettleOutcome(row["outcome"]),
        status=RunStatus(row["status"]),
        finished_at=row.get("finished_at"),
    )


def accepted(fence: Fence) -> Settled:
    """Say that a completion was accepted."""
    return _NEW(Settled, (fence[2], fence[3], SettleOutcome.ACCEPTED, RunStatus.SUCCEEDED, None))


def to_held_lease(row: Row) -> HeldLease:
    """Read a lease that a heartbeat extended."""
    return HeldLease(
        tenant_id=row["tenant_id"],
        lease_id=row["lease_id"],
        lease_until=row["lease_until"],
        cancel_ids=frozenset(row["cancel_ids"]),
    )


def job_arrays(jobs: Sequence[NewJob]) -> list[object]:
    """List the array arguments of ``enqueue_jobs``, from ``p_job_types`` to ``p_dry_runs``."""
    return [
        text_array([job.job_type for job in jobs]),
        text_array([job.payload for job in jobs]),
        # the same as the payload where no default was filled in
        _unless_empty(None if _received(job) == job.payload else _received(job) for job in jobs),
        _unless_empty(job.idempotency_key for job in jobs),
        _unless_empty(job.ordering_key for job in jobs),
        _unless_all(2, [job.priority for job in jobs]),
        _unless_empty(job.run_at for job in jobs),
        _unless_empty(job.project_id for job in jobs),
        _unless_empty(labels_json(job.labels) for job in jobs),
        *_chosen_arrays(jobs),
    ]


def chosen_arrays(jobs: Sequence[NewJob]) -> list[object]:
    """List the array arguments of ``enqueue_plain_jobs``, from ``p_priorities`` to ``p_dry_runs``."""
    return [_unless_all(2, [job.priority for job in jobs]), *_chosen_arrays(jobs)]


def _chosen_arrays(jobs: Sequence[NewJob]) -> list[object]:
    return [
        _unless_empty(job.trace_id for job in jobs),
        _unless_all("1", [job.job_version for job in jobs]),
        _unless_all(3, [job.max_attempts for job in jobs]),
        _unless_all(1_000, [job.backoff_ms for job in jobs]),
        _unless_all(2.0, [job.backoff_multiplier for job in jobs]),
        _unless_all(60_000, [job.max_backoff_ms for job in jobs]),
        _unless_all(300_000, [job.timeout_ms for job in jobs]),
        _unless_all(False, [job.is_dry_run for job in jobs]),
    ]


def _received(job: NewJob) -> str | None:
    """Return what an idempotency key stands for: a rehearsal must never pass for the real thing, nor the other way round."""
    return f'{{"rehearsal": {job.received}}}' if job.is_dry_run else job.received


def job_costs(jobs: Sequence[NewJob]) -> list[object] | None:
    """List what the jobs cost; nothing where each costs one unit."""
    return _unless_empty(None if job.cost == 1 else job.cost for job in jobs)


def job_lanes(jobs: Sequence[NewJob]) -> list[object] | None:
    """List the argument ``p_lane_types`` of ``enqueue_jobs``."""
    return _unless_empty(job.lane_type for job in jobs)


def job_claim_limits(jobs: Sequence[NewJob]) -> list[object] | None:
    """List the last argument of ``enqueue_jobs``, ``p_claim_limits``."""
    return _unless_empty(job.claim_limits for job in jobs)


def fence_arrays(fences: Sequence[Fence]) -> list[object]:
    """List the array arguments that every worker's call begins with: tenants, leases, jobs, epochs."""
    return [
        text_array([fence.tenant_id for fence in fences]),
        _plain_array([f"{fence.lease_id.int:032x}" for fence in fences]),
        _plain_array([f"{fence.job_id.int:032x}" for fence in fences]),
        _plain_array([str(fence.epoch) for fence in fences]),
    ]


def text_array(texts: Sequence[str]) -> str:
    """Write an array as Postgres reads it. The driver does the same with lists, ten times slower."""
    escaped = "\0".join(texts).replace("\\", "\\\\").replace('"', '\\"')
    return '{"' + escaped.replace("\0", '","') + '"}' if texts else "{}"


def _plain_array(words: Sequence[str]) -> str:
    """Write an array of numbers or ids, which need no quotes."""
    return "{" + ",".join(words) + "}"


def error_json(error: RunError) -> str:
    """Write an error as it is stored."""
    stored: dict[str, str | bool] = {
        "code": error.code,
        "message": storable(error.message),
        "retryable": error.retryable,
    }
    if error.type is not None:
        stored["type"] = storable(error.type)
    if error.hint is not None:
        stored["hint"] = storable(error.hint)
    return json.dumps(stored, ensure_ascii=False)


def logs_json(logs: Sequence[tuple[str, str]]) -> str | None:
    """Write log lines as an array of level and message, or nothing when there are none."""
    lines = [(level, storable(message)) for level, message in logs]
    return json.dumps(lines, ensure_ascii=False) if lines else None


def storable(text: str) -> str:
    """Replace what PostgreSQL cannot store: a handler's odd message must not keep its batch from being settled."""
    return text.replace("\0", "\ufffd").encode(errors="replace").decode()


def labels_json(labels: Mapping[str, str] | None) -> str | None:
    """Write labels as a JSON object."""
    return None if labels is None else json.dumps(dict(labels), ensure_ascii=False)


def _unless_all(default: object, values: list[Any]) -> list[Any] | None:
    """Leave out what the function takes for granted, which is most of what there is."""
    return None if values.count(default) == len(values) else values


def _unless_empty(values: Iterable[object]) -> list[object] | None:
    """Make an array, or nothing when no job has such a value: that is shorter, and means the same."""
    array = list(values)
    return array if any(value is not None for value in array) else None
