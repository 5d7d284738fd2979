"""All jobs a caller may know: those installed with this process, and those its tenant registered as data.

What is installed is in memory. What is registered is asked of the database each time it is named, so that a job which
was registered, changed or removed through one replica is so for all of them at once; only the content of a version,
which never changes, is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import structlog
from pydantic import TypeAdapter, ValidationError

from jobforge_mcp.definitions.composition import COMPOSITION_TYPE, jobs_of
from jobforge_mcp.definitions.declarative import STRENGTH, join
from jobforge_mcp.definitions.index import DefinitionIndex
from jobforge_mcp.definitions.model import (
    BoundJob,
    HandlerRef,
    JobDefinition,
    Permission,
    complaint,
)
from jobforge_mcp.definitions.pinning import handlers_of
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.errors import (
    CallerError,
    DefinitionError,
    JobForgeError,
    NotFoundError,
)
from jobforge_mcp.router.definitions import DefinitionRouter
from jobforge_mcp.types import (
    Caller,
    ClaimedJob,
    CurrentDefinition,
    Effects,
    Guard,
    JobAction,
    JsonObject,
    RegisteredDefinition,
    Run,
)

_KEPT = 4_096
"""Versions kept in memory; the one that was longest not asked for goes first."""

_log = structlog.stdlib.get_logger(__name__)

IsVisible = Callable[[BoundJob], bool]


@dataclass(frozen=True, slots=True)
class AskedJob:
    """What a definition asks of its callers, whether or not all that it runs is installed here."""

    name: str
    effects: Effects
    permissions: tuple[Permission, ...]
    guards: tuple[Guard, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which jobs a list shows."""

    query: str | None = None
    """Words that must all occur in name, title, description or tags."""
    tags: tuple[str, ...] = ()
    """Tags that a job must all have."""
    labels: Mapping[str, str] | None = None
    """Labels that a job must all have."""
    after: str | None = None
    """Cursor: only names after this one."""
    limit: int = 20


class BoundDefinitions:
    """Joins the text of registered definitions with the handlers installed here, and keeps what it made."""

    def __init__(self, registry: Registry) -> None:
        """Take what is installed."""
        self.registry = registry
        self._known: OrderedDict[tuple[str, str, str], BoundJob] = OrderedDict()

    def of(self, claimed: ClaimedJob) -> BoundJob:
        """Return the job of a claim, be it installed here or registered by its tenant.

        Raises:
            NotFoundError: there is none.
            PolicyDeniedError: it is switched off here.
            DefinitionError: it does not fit the handler that is installed here.
        """
        if claimed.lane_type is None or claimed.definition is None:
            return self.registry.get(claimed.job_type)
        tenant_id, name, version = claimed.fence.tenant_id, claimed.job_type, claimed.job_version
        return self.bind(tenant_id, name, version, claimed.lane_type, claimed.definition)

    def current(self, tenant_id: str, name: str, found: CurrentDefinition | None) -> BoundJob:
        """Return the job that a new run of a name gets: what is installed, else what was found registered.

        Raises:
            NotFoundError: there is none.
            PolicyDeniedError: it is switched off here.
            DefinitionError: it does not fit the handler that is installed here.
        """
        if found is None or name in self.registry.by_name:
            return self.registry.get(name)
        return self.bind(tenant_id, name, found.job_version, found.lane_type, found.definition)

    def is_known(self, tenant_id: str, name: str, found: CurrentDefinition | None) -> bool:
        """Whether there is a job of this name here."""
        if name in self.registry.by_name:
            return True
        try:
            self.current(tenant_id, name, found)
        except (CallerError, DefinitionError):
            return False
        return True

    def kept(self, tenant_id: str, name: str, version: str) -> BoundJob | None:
        """Return the job of one version, if it was bound before and not too long ago."""
        bound = self._known.get((tenant_id, name, version))
        if bound is not None:
            self._known.move_to_end((tenant_id, name, version))
        return bound

    def bind(self, tenant_id: str, name: str, version: str, lane_type: str, text: str) -> BoundJob:
        """Return the job of one version.

        Raises:
            NotFoundError: its handler is not installed here.
            PolicyDeniedError: its handler is switched off here.
            DefinitionError: it does not fit the handler that is installed here.
        """
        # The lane is part of what a version is: it never changes either.
        key = (tenant_id, name, version)
        if (bound := self.kept(*key)) is not None:
            return bound
        try:
            definition = JobDefinition.model_validate_json(text)
        except ValidationError as error:  # of a newer version than this process
            raise DefinitionError(
                f"version {version} of the job {name} cannot be read here: {complaint(error)}"
            ) from None
        bound = replace(bind_data(definition, self.registry), lane_type=lane_type, source=text)
        self._known[key] = bound
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return bound


