"""Prove that a database keeps what this product promises; change nothing in it.

Each proof acts as the role that serves, on a connection of its own. Where something has to be written to be proven, it is
written in a transaction that is rolled back.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, LiteralString, TypeAlias
from uuid import uuid4

import psycopg
from psycopg import errors, sql
from psycopg.rows import dict_row

from jobforge_mcp.db.context import ContextSigner
from jobforge_mcp.db.failures import malformed_url, unreachable
from jobforge_mcp.db.migrate import migrate
from jobforge_mcp.db.session import CONNECTION_OPTIONS
from jobforge_mcp.errors import JobForgeError

Connection: TypeAlias = psycopg.Connection[dict[str, Any]]

OLDEST_SERVER = 14
SKEW_WARNING_SECONDS = 5.0
"""Tokens are checked by this machine's clock, everything else by the database's."""

LISTEN_SECONDS = 2.0

_ENTER: LiteralString = "select jobforge.enter_scope(%s, 'doctor', null, 'doctor', null, null, %s)"
_ENQUEUE: LiteralString = "select job_id from jobforge.enqueue_job(%s, 'doctor.proof')"
_GET: LiteralString = "select job_id from jobforge.get_run(%s, %s)"
_LIST: LiteralString = """
    select job_id from jobforge.list_runs(%s, 'doctor.proof', null, null, null, null, null, 10)"""


class State(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    """It works, and somebody should know."""
    FAILED = "failed"
    """A promise is not kept until somebody acts."""
    SKIPPED = "skipped"
    """It could not be checked, because something else stands in the way."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked."""

    check: str
    state: State
    message: str
    hint: str | None = None


def examine_role(url: str, role: str) -> list[Finding]:
    """Check that this URL serves as the role, and that the role is bound by row level security."""
    check = f"role {role}"
    with _examined(check) as findings, _connected(url, role) as connection:
        row = _one(
            connection,
            """select current_user::text as name, session_user::text as login, rolsuper, rolbypassrls
               from pg_catalog.pg_roles where rolname = current_user""",
        )
        if row["rolsuper"] or row["rolbypassrls"]:
            hint = "serve as jobforge_api and jobforge_worker"
            findings.append(
                Finding(check, State.FAILED, "it is not bound by row level security", hint)
            )
        else:
            said = f"as {row['login']}" if row["login"] != row["name"] else "directly"
            findings.append(Finding(check, State.OK, f"bound by row level security, {said}"))
    return findings


def examine_schema(admin_url: str) -> list[Finding]:
    """Check that the schema is the one this version was made for."""
    with _examined("migrations") as findings:
        report = migrate(admin_url, check=True)
        findings.append(
            Finding("migrations", State.OK, "current")
            if report.is_current
            else Finding(
                "migrations",
                State.FAILED,
                f"{len(report.pending)} files are to be applied",
                "run: jobforge migrate",
            )
        )
    return findings


