"""Cancel and retry by filter: one method for each SQL function; a call is one batch in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import LiteralString

from psycopg.types.json import Jsonb

from jobforge_mcp.db.pool import Row
from jobforge_mcp.router.scope import SCOPE
from jobforge_mcp.router.scoped import ScopedRouter
from jobforge_mcp.types import Batch, BulkFilter, Caller, CallOrigin, JobId

_CANCEL_RUNS: LiteralString = f"""
    select r.* from {SCOPE}, lateral jobforge.cancel_runs(s.tenant_id, %s::text, %s::text[], %s::text[], %s::text, %s::jsonb,
      %s::timestamptz, %s::timestamptz, %s::text[], %s::text, %s::int, %s::uuid, %s::int, %s::boolean) as r"""
_RETRY_RUNS: LiteralString = f"""
    select r.* from {SCOPE}, lateral jobforge.retry_runs(s.tenant_id, %s::text, %s::text[], %s::text[], %s::text, %s::jsonb,
      %s::text, %s::timestamptz, %s::timestamptz, %s::text[], %s::timestamptz, %s::boolean, %s::int, %s::uuid, %s::int,
      %s::boolean) as r"""


class BulkRouter(ScopedRouter):
    """The functions that act on whatever a filter finds, over an open `Database` of role ``jobforge_api``."""

    async def cancel_runs(
        self,
        caller: Caller,
        wanted: BulkFilter,
        *,
        reason: str | None = None,
        expected: int | None = None,
        after_id: JobId | None = None,
        limit: int = 100,
        is_plan: bool = False,
        origin: CallOrigin,
    ) -> Batch:
        """Cancel a batch of open runs, or with ``is_plan`` count all that would be canceled.

        Raises:
            ConflictError: ``COUNT_CHANGED``: more match than ``expected``; nothing was changed.
            LimitError: a limit refuses the batch.
        """
        arguments = [
            *_filter(wanted),
            wanted.since,
            wanted.before,
            _unless_none(wanted.without_types),
            reason,
            expected,
            after_id,
            limit,
            is_plan,
        ]
        rows = await self._fetch(caller, _CANCEL_RUNS, arguments, origin, is_repeatable=is_plan)
        return _to_batch(rows[0])

    async def retry_runs(
        self,
        caller: Caller,
        wanted: BulkFilter,
        *,
        run_at: datetime | None = None,
        reset_attempts: bool = False,
        expected: int | None = None,
        after_id: JobId | None = None,
        limit: int = 100,
        is_plan: bool = False,
        origin: CallOrigin,
    ) -> Batch:
        """Queue a batch of ended runs again, or with ``is_plan`` count all that would be.

        Raises:
            ConflictError: ``COUNT_CHANGED``: more match than ``expected``; nothing was changed.
            LimitError: a limit refuses the batch.
        """
        arguments = [
            *_filter(wanted),
            wanted.error_code,
            wanted.since,
            wanted.before,
            _unless_none(wanted.without_types),
            run_at,
            reset_attempts,
            expected,
            after_id,
            limit,
            is_plan,
        ]
        rows = await self._fetch(caller, _RETRY_RUNS, arguments, origin, is_repeatable=is_plan)
        return _to_batch(rows[0])


def _filter(wanted: BulkFilter) -> list[object]:
    return [
        wanted.job_type,
        _unless_none([status.value for status in wanted.statuses]),
        _unless_none(wanted.project_ids),
        wanted.trace_id,
        None if wanted.labels is None else Jsonb(dict(wanted.labels)),
    ]


def _unless_none(texts: Sequence[str]) -> list[str] | None:
    return list(texts) or None


def _to_batch(row: Row) -> Batch:
    return Batch(
        matched=row["matched"],
        job_ids=tuple(row["job_ids"] or ()),
        skipped_ids=tuple(row["skipped_ids"] or ()),
        after_id=row["after_id"],
    )
