"""What a running composition asks of the database: its steps, new ones, and to wait for them without a worker.

Every call carries the `Fence` of the composition's claim and is refused unless that is the living one. All of them may be
repeated: a step that has a run is not enqueued again, and a claim that was given back is not spoken for twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import LiteralString

from jobforge_mcp.db.pool import Database, Row
from jobforge_mcp.router.errors import translated
from jobforge_mcp.router.rows import to_settled
from jobforge_mcp.types import CurrentDefinition, Fence, JobId, NewJob, Settled, StepRun

_FENCE: LiteralString = "%s::text, %s::uuid, %s::uuid, %s::int"
_LIST: LiteralString = f"select r.* from jobforge.list_steps({_FENCE}, %s::text[]) as r"
_ENQUEUE: LiteralString = f"""
    select r.* from jobforge.enqueue_steps({_FENCE}, %s::text[], %s::text[], %s::text[], %s::text[], %s::int[], %s::text[], %s::int[],
      %s::int[], %s::float8[], %s::int[], %s::int[], %s::int[], %s::text[], %s::text[]) as r"""
_DEFINITIONS: LiteralString = f"""
    select r.* from jobforge.list_step_definitions({_FENCE}, %s::text[]) as r"""
_WAIT: LiteralString = f"""
    select r.* from jobforge.wait_for_steps({_FENCE}, %s::uuid[], %s::int, %s::timestamptz) as r"""


class StepRouter:
    """The functions of workers about the steps of compositions."""

    def __init__(self, database: Database) -> None:
        """Speak through this pool, of role ``jobforge_worker``."""
        self._database = database

    async def list_steps(
        self, fence: Fence, with_results: Sequence[str] | None = None
    ) -> list[StepRun]:
        """Tell how all steps stand, or the named ones with their results.

        Raises:
            LeaseLostError: the claim is no longer the living one.
        """
        steps = None if with_results is None else list(with_results)
        rows = await self._fetch(_LIST, [*_fence(fence), steps])
        return [_to_step_run(row) for row in rows]

    async def enqueue_steps(
        self, fence: Fence, steps: Sequence[tuple[str, NewJob, int | None]]
    ) -> list[tuple[str, JobId]]:
        """Enqueue those of the steps that have no run yet, in tenant, project and trace of the composition.

        Each comes with its path and a priority, or none for that of the composition. Returns the run of every step named.

        Raises:
            LeaseLostError: the claim is no longer the living one.
            LimitError: a limit refuses them, or compositions run too deep inside each other; none was enqueued.
        """
        jobs = [job for _, job, _ in steps]
        arguments = [
            *_fence(fence),
            [path for path, _, _ in steps],
            [job.job_type for job in jobs],
            [job.payload for job in jobs],
            [job.received for job in jobs],
            [priority for _, _, priority in steps],
            [job.job_version for job in jobs],
            [job.max_attempts for job in jobs],
            [job.backoff_ms for job in jobs],
            [job.backoff_multiplier for job in jobs],
            [job.max_backoff_ms for job in jobs],
            [job.timeout_ms for job in jobs],
            [None if job.cost == 1 else job.cost for job in jobs],
            [job.lane_type for job in jobs],
            [job.claim_limits for job in jobs],
        ]
        rows = await self._fetch(_ENQUEUE, arguments)
        return [(row["step"], row["child_id"]) for row in rows]

    async def list_step_definitions(
        self, fence: Fence, names: Sequence[str]
    ) -> list[CurrentDefinition]:
        """Read the registered definitions that the composition pins; what was removed since is not there."""
        rows = await self._fetch(_DEFINITIONS, [*_fence(fence), list(names)])
        return [
            CurrentDefinition(
                row["job_type"], row["job_version"], row["lane_type"], row["definition"]
            )
            for row in rows
        ]

    async def wait_for_steps(
        self,
        fence: Fence,
        child_ids: Sequence[JobId],
        *,
        may_remain: int = 0,
        until_at: datetime | None = None,
    ) -> Settled:
        """Give the claim back, uncharged, until no more than ``may_remain`` of these steps are open."""
        arguments = [*_fence(fence), list(child_ids), may_remain, until_at]
        return to_settled((await self._fetch(_WAIT, arguments))[0])

    async def _fetch(self, query: LiteralString, arguments: Sequence[object]) -> list[Row]:
        with translated():
            return await self._database.fetch(query, arguments, is_repeatable=True)


def _fence(fence: Fence) -> list[object]:
    return [fence.tenant_id, fence.lease_id, fence.job_id, fence.epoch]


def _to_step_run(row: Row) -> StepRun:
    return StepRun(
        step=row["step"],
        child_id=row["child_id"],
        status=row["status"],
        result=row["result"],
        error=row["error"],
        made_at=row["made_at"],
    )
