"""``limit``: what tenants, job types and tools may use, kept in the database through the admin URL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from jobforge_mcp.cli.options import Json
from jobforge_mcp.cli.output import CALLER_EXIT, show
from jobforge_mcp.cli.session import admin_url
from jobforge_mcp.errors import InvalidInputError

if TYPE_CHECKING:
    from jobforge_mcp.db.limits import Kind
    from jobforge_mcp.types import JsonObject

Tenant = Annotated[str, typer.Option("--tenant", help="Whose limits.")]
JobType = Annotated[str | None, typer.Option("--type", help="Only for jobs of this type.")]
Tool = Annotated[str | None, typer.Option("--tool", help="Only for calls of this tool.")]


def set_(
    limits: Annotated[
        list[str],
        typer.Argument(
            help="NAME=VALUE of rps, burst, max_running, max_queued, max_payload_bytes, max_priority, max_children,"
            " max_depth, budget_jobs, budget_units, budget_run_seconds, period_seconds, unit_cost; NAME= takes it away."
        ),
    ],
    tenant: Tenant = "local",
    job_type: JobType = None,
    tool: Tool = None,
    json: Json = False,
) -> None:
    """Set limits; those not named stay as they are. They hold for the next call."""
    from jobforge_mcp.db.limits import set_limit

    kind, name = _target(job_type, tool)
    values = dict(_parse(text) for text in limits)
    held = set_limit(admin_url(), tenant, kind, name, values)
    document: JsonObject = {"tenant": tenant, "kind": kind, "name": name, "limits": held}
    show(
        document,
        is_json=json,
        people=lambda console: console.print(
            f"{_title(tenant, kind, name)}: {_words(held)}", markup=False
        ),
    )


def list_(
    tenant: Annotated[str | None, typer.Option("--tenant", help="Only those of a tenant.")] = None,
    json: Json = False,
) -> None:
    """Show the limits that were set, and what was used of their budgets."""
    from jobforge_mcp.cli.output import table
    from jobforge_mcp.db.limits import list_limits

    found = list_limits(admin_url(), tenant)
    show(
        [
            {
                "tenant": one.tenant_id,
                "kind": one.kind,
                "name": one.name,
                "limits": one.limits,
                "used": one.used,
                "setAt": one.set_at.isoformat(),
            }
            for one in found
        ],
        is_json=json,
        people=lambda console: console.print(
            table(
                ("for", "limits", "used"),
                [
                    (
                        _title(one.tenant_id, one.kind, one.name),
                        _words(one.limits),
                        _words(one.used),
                    )
                    for one in found
                ],
            )
        ),
    )


def remove(
    tenant: Tenant = "local", job_type: JobType = None, tool: Tool = None, json: Json = False
) -> int:
    """Take all limits of a tenant, job type or tool away, and forget what was used of them."""
    from jobforge_mcp.db.limits import remove_limit

    kind, name = _target(job_type, tool)
    is_removed = remove_limit(admin_url(), tenant, kind, name)
    title = _title(tenant, kind, name)
    show(
        {"isRemoved": is_removed},
        is_json=json,
        people=lambda console: console.print(
            f"{title}: {'no limits any more' if is_removed else 'had no limits'}", markup=False
        ),
    )
    return 0 if is_removed else CALLER_EXIT


def _target(job_type: str | None, tool: str | None) -> tuple[Kind, str]:
    if job_type is not None and tool is not None:
        raise InvalidInputError(
            "a limit is for a job type or for a tool", hint="set one for each: both will hold"
        )
    if job_type is not None:
        return "type", job_type
    return ("tenant", "") if tool is None else ("tool", tool)


def _parse(text: str) -> tuple[str, float | None]:
    name, equals, value = text.partition("=")
    try:
        if equals:
            return name, _number(value) if value else None
    except ValueError:
        pass
    raise InvalidInputError(
        f"{text} is not a limit and its value", hint="write it as max_queued=100"
    )


def _number(text: str) -> float:
    return int(text) if text.lstrip("-").isdecimal() else float(text)


def _title(tenant: str, kind: str, name: str) -> str:
    return f"tenant {tenant}" if kind == "tenant" else f"tenant {tenant}, {kind} {name}"


def _words(limits: JsonObject) -> str:
    return ", ".join(f"{name}={value}" for name, value in limits.items())
