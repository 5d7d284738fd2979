"""Hears notifications on a connection of its own and wakes whoever subscribed.

A notification is a hint and never the truth: it says "look now", carries nothing, and may be missed. Everybody who
subscribes also polls. After every reconnection all subscribers are woken, because something may have been missed.

LISTEN dies silently, and poolers in transaction mode swallow it, so the listener tests itself: it notifies a channel of
its own every few seconds, and is healthy only while it hears itself.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Self
from uuid import uuid4

import anyio
import psycopg
import structlog
from psycopg import sql

from jobforge_mcp.db.session import CONNECTION_OPTIONS, PROCESS

READY: Final = "jobforge_ready"
"""Channel: a job became due while a worker slept."""

RUNS: Final = "jobforge_runs"
"""Channel: a run changed while somebody watched."""

EVENTS: Final = "jobforge_events"
"""Channel: an event was stored whose triggers nobody asked, or a schedule has a new time."""

_TEST_SECONDS = 10.0
_QUIET_SECONDS = 1.0
_ECHO_SECONDS = 2.0
_FIRST_BACKOFF_SECONDS = 0.1
_LONGEST_BACKOFF_SECONDS = 10.0

_log = structlog.get_logger()


class Subscription:
    """Remembers that something was heard since it was last waited for."""

    def __init__(self, listener: Listener, channel: str) -> None:
        """Belong to this listener until closed."""
        self._listener = listener
        self._channel = channel
        self._event = anyio.Event()

    def __enter__(self) -> Self:
        """Hear from now on."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Hear no more."""
        self.close()

    def close(self) -> None:
        """Hear no more."""
        self._listener.forget(self)

    async def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait for a hint, or take one that came since the last call; tell whether there was one in time."""
        with anyio.move_on_after(timeout_seconds):
            await self._event.wait()
        was_heard = self._event.is_set()
        if was_heard:
            self._event = anyio.Event()
        return was_heard

    def wake(self) -> None:
        """Give the hint."""
        self._event.set()

    def is_for(self, channel: str) -> bool:
        """Tell whether hints of this channel are wanted."""
        return self._channel == channel


class Listener:
    """Listens to some channels while its block runs; an async context manager that never fails to start."""

    def __init__(
        self,
        url: str,
        role: str | None = None,
        *,
        channels: Sequence[str] = (READY, RUNS, EVENTS),
        test_seconds: float = _TEST_SECONDS,
    ) -> None:
        """Describe the connection.

        Args:
            url: where, and as whom to log in; not through a pooler in transaction mode.
            role: as whom to act; anybody may listen.
            channels: what to listen to.
            test_seconds: how often to test that notifications arrive.
        """
        self._url = url
        self._role = role
        self._channels = tuple(channels)
        self._test_seconds = test_seconds
        self._test_channel = f"jobforge_test_{uuid4().hex}"
        self._subscriptions: list[Subscription] = []
        self._heard: set[str] = set()
        self._health = _Health()
        self._opened = AsyncExitStack()

    @property
    def is_healthy(self) -> bool:
        """Whether the last test notification was heard; polling goes on regardless."""
        return self._health.is_good

    async def wait_until_healthy(self) -> None:
        """Wait until a test notification was heard; bounded by the caller."""
        await self._health.good.wait()

    async def __aenter__(self) -> Self:
        """Begin to listen, in the background."""
        tasks = await self._opened.enter_async_context(anyio.create_task_group())
        self._opened.callback(tasks.cancel_scope.cancel)
        tasks.start_soon(self._listen_for_ever)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Stop listening."""
        return await self._opened.__aexit__(kind, error, traceback)

    def subscribe(self, channel: str) -> Subscription:
        """Hear the hints of one channel until the subscription is closed."""
        if channel not in self._channels:
            raise ValueError(f"{channel} is not listened to")
        subscription = Subscription(self, channel)
        self._subscriptions.append(subscription)
        return subscription

    def forget(self, subscription: Subscription) -> None:
        """Give a subscription no more hints."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    async def _listen_for_ever(self) -> None:
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            started_at = anyio.current_time()
            try:
                await self._listen()
            except (psycopg.Error, OSError) as error:
                _log.warning("listener_lost", error=type(error).__name__)
            self._health.turn_bad()
            if anyio.current_time() - started_at > _LONGEST_BACKOFF_SECONDS:
                backoff = _FIRST_BACKOFF_SECONDS
            await anyio.sleep(backoff * random.uniform(1.0, 1.5))
            backoff = min(backoff * 2, _LONGEST_BACKOFF_SECONDS)

    async def _listen(self) -> None:
        connection = await psycopg.AsyncConnection.connect(
            self._url, autocommit=True, application_name="jobforge listener", **CONNECTION_OPTIONS
        )
        try:
            row = await (await connection.execute(PROCESS)).fetchone()
            pooled = row is not None and row[0] != connection.info.backend_pid
            # On a connection that is shared the role would stay with others; anybody may listen.
            if self._role is not None and not pooled:
                await connection.execute(sql.SQL("set role {}").format(sql.Identifier(self._role)))
            for channel in (*self._channels, self._test_channel):
                await connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
            # for what arrives with the answer to a statement
            connection.add_notify_handler(lambda notification: self._hand_on(notification.channel))
            self._wake_all()
            while True:
                await self._test(connection, is_pooled=pooled)
                await self._hear(connection, self._test_seconds)
        finally:
            # Not closed politely: in the middle of an answer that could wait, and the server notices anyway.
            connection.pgconn.finish()

    async def _test(self, connection: psycopg.AsyncConnection, *, is_pooled: bool) -> None:
        """Notify ourselves and see whether it comes back.

        Through a pooler from another connection: what we sent ourselves would come with the answer to the sending, also
        where nothing is passed on between two statements.
        """
        self._heard.clear()
        with anyio.fail_after(_ECHO_SECONDS * 5):
            if is_pooled:
                async with await psycopg.AsyncConnection.connect(
                    self._url, autocommit=True, **CONNECTION_OPTIONS
                ) as other:
                    await other.execute("select pg_notify(%s, '')", [self._test_channel])
            else:
                await connection.execute("select pg_notify(%s, '')", [self._test_channel])
        if await self._hear(connection, _ECHO_SECONDS, until=self._test_channel):
            self._health.turn_good()
        elif self._health.turn_bad():
            _log.warning("listener_deaf", hint="a pooler in transaction mode swallows LISTEN")

    async def _hear(
        self, connection: psycopg.AsyncConnection, seconds: float, until: str | None = None
    ) -> bool:
        """Hand on what arrives for so long, or until this channel is heard; tell whether it was.

        Read from the socket itself: the library's own loop would look ten times a second whether there is anything. Once it
        is quiet again this ends early: a server tells what hearing cost it in its statistics only with the next statement.
        """
        pgconn = connection.pgconn
        with anyio.move_on_after(seconds) as scope:
            ends_at = scope.deadline
            while True:
                while notification := pgconn.notifies():
                    self._hand_on(notification.relname.decode())
                    if until is None:
                        scope.deadline = min(ends_at, anyio.current_time() + _QUIET_SECONDS)
                if until in self._heard:
                    return True
                await anyio.wait_readable(pgconn.socket)
                pgconn.consume_input()
        return False

    def _hand_on(self, channel: str) -> None:
        self._heard.add(channel)
        self._wake(channel)

    def _wake(self, channel: str) -> None:
        for subscription in self._subscriptions:
            if subscription.is_for(channel):
                subscription.wake()

    def _wake_all(self) -> None:
        for subscription in self._subscriptions:
            subscription.wake()


class _Health:
    """A flag that can be waited for."""

    def __init__(self) -> None:
        self.good = anyio.Event()

    @property
    def is_good(self) -> bool:
        return self.good.is_set()

    def turn_good(self) -> None:
        self.good.set()

    def turn_bad(self) -> bool:
        """Tell whether this is new."""
        was_good = self.good.is_set()
        if was_good:
            self.good = anyio.Event()
        return was_good
