"""What the database refuses becomes a class of ours by its SQLSTATE alone; what we do not know passes untouched."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from jobforge_mcp.errors import (
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
from jobforge_mcp.router.errors import translated


@pytest.mark.parametrize(
    ("state", "error", "code"),
    [
        ("JF400", InvalidInputError, "INVALID_INPUT"),
        ("JF403", PolicyDeniedError, "POLICY_DENIED"),
        ("JF404", NotFoundError, "RUN_NOT_FOUND"),
        ("JF409", ConflictError, "CONFLICT"),
        ("JF410", LeaseLostError, "LEASE_LOST"),
        ("JF413", LimitError, "LIMIT_EXCEEDED"),
        ("JF429", LimitError, "LIMIT_EXCEEDED"),
    ],
)
def test_an_error_of_ours_keeps_its_words(
    rollback: Callable[[str], psycopg.Connection],
    state: str,
    error: type[JobForgeError],
    code: str,
) -> None:
    with pytest.raises(error) as refused, translated():
        raise_in_database(rollback("jobforge_api"), state)

    assert (refused.value.code, refused.value.message, refused.value.hint) == (
        code,
        "what was said",
        "what to do",
    )


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ("53100", DatabaseUnavailableError),
        ("57014", DatabaseUnavailableError),
        ("55P03", DatabaseUnavailableError),
        ("25006", DatabaseUnavailableError),
        ("42883", SchemaError),
        ("42501", SchemaError),
        ("22P02", InvalidInputError),
        ("23514", InvalidInputError),
    ],
)
def test_an_error_of_postgres_that_somebody_can_act_on_is_told_apart(
    rollback: Callable[[str], psycopg.Connection], state: str, error: type[JobForgeError]
) -> None:
    with pytest.raises(error) as refused, translated():
        raise_in_database(rollback("jobforge_api"), state)

    assert refused.value.retryable is (error is DatabaseUnavailableError)
    if error is InvalidInputError:
        assert "what was said" not in refused.value.message


def test_an_error_we_know_nothing_of_passes_untouched(
    rollback: Callable[[str], psycopg.Connection],
) -> None:
    with pytest.raises(psycopg.errors.InternalError_), translated():
        raise_in_database(rollback("jobforge_api"), "XX000")


def raise_in_database(connection: psycopg.Connection, state: str) -> None:
    connection.execute("select set_config('test.state', %s, true)", [state])
    connection.execute(
        "do $$ begin raise exception 'what was said' using errcode = current_setting('test.state'),"
        " hint = 'what to do'; end $$"
    )
