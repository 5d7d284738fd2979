"""What the author of a handler imports: ``from jobforge_mcp import job, JobContext, Retry``.

Names are resolved when they are first used, so that importing the package, which the stdio bridge does on every start of
a chat, loads nothing but this file. Everything else is reached through its own module.
"""

from __future__ import annotations

from importlib import import_module

# Not from typing: that is 5 ms for every chat.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobforge_mcp.client import Client
    from jobforge_mcp.definitions.model import Retry, job
    from jobforge_mcp.errors import PermanentError, RetryableError, RetryLater
    from jobforge_mcp.worker.context import JobContext

__all__ = ["Client", "JobContext", "PermanentError", "Retry", "RetryLater", "RetryableError", "job"]

_HOMES = {
    "Client": "jobforge_mcp.client",
    "JobContext": "jobforge_mcp.worker.context",
    "PermanentError": "jobforge_mcp.errors",
    "Retry": "jobforge_mcp.definitions.model",
    "RetryLater": "jobforge_mcp.errors",
    "RetryableError": "jobforge_mcp.errors",
    "job": "jobforge_mcp.definitions.model",
}


def __getattr__(name: str) -> object:
    """Import a public name from its home, once."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
