"""What a process does that needs the embedded server: have it started, hold on to it, look at it, stop it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

from jobforge_mcp.embedded import locks
from jobforge_mcp.embedded.binaries import find_binaries, major_of, version_of
from jobforge_mcp.embedded.keeper import READY_SECONDS, KeeperOptions
from jobforge_mcp.embedded.places import prepare_state_directory
from jobforge_mcp.embedded.processes import (
    end_orphans,
    is_postmaster_of,
    read_pid_file,
    signal_checked,
)
from jobforge_mcp.errors import OperatorError

DEFAULT_LINGER_SECONDS = 10.0
"""How long the server outlives its last user: long enough that one command after another finds it warm."""

_POLL_SECONDS = 0.005
_PATIENCE_SECONDS = 5.0
_STOP_SECONDS = 60.0
# Again, because a keeper may be killed while it is waited for; more often would hide a fault.
_STARTS = 3
_LOG_LIMIT_BYTES = 256 * 1024
_PASSED_ON = ("XDG_RUNTIME_DIR", "TMPDIR")


@dataclass(frozen=True, slots=True)
class Status:
    """What can be seen of the embedded server without starting it."""

    state: Literal["stopped", "starting", "running", "orphaned"]
    """``orphaned``: PostgreSQL runs and its keeper was killed; the next user's keeper will replace it."""
    running: locks.Running | None
    """Where it is, when it is running."""
    has_users: bool


class Cluster:
    """A user's hold on the running server; the server stays at least until it is closed, or until its process ends."""

    def __init__(
        self, state_dir: Path, hold: int, running: locks.Running, start: Callable[[], locks.Running]
    ) -> None:
        self.state_dir = state_dir
        self._hold: int | None = hold
        self._running = running
        self._start = start

    @property
    def version(self) -> str:
        """The server's version, such as ``18.6``."""
        return self._running.version

    @property
    def data_dir(self) -> Path:
        """The data directory; only PostgreSQL's own account may look inside."""
        return Path(self._running.data_dir)

    @property
    def socket_dir(self) -> Path:
        """The folder of the server's socket."""
        return Path(self._running.socket_dir)

    @property
    def keeper_pid(self) -> int:
        """The keeper's number, when last looked at."""
        return self._running.keeper_pid

    @property
    def postmaster_pid(self) -> int:
        """The postmaster's number, when last looked at."""
        return self._running.postmaster_pid

    def url(self, role: str = "jobforge_api", database: str = "jobforge") -> str:
        """Give the URL for libpq to connect as this role."""
        # The port is named because libpq would else take PGPORT from the environment.
        return f"postgresql://{quote(role, safe='')}@/{quote(database, safe='')}?host={quote(str(self.socket_dir), safe='')}&port=5432"

    def ensure_alive(self) -> None:
        """Have the server started again if its keeper was killed; costs microseconds when it was not.

        For a process that lives long: to be called when connections fail. The URL stays the same.

        Raises:
            OperatorError: it cannot be started.
        """
        self._running = self._start()

    def close(self) -> None:
        """Let go: the server stops when nobody has used it for its linger time."""
        if self._hold is not None:
            os.utime(self._hold)
            os.close(self._hold)
            self._hold = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def ensure_running(
    state_dir: Path,
    *,
    linger_seconds: float = DEFAULT_LINGER_SECONDS,
    on_progress: Callable[[str], None] | None = None,
    binaries: Path | None = None,
    account: str | None = None,
) -> Cluster:
    """Have the server of this state directory running, and hold on to it.

    The one who happens to start the keeper decides on ``linger_seconds``, ``binaries`` (default: those that are found)
    and ``account`` (default: ``JOBFORGE_PGUSER_OS``; for root only). ``on_progress`` gets a sentence when this takes a
    while.

    Raises:
        OperatorError: it cannot be started; the hint says what to do.
    """
    state_dir = prepare_state_directory(state_dir)
    wishes = _Wishes(
        state_dir=state_dir,
        linger_seconds=linger_seconds,
        on_progress=on_progress or _say_nothing,
        binaries=binaries,
        account=account or os.environ.get("JOBFORGE_PGUSER_OS") or None,
    )
    hold = locks.open_lock(state_dir / locks.USERS_LOCK)
    try:
        # Exclusive while a keeper is stopping the server: then its end is waited for, not raced.
        if not locks.lock_before(hold, time.monotonic() + _STOP_SECONDS, exclusive=False):
            raise OperatorError(
                f"the embedded PostgreSQL in {state_dir} has been stopping for {_STOP_SECONDS:.0f} s",
                hint=f"see {state_dir / 'postgres.log'}",
            )
        os.utime(hold)
        return Cluster(state_dir, hold, wishes.fulfil(), wishes.fulfil)
    except BaseException:
        os.close(hold)
        raise


def status(state_dir: Path) -> Status:
    """Look at the server of this state directory without starting it."""
    if not state_dir.is_dir():
        return Status("stopped", None, has_users=False)
    state_dir = state_dir.resolve()
    has_users = not _is_free(state_dir / locks.USERS_LOCK)
    if running := locks.read_published(state_dir):
        return Status("running", running, has_users)
    if not _is_free(state_dir / locks.KEEPER_LOCK):
        return Status("starting", None, has_users)
    orphaned = any(_postmaster(path) for path in _data_directories(state_dir))
    return Status("orphaned" if orphaned else "stopped", None, has_users)


