"""The embedded PostgreSQL: found, created, kept and stopped with nothing but the standard library.

Three kinds of process meet in a state directory, and only kernel locks stand between them:

* **users** hold ``users.lock`` shared for life. `ensure_running` takes it and returns the `Cluster` that holds it.
* **the keeper** holds ``keeper.lock``. It is started by the first user who could take that lock, and inherits it. It is
  the parent of PostgreSQL. While the server is ready it holds ``server.json``, which says where it is.
* **PostgreSQL** runs in ``pg<major>``, is reached over a socket in a private folder only, and dies with its keeper where
  the kernel can arrange that.

Who dies: a user, by whatever signal: the kernel drops its lock; after the linger time without users the keeper takes
``users.lock`` for itself, which makes newcomers wait, and stops the server. The postmaster: the keeper starts it again.
The keeper: PostgreSQL follows it or stays as an orphan; the next user's keeper ends that one, and nothing else.

Roles: ``jobforge_admin`` owns the database ``jobforge`` and makes roles, for migrations; ``jobforge_api`` and
``jobforge_worker`` serve; nothing serves as ``jobforge_superuser``, whom no row level security would bind.

Not empty as other packages' ``__init__`` are: to the rest of the code this is one module, ``embedded``.
"""

from __future__ import annotations

from jobforge_mcp.embedded.binaries import find_binaries
from jobforge_mcp.embedded.client import (
    DEFAULT_LINGER_SECONDS,
    Cluster,
    Status,
    ensure_running,
    status,
    stop,
)
from jobforge_mcp.embedded.places import scratch_state_directory, state_directory

__all__ = [
    "DEFAULT_LINGER_SECONDS",
    "Cluster",
    "Status",
    "ensure_running",
    "find_binaries",
    "scratch_state_directory",
    "state_directory",
    "status",
    "stop",
]
