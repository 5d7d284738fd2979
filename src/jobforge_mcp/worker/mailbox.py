"""Calls from other threads into the worker's event loop, without waiting for it.

The heartbeat must never wait for a loop that a handler blocks, which everything in ``anyio.from_thread`` does.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable

import anyio
import structlog

log = structlog.stdlib.get_logger(__name__)


class Mailbox:
    """A queue of calls, and a socket pair that wakes the loop."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._inside, self._outside = socket.socketpair()
        self._inside.setblocking(False)
        self._outside.setblocking(False)
        self._loop_thread = threading.get_ident()

    def post(self, call: Callable[[], None]) -> None:
        """Have the loop make a call soon; from any thread, and also after the loop is gone."""
        self._calls.append(call)
        try:
            self._outside.send(b"\0")
        except (BlockingIOError, OSError):
            # Full: enough bytes are under way to wake the loop. Closed: nobody is left to be woken.
            return

    def run(self, call: Callable[[], None]) -> None:
        """Make a call now when this is the loop's thread, else post it."""
        if threading.get_ident() == self._loop_thread:
            call()
        else:
            self.post(call)

    async def deliver(self) -> None:
        """Make the calls as they come, until cancelled."""
        while True:
            await anyio.wait_readable(self._inside)
            try:
                self._inside.recv(4096)
            except BlockingIOError:
                continue
            while self._calls:
                call = self._calls.popleft()
                try:
                    call()
                except Exception:  # one failed call must not deafen the worker
                    log.exception("mailbox_call_failed")

    def close(self) -> None:
        """Give the sockets back."""
        self._inside.close()
        self._outside.close()
