"""``migrate``: bring the schema to this version, or say what that would take."""

from __future__ import annotations

from typing import Annotated

import typer

from jobforge_mcp.cli.options import Json
from jobforge_mcp.cli.output import CALLER_EXIT, say, show
from jobforge_mcp.cli.session import read_settings


def migrate(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit 1 if something is to be done.")
    ] = False,
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the script for psql instead of running it.")
    ] = False,
    json: Json = False,
) -> int:
    """Apply the migrations and functions that the database lacks."""
    from jobforge_mcp.db.installation import open_installation
    from jobforge_mcp.db.migrate import migrate as apply
    from jobforge_mcp.db.migrate import plan_sql

    settings = read_settings()
    if sql:
        # For an empty database where none is named: whoever asks for a script wants to run it elsewhere.
        script = plan_sql(settings.url_for("admin"))
        show({"sql": script}, is_json=True, people=lambda _: None) if json else print(script)
        return 0
    with open_installation(settings, on_progress=say, is_migrated=False) as installation:
        report = apply(installation.admin_url, check=check)
    names = report.pending if check else report.applied
    title = "pending" if check else "applied"
    show(
        {"isCurrent": report.is_current, title: list(names)},
        is_json=json,
        people=lambda console: console.print(
            "\n".join(f"{title} {name}" for name in names) or "the schema is current", markup=False
        ),
    )
    return 0 if report.is_current else CALLER_EXIT
