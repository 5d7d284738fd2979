"""Where a bridge and its node meet: one directory, one lock, one socket, one line in each direction.

Standard library only, and little of it: every chat pays for what is imported here. That is also why there is no
``pathlib``, ``dataclasses``, ``hashlib`` or ``typing`` in this file.

**One node.** A node is keyed by the state directory and the database, and has a directory of its own in
``<state directory>/nodes/``. Whoever holds the ``flock`` on the file ``lock`` there is the node. A bridge that finds no
node takes the lock, binds the socket, and hands both, as open descriptors, to the node that it starts: the lock is never
free in between, so twelve bridges at once start one node, and all of them can connect before it is ready to answer. The
socket's file proves nothing; only the lock does, and the kernel drops it however its holder dies.

**Hello.** The bridge sends one line of JSON: protocol, version, process id, what it wants, and the policy token. The node
answers with one line: who it is, or an error. Then the connection belongs to MCP. A node that is about to end says
``BYE`` between two messages, so that the bridge can tell an orderly end from a crash.

**Who may.** The directory is its owner's alone (0700), and both sides ask the kernel who the other one is.
"""

from __future__ import annotations

import errno
import fcntl  # absent on Windows, where every process works alone and this module is not imported
import json
import os
import select
import socket
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jobforge_mcp.local.place import Place

VERSION = "0.1.0"
"""Version of this package; a test holds it equal to the metadata, which takes 30 ms to read."""

PROTOCOL = 1
"""Version of the hello; another one is refused in words."""

BYE = b'{"jobforge":"bye"'
"""How the last line of a node that ends in order begins."""

LOCK_FD, SOCKET_FD = 3, 4
"""Under which numbers a node that was started finds its lock and its listening socket."""

LONGEST_HELLO = 65_536
"""Bytes of a hello line or its answer; a policy token has a few hundred."""

LONGEST_LINE = 8 * 1024 * 1024
"""Bytes of one message. An input of 1 MiB, escaped at worst, still gets the server's own words for too long."""

START_SECONDS = 30.0
"""How long a bridge waits for a node that is ready. Hosts give up after 10 to 60 seconds."""

_LONGEST_LOG = 1024 * 1024
_BACKLOG = 128
_STARTS = 3
_RETRY_SECONDS = 0.01


