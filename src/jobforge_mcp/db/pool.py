"""A pool of connections for one role, and how statements are run on it.

Each connection acts as its role before anything else is sent: when the URL logs in as somebody else, by ``set role``. A
role that row level security would not bind is refused.

Cancellation and statements do not mix: a statement that was sent is waited for, within its time, so that nobody has to
wonder whether it was carried out, and so that a connection never goes back to the pool in the middle of an answer. A
canceled task is canceled right before or right after.

Not here: what a statement means, and which class an error of ours becomes; that is the router's. What does surface
here is a connection that failed, see `failures`.
"""

from __future__ import annotations

import random
import select
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, LiteralString, Self, TypeAlias, TypeVar

import anyio
import anyio.lowlevel
import psycopg
from psycopg import errors, sql
from psycopg.rows import AsyncRowFactory, DictRow, dict_row, tuple_row
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from jobforge_mcp.db.failures import interrupted, malformed_url, unreachable
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
from jobforge_mcp.errors import DatabaseUnavailableError, OperatorError

Row: TypeAlias = DictRow
"""One row by the names of its columns."""

Parameters: TypeAlias = Sequence[Any]

Connection: TypeAlias = psycopg.AsyncConnection[DictRow]

_AnyRow = TypeVar("_AnyRow")
_REPEATS = 3
_SPARE_SECONDS = 2.0
_AT_HAND_SECONDS = 60.0


