"""Register, approve and remove jobs as data, for every door: the tools, the client and the command line.

What a registered job may do is what its author may do: whoever registers must be allowed to register and execute every
handler that the definition uses. What its runs may do is asked again of each caller, of the handler's permissions and
guards and the definition's own.
"""

from __future__ import annotations

from jobforge_mcp.definitions import intake
from jobforge_mcp.definitions.catalog import Catalog, bind_data, is_registrable, to_json
from jobforge_mcp.definitions.composition import jobs_of
from jobforge_mcp.definitions.declarative import STRENGTH, compile_all
from jobforge_mcp.definitions.json_limits import check_value, dump_limited
from jobforge_mcp.definitions.model import BoundJob, JobDefinition
from jobforge_mcp.definitions.pinning import pin
from jobforge_mcp.errors import (
    DefinitionError,
    InvalidInputError,
    NotFoundError,
)
from jobforge_mcp.permits import require_change
from jobforge_mcp.policy.permissions import (
    ask_guards,
    may_list,
    require_job,
    require_scope,
    require_type,
)
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.types import Caller, CallOrigin, Effects, JobAction, JsonObject, Registration


async def register(
    catalog: Catalog,
    caller: Caller,
    document: JsonObject,
    *,
    is_plan: bool = False,
    origin: CallOrigin,
) -> Registration:
    """Check a definition and register it; the same content again changes nothing.

    Raises:
        InvalidInputError: ``DEFINITION_INVALID``, or ``SECRET_IN_INPUT``.
        LimitError: ``DEFINITION_TOO_LARGE``.
        ConflictError: ``NAME_TAKEN``, ``NAME_CONFUSABLE`` or ``VERSION_TAKEN``.
        PolicyDeniedError: the caller may not, or may not use the handler.
        NotFoundError: there is no such handler.
    """
    require_scope(caller, Scope.DEFINITIONS_REGISTER)
    check_value(document)
    catalog.registry.scan({"the definition": document})
    definition = intake.read(document)
    require_type(caller, definition.name)
    intake.refuse_installed(definition.name, catalog.registry.by_name)
    definition = await _pin(catalog, caller, definition)
    bound = _bind(catalog, caller, definition)
    try:
        await require_change(catalog, caller, definition.name)
    except NotFoundError:
        raise intake.taken(definition.name) from None
    version = definition.version if "version" in document else None
    stored = to_json(definition)
    return await catalog.router.register_definition(
        caller,
        dump_limited(stored),
        lane_type=_lane_of(bound),
        version=version,
        is_plan=is_plan,
        origin=origin,
    )


async def approve(
    catalog: Catalog,
    caller: Caller,
    name: str,
    version: str | None = None,
    *,
    is_plan: bool = False,
    origin: CallOrigin,
) -> Registration:
    """Let a quarantined version be run: whoever may run what it uses, and did not register it."""
    require_scope(caller, Scope.DEFINITIONS_APPROVE)
    require_type(caller, name)
    await require_change(catalog, caller, name)
    row = await catalog.router.get_definition(caller, name, version)
    if version is None and row.latest_version != row.job_version:
        row = await catalog.router.get_definition(caller, name, row.latest_version)
    _may_use(caller, catalog.bind(caller, row))
    return await catalog.router.approve_definition(
        caller, name, row.job_version, is_plan=is_plan, origin=origin
    )


async def remove(
    catalog: Catalog, caller: Caller, name: str, *, is_plan: bool = False, origin: CallOrigin
) -> Registration:
    """Refuse new runs of a registered job; those that wait stay."""
    require_scope(caller, Scope.DEFINITIONS_REGISTER)
    require_type(caller, name)
    if name in catalog.registry.by_name and may_list(caller)(catalog.registry.by_name[name]):
        raise InvalidInputError(
            f"{name} is installed with the server and cannot be removed by callers",
            code="JOB_INSTALLED",
            hint="only registered jobs can be removed",
        )
    await require_change(catalog, caller, name)
    return await catalog.router.remove_definition(caller, name, is_plan=is_plan, origin=origin)


def _bind(catalog: Catalog, caller: Caller, definition: JobDefinition) -> BoundJob:
    composition = definition.composition
    names = jobs_of(composition) if composition is not None else [definition.handler or ""]
    if names == [""]:
        raise _invalid("handler: name the job that does the work, or write chain, map or switch")
    pinned = definition.pinned.jobs if definition.pinned is not None else {}
    for name in names:
        require_type(caller, name)
        if name not in pinned:
            _may_use(caller, catalog.registry.get(name, is_visible=may_list(caller)))
    try:
        bound = bind_data(definition, catalog.registry)
        compile_all(bound)
    except DefinitionError as error:
        raise _invalid(error.message, hint=error.hint) from None
    declared = definition.effects or Effects.INTERNAL  # as of every job that says nothing
    if composition is not None and STRENGTH[bound.effects] > STRENGTH[declared]:
        raise _invalid(
            f"effects: a step is {bound.effects}, and the composition says {declared}",
            hint=f'write "effects": "{bound.effects}", so that whoever reads the definition knows',
        )
    return bound


async def _pin(catalog: Catalog, caller: Caller, definition: JobDefinition) -> JobDefinition:
    """Note the version that each step runs which is a registered job, and what stands behind it.

    What is pinned was there before, so nothing can run itself, however many compositions stand inside each other.
    """
    composition = definition.composition
    names = jobs_of(composition) if composition is not None else []
    wanted = [name for name in names if not catalog.registry.is_installed(name)]
    if definition.name in wanted:
        raise _invalid(f"{definition.name} cannot be a step of itself")
    for name in wanted:
        require_type(caller, name)
    named = [name for name in wanted if is_registrable(name)]
    rows = await catalog.router.get_definitions(caller, named) if named else []
    if not rows:
        return definition
    effects: list[Effects] = []
    for row in rows:
        bound = catalog.bind_current(caller, row)
        if not may_list(caller)(bound):
            catalog.registry.get(row.job_type, is_visible=may_list(caller))
        _may_use(caller, bound)
        effects.append(bound.effects)
    try:
        return definition.model_copy(update={"pinned": pin(rows, effects)})
    except DefinitionError as error:
        raise _invalid(error.message) from None


def _may_use(caller: Caller, job: BoundJob) -> None:
    """Refuse whoever may not run the handler behind a definition, or may not register with it."""
    for action in (JobAction.EXECUTE, JobAction.REGISTER):
        require_job(caller, job, action)
    ask_guards(caller, job, JobAction.REGISTER)


def _lane_of(bound: BoundJob) -> str:
    assert bound.lane_type is not None
    return bound.lane_type


def _invalid(why: str, *, hint: str | None = None) -> InvalidInputError:
    return InvalidInputError(
        f"the definition does not fit: {why}", code="DEFINITION_INVALID", hint=hint
    )
