"""Ends a process of ours even if a handler in it never lets itself be stopped.

Leaving a pool waits for its task group, and so for an async handler that swallows its cancellation; leaving the interpreter
waits for a thread. The run is released by then, or its lease runs out; what is left is a process that nobody can use. So
whoever serves or works as a process calls this once it has drained. Nothing else may: it ends the process it is called in.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Final

LINGER_SECONDS: Final = 15.0
"""What a drained process gets to end by itself."""


def end_for_certain() -> None:
    """End this process before long, unless it has ended by itself until then."""
    timer = threading.Timer(LINGER_SECONDS, _end)
    timer.daemon = True
    timer.start()


def _end() -> None:
    sys.stderr.write("a handler could not be stopped; the process ends without it\n")
    sys.stderr.flush()
    os._exit(1)
