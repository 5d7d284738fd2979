"""``retention``: for how long ended runs are kept, set through the admin URL."""

from __future__ import annotations

from typing import Annotated

import typer

from jobforge_mcp.cli.options import Json
from jobforge_mcp.cli.output import show
from jobforge_mcp.cli.session import admin_url


def set_(
    days: Annotated[int, typer.Argument(help="Days after the end of a run: 30 to 36500.")],
    tenant: Annotated[str, typer.Option("--tenant", help="Whose runs.")] = "local",
    json: Json = False,
) -> None:
    """Set for how long the runs of a tenant are kept after their end; without it, 90 days."""
    from jobforge_mcp.db.limits import set_retention

    kept = set_retention(admin_url(), tenant, days)
    show(
        {"tenant": tenant, "retainDays": kept},
        is_json=json,
        people=lambda console: console.print(
            f"{tenant}: runs are kept for {kept} days after their end", markup=False
        ),
    )


def list_(json: Json = False) -> None:
    """Show for how long the runs of each tenant are kept."""
    from jobforge_mcp.cli.output import table
    from jobforge_mcp.db.limits import list_retention

    kept = list_retention(admin_url())
    show(
        [{"tenant": tenant, "retainDays": days} for tenant, days in kept.items()],
        is_json=json,
        people=lambda console: console.print(
            table(("tenant", "days"), [(tenant, str(days)) for tenant, days in kept.items()])
        ),
    )