def bind_data(definition: JobDefinition, registry: Registry) -> BoundJob:
    """Join a registered definition with the handlers that it uses; nothing is compiled yet.

    A composition asks of its callers what all of its handlers ask, and does to the world what any of them does.

    Raises:
        NotFoundError: a handler is not installed here.
        PolicyDeniedError: a handler is switched off here.
        DefinitionError: it promises less than a handler does.
    """
    composition = definition.composition
    if composition is None:
        base = registry.get(definition.handler or "")
        return replace(join(definition, base), lane_type=base.name)
    pinned = definition.pinned.jobs if definition.pinned is not None else {}
    for name in jobs_of(composition):
        if name not in pinned:
            registry.get(name)
    for name in definition.pinned.handlers if definition.pinned is not None else ():
        registry.require_on(name)
    asked = _asked(definition, registry)
    if definition.effects is not None and STRENGTH[definition.effects] < STRENGTH[asked.effects]:
        raise DefinitionError(
            f"job {definition.name!r}: effects {definition.effects} is less than those of its steps, {asked.effects}"
        )
    whole = definition.model_copy(
        update={"effects": asked.effects, "permissions": asked.permissions}
    )
    return BoundJob(
        whole,
        _no_handler,
        _ANYTHING,
        _ANYTHING,
        HandlerRef(__name__, COMPOSITION_TYPE),
        guards=asked.guards,
        lane_type=COMPOSITION_TYPE,
    )


def asked_by(name: str, text: str, registry: Registry) -> AskedJob:
    """Return what the stored text of a definition asks; one that this process cannot read asks for what nobody has."""
    try:
        return _asked(JobDefinition.model_validate_json(text), registry)
    except ValidationError:
        nobody = tuple(Permission(action=action, scopes=("newer:version",)) for action in JobAction)
        return AskedJob(name, Effects.EXTERNAL, nobody, ())


def _asked(definition: JobDefinition, registry: Registry) -> AskedJob:
    """Join what a definition asks with what the handlers behind it ask that are installed here, switched off or not."""
    pinned, names = definition.pinned, handlers_of(definition)
    bases = [registry.by_name[name] for name in names if name in registry.by_name]
    effects = [
        definition.effects or Effects.NONE,
        pinned.effects if pinned is not None else Effects.NONE,
        *(base.effects for base in bases),
    ]
    permissions = (
        *(permission for base in bases for permission in base.permissions),
        *(pinned.permissions if pinned is not None else ()),
        *definition.permissions,
    )
    return AskedJob(
        definition.name,
        max(effects, key=STRENGTH.__getitem__),
        tuple(dict.fromkeys(permissions)),
        tuple(guard for base in bases for guard in base.guards),
    )


def _no_handler(*_: object) -> object:
    raise AssertionError("a composition is looked at by the worker itself")


_ANYTHING: TypeAdapter[object] = TypeAdapter(object)