def examine_server(url: str) -> list[Finding]:
    """Check version, durability and clock of the server."""
    with _examined("server") as findings, _connected(url, "jobforge_api") as connection:
        before = time.time()
        row = _one(
            connection,
            """select current_setting('server_version_num')::int as number, current_setting('server_version') as version,
                 current_setting('fsync') as fsync, current_setting('full_page_writes') as full_page_writes,
                 current_setting('synchronous_commit') as synchronous_commit, jobforge.now() as now""",
        )
        after = time.time()
        findings.append(_judge_version(row["number"] // 10_000, row["version"]))
        findings.extend(_judge_durability(row))
        findings.append(_judge_clock(row["now"], before, after))
    return findings


def examine_tenants(url: str, signer: ContextSigner | None = None) -> list[Finding]:
    """Prove both ways that a tenant sees its own runs and nobody else's, in a transaction that is rolled back."""
    with _examined("tenants") as findings, _connected(url, "jobforge_api") as connection:
        mark = uuid4().hex[:12]
        mine, other = f"doctor-a-{mark}", f"doctor-b-{mark}"
        with connection.transaction(force_rollback=True):
            connection.execute(_ENTER, _scope(mine, signer))
            run_id = _one(connection, _ENQUEUE, [mine])["job_id"]
            sees_own = [row["job_id"] for row in connection.execute(_LIST, [mine])] == [run_id]
            findings.append(_judge(sees_own, "own run", "a tenant sees the run it enqueued"))
            connection.execute(_ENTER, _scope(other, signer))
            is_hidden = not list(connection.execute(_LIST, [other]))
            is_hidden &= _is_refused(connection, "JF404", _GET, [other, run_id])
            findings.append(
                _judge(is_hidden, "another's run", "another tenant neither lists nor reads it")
            )
            is_refused = _is_refused(connection, "JF403", _LIST, [mine])
            findings.append(
                _judge(is_refused, "another's scope", "a tenant other than the scope's is refused")
            )
            connection.execute("select set_config('jobforge.tenant_id', '', true)")
            is_refused = _is_refused(connection, "JF403", _LIST, [mine])
            findings.append(_judge(is_refused, "no scope", "without a scope nothing is answered"))
            is_denied = _is_refused(connection, "42501", "select from jobforge.jobs")
            findings.append(_judge(is_denied, "tables", "the serving role may read no table"))
    return findings


def examine_signing(url: str, signer: ContextSigner | None = None) -> list[Finding]:
    """Check whether a tenant can be made up in SQL, and whether what this process signs is believed."""
    check = "scope signing"
    with _examined(check) as findings, _connected(url, "jobforge_api") as connection:
        tenant = f"doctor-{uuid4().hex[:12]}"
        is_signed = _one(connection, "select jobforge.is_context_signed() as answer")["answer"]
        with connection.transaction(force_rollback=True):
            connection.execute(_ENTER, _scope(tenant, signer))
            is_believed = not _is_refused(connection, "JF403", _LIST, [tenant])
            connection.execute(_ENTER, _scope(tenant, None))
            is_refused = _is_refused(connection, "JF403", _LIST, [tenant])
        if not is_believed:
            said = "this process has no good JOBFORGE_CONTEXT_KEY, so every call is refused"
            hint = "set the key that jobforge context-key create printed; compare the clocks"
            findings.append(Finding(check, State.FAILED, said, hint))
        elif not is_signed:
            said = "off: SQL that is run as jobforge_api may enter the scope of any tenant"
            hint = "make a key: jobforge context-key create; then: jobforge context-key enforce"
            findings.append(Finding(check, State.WARNING, said, hint))
        else:
            findings.append(_judge_signing(check, is_refused))
    return findings


def examine_notifications(url: str) -> list[Finding]:
    """Check that what is notified arrives, and that no pooler in transaction mode sits between."""
    channel = f"jobforge_doctor_{uuid4().hex}"
    with (
        _examined("notifications") as findings,
        _connected(url, "jobforge_api") as listening,
        _connected(url, "jobforge_api") as speaking,
    ):
        listening.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
        speaking.execute("select pg_notify(%s, '')", [channel])
        is_heard = any(True for _ in listening.notifies(timeout=LISTEN_SECONDS, stop_after=1))
        # What a pooler tells at the start is its own number, not that of the server behind it.
        told = listening.info.backend_pid
        is_direct = _one(listening, "select pg_backend_pid() as pid")["pid"] == told
        if not is_direct:
            findings.append(
                Finding(
                    "pooler",
                    State.OK if is_heard else State.WARNING,
                    "connections pass through a pooler",
                    None if is_heard else "polling takes over; a direct URL makes starts faster",
                )
            )
        findings.append(
            Finding("notifications", State.OK, "what is notified arrives")
            if is_heard
            else Finding(
                "notifications",
                State.WARNING,
                f"a notification did not arrive within {LISTEN_SECONDS:g} s",
                "jobs start up to JOBFORGE_POLL_MS later; use a direct URL or a pooler in session mode",
            )
        )
    return findings


def _judge_version(major: int, version: str) -> Finding:
    if major < OLDEST_SERVER:
        return Finding(
            "server",
            State.FAILED,
            f"PostgreSQL {version} is older than {OLDEST_SERVER}",
            "upgrade the server",
        )
    return Finding("server", State.OK, f"PostgreSQL {version}")


def _judge_durability(row: dict[str, Any]) -> Iterator[Finding]:
    for name in ("fsync", "full_page_writes"):
        if row[name] == "off":
            yield Finding(
                "durability",
                State.FAILED,
                f"{name} is off: a crash of the machine may destroy the database",
                f"set {name} = on and restart the server",
            )
            return
    if row["synchronous_commit"] == "off":
        yield Finding(
            "durability",
            State.WARNING,
            "synchronous_commit is off: a crash may lose jobs that were acknowledged",
            "set synchronous_commit = on",
        )
        return
    yield Finding("durability", State.OK, "what is acknowledged is on disk")


def _judge_clock(theirs: datetime, before: float, after: float) -> Finding:
    at = theirs.astimezone(UTC).timestamp()
    # Within the round trip nobody can tell the difference.
    skew = max(before - at, at - after, 0.0)
    if skew > SKEW_WARNING_SECONDS:
        return Finding(
            "clock",
            State.WARNING,
            f"this machine's clock and the database's differ by {skew:.0f} s",
            "synchronise them; tokens allow for 30 s",
        )
    return Finding("clock", State.OK, f"within {skew:.1f} s of the database's")


def _judge_signing(check: str, is_refused: bool) -> Finding:
    if is_refused:
        return Finding(check, State.OK, "on: a scope that no server signed is refused")
    said = "a scope that nobody signed was let in"
    return Finding(check, State.FAILED, said, "apply the functions again with: jobforge migrate")


def _scope(tenant: str, signer: ContextSigner | None) -> list[Any]:
    """List tenant and signature of the scope that this file enters."""
    signed = signer and signer.sign(tenant, "doctor", None, "doctor", None, None)
    return [tenant, signed]


def _judge(is_kept: bool, check: str, promise: str) -> Finding:
    if is_kept:
        return Finding(f"tenants: {check}", State.OK, promise)
    return Finding(
        f"tenants: {check}",
        State.FAILED,
        f"it does not hold that {promise}",
        "stop serving; apply the policies again with: jobforge migrate",
    )


def _is_refused(
    connection: Connection, sqlstate: str, query: LiteralString, parameters: list[Any] | None = None
) -> bool:
    """Tell whether exactly this refusal comes; the transaction goes on either way."""
    try:
        with connection.transaction():
            connection.execute(query, parameters)
    except errors.Error as error:
        return error.sqlstate == sqlstate
    return False


def _one(
    connection: Connection, query: LiteralString, parameters: list[Any] | None = None
) -> dict[str, Any]:
    row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return row


@contextmanager
def _connected(url: str, role: str) -> Generator[Connection]:
    try:
        connection = psycopg.Connection[dict[str, Any]].connect(
            url, autocommit=True, row_factory=dict_row, prepare_threshold=None, **CONNECTION_OPTIONS
        )
    except psycopg.OperationalError as error:
        raise unreachable(error) from error
    except psycopg.ProgrammingError as error:
        raise malformed_url() from error
    with connection:
        if _one(connection, "select current_user::text as name")["name"] != role:
            connection.execute(sql.SQL("set role {}").format(sql.Identifier(role)))
        yield connection


@contextmanager
def _examined(check: str) -> Generator[list[Finding]]:
    """Collect findings; what stands in the way becomes one more."""
    findings: list[Finding] = []
    try:
        yield findings
    except JobForgeError as error:
        findings.append(Finding(check, State.FAILED, error.message, error.hint))
    except psycopg.Error as error:
        said = error.diag.message_primary or type(error).__name__
        findings.append(Finding(check, State.FAILED, f"the database refused the check: {said}"))
