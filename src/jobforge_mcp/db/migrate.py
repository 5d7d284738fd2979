"""Brings a database's schema to this version, from the files of ``sql/``.

Three kinds of file, applied in this order, each once for each content it has:

* ``migrations/NNNN_what.sql``: in a transaction each, unless the first line is ``-- no transaction``. Immutable once
  applied anywhere: a changed one stops the migrator.
* ``functions/*.sql``, then ``policies/*.sql``: what may be replaced. When one of them changed, or a migration was
  applied, all of them are applied again, in the order of their names and in one transaction.

``jobforge.schema_migrations`` says what was applied. Its rows are written in the transaction of what they record, so
that a migrator that dies leaves a database which the next one brings on. Migrators of one database wait for each other;
those of one cluster may meet in the roles they share, and then try again.

No scripts lead back. A database that knows a migration which this version does not know is refused. The connection is
best a direct one: through a pooler in transaction mode all works but files without a transaction.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, LiteralString, TypeAlias

import psycopg
from psycopg import errors

from jobforge_mcp import resources
from jobforge_mcp.db.failures import malformed_url, unreachable
from jobforge_mcp.errors import SchemaError

Connection: TypeAlias = psycopg.Connection[tuple[object, ...]]

# One key for all migrators; transaction and session locks of one key exclude each other.
_LOCK: Final = 5_746_001
_LOCK_SECONDS = 120.0
_LOCK_POLL_SECONDS = 0.05
# A migration that queues behind a long transaction makes every other statement queue behind it.
# Whoever may make objects in a schema of the role's own path could put a function of theirs before one of PostgreSQL's.
_SEARCH_PATH: LiteralString = "search_path to pg_catalog, pg_temp"
_LOCK_TIMEOUT: LiteralString = "set local lock_timeout = '5s'"
_PATIENCE: LiteralString = "select pg_catalog.set_config('deadlock_timeout', '2s', true) where "
"""In a deadlock whoever looks for it first gives way: a worker's statement, which is sent again, not a whole step of ours."""
_IS_ALLOWED_PATIENCE: LiteralString = "pg_catalog.has_parameter_privilege('deadlock_timeout', 'set')"  # since PostgreSQL 15 a right that can be granted
_IS_SUPERUSER: LiteralString = "pg_catalog.current_setting('is_superuser') = 'on'"
_LOCK_EVERYTHING: LiteralString = """\
do $$
declare
  v_relation record;
begin
  for v_relation in
    select c.oid::regclass as name, c.relowner::regrole as owner, c.relkind = 'v' as is_view
    from pg_catalog.pg_class c
    where c.relnamespace = pg_catalog.to_regnamespace('jobforge') and c.relkind in ('r', 'v') and c.relname <> 'schema_migrations'
      and pg_catalog.pg_has_role(c.relowner, 'MEMBER')
    order by c.relname not in ('tenant_logins', 'context_keys'), c.relkind desc,
      pg_catalog.array_position(array['workers', 'pauses', 'lanes', 'leases']::name[], c.relname), c.oid
  loop
    perform pg_catalog.set_config('role', v_relation.owner::text, true);
    if v_relation.is_view then -- lock table would ask whether its owner may lock all that it reads; this changes nothing
      execute pg_catalog.format('alter view %s owner to %s', v_relation.name, v_relation.owner);
    else
      execute pg_catalog.format('lock table %s in access exclusive mode', v_relation.name);
    end if;
  end loop;
  perform pg_catalog.set_config('role', 'none', true);
end $$;
"""
"""Functions and policies touch every view and table, seconds apart: somebody who has the last and waits for the first would
do so until one of the two gives up. All of them at once and first of all are had in a moment or not at all. First come those with
which calls begin, of callers and of workers: who has the first table of a call waits until no such call is under way."""

_TRIES, _POLITE_TRIES = 12, 4
_POLITE_SECONDS, _FIRM_SECONDS = 0.5, 5.0
"""How long a try waits for each of those locks. Below a second nobody is ended by a deadlock; but while a lock is waited for, calls
that hold another one queue behind it, and under load each try may find itself in the same ring. The later ones break it."""
_NO_TRANSACTION = "-- no transaction"
_MIGRATION_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")

