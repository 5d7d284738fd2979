"""The limits that operators set, through the admin URL: as the owner of the schema, which no server's login is."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, TypeAlias

import psycopg
from psycopg import errors
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from jobforge_mcp.db.failures import malformed_url, unreachable
from jobforge_mcp.db.session import CONNECTION_OPTIONS
from jobforge_mcp.errors import InvalidInputError, SchemaError, SettingsError
from jobforge_mcp.types import JsonObject

Kind: TypeAlias = Literal["tenant", "type", "tool"]
"""What a limit is set for: a tenant as a whole, or one of its job types or tools."""

_RULES: Final = {
    "tenants_id_is_well_formed": "a tenant id has 1 to 63 letters, digits or . _ : -",
    "rate_limits_tenant_is_well_formed": "a tenant id has 1 to 63 letters, digits or . _ : -",
    "rate_limits_name_fits": "a job type or tool has a name of at most 200 bytes, a tenant none",
    "rate_limits_rate_in_range": "a rate is more than 0 and at most 1,000,000 a second",
    "rate_limits_burst_in_range": "a burst is 1 to 1,000,000 and needs a rate",
    "rate_limits_counts_in_range": "a count is not negative, a queue at most 1,000,000, a depth at most 1,000",
    "rate_limits_priority_in_range": "a priority is 0 to 3",
    "rate_limits_budgets_in_range": "a budget is not negative, a period 1 s to 366 days",
    "rate_limits_cost_in_range": "a cost is 0 to 1,000,000, and is set for a job type",
}


@dataclass(frozen=True, slots=True)
class LimitRecord:
    """Limits of one tenant, job type or tool, and what was used of their budgets."""

    tenant_id: str
    kind: str
    name: str
    """Job type or tool; empty for the tenant as a whole."""
    limits: JsonObject
    used: JsonObject
    set_at: datetime


def set_limit(
    admin_url: str, tenant: str, kind: Kind, name: str, limits: Mapping[str, float | None]
) -> JsonObject:
    """Set these limits and return all that hold now; those not named stay, ``None`` takes one away.

    Raises:
        InvalidInputError: a limit is unknown or has a value that it cannot have.
        SettingsError: the login may not administer the schema.
    """
    with administering(admin_url) as connection:
        row = connection.execute(
            "select jobforge.set_limit(%s, %s, %s, %s)", [tenant, kind, name, Jsonb(dict(limits))]
        ).fetchone()
    assert row is not None
    return row[0]


def remove_limit(admin_url: str, tenant: str, kind: Kind, name: str) -> bool:
    """Take all limits of this one away, with what was used of them; say whether there were any."""
    with administering(admin_url) as connection:
        row = connection.execute(
            "select jobforge.remove_limit(%s, %s, %s)", [tenant, kind, name]
        ).fetchone()
    return row is not None and row[0] is True


def list_limits(admin_url: str, tenant: str | None = None) -> list[LimitRecord]:
    """List the limits of a tenant, or of all."""
    with administering(admin_url) as connection:
        rows = connection.execute(
            "select l.tenant_id, l.kind, l.name, l.limits, l.used, l.set_at from jobforge.list_limits(%s) l",
            [tenant],
        ).fetchall()
    return [LimitRecord(*row) for row in rows]


def set_retention(admin_url: str, tenant: str, days: int) -> int:
    """Set for how many days after their end a tenant's runs are kept."""
    with administering(admin_url) as connection:
        row = connection.execute(
            "select jobforge.set_retention(%s, %s::integer)", [tenant, days]
        ).fetchone()
    assert row is not None
    return row[0]


def list_retention(admin_url: str) -> dict[str, int]:
    """Tell for how many days each tenant's runs are kept."""
    with administering(admin_url) as connection:
        rows = connection.execute(
            "select r.tenant_id, r.retain_days from jobforge.list_retention() r"
        ).fetchall()
    return dict(rows)


@contextmanager
def administering(admin_url: str) -> Generator[psycopg.Connection[TupleRow]]:
    """Act as the owner of the schema, in one transaction."""
    try:
        connection = psycopg.connect(admin_url, prepare_threshold=None, **CONNECTION_OPTIONS)
    except psycopg.OperationalError as error:
        raise unreachable(error) from error
    except psycopg.ProgrammingError as error:
        raise malformed_url() from error
    with connection:
        try:
            connection.execute("set local role jobforge_owner")
            # for the audit log: who it was that the database let in
            connection.execute(
                "select set_config('jobforge.actor', 'login:' || session_user, true)"
            )
            yield connection
        except errors.CheckViolation as error:
            rule = _RULES.get(error.diag.constraint_name or "", "the value cannot be")
            raise InvalidInputError(f"the limit cannot be set: {rule}") from error
        except errors.DataError as error:
            raise InvalidInputError("a limit is a number that the database can hold") from error
        except (errors.UndefinedTable, errors.UndefinedFunction, errors.InvalidSchemaName) as error:
            raise SchemaError(
                "the schema of this database is older than this command",
                hint="run: jobforge migrate",
            ) from error
        except (errors.InsufficientPrivilege, errors.InvalidParameterValue) as error:
            raise SettingsError(
                "this login may not administer the schema jobforge",
                hint="set JOBFORGE_ADMIN_DATABASE_URL to the login that migrates",
            ) from error
        except psycopg.OperationalError as error:
            raise unreachable(error) from error
        except psycopg.Error as error:
            if error.sqlstate == "JF400":
                said = error.diag.message_primary or "the limit cannot be set"
                raise InvalidInputError(said, hint=error.diag.message_hint) from error
            raise
