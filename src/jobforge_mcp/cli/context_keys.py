"""``context-key``: the keys that servers sign a tenant's scope with, kept in the database through the admin URL.

Switching signing on without a pause: ``create``, give the key to every server, ``enforce``. Changing the key: ``create``,
give the new one to every server, ``remove`` the old one.
"""

from __future__ import annotations

from typing import Annotated

import typer

from jobforge_mcp.cli.options import Json
from jobforge_mcp.cli.output import say, show
from jobforge_mcp.cli.session import admin_url

KeyId = Annotated[str, typer.Argument(help="Name of the key, as context-key list shows it.")]


def create(json: Json = False) -> None:
    """Make a key, and print it once, alone, on stdout: the value of JOBFORGE_CONTEXT_KEY."""
    from jobforge_mcp.db.context import create_key

    key = create_key(admin_url())
    if json:
        show({"key": key.text(), "keyId": key.key_id}, is_json=True, people=lambda _: None)
        return
    say(f"key {key.key_id}: set it as JOBFORGE_CONTEXT_KEY wherever jobforge serves")
    # Not through rich: a key must not be wrapped.
    print(key.text())


def enforce(json: Json = False) -> None:
    """Refuse scopes that no server signed, from now on."""
    from jobforge_mcp.db.context import enforce_keys

    enforce_keys(admin_url())
    show(
        {"isEnforced": True},
        is_json=json,
        people=lambda console: console.print("scopes must be signed from now on"),
    )


def list_all(json: Json = False) -> None:
    """List the keys by name; the keys themselves cannot be read again."""
    from jobforge_mcp.cli.output import table
    from jobforge_mcp.db.context import list_keys

    keys = list_keys(admin_url())
    show(
        [
            {
                "keyId": key.key_id,
                "isEnforced": key.is_enforced,
                "createdAt": key.created_at.isoformat(),
            }
            for key in keys
        ],
        is_json=json,
        people=lambda console: console.print(
            table(
                ("key", "enforced", "created"),
                [
                    (
                        key.key_id,
                        "yes" if key.is_enforced else "no",
                        key.created_at.isoformat(timespec="seconds"),
                    )
                    for key in keys
                ],
            )
        ),
    )


def remove(
    key_id: KeyId,
    last: Annotated[
        bool, typer.Option("--last", help="Also the last one, which switches signing off.")
    ] = False,
    json: Json = False,
) -> None:
    """Accept a key no more."""
    from jobforge_mcp.db.context import remove_key

    remove_key(admin_url(), key_id, is_last_too=last)
    show(
        {"removed": key_id},
        is_json=json,
        people=lambda console: console.print(f"removed {key_id}", markup=False),
    )