class NodeError(Exception):
    """No conversation with a node came about; one sentence why, and the way out."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class GivenUpError(Exception):
    """Whoever waited for the node is not wanted any more."""


def prepare(place: Place) -> None:
    """Make the directories that are missing, and refuse those that are not their owner's alone.

    Raises:
        NodeError: A directory cannot be made, belongs to somebody else, or is open to others.
    """
    # The account that Postgres runs as under root has to pass through the state directory.
    shared_mode = 0o711 if os.geteuid() == 0 else 0o700
    try:
        _make(os.path.dirname(place.directory), shared_mode)
        for directory in (place.directory, os.path.dirname(place.socket_path)):
            _make(directory, 0o700)
            _refuse_open(directory)
    except OSError as error:
        raise NodeError(
            f"the directory {error.filename} cannot be made or used: {error.strerror}",
            "set JOBFORGE_STATE_DIR to a directory of your own",
        ) from error


def join(
    place: Place,
    hello: Mapping[str, object],
    *,
    may_start: bool = True,
    arguments: Sequence[str] = (),
    check: Callable[[], None] = lambda: None,
) -> tuple[socket.socket, dict[str, object]]:
    """Connect to the node and exchange hellos; start it first if there is none and ``may_start`` is set.

    ``check`` is called while waiting and ends it by raising. Several tries, because the node found may be ending.

    Raises:
        NodeError: The node cannot be started, does not answer in time, or refuses this caller.
    """
    deadline = time.monotonic() + START_SECONDS
    starts = 0
    while True:
        connection = _connect(place)
        if connection is not None:
            answer = _exchange(connection, hello, deadline, check)
            if answer.get("protocol") == PROTOCOL and not answer.keys() & {"error", "restarting"}:
                return connection, answer
            connection.close()
            _raise_refusal(answer)
        elif not may_start:
            raise NodeError("no local node is running", "jobforge node start starts one")
        else:
            prepare(place)
            lock = take_lock(place)
            if lock is not None:
                if starts == _STARTS:
                    os.close(lock)
                    raise NodeError(
                        f"the local node ended {starts} times before it was ready",
                        f"{place.log_path} says why:\n{_log_tail(place)}",
                    )
                starts += 1
                start(place, lock, arguments)
                continue
        if time.monotonic() >= deadline:
            raise NodeError(
                f"the local node was not ready within {START_SECONDS:.0f} seconds",
                f"see {place.log_path}, or set JOBFORGE_NODE=off to work without it",
            )
        check()
        time.sleep(_RETRY_SECONDS)


def take_lock(place: Place) -> int | None:
    """Take the node's lock unless there is a node; it is held as long as the descriptor, or a copy of it, is open.

    Raises:
        NodeError: The file system has no locks.
    """
    fd = os.open(place.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError as error:
        os.close(fd)
        raise NodeError(
            f"the state directory {place.state_dir} has no file locks: {error.strerror}",
            "set JOBFORGE_STATE_DIR to a directory on a local disk",
        ) from error
    return fd


def bind(place: Place) -> socket.socket:
    """Bind the node's socket, in place of whatever an earlier node left there. Only the lock's holder may.

    The socket gets its name when it already listens, so that nobody finds it and is refused.
    """
    # Beside its final name and no longer than it.
    fresh = os.path.join(os.path.dirname(place.socket_path), "new")
    _unlink(fresh)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(fresh)
    os.chmod(fresh, 0o600)
    listener.listen(_BACKLOG)
    os.rename(fresh, place.socket_path)
    return listener


def start(place: Place, lock: int, arguments: Sequence[str] = ()) -> None:
    """Start a node that belongs to nobody, hand it the lock and the bound socket, and let go of both.

    Forked twice: a host that kills its server's whole process tree must not find the node in it.
    """
    listener = bind(place)
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                _become_node(place, lock, listener.fileno(), arguments)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    listener.close()
    os.close(lock)


def write_to_log(place: Place) -> None:
    """Let this process's output and errors go to the node's log; a log that has grown long is put aside first."""
    if is_log_long(place):
        os.replace(place.log_path, f"{place.log_path}.1")
    log = os.open(place.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if log > 2:
        os.close(log)


def is_log_long(place: Place) -> bool:
    """Tell whether the log has grown as long as one may."""
    return _size(place.log_path) > _LONGEST_LOG


def leave(place: Place, lock: int, inode: int | None) -> None:
    """Stop being the node: first nobody finds the socket any more, then somebody may take the lock."""
    # Whoever removed the directory may have made another one since; that one's socket is not ours.
    if inode_of(place.socket_path) == inode:
        _unlink(place.socket_path)
    os.close(lock)


def inode_of(path: str) -> int | None:
    """Identify a file whatever its name; nothing when there is none."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return None


def peer_uid(connection: socket.socket) -> int | None:
    """Ask the kernel which user is at the other end; nothing where it does not tell."""
    if sys.platform == "linux":
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(credentials[4:8], sys.byteorder)
    if sys.platform == "darwin":
        credentials = connection.getsockopt(0, 1, 76)  # SOL_LOCAL, LOCAL_PEERCRED: struct xucred
        return int.from_bytes(credentials[4:8], sys.byteorder)
    return None


def is_own_peer(connection: socket.socket) -> bool:
    """Tell whether the other end is this user's. Where the kernel does not say, the directory's mode has to do."""
    return peer_uid(connection) in {os.geteuid(), None}


def say_hello(want: str, token: str | None = None) -> dict[str, object]:
    """Make the first line of a connection; ``want`` is ``mcp``, ``status`` or ``stop``."""
    hello: dict[str, object] = {
        "protocol": PROTOCOL,
        "version": VERSION,
        "pid": os.getpid(),
        "want": want,
    }
    if token:
        hello["token"] = token
    return hello