class Database:
    """An open pool for one role; an async context manager."""

    def __init__(
        self,
        url: str,
        *,
        role: str,
        min_size: int = 1,
        max_size: int = 8,
        name: str = "jobforge",
        statement_timeout_seconds: float = 15.0,
        acquire_timeout_seconds: float = 5.0,
    ) -> None:
        """Describe the pool; nothing is opened before the block is entered.

        Args:
            url: where, and as whom to log in.
            role: as whom to act; ``set role`` is sent when the login is somebody else.
            min_size: connections kept open.
            max_size: connections opened at most; further callers wait in turn.
            name: shown as ``application_name`` in ``pg_stat_activity``.
            statement_timeout_seconds: how long one statement may take, by the server's and by our own clock.
            acquire_timeout_seconds: how long a caller waits for a free connection.
        """
        self.url = url
        self.role = role
        self._statement_seconds = statement_timeout_seconds
        self._acquire_seconds = acquire_timeout_seconds
        self._refusal: OperatorError | None = None
        self._at_hand: Connection | None = None
        """The connection that was used last, out of the pool: going from one to the next would find each backend's caches cold."""
        self._at_hand_until = 0.0
        """By the monotonic clock: from then on the pool is given it back, which closes those that are old."""
        self._waiting = 0
        """Callers who wait for a connection of the pool."""
        self._options: dict[str, Any] = {**CONNECTION_OPTIONS, "application_name": name}
        self._pool = AsyncConnectionPool[Connection](
            url,
            connection_class=psycopg.AsyncConnection[DictRow],
            kwargs={
                **self._options,
                "autocommit": True,
                "row_factory": dict_row,
                "prepare_threshold": 1,
            },
            min_size=min_size,
            max_size=max_size,
            open=False,
            name=name,
            configure=self._configure,
            check=_check,
            timeout=acquire_timeout_seconds,
            reconnect_timeout=acquire_timeout_seconds,
            max_idle=60.0,
            num_workers=1,
        )

    async def __aenter__(self) -> Self:
        """Open the pool once a connection of the role has been made and checked.

        Raises:
            SettingsError: the URL, the login or the role will not do.
            SchemaError: the database has no schema of ours.
            DatabaseUnavailableError: the database cannot be reached.
        """
        await self._probe()
        try:
            await self._pool.open(wait=True, timeout=self._acquire_seconds)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await self._pool.close(timeout=2.0)
            if isinstance(error, PoolTimeout):
                raise self._refusal or unreachable(error) from error
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the pool; what is still running on it loses its connection."""
        with anyio.CancelScope(shield=True):
            if self._at_hand is not None:
                await self._pool.putconn(self._at_hand)
                self._at_hand = None
            await self._pool.close(timeout=2.0)

    async def fetch(
        self, query: LiteralString, parameters: Parameters = (), *, is_repeatable: bool = False
    ) -> list[Row]:
        """Run one statement in a transaction of its own and return its rows.

        An answer that says nothing was done for the moment (a deadlock, a serialization failure, a plan that a migration
        made stale) is followed by another try. A connection that breaks before the answer came is, only if the call
        ``is_repeatable``: because it reads, or because the database recognises it.

        Raises:
            DatabaseUnavailableError: there is no connection, or it was lost before the answer came.
            psycopg.Error: the database refused the statement.
        """
        return await self._fetch(query, parameters, dict_row, is_repeatable=is_repeatable)

    async def fetch_tuples(
        self, query: LiteralString, parameters: Parameters = (), *, is_repeatable: bool = False
    ) -> list[tuple[Any, ...]]:
        """Do what :meth:`fetch` does, for many rows: theirs are tuples in the order of the query's columns."""
        return await self._fetch(query, parameters, tuple_row, is_repeatable=is_repeatable)

    async def _fetch(
        self,
        query: LiteralString,
        parameters: Parameters,
        rows: AsyncRowFactory[_AnyRow],
        *,
        is_repeatable: bool,
    ) -> list[_AnyRow]:
        tries = 0
        may_break_again = is_repeatable
        while True:
            tries += 1
            try:
                await anyio.lowlevel.checkpoint_if_cancelled()
                connection = await self._acquire()
                try:
                    return await self._execute(connection, query, parameters, rows)
                finally:
                    await self._release(connection)
            except _BrokenConnection as broken:
                if not may_break_again:
                    raise _after_break(broken, is_repeatable) from broken.__cause__
                may_break_again = False
            except _TRANSIENT:
                if tries >= _REPEATS:
                    raise
                await anyio.sleep(random.uniform(0.005, 0.05) * tries)

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Transaction]:
        """Open a transaction for several statements; committed at the end of the block, rolled back if it is left otherwise.

        Raises:
            DatabaseUnavailableError: there is no connection, or it was lost; with ``OUTCOME_UNKNOWN`` during the commit.
        """
        try:
            async with self._connection() as connection:
                await self._run(connection, "begin")
                try:
                    yield Transaction(connection, self._run)
                except BaseException:
                    await self._roll_back(connection)
                    raise
                try:
                    await self._run(connection, "commit")
                except _BrokenConnection as broken:
                    raise interrupted() from broken.__cause__
        except _BrokenConnection as broken:
            raise unreachable(broken.reason) from broken.__cause__

    async def _roll_back(self, connection: Connection) -> None:
        if not connection.closed:
            try:
                await self._run(connection, "rollback")
            except psycopg.Error:
                await connection.close()

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[Connection]:
        await anyio.lowlevel.checkpoint_if_cancelled()
        connection = await self._acquire()
        try:
            yield connection
        finally:
            await self._release(connection)

    async def _acquire(self) -> Connection:
        """Take the connection at hand or one of the pool; a cancellation waits for it, because in the middle one would be lost."""
        at_hand, self._at_hand = self._at_hand, None
        if at_hand is not None:
            try:
                _refuse_dead(at_hand)
            except psycopg.OperationalError:
                await self._give_back(at_hand)
            else:
                return at_hand
        self._waiting += 1
        try:
            with anyio.CancelScope(shield=True):
                return await self._ask_pool()
            raise AssertionError("a shield lets nothing through")
        finally:
            self._waiting -= 1

    async def _release(self, connection: Connection) -> None:
        """Keep one connection at hand, unless somebody waits for it or the pool should look at it again."""
        if (
            self._at_hand is None
            and not self._waiting
            and connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE
            and time.monotonic() < self._at_hand_until
            and not self._pool.closed
        ):
            self._at_hand = connection
        else:
            await self._give_back(connection)

    async def _give_back(self, connection: Connection) -> None:
        with anyio.CancelScope(shield=True):
            await self._pool.putconn(connection)

    async def _ask_pool(self) -> Connection:
        try:
            connection = await self._pool.getconn()
        except PoolTimeout as error:
            if self._refusal is not None:
                raise self._refusal from error
            raise DatabaseUnavailableError(
                f"no connection to the database became free within {self._acquire_seconds:g} s",
                hint="the database is down or busy; try again in a few seconds",
            ) from error
        except (PoolClosed, TooManyRequests) as error:
            raise DatabaseUnavailableError(
                "the connections to the database are closed", hint="the process is stopping"
            ) from error
        except psycopg.OperationalError as error:
            raise unreachable(error) from error
        self._at_hand_until = time.monotonic() + _AT_HAND_SECONDS
        return connection

    async def _run(
        self, connection: Connection, query: LiteralString, parameters: Parameters = ()
    ) -> list[Row]:
        return await self._execute(connection, query, parameters, dict_row)

    async def _execute(
        self,
        connection: Connection,
        query: LiteralString,
        parameters: Parameters,
        rows: AsyncRowFactory[_AnyRow],
    ) -> list[_AnyRow]:
        """Run one statement to its end, whatever is canceled meanwhile, within its time."""
        seconds = self._statement_seconds + _SPARE_SECONDS
        with anyio.move_on_after(seconds, shield=True):
            try:
                cursor = connection.cursor(binary=True, row_factory=rows)
                await cursor.execute(query, parameters or None)
                # not asked of the description, which makes an object of every column
                result = cursor.pgresult
                return await cursor.fetchall() if result is not None and result.nfields else []
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                if connection.closed:
                    raise _BrokenConnection(error) from error
                raise
            except errors.FeatureNotSupported:
                # A prepared statement's function was replaced by one with other columns: prepare it anew.
                await connection.close()
                raise
        connection.pgconn.finish()
        raise _BrokenConnection(TimeoutError(f"no answer within {seconds:g} s"))

    async def _configure(self, connection: Connection) -> None:
        """Make a new connection act as the role, or refuse it."""
        try:
            await self._become(connection)
        except OperatorError as error:
            self._refusal = error
            raise
        self._refusal = None

    async def _become(self, connection: Connection) -> None:
        cursor = await connection.execute(CURRENT_USER)
        row = await cursor.fetchone()
        pooled = is_pooled(connection.info.backend_pid, row)
        if pooled:
            connection.prepare_threshold = None
        if row is None or row["name"] != self.role:
            if pooled:
                raise needs_own_login(self.role, row and row["name"])
            try:
                await connection.execute(sql.SQL("set role {}").format(sql.Identifier(self.role)))
            except (errors.InvalidParameterValue, errors.InsufficientPrivilege) as error:
                raise cannot_become(self.role, row and row["name"]) from error
        timeout = statement_timeout(self._statement_seconds)
        cursor = await connection.execute(CONFIGURE, [timeout, pooled], prepare=False)
        if refused := refusal(self.role, await cursor.fetchone()):
            raise refused

    async def _probe(self) -> None:
        """Connect once outside of the pool, which would hide why it cannot."""
        try:
            connection = await psycopg.AsyncConnection[DictRow].connect(
                self.url, autocommit=True, row_factory=dict_row, **self._options
            )
        except psycopg.OperationalError as error:
            raise unreachable(error) from error
        except psycopg.ProgrammingError as error:
            raise malformed_url() from error
        try:
            await self._become(connection)
        except psycopg.OperationalError as error:
            raise unreachable(error) from error
        finally:
            with anyio.CancelScope(shield=True):
                await connection.close()


