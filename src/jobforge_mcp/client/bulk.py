"""Verbs on whatever a filter finds: count first, then act on no more than was counted."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from jobforge_mcp.errors import InvalidInputError
from jobforge_mcp.policy.permissions import require_scope, require_type
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.types import (
    Batch,
    Bulked,
    BulkFilter,
    Caller,
    CallOrigin,
    JobAction,
    JobId,
    NewJob,
)

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

    from jobforge_mcp.client.verbs import Client
    from jobforge_mcp.permits import Permits
    from jobforge_mcp.router.jobs import Router

BATCH = 100
"""Runs of one transaction: few enough that nobody waits long for their locks."""


class BulkVerbs:
    """The part of `Client` that acts on many runs."""

    caller: Caller
    permits: Permits
    _router: Router

    @abstractmethod
    def origin(self, job: NewJob | None = None) -> CallOrigin:
        """Return what the audit log is told of a call."""

    @abstractmethod
    def recording(
        self, action: str, *, job_type: str | None = None, job_id: JobId | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Have what this block is refused in the audit log."""

    async def count_cancel(self, wanted: BulkFilter) -> Batch:
        """Count the open runs that `cancel_many` would cancel, to 100,000, and name the first ten."""
        async with self.recording("cancel_runs", job_type=wanted.job_type):
            wanted = await self._meant(wanted, Scope.JOBS_CANCEL, JobAction.CANCEL)
            return await self._router.bulk.cancel_runs(
                self.caller, wanted, is_plan=True, origin=self.origin()
            )

    async def cancel_many(
        self,
        wanted: BulkFilter,
        *,
        expected: int | None = None,
        most: int | None = None,
        reason: str | None = None,
    ) -> Bulked:
        """Ask for the end of every open run that the filter finds.

        ``expected`` is what `count_cancel` said: with more runs than that nothing is touched. ``most`` is a cap: the oldest
        so many. One of the two is needed.

        Raises:
            ConflictError: ``COUNT_CHANGED``.
        """
        async with self.recording("cancel_runs", job_type=wanted.job_type):
            wanted = await self._meant(wanted, Scope.JOBS_CANCEL, JobAction.CANCEL)
            act = partial(
                self._router.bulk.cancel_runs,
                self.caller,
                wanted,
                reason=reason,
                origin=self.origin(),
            )
            return await _in_batches(act, expected, most)

    async def count_retry(self, wanted: BulkFilter) -> Batch:
        """Count the ended runs that `retry_many` would queue again, to 100,000, and name the first ten."""
        async with self.recording("retry_runs", job_type=wanted.job_type):
            wanted = await self._meant(wanted, Scope.JOBS_RETRY, JobAction.EXECUTE)
            return await self._router.bulk.retry_runs(
                self.caller, wanted, is_plan=True, origin=self.origin()
            )

    async def retry_many(
        self,
        wanted: BulkFilter,
        *,
        expected: int | None = None,
        most: int | None = None,
        run_at: datetime | None = None,
        reset_attempts: bool = False,
    ) -> Bulked:
        """Queue every run again that the filter finds and that ended failed, dead or canceled; see `cancel_many`."""
        async with self.recording("retry_runs", job_type=wanted.job_type):
            wanted = await self._meant(wanted, Scope.JOBS_RETRY, JobAction.EXECUTE)
            act = partial(
                self._router.bulk.retry_runs,
                self.caller,
                wanted,
                run_at=run_at,
                reset_attempts=reset_attempts,
                origin=self.origin(),
            )
            return await _in_batches(act, expected, most)

    async def _meant(self, wanted: BulkFilter, scope: Scope, action: JobAction) -> BulkFilter:
        """Leave out what the caller may not act on, and what only a guard that sees the input could decide."""
        require_scope(self.caller, scope)
        if wanted.job_type is not None:
            require_type(self.caller, wanted.job_type)
        closed = await self.permits.closed_types(self.caller, action)
        left_out = {*wanted.without_types, *closed, *self.caller.hidden_types}
        return replace(wanted, without_types=tuple(sorted(left_out)))


class BlockingBulkVerbs:
    """The part of `SyncClient` that acts on many runs."""

    _portal: BlockingPortal
    _client: Client

    def count_cancel(self, wanted: BulkFilter) -> Batch:
        """Count the open runs that would be canceled; see `Client.count_cancel`."""
        return self._portal.call(self._client.count_cancel, wanted)

    def cancel_many(
        self,
        wanted: BulkFilter,
        *,
        expected: int | None = None,
        most: int | None = None,
        reason: str | None = None,
    ) -> Bulked:
        """Ask for the end of every open run that the filter finds; see `Client.cancel_many`."""
        return self._portal.call(
            partial(self._client.cancel_many, wanted, expected=expected, most=most, reason=reason)
        )

    def count_retry(self, wanted: BulkFilter) -> Batch:
        """Count the ended runs that would be queued again; see `Client.count_retry`."""
        return self._portal.call(self._client.count_retry, wanted)

    def retry_many(
        self,
        wanted: BulkFilter,
        *,
        expected: int | None = None,
        most: int | None = None,
        reset_attempts: bool = False,
    ) -> Bulked:
        """Queue every run again that the filter finds; see `Client.retry_many`."""
        return self._portal.call(
            partial(
                self._client.retry_many,
                wanted,
                expected=expected,
                most=most,
                reset_attempts=reset_attempts,
            )
        )


async def _in_batches(
    act: Callable[..., Awaitable[Batch]], expected: int | None, most: int | None
) -> Bulked:
    if expected is None and most is None:
        raise InvalidInputError(
            "how many runs may be touched is not said",
            hint="count them first and pass that as expected, or pass the most there may be",
        )
    left = min(count for count in (expected, most) if count is not None)
    done: list[JobId] = []
    skipped: list[JobId] = []
    after: JobId | None = None
    while left > 0:
        batch = await act(
            expected=expected if after is None else None, after_id=after, limit=min(left, BATCH)
        )
        done += batch.job_ids
        skipped += batch.skipped_ids
        left -= len(batch.job_ids) + len(batch.skipped_ids)
        after = batch.after_id
        if after is None:
            break
    return Bulked(tuple(done), tuple(skipped))
