"""Where the embedded server keeps its files, and which account of the system owns them."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jobforge_mcp.errors import OperatorError, SettingsError

SOCKET_NAME = ".s.PGSQL.5432"

# The kernel's sun_path holds 108 bytes on Linux and 104 elsewhere, the closing NUL included.
_LONGEST_SOCKET_PATH = 107 if sys.platform == "linux" else 103


@dataclass(frozen=True, slots=True)
class Account:
    """The account that PostgreSQL runs as when it is started by root, which PostgreSQL refuses to be."""

    name: str
    uid: int
    gid: int


def state_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Name the directory that holds everything local: ``JOBFORGE_STATE_DIR``, or the platform's place for such data.

    Root gets a system directory: its home is closed to every account that PostgreSQL could run as.
    """
    if named := environ.get("JOBFORGE_STATE_DIR"):
        return Path(named).expanduser().absolute()
    if sys.platform == "win32":
        return Path(environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "jobforge"
    if os.geteuid() == 0:
        return Path("/var/lib/jobforge")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "jobforge"
    data_home = environ.get("XDG_DATA_HOME", "")
    # The specification: a relative path in it is invalid and to be ignored.
    base = Path(data_home) if data_home.startswith("/") else Path.home() / ".local" / "share"
    return base / "jobforge"


def scratch_state_directory() -> Path:
    """Make a state directory that its caller will remove: for tests, benchmarks and trials.

    When root makes it, the account that runs PostgreSQL may pass through it, which it may not through ``tmp_path``.
    """
    path = Path(tempfile.mkdtemp(prefix="jobforge-"))
    path.chmod(_mode())
    return path.resolve()


def prepare_state_directory(state_dir: Path) -> Path:
    """Make the state directory unless it is there, and return it without symbolic links.

    Never changes the mode or owner of a directory that was there before.

    Raises:
        OperatorError: it belongs to somebody else, everybody may write to it, or it cannot be made.
    """
    try:
        state_dir = state_dir.expanduser().resolve()
        _make(state_dir)
        found = state_dir.stat()
    except OSError as error:
        raise OperatorError(
            f"the state directory {state_dir} cannot be made or used: {error.strerror}",
            hint="set JOBFORGE_STATE_DIR to a directory of your own",
        ) from error
    if found.st_uid != os.geteuid():
        raise OperatorError(
            f"the state directory {state_dir} belongs to user {found.st_uid}, and this is user {os.geteuid()}",
            hint="run as its owner, or set JOBFORGE_STATE_DIR to a directory of your own",
        )
    if found.st_mode & stat.S_IWOTH:
        raise OperatorError(
            f"everybody may write to the state directory {state_dir}",
            hint=f"chmod o-w {state_dir}, or set JOBFORGE_STATE_DIR to another directory",
        )
    return state_dir


def socket_directory(state_dir: Path, account: Account | None, environ: Mapping[str, str]) -> Path:
    """Make the directory of the server's socket: in the state directory, or elsewhere if its path is too long.

    Only its owner can enter it, because whoever reaches the socket is trusted. The same state directory always gets
    the same path, so that a client finds the server again after a restart.
    """
    owner = account.uid if account else os.geteuid()
    path = os.fsencode(state_dir)
    # Not hashlib: loading OpenSSL would double the keeper's start and add a third to its memory.
    name = f"jobforge-{zlib.crc32(path):08x}{zlib.crc32(path[::-1]):08x}"
    choices = [state_dir / "socket"]
    if (runtime := environ.get("XDG_RUNTIME_DIR", "")).startswith("/") and account is None:
        choices.append(Path(runtime) / name)
    choices.append(Path(tempfile.gettempdir()) / f"{name}-{owner}")
    choices.append(Path("/tmp") / f"{name}-{owner}")  # noqa: S108 - its owner and mode are checked below
    for choice in choices:
        if fits_socket(choice) and _own_private_directory(choice, owner, account):
            return choice
    raise OperatorError(
        f"no directory for the server's socket is both private and short enough: tried {', '.join(map(str, choices))}",
        hint="set JOBFORGE_STATE_DIR to a shorter path",
    )


def fits_socket(directory: Path) -> bool:
    """Tell whether a socket in this directory can be bound by the kernel and named to libpq, which splits at commas."""
    path = os.fsencode(directory / SOCKET_NAME)
    return len(path) <= _LONGEST_SOCKET_PATH and b"," not in path


def find_account(wanted: str | None) -> Account | None:
    """Choose the account for PostgreSQL: nobody else's when not root, else ``wanted``, ``postgres`` or ``nobody``.

    Raises:
        SettingsError: the account that is wanted does not exist, or is root.
    """
    if sys.platform == "win32" or os.geteuid() != 0:
        return None
    import pwd

    for name in (wanted,) if wanted else ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(name, entry.pw_uid, entry.pw_gid)
    raise SettingsError(
        f"PostgreSQL refuses to run as root, and the account {wanted or 'postgres or nobody'} cannot run it",
        hint="set JOBFORGE_PGUSER_OS to an ordinary account, or DATABASE_URL to a PostgreSQL of your own",
    )


def can_access(account: Account | None, path: Path, mode: int) -> bool:
    """Tell whether the account may do this with the path, by trying it as that account.

    Forks: only for a process of one thread, such as the keeper.
    """
    if account is None:
        return os.access(path, mode)
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(account.gid)
            os.setuid(account.uid)
            os._exit(0 if os.access(path, mode) else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _mode() -> int:
    # Nothing of root's own in it is readable to others: each file has its mode. The account must pass through.
    return 0o711 if os.geteuid() == 0 else 0o700


def _make(path: Path) -> None:
    if path.is_dir():
        return
    _make(path.parent)
    try:
        path.mkdir(mode=_mode())
    except FileExistsError:
        return
    path.chmod(_mode())


def _own_private_directory(path: Path, owner: int, account: Account | None) -> bool:
    try:
        path.mkdir(mode=0o700)
        if account:
            os.chown(path, account.uid, account.gid)
    except FileExistsError:
        pass
    except OSError:
        return False
    # Somebody may have made it first in a directory open to all: then it is not used, and not touched.
    found = path.lstat()
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == owner
        and stat.S_IMODE(found.st_mode) == 0o700
        and can_access(account, path, os.W_OK | os.X_OK)
    )
