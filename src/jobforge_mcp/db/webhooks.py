"""The webhooks, in and out, that operators set up, through the admin URL, as `jobforge_mcp.db.limits` sets limits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg.types.json import Jsonb

from jobforge_mcp.db.limits import administering
from jobforge_mcp.errors import InvalidInputError
from jobforge_mcp.redaction import shape_of
from jobforge_mcp.types import JsonObject


@dataclass(frozen=True, slots=True)
class Webhook:
    """One webhook of a tenant."""

    tenant_id: str
    name: str
    project_id: str | None
    config: JsonObject
    set_at: datetime


def set_webhook(
    admin_url: str, tenant: str, name: str, config: JsonObject, project: str | None = None
) -> bool:
    """Set one up, or change the one of this name; say whether it is new.

    Raises:
        InvalidInputError: it could not be delivered as it is written.
        SettingsError: the login may not administer the schema.
    """
    _refuse_values(config)
    with administering(admin_url) as connection:
        row = connection.execute(
            "select jobforge.set_completion_webhook(%s, %s, %s, %s)",
            [tenant, name, Jsonb(config), project],
        ).fetchone()
    return row is not None and row[0] is True


def hear_webhook(
    admin_url: str, tenant: str, name: str, config: JsonObject, project: str | None = None
) -> bool:
    """Set up one that is heard, or change the one of this name; say whether it is new.

    Raises:
        InvalidInputError: the scheme or the secrets cannot be.
        SettingsError: the login may not administer the schema.
    """
    _refuse_values(config)
    with administering(admin_url) as connection:
        row = connection.execute(
            "select jobforge.set_incoming_webhook(%s, %s, %s, %s)",
            [tenant, name, Jsonb(config), project],
        ).fetchone()
    return row is not None and row[0] is True


def list_webhooks(admin_url: str, tenant: str | None = None) -> list[Webhook]:
    """List those of a tenant, or of all: out, then in."""
    with administering(admin_url) as connection:
        rows = connection.execute(
            "select w.tenant_id, w.name, w.project_id, w.config, w.set_at from jobforge.list_webhooks(%s) w",
            [tenant],
        ).fetchall()
    return [Webhook(*row) for row in rows]


def remove_webhook(admin_url: str, tenant: str, name: str) -> bool:
    """Take those of this name away; say whether there was one."""
    with administering(admin_url) as connection:
        row = connection.execute(
            "select jobforge.remove_webhook(%s, %s)", [tenant, name]
        ).fetchone()
    return row is not None and row[0] is True


def _refuse_values(config: JsonObject) -> None:
    """Refuse a secret itself where its name belongs: it would stand in the database for everybody to read."""
    names = config.get("secrets")
    for name in names if isinstance(names, list) else []:
        if isinstance(name, str) and (name.startswith(_OF_SECRETS) or shape_of(name) is not None):
            raise InvalidInputError(
                "a webhook is given the name of a secret, and this looks like a secret itself",
                hint="put it into JOBFORGE_SECRET_<NAME> of the process that needs it, and give NAME here",
            )


_OF_SECRETS = ("whsec_", "whsk_", "secret://")
