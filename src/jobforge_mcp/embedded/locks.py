"""Kernel locks, and the file that says where the running server is.

Both rest on ``flock``: the kernel drops a lock when its holder dies, however it dies, so nothing here can be stale.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from jobforge_mcp.errors import OperatorError

USERS_LOCK = "users.lock"
"""Held shared by every user of the server for life; exclusively by a keeper that is stopping it."""

KEEPER_LOCK = "keeper.lock"
"""Held exclusively by the keeper, from before it is started until it has ended."""

_PUBLISHED = "server.json"
_FAILED = "keeper.failed"
_POLL_SECONDS = 0.01

_OTHER_FILE_SYSTEM_HINT = "set JOBFORGE_STATE_DIR to a directory on a local disk, or DATABASE_URL to a PostgreSQL of your own"

# Their flock is absent, only local to one host, or lost on a reconnect; a data directory on them is unsafe besides.
_NETWORK_FILE_SYSTEMS = frozenset(
    {"afs", "cifs", "fuse.sshfs", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs"}
)


@dataclass(frozen=True, slots=True)
class Running:
    """The server a living keeper vouches for."""

    keeper_pid: int
    postmaster_pid: int
    version: str
    """As PostgreSQL says it: ``18.6``."""
    data_dir: str
    socket_dir: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the keeper that was started with ``token`` gave up."""

    token: str
    message: str
    hint: str | None


def open_lock(path: Path) -> int:
    """Open a lock file, made private if absent; the descriptor is not inherited by programs started later."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def try_lock(fd: int, *, exclusive: bool) -> bool:
    """Take the lock unless another open file stands in the way.

    Raises:
        OperatorError: the file system has no locks.
    """
    if sys.platform == "win32":
        raise OperatorError(
            "the embedded PostgreSQL needs kernel file locks, which are not used on Windows yet",
            hint="set DATABASE_URL to a PostgreSQL of your own, or run inside WSL",
        )
    import fcntl

    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in {errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS}:
            raise OperatorError(
                f"the state directory's file system has no file locks: {os.strerror(error.errno)}",
                hint=_OTHER_FILE_SYSTEM_HINT,
            ) from error
        raise
    return True


def unlock(fd: int) -> None:
    """Give the lock up and keep the file open."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_UN)


def lock_before(fd: int, deadline: float, *, exclusive: bool) -> bool:
    """Wait for the lock until the monotonic time ``deadline``.

    Polls, because a blocking ``flock`` has no timeout that a library may use: an alarm belongs to the program.
    """
    while not try_lock(fd, exclusive=exclusive):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def refuse_unlockable(state_dir: Path) -> None:
    """Refuse a directory where two processes could hold one lock at once.

    Raises:
        OperatorError: it is on a network file system, or its locks do not exclude.
    """
    kind = file_system_of(state_dir, _mounts())
    if kind in _NETWORK_FILE_SYSTEMS:
        raise OperatorError(
            f"the state directory {state_dir} is on a network file system ({kind}), where locks cannot be trusted",
            hint=_OTHER_FILE_SYSTEM_HINT,
        )
    probe = state_dir / f"probe-{os.getpid()}-{time.monotonic_ns()}.lock"
    first, second = open_lock(probe), open_lock(probe)
    try:
        if try_lock(first, exclusive=True) and try_lock(second, exclusive=True):
            raise OperatorError(
                f"locks in the state directory {state_dir} do not exclude each other",
                hint=_OTHER_FILE_SYSTEM_HINT,
            )
    finally:
        os.close(first)
        os.close(second)
        probe.unlink()


def file_system_of(path: Path, mountinfo: str) -> str:
    """Name the file system of a path, from the text of ``/proc/self/mountinfo``; empty when that says nothing."""
    best, kind = "", ""
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        # Spaces, tabs, newlines and backslashes of a mount point are written as octal escapes.
        point = fields.split(" ")[4].encode().decode("unicode_escape")
        # A later mount on the same point hides the earlier one.
        if path.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, rest.split(" ")[0]
    return kind


def _mounts() -> str:
    try:
        return Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def publish(state_dir: Path, running: Running) -> int:
    """Say where the server is, for as long as the descriptor that is returned stays open.

    The file is renamed into place already locked: whoever finds it locked may believe it, whoever can lock it knows
    that its writer is gone.
    """
    fresh = state_dir / f"{_PUBLISHED}.new"
    fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    if not try_lock(fd, exclusive=True):
        os.close(fd)
        raise OperatorError(f"another keeper publishes in {state_dir}")
    os.write(fd, json.dumps(asdict(running)).encode())
    fresh.rename(state_dir / _PUBLISHED)
    return fd


def read_published(state_dir: Path) -> Running | None:
    """Tell where the server is, or nothing when no living keeper vouches for one."""
    try:
        fd = os.open(state_dir / _PUBLISHED, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if try_lock(fd, exclusive=False):
            return None
        return Running(**json.loads(os.read(fd, 65536)))
    finally:
        os.close(fd)


def write_failure(state_dir: Path, failure: Failure) -> None:
    """Leave word why the keeper gave up, for those who wait for it."""
    fresh = state_dir / f"{_FAILED}.new"
    fresh.write_text(json.dumps(asdict(failure)), encoding="utf-8")
    fresh.rename(state_dir / _FAILED)


def read_failure(state_dir: Path) -> Failure | None:
    """Read the last word of a keeper that gave up, however long ago."""
    try:
        return Failure(**json.loads((state_dir / _FAILED).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
