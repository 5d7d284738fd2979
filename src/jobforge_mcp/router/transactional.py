"""Enqueue, cancel and submit on a connection of the application's own, as part of the transaction that is open there.

The one place where the router speaks through a connection it did not open: what it does is done when and only when the
application's transaction commits. The application's role must be allowed to call the functions of ``jobforge_api``, best
by being a member of it. The scope that is entered ends with the transaction. After any error in it the transaction can only
be rolled back.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, LiteralString, TypeAlias, TypeVar

import psycopg
from psycopg.rows import dict_row

from jobforge_mcp.db.pool import Row
from jobforge_mcp.errors import NotFoundError
from jobforge_mcp.router.enqueueing import enqueue_call
from jobforge_mcp.router.errors import run_not_found, translated
from jobforge_mcp.router.events import SUBMIT_EVENT, event_values, to_submitted
from jobforge_mcp.router.jobs import CANCEL_JOB, GET_RUN, refuse_foreign_project
from jobforge_mcp.router.rows import to_run
from jobforge_mcp.router.scope import ScopeSigner, scope_arguments
from jobforge_mcp.router.scoped import NO_ORIGIN
from jobforge_mcp.types import (
    Caller,
    CallOrigin,
    Enqueued,
    JobId,
    NewEvent,
    NewJob,
    Run,
    SubmittedEvent,
)

AsyncConnection: TypeAlias = psycopg.AsyncConnection[Any]
SyncConnection: TypeAlias = psycopg.Connection[Any]

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True)
class CallOnOwn(Generic[AnswerT]):
    """One statement, and how its rows are read; for a connection of either kind."""

    query: LiteralString
    arguments: list[object]
    read: Callable[[list[Row]], AnswerT]
    job_id: JobId | None = None
    """The run that it is about, which is unknown in the same words wherever it is asked for."""

    async def send(self, connection: AsyncConnection) -> AnswerT:
        """Run it in the transaction that is open on this connection, or is opened by this statement."""
        with self._translated():
            async with connection.cursor(row_factory=dict_row) as cursor:
                await cursor.execute(self.query, self.arguments)
                return self.read(await cursor.fetchall())

    def send_sync(self, connection: SyncConnection) -> AnswerT:
        """Do the same on a blocking connection, on the thread that owns it."""
        with self._translated(), connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(self.query, self.arguments)
            return self.read(cursor.fetchall())

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            with translated():
                yield
        except NotFoundError:
            if self.job_id is None:
                raise
            raise run_not_found(self.job_id) from None


@dataclass(frozen=True, slots=True)
class OwnTransaction:
    """What one caller can do in a transaction of the application; each method returns the call that does it."""

    caller: Caller
    origin: CallOrigin = NO_ORIGIN
    signer: ScopeSigner | None = None

    def enqueue_job(self, job: NewJob) -> CallOnOwn[Enqueued]:
        """Enqueue a job.

        Raises:
            PolicyDeniedError: the caller may not use the project.
        """
        refuse_foreign_project(self.caller, job)
        call = enqueue_call(self.caller, [job], self.origin, self.signer)
        return CallOnOwn(
            call.query, call.arguments, lambda rows: call.read(row.values() for row in rows)[0]
        )

    def get_run(self, job_id: JobId) -> CallOnOwn[Run]:
        """Read a run, also one that was enqueued in this transaction; whether it may be shown is for others to say."""
        return self._call(GET_RUN, [job_id], _one_run, job_id)

    def cancel_job(self, job_id: JobId, *, reason: str | None = None) -> CallOnOwn[Run]:
        """Cancel a run."""
        return self._call(CANCEL_JOB, [job_id, reason, False], _one_run, job_id)

    def submit_event(self, event: NewEvent, *, is_plan: bool = False) -> CallOnOwn[SubmittedEvent]:
        """Store an event; its triggers are asked when that is committed, by whoever fires triggers."""
        # No depth: it is for those who say what triggers decide.
        return self._call(SUBMIT_EVENT, [*event_values(event), None, 20, is_plan], to_submitted)

    def _call(
        self,
        query: LiteralString,
        arguments: list[object],
        read: Callable[[list[Row]], AnswerT],
        job_id: JobId | None = None,
    ) -> CallOnOwn[AnswerT]:
        scope = scope_arguments(self.caller, self.origin, self.signer)
        return CallOnOwn(query, [*scope, *arguments], read, job_id)


def _one_run(rows: list[Row]) -> Run:
    return to_run(rows[0])
