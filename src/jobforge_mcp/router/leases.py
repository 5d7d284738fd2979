"""What workers do with jobs: one method for each SQL function of the role ``jobforge_worker``.

Every call about a claimed job carries its `Fence`, and changes nothing unless that claim is the living one. What settles
an attempt may be repeated when its answer was lost: the database recognises it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, LiteralString
from uuid import UUID

from jobforge_mcp.db.pool import Database, Parameters, Row, Transaction
from jobforge_mcp.errors import LeaseLostError
from jobforge_mcp.router.errors import translated
from jobforge_mcp.router.evidence import ArtifactRouter
from jobforge_mcp.router.rows import (
    CLAIMED_COLUMNS,
    accepted,
    error_json,
    fence_arrays,
    labels_json,
    logs_json,
    storable,
    text_array,
    to_claimed_job,
    to_enqueued,
    to_json,
    to_report_answer,
    to_settled,
)
from jobforge_mcp.router.steps import StepRouter
from jobforge_mcp.types import (
    ClaimedJob,
    ClaimStart,
    Completion,
    Enqueued,
    Failure,
    Fence,
    NewEvent,
    NewJob,
    Report,
    ReportAnswer,
    Settled,
    SettleOutcome,
    TenantId,
    WorkerId,
)

_FENCES: LiteralString = "%s::text[], %s::uuid[], %s::uuid[], %s::int[]"
_COMPLETE_JOBS: LiteralString = (
    f"select r.* from jobforge.complete_jobs({_FENCES}, %s::text[], %s::text[]) as r"
)
_FAIL_JOBS: LiteralString = f"""
    select r.* from jobforge.fail_jobs({_FENCES}, %s::text[], %s::text[], %s::text[], %s::int[], %s::text[]) as r"""
_RELEASE_JOBS: LiteralString = f"select r.* from jobforge.release_jobs({_FENCES}) as r"
_REPORT_PROGRESS: LiteralString = f"""
    select r.* from jobforge.report_progress({_FENCES}, %s::float8[], %s::float8[], %s::text[], %s::text[]) as r"""
_COMPLETE_MANY: LiteralString = f"{_COMPLETE_JOBS} where r.outcome <> 'accepted'"
_CLAIM_JOBS: LiteralString = f"""
    select {CLAIMED_COLUMNS}
    from jobforge.claim_jobs(%s::text, %s::text[], %s::int, %s::text, %s::text[], %s::int, %s::boolean,
      %s::text[], %s::text[], %s::int[], %s::timestamptz[], %s::uuid[]) as r"""
_ENQUEUE_CHILD: LiteralString = """
    select r.* from jobforge.enqueue_child(%s::text, %s::uuid, %s::uuid, %s::int, %s::text, %s::text, %s::text, %s::text,
      %s::text, %s::int, %s::timestamptz, %s::text, %s::text, %s::int, %s::int, %s::float8, %s::int, %s::int, %s::int,
      %s::text, %s::text) as r"""
_SUBMIT_RUN_EVENT: LiteralString = """
    select r.* from jobforge.submit_run_event(%s::text, %s::uuid, %s::uuid, %s::int, %s::text, %s::jsonb, %s::text, %s::text,
      %s::text, %s::timestamptz, %s::boolean, %s::jsonb, %s::jsonb) as r"""
_REGISTER_WORKER: LiteralString = "select from jobforge.register_worker(%s::text, %s::text, %s::int, %s::text, %s::text[], %s::int)"
_LOOK_FOR_WORK: LiteralString = """
    select r.rest_ms from jobforge.look_for_work(%s::text, %s::text[], %s::text[], %s::int, %s::int, %s::int, %s::boolean)
      as r(rest_ms)"""
_TELL_INSTALLED_JOBS: LiteralString = (
    "select from jobforge.tell_installed_jobs(%s::text[], %s::int[], %s::text[])"
)


class WorkerRouter:
    """The functions of workers, over an open `Database` of role ``jobforge_worker``."""

    def __init__(self, database: Database) -> None:
        """Speak through this pool."""
        self._database = database
        self.artifacts = ArtifactRouter(database)
        """What attempts leave behind."""
        self.steps = StepRouter(database)
        """Steps of compositions."""

    async def register_worker(
        self,
        worker_id: WorkerId,
        *,
        host: str,
        pid: int,
        version: str,
        job_types: Sequence[str],
        concurrency: int,
    ) -> None:
        """Tell who this worker is and what it can run, so that ``explain_run`` knows."""
        arguments = [worker_id, host, pid, version, list(job_types), concurrency]
        await self._fetch(_REGISTER_WORKER, arguments, is_repeatable=True)

    async def tell_installed_jobs(
        self, jobs: Sequence[tuple[str, int, Literal["action", "permission"] | None]]
    ) -> None:
        """Tell what this worker's jobs cost and ask for: name, cost, and what ``installed_jobs.asks_for`` says."""
        arguments = [
            [name for name, _, _ in jobs],
            [cost for _, cost, _ in jobs],
            [asks for _, _, asks in jobs],
        ]
        await self._fetch(_TELL_INSTALLED_JOBS, arguments, is_repeatable=True)

    async def forget_worker(self, worker_id: WorkerId) -> None:
        """Say good-bye."""
        await self._fetch("select from jobforge.forget_worker(%s)", [worker_id], is_repeatable=True)

    async def claim_jobs(
        self,
        worker_id: WorkerId,
        job_types: Sequence[str],
        limit: int,
        *,
        after_tenant: str = "",
        tenant_ids: Sequence[TenantId] | None = None,
        lease_ms: int = 30_000,
        reap: bool = False,
        start: ClaimStart | None = None,
    ) -> list[ClaimedJob]:
        """Claim up to ``limit`` due jobs of these types, in turn from the tenants after ``after_tenant``.

        With ``reap`` the jobs of expired leases are put back first; ``start`` says which rows need not be read. An answer that is lost is not asked for again: its jobs
        come back when their lease expires.
        """
        arguments = [
            worker_id,
            list(job_types),
            limit,
            after_tenant,
            None if tenant_ids is None else list(tenant_ids),
            lease_ms,
            reap,
            *(
                (None,) * 5
                if start is None or not start.tenants
                else (start.tenants, start.types, start.priorities, start.run_ats, start.job_ids)
            ),
        ]
        with translated():
            rows = await self._database.fetch_tuples(_CLAIM_JOBS, arguments)
        return [to_claimed_job(row) for row in rows]

    async def report_progress(self, reports: Sequence[Report]) -> list[ReportAnswer]:
        """Store progress and log lines, and learn which runs are to be canceled; answers in the order of the reports."""
        if not reports:
            return []
        arguments = [
            *fence_arrays([report.fence for report in reports]),
            [report.done for report in reports],
            [report.total for report in reports],
            [None if report.message is None else storable(report.message) for report in reports],
            [logs_json(report.logs) for report in reports],
        ]
        return [to_report_answer(row) for row in await self._fetch(_REPORT_PROGRESS, arguments)]

    async def complete_jobs(self, completions: Sequence[Completion]) -> list[Settled]:
        """Settle attempts that succeeded; answers in the order given."""
        if not completions:
            return []
        is_one = len(completions) == 1
        rows = await self._fetch(
            _COMPLETE_JOBS if is_one else _COMPLETE_MANY,
            _completion_arguments(completions),
            is_repeatable=True,
        )
        if is_one:
            return [to_settled(row) for row in rows]
        # Of many only those are told that were not accepted, which mostly are none.
        if not rows:
            return [accepted(completion.fence) for completion in completions]
        others = {(row["job_id"], row["epoch"]): to_settled(row) for row in rows}
        return [
            others.get((c.fence.job_id, c.fence.epoch)) or accepted(c.fence) for c in completions
        ]

    async def fail_jobs(self, failures: Sequence[Failure]) -> list[Settled]:
        """Settle attempts that did not succeed; the database decides what follows. Answers in the order given."""
        if not failures:
            return []
        arguments = [
            *fence_arrays([failure.fence for failure in failures]),
            [failure.kind.value for failure in failures],
            [error_json(failure.error) for failure in failures],
            [None if f.traceback is None else storable(f.traceback) for f in failures],
            [failure.delay_ms for failure in failures],
            _manifests(failures),
        ]
        return [
            to_settled(row) for row in await self._fetch(_FAIL_JOBS, arguments, is_repeatable=True)
        ]

    async def release_jobs(self, fences: Sequence[Fence]) -> list[Settled]:
        """Give running jobs back at once, without using an attempt; answers in the order given."""
        if not fences:
            return []
        rows = await self._fetch(_RELEASE_JOBS, fence_arrays(fences), is_repeatable=True)
        return [to_settled(row) for row in rows]

    async def enqueue_child(self, fence: Fence, job: NewJob) -> Enqueued:
        """Enqueue a job on behalf of a running one, in its tenant and project and with its trace.

        Raises:
            LeaseLostError: the claim is no longer the living one.
        """
        arguments = [
            fence.tenant_id,
            fence.lease_id,
            fence.job_id,
            fence.epoch,
            job.job_type,
            job.payload,
            job.received,
            job.idempotency_key,
            job.ordering_key,
            job.priority,
            job.run_at,
            labels_json(job.labels),
            job.job_version,
            job.max_attempts,
            job.backoff_ms,
            job.backoff_multiplier,
            job.max_backoff_ms,
            job.timeout_ms,
            job.cost,
            job.lane_type,
            job.claim_limits,
        ]
        is_repeatable = job.idempotency_key is not None
        rows = await self._fetch(_ENQUEUE_CHILD, arguments, is_repeatable=is_repeatable)
        return to_enqueued(rows[0].values())

    async def submit_event(self, fence: Fence, event: NewEvent) -> tuple[UUID | None, str]:
        """Submit an event on behalf of a running job, in its tenant, project and trace; return its id and the outcome.

        Raises:
            LeaseLostError: the claim is no longer the living one.
            PolicyDeniedError: the token that enqueued the run does not allow events of this type.
        """
        arguments = [
            fence.tenant_id,
            fence.lease_id,
            fence.job_id,
            fence.epoch,
            event.event_type,
            event.payload,
            event.idempotency_key,
            event.source,
            event.subject,
            event.occurred_at,
            event.contains_pii,
            to_json(event.redaction_hints),
            to_json(event.attributes),
        ]
        is_repeatable = event.idempotency_key is not None
        rows = await self._fetch(_SUBMIT_RUN_EVENT, arguments, is_repeatable=is_repeatable)
        return rows[0]["event_id"], rows[0]["outcome"]

    async def reap_expired(self, limit: int = 100) -> int:
        """Put the jobs of expired leases back, or end them; return how many leases there were."""
        rows = await self._fetch(
            "select r.count from jobforge.reap_expired(%s) as r(count)", [limit], is_repeatable=True
        )
        count: int = rows[0]["count"]
        return count

    async def has_work(self, job_types: Sequence[str], within_ms: int) -> bool:
        """Tell whether any worker holds a job, or one of these types is due within this time, whatever its tenant."""
        rows = await self._fetch(
            "select r.answer from jobforge.has_work(%s, %s) as r(answer)",
            [list(job_types), within_ms],
            is_repeatable=True,
        )
        answer: bool = rows[0]["answer"]
        return answer

    async def tend_lanes(self) -> None:
        """Forget lanes without work and find forgotten ones."""
        await self._fetch("select from jobforge.tend_lanes()", [], is_repeatable=True)

    async def await_wakeup(self, listener_id: str, topic: str, for_ms: int) -> None:
        """Ask that ``jobforge_<topic>`` be notified for so long; ``topic`` is ``ready`` or ``runs``."""
        await self._fetch(
            "select from jobforge.await_wakeup(%s, %s, %s)",
            [listener_id, topic, for_ms],
            is_repeatable=True,
        )

    async def look_for_work(
        self,
        worker_id: WorkerId,
        job_types: Sequence[str],
        tenant_ids: Sequence[TenantId] | None,
        *,
        listen_ms: int,
        poll_ms: int,
        rest_ms: int,
        tend: bool,
    ) -> int:
        """Ask to be notified for so long, and tell for how many milliseconds nothing is due that would not be announced."""
        arguments = [worker_id, list(job_types), tenant_ids, listen_ms, poll_ms, rest_ms, tend]
        rows = await self._fetch(_LOOK_FOR_WORK, arguments, is_repeatable=True)
        rest: int = rows[0]["rest_ms"]
        return rest

    @asynccontextmanager
    async def transaction(self, fence: Fence) -> AsyncGenerator[JobTransaction]:
        """Open a transaction in which a handler writes and its job is completed, both or neither.

        Left without `JobTransaction.complete`, what the handler wrote is committed all the same.

        Raises:
            DatabaseUnavailableError: the connection was lost; with ``OUTCOME_UNKNOWN`` while committing.
        """
        async with self._database.transaction() as transaction:
            yield JobTransaction(transaction, fence)

    async def _fetch(
        self, query: LiteralString, arguments: Sequence[object], *, is_repeatable: bool = False
    ) -> list[Row]:
        with translated():
            return await self._database.fetch(query, arguments, is_repeatable=is_repeatable)


