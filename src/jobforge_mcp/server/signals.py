"""Turn SIGINT and SIGTERM into an orderly end: the first asks for it, the second does not wait."""

from __future__ import annotations

import signal
from collections.abc import Callable

import anyio
import structlog

log = structlog.stdlib.get_logger(__name__)


async def stop_on_signals(stop: anyio.Event, on_second: Callable[[], None] | None = None) -> None:
    """Set ``stop`` on the first signal and call ``on_second`` on the next; runs until it is cancelled."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for number in signals:
            log.info("stopping", signal=signal.Signals(number).name, is_first=not stop.is_set())
            if stop.is_set() and on_second is not None:
                on_second()
            stop.set()
