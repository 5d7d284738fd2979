"""Names the place of a node: which directory belongs to a state directory and a database.

The bridge and ``settings.py`` must come to the same answer, and the bridge cannot afford the settings class; a test
compares them. Standard library only, for the reasons given in ``rendezvous``.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_LONGEST_SOCKET_PATH = 107 if sys.platform == "linux" else 103


class Place:
    """The directory of one node and the files in it."""

    __slots__ = ("directory", "is_embedded", "lock_path", "log_path", "socket_path", "state_dir")

    def __init__(self, state_dir: str, database: str) -> None:
        """Name the place for a state directory and a database; empty is the embedded Postgres."""
        name = f"db-{_short_hash(database)}" if database else "local"
        self.state_dir = state_dir
        self.is_embedded = not database
        self.directory = os.path.join(state_dir, "nodes", name)
        self.lock_path = os.path.join(self.directory, "lock")
        self.log_path = os.path.join(self.directory, "node.log")
        self.socket_path = os.path.join(self.directory, "socket")
        if len(os.fsencode(self.socket_path)) > _LONGEST_SOCKET_PATH:
            # The same place always gets the same path. /tmp is open to all: owner and mode are checked before use.
            folder = f"jobforge-{os.geteuid()}-{_short_hash(self.directory)}"
            self.socket_path = os.path.join(_runtime_directory(), folder, "socket")


def find_place(environ: Mapping[str, str] = os.environ) -> Place:
    """Find the place for the settings of this process, by the same rules as ``settings.py``."""
    from_file = read_settings_file()
    database = (
        environ.get("JOBFORGE_DATABASE_URL")
        or environ.get("DATABASE_URL")
        or from_file.get("database_url", "")
    )
    worker = environ.get("JOBFORGE_WORKER_DATABASE_URL") or from_file.get("worker_database_url", "")
    named = environ.get("JOBFORGE_STATE_DIR") or from_file.get("state_dir", "")
    state_dir = os.path.expanduser(named) if named else default_state_dir(environ)
    return Place(os.path.realpath(state_dir), "\0".join(filter(None, (database, worker))))


def default_state_dir(environ: Mapping[str, str]) -> str:
    """Name the platform's place for such data; for root a system directory, because its home is closed to Postgres."""
    if os.geteuid() == 0:
        return "/var/lib/jobforge"
    home = os.path.expanduser("~")
    if sys.platform == "darwin":
        return os.path.join(home, "Library", "Application Support", "jobforge")
    base = environ.get("XDG_DATA_HOME", "")
    return os.path.join(
        base if base.startswith("/") else os.path.join(home, ".local", "share"), "jobforge"
    )


def read_settings_file() -> dict[str, str]:
    """Read what matters here from ``jobforge.toml``; a file that is no TOML is the node's to complain about."""
    try:
        with open("jobforge.toml", "rb") as file:
            import tomllib

            return {
                name: value for name, value in tomllib.load(file).items() if isinstance(value, str)
            }
    except (OSError, ValueError):
        return {}


def _runtime_directory() -> str:
    named = os.environ.get("XDG_RUNTIME_DIR", "")
    return named if named.startswith("/") and len(named) < 40 else "/tmp"  # noqa: S108 - owner and mode are checked


def _short_hash(text: str) -> str:
    # hashlib would load OpenSSL: 4 MB for every chat.
    from _blake2 import blake2b

    return blake2b(text.encode(), digest_size=8).hexdigest()