class Catalog:
    """Finds jobs for callers."""

    def __init__(self, registry: Registry, router: DefinitionRouter) -> None:
        """Take what is installed, and where the rest is asked for."""
        self.registry = registry
        self.router = router
        self.bound = BoundDefinitions(registry)
        self._index = DefinitionIndex(router)
        self._asked: OrderedDict[tuple[str, str, str], AskedJob] = OrderedDict()

    async def asked_of(
        self, caller: Caller, runs: Iterable[Run]
    ) -> Mapping[tuple[str, str], BoundJob | AskedJob]:
        """Return what the definitions of runs ask, by name and version; what is neither installed nor registered is left out."""
        found: dict[tuple[str, str], BoundJob | AskedJob] = {}
        unknown: list[tuple[str, str]] = []
        for name, version in {(run.job_type, run.job_version): None for run in runs}:
            known = self.registry.by_name.get(name) or self._asked.get(
                (caller.tenant_id, name, version)
            )
            if known is not None:
                found[name, version] = known
            elif is_registrable(name):
                unknown.append((name, version))
        if unknown:
            names, versions = zip(*unknown, strict=True)
            for row in await self.router.get_definitions(caller, names, versions):
                found[row.job_type, row.job_version] = self.asked(caller, row)
        return found

    def asked(self, caller: Caller, row: RegisteredDefinition) -> AskedJob:
        """Return what one version of a registered definition asks, and keep it: it never changes."""
        key = (caller.tenant_id, row.job_type, row.job_version)
        asked = self._asked.get(key)
        if asked is None:
            asked = self._asked[key] = asked_by(row.job_type, row.definition, self.registry)
            if len(self._asked) > _KEPT:
                self._asked.popitem(last=False)
        return asked

    async def find(
        self, caller: Caller, name: str, *, is_visible: IsVisible | None = None
    ) -> BoundJob:
        """Return the job that new runs of this name get; ``is_visible`` says which others may be named to the caller.

        Raises:
            NotFoundError: ``JOB_NOT_FOUND``, ``JOB_REMOVED``, or ``JOB_QUARANTINED`` while nobody has approved it.
            PolicyDeniedError: it is switched off here.
        """
        if self.registry.is_installed(name):
            return self.registry.get(name)
        found = await self.router.get_definitions(caller, [name]) if is_registrable(name) else []
        if not found:
            return self.registry.get(name, is_visible=is_visible)
        return self.bind_current(caller, found[0])

    def bind_current(self, caller: Caller, row: RegisteredDefinition) -> BoundJob:
        """Join what new runs of a name get with its handler.

        Raises:
            NotFoundError: ``JOB_REMOVED``, or ``JOB_QUARANTINED`` while nobody has approved it.
        """
        _refuse_unfit(row)
        return self.bind(caller, row)

    async def find_version(self, caller: Caller, name: str, version: str) -> BoundJob | None:
        """Return the job that a run of this name and version has; ``None`` if nobody knows it any more."""
        if name in self.registry.by_name:
            return self.registry.by_name[name]
        found = await self.router.get_definitions(caller, [name], [version])
        try:
            return self.bind(caller, found[0]) if found else None
        except JobForgeError:
            return None

    async def list(
        self, caller: Caller, wanted: Wanted, *, is_visible: IsVisible
    ) -> tuple[list[BoundJob], bool]:
        """Return a page of jobs by name, and whether there are more."""
        installed = [
            bound
            for bound in self.registry.list(
                wanted.query, wanted.tags, wanted.labels, is_visible=is_visible
            )
            if wanted.after is None or bound.name > wanted.after
        ]
        registered = await self._registered(caller, wanted, is_visible, wanted.limit + 1)
        merged = sorted([*installed, *registered], key=lambda bound: bound.name)
        return merged[: wanted.limit], len(merged) > wanted.limit

    def bind(self, caller: Caller, row: RegisteredDefinition) -> BoundJob:
        """Join a registered definition with its handler."""
        return self.bound.bind(
            caller.tenant_id, row.job_type, row.job_version, row.lane_type, row.definition
        )

    async def _registered(
        self, caller: Caller, wanted: Wanted, is_visible: IsVisible, limit: int
    ) -> list[BoundJob]:
        """Read pages until there are enough that this caller is shown."""
        words = (wanted.query or "").casefold().split()
        names = await self._index.search(
            caller.tenant_id,
            words=words,
            tags=wanted.tags,
            labels=wanted.labels,
            after=wanted.after,
        )
        shown: list[BoundJob] = []
        after = wanted.after
        while True:
            if names is not None:
                named = list(islice(names, limit))
                count, found = len(named), await self._bind_named(caller, named)
            else:
                page = await self.router.find_definitions(
                    caller,
                    words=words,
                    tags=wanted.tags,
                    labels=wanted.labels,
                    after=after,
                    limit=limit,
                )
                after = page[-1].job_type if page else None
                count, found = len(page), self._bind_all(caller, page)
            shown += [bound for bound in found if is_visible(bound)]
            if count < limit or len(shown) >= limit:
                return shown[:limit]

    async def _bind_named(self, caller: Caller, named: Sequence[tuple[str, str]]) -> list[BoundJob]:
        """Return jobs by name and version; what is not kept here is read first."""
        tenant_id = caller.tenant_id
        unknown = [one for one in named if self.bound.kept(tenant_id, *one) is None]
        found: dict[str, BoundJob] = {}
        if unknown:
            names, versions = zip(*unknown, strict=True)
            rows = await self.router.get_definitions(caller, names, versions)
            found = {bound.name: bound for bound in self._bind_all(caller, rows)}
        jobs = [found.get(name) or self.bound.kept(tenant_id, name, v) for name, v in named]
        return [job for job in jobs if job is not None and job.name not in self.registry.by_name]

    def _bind_all(self, caller: Caller, rows: Iterable[RegisteredDefinition]) -> list[BoundJob]:
        """Leave out what cannot run here: its handler is switched off, or not installed."""
        found: list[BoundJob] = []
        for row in rows:
            if row.job_type in self.registry.by_name:
                continue
            try:
                found.append(self.bind(caller, row))
            except (CallerError, DefinitionError) as error:
                _log.info("definition_not_bound", job_type=row.job_type, code=error.code)
        return found


def is_registrable(name: str) -> bool:
    """Whether a name has the form that registered jobs have."""
    return 0 < len(name) <= 64 and name.isascii() and name == name.lower() and "_" not in name


def to_json(definition: JobDefinition) -> JsonObject:
    """Return a definition as it is stored: what was left out stays out, so that the same content has the same hash."""
    return definition.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _refuse_unfit(row: RegisteredDefinition) -> None:
    if row.removed_at is not None:
        raise NotFoundError(
            f"the job {row.job_type} was removed, so no new run of it is made",
            code="JOB_REMOVED",
            hint="list-jobs shows every job that you may run; register-job brings this one back",
        )
    if row.approved_at is None:
        raise NotFoundError(
            f"version {row.job_version} of the job {row.job_type} is quarantined until somebody approves it",
            code="JOB_QUARANTINED",
            hint="somebody other than its author, with the scope definitions:approve, runs: jobforge jobs approve "
            + row.job_type,
        )