class JobTransaction:
    """A handler's statements and the completion of its job, in one transaction."""

    def __init__(self, transaction: Transaction, fence: Fence) -> None:
        """Speak for this claim."""
        self._transaction = transaction
        self._fence = fence

    async def execute(self, query: LiteralString, parameters: Parameters = ()) -> None:
        """Run a statement of the handler's, with the rights of ``jobforge_worker``; its errors are psycopg's."""
        await self._transaction.execute(query, parameters)

    async def fetch(
        self, query: LiteralString, parameters: Parameters = ()
    ) -> list[dict[str, Any]]:
        """Run a statement of the handler's and return its rows by the names of their columns."""
        return await self._transaction.fetch(query, parameters)

    async def complete(self, result: str, *, manifest: str | None = None) -> Settled:
        """Complete the job, to be committed with all the rest.

        Raises:
            LeaseLostError: the claim is no longer the living one; leave the block, and nothing was written.
        """
        with translated():
            rows = await self._transaction.fetch(
                _COMPLETE_JOBS, _completion_arguments([Completion(self._fence, result, manifest)])
            )
        settled = to_settled(rows[0])
        if settled.outcome is not SettleOutcome.ACCEPTED:
            raise LeaseLostError(
                f"run {self._fence.job_id} could not be completed: this attempt no longer holds its lease",
                hint="stop; whatever this attempt wrote in the transaction is rolled back",
            )
        return settled


def _completion_arguments(completions: Sequence[Completion]) -> list[object]:
    return [
        *fence_arrays([completion.fence for completion in completions]),
        text_array([completion.result for completion in completions]),
        _manifests(completions),
    ]


def _manifests(verdicts: Sequence[Completion | Failure]) -> list[str | None] | None:
    """Make an array, or nothing when no attempt has more to say than its row does, as most have not."""
    array = [verdict.manifest for verdict in verdicts]
    return array if any(array) else None
