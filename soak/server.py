"""The PostgreSQL of one soak: a cluster of its own over TCP, flushed to disk, that may be stopped, crashed and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg.rows import dict_row

from jobforge_mcp.embedded.binaries import copy_privately, find_binaries, version_of
from jobforge_mcp.embedded.cluster import SUPERUSER, Programs, create_cluster
from jobforge_mcp.embedded.places import can_access, find_account

DATABASE = "jobforge"
START_SECONDS = 60.0
STOP_SECONDS = 60.0

_SETTINGS = {
    "max_connections": "120",
    "shared_buffers": "64MB",
    "log_min_messages": "warning",
    # A black hole must not leave a backend, and with it its locks, for longer than a lease.
    "tcp_user_timeout": "2000",
    "idle_in_transaction_session_timeout": "5000",
    "client_connection_check_interval": "500",
    # Whoever does not wait for the disk is seldom helped to it by others.
    "wal_writer_delay": "10000",
    "wal_level": "replica",
    "max_wal_senders": "4",
}


class Server:
    """One PostgreSQL server on a port of the loopback interface."""

    def __init__(self, folder: Path, template: Path | None = None) -> None:
        """Make the cluster, or copy that of a server that was stopped; `start` runs it."""
        binaries = find_binaries({})
        account = find_account(None)
        if not can_access(account, binaries / "postgres", os.X_OK):
            binaries = copy_privately(binaries, folder / "programs")
        self.port = free_port()
        self._programs = Programs(binaries, version_of(binaries), account)
        self._data = folder / "data"
        self._sockets = folder / "sockets"
        self._log = folder / "postgres.log"
        if template is not None:
            subprocess.run(["cp", "-a", str(template / "data"), str(self._data)], check=True)
        else:
            create_cluster(self._programs, self._data)
            self._admit_everybody()
        self._sockets.mkdir(mode=0o700)
        if account is not None:
            os.chown(self._sockets, account.uid, account.gid)
        self._process: subprocess.Popen[bytes] | None = None
        self._standby: subprocess.Popen[bytes] | None = None
        self._standby_port = 0

    def _admit_everybody(self) -> None:
        rules = self._data / "pg_hba.conf"
        rules.write_text(
            "host all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n"
            + rules.read_text()
        )

    def url(self, role: str = SUPERUSER, *, port: int | None = None) -> str:
        """Name the database for a role, at this port or behind a proxy's."""
        return f"postgresql://{role}@127.0.0.1:{port or self.port}/{DATABASE}"

    def start(self) -> None:
        """Start the server. To be called on the main thread: the server dies with that."""
        self._process = self._start(self._data, self.port)

    def _start(self, data: Path, port: int) -> subprocess.Popen[bytes]:
        arguments = ["-D", str(data), "-k", str(self._sockets), "-h", "127.0.0.1"]
        arguments += ["-p", str(port), *(f"-c{k}={v}" for k, v in _SETTINGS.items())]
        return self._run("postgres", arguments)

    def _run(self, program: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return self._programs.start(
                program,
                arguments,
                stdin=subprocess.DEVNULL,
                output=log.fileno(),
                death_signal=signal.SIGQUIT,
            )

    def start_standby(self) -> None:
        """Copy the server while it works, and let the copy follow; a commit waits for it from then on. On the main thread."""
        standby = self._data.with_name("standby")
        standby.mkdir(mode=0o700)
        if self._programs.account is not None:
            os.chown(standby, self._programs.account.uid, self._programs.account.gid)
        source = f"host=127.0.0.1 port={self.port} user={SUPERUSER}"
        copy = self._run(
            "pg_basebackup", ["-d", source, "-D", str(standby), "-X", "stream", "-R", "-c", "fast"]
        )
        if copy.wait(START_SECONDS) != 0:
            raise RuntimeError(f"no standby could be made:\n{self._log.read_text()[-2000:]}")
        self._standby_port = free_port()
        self._standby = self._start(standby, self._standby_port)
        self.execute("alter system set synchronous_standby_names = '*'")
        self.execute("select pg_reload_conf()")

    def is_standby_in_step(self) -> bool:
        """Whether every commit that is acknowledged from now on is on the standby as well."""
        return bool(self.fetch("select from pg_stat_replication where sync_state = 'sync'"))

    def fail_over(self) -> None:
        """Kill the server and promote its standby, which takes its place here."""
        assert self._standby is not None
        self.stop(signal.SIGKILL)
        self._data, self.port, self._process = (
            self._data.with_name("standby"), self._standby_port, self._standby,
        )  # fmt: skip
        self._standby = None
        self.wait_until_ready()
        self.execute("select pg_promote(true, 60)")

    def wait_until_ready(self) -> bool:
        """Wait until it answers queries; tell if it ended instead, as it does where something of a killed one still lives."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with psycopg.connect(self.url(), connect_timeout=2) as connection:
                    connection.execute("select 1")
                return True
            except psycopg.Error:
                if self._process is not None and self._process.poll() is not None:
                    return False
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"PostgreSQL does not come up:\n{self._log.read_text()[-2000:]}"
                    ) from None
                time.sleep(0.05)

    def tell(self, number: signal.Signals) -> None:
        """Send the server a signal, and do not wait for what comes of it."""
        if self._process is not None:
            self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT in good order, SIGQUIT at once, SIGKILL as a crash of the machine would."""
        process = self._process
        if process is None:
            return
        if self._standby is not None and number is signal.SIGINT:
            self._standby.send_signal(number)  # it would be waited for
        process.send_signal(number)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if number is signal.SIGKILL:
            # Its backends end by themselves once they see that the postmaster is gone. Until the last of them has, a new
            # one refuses to start.
            deadline = time.monotonic() + STOP_SECONDS
            while time.monotonic() < deadline and is_answered(self.port):
                time.sleep(0.05)
        self._process = None

    def fetch(
        self, query: LiteralString, parameters: Sequence[object] = ()
    ) -> list[dict[str, Any]]:
        """Ask as superuser, past the proxy."""
        with psycopg.Connection[dict[str, Any]].connect(
            self.url(), autocommit=True, row_factory=dict_row, connect_timeout=5
        ) as connection:
            return connection.execute(query, parameters).fetchall()

    def execute(self, script: LiteralString) -> None:
        """Run a script as superuser, past the proxy."""
        with psycopg.connect(self.url(), autocommit=True, connect_timeout=5) as connection:
            connection.execute(script)


class Snapshot:
    """What the database held at one moment, however long it is asked."""

    def __init__(self, server: Server) -> None:
        """Begin at the first query."""
        self._connection = psycopg.Connection[dict[str, Any]].connect(
            server.url(),
            row_factory=dict_row,
            connect_timeout=5,
            options="-c idle_in_transaction_session_timeout=0",  # who asks thinks for long
        )
        self._connection.execute("set transaction isolation level repeatable read, read only")

    def fetch(
        self, query: LiteralString, parameters: Sequence[object] = ()
    ) -> list[dict[str, Any]]:
        """Ask as superuser, past the proxy."""
        return self._connection.execute(query, parameters).fetchall()

    def close(self) -> None:
        """Let the moment go."""
        self._connection.close()


def free_port() -> int:
    """Return a port of the loopback interface that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_answered(port: int) -> bool:
    """Tell whether anybody listens at a port of the loopback interface."""
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0