# Names and hashes are no secret, but no role of ours needs them: rights are the owner's alone, the policy only lets the
# owner pass the forced row level security that every table of the schema has.
_PREPARE: LiteralString = """\
create schema if not exists jobforge;
create table if not exists jobforge.schema_migrations (
  name text collate "C" not null,
  kind text not null,
  sha256 text not null,
  applied_at timestamptz not null,
  constraint schema_migrations_pkey primary key (name),
  constraint schema_migrations_kind_is_known check (kind in ('migration', 'function', 'policy'))
);
comment on table jobforge.schema_migrations is 'Files of sql/ that were applied, written by the migrator alone.';
comment on column jobforge.schema_migrations.name is 'Path of the file below sql/.';
comment on column jobforge.schema_migrations.sha256 is 'Of the text as applied. A migration''s never changes.';
alter table jobforge.schema_migrations enable row level security, force row level security;
do $$
begin
  if not exists (select from pg_catalog.pg_policy p where p.polrelid = 'jobforge.schema_migrations'::regclass) then
    create policy schema_migrations_owner on jobforge.schema_migrations using (true) with check (true);
  end if;
end $$;
"""

# Whoever may act as the schema's owner may migrate, not only who did it first.
_HAND_OVER: LiteralString = """\
do $$
begin
  if exists (
    select from pg_catalog.pg_namespace n
    join pg_catalog.pg_roles r on r.oid = n.nspowner
    where n.nspname = 'jobforge' and r.rolname = 'jobforge_owner')
  then
    alter table jobforge.schema_migrations owner to jobforge_owner;
  end if;
end $$;
"""


class Kind(StrEnum):
    """What a file holds, and so when it is applied."""

    MIGRATION = "migration"
    FUNCTION = "function"
    POLICY = "policy"


_FOLDERS: Mapping[Kind, str] = {
    Kind.MIGRATION: "migrations",
    Kind.FUNCTION: "functions",
    Kind.POLICY: "policies",
}


