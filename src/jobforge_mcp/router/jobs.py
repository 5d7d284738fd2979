"""What callers do with jobs: one method for each SQL function of the role ``jobforge_api``.

Every method is one statement in a transaction of its own that first enters the caller's scope; the tenant comes from the
`Caller` and from nowhere else. A caller confined to projects costs one statement more where a run is named: whether the
run is one of theirs. Nothing is decided here: statuses, times and outcomes are what the database says.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import LiteralString, Protocol

from jobforge_mcp.db.pool import Database, Row
from jobforge_mcp.errors import NotFoundError, PolicyDeniedError
from jobforge_mcp.router.bulk import BulkRouter
from jobforge_mcp.router.bundles import BundleRouter
from jobforge_mcp.router.definitions import DefinitionRouter
from jobforge_mcp.router.enqueueing import enqueue_call
from jobforge_mcp.router.errors import run_not_found, translated
from jobforge_mcp.router.evidence import EvidenceRouter
from jobforge_mcp.router.gathering import Gatherer
from jobforge_mcp.router.patterns import is_confined, may_see_type
from jobforge_mcp.router.queues import QueueRouter
from jobforge_mcp.router.rows import (
    to_attempt,
    to_cause,
    to_log_line,
    to_queue_stats,
    to_run,
)
from jobforge_mcp.router.scope import SCOPE, ScopeSigner
from jobforge_mcp.router.scoped import NO_ORIGIN, ScopedRouter
from jobforge_mcp.types import (
    Attempt,
    Bundled,
    BundleItem,
    Caller,
    CallOrigin,
    Cause,
    Enqueued,
    InlineLease,
    JobId,
    LogLine,
    NewJob,
    QueueStats,
    Run,
    RunFilter,
)

# The result stays text: it is handed on as it is, and only its reader pays for decoding it.
_RUN: LiteralString = """
    r.tenant_id, r.job_id, r.project_id, r.job_type, r.job_version, r.status, r.waiting_for, r.attempt_no, r.max_attempts,
    r.epoch, r.version, r.priority, r.run_at, r.ordering_key, r.labels, r.trace_id, r.parent_id, r.timeout_ms, r.created_at,
    r.created_by, r.started_at, r.finished_at, r.worker_id, r.lease_until, r.progress_done, r.progress_total,
    r.progress_message, r.cancel_requested_at, r.cancel_reason, r.error, r.is_dry_run, r.result::text as result"""

GET_RUN: LiteralString = (
    f"select {_RUN} from {SCOPE}, lateral jobforge.get_run(s.tenant_id, %s) as r"
)
_GET_RUNS: LiteralString = (
    f"select {_RUN} from {SCOPE}, lateral jobforge.get_runs(s.tenant_id, %s::uuid[]) as r"
)
_GET_PAYLOAD: LiteralString = (
    f"select r.payload from {SCOPE}, lateral jobforge.get_payload(s.tenant_id, %s) as r(payload)"
)
_LIST_RUNS: LiteralString = f"""
    select {_RUN} from {SCOPE}, lateral jobforge.list_runs(s.tenant_id, %s::text, %s::text, %s::text[], %s::text,
      %s::timestamptz, %s::uuid, %s::int) as r"""
CANCEL_JOB: LiteralString = f"select {_RUN} from {SCOPE}, lateral jobforge.cancel_job(s.tenant_id, %s, %s::text, %s::boolean) as r"
_RETRY_JOB: LiteralString = f"""
    select {_RUN} from {SCOPE}, lateral jobforge.retry_job(s.tenant_id, %s, %s::bigint, %s::timestamptz, %s::boolean,
      %s::boolean, %s::boolean) as r"""
_EXPLAIN_RUN: LiteralString = (
    f"select r.* from {SCOPE}, lateral jobforge.explain_run(s.tenant_id, %s) as r"
)
_LIST_ATTEMPTS: LiteralString = (
    f"select r.* from {SCOPE}, lateral jobforge.list_attempts(s.tenant_id, %s) as r"
)
_LIST_LOGS: LiteralString = (
    f"select r.* from {SCOPE}, lateral jobforge.list_logs(s.tenant_id, %s, %s::int, %s::int) as r"
)
_QUEUE_STATS: LiteralString = (
    f"select r.* from {SCOPE}, lateral jobforge.queue_stats(s.tenant_id) as r"
)


class RunReaders(Protocol):
    """Says who may read runs of registered jobs: their definitions do, which a router does not understand."""

    async def shown(self, caller: Caller, runs: Sequence[Run]) -> list[Run]:
        """Leave out what this caller may not read."""
        ...


class Router(ScopedRouter):
    """The tenant-facing functions, over an open `Database` of role ``jobforge_api``."""

    def __init__(self, database: Database, *, signer: ScopeSigner | None = None) -> None:
        """Speak through this pool, with scopes signed where the database asks for that."""
        super().__init__(database, signer=signer)
        self._gatherer = Gatherer(self._enqueue_calls)
        self.definitions = DefinitionRouter(database, signer=signer)
        """The functions about definitions, through the same pool."""
        self.queues = QueueRouter(database, signer=signer)
        self.bulk = BulkRouter(database, signer=signer)
        self.evidence = EvidenceRouter(database, signer=signer)
        """What runs left behind."""
        self._bundles = BundleRouter(database, signer=signer)
        self.readers: RunReaders | None = None
        """Asked before a run is shown; set by whoever knows definitions."""

    async def enqueue_job(
        self,
        caller: Caller,
        job: NewJob,
        *,
        origin: CallOrigin = NO_ORIGIN,
        inline: InlineLease | None = None,
        is_plan: bool = False,
    ) -> Enqueued:
        """Commit one job; with ``inline`` already leased, if its lane allows; with ``is_plan`` only say what would happen.

        The plan of a job that would be created has the nil UUID for an id and version 0.

        Raises:
            InvalidInputError: a value does not fit.
            LimitError: the input is too large.
            PolicyDeniedError: the caller may not use the project.
        """
        if inline is None and not is_plan and _may_go_along(caller, job):
            refuse_foreign_project(caller, job)
            return await self._gatherer.enqueue(caller, job, origin)
        enqueued = await self._enqueue(caller, [job], origin, inline=inline, is_plan=is_plan)
        return enqueued[0]

    async def enqueue_jobs(
        self, caller: Caller, jobs: Sequence[NewJob], *, origin: CallOrigin = NO_ORIGIN
    ) -> list[Enqueued]:
        """Commit all of these jobs or none, and answer in their order.

        Raises:
            InvalidInputError: a value does not fit.
            LimitError: an input is too large, or there are too many.
            PolicyDeniedError: the caller may not use a project.
        """
        return await self._enqueue(caller, jobs, origin) if jobs else []

    async def enqueue_bundle(
        self,
        caller: Caller,
        items: Sequence[BundleItem],
        *,
        origin: CallOrigin = NO_ORIGIN,
        is_plan: bool = False,
    ) -> list[Bundled]:
        """Commit all of these items or none, each to run after those it needs; see `BundleRouter.enqueue_bundle`."""
        for item in items:
            refuse_foreign_project(caller, item.job)
        if not items:
            return []
        return await self._bundles.enqueue_bundle(caller, items, origin=origin, is_plan=is_plan)

    async def get_run(self, caller: Caller, job_id: JobId) -> Run:
        """Read a run with its result.

        Raises:
            NotFoundError: there is none, or not for this caller.
        """
        run = to_run((await self._fetch_of_run(caller, job_id, GET_RUN, [job_id]))[0])
        if not await self.shown(caller, [run]):
            raise run_not_found(job_id)
        return run

    async def get_runs(self, caller: Caller, job_ids: Sequence[JobId]) -> list[Run]:
        """Read those of these runs that exist for this caller, newest first, without results."""
        if not job_ids:
            return []
        rows = await self._fetch(caller, _GET_RUNS, [list(job_ids)], is_repeatable=True)
        return await self.shown(caller, [to_run(row) for row in rows])

    async def get_payload(self, caller: Caller, job_id: JobId) -> str:
        """Read the input of a run, as JSON text.

        Raises:
            NotFoundError: there is none, or not for this caller.
        """
        await self._require_visible(caller, job_id)
        rows = await self._fetch_of_run(caller, job_id, _GET_PAYLOAD, [job_id])
        payload: str = rows[0]["payload"]
        return payload

    async def list_runs(self, caller: Caller, wanted: RunFilter) -> list[Run]:
        """Read a page of runs, newest first, without results."""
        projects = _confine(caller, wanted)
        if projects is not None and not projects:
            return []
        found: list[Run] = []
        before_id = wanted.before_id
        # A page holds as many as were asked for, also where some between them are of types that the caller may not see.
        while True:
            page = await self._list_page(caller, wanted, projects, before_id)
            found += await self.shown(caller, page)
            if len(page) < wanted.limit or len(found) >= wanted.limit:
                return found[: wanted.limit]
            before_id = page[-1].job_id

    async def _list_page(
        self,
        caller: Caller,
        wanted: RunFilter,
        projects: Sequence[str] | None,
        before_id: JobId | None,
    ) -> list[Run]:
        arguments = [
            wanted.job_type,
            None if wanted.status is None else wanted.status.value,
            projects,
            wanted.trace_id,
            wanted.since,
            before_id,
            wanted.limit,
        ]
        rows = await self._fetch(caller, _LIST_RUNS, arguments, is_repeatable=True)
        return [to_run(row) for row in rows]

    async def cancel_job(
        self,
        caller: Caller,
        job_id: JobId,
        *,
        reason: str | None = None,
        is_plan: bool = False,
        origin: CallOrigin = NO_ORIGIN,
    ) -> Run:
        """Cancel a run that is not final: at once, or by request to its worker while it runs.

        With ``is_plan`` it is only checked whether that may be done; the run comes back as it is.

        Raises:
            NotFoundError: there is none, or not for this caller.
            ConflictError: it ended otherwise.
        """
        await self._require_visible(caller, job_id)
        # Not repeated by us: while the run is running a second request would count as a change and be audited twice.
        rows = await self._fetch_of_run(
            caller,
            job_id,
            CANCEL_JOB,
            [job_id, reason, is_plan],
            origin=origin,
            is_repeatable=False,
        )
        return to_run(rows[0])

    async def retry_job(
        self,
        caller: Caller,
        job_id: JobId,
        *,
        if_version: int | None = None,
        run_at: datetime | None = None,
        reset_attempts: bool = False,
        force: bool = False,
        is_plan: bool = False,
        origin: CallOrigin = NO_ORIGIN,
    ) -> Run:
        """Queue a final run again, with one more attempt or with fresh ones; ``force`` also one that succeeded.

        With ``is_plan`` it is only checked whether that may be done; the run comes back as it is.

        Raises:
            NotFoundError: there is none, or not for this caller.
            ConflictError: it is not final, or its version is not ``if_version``.
        """
        await self._require_visible(caller, job_id)
        arguments = [job_id, if_version, run_at, reset_attempts, force, is_plan]
        rows = await self._fetch_of_run(
            caller, job_id, _RETRY_JOB, arguments, origin=origin, is_repeatable=False
        )
        return to_run(rows[0])

    async def explain_run(self, caller: Caller, job_id: JobId) -> list[Cause]:
        """Say why a run is not running.

        Raises:
            NotFoundError: there is none, or not for this caller.
        """
        await self._require_visible(caller, job_id)
        rows = await self._fetch_of_run(caller, job_id, _EXPLAIN_RUN, [job_id])
        return [await self._without_strangers(caller, to_cause(row)) for row in rows]

    async def list_attempts(self, caller: Caller, job_id: JobId) -> list[Attempt]:
        """Read the attempts of a run that did not succeed, oldest first; none for an unknown run."""
        if not await self._may_see(caller, job_id):
            return []
        rows = await self._fetch(caller, _LIST_ATTEMPTS, [job_id], is_repeatable=True)
        return [to_attempt(row) for row in rows]

    async def list_logs(
        self, caller: Caller, job_id: JobId, *, after: int = 0, limit: int = 200
    ) -> list[LogLine]:
        """Read lines of a run's log after a line number, oldest first; none for an unknown run."""
        if not await self._may_see(caller, job_id):
            return []
        rows = await self._fetch(caller, _LIST_LOGS, [job_id, after, limit], is_repeatable=True)
        return [to_log_line(row) for row in rows]

    async def queue_stats(self, caller: Caller) -> list[QueueStats]:
        """Count the open jobs of the tenant by type.

        Raises:
            PolicyDeniedError: the caller is confined to projects, and the counts are the whole tenant's.
        """
        if caller.projects is not None:
            raise PolicyDeniedError(
                "counts of queues cover the whole tenant, and this token is confined to projects",
                hint="use a token without projects, or list-runs",
            )
        rows = await self._fetch(caller, _QUEUE_STATS, [], is_repeatable=True)
        found = [to_queue_stats(row) for row in rows]
        return [stats for stats in found if may_see_type(caller, stats.job_type)]

    async def await_wakeup(self, listener_id: str, topic: str, for_ms: int) -> None:
        """Ask that ``jobforge_<topic>`` be notified for so long; ``topic`` is ``ready`` or ``runs``."""
        with translated():
            await self._database.fetch(
                "select from jobforge.await_wakeup(%s, %s, %s)",
                [listener_id, topic, for_ms],
                is_repeatable=True,
            )

    async def _enqueue(
        self,
        caller: Caller,
        jobs: Sequence[NewJob],
        origin: CallOrigin,
        *,
        inline: InlineLease | None = None,
        is_plan: bool = False,
        traces: list[str | None] | None = None,
    ) -> list[Enqueued]:
        for job in jobs:
            refuse_foreign_project(caller, job)
        call = enqueue_call(
            caller, jobs, origin, self.signer, inline=inline, is_plan=is_plan, traces=traces
        )
        with translated():
            rows = await self._database.fetch_tuples(
                call.query,
                call.arguments,
                is_repeatable=is_plan or all(job.idempotency_key is not None for job in jobs),
            )
        return call.read(rows)

    async def _enqueue_calls(
        self, caller: Caller, jobs: Sequence[NewJob], origins: Sequence[CallOrigin]
    ) -> list[Enqueued]:
        """Commit the jobs of several calls of one caller and tool; each is audited by itself, under its own trace."""
        if len(jobs) == 1:
            return await self._enqueue(caller, jobs, origins[0])
        traces = [origin.trace_id for origin in origins]
        return await self._enqueue(caller, jobs, CallOrigin(origins[0].tool), traces=traces)

    async def _require_visible(self, caller: Caller, job_id: JobId) -> None:
        if not await self._may_see(caller, job_id):
            raise run_not_found(job_id)

    async def _may_see(self, caller: Caller, job_id: JobId) -> bool:
        """Look whether a run that a caller names is one of theirs; a run changes neither project nor type."""
        is_open = self.readers is None and not is_confined(caller)
        return is_open or bool(await self.get_runs(caller, [job_id]))

    async def shown(self, caller: Caller, runs: Sequence[Run]) -> list[Run]:
        """Leave out runs that do not exist for this caller."""
        seen = [run for run in runs if _is_visible(caller, run)]
        return await self.readers.shown(caller, seen) if self.readers is not None and seen else seen

    async def _without_strangers(self, caller: Caller, cause: Cause) -> Cause:
        if cause.blocked_by is None or await self._may_see(caller, cause.blocked_by):
            return cause
        return Cause(cause.cause, cause.message, cause.until)

    async def _fetch_of_run(
        self,
        caller: Caller,
        job_id: JobId,
        query: LiteralString,
        arguments: Sequence[object],
        *,
        origin: CallOrigin = NO_ORIGIN,
        is_repeatable: bool = True,
    ) -> list[Row]:
        """Call a function of one run; one that is unknown answers in the very words of one that is another's."""
        try:
            return await self._fetch(
                caller, query, arguments, origin=origin, is_repeatable=is_repeatable
            )
        except NotFoundError:
            raise run_not_found(job_id) from None


