"""Logins of applications that call the functions by plain SQL: each bound to one tenant, with the rights of some scopes.

The binding is a row that the functions read by the name of who logged in, so such a login enters no scope and can enter no
other. What it may call is decided by its membership in one role for each scope.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import psycopg
from psycopg import errors, sql
from psycopg.rows import TupleRow

from jobforge_mcp.db.context import administering
from jobforge_mcp.errors import ConflictError, InvalidInputError, NotFoundError, SettingsError

ROLES: Final = {
    "jobs:read": "jobforge_jobs_read",
    "jobs:execute": "jobforge_jobs_execute",
    "jobs:cancel": "jobforge_jobs_cancel",
    "jobs:retry": "jobforge_jobs_retry",
    "events:submit": "jobforge_events_submit",
    "events:read": "jobforge_events_read",
    "action:execute": "jobforge_action_execute",
}
"""Scopes that count in SQL, and their roles: those that may call the functions, and one that `enqueue_job` asks about."""

_MEMBER = "jobforge_tenant"
_VIEWS = "jobforge_tenant_views"
_LOGIN = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,62}")


@dataclass(frozen=True, slots=True)
class TenantLogin:
    """A login and what it may do."""

    name: str
    tenant_id: str
    projects: tuple[str, ...] | None
    """Projects it is confined to; ``None`` is every project of the tenant."""
    scopes: tuple[str, ...]
    created_at: datetime | None = None


def create_login(
    admin_url: str,
    name: str,
    tenant_id: str,
    *,
    projects: Sequence[str] | None = None,
    scopes: Collection[str],
) -> str:
    """Make a login that is bound to a tenant, and return its password, which nobody can read again.

    Raises:
        InvalidInputError: a name is malformed, or a scope has no functions in SQL.
        ConflictError: there is a role of this name.
    """
    roles = _roles_of(scopes)
    _check_names(name, tenant_id, projects or ())
    password = secrets.token_urlsafe(24)
    claims = {} if projects is None else {"projects": sorted(set(projects))}
    with administering(admin_url) as connection:
        connection.execute(
            """insert into jobforge.tenant_logins (login_name, tenant_id, claims, created_at, refusals_name)
               values (%s, %s, %s::jsonb, jobforge.now(), %s)
               on conflict (login_name) do nothing""",
            [name, tenant_id, json.dumps(claims), _refusals_name(name)],
        )
        refusals = sql.Identifier("jobforge", _refusals_name(name))
        connection.execute(sql.SQL("create sequence if not exists {}").format(refusals))
        connection.execute("reset role")
        try:
            connection.execute(
                sql.SQL(
                    "create role {} login nosuperuser nobypassrls nocreatedb nocreaterole noreplication inherit password {}"
                ).format(sql.Identifier(name), sql.Literal(_scram(connection, password)))
            )
        except errors.DuplicateObject as error:
            raise ConflictError(
                f"there is a role {name} already",
                hint="choose another name, or remove it with: jobforge login remove",
            ) from error
        # The views know tenants alone: whoever is confined to projects reads by functions.
        views = (_VIEWS,) if projects is None and ROLES["jobs:read"] in roles else ()
        for role in (_MEMBER, *roles, *views):
            connection.execute(
                sql.SQL("grant {} to {}").format(sql.Identifier(role), sql.Identifier(name))
            )
    return password


def list_logins(admin_url: str) -> list[TenantLogin]:
    """List the logins that are bound to a tenant, by name."""
    with administering(admin_url) as connection:
        rows = connection.execute(
            """select l.login_name, l.tenant_id, l.claims, l.created_at,
                 array(select g.rolname::text from pg_catalog.pg_auth_members m
                   join pg_catalog.pg_roles g on g.oid = m.roleid join pg_catalog.pg_roles r on r.oid = m.member
                   where r.rolname = l.login_name)
               from jobforge.tenant_logins l order by l.login_name"""
        ).fetchall()
    return [_to_login(*row) for row in rows]


def remove_login(admin_url: str, name: str) -> None:
    """Remove a bound login. Its open connections may call nothing more.

    Raises:
        NotFoundError: there is none of this name.
    """
    with administering(admin_url) as connection:
        removed = connection.execute(
            "delete from jobforge.tenant_logins l where l.login_name = %s", [name]
        )
        if removed.rowcount == 0:
            raise NotFoundError(
                f"there is no login {name} that is bound to a tenant",
                hint="list them with: jobforge login list",
            )
        refusals = sql.Identifier("jobforge", _refusals_name(name))
        connection.execute(sql.SQL("drop sequence if exists {}").format(refusals))
        connection.execute("reset role")
        try:
            connection.execute(sql.SQL("drop role if exists {}").format(sql.Identifier(name)))
        except errors.DependentObjectsStillExist as error:
            raise SettingsError(
                f"the login {name} owns objects or has rights of its own",
                hint="drop them first, with: drop owned by",
            ) from error


def _refusals_name(login: str) -> str:
    """Name the sequence that counts what a login was refused; a login's own name may be too long to be part of it."""
    return f"refusals_{hashlib.md5(login.encode(), usedforsecurity=False).hexdigest()}"


def _to_login(
    name: str,
    tenant_id: str,
    claims: dict[str, list[str]],
    created_at: datetime,
    members: list[str],
) -> TenantLogin:
    projects = claims.get("projects")
    scopes = tuple(scope for scope, role in ROLES.items() if role in members)
    return TenantLogin(
        name, tenant_id, None if projects is None else tuple(projects), scopes, created_at
    )


def _roles_of(scopes: Collection[str]) -> list[str]:
    unknown = sorted(scope for scope in scopes if scope not in ROLES)
    if unknown or not scopes:
        what = unknown[0] if unknown else "no scope at all"
        raise InvalidInputError(
            f"{what} has no functions that plain SQL could call",
            hint=f"scopes that have: {', '.join(ROLES)}",
        )
    return [role for scope, role in ROLES.items() if scope in scopes]


def _check_names(name: str, tenant_id: str, projects: Sequence[str]) -> None:
    if not _LOGIN.fullmatch(name) or name.startswith(("jobforge_", "pg_")):
        raise InvalidInputError(
            f"{name[:80]!r} cannot be the name of a login",
            hint="1 to 63 lower-case letters, digits and underscores, not beginning with jobforge_ or pg_",
        )
    for what, value in (("tenant", tenant_id), *(("project", project) for project in projects)):
        if not _ID.fullmatch(value):
            raise InvalidInputError(
                f"{value[:80]!r} is no {what} id",
                hint="1 to 63 letters, digits, dots, colons, hyphens or underscores, the first a letter or digit",
            )


def _scram(connection: psycopg.Connection[TupleRow], password: str) -> str:
    """Hash the password here, so that no log of statements holds it."""
    hashed = connection.pgconn.encrypt_password(
        password.encode(), b"ignored-by-scram", b"scram-sha-256"
    )
    return hashed.decode()
