"""The keeper: the one process per state directory that is the parent of PostgreSQL.

It is started with the keeper's lock already held for it, creates the cluster if need be, starts the server, restarts it
when it dies, and stops it when nobody has used it for a while. It runs apart from whoever started it, so a killed client
takes nothing with it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from jobforge_mcp.embedded import locks
from jobforge_mcp.embedded.binaries import copy_privately
from jobforge_mcp.embedded.cluster import Programs, create_cluster
from jobforge_mcp.embedded.places import can_access, find_account, socket_directory
from jobforge_mcp.embedded.processes import end_orphans, read_pid_file, stop_child
from jobforge_mcp.errors import OperatorError

READY_SECONDS = 600.0
"""How long recovery after a crash may take: generous, because giving up helps nobody while it goes on."""

_READY_POLL_SECONDS = 0.005
_LONGEST_LOOK_SECONDS = 0.5
_SHORTEST_LOOK_SECONDS = 0.02
# Backends of a killed postmaster hold its shared memory until they notice, within a second: the first restarts may fail.
_RESTARTS = 20
_RESTART_PAUSE_SECONDS = 0.25
_RESTARTS_FORGOTTEN_SECONDS = 60.0
_LOGS_KEPT = 3

_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "port": "5432",
    "cluster_name": "jobforge",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Rows and statements hold what callers sent, which belongs in no log.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "log_checkpoints": "off",
    "fsync": "on",
    # Five processes instead of nine: nothing replicates from here, and a laptop's reads come from its cache.
    "max_logical_replication_workers": "0",
}


@dataclass(frozen=True, slots=True)
class KeeperOptions:
    """What the one who starts the keeper tells it."""

    state_dir: str
    binaries: str
    version: str
    account: str | None
    linger_seconds: float
    token: str
    environment: dict[str, str] = field(default_factory=dict[str, str])
    """The few variables that say where sockets may be; all others are withheld."""

    def to_json(self) -> str:
        """Write them as the keeper's one argument."""
        return json.dumps(asdict(self))


def main(arguments: list[str]) -> int:
    """Run the keeper with its options as JSON; the keeper's lock is an open file of this process."""
    options = KeeperOptions(**json.loads(arguments[0]))
    # Leave the starter's family, so that it need not wait for us, and a signal to it is not one to us.
    if os.fork():
        return 0
    os.umask(0o077)
    state_dir = Path(options.state_dir)
    try:
        Keeper(options).run()
    except OperatorError as error:
        _log(f"gave up: {error.message}")
        locks.write_failure(state_dir, locks.Failure(options.token, error.message, error.hint))
        return 1
    except Exception as error:  # noqa: BLE001 - the last word goes to whoever waits for the server
        _log(traceback.format_exc())
        message = f"the keeper of the embedded PostgreSQL failed: {error!r}"
        hint = f"see {state_dir / 'keeper.log'}"
        locks.write_failure(state_dir, locks.Failure(options.token, message, hint))
        return 1
    return 0


