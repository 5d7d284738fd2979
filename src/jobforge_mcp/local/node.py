"""The local node: the one process on a laptop that owns embedded Postgres, workers and the server of all chats.

It is started by the first bridge that needs it, outlives the chats, and ends by itself some time after the last one when
nothing runs or is due soon. Its socket and its lock are handed to it (see ``rendezvous``); those who connect while it
still starts wait in the socket's queue, and are told in words when the start fails.

**Ending.** In order, on SIGTERM, on ``jobforge node stop``, when a newer version says hello, or when idle: the socket's
name goes, then the lock, so that from here on a newcomer starts a node of its own and waits for nobody; then the calls
under way get their answers, the chats a farewell, and the worker pool drains. Two nodes may overlap in that time, as two
workers may anywhere. A second signal gives up the running jobs at once. At any moment kill -9 costs nothing: the kernel
drops the lock, the leases run out, and Postgres has its own keeper.

**Working directory.** The node keeps that of the bridge which started it, because ``jobforge.toml`` and relative paths in
it are looked up there. Later chats share the node whatever their directory.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from jobforge_mcp.embedded import Cluster, ensure_running
from jobforge_mcp.errors import JobForgeError
from jobforge_mcp.local import rendezvous
from jobforge_mcp.local.place import Place, find_place
from jobforge_mcp.local.rendezvous import NodeError

if TYPE_CHECKING:
    from jobforge_mcp.settings import Settings

STOP_SECONDS = 60.0
"""How long `stop_node` waits for the end: the pool's grace, and then some."""

_REFUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What can be seen of the local node without starting it."""

    state: Literal["running", "stopped"]
    socket_path: Path
    log_path: Path
    pid: int | None = None
    version: str | None = None
    started_at: float | None = None
    """Unix time."""
    chats: int = 0
    """Connections that speak MCP at this moment."""
    running_jobs: int = 0
    """Jobs that its own worker pool runs at this moment."""
    is_kept: bool = False
    """Whether it stays when nothing is left to do."""
    postgres: str | None = None
    """Version of the embedded Postgres; nothing when another one is used."""


def node_status(settings: Settings) -> NodeStatus:
    """Look at the node of these settings.

    Raises:
        NodeError: There is one, and it does not answer.
    """
    place = place_of(settings)
    answer = _ask(place, "status")
    return _status(place, answer)


def start_node(settings: Settings, *, keep: bool = False) -> NodeStatus:
    """Have the node running, and staying if ``keep`` is set, whoever started it.

    Raises:
        NodeError: It cannot be started; the hint says what to do.
    """
    place = place_of(settings)
    arguments = ["--keep"] if keep else []
    hello = rendezvous.say_hello("keep" if keep else "status")
    connection, answer = rendezvous.join(place, hello, arguments=arguments)
    connection.close()
    return _status(place, {**answer, "is_kept": keep or answer.get("is_kept", False)})


def stop_node(settings: Settings) -> bool:
    """End the node in order, wait for its end, and tell whether there was one.

    Raises:
        NodeError: It did not end in time.
    """
    place = place_of(settings)
    try:
        connection, _ = rendezvous.join(place, rendezvous.say_hello("stop"), may_start=False)
    except NodeError:
        if _is_free(place):
            return False
        raise
    with connection:
        # The node keeps this connection until its process ends.
        connection.settimeout(STOP_SECONDS)
        try:
            while connection.recv(4096):
                pass
        except TimeoutError:
            raise NodeError(
                f"the local node did not end within {STOP_SECONDS:.0f} seconds",
                f"see {place.log_path}",
            ) from None
        except ConnectionResetError:
            pass
    return True


def place_of(settings: Settings) -> Place:
    """Name the place of the node that serves these settings; the bridge finds the same one from the environment."""
    urls = (settings.database_url, settings.worker_database_url)
    database = "\0".join(url.get_secret_value() for url in urls if url is not None)
    return Place(os.path.realpath(settings.state_dir), database)


def main(arguments: Sequence[str] = ()) -> int:
    """Be the node: with the lock and the socket that a bridge handed over, or on this terminal with new ones."""
    is_kept = "--keep" in arguments
    place = find_place()
    if "--handed-over" in arguments:
        lock: int | None = rendezvous.LOCK_FD
        listener = socket.socket(fileno=rendezvous.SOCKET_FD)
    else:
        rendezvous.prepare(place)
        lock = rendezvous.take_lock(place)
        if lock is None:
            print("a local node is running already", file=sys.stderr)
            return 1
        listener = rendezvous.bind(place)
    # What is started from here must not hold them: with a copy of the lock it would still be the node.
    os.set_inheritable(lock, False)
    listener.set_inheritable(False)
    try:
        _serve(place, lock, listener, is_kept=is_kept)
    except Exception as error:  # told to those who wait for this node, and raised
        _refuse_all(listener, error)
        raise
    return 0


def _serve(place: Place, lock: int, listener: socket.socket, *, is_kept: bool) -> None:
    """Start the embedded Postgres, if it is needed, while the imports run; then live as the node."""
    postgres = _PostgresStart(place)
    import anyio

    from jobforge_mcp.local.service import Node
    from jobforge_mcp.logs import configure_logging
    from jobforge_mcp.settings import clear_token_from_environment, load_settings

    os.environ.pop("JOBFORGE_TOKEN", None)  # each chat brings its own
    settings = load_settings(state_dir=Path(place.state_dir))
    clear_token_from_environment()
    configure_logging(settings.log_level, settings.log_format)
    with postgres.result() or nullcontext() as cluster:
        node = Node(place, lock, listener, cluster, is_kept=is_kept)
        anyio.run(node.run, settings, backend_options={"use_uvloop": True})


class _PostgresStart:
    """The embedded server being started on a thread of its own, where one is needed."""

    def __init__(self, place: Place) -> None:
        self._cluster: Cluster | None = None
        self._error: BaseException | None = None
        self._state_dir = Path(place.state_dir)
        self._thread = threading.Thread(target=self._start) if place.is_embedded else None
        if self._thread:
            self._thread.start()

    def result(self) -> Cluster | None:
        """Wait for it; the hold on it is the caller's to close."""
        if self._thread:
            self._thread.join()
        if self._error:
            raise self._error
        return self._cluster

    def _start(self) -> None:
        try:
            self._cluster = ensure_running(
                self._state_dir, on_progress=lambda text: print(text, file=sys.stderr)
            )
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            self._error = error


