"""The heartbeat's own connection: blocking, owned by one thread, and never waiting for long.

A heartbeat that hangs is as bad as none: every step has a limit well below a lease, by our own clock as well as by the
server's, and a connection that failed in any way is thrown away, so that the next beat begins afresh.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, LiteralString, Self, TypeVar

import psycopg
from psycopg import errors, sql
from psycopg.abc import PQGen
from psycopg.rows import DictRow, dict_row

from jobforge_mcp.db.failures import malformed_url, unreachable
from jobforge_mcp.db.session import (
    CONFIGURE,
    CONNECTION_OPTIONS,
    CURRENT_USER,
    cannot_become,
    is_pooled,
    needs_own_login,
    refusal,
    statement_timeout,
)
from jobforge_mcp.router.errors import translated
from jobforge_mcp.router.rows import to_held_lease
from jobforge_mcp.types import HeldLease, LeaseId, TenantId, WorkerId

_Answer = TypeVar("_Answer")

# A third of the shortest lease worth having, which is 10 s; libpq knows no shorter time to connect than 2 s.
_LIMIT_SECONDS: Final = 3.0
_SPARE_SECONDS: Final = 0.5
_OPTIONS: Final[dict[str, Any]] = {
    **CONNECTION_OPTIONS,
    "connect_timeout": 2,
    "tcp_user_timeout": 3_000,
    "application_name": "jobforge heartbeat",
}
_HEARTBEAT: LiteralString = (
    "select r.* from jobforge.heartbeat(%s::text, %s::text[], %s::uuid[], %s::int) as r"
)


class _BoundedConnection(psycopg.Connection[DictRow]):
    """A connection that waits for no answer longer than the limit."""

    def wait(
        self, gen: PQGen[_Answer], interval: float = 0.1, timeout: float | None = None
    ) -> _Answer:
        limit = _LIMIT_SECONDS + _SPARE_SECONDS
        return super().wait(gen, interval, timeout=limit if timeout is None else timeout)


class HeartbeatConnection:
    """Extends the leases of one worker; for one thread, which also opens and closes it."""

    def __init__(self, url: str, role: str = "jobforge_worker") -> None:
        """Describe the connection; it is opened by the first beat, and again after a failure."""
        self._url = url
        self._role = role
        self._connection: _BoundedConnection | None = None

    def __enter__(self) -> Self:
        """Do nothing yet: a server that is down now may be up at the first beat."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self.close()

    def beat(
        self,
        worker_id: WorkerId,
        leases: Sequence[tuple[TenantId, LeaseId]],
        lease_ms: int,
    ) -> list[HeldLease]:
        """Extend these leases; one that is not in the answer is gone.

        Raises:
            DatabaseUnavailableError: not extended, as far as we know; beat again.
            SettingsError: the login or the role will not do.
        """
        arguments = [
            worker_id,
            [tenant_id for tenant_id, _ in leases],
            [lease_id for _, lease_id in leases],
            lease_ms,
        ]
        try:
            with translated():
                connection = self._connection or self._connect()
                rows = connection.execute(_HEARTBEAT, arguments, binary=True).fetchall()
        except psycopg.OperationalError as error:
            self.close()
            raise unreachable(error) from error
        except BaseException:
            self.close()
            raise
        return [to_held_lease(row) for row in rows]

    def close(self) -> None:
        """Close the connection; a later beat opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connect(self) -> _BoundedConnection:
        try:
            connection = _BoundedConnection.connect(
                self._url, autocommit=True, row_factory=dict_row, prepare_threshold=1, **_OPTIONS
            )
        except psycopg.ProgrammingError as error:
            raise malformed_url() from error
        self._connection = connection
        row = connection.execute(CURRENT_USER).fetchone()
        pooled = is_pooled(connection.info.backend_pid, row)
        if pooled:
            connection.prepare_threshold = None
        if row is None or row["name"] != self._role:
            if pooled:
                raise needs_own_login(self._role, row and row["name"])
            try:
                connection.execute(sql.SQL("set role {}").format(sql.Identifier(self._role)))
            except (errors.InvalidParameterValue, errors.InsufficientPrivilege) as error:
                raise cannot_become(self._role, row and row["name"]) from error
        timeout = statement_timeout(_LIMIT_SECONDS)
        configured = connection.execute(CONFIGURE, [timeout, pooled], prepare=False).fetchone()
        if refused := refusal(self._role, configured):
            raise refused
        return connection
