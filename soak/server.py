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
}


class Server:
    """One PostgreSQL server on a port of the loopback interface."""

    def __init__(self, folder: Path) -> None:
        """Make the cluster; `start` runs it."""
        binaries = find_binaries({})
        account = find_account(None)
        if not can_access(account, binaries / "postgres", os.X_OK):
            binaries = copy_privately(binaries, folder / "programs")
        self.port = free_port()
        self._programs = Programs(binaries, version_of(binaries), account)
        self._data = folder / "data"
        self._sockets = folder / "sockets"
        self._log = folder / "postgres.log"
        create_cluster(self._programs, self._data)
        rules = self._data / "pg_hba.conf"
        rules.write_text(f"host all all 127.0.0.1/32 trust\n{rules.read_text()}")
        self._sockets.mkdir(mode=0o700)
        if account is not None:
            os.chown(self._sockets, account.uid, account.gid)
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, role: str = SUPERUSER, *, port: int | None = None) -> str:
        """Name the database for a role, at this port or behind a proxy's."""
        return f"postgresql://{role}@127.0.0.1:{port or self.port}/{DATABASE}"

    def start(self) -> None:
        """Start the server and wait until it answers. To be called on the main thread: the server dies with that."""
        arguments = ["-D", str(self._data), "-k", str(self._sockets), "-h", "127.0.0.1"]
        arguments += ["-p", str(self.port), *(f"-c{k}={v}" for k, v in _SETTINGS.items())]
        with self._log.open("ab") as log:
            self._process = self._programs.start(
                "postgres",
                arguments,
                stdin=subprocess.DEVNULL,
                output=log.fileno(),
                death_signal=signal.SIGQUIT,
            )

    def wait_until_ready(self) -> None:
        """Wait until it answers queries."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with psycopg.connect(self.url(), connect_timeout=2) as connection:
                    connection.execute("select 1")
                return
            except psycopg.Error:
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"PostgreSQL does not come up:\n{self._log.read_text()[-2000:]}"
                    ) from None
                time.sleep(0.05)

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT in good order, SIGQUIT at once, SIGKILL as a crash of the machine would."""
        process = self._process
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if number is signal.SIGKILL:
            # Its backends end by themselves once they see that the postmaster is gone; a new one must not be raced.
            deadline = time.monotonic() + STOP_SECONDS
            while time.monotonic() < deadline and _answers(self.port):
                time.sleep(0.05)
            time.sleep(0.3)
            (self._data / "postmaster.pid").unlink(missing_ok=True)
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


def free_port() -> int:
    """Return a port of the loopback interface that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0
