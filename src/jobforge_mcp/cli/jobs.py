"""``jobs``: which jobs there are, and those that are data: register, approve, remove and show them."""

from __future__ import annotations

import json as json_text
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from typer.core import TyperGroup

from jobforge_mcp.cli.options import Json
from jobforge_mcp.cli.output import show
from jobforge_mcp.cli.session import admin_url, call, open_client, read_settings, require_living
from jobforge_mcp.errors import InvalidInputError
from jobforge_mcp.types import JsonObject

if TYPE_CHECKING:
    from typer._click import Context

    from jobforge_mcp.client import Client
    from jobforge_mcp.types import ListedDefinition, RegisteredDefinition, Registration

Name = Annotated[str, typer.Argument(help="Name of the job.", metavar="NAME")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")]


class ListsByDefault(TyperGroup):
    """What names no command of the group is what ``list`` is asked: ``jobforge jobs invoice``."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Put ``list`` before words that begin with no command."""
        is_known = bool(args) and (args[0] in self.commands or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if is_known else ["list", *args])


def list_(
    query: Annotated[str | None, typer.Argument(help="Words that must all occur.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag the job has; repeatable.")] = None,
    detail: Annotated[bool, typer.Option("--detail", help="Show schemas and policies.")] = False,
    registered: Annotated[
        bool,
        typer.Option(
            "--registered", help="Those of the database: removed and quarantined ones too."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """List the jobs that may be run."""
    if registered:
        if query is not None or tag or detail:
            raise InvalidInputError("--registered lists all of them, without words, tags or detail")
        _list_registered(is_json=json)
        return
    from jobforge_mcp.cli.output import table
    from jobforge_mcp.definitions.installed import load_registry
    from jobforge_mcp.policy.gate import Credential, Gate
    from jobforge_mcp.policy.permissions import may_list
    from jobforge_mcp.policy.scopes import Scope
    from jobforge_mcp.server.wire import compact, view_definition

    settings = read_settings()
    token = settings.token.get_secret_value() if settings.token is not None else None
    caller = Gate.from_settings(settings).authorize(Credential(token), Scope.JOBS_LIST)
    if token is not None:
        call(lambda: require_living(settings, caller))
    found = load_registry(settings).list(query, tag, is_visible=may_list(caller))
    rows = [
        (
            bound.name,
            compact(bound.definition.input_schema) if detail else bound.definition.title or "",
            bound.definition.description or "",
        )
        for bound in found
    ]
    show(
        {"jobs": [view_definition(bound.definition, is_detailed=detail) for bound in found]},
        is_json=json,
        people=lambda console: console.print(
            table(("job", "input" if detail else "title", "description"), rows)
            if rows
            else _nothing_for(query)
        ),
    )


def _nothing_for(query: str | None) -> str:
    if query is None:
        return "no jobs"
    # the word may have been meant as a command
    return f"no job is found by {query!r}; commands: jobforge jobs --help"


def register(
    file: Annotated[
        str, typer.Argument(help="JSON file with a definition, or - for standard input.")
    ],
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Register a job as data; the same content again changes nothing, another one is a new version."""
    definition = _read(file)

    async def work() -> Registration:
        async with open_client(read_settings(), "jobs register") as client:
            return await client.register_job(definition, is_plan=dry_run)

    _show_registration(call(work), is_json=json)


def approve(
    name: Name,
    version: Annotated[
        str | None, typer.Argument(help="Version to approve; the latest if it is not named.")
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Let a quarantined version of a registered job be run; its author cannot."""

    async def work() -> Registration:
        async with open_client(read_settings(), "jobs approve") as client:
            return await client.approve_job(name, version, is_plan=dry_run)

    _show_registration(call(work), is_json=json)


def remove(name: Name, dry_run: DryRun = False, json: Json = False) -> None:
    """Refuse new runs of a registered job; queued ones wait until it is registered again."""

    async def work() -> Registration:
        async with open_client(read_settings(), "jobs remove") as client:
            return await client.remove_job(name, is_plan=dry_run)

    _show_registration(call(work), is_json=json)


def show_(
    name: Name,
    version: Annotated[
        str | None, typer.Option(help="Version of a registered job; else the one new runs get.")
    ] = None,
    json: Json = False,
) -> None:
    """Show the definition of a job, and of a registered one its version, hash and who approved it."""

    async def work() -> JsonObject:
        async with open_client(read_settings(), "jobs show") as client:
            return await _describe(client, name, version)

    document = call(work)
    show(document, is_json=json, people=lambda console: console.print_json(data=document))


def require_approval(
    tenant: Annotated[str, typer.Option("--tenant", help="Whose definitions.")] = "local",
    is_on: Annotated[
        bool | None, typer.Option("--on/--off", help="Whether somebody else has to approve.")
    ] = None,
    json: Json = False,
) -> None:
    """Set whether a tenant's registered jobs run only after somebody else than their author approved them."""
    from jobforge_mcp.db.approvals import require_approval

    if is_on is None:
        raise InvalidInputError("say whether approval is required", hint="add --on or --off")
    was_on = require_approval(admin_url(), tenant, is_required=is_on)
    show(
        {"tenant": tenant, "isRequired": is_on, "wasRequired": was_on},
        is_json=json,
        people=lambda console: console.print(
            f"tenant {tenant}: new versions {'wait for approval' if is_on else 'run at once'}",
            markup=False,
        ),
    )


async def _describe(client: Client, name: str, version: str | None) -> JsonObject:
    from jobforge_mcp.policy.permissions import may_list, require_scope, require_type
    from jobforge_mcp.policy.scopes import Scope
    from jobforge_mcp.server.wire import view_definition

    require_scope(client.caller, Scope.JOBS_LIST)
    if name in client.registry.by_name:
        require_type(client.caller, name)
        bound = client.registry.get(name, is_visible=may_list(client.caller))
        if may_list(client.caller)(bound):
            return view_definition(bound.definition, is_detailed=True)
    row = await client.registered_job(name, version)
    return _document(row)


def _document(row: RegisteredDefinition) -> JsonObject:
    said = {
        "currentVersion": row.current_version,
        "latestVersion": row.latest_version,
        "hash": row.definition_hash,
        "createdAt": row.created_at.isoformat(),
        "createdBy": row.created_by,
        "approvedAt": row.approved_at.isoformat() if row.approved_at is not None else None,
        "approvedBy": row.approved_by,
        "removedAt": row.removed_at.isoformat() if row.removed_at is not None else None,
    }
    return {
        "name": row.job_type,
        "version": row.job_version,
        **{member: value for member, value in said.items() if value is not None},
        "definition": cast("JsonObject", json_text.loads(row.definition)),
    }


def _list_registered(*, is_json: bool) -> None:
    from jobforge_mcp.cli.output import table

    async def work() -> list[ListedDefinition]:
        async with open_client(read_settings(), "jobs list") as client:
            found: list[ListedDefinition] = []
            while True:
                after = found[-1].job_type if found else None
                page = await client.registered_jobs(after=after, limit=100)
                found += page
                if len(page) < 100:
                    return found

    found = call(work)
    rows = [
        (
            one.job_type,
            one.job_version or "",
            _state(one),
            one.registered_by or "",
            one.title or one.description or "",
        )
        for one in found
    ]
    show(
        {
            "jobs": [
                {
                    "name": one.job_type,
                    "version": one.job_version,
                    "latestVersion": one.latest_version,
                    "state": _state(one),
                    "registeredBy": one.registered_by,
                    "updatedAt": one.updated_at.isoformat(),
                }
                for one in found
            ]
        },
        is_json=is_json,
        people=lambda console: console.print(
            table(("job", "version", "is", "registered by", "title"), rows)
            if rows
            else "no registered jobs"
        ),
    )


def _state(one: ListedDefinition) -> str:
    if one.removed_at is not None:
        return "removed"
    if one.job_version != one.latest_version:
        return f"version {one.latest_version} quarantined"
    return "hidden" if one.is_hidden else "listed"


def _show_registration(registration: Registration, *, is_json: bool) -> None:
    from jobforge_mcp.cli.output import printable

    said = {
        "version": registration.job_version,
        "hash": registration.definition_hash,
        "runs": registration.runs or None,
    }
    document: JsonObject = {
        "name": registration.job_type,
        "outcome": registration.outcome,
        **{member: value for member, value in said.items() if value is not None},
    }
    version = f" version {registration.job_version}" if registration.job_version else ""
    runs = f", {registration.runs} queued runs" if registration.runs else ""
    line = f"job {registration.job_type}{version} is {registration.outcome}{runs}"
    if registration.needs_approval:
        would = "would wait" if registration.outcome == "planned" else "waits"
        line += f"\nit {would} for somebody else: jobforge jobs approve {registration.job_type}"
    show(
        document,
        is_json=is_json,
        people=lambda console: console.print(printable(line), markup=False),
    )


def _read(file: str) -> JsonObject:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        document: object = json_text.loads(text)
    except OSError as error:
        raise InvalidInputError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError:
        raise InvalidInputError(f"{file} is not JSON") from None
    if not isinstance(document, dict):
        raise InvalidInputError(
            "a definition is one JSON object", hint='such as {"name": "…", "handler": "…"}'
        )
    return cast("JsonObject", document)
