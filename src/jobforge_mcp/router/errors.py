"""Turns what the database refused into the classes of `jobforge_mcp.errors`, in one function."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import psycopg

from jobforge_mcp.errors import (
    CallerError,
    ConflictError,
    DatabaseUnavailableError,
    InvalidInputError,
    JobForgeError,
    LeaseLostError,
    LimitError,
    NotFoundError,
    PolicyDeniedError,
    SchemaError,
)
from jobforge_mcp.router.limits import limit_error
from jobforge_mcp.types import JobId

# Raised on purpose by functions of ours: their words are for the caller.
_RAISED: dict[str, type[CallerError | LeaseLostError]] = {
    "JF400": InvalidInputError,
    "JF403": PolicyDeniedError,
    "JF404": NotFoundError,
    "JF409": ConflictError,
    "JF410": LeaseLostError,
    "JF413": LimitError,
}
_CODES = {"JF404": "RUN_NOT_FOUND"}
_DETAILS = (
    "TOKEN_REVOKED",
    "TOKEN_USED",
    "TRIGGER_NOT_FOUND",
    "TRIGGERS_CHANGED",
    "JOB_NOT_FOUND",
    "JOB_REMOVED",
    "JOB_QUARANTINED",
    "JOB_IN_USE",
    "NAME_CONFUSABLE",
    "VERSION_TAKEN",
    "APPROVER_IS_AUTHOR",
    "COUNT_CHANGED",
    "SECRET_IN_INPUT",
    "IDEMPOTENCY_KEY_REQUIRED",
)

# Resources used up, server going down or standing by, a statement out of time, a lock not free, input and output.
_PASSING = ("53", "57", "55P03", "25006", "58", "40001", "40P01")
# Undefined function, table, column or schema, and a right that was not granted.
_SCHEMA = ("42883", "42P01", "42703", "3F000", "42501")
# A value that does not fit its type, and an invariant of a table.
_VALUE = ("22", "23514", "23502", "54000")


@contextmanager
def translated() -> Generator[None]:
    """Raise ours instead of psycopg's in this block; what is not known passes untouched."""
    try:
        yield
    except psycopg.Error as error:
        if (ours := translate(error)) is not None:
            raise ours from error
        raise
    except UnicodeEncodeError as error:
        # Not chained: its text would quote the input.
        del error
        raise InvalidInputError(
            "a text holds half of a surrogate pair, which is no character",
            hint="send well-formed Unicode",
        ) from None


def translate(error: psycopg.Error) -> JobForgeError | None:
    """Find the class of an error, or nothing if it means nothing to us."""
    state = error.sqlstate
    if state is None:
        return _of_client(error)
    diagnostics = error.diag
    if state == "JF429":
        return limit_error(diagnostics)
    if (ours := _RAISED.get(state)) is not None:
        return ours(
            diagnostics.message_primary or state,
            code=_code_of(diagnostics.message_detail) or _CODES.get(state),
            hint=diagnostics.message_hint,
        )
    if state.startswith(_PASSING):
        return DatabaseUnavailableError(
            f"the database could not do this now: {diagnostics.message_primary}",
            hint="nothing was changed; try again in a few seconds",
        )
    if state in _SCHEMA:
        return SchemaError(
            f"the database's schema does not fit this version: {diagnostics.message_primary}",
            hint="run `jobforge migrate`",
        )
    if state.startswith(_VALUE):
        # The server's words may quote the value; the constraint's name says what it must be.
        what = diagnostics.constraint_name or "a value does not fit its type"
        return InvalidInputError(f"the database refused a value: {what}", hint="correct the value")
    return None


def _code_of(detail: str | None) -> str | None:
    """Find the code that a function of ours gave a refusal, where its SQLSTATE does not say enough."""
    return detail if detail in _DETAILS else None


def _of_client(error: psycopg.Error) -> JobForgeError | None:
    """Translate what never reached the server."""
    if isinstance(error, psycopg.DataError):
        return InvalidInputError(
            "a text holds a NUL character, or a value cannot be stored",
            hint="remove NUL characters",
        )
    return None


def run_not_found(job_id: JobId) -> NotFoundError:
    """Make the one answer for a run that does not exist, or not for this caller."""
    return NotFoundError(
        f"no run {job_id} is known",
        code="RUN_NOT_FOUND",
        hint="check the runId; list-runs shows the runs you may see",
    )