class Keeper:
    """One life of the keeper."""

    def __init__(self, options: KeeperOptions) -> None:
        self._options = options
        self._state_dir = Path(options.state_dir)
        self._users = locks.open_lock(self._state_dir / locks.USERS_LOCK)
        self._published: int | None = None
        self._stopping = False

    def run(self) -> None:
        """Keep the server until nobody needs it, or until told to stop."""
        wakeup = self._take_signals()
        programs = self._programs()
        data_dir = self._state_dir / f"pg{programs.major}"
        if not data_dir.exists():
            create_cluster(programs, data_dir)
            _log(f"created a cluster of PostgreSQL {programs.version}")
        sockets = socket_directory(self._state_dir, programs.account, self._options.environment)
        end_orphans(data_dir)
        log = _rotated(self._state_dir / "postgres.log")
        server = Server(programs, data_dir, sockets, log)
        try:
            server.start()
            self._publish(server)
            self._watch(server, wakeup)
        finally:
            self._unpublish()
            server.stop()
            if not sockets.is_relative_to(self._state_dir):
                _remove_if_empty(sockets)
            _log("stopped PostgreSQL")

    def _take_signals(self) -> int:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        # Handled, not ignored: what is ignored stays so in the programs that are started.
        for number in (signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, lambda _number, _frame: None)
        return reader

    def _on_stop(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def _programs(self) -> Programs:
        account = find_account(self._options.account)
        folder = Path(self._options.binaries)
        if account and not can_access(account, self._state_dir, os.X_OK):
            raise OperatorError(
                f"PostgreSQL has to run as the account {account.name}, which cannot enter {self._state_dir}",
                hint="let it pass through every folder on the way (chmod o+x), or set JOBFORGE_STATE_DIR to a directory"
                " such as /var/lib/jobforge",
            )
        if not can_access(account, folder / "postgres", os.R_OK | os.X_OK):
            folder = copy_privately(folder, self._state_dir / "binaries")
        return Programs(folder, self._options.version, account)

    def _watch(self, server: Server, wakeup: int) -> None:
        linger = self._options.linger_seconds
        look_seconds = min(max(linger / 5, _SHORTEST_LOOK_SECONDS), _LONGEST_LOOK_SECONDS)
        idle_since = time.monotonic()
        last_touch = self._last_touch()
        restarts: list[float] = []
        while not self._stopping:
            select.select([wakeup], [], [], look_seconds)
            _drain(wakeup)
            if not server.is_running():
                self._unpublish()
                self._restart(server, restarts)
                self._publish(server)
            if not locks.try_lock(self._users, exclusive=True):
                idle_since = time.monotonic()
                continue
            # Newcomers wait from here on, so the lock is either given back at once or kept to the end.
            touched, last_touch = last_touch, self._last_touch()
            if touched != last_touch:
                idle_since = time.monotonic()
            if time.monotonic() - idle_since >= linger:
                return
            locks.unlock(self._users)

    def _restart(self, server: Server, restarts: list[float]) -> None:
        _log(f"PostgreSQL ended with code {server.exit_code()}; starting it again")
        while True:
            now = time.monotonic()
            restarts[:] = [when for when in restarts if now - when < _RESTARTS_FORGOTTEN_SECONDS]
            if len(restarts) >= _RESTARTS:
                raise OperatorError(
                    f"PostgreSQL died {_RESTARTS} times within {_RESTARTS_FORGOTTEN_SECONDS:.0f} s",
                    hint=f"see {self._state_dir / 'postgres.log'}",
                )
            restarts.append(now)
            try:
                end_orphans(server.data_dir)
                server.start()
            except OperatorError as error:
                _log(error.message)
                time.sleep(_RESTART_PAUSE_SECONDS)
            else:
                return

    def _last_touch(self) -> int:
        """Give the time of the last coming or going of a user, which may fall between two looks."""
        return os.fstat(self._users).st_mtime_ns

    def _publish(self, server: Server) -> None:
        running = locks.Running(
            keeper_pid=os.getpid(),
            postmaster_pid=server.pid,
            version=self._options.version,
            data_dir=str(server.data_dir),
            socket_dir=str(server.socket_dir),
        )
        self._published = locks.publish(self._state_dir, running)

    def _unpublish(self) -> None:
        if self._published is not None:
            os.close(self._published)
            self._published = None


class Server:
    """The postmaster as the keeper's child."""

    def __init__(self, programs: Programs, data_dir: Path, socket_dir: Path, log: Path) -> None:
        self.data_dir = data_dir
        self.socket_dir = socket_dir
        self._programs = programs
        self._log = log
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The postmaster's number."""
        return self._child.pid if self._child else 0

    def start(self) -> None:
        """Start it and wait until it takes connections, through recovery if it crashed before.

        Raises:
            OperatorError: it ended instead; the message ends with the last lines of its log.
        """
        settings = _SETTINGS | {"unix_socket_directories": _quoted(self.socket_dir)}
        if self._programs.major >= 18:
            settings["io_method"] = "sync"
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._child = self._programs.start(
                "postgres",
                ["-D", str(self.data_dir), *options],
                stdin=subprocess.DEVNULL,
                output=log,
                death_signal=signal.SIGINT,
            )
        finally:
            os.close(log)
        self._wait_until_ready(self._child)

    def is_running(self) -> bool:
        """Tell whether the postmaster lives; reaps it if it does not."""
        return self._child is not None and self._child.poll() is None

    def exit_code(self) -> int | None:
        """Give how the postmaster ended: negative for a signal."""
        return self._child.returncode if self._child else None

    def stop(self) -> None:
        """Stop it, waiting for its last checkpoint."""
        if self._child:
            stop_child(self._child)

    def _wait_until_ready(self, child: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if child.poll() is not None:
                raise OperatorError(
                    f"PostgreSQL {self._programs.version} did not start: {self._last_lines()}",
                    hint=f"see {self._log}",
                )
            found = read_pid_file(self.data_dir)
            # An older file may say ready too: only the child's own counts.
            if found is not None and found.pid == child.pid and found.status == "ready":
                return
            time.sleep(_READY_POLL_SECONDS)
        raise OperatorError(
            f"PostgreSQL {self._programs.version} is still not ready after {READY_SECONDS:.0f} s",
            hint=f"see {self._log}",
        )

    def _last_lines(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return " / ".join(lines[-5:])


def _quoted(directory: Path) -> str:
    """Write a path as one element of a setting that is a list."""
    return '"' + str(directory).replace('"', '""') + '"'


def _rotated(log: Path) -> Path:
    """Put the earlier logs aside, and return where the new one goes."""
    for number in range(_LOGS_KEPT - 1, -1, -1):
        older = log.with_name(f"{log.name}.{number}") if number else log
        if older.exists():
            older.rename(log.with_name(f"{log.name}.{number + 1}"))
    return log


def _remove_if_empty(directory: Path) -> None:
    with suppress(OSError):
        directory.rmdir()


def _drain(reader: int) -> None:
    with suppress(BlockingIOError):
        while os.read(reader, 4096):
            pass


def _log(text: str) -> None:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    sys.stderr.write(f"{stamp} keeper {os.getpid()}: {text}\n")
    sys.stderr.flush()
