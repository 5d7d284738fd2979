"""The tasks that attempts run in: one after another in the same task, until one of them has to wait.

A task costs more than a short job. So attempts are taken from a queue by one task, each in a context of its own; the
first that waits for something keeps the task and its cancel scope for itself, and another task goes on with the queue.
Whatever a handler binds to its task (scopes, task groups, cancellation) therefore belongs to it alone.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 - anyio tells of a cancellation by walking all scopes around, for each short job
import contextvars
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import anyio
import anyio.lowlevel

from jobforge_mcp.worker.attempt import Attempt

TURN_SECONDS = 0.002
"""How long attempts that never wait may run before the rest of the worker gets its turn."""


class Runners:
    """Runs what is put, in order, as concurrently as it wants to be."""

    def __init__(
        self,
        run: Callable[[Attempt], Coroutine[object, object, None]],
        start: Callable[[Callable[[], Coroutine[object, object, None]]], None],
    ) -> None:
        """Take what runs one attempt, and how to start a task."""
        self._run = run
        self._start = start
        self._due: deque[Attempt] = deque()
        self._is_served = False

    def put(self, attempt: Attempt) -> None:
        """Run an attempt soon."""
        self._due.append(attempt)
        if not self._is_served:
            self._is_served = True
            self._start(self._serve)

    async def _serve(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        turn_ends = time.monotonic() + TURN_SECONDS
        with anyio.CancelScope() as scope:
            while self._due:
                attempt = self._due.popleft()
                attempt.scope = scope
                work, context = self._run(attempt), contextvars.copy_context()
                try:
                    waits_for = context.run(work.send, None)
                except StopIteration:
                    pass
                else:
                    self._pass_on()
                    await _Rest(work, context, waits_for)
                    return
                if scope.cancel_called or task.cancelling():
                    break  # what is left of it must not hit the next one
                if time.monotonic() >= turn_ends:
                    await anyio.lowlevel.checkpoint()
                    turn_ends = time.monotonic() + TURN_SECONDS
        self._pass_on()

    def _pass_on(self) -> None:
        """Leave the queue to another task."""
        self._is_served = bool(self._due)
        if self._is_served:
            self._start(self._serve)


class _Rest:
    """Awaits what is left of a coroutine that waits for something, with context variables of its own."""

    def __init__(
        self, work: Coroutine[object, object, None], context: contextvars.Context, waits_for: object
    ) -> None:
        self._work = work
        self._run = context.run
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        run, work, waits_for = self._run, self._work, self._waits_for
        try:
            while True:
                try:
                    answer = yield waits_for
                except BaseException as error:  # noqa: BLE001 - it is for the coroutine, whatever it is
                    waits_for = run(work.throw, error)
                else:
                    waits_for = run(work.send, answer)
        except StopIteration:
            return