def read_object(line: bytes) -> dict[str, object]:
    """Read a JSON object; empty when the line is anything else."""
    try:
        found: dict[str, object] | list[object] | str | float | None = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_object(message: Mapping[str, object]) -> bytes:
    """Write a JSON object as one line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def is_newer(version: object, than: str) -> bool:
    """Compare two versions by their numbers; what is no version is not newer."""
    return isinstance(version, str) and _numbers(version) > _numbers(than)


def _numbers(version: str) -> list[int]:
    parts: list[int] = []
    for part in version.split("."):
        digits = "".join(character for character in part if character.isdigit())
        if digits != part:
            # A pre-release is older than what it precedes; that much of PEP 440 is enough here.
            return [*parts, -1]
        parts.append(int(digits))
    return parts


def _connect(place: Place) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(place.socket_path)
    except OSError as error:
        connection.close()
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED, errno.EAGAIN}:
            return None
        raise NodeError(
            f"the local node's socket {place.socket_path} cannot be used: {error.strerror}"
        ) from error
    if not is_own_peer(connection):
        connection.close()
        raise NodeError(f"the socket {place.socket_path} is served by another user")
    return connection


def _exchange(
    connection: socket.socket,
    hello: Mapping[str, object],
    deadline: float,
    check: Callable[[], None],
) -> dict[str, object]:
    """Send the hello and wait for its answer; empty when the node went away first."""
    received = b""
    try:
        connection.sendall(write_object(hello))
        while b"\n" not in received:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or len(received) > LONGEST_HELLO:
                connection.close()
                raise NodeError(
                    "the local node does not answer",
                    "jobforge node stop ends it; JOBFORGE_NODE=off works without it",
                )
            check()
            if not select.select([connection], [], [], min(remaining, 0.25))[0]:
                continue
            chunk = connection.recv(LONGEST_HELLO)
            if not chunk:
                return {}
            received += chunk
    except (BrokenPipeError, ConnectionResetError):
        return {}
    line, _, rest = received.partition(b"\n")
    # The node speaks again only after a message from here, unless it is ending: then it counts as gone.
    return {} if rest else read_object(line)


def _raise_refusal(answer: dict[str, object]) -> None:
    """Raise the error that the node answered with, unless it may pass: the node is ending, and another may start."""
    if "error" in answer:
        raise NodeError(str(answer["error"]), str(answer.get("hint") or ""))
    if answer and not answer.get("restarting"):
        raise NodeError(
            f"the running node speaks protocol {answer.get('protocol')}, and this is {PROTOCOL}",
            "jobforge node stop ends it; the next chat starts the right one",
        )


def _become_node(place: Place, lock: int, listener: int, arguments: Sequence[str]) -> None:
    """Turn this process into the node: own files, own log, no inherited secret, nothing else open."""
    lock = fcntl.fcntl(lock, fcntl.F_DUPFD, 10)
    listener = fcntl.fcntl(listener, fcntl.F_DUPFD, 10)
    write_to_log(place)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for fd, number in ((nothing, 0), (lock, LOCK_FD), (listener, SOCKET_FD)):
        os.dup2(fd, number)
    os.closerange(SOCKET_FD + 1, os.sysconf("SC_OPEN_MAX"))
    environ = {**os.environ, "JOBFORGE_STATE_DIR": place.state_dir}
    environ.pop("JOBFORGE_TOKEN", None)  # each chat brings its own
    if place.is_embedded:
        environ.pop("JOBFORGE_CONTEXT_KEY", None)  # that one has a key of its own
    # -P: a module that lies in the chat's working directory must not be taken for one of ours.
    command = [sys.executable, "-P", "-m", "jobforge_mcp.local.node", "--handed-over", *arguments]
    os.execve(sys.executable, command, environ)  # noqa: S606 - a list, no shell


def _make(directory: str, mode: int) -> None:
    if os.path.isdir(directory):
        return
    parent = os.path.dirname(directory)
    _make(parent, 0o711 if os.geteuid() == 0 else 0o700)
    try:
        os.mkdir(directory, mode)
    except FileExistsError:
        return
    # Not touched by the umask; only a directory that was made here is ever changed.
    os.chmod(directory, mode)


def _refuse_open(directory: str) -> None:
    found = os.lstat(directory)
    if found.st_uid != os.geteuid() or found.st_mode & 0o170077 != 0o040000:
        raise NodeError(
            f"the node's directory {directory} is not a directory of this user alone",
            f"chmod 700 {directory} if it is yours, or set JOBFORGE_STATE_DIR to another place",
        )


def _log_tail(place: Place) -> str:
    try:
        with open(place.log_path, "rb") as file:
            file.seek(max(0, _size(place.log_path) - 2000))
            return file.read().decode(errors="replace").strip()
    except OSError:
        return "(no log)"


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
