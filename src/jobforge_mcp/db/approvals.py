"""Whether a tenant's definitions wait for approval, set by operators through the admin URL."""

from __future__ import annotations

from psycopg import errors

from jobforge_mcp.db.limits import administering
from jobforge_mcp.errors import InvalidInputError


def require_approval(admin_url: str, tenant: str, *, is_required: bool) -> bool:
    """Set whether new versions wait until somebody else than their author approves them; return what held before.

    Raises:
        InvalidInputError: that is no tenant id.
        SettingsError: the login may not administer the schema.
    """
    with administering(admin_url) as connection:
        try:
            row = connection.execute(
                "select jobforge.require_approval(%s, %s)", [tenant, is_required]
            ).fetchone()
        except errors.CheckViolation:
            raise InvalidInputError("a tenant id has 1 to 63 letters, digits or . _ : -") from None
    assert row is not None
    return row[0] is True