def _may_go_along(caller: Caller, job: NewJob) -> bool:
    """Tell whether a job may be enqueued together with others of its caller.

    Not one with a key or with limits of its own: whoever holds their rows in an open transaction would keep the others
    waiting. Not one of a registered definition, which may be gone, nor a token's only write.
    """
    return (
        job.idempotency_key is None
        and job.ordering_key is None
        and job.lane_type is None
        and job.claim_limits is None
        and not caller.is_single_use
        and not caller.single_use_ids
    )


def _is_visible(caller: Caller, run: Run) -> bool:
    """Whether a run exists for this caller: its project and its type must be theirs."""
    return (caller.projects is None or run.project_id in caller.projects) and may_see_type(
        caller, run.job_type
    )


def _confine(caller: Caller, wanted: RunFilter) -> list[str] | None:
    """Name the projects that both the filter and the caller's token allow; nothing if there is no restriction."""
    allowed: frozenset[str] | None = None
    one = None if wanted.project_id is None else frozenset({wanted.project_id})
    for projects in (one, wanted.projects, caller.projects):
        if projects is not None:
            allowed = projects if allowed is None else allowed & projects
    return None if allowed is None else sorted(allowed)


def refuse_foreign_project(caller: Caller, job: NewJob) -> None:
    """Refuse a job outside the projects of a caller who is confined to some."""
    if caller.projects is not None and job.project_id not in caller.projects:
        wanted = "without a project" if job.project_id is None else f"in project {job.project_id}"
        raise PolicyDeniedError(
            f"this token is confined to projects and may not enqueue a job {wanted}",
            hint=f"name one of its projects: {', '.join(sorted(caller.projects)[:10])}",
        )
