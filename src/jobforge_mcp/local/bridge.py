"""The byte pump that an MCP client starts for each chat: stdin and stdout here, the one local node there.

Standard library only: it has to answer within tens of milliseconds and cost no more than the interpreter. It holds no
state that matters, and no job ends with it.

It passes whole lines and understands just enough of JSON-RPC to keep a chat alive across the end of a node:

* it knows which requests still wait for their answer. When the node is gone they get an error that says so, because a
  host would otherwise wait for minutes; what a node may have begun is never sent twice, since only the caller knows its
  idempotency keys. A node that ends in order says what it did not begin, and that goes to the next one;
* it keeps the ``initialize`` of a chat that began with a handshake (revision 2025-11-25 and older), repeats it to the
  next node, and keeps that answer to itself. What else such a session held in the node, its resource subscriptions, is
  lost. The newer revision has no session, and needs none of this;
* a node that crashed is replaced at once, so that its jobs go on. One that said farewell is replaced when the chat has
  something to say: whoever stopped it meant it.

It ends within a second when its input ends or its parent dies, whichever is noticed first.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time

from jobforge_mcp.local import place, rendezvous
from jobforge_mcp.local.rendezvous import BYE, GivenUpError, NodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

_FAREWELL_SECONDS = 0.8
"""How long answers are awaited after the end of the input."""

_PARENT_CHECK_SECONDS = 0.5
"""How often the parent is looked for where the kernel has no descriptor for a process."""

_REFUSAL_SECONDS = 0.2
"""How long a client that was refused once is given to take its answer, and to be refused again."""

_LOST = "the local node ended before it answered; a job that was already accepted goes on in the next one"
_LOST_HINT = "call again: with the same idempotencyKey nothing is done twice, and list-runs shows what was accepted"
_TOO_LONG = f"a message may have at most {rendezvous.LONGEST_LINE} bytes"
_TOO_LONG_HINT = "pass large data by reference, a URL for example, instead of inside the input"

_CHUNK = 65_536
_PIPE_WRITE = 4_096
"""What a pipe that polls as writable takes without blocking."""

_MOST_BUFFERED = 1024 * 1024
_CRASHES, _CRASH_SECONDS = 3, 30.0
_NEVER_ANSWERED = frozenset({"subscriptions/listen"})
_ANSWER_HEAD = b'{"jsonrpc":"2.0","id":'


def main() -> int:
    """Serve one chat from the file descriptors 0 and 1, and return the exit code."""
    token = os.environ.get("JOBFORGE_TOKEN") or place.read_settings_file().get("token")
    if sys.stdin is not None and sys.stdin.isatty():
        _tell("speaking MCP on standard input and output; for people: jobforge --help")
    try:
        with Bridge(token) as bridge:
            bridge.run()
    except NodeError as error:
        _tell(str(error))
        return 1
    except (GivenUpError, BrokenPipeError):
        return 0
    except KeyboardInterrupt:
        return 130
    return 0


class Bridge:
    """One chat's pump, from its first line to its last."""

    def __init__(self, token: str | None, client_in: int = 0, client_out: int = 1) -> None:
        """Take the policy token of this chat and the descriptors of its client."""
        self._place = place.find_place()
        self._token = token
        self._in = client_in
        self._out = client_out
        self._parent = Parent()
        self._node: socket.socket | None = None
        self._from_client = LineBuffer()
        self._from_node = LineBuffer()
        self._to_client = bytearray()
        self._to_node = bytearray()
        self._waiting: dict[str, tuple[str, bytes]] = {}
        self._handshake: bytes | None = None
        self._handshake_id = ""
        self._initialized: bytes | None = None
        self._swallowed = ""
        self._has_input = True
        self._begun: frozenset[str] | None = None
        self._crashes: list[float] = []

    def __enter__(self) -> Bridge:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._drop_node()
        self._parent.close()

    def run(self) -> None:
        """Pump until the input ends, the parent dies, or no node can be had.

        Raises:
            NodeError: There is no node; the client was told why.
        """
        try:
            self._run()
        except NodeError as error:
            self._refuse(error)
            raise

    def _run(self) -> None:
        self._reach_node()
        while self._has_input:
            self._pump()
            if not self._has_input:
                break
            self._lose_node()
            if self._begun is None:
                self._count_crash()
            else:
                self._await_input()
            if self._has_input:
                self._reach_node()
        self._finish()

    def _reach_node(self) -> None:
        """Connect to a node, and put a chat that began with a handshake where it was."""
        hello = rendezvous.say_hello("mcp", self._token)
        self._node, _ = rendezvous.join(self._place, hello, check=self._check)
        self._node.setblocking(False)
        self._begun = None
        if self._handshake and self._handshake_id not in self._waiting:
            self._swallowed = self._handshake_id
            self._to_node[:0] = self._handshake + (self._initialized or b"")

    def _pump(self) -> None:
        """Move bytes until the input ends or the node is gone."""
        while self._node is not None and self._has_input:
            ready = self._poll(None)
            self._serve(ready)

    def _finish(self) -> None:
        """Hand over what is left, and wait briefly for answers that are under way."""
        deadline = time.monotonic() + _FAREWELL_SECONDS
        while (remaining := deadline - time.monotonic()) > 0:
            is_waiting = self._node is not None and (
                self._to_node or {method for method, _ in self._waiting.values()} - _NEVER_ANSWERED
            )
            if not is_waiting and not self._to_client:
                return
            self._serve(self._poll(remaining))

    def _refuse(self, error: NodeError) -> None:
        """Answer the client's requests with the reason why there is no node; hosts show it sooner than a log."""
        self._drop_node()
        deadline = time.monotonic() + _FAREWELL_SECONDS
        while (remaining := deadline - time.monotonic()) > 0:
            for key in list(self._waiting):
                del self._waiting[key]
                self._to_client += _error_answer(key, "NODE_UNAVAILABLE", error.message, error.hint)
                deadline = min(deadline, time.monotonic() + _REFUSAL_SECONDS)
            if not self._has_input and not self._to_client:
                return
            self._serve(self._poll(remaining))

    def _await_input(self) -> None:
        """Wait without a node until the client says something more."""
        while self._has_input and not self._to_node:
            self._serve(self._poll(None))

    def _poll(self, seconds: float | None) -> dict[int, int]:
        """Wait until something can be moved; which descriptors, and what for."""
        poller = select.poll()
        if self._has_input and len(self._to_node) < _MOST_BUFFERED:
            poller.register(self._in, select.POLLIN)
        poller.register(self._out, select.POLLOUT if self._to_client else 0)
        if self._node is not None:
            reading = select.POLLIN if len(self._to_client) < _MOST_BUFFERED else 0
            writing = select.POLLOUT if self._to_node else 0
            poller.register(self._node, reading | writing)
        if self._parent.descriptor >= 0:
            poller.register(self._parent.descriptor, select.POLLIN)
        elif seconds is None or seconds > _PARENT_CHECK_SECONDS:
            seconds = _PARENT_CHECK_SECONDS
        ready = dict(poller.poll(None if seconds is None else int(seconds * 1000) + 1))
        if self._parent.is_gone():
            raise GivenUpError
        return ready

    def _serve(self, ready: dict[int, int]) -> None:
        """Move what the poll found. The client's end of reading is the end of everything."""
        if ready.get(self._out, 0) & (select.POLLERR | select.POLLNVAL):
            raise GivenUpError
        if ready.get(self._out, 0) & select.POLLOUT:
            del self._to_client[: os.write(self._out, self._to_client[:_PIPE_WRITE])]
        if self._in in ready:
            self._read_client()
        if self._node is not None and (events := ready.get(self._node.fileno(), 0)):
            if events & select.POLLOUT:
                self._write_node()
            if events & ~select.POLLOUT:
                self._read_node()

    def _read_client(self) -> None:
        try:
            chunk = os.read(self._in, _CHUNK)
        except BlockingIOError:
            return
        if not chunk:
            self._has_input = False
            chunk = self._from_client.rest()
        for line in self._from_client.feed(chunk):
            if len(line) > rendezvous.LONGEST_LINE:
                self._refuse_line(line)
                continue
            self._note_sent(line)
            self._to_node += line

    def _refuse_line(self, line: bytes) -> None:
        """Answer a message that is too long; the node could not, because it would have to read it for the id."""
        message = rendezvous.read_object(line)
        if "method" in message and "id" in message:
            key = json.dumps(message["id"])
            self._to_client += _error_answer(key, "LIMIT_EXCEEDED", _TOO_LONG, _TOO_LONG_HINT)

    def _write_node(self) -> None:
        assert self._node is not None
        try:
            del self._to_node[: self._node.send(self._to_node)]
        except BlockingIOError:
            return
        except OSError:
            # What it said last may still be there to read; the end shows in reading.
            self._to_node.clear()

    def _read_node(self) -> None:
        assert self._node is not None
        try:
            chunk = self._node.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._drop_node()
            return
        for line in self._from_node.feed(chunk):
            if self._is_for_client(line):
                self._to_client += line

    def _note_sent(self, line: bytes) -> None:
        """Remember what has to be known of a message when the node is lost before it answers."""
        message = rendezvous.read_object(line)
        method = message.get("method")
        if method == "notifications/initialized":
            self._initialized = line
        elif method == "notifications/cancelled":
            # Its answer may come or not; nobody waits for it.
            self._waiting.pop(_canceled_id(message), None)
        elif method is not None and "id" in message:
            key = json.dumps(message["id"])
            self._waiting[key] = str(method), line
            if method == "initialize":
                self._handshake, self._handshake_id, self._initialized = line, key, None

    def _is_for_client(self, line: bytes) -> bool:
        """Take note of an answer; what is meant for the bridge alone goes no further."""
        if line.startswith(BYE):
            self._begun = frozenset(
                json.dumps(identity) for identity in json.loads(line)["unanswered"]
            )
            return False
        key = _answered_id(line)
        if key is None:
            return True
        self._waiting.pop(key, None)
        if key == self._swallowed:
            self._swallowed = ""
            return False
        return True

    def _lose_node(self) -> None:
        """Answer what no node will answer, and keep the rest for the next. A torn last line of the node is dropped."""
        self._from_node = LineBuffer()
        self._to_node.clear()
        self._swallowed = ""
        for key, (method, line) in list(self._waiting.items()):
            was_begun = self._begun is None or key in self._begun
            if was_begun and method != "initialize":
                del self._waiting[key]
                self._to_client += _error_answer(key, "NODE_LOST", _LOST, _LOST_HINT)
            else:
                self._to_node += line

    def _count_crash(self) -> None:
        """Give up on a node that does not stay up.

        Raises:
            NodeError: It ended too often in too short a time.
        """
        now = time.monotonic()
        self._crashes = [at for at in self._crashes if now - at < _CRASH_SECONDS] + [now]
        _tell(f"the local node ended unexpectedly; starting another (see {self._place.log_path})")
        if len(self._crashes) >= _CRASHES:
            raise NodeError(
                f"the local node ended unexpectedly {_CRASHES} times in {_CRASH_SECONDS:.0f} seconds",
                f"see {self._place.log_path}, or set JOBFORGE_NODE=off to work without it",
            )

    def _drop_node(self) -> None:
        if self._node is not None:
            self._node.close()
            self._node = None

    def _check(self) -> None:
        """Stop waiting for a node when nobody is there to use it.

        Raises:
            GivenUpError: The parent is gone, or the input ended with nothing in it.
        """
        poller = select.poll()
        poller.register(self._in, select.POLLIN)
        events = dict(poller.poll(0)).get(self._in, 0)
        has_ended = events & select.POLLHUP and not events & select.POLLIN and not self._to_node
        if has_ended or self._parent.is_gone():
            raise GivenUpError


