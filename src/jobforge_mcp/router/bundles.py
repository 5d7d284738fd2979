"""Bundles: many jobs in one call, some of which wait until others of the same call have ended."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import LiteralString

from jobforge_mcp.router.rows import job_arrays, job_claim_limits, job_costs, job_lanes
from jobforge_mcp.router.scope import SCOPE
from jobforge_mcp.router.scoped import ScopedRouter
from jobforge_mcp.types import Bundled, BundleItem, Caller, CallOrigin, EnqueueOutcome, RunStatus

_ENQUEUE: LiteralString = f"""
    select r.* from {SCOPE}, lateral jobforge.enqueue_bundle(s.tenant_id, %s::text[], %s::text[], %s::text[], %s::text[],
      %s::text[], %s::int[], %s::timestamptz[], %s::text[], %s::text[], %s::text[], %s::text[], %s::int[], %s::int[],
      %s::float8[], %s::int[], %s::int[], %s::boolean[], %s::int[], %s::text[], %s::text[], %s::text[], %s::boolean,
      %s::text[]) as r
    order by r.ord"""


class BundleRouter(ScopedRouter):
    """The function of bundles, over an open `Database` of role ``jobforge_api``."""

    async def enqueue_bundle(
        self,
        caller: Caller,
        items: Sequence[BundleItem],
        *,
        origin: CallOrigin,
        is_plan: bool = False,
    ) -> list[Bundled]:
        """Commit all of these items or none, each after those it needs; answers in their order.

        Raises:
            ConflictError: an item depends on one whose key was used with another input, or that has failed before.
            LimitError: a limit refuses the call.
            PolicyDeniedError: the caller may not.
        """
        jobs = [item.job for item in items]
        arguments = [
            *job_arrays(jobs),
            job_costs(jobs),
            job_lanes(jobs),
            [json.dumps([place + 1 for place in item.needs]) for item in items],
            [item.on_failure for item in items],
            is_plan,
            job_claim_limits(jobs),
        ]
        is_repeatable = is_plan or all(job.idempotency_key is not None for job in jobs)
        rows = await self._fetch(caller, _ENQUEUE, arguments, origin, is_repeatable=is_repeatable)
        return [
            Bundled(
                job_id=row["job_id"],
                outcome=EnqueueOutcome(row["outcome"]),
                status=None if row["status"] is None else RunStatus(row["status"]),
            )
            for row in rows
        ]
