"""The HTTP/1.1 protocol of uvicorn with an end to its patience: who sends a request slowly, or none, is hung up on.

uvicorn bounds how long an idle connection is kept after an answer, and nothing else: a connection that never sends a byte, or a
header a minute, would be held for ever, and headers without end would fill the memory. Bodies are bounded by the SDK. What
waits for an answer of ours is never touched.
"""

from __future__ import annotations

from typing import Any, ClassVar

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

log = structlog.stdlib.get_logger(__name__)

MOST_HEAD_BYTES = 65_536
"""Of a request's line and headers together; proxies allow 8 to 32 KiB."""


def protocol_with_patience(seconds: float) -> type[HttpToolsProtocol]:
    """Return the protocol class for uvicorn's ``http``: a request may take so many seconds to arrive."""
    return type("Protocol", (_Protocol,), {"seconds": seconds})


class _Protocol(HttpToolsProtocol):
    """Hangs up when a request is not whole in time, counted from the connection or from its first byte."""

    seconds: ClassVar[float]
    _hanging_up: Any = None
    _head_bytes = 0
    _is_in_head = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_expecting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self._hang_up("head_too_large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head, self._head_bytes = True, 0
        self._expect()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        super().on_headers_complete()
        if (
            self.flow.read_paused
        ):  # an earlier request of this connection is answered first: that is our time
            self._stop_expecting()

    def on_message_complete(self) -> None:
        self._stop_expecting()
        super().on_message_complete()

    def _expect(self) -> None:
        if self._hanging_up is None:
            self._hanging_up = self.loop.call_later(self.seconds, self._hang_up, "too_slow")

    def _stop_expecting(self) -> None:
        if self._hanging_up is not None:
            self._hanging_up.cancel()
            self._hanging_up = None

    def _hang_up(self, reason: str) -> None:
        self._stop_expecting()
        log.info("client_hung_up_on", reason=reason)
        self.transport.abort()
