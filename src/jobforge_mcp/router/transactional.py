"""Enqueue a job on a connection of the application's own, as part of the transaction that is open there.

The one place where the router speaks through a connection it did not open: the job exists when and only when the
application's transaction commits. The application's role must be allowed to call the functions of ``jobforge_api``, best
by being a member of it. The scope that is entered ends with the transaction.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import psycopg
from psycopg.rows import dict_row

from jobforge_mcp.router.errors import translated
from jobforge_mcp.router.jobs import ENQUEUE_JOBS, refuse_foreign_project
from jobforge_mcp.router.rows import (
    job_arrays,
    job_claim_limits,
    job_costs,
    job_lanes,
    to_enqueued,
)
from jobforge_mcp.router.scope import ScopeSigner, scope_arguments
from jobforge_mcp.router.scoped import NO_ORIGIN
from jobforge_mcp.types import Caller, CallOrigin, Enqueued, NewJob

AsyncConnection: TypeAlias = psycopg.AsyncConnection[Any]
SyncConnection: TypeAlias = psycopg.Connection[Any]


async def enqueue_job_in(
    connection: AsyncConnection,
    caller: Caller,
    job: NewJob,
    *,
    origin: CallOrigin = NO_ORIGIN,
    signer: ScopeSigner | None = None,
) -> Enqueued:
    """Enqueue a job in the transaction that is open on this connection, or is opened by this statement.

    Raises:
        InvalidInputError: a value does not fit; the transaction can only be rolled back, as after any error in it.
        PolicyDeniedError: the caller may not use the project.
    """
    arguments = _arguments(caller, job, origin, signer)
    with translated():
        async with connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(ENQUEUE_JOBS, arguments)
            return to_enqueued((await cursor.fetchall())[0])


def enqueue_job_in_sync(
    connection: SyncConnection,
    caller: Caller,
    job: NewJob,
    *,
    origin: CallOrigin = NO_ORIGIN,
    signer: ScopeSigner | None = None,
) -> Enqueued:
    """Do the same on a blocking connection, on the thread that owns it."""
    arguments = _arguments(caller, job, origin, signer)
    with translated(), connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(ENQUEUE_JOBS, arguments)
        return to_enqueued(cursor.fetchall()[0])


def _arguments(
    caller: Caller, job: NewJob, origin: CallOrigin, signer: ScopeSigner | None
) -> list[object]:
    refuse_foreign_project(caller, job)
    scope = scope_arguments(caller, origin, signer)
    return [
        *scope,
        *job_arrays([job]),
        None,
        30_000,
        False,
        job_costs([job]),
        job_lanes([job]),
        job_claim_limits([job]),
        None,
    ]
