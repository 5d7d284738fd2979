"""The client's verbs about jobs themselves: register, approve, remove and list them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jobforge_mcp import registering
from jobforge_mcp.definitions.catalog import Catalog, Wanted
from jobforge_mcp.definitions.features import REGISTER_JOB
from jobforge_mcp.definitions.model import JobDefinition
from jobforge_mcp.permits import shown_names, unknown_job
from jobforge_mcp.policy.permissions import may_list, require_scope
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.settings import Settings
from jobforge_mcp.types import (
    Caller,
    CallOrigin,
    JsonObject,
    ListedDefinition,
    RegisteredDefinition,
    Registration,
)


class DefinitionVerbs:
    """What a client does with definitions; a part of `Client`."""

    caller: Caller
    catalog: Catalog
    _settings: Settings | None

    def origin(self) -> CallOrigin:
        """Return what the audit log is told of a call."""
        raise NotImplementedError

    async def register_job(self, definition: JsonObject, *, is_plan: bool = False) -> Registration:
        """Register a definition; the same content again changes nothing, another one is a new version.

        Raises:
            InvalidInputError: the definition does not fit.
            ConflictError: its name is taken or looks like another, or its version has another content.
            PolicyDeniedError: the caller may not, or may not run the handler.
        """
        self._require_registering()
        return await registering.register(
            self.catalog, self.caller, definition, is_plan=is_plan, origin=self.origin()
        )

    async def approve_job(
        self, name: str, version: str | None = None, *, is_plan: bool = False
    ) -> Registration:
        """Let a quarantined version be run, the latest unless one is named.

        Raises:
            NotFoundError: there is none.
            PolicyDeniedError: the caller may not, or registered it.
        """
        self._require_registering()
        return await registering.approve(
            self.catalog, self.caller, name, version, is_plan=is_plan, origin=self.origin()
        )

    async def remove_job(self, name: str, *, is_plan: bool = False) -> Registration:
        """Refuse new runs of a registered job; queued ones wait until it is registered again.

        Raises:
            NotFoundError: there is none.
            PolicyDeniedError: the caller may not.
        """
        self._require_registering()
        return await registering.remove(
            self.catalog, self.caller, name, is_plan=is_plan, origin=self.origin()
        )

    def _require_registering(self) -> None:
        if self._settings is not None:
            REGISTER_JOB.require(self._settings, self.caller, "registering jobs")

    async def list_jobs(
        self,
        query: str | None = None,
        *,
        tags: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        after: str | None = None,
        limit: int = 20,
    ) -> list[JobDefinition]:
        """Return a page of the jobs that this caller may run, by name, from after one on."""
        require_scope(self.caller, Scope.JOBS_LIST)
        wanted = Wanted(query, tuple(tags), labels, after, limit)
        found, _ = await self.catalog.list(self.caller, wanted, is_visible=may_list(self.caller))
        return [bound.definition for bound in found]

    async def registered_jobs(
        self, *, after: str | None = None, limit: int = 100
    ) -> list[ListedDefinition]:
        """Return a page of what was registered: removed, hidden and quarantined ones too."""
        require_scope(self.caller, Scope.JOBS_LIST)
        found = await self.catalog.router.list_definitions(
            self.caller, after=after, limit=limit, is_listed=False
        )
        shown = await shown_names(self.catalog, self.caller, [listed.job_type for listed in found])
        return [listed for listed in found if listed.job_type in shown]

    async def registered_job(self, name: str, version: str | None = None) -> RegisteredDefinition:
        """Return one version of a registered job, with its hash and who approved it.

        Raises:
            NotFoundError: there is none.
        """
        require_scope(self.caller, Scope.JOBS_LIST)
        row = await self.catalog.router.get_definition(self.caller, name, version)
        if name not in await shown_names(self.catalog, self.caller, [name]):
            raise unknown_job()
        return row
