"""Says in one place what a failure of the connection means to those above: a class, a sentence, a way out."""

from __future__ import annotations

import psycopg

from jobforge_mcp.errors import DatabaseUnavailableError, OperatorError, SettingsError

# A failure to connect carries no SQLSTATE, only what libpq put together. These cannot pass by themselves; a server with
# messages in another language is told apart no further and counts as unreachable.
_REFUSALS = ("authentication failed", "does not exist", "pg_hba.conf", "is not permitted to log in")


def unreachable(error: Exception) -> OperatorError:
    """Describe why there is no connection. Never repeats the URL, which may hold a password."""
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, psycopg.OperationalError) and "FATAL" in said:
        said = said.rpartition("FATAL:")[2].strip()
        if any(refusal in said for refusal in _REFUSALS):
            return SettingsError(
                f"the database refused the connection: {said}",
                hint="check user, password and database name of the database URL",
            )
    return DatabaseUnavailableError(
        f"the database cannot be reached: {said}",
        hint="check that PostgreSQL runs where the database URL says, then try again",
    )


def malformed_url() -> SettingsError:
    """Describe a URL that libpq does not understand."""
    return SettingsError(
        "the database URL cannot be understood",
        hint="write it as postgresql://user:password@host:5432/database",
    )


def interrupted() -> DatabaseUnavailableError:
    """Describe a connection that was lost after a statement was sent and before its answer came."""
    return DatabaseUnavailableError(
        "the connection to the database was lost before the answer came; the call may have been carried out",
        code="OUTCOME_UNKNOWN",
        hint="look whether it was before repeating it; with an idempotency key it may simply be repeated",
        retryable=False,
    )
