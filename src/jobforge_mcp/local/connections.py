"""The node's side of a chat: hello, then MCP in lines over the socket, then a farewell.

One worker pool and one server serve all connections; what a connection has of its own is its policy token and the
requests that it waits for. The token is kept and shown to the gate for every call, because it may expire meanwhile.

Who is at the other end was settled by the directory's mode; the kernel is asked again for each connection.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Protocol, TypeAlias

import anyio
import structlog
from anyio.abc import SocketAttribute, SocketListener, SocketStream, TaskStatus
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCError, JSONRPCRequest, JSONRPCResponse, jsonrpc_message_adapter

from jobforge_mcp.errors import PolicyDeniedError
from jobforge_mcp.local import rendezvous
from jobforge_mcp.types import Caller, JsonObject

log = structlog.stdlib.get_logger(__name__)

HELLO_SECONDS = 5.0
"""A bridge says hello as soon as it is connected."""

_NEVER_ANSWERED = frozenset({"subscriptions/listen"})
_TOO_LONG: JsonObject = {
    "jsonrpc": "2.0",
    "id": None,
    "error": {
        "code": -32600,
        "message": f"a message may have at most {rendezvous.LONGEST_LINE} bytes",
    },
}

ReadStream: TypeAlias = MemoryObjectReceiveStream[SessionMessage | Exception]
WriteStream: TypeAlias = MemoryObjectSendStream[SessionMessage]

ServeStreams = Callable[[ReadStream, WriteStream, str | None], Awaitable[None]]
"""Speaks MCP over a pair of streams for the bearer of a token, or for the local tenant, until the reading side ends."""


class Orders(Protocol):
    """What a connection may ask of the node besides MCP."""

    def describe(self) -> JsonObject:
        """Say how the node is."""
        ...

    def stop(self, reason: str) -> None:
        """End in order, soon."""
        ...

    def keep(self) -> None:
        """Stay when nothing is left to do."""
        ...


class Connections:
    """All chats of the node."""

    def __init__(
        self, *, identify: Callable[[str | None], Caller], serve: ServeStreams, orders: Orders
    ) -> None:
        """Take the gate's verification, what speaks MCP, and the node."""
        self._identify = identify
        self._serve = serve
        self._orders = orders
        self._chats: set[Chat] = set()
        self._ended = anyio.Event()
        self._accepting = anyio.CancelScope()
        self.changed = anyio.Event()
        """Set, and replaced, whenever a chat begins or ends."""

    def __len__(self) -> int:
        return len(self._chats)

    async def accept(self, listener: SocketListener) -> None:
        """Serve who connects, until `stop_accepting` is called and all connections have ended."""
        async with anyio.create_task_group() as tasks:
            with self._accepting, suppress(anyio.ClosedResourceError):
                await listener.serve(self._handle, tasks)

    def stop_accepting(self) -> None:
        """Let nobody in any more. Before the listener is closed: closed in the middle of an accept, it breaks all chats."""
        self._accepting.cancel()

    async def drain(self, seconds: float) -> None:
        """Let all chats finish what they began, for a time; then say farewell to each."""
        async with anyio.create_task_group() as tasks:
            for chat in list(self._chats):
                tasks.start_soon(chat.end, seconds)

    async def _handle(self, stream: SocketStream) -> None:
        """Serve one connection to its end; whatever goes wrong is its own affair."""
        try:
            async with stream:
                await self._greet(stream)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream):
            log.debug("connection_lost")
        except Exception:  # one chat's fault must not end the others
            log.exception("connection_failed")

    async def _greet(self, stream: SocketStream) -> None:
        if not rendezvous.is_own_peer(_socket_of(stream)):
            log.warning("stranger_refused")
            return
        line, rest = b"", b""
        with anyio.move_on_after(HELLO_SECONDS):
            line, rest = await _read_hello(stream)
        if not line:
            return
        hello = rendezvous.read_object(line)
        refusal = self._refusal(hello)
        if refusal is not None:
            await _send(stream, {"protocol": rendezvous.PROTOCOL, **refusal})
            return
        await _send(stream, {"protocol": rendezvous.PROTOCOL, **self._orders.describe()})
        match hello.get("want"):
            case "mcp":
                token = hello.get("token")
                await self._chat(stream, token if isinstance(token, str) else None, rest)
            case "stop":
                # Open until this process is gone: that is how the other side knows.
                os.dup(_socket_of(stream).fileno())
                self._orders.stop("asked to")
            case "keep":
                self._orders.keep()
            case _:
                pass

    def _refusal(self, hello: dict[str, object]) -> JsonObject | None:
        """Say why this connection cannot be served here, if that is so."""
        if hello.get("protocol") != rendezvous.PROTOCOL:
            return {
                "error": f"this node speaks protocol {rendezvous.PROTOCOL}, and the other side does not",
                "hint": "jobforge node stop ends it; the next chat starts its own version's",
            }
        if hello.get("want") != "mcp":
            return None
        if rendezvous.is_newer(hello.get("version"), than=rendezvous.VERSION):
            self._orders.stop("replaced by a newer version")
            return {"restarting": True}
        token = hello.get("token")
        try:
            self._identify(token if isinstance(token, str) else None)
        except PolicyDeniedError as error:
            return {"error": f"{error.code}: {error.message}", "hint": error.hint or ""}
        return None

    async def _chat(self, stream: SocketStream, token: str | None, rest: bytes) -> None:
        chat = Chat(stream, rest)
        self._chats.add(chat)
        self._tell_change()
        try:
            await chat.run(lambda reading, writing: self._serve(reading, writing, token))
        finally:
            self._chats.discard(chat)
            self._tell_change()

    def _tell_change(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()


class Chat:
    """One connection that speaks MCP."""

    def __init__(self, stream: SocketStream, received: bytes = b"") -> None:
        """Take the socket, and what came together with the hello."""
        self._stream = stream
        self._received = received
        self._waiting: dict[str | int, str] = {}
        self._answered = anyio.Event()
        self._reading = anyio.CancelScope()
        self._is_ending = False
        self._scope = anyio.CancelScope()
        self._send_lock = anyio.Lock()
        self._done = anyio.Event()

    async def run(self, serve: Callable[[ReadStream, WriteStream], Awaitable[None]]) -> None:
        """Serve until the other side is gone or `end` was called."""
        # Unbounded, as the server's loop does not wait for its calls either: a message is handed over, or was never read.
        into_server, from_client = anyio.create_memory_object_stream[SessionMessage | Exception](
            math.inf
        )
        into_client, from_server = anyio.create_memory_object_stream[SessionMessage](0)
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._write, from_server)
                    await tasks.start(self._read, into_server)
                    await serve(from_client, into_client)
                    tasks.cancel_scope.cancel()
        finally:
            for stream in (into_server, from_client, into_client, from_server):
                stream.close()
            self._done.set()
            self._answered.set()  # nobody is to be waited for any more

    async def end(self, seconds: float) -> None:
        """Take no more requests, let those that were begun be answered for a time, say farewell, and end."""
        self._is_ending = True
        self._reading.cancel()
        with anyio.move_on_after(seconds):
            while set(self._waiting.values()) - _NEVER_ANSWERED and not self._done.is_set():
                await self._answered.wait()
        gone = anyio.BrokenResourceError, anyio.ClosedResourceError
        with anyio.move_on_after(1, shield=True), suppress(*gone):
            unanswered: JsonObject = {"jobforge": "bye", "unanswered": [*self._waiting]}
            async with self._send_lock:
                await _send(self._stream, unanswered)
        self._scope.cancel()
        await self._done.wait()

    async def _read(
        self,
        into_server: MemoryObjectSendStream[SessionMessage | Exception],
        *,
        task_status: TaskStatus[None],
    ) -> None:
        task_status.started()
        with self._reading:
            async with aclosing(_lines(self._stream, self._received)) as lines:
                async for line in lines:
                    with suppress(anyio.BrokenResourceError):
                        await self._take(line, into_server)
        # A server that sees the end cancels what it is doing; one that is to finish must not see it.
        if not self._is_ending:
            into_server.close()

    async def _take(
        self, line: bytes | None, into_server: MemoryObjectSendStream[SessionMessage | Exception]
    ) -> None:
        """Pass one message on. Nothing can come between noting a request and handing it over."""
        if line is None:
            async with self._send_lock:
                await _send(self._stream, _TOO_LONG)
            return
        try:
            message = jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValueError as error:
            into_server.send_nowait(error)
            return
        if isinstance(message, JSONRPCRequest):
            self._waiting[message.id] = message.method
        into_server.send_nowait(SessionMessage(message))

    async def _write(self, from_server: MemoryObjectReceiveStream[SessionMessage]) -> None:
        async for item in from_server:
            message = item.message
            line = message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
            try:
                async with self._send_lock:
                    await self._stream.send(line)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                # The reader notices as well, and ends the chat.
                continue
            finally:
                if isinstance(message, JSONRPCResponse | JSONRPCError) and message.id is not None:
                    self._waiting.pop(message.id, None)
                    self._answered.set()
                    self._answered = anyio.Event()


def _socket_of(stream: SocketStream) -> socket.socket:
    return stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - not Django's


async def _read_hello(stream: SocketStream) -> tuple[bytes, bytes]:
    """Read the first line, and what came after it."""
    received = b""
    while b"\n" not in received:
        if len(received) > rendezvous.LONGEST_HELLO:
            raise anyio.BrokenResourceError
        received += await stream.receive()
    line, _, rest = received.partition(b"\n")
    return line, rest


async def _lines(stream: SocketStream, received: bytes) -> AsyncGenerator[bytes | None]:
    """Cut what arrives into lines; a line that is too long is skipped and becomes ``None``."""
    pending = bytearray()
    is_skipping = False
    while True:
        *lines, rest = received.split(b"\n")
        for line in lines:
            whole = bytes(pending) + line
            pending.clear()
            if is_skipping or len(whole) > rendezvous.LONGEST_LINE:
                is_skipping = False
                yield None
            elif whole.strip():
                yield whole
        pending += rest
        if len(pending) > rendezvous.LONGEST_LINE:
            pending.clear()
            is_skipping = True
        try:
            received = await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return


async def _send(stream: SocketStream, message: JsonObject) -> None:
    await stream.send(rendezvous.write_object(message))
