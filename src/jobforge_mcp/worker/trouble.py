"""Tell trouble on the way to the database, which passes, from a statement that the database refuses, which does not."""

from __future__ import annotations

from jobforge_mcp.errors import DatabaseUnavailableError, JobForgeError

_PASSING = frozenset({"OperationalError", "InterfaceError"})


def is_connection_trouble(error: BaseException) -> bool:
    """Whether the same call of a worker may succeed later; all of them can be repeated.

    What surfaces from the driver itself (a deadlock, a statement's timeout) is told by the names of PEP 249, because
    the driver is known to the layers below alone.
    """
    if isinstance(error, DatabaseUnavailableError | OSError):
        return True
    if isinstance(error, JobForgeError):
        return False
    return any(kind.__name__ in _PASSING for kind in type(error).__mro__)