class Transaction:
    """The statements of one open transaction, for those who need several."""

    def __init__(
        self,
        connection: Connection,
        run: Callable[[Connection, LiteralString, Parameters], Awaitable[list[Row]]],
    ) -> None:
        """Speak through this connection, as the pool it belongs to does."""
        self._connection = connection
        self._run = run

    async def fetch(self, query: LiteralString, parameters: Parameters = ()) -> list[Row]:
        """Run a statement and return its rows.

        Raises:
            DatabaseUnavailableError: the connection was lost, and the transaction with it.
            psycopg.Error: the database refused the statement.
        """
        try:
            return await self._run(self._connection, query, parameters)
        except _BrokenConnection as broken:
            raise unreachable(broken.reason) from broken.__cause__

    async def execute(self, query: LiteralString, parameters: Parameters = ()) -> None:
        """Run a statement for its effect."""
        await self.fetch(query, parameters)


# Answers that say that nothing was done and that the same statement may succeed at once.
_TRANSIENT = (errors.SerializationFailure, errors.DeadlockDetected, errors.FeatureNotSupported)


class _BrokenConnection(Exception):
    """A connection that failed while a statement was on its way."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _after_break(broken: _BrokenConnection, is_repeatable: bool) -> OperatorError:
    return unreachable(broken.reason) if is_repeatable else interrupted()


async def _check(connection: Connection) -> None:
    _refuse_dead(connection)


def _refuse_dead(connection: Connection) -> None:
    """Find out, without a round trip, that the server closed a connection while it was idle.

    Otherwise the first statement on it would fail with nobody knowing whether it was carried out.
    """
    pgconn = connection.pgconn
    while _has_input(pgconn.socket):
        pgconn.consume_input()
        if pgconn.status != psycopg.pq.ConnStatus.OK:
            raise psycopg.OperationalError("the server closed the connection")


def _has_input(socket: int) -> bool:
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([socket], [], [], 0)[0])
    poll = select.poll()
    poll.register(socket, select.POLLIN)
    return bool(poll.poll(0))
