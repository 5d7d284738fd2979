"""A TCP proxy between everybody and PostgreSQL that can cut, hold and swallow.

Swallowing a reply is the cruelest: the server has committed, and the caller never hears of it.
"""

from __future__ import annotations

import random
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass

import anyio
from anyio.abc import SocketAttribute, SocketStream, TaskGroup

_CHUNK = 65_536


@dataclass(eq=False)
class _Link:
    client: SocketStream
    server: SocketStream
    is_reply_lost: bool = False
    """Whether what the server says next is to be swallowed, and the connection then cut."""

    def reset(self) -> None:
        """Cut both ends so that they see a reset, not an orderly end."""
        for stream in (self.client, self.server):
            with suppress(OSError):
                raw = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - no Django here
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Proxy:
    """Forwards one port of the loopback interface to another."""

    def __init__(self, port: int, target: int) -> None:
        """Forward ``port`` to ``target`` once `run` does."""
        self.port = port
        self._target = target
        self._links: set[_Link] = set()
        self._scopes: dict[_Link, anyio.CancelScope] = {}
        self._held_until = 0.0

    async def run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Serve until cancelled."""
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=self.port)
        async with listener, anyio.create_task_group() as group:
            task_status.started()
            await listener.serve(lambda client: self._serve(client, group))

    def turn_to(self, port: int) -> None:
        """Forward to another port from now on, and cut what there is."""
        self._target = port
        self.cut_all()

    def cut(self, share: float, chance: random.Random) -> int:
        """Reset this share of the connections, and say how many."""
        return self._reset([link for link in self._links if chance.random() < share])

    def cut_all(self) -> int:
        """Reset every connection."""
        return self._reset(list(self._links))

    def lose_replies(self, share: float, chance: random.Random) -> int:
        """Swallow what the server says next to this share of the connections, then reset them."""
        chosen = [link for link in self._links if chance.random() < share]
        for link in chosen:
            link.is_reply_lost = True
        return len(chosen)

    def hold(self, seconds: float) -> None:
        """Let nothing through for a while: a black hole, from which nobody hears even a reset."""
        self._held_until = anyio.current_time() + seconds

    def _reset(self, links: list[_Link]) -> int:
        for link in links:
            link.reset()
            if scope := self._scopes.get(link):
                scope.cancel()
        return len(links)

    async def _serve(self, client: SocketStream, _: TaskGroup) -> None:
        try:
            server = await anyio.connect_tcp("127.0.0.1", self._target)
        except OSError:
            await client.aclose()
            return
        link = _Link(client, server)
        with anyio.CancelScope() as scope:
            self._links.add(link)
            self._scopes[link] = scope
            async with anyio.create_task_group() as pumps:
                pumps.start_soon(self._pump, link, client, server, scope)
                pumps.start_soon(self._pump, link, server, client, scope)
        self._links.discard(link)
        self._scopes.pop(link, None)
        with anyio.CancelScope(shield=True):
            for stream in (client, server):
                with suppress(OSError, anyio.BrokenResourceError):
                    await stream.aclose()

    async def _pump(
        self, link: _Link, source: SocketStream, sink: SocketStream, scope: anyio.CancelScope
    ) -> None:
        with suppress(
            anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError
        ):
            while True:
                chunk = await source.receive(_CHUNK)
                while (left := self._held_until - anyio.current_time()) > 0:  # noqa: ASYNC110 - time alone ends it
                    await anyio.sleep(left)
                if link.is_reply_lost and source is link.server:
                    link.reset()
                    break
                await sink.send(chunk)
        scope.cancel()