def stop(state_dir: Path, *, timeout_seconds: float = _STOP_SECONDS) -> bool:
    """Stop the server of this state directory, users or not; tell whether there was one.

    Raises:
        OperatorError: it did not stop in time.
    """
    if not (state_dir / locks.KEEPER_LOCK).exists():
        return False
    state_dir = state_dir.resolve()
    deadline = time.monotonic() + timeout_seconds
    was_running = False
    while True:
        with _keeper_lock(state_dir) as is_ours:
            if is_ours:
                return _end_orphans_of(state_dir) or was_running
        if running := locks.read_published(state_dir):
            was_running = True
            # Its number is the keeper's for as long as the file stays locked.
            signal_checked(
                running.keeper_pid,
                signal.SIGTERM,
                lambda running=running: locks.read_published(state_dir) == running,
            )
        if time.monotonic() >= deadline:
            raise OperatorError(
                f"the embedded PostgreSQL in {state_dir} did not stop within {timeout_seconds:.0f} s",
                hint=f"see {state_dir / 'postgres.log'}",
            )
        time.sleep(2 * _POLL_SECONDS)


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What one user wants of the server."""

    state_dir: Path
    linger_seconds: float
    on_progress: Callable[[str], None]
    binaries: Path | None
    account: str | None

    def fulfil(self) -> locks.Running:
        """Wait for a living keeper's word that the server is ready, starting a keeper when there is none."""
        failure = locks.read_failure(self.state_dir)
        begun = time.monotonic()
        starts = 0
        is_patient = True
        while time.monotonic() < begun + READY_SECONDS + _STOP_SECONDS:
            if running := locks.read_published(self.state_dir):
                return running
            with _keeper_lock(self.state_dir) as is_ours:
                if is_ours:
                    # There is no keeper: the last one either ended, was killed, or could not do it.
                    latest = locks.read_failure(self.state_dir)
                    if latest is not None and latest != failure:
                        raise OperatorError(latest.message, hint=latest.hint)
                    starts += 1
                    if starts > _STARTS:
                        break
                    self._start_keeper(is_ours)
            if is_patient and time.monotonic() > begun + _PATIENCE_SECONDS:
                is_patient = False
                self.on_progress(
                    "Still starting: PostgreSQL recovers first when it was not stopped in good order"
                )
            time.sleep(_POLL_SECONDS)
        raise OperatorError(
            f"the embedded PostgreSQL in {self.state_dir} does not come up",
            hint=f"see keeper.log and postgres.log in {self.state_dir}",
        )

    def _start_keeper(self, lock: int) -> None:
        locks.refuse_unlockable(self.state_dir)
        options = self._options()
        log = self.state_dir / "keeper.log"
        if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
            log.rename(log.with_name("keeper.log.1"))
        script = Path(__file__).with_name("__main__.py")
        with log.open("ab") as output:
            log.chmod(0o600)
            # It is born with the lock: at no moment could two be started, and a death on the way leaves none held.
            ended = subprocess.run(
                [sys.executable, "-I", "-S", str(script), options.to_json()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                # Nothing else of ours: tokens and passwords of the environment are no business of the server.
                env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", **options.environment},
                pass_fds=(lock,),
                start_new_session=True,
                check=False,
            )
        # Killed before it could hold the lock on its own: like any other killed keeper, it is started again.
        if ended.returncode > 0:
            raise OperatorError(
                f"the keeper of the embedded PostgreSQL could not be started with {sys.executable}",
                hint=f"see {log}",
            )

    def _options(self) -> KeeperOptions:
        folder = self.binaries or _binaries_for(self.state_dir)
        version = version_of(folder)
        if (self.state_dir / f"pg{major_of(version)}").exists():
            self.on_progress(f"Starting the embedded PostgreSQL {version}")
        else:
            self.on_progress(f"Creating the embedded PostgreSQL {version} in {self.state_dir}")
        return KeeperOptions(
            state_dir=str(self.state_dir),
            binaries=str(folder),
            version=version,
            account=self.account,
            linger_seconds=self.linger_seconds,
            token=os.urandom(8).hex(),
            environment={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        )


@contextmanager
def _keeper_lock(state_dir: Path) -> Generator[int | None]:
    """Try to take the keeper's lock for a while; yields its descriptor, or nothing while there is a keeper."""
    descriptor = locks.open_lock(state_dir / locks.KEEPER_LOCK)
    try:
        yield descriptor if locks.try_lock(descriptor, exclusive=True) else None
    finally:
        os.close(descriptor)


def _binaries_for(state_dir: Path) -> Path:
    """Find the programs that fit the cluster which is there; any that will do when there is none."""
    majors = sorted(int(path.name.removeprefix("pg")) for path in _data_directories(state_dir))
    if not majors:
        return find_binaries()
    try:
        return find_binaries(major=majors[-1])
    except OperatorError as error:
        raise OperatorError(
            f"{state_dir} holds data of PostgreSQL {majors[-1]}, and {error.message}",
            hint=f"install PostgreSQL {majors[-1]} again and dump the data with pg_dumpall before a change of version,"
            " or set JOBFORGE_STATE_DIR to a new directory",
        ) from error


def _data_directories(state_dir: Path) -> list[Path]:
    return [path for path in state_dir.glob("pg*") if path.name.removeprefix("pg").isdigit()]


def _postmaster(data_dir: Path) -> int | None:
    claim = read_pid_file(data_dir)
    return claim.pid if claim and is_postmaster_of(claim.pid, data_dir) else None


def _end_orphans_of(state_dir: Path) -> bool:
    orphaned = [path for path in _data_directories(state_dir) if _postmaster(path)]
    for path in orphaned:
        end_orphans(path)
    return bool(orphaned)


def _is_free(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        return locks.try_lock(descriptor, exclusive=True)
    finally:
        os.close(descriptor)


def _say_nothing(_sentence: str) -> None:
    pass
