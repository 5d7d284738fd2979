"""``login``: logins for applications that call the functions by plain SQL, each bound to one tenant."""

from __future__ import annotations

from typing import Annotated

import typer

from jobforge_mcp.cli.options import Json
from jobforge_mcp.cli.output import say, show
from jobforge_mcp.cli.session import admin_url, read_settings
from jobforge_mcp.errors import InvalidInputError
from jobforge_mcp.policy.scopes import Scope, expand_scopes

Name = Annotated[str, typer.Argument(help="Name of the login.")]


def create(
    name: Name,
    tenant: Annotated[str, typer.Option("--tenant", help="Tenant it is bound to.")],
    project: Annotated[
        list[str] | None, typer.Option("--project", help="Confine it to a project; repeatable.")
    ] = None,
    scope: Annotated[
        list[Scope] | None, typer.Option("--scope", help="What it may do; repeatable.")
    ] = None,
    json: Json = False,
) -> None:
    """Make a login bound to one tenant, and print its password once, alone, on stdout."""
    from jobforge_mcp.db.logins import ROLES, create_login
    from jobforge_mcp.definitions.features import EVENTS
    from jobforge_mcp.policy.gate import LOCAL_CALLER

    if not scope:
        raise InvalidInputError(
            "a login without scopes could do nothing",
            hint="name what it is for: --scope jobs:execute",
        )
    if lacking := sorted(set(scope) - ROLES.keys()):
        raise InvalidInputError(
            f"{lacking[0]} has no functions that plain SQL could call",
            hint=f"scopes that have: {', '.join(ROLES)}",
        )
    scopes = sorted(expand_scopes(scope) & ROLES.keys())
    if any(name.startswith("events:") for name in scopes):
        EVENTS.require(read_settings(), LOCAL_CALLER, "events")
    password = create_login(admin_url(), name, tenant, projects=project or None, scopes=scopes)
    if json:
        show({"login": name, "password": password}, is_json=True, people=lambda _: None)
        return
    say(f"login {name} acts for tenant {tenant}; its password is shown once:")
    # Not through rich: a password must not be wrapped.
    print(password)


def list_all(json: Json = False) -> None:
    """List the logins that are bound to a tenant."""
    from jobforge_mcp.cli.output import table
    from jobforge_mcp.db.logins import list_logins

    logins = list_logins(admin_url())
    show(
        [
            {
                "login": login.name,
                "tenant": login.tenant_id,
                "projects": None if login.projects is None else [*login.projects],
                "scopes": [*login.scopes],
            }
            for login in logins
        ],
        is_json=json,
        people=lambda console: console.print(
            table(
                ("login", "tenant", "projects", "scopes"),
                [
                    (
                        login.name,
                        login.tenant_id,
                        "all" if login.projects is None else ", ".join(login.projects),
                        ", ".join(login.scopes),
                    )
                    for login in logins
                ],
            )
        ),
    )


def remove(name: Name, json: Json = False) -> None:
    """Remove such a login."""
    from jobforge_mcp.db.logins import remove_login

    remove_login(admin_url(), name)
    show(
        {"removed": name},
        is_json=json,
        people=lambda console: console.print(f"removed {name}", markup=False),
    )
