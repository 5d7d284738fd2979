"""What every connection of ours has in common: how it is made, what it is set to, and which role it refuses to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, LiteralString

from jobforge_mcp.errors import OperatorError, SchemaError, SettingsError

# A silent network must not hold a caller for the kernel's two hours: three probes after ten seconds, and what was sent
# must be acknowledged within ten.
CONNECTION_OPTIONS: Final[dict[str, Any]] = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

PROCESS: LiteralString = "select pg_catalog.pg_backend_pid()"

CURRENT_USER: LiteralString = (
    "select current_user::text as name, pg_catalog.pg_backend_pid() as pid"
)

# Sent once for each connection. Times are read in UTC whatever the server's zone is. The second parameter keeps the
# settings to this statement: behind a pooler they would stay with a connection that belongs to everybody.
CONFIGURE: LiteralString = """
    select r.rolsuper or r.rolbypassrls as is_unbound, pg_catalog.to_regnamespace('jobforge') is not null as has_schema,
      pg_catalog.set_config('statement_timeout', p.timeout, p.is_pooled),
      pg_catalog.set_config('timezone', 'UTC', p.is_pooled),
      pg_catalog.set_config('idle_in_transaction_session_timeout', '60s', p.is_pooled)
    from pg_catalog.pg_roles r, (select %s::text as timeout, %s::boolean as is_pooled) p
    where r.rolname = current_user"""


def is_pooled(told_pid: int, row: Mapping[str, Any] | None) -> bool:
    """Tell whether a pooler is between: at the start it tells a number of its own, not that of the server behind it.

    Such a connection is another one after each transaction, so nothing may be left on it: no setting, no role, no prepared
    statement.
    """
    return row is not None and row["pid"] != told_pid


def statement_timeout(seconds: float) -> str:
    """Write a time as the setting wants it."""
    return f"{round(seconds * 1000)}ms"


def refusal(role: str, configured: Mapping[str, Any] | None) -> OperatorError | None:
    """Judge what ``CONFIGURE`` answered; nothing if the connection may be used."""
    if configured is None or configured["is_unbound"]:
        return SettingsError(
            f"the role {role} is a superuser or bypasses row level security, so tenants would see each other",
            hint="serve as jobforge_api and jobforge_worker, which `jobforge migrate` makes",
        )
    if not configured["has_schema"]:
        return SchemaError("the database has no schema jobforge", hint="run `jobforge migrate`")
    return None


def needs_own_login(role: str, user: object) -> SettingsError:
    """Describe a login that would have to become the role on a connection that it shares."""
    return SettingsError(
        f"through a pooler the login {user} cannot act as {role}: the role would stay with whoever comes next",
        hint=f"log in as {role} in the URL that goes through the pooler",
    )


def cannot_become(role: str, user: object) -> SettingsError:
    """Describe a login that may not act as the role, or a role that does not exist."""
    return SettingsError(
        f"the database's user {user} cannot act as {role}",
        hint=f"log in as {role} or as a member of it; `jobforge migrate` makes the role",
    )
