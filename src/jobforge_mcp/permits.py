"""The gate for what is there already: runs, and the definitions that somebody registered.

Before anything is done with a run or to a registered definition, the definition that the run has, or that is in force, is
asked: its permissions, and those and the guards of the handlers behind it. `jobforge_mcp.policy.permissions` says what that
means; here is found whom to ask. A run keeps the version it began with, so the permissions of that version hold for it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import cast

from jobforge_mcp.definitions.catalog import Catalog
from jobforge_mcp.errors import NotFoundError
from jobforge_mcp.policy.permissions import ask_guards, may, require_job, speaks_of
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.types import Caller, JobAction, JobId, JsonValue, Run


class Permits:
    """Asks definitions, installed and registered alike, what a caller may do."""

    def __init__(self, catalog: Catalog, router: Router) -> None:
        """Take where definitions and runs are found; from now on the router shows nobody what he may not read."""
        self._catalog = catalog
        self._router = router
        router.readers = self

    async def shown(self, caller: Caller, runs: Sequence[Run]) -> list[Run]:
        """Leave out runs that their definitions let this caller not read."""
        jobs = await self._catalog.asked_of(caller, runs)
        return [
            run
            for run in runs
            if (job := jobs.get((run.job_type, run.job_version))) is None
            or may(caller, job, JobAction.READ)
        ]

    async def require_run(self, caller: Caller, job_id: JobId, action: JobAction) -> None:
        """Refuse an action on a run that its definition does not allow.

        A run that is unknown, or that the caller may not read, passes: the call that follows answers for it as it does for
        everyone.

        Raises:
            PolicyDeniedError: it is not allowed.
        """
        for run in await self._router.get_runs(caller, [job_id]):
            await self.require_known(caller, run, action)

    async def require_known(self, caller: Caller, run: Run, action: JobAction) -> None:
        """Do the same for a run that was read already.

        Raises:
            PolicyDeniedError: it is not allowed.
        """
        jobs = await self._catalog.asked_of(caller, [run])
        job = jobs.get((run.job_type, run.job_version))
        if job is None:
            return
        require_job(caller, job, action)
        if job.guards:
            is_execute = action is JobAction.EXECUTE
            text = await self._router.get_payload(caller, run.job_id) if is_execute else "null"
            ask_guards(caller, job, action, cast("JsonValue", json.loads(text)))

    async def closed_types(self, caller: Caller, action: JobAction) -> set[str]:
        """Name the types of whose runs the caller may not touch all: by permissions, or by a guard that must see the input."""
        registry = self._catalog.registry
        installed = registry.by_name
        speaking = [job.name for job in installed.values() if speaks_of(job, action)]
        rows = await self._catalog.router.list_guarded_definitions(caller, speaking)
        jobs = [*installed.values(), *(self._catalog.asked(caller, row) for row in rows)]
        return {
            job.name
            for job in jobs
            if not may(caller, job, action) or not may(caller, job, JobAction.READ)
            or (action is JobAction.EXECUTE and (job.guards or not registry.is_on(job.name)))
        }  # fmt: skip


async def require_change(catalog: Catalog, caller: Caller, name: str) -> None:
    """Refuse to replace, approve or remove a registered definition against the permissions of those in force.

    A name that nobody registered passes.

    Raises:
        NotFoundError: what is there is not shown to this caller, and the words are those for what is not there.
        PolicyDeniedError: it is not allowed.
    """
    rows = await catalog.router.get_definitions(caller, [name])
    if rows and rows[0].latest_version != rows[0].job_version:
        rows += await catalog.router.get_definitions(caller, [name], [rows[0].latest_version])
    for row in rows:
        job = catalog.asked(caller, row)
        if not may(caller, job, JobAction.LIST):
            raise unknown_job()
        require_job(caller, job, JobAction.REGISTER)
        ask_guards(caller, job, JobAction.REGISTER)


async def shown_names(catalog: Catalog, caller: Caller, names: Sequence[str]) -> set[str]:
    """Return those of registered names whose definitions may be shown to a caller."""
    rows = await catalog.router.get_definitions(caller, names) if names else []
    return {row.job_type for row in rows if may(caller, catalog.asked(caller, row), JobAction.LIST)}


def unknown_job() -> NotFoundError:
    """Return the words for a registered job that is not there, which are the database's."""
    return NotFoundError(
        "there is no registered job of this name, or not in this version",
        code="JOB_NOT_FOUND",
        hint="list-jobs shows every job that you may run.",
    )
