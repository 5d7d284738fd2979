"""How many jobs a worker may run at the same time, and who has reserved one of them.

Compositions have slots of their own: a look at one takes milliseconds and runs nothing of a user's, so it neither waits for
handlers that take long nor takes a slot from them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import anyio

from jobforge_mcp.types import ClaimedJob
from jobforge_mcp.worker.attempt import Attempt
from jobforge_mcp.worker.backlog import Backlog

COMPOSITION_SLOTS = 3
"""Compositions that a worker looks at at the same time: enough to keep one connection busy."""


class Bell:
    """Wakes who waits until a slot is free, of whatever kind."""

    def __init__(self) -> None:
        """Be silent."""
        self._rung: anyio.Event | None = None

    def ring(self) -> None:
        """Wake who waits."""
        if self._rung is not None:
            self._rung.set()
            self._rung = None

    async def wait(self) -> None:
        """Return when it rings next."""
        self._rung = rung = anyio.Event()
        await rung.wait()


class Slots:
    """A counter that rings a bell when one is given back."""

    def __init__(self, total: int, bell: Bell) -> None:
        self.total = total
        self._taken = 0
        self._bell = bell

    @property
    def free(self) -> int:
        """How many are free; adopted jobs may have overbooked the worker."""
        return max(0, self.total - self._taken)

    @property
    def taken(self) -> int:
        """How many are not free."""
        return self._taken

    @property
    def is_overbooked(self) -> bool:
        """Whether more are taken than there are."""
        return self._taken > self.total

    def take(self, count: int = 1) -> None:
        """Take slots, free or not."""
        self._taken += count

    def give_back(self, count: int = 1) -> None:
        """Give slots back, and wake who waits."""
        self._taken -= count
        if count:
            self._bell.ring()


class Track:
    """The slots for one kind of job, and those jobs that wait for one."""

    def __init__(self, total: int, bell: Bell) -> None:
        self.slots = Slots(total, bell)
        self.backlog = Backlog(total)
        self._bell = bell

    def note_end(self, began_at: float) -> Attempt | None:
        """Learn that an attempt has ended; return the one that gets its slot, else the slot is free."""
        backlog = self.backlog
        backlog.note_end(began_at)
        if not backlog or self.slots.is_overbooked:
            self.slots.give_back()
            return None
        self._bell.ring()
        return backlog.pop()

    @property
    def room(self) -> int:
        """How many more jobs could be run now or soon; less than nothing where more are there."""
        return self.slots.free + self.backlog.room_when_empty - len(self.backlog)


class SlotReservation:
    """One slot kept for a job that is just being enqueued: use it or give it back, once.

    As a context manager it gives back what was not used.
    """

    def __init__(self, slots: Slots, start: Callable[[ClaimedJob, float], None]) -> None:
        self._slots = slots
        self._start = start
        self._is_open = True

    def adopt(self, claimed: ClaimedJob, *, leased_at: float | None = None) -> None:
        """Run a job that was inserted already leased to this worker.

        ``leased_at`` is the monotonic time just before the statement that leased it; without it, now.
        """
        if not self._is_open:
            raise RuntimeError("the slot was used or given back")
        self._is_open = False
        self._start(claimed, time.monotonic() if leased_at is None else leased_at)

    def release(self) -> None:
        """Give the slot back, unless it was used."""
        if self._is_open:
            self._is_open = False
            self._slots.give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.release()
