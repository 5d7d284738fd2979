"""Definitions registered as data: one method for each SQL function that registers, approves, lists, reads or removes them.

What a definition may say was checked before it comes here; which version runs is for the database to say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import LiteralString

from jobforge_mcp.db.pool import Row
from jobforge_mcp.router.scope import SCOPE
from jobforge_mcp.router.scoped import NO_ORIGIN, ScopedRouter
from jobforge_mcp.types import (
    Caller,
    CallOrigin,
    DefinitionChange,
    ListedDefinition,
    RegisteredDefinition,
    Registration,
)

_REGISTER: LiteralString = f"""
    select r.* from {SCOPE}, lateral jobforge.register_definition(s.tenant_id, %s::text, %s::text, %s::text, %s::boolean) as r"""
_APPROVE: LiteralString = f"""
    select r.* from {SCOPE}, lateral jobforge.approve_definition(s.tenant_id, %s::text, %s::text, %s::boolean) as r"""
_REMOVE: LiteralString = f"""
    select r.* from {SCOPE}, lateral jobforge.remove_definition(s.tenant_id, %s::text, %s::boolean) as r"""
_LIST: LiteralString = f"""
    select r.* from {SCOPE}, lateral jobforge.list_definitions(s.tenant_id, %s::text[], %s::text[], %s::text, %s::text, %s::int,
      %s::boolean) as r"""
_FIND: LiteralString = f"""
    select r.* from {SCOPE}, lateral jobforge.find_definitions(s.tenant_id, %s::text[], %s::text[], %s::text, %s::text,
      %s::int) as r"""
_CHANGED: LiteralString = f"""
    select r.* from {SCOPE}, lateral jobforge.changed_definitions(s.tenant_id, %s::bigint, %s::text, %s::int) as r"""
_GET_MANY: LiteralString = f"""
    select r.* from {SCOPE}, lateral jobforge.get_definitions(s.tenant_id, %s::text[], %s::text[]) as r"""
_GET: LiteralString = f"""
    select r.* from {SCOPE}, lateral jobforge.get_definition(s.tenant_id, %s::text, %s::text) as r"""
_LIST_GUARDED: LiteralString = f"""
    select r.* from {SCOPE}, lateral jobforge.list_guarded_definitions(s.tenant_id, %s::text[]) as r"""
_LIST_VERSIONS: LiteralString = f"""
    select r.* from {SCOPE}, lateral jobforge.list_definition_versions(s.tenant_id, %s::text) as r"""


class DefinitionRouter(ScopedRouter):
    """The functions about registered definitions, over an open `Database` of role ``jobforge_api``."""

    async def register_definition(
        self,
        caller: Caller,
        definition: str,
        *,
        lane_type: str,
        version: str | None = None,
        is_plan: bool = False,
        origin: CallOrigin = NO_ORIGIN,
    ) -> Registration:
        """Register a version; the same content again changes nothing, however often.

        Raises:
            ConflictError: the name looks like another (``NAME_CONFUSABLE``), or the version has another content
                (``VERSION_TAKEN``).
            PolicyDeniedError: the caller may not change definitions, or not this one.
        """
        arguments = [definition, lane_type, version, is_plan]
        # The same content twice is one version, so an answer that was lost can be asked for again.
        rows = await self._fetch(caller, _REGISTER, arguments, origin, is_repeatable=True)
        return _to_registration(rows[0], "woken_runs")

    async def approve_definition(
        self,
        caller: Caller,
        name: str,
        version: str | None = None,
        *,
        is_plan: bool = False,
        origin: CallOrigin = NO_ORIGIN,
    ) -> Registration:
        """Approve a quarantined version, the latest unless one is named.

        Raises:
            NotFoundError: there is none.
            PolicyDeniedError: the caller registered it (``APPROVER_IS_AUTHOR``).
        """
        rows = await self._fetch(
            caller, _APPROVE, [name, version, is_plan], origin, is_repeatable=True
        )
        return _to_registration(rows[0], "woken_runs")

    async def remove_definition(
        self, caller: Caller, name: str, *, is_plan: bool = False, origin: CallOrigin = NO_ORIGIN
    ) -> Registration:
        """Refuse new runs of a job; those that wait stay, and nobody claims them.

        Raises:
            NotFoundError: there is none.
        """
        rows = await self._fetch(caller, _REMOVE, [name, is_plan], origin, is_repeatable=True)
        return _to_registration(rows[0], "queued_runs")

    async def list_definitions(
        self,
        caller: Caller,
        *,
        words: Sequence[str] = (),
        tags: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        after: str | None = None,
        limit: int = 20,
        is_listed: bool = True,
    ) -> list[ListedDefinition]:
        """Read a page by name: of those that can be run and are not hidden, unless ``is_listed`` is false."""
        arguments = [*_page(words, tags, labels, after, limit), is_listed]
        rows = await self._fetch(caller, _LIST, arguments, NO_ORIGIN, is_repeatable=True)
        return [ListedDefinition(**row) for row in rows]

    async def find_definitions(
        self,
        caller: Caller,
        *,
        words: Sequence[str] = (),
        tags: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        after: str | None = None,
        limit: int = 20,
    ) -> list[RegisteredDefinition]:
        """Read a page by name of those that can be run and are not hidden, with what they say."""
        arguments = _page(words, tags, labels, after, limit)
        rows = await self._fetch(caller, _FIND, arguments, NO_ORIGIN, is_repeatable=True)
        return [RegisteredDefinition(**row) for row in rows]

    async def changed_definitions(
        self, caller: Caller, *, since: int = 0, after: str | None = None, limit: int = 1_000
    ) -> tuple[int, list[DefinitionChange]]:
        """Read a page of what changed since a number, and the number to ask with next time; 0 reads all."""
        rows = await self._fetch(
            caller, _CHANGED, [since, after, limit], NO_ORIGIN, is_repeatable=True
        )
        settled: int = rows[0]["settled"]
        return settled, [_to_change(row) for row in rows if row["job_type"] is not None]

    async def get_definitions(
        self, caller: Caller, names: Sequence[str], versions: Sequence[str | None] | None = None
    ) -> list[RegisteredDefinition]:
        """Read those of these that there are, in the version named or else in the one that new runs get."""
        arguments = [list(names), None if versions is None else list(versions)]
        rows = await self._fetch(caller, _GET_MANY, arguments, NO_ORIGIN, is_repeatable=True)
        return [RegisteredDefinition(**row) for row in rows]

    async def get_definition(
        self, caller: Caller, name: str, version: str | None = None
    ) -> RegisteredDefinition:
        """Read one.

        Raises:
            NotFoundError: there is none of this name and version.
        """
        rows = await self._fetch(caller, _GET, [name, version], NO_ORIGIN, is_repeatable=True)
        return RegisteredDefinition(**rows[0])

    async def list_guarded_definitions(
        self, caller: Caller, handlers: Sequence[str]
    ) -> list[RegisteredDefinition]:
        """Read every version that asks something of its callers by itself, or may by running one of these handlers."""
        rows = await self._fetch(
            caller, _LIST_GUARDED, [list(handlers)], NO_ORIGIN, is_repeatable=True
        )
        return [RegisteredDefinition(**row) for row in rows]

    async def list_definition_versions(self, caller: Caller, name: str) -> list[Row]:
        """Read what is known of each version of a job, newest first."""
        return await self._fetch(caller, _LIST_VERSIONS, [name], NO_ORIGIN, is_repeatable=True)


def _to_change(row: Row) -> DefinitionChange:
    return DefinitionChange(
        job_type=row["job_type"],
        job_version=row["job_version"],
        search_text=row["search_text"],
        tags=frozenset(row["tags"]),
        labels=json.loads(row["labels"]),
        is_listed=row["is_listed"],
    )


def _page(
    words: Sequence[str],
    tags: Sequence[str],
    labels: Mapping[str, str] | None,
    after: str | None,
    limit: int,
) -> list[object]:
    return [
        list(words) or None,
        list(tags) or None,
        json.dumps(dict(labels)) if labels else None,
        after,
        limit,
    ]


def _to_registration(row: Row, runs: str) -> Registration:
    return Registration(
        job_type=row["job_type"],
        outcome=row["outcome"],
        job_version=row.get("job_version"),
        definition_hash=row.get("definition_hash"),
        runs=row[runs],
        needs_approval=row.get("needs_approval", False),
    )