class LineBuffer:
    """Cuts a stream of bytes into lines; what has no end yet waits for the rest."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Add bytes, and give the lines that are whole now, each with its end."""
        self._pending += chunk
        if b"\n" not in chunk:
            return
        *lines, rest = self._pending.split(b"\n")
        self._pending = rest
        for line in lines:
            yield bytes(line) + b"\n"

    def rest(self) -> bytes:
        """Give the end of line that an unfinished last line lacks."""
        return b"\n" if self._pending else b""


class Parent:
    """The process that started this one; a host that dies may leave the pipe open in somebody else's hands."""

    def __init__(self) -> None:
        self._pid = os.getppid()
        self.descriptor = -1
        if sys.platform == "linux" and self._pid > 1:
            try:
                self.descriptor = os.pidfd_open(self._pid)
            except OSError:
                self.descriptor = -1

    def is_gone(self) -> bool:
        """Tell whether this process has been handed to another parent."""
        return os.getppid() != self._pid

    def close(self) -> None:
        """Let go of the parent's descriptor."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _answered_id(line: bytes) -> str | None:
    """Read which request a line of the node answers; the node always writes the id second."""
    if not line.startswith(_ANSWER_HEAD):
        return None
    head = line[len(_ANSWER_HEAD) : len(_ANSWER_HEAD) + 1024].decode(errors="replace")
    try:
        identity, end = json.JSONDecoder().raw_decode(head)
    except ValueError:
        return None
    is_answer = head.startswith((',"result"', ',"error"'), end)
    return json.dumps(identity) if is_answer else None


def _canceled_id(message: dict[str, object]) -> str:
    params = message.get("params")
    if not isinstance(params, dict):
        return ""
    return json.dumps(params.get("requestId"))  # pyright: ignore[reportUnknownMemberType]  # any JSON


def _error_answer(key: str, code: str, message: str, hint: str) -> bytes:
    """Answer one request for a node that cannot."""
    error = {
        "code": -32603,
        "message": message,
        "data": {"code": code, "retryable": code == "NODE_LOST", "hint": hint},
    }
    return b'{"jsonrpc":"2.0","id":%s,"error":%s}\n' % (key.encode(), json.dumps(error).encode())


def _tell(text: str) -> None:
    """Say something to whoever reads the host's log of this server."""
    print(f"jobforge: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