@dataclass(frozen=True, slots=True)
class SqlFile:
    """One file of ``sql/``."""

    name: str
    """Its path below ``sql/``, with forward slashes."""
    kind: Kind
    text: str

    @property
    def sha256(self) -> str:
        """Hash of the text; line ends of the platform do not count."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def is_transactional(self) -> bool:
        """Whether it is applied in a transaction. If not it holds one statement, which may be repeated."""
        return self.text.split("\n", 1)[0].strip() != _NO_TRANSACTION


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """What a call of `migrate` did, or would do."""

    applied: tuple[str, ...]
    """Names of the files applied by this call, in order."""
    pending: tuple[str, ...]
    """Names of the files still to be applied; only with ``check`` is there any."""

    @property
    def is_current(self) -> bool:
        """Whether nothing is left to do."""
        return not self.pending


def migrate(url: str, *, check: bool = False, folder: Path | None = None) -> MigrationReport:
    """Apply what this database lacks, or with ``check`` only say what that is.

    Raises:
        SchemaError: a file cannot be applied, was changed after it was applied, or the schema is newer than this version.
        DatabaseUnavailableError: the database cannot be reached.
    """
    files = read_files(folder)
    with _connected(url) as connection:
        if check:
            pending = _pending(files, _published(connection))
            return MigrationReport((), tuple(file.name for file in pending))
        applied: list[str] = []
        while step := _next_step(connection, files):
            if _retried(connection, files, step):
                applied += [file.name for file in step]
        return MigrationReport(tuple(applied), ())


def plan_sql(url: str | None = None, *, folder: Path | None = None) -> str:
    """Write the script for ``psql`` that does what `migrate` would do to this database, or to an empty one."""
    files = read_files(folder)
    if url is None:
        pending = _pending(files, {})
    else:
        with _connected(url) as connection:
            pending = _pending(files, _recorded(connection))
    lines = [
        "-- Run by psql, as a superuser or as a role with createrole that owns the database.",
        "",
    ]
    lines += ["\\set ON_ERROR_STOP on", "set client_min_messages = warning;", ""]
    for step in _steps(pending):
        lines += _step_sql(step)
    return "\n".join(lines)


def read_files(folder: Path | None = None) -> tuple[SqlFile, ...]:
    """Read ``sql/`` in the order of application.

    Raises:
        SchemaError: there are no migrations, or a name or number that is not as it must be.
    """
    folder = folder or resources.sql_folder()
    files = tuple(
        SqlFile(f"{name}/{path.name}", kind, path.read_text(encoding="utf-8"))
        for kind, name in _FOLDERS.items()
        for path in sorted((folder / name).glob("*.sql"), key=lambda path: path.name)
    )
    numbers = [_number(file) for file in files if file.kind is Kind.MIGRATION]
    if not numbers:
        raise SchemaError(
            f"{folder} holds no migrations",
            hint="install jobforge-mcp again, from a wheel or from a complete checkout",
        )
    for number in {number for number in numbers if numbers.count(number) > 1}:
        raise SchemaError(f"two migrations have the number {number}", hint="renumber the newer one")
    return files


def _number(file: SqlFile) -> str:
    found = _MIGRATION_NAME.fullmatch(file.name.removeprefix("migrations/"))
    if found is None:
        raise SchemaError(
            f"{file.name} is not named as a migration is", hint="name it NNNN_what_it_does.sql"
        )
    return found[1]


def _pending(files: Sequence[SqlFile], recorded: Mapping[str, str]) -> list[SqlFile]:
    """Say which files are to be applied, in order; refuse what must not go on."""
    migrations = [file for file in files if file.kind is Kind.MIGRATION]
    known = {file.name for file in migrations}
    unknown = sorted(
        name for name in recorded if name.startswith("migrations/") and name not in known
    )
    if unknown:
        raise SchemaError(
            f"the schema is newer than this version of jobforge-mcp, which does not know {unknown[-1]}",
            hint="update jobforge-mcp; there are no scripts that lead back",
        )
    for file in migrations:
        if recorded.get(file.name, file.sha256) != file.sha256:
            raise SchemaError(
                f"{file.name} was changed after it was applied to this database",
                hint="restore the released file, and write the change as a new migration",
            )
    pending = [file for file in migrations if file.name not in recorded]
    newest = max((name for name in recorded if name in known), default="")
    for file in pending:
        if file.name < newest:
            raise SchemaError(
                f"{file.name} has a lower number than {newest}, which this database already has",
                hint="give the new migration the next free number",
            )
    replaced = [file for file in files if file.kind is not Kind.MIGRATION]
    if pending or any(recorded.get(file.name) != file.sha256 for file in replaced):
        pending += replaced
    return pending


def _steps(pending: Sequence[SqlFile]) -> Iterator[tuple[SqlFile, ...]]:
    """Divide what is pending into what is committed together."""
    for file in pending:
        if file.kind is Kind.MIGRATION:
            yield (file,)
    if replaced := tuple(file for file in pending if file.kind is not Kind.MIGRATION):
        yield replaced


def _next_step(connection: Connection, files: Sequence[SqlFile]) -> tuple[SqlFile, ...]:
    return next(_steps(_pending(files, _recorded(connection))), ())


def _apply(
    connection: Connection, files: Sequence[SqlFile], step: tuple[SqlFile, ...], patience: float
) -> bool:
    """Apply one step under the lock, unless another migrator did so since we looked."""
    if not step[0].is_transactional:
        return _apply_without_transaction(connection, files, step)
    with _locked_transaction(connection):
        if _next_step(connection, files) != step:
            return False
        _be_patient(connection)
        if step[0].kind is not Kind.MIGRATION:
            connection.execute(
                "select pg_catalog.set_config('lock_timeout', %s, true)", [f"{patience:g}s"]
            )
            connection.execute(_LOCK_EVERYTHING)
        connection.execute(_LOCK_TIMEOUT)
        connection.execute(_PREPARE)
        for file in step:
            _run(connection, file)
        _record(connection, step)
    return True


def _apply_without_transaction(
    connection: Connection, files: Sequence[SqlFile], step: tuple[SqlFile, ...]
) -> bool:
    _wait_for(lambda: _took_lock(connection, "select pg_catalog.pg_try_advisory_lock(%s)"))
    try:
        connection.execute(f"set {_SEARCH_PATH}")
        if _next_step(connection, files) != step:
            return False
        _run(connection, step[0])
        with connection.transaction():
            connection.execute(_PREPARE)
            _record(connection, step)
    finally:
        if not connection.closed:
            connection.execute("reset search_path")
            connection.execute("select pg_catalog.pg_advisory_unlock(%s)", [_LOCK])
    return True


@contextmanager
def _locked_transaction(connection: Connection) -> Generator[None]:
    """Open a transaction that holds the lock, committed at the end.

    Waiting happens outside of it: a statement that waits holds a snapshot, for which ``create index concurrently`` of the
    migrator who has the lock would wait in turn.
    """

    def begin() -> bool:
        connection.execute("begin")
        connection.execute(f"set local {_SEARCH_PATH}")
        if _took_lock(connection, "select pg_try_advisory_xact_lock(%s)"):
            return True
        connection.execute("rollback")
        return False

    _wait_for(begin)
    try:
        yield
    except BaseException:
        if not connection.closed:
            connection.execute("rollback")
        raise
    connection.execute("commit")


def _took_lock(connection: Connection, attempt: LiteralString) -> bool:
    row = connection.execute(attempt, [_LOCK]).fetchone()
    return row is not None and row[0] is True


def _wait_for(took_lock: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LOCK_SECONDS
    while not took_lock():
        if time.monotonic() > deadline:
            raise SchemaError(
                f"another migrator has held this database for {_LOCK_SECONDS:.0f} s",
                hint="wait for it, or look for a session with an advisory lock in pg_locks",
                retryable=True,
            )
        time.sleep(_LOCK_POLL_SECONDS)


def _be_patient(connection: Connection) -> None:
    """Look for deadlocks later than whoever is in one with us, if this role may."""
    allowed = _IS_ALLOWED_PATIENCE if connection.info.server_version >= 150_000 else _IS_SUPERUSER
    connection.execute(_PATIENCE + allowed)


def _retried(connection: Connection, files: Sequence[SqlFile], step: tuple[SqlFile, ...]) -> bool:
    """Apply a step, again if it met somebody: each failure left nothing behind."""
    attempt = 1
    while True:
        try:
            patience = _POLITE_SECONDS if attempt <= _POLITE_TRIES else _FIRM_SECONDS
            return _apply(connection, files, step, patience)
        except (psycopg.Error, SchemaError) as error:
            cause = error.__cause__ if isinstance(error, SchemaError) else error
            if not _has_met_somebody(cause):
                raise
            if attempt == _TRIES:
                raise SchemaError(
                    f"other sessions were in the way of {step[0].name} in each of {_TRIES} tries: {_first_line(cause)}",
                    hint="end the longest transactions (pg_stat_activity), or migrate while less is going on",
                    retryable=True,
                ) from cause
        time.sleep(random.uniform(0.05, 0.2) * attempt)
        attempt += 1


def _first_line(error: BaseException | None) -> str:
    return str(error).partition("\n")[0]


def _has_met_somebody(error: BaseException | None) -> bool:
    """Tell whether the failure came of another session: of locks, or of roles that the whole cluster shares."""
    if isinstance(error, errors.UniqueViolation):
        return error.diag.schema_name == "pg_catalog"
    if isinstance(error, errors.InternalError_):
        return "concurrently" in (error.diag.message_primary or "")
    meetings = (errors.LockNotAvailable, errors.DeadlockDetected, errors.DuplicateObject)
    return isinstance(error, meetings)


def _run(connection: Connection, file: SqlFile) -> None:
    try:
        # Bytes without parameters go as one simple query, which may hold many statements.
        connection.execute(file.text.encode())
        connection.execute("reset role")
    except psycopg.OperationalError as error:
        if connection.broken:
            raise
        raise _failure(file, error) from error
    except psycopg.Error as error:
        raise _failure(file, error) from error


def _failure(file: SqlFile, error: psycopg.Error) -> SchemaError:
    said = error.diag.message_primary or str(error)
    position = int(error.diag.statement_position or 0)
    line = file.text.count("\n", 0, position) + 1
    where = f" at line {line}" if position else ""
    hint = error.diag.message_hint
    if isinstance(error, errors.InsufficientPrivilege):
        hint = "migrate as a superuser, or as a role with createrole that owns the database"
    return SchemaError(f"{file.name} cannot be applied{where}: {said}", hint=hint)


def _record(connection: Connection, step: Sequence[SqlFile]) -> None:
    # A migration may pull something away from below a function: forgetting those makes them pending, come what may.
    forgotten = ["function", "policy"]
    connection.execute("reset role")
    connection.execute(
        "delete from jobforge.schema_migrations m where m.kind = any (%s)", [forgotten]
    )
    for file in step:
        connection.execute(
            "insert into jobforge.schema_migrations (name, kind, sha256, applied_at)"
            " values (%s, %s, %s, clock_timestamp())",
            [file.name, file.kind.value, file.sha256],
        )
    connection.execute(_HAND_OVER)


def _step_sql(step: Sequence[SqlFile]) -> Iterator[str]:
    """Write what `_apply_next` does with one step, for ``psql``."""
    begin = f"begin;\nset local {_SEARCH_PATH};\nselect pg_advisory_xact_lock({_LOCK});\n{_LOCK_TIMEOUT};\n{_PREPARE}"
    yield begin if step[0].is_transactional else f"set {_SEARCH_PATH};"
    if step[0].kind is not Kind.MIGRATION:
        yield _LOCK_EVERYTHING
    for file in step:
        yield f"-- {file.name}\n{file.text}"
    if not step[0].is_transactional:
        yield f"reset search_path;\n{begin}"
    yield "reset role;"
    yield "delete from jobforge.schema_migrations m where m.kind in ('function', 'policy');"
    for file in step:
        values = ", ".join(f"'{value}'" for value in (file.name, file.kind.value, file.sha256))
        yield (
            "insert into jobforge.schema_migrations (name, kind, sha256, applied_at)"
            f" values ({values}, clock_timestamp());"
        )
    yield f"{_HAND_OVER}commit;\n"


@contextmanager
def _connected(url: str) -> Generator[Connection]:
    """Connect for as long as the block runs, and tell its failures apart."""
    try:
        connection = psycopg.connect(
            url, autocommit=True, connect_timeout=10, application_name="jobforge migrate"
        )
    except psycopg.OperationalError as error:
        raise unreachable(error) from error
    except psycopg.ProgrammingError as error:
        raise malformed_url() from error
    with connection:
        try:
            yield connection
        except psycopg.OperationalError as error:
            raise unreachable(error) from error
        except psycopg.Error as error:
            said = error.diag.message_primary or str(error)
            raise SchemaError(
                f"the migrator cannot use this database: {said}",
                hint="migrate as a superuser, or as a role with createrole that owns the database",
            ) from error


def _published(connection: Connection) -> dict[str, str]:
    """Read the same as `_recorded` by way of the function that serving roles may call, where there is one."""
    found = connection.execute(
        "select pg_catalog.to_regprocedure('jobforge.applied_files()')"
    ).fetchone()
    if found is None or found[0] is None:
        return _recorded(connection)
    rows = connection.execute("select a.name, a.sha256 from jobforge.applied_files() a")
    return {str(name): str(sha256) for name, sha256 in rows}


def _recorded(connection: Connection) -> dict[str, str]:
    """Read which files were applied, with their hashes."""
    found = connection.execute(
        "select pg_catalog.to_regclass('jobforge.schema_migrations')"
    ).fetchone()
    if found is None or found[0] is None:
        return {}
    rows = connection.execute("select m.name, m.sha256 from jobforge.schema_migrations m")
    return {str(name): str(sha256) for name, sha256 in rows}
