"""What registered definitions are searched by, in memory, for tenants whose lists are asked for again and again.

Before each search the database is asked what changed since the last one, which is most often nothing; so a job that was
registered, changed or removed through one replica is found, or not, by all of them at once. Which of the names found may be
shown to a caller is for the catalog to say.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import anyio

from jobforge_mcp.router.definitions import DefinitionRouter
from jobforge_mcp.types import Caller, DefinitionChange, TenantId

PAGE = 1_000

MOST_OF_ONE = 20_000
"""Definitions of a tenant above which the database searches for it."""

MOST = 50_000
"""Definitions kept, of all tenants; those of the tenant that was longest not asked for go first."""


_CHUNK = 1_000
"""Definitions that a search looks at before it yields: each condition goes over many at once, which is ten times as fast."""


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    version: str
    text: str
    tags: frozenset[str]
    labels: Mapping[str, str]


@dataclass(slots=True)
class _Kept:
    """The definitions of one tenant."""

    entries: dict[str, _Entry] = field(default_factory=dict[str, _Entry])
    listed: Sequence[_Entry] = ()
    """By name; replaced and never changed, so that a search goes on over what it began with."""
    settled: int = 0
    asked_at: float = -1.0
    is_too_large: bool = False
    lock: anyio.Lock = field(default_factory=anyio.Lock)


class DefinitionIndex:
    """Finds names of registered definitions."""

    def __init__(self, router: DefinitionRouter) -> None:
        """Take whom to ask what changed."""
        self._router = router
        self._tenants: OrderedDict[TenantId, _Kept | None] = OrderedDict()

    async def search(
        self,
        tenant_id: TenantId,
        *,
        words: Sequence[str] = (),
        tags: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        after: str | None = None,
    ) -> Iterator[tuple[str, str]] | None:
        """Return names after one, with the versions that new runs get; ``None`` where the database has to be asked.

        That is so for a tenant's first list, which may be its only one, and for tenants with very many definitions.
        """
        if tenant_id not in self._tenants:
            self._tenants[tenant_id] = None
            self._forget()
            return None
        kept = self._tenants[tenant_id] or _Kept()
        self._tenants[tenant_id] = kept
        self._tenants.move_to_end(tenant_id)
        await self._refresh(tenant_id, kept)
        if kept.is_too_large:
            return None
        return _found(kept.listed, words, frozenset(tags), labels or {}, after)

    async def _refresh(self, tenant_id: TenantId, kept: _Kept) -> None:
        """Learn what changed until now; who waited while another call asked has heard it as well."""
        arrived_at = time.monotonic()
        async with kept.lock:
            if kept.is_too_large or kept.asked_at > arrived_at:
                return
            asked_at = time.monotonic()
            pages = await self._ask(tenant_id, kept.settled)
            if pages.settled < kept.settled:  # another database than before
                kept.entries = {}
                pages = await self._ask(tenant_id, 0)
            _take_over(kept, pages.changes)
            kept.settled, kept.asked_at = pages.settled, asked_at
            if len(kept.entries) > MOST_OF_ONE:
                kept.entries, kept.listed, kept.is_too_large = {}, (), True
            self._forget()

    async def _ask(self, tenant_id: TenantId, since: int) -> _Pages:
        # Not as the caller, who may be shown less than others of the tenant who search here.
        reader = Caller(tenant_id, "catalog", frozenset())
        pages = _Pages()
        while True:
            after = pages.changes[-1].job_type if pages.changes else None
            settled, page = await self._router.changed_definitions(
                reader, since=since, after=after, limit=PAGE
            )
            # The first page's: what changes while the others are read is asked for again.
            pages.settled = settled if after is None else pages.settled
            pages.changes += page
            if len(page) < PAGE or len(pages.changes) > MOST_OF_ONE:
                return pages

    def _forget(self) -> None:
        while len(self._tenants) > 1 and (
            len(self._tenants) > MOST
            or sum(len(kept.entries) for kept in self._tenants.values() if kept) > MOST
        ):
            self._tenants.popitem(last=False)


@dataclass(slots=True)
class _Pages:
    settled: int = 0
    changes: list[DefinitionChange] = field(default_factory=list[DefinitionChange])


def _take_over(kept: _Kept, changes: Sequence[DefinitionChange]) -> None:
    for change in changes:
        if change.is_listed and change.job_version is not None:
            kept.entries[change.job_type] = _Entry(
                change.job_type, change.job_version, change.search_text, change.tags, change.labels
            )
        else:
            kept.entries.pop(change.job_type, None)
    if changes:
        kept.listed = [kept.entries[name] for name in sorted(kept.entries)]


def _found(
    listed: Sequence[_Entry],
    words: Sequence[str],
    tags: frozenset[str],
    labels: Mapping[str, str],
    after: str | None,
) -> Iterator[tuple[str, str]]:
    start = 0 if after is None else bisect_right(listed, after, key=lambda entry: entry.name)
    for begin in range(start, len(listed), _CHUNK):
        found = listed[begin : begin + _CHUNK]
        for word in sorted(words, key=len, reverse=True):  # the rarest first, as a rule
            found = [entry for entry in found if word in entry.text]
        if tags:
            found = [entry for entry in found if tags <= entry.tags]
        for name, value in labels.items():
            found = [entry for entry in found if entry.labels.get(name) == value]
        for entry in found:
            yield entry.name, entry.version