def _refuse_all(listener: socket.socket, error: Exception) -> None:
    """Tell those who wait in the socket's queue why there will be no node."""
    cause = _first_cause(error)
    is_ours = isinstance(cause, JobForgeError)
    answer = {
        "protocol": rendezvous.PROTOCOL,
        "error": f"the local node cannot start: {cause if is_ours else repr(cause)}",
        "hint": (cause.hint if is_ours else None) or "node.log in the state directory says more",
    }
    deadline = time.monotonic() + _REFUSE_SECONDS
    try:
        while (remaining := deadline - time.monotonic()) > 0:
            listener.settimeout(remaining)
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(0.1)
                connection.recv(rendezvous.LONGEST_HELLO)
                connection.sendall(rendezvous.write_object(answer))
    except OSError:
        return


def _first_cause(error: BaseException) -> BaseException:
    """Look into groups that task groups make of one error."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return error


def _ask(place: Place, want: str) -> dict[str, object] | None:
    try:
        connection, answer = rendezvous.join(place, rendezvous.say_hello(want), may_start=False)
    except NodeError:
        if _is_free(place):
            return None
        raise
    connection.close()
    return answer


def _is_free(place: Place) -> bool:
    """Tell whether nobody is the node."""
    if not Path(place.lock_path).exists():
        return True
    lock = rendezvous.take_lock(place)
    if lock is not None:
        os.close(lock)
    return lock is not None


def _status(place: Place, answer: dict[str, object] | None) -> NodeStatus:
    paths = Path(place.socket_path), Path(place.log_path)
    if answer is None:
        return NodeStatus("stopped", *paths)
    known = {name: answer[name] for name in NodeStatus.__slots__ if name in answer}
    return NodeStatus("running", *paths, **known)  # pyright: ignore[reportArgumentType]  # the node's own words


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
