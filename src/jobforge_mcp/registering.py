"""Register, approve and remove jobs as data, for every door: the tools, the client and the command line.

What a registered job may do is what its author may do: whoever registers must be allowed to register and execute every
handler that the definition uses. What its runs may do is asked again of each caller, of the handler's permissions and
guards and the definition's own.
"""

from __future__ import annotations

from jobforge_mcp.definitions import intake
from jobforge_mcp.definitions.catalog import Catalog, bind_data, to_json
from jobforge_mcp.definitions.composition import jobs_of
from jobforge_mcp.definitions.declarative import compile_all
from jobforge_mcp.definitions.json_limits import check_value, dump_limited
from jobforge_mcp.definitions.model import BoundJob, JobDefinition
from jobforge_mcp.errors import DefinitionError, InvalidInputError
from jobforge_mcp.policy.permissions import (
    ask_guards,
    may_list,
    require_job,
    require_scope,
    require_type,
)
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.types import Caller, CallOrigin, JobAction, JsonObject, Registration


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
        InvalidInputError: ``DEFINITION_INVALID``.
        LimitError: ``DEFINITION_TOO_LARGE``.
        ConflictError: ``NAME_TAKEN``, ``NAME_CONFUSABLE`` or ``VERSION_TAKEN``.
        PolicyDeniedError: the caller may not, or may not use the handler.
        NotFoundError: there is no such handler.
    """
    require_scope(caller, Scope.DEFINITIONS_REGISTER)
    check_value(document)
    definition = intake.read(document)
    require_type(caller, definition.name)
    intake.refuse_installed(definition.name, catalog.registry.by_name)
    bound = _bind(catalog, caller, definition)
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
    return await catalog.router.remove_definition(caller, name, is_plan=is_plan, origin=origin)


def _bind(catalog: Catalog, caller: Caller, definition: JobDefinition) -> BoundJob:
    composition = definition.composition
    names = jobs_of(composition) if composition is not None else [definition.handler or ""]
    if names == [""]:
        raise _invalid("handler: name the job that does the work, or write chain, map or switch")
    if any(permission.action is JobAction.READ for permission in definition.permissions):
        raise _invalid(
            "permissions: who may read runs is for the handler's definition, which is inherited"
        )
    for name in names:
        require_type(caller, name)
        _may_use(caller, catalog.registry.get(name, is_visible=may_list(caller)))
    try:
        bound = bind_data(definition, catalog.registry)
        compile_all(bound)
    except DefinitionError as error:
        raise _invalid(error.message, hint=error.hint) from None
    return bound


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
