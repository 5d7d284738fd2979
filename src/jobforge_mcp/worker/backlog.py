"""Jobs claimed ahead of a free slot, so that short ones need no round trip each.

How many are fetched ahead follows from how long jobs took lately: never more than the slots work off in
``AHEAD_SECONDS``, so a worker whose jobs take longer than that fetches none. A job waits here ``LONGEST_WAIT_SECONDS``
at most, in case the ones before it take longer than those that ended; then it is given back for others to claim.

Tenants take turns, so that who comes later does not wait for all that was fetched for another. A turn is long enough for
most leases of many tenants to end in one: what is settled whole costs less.
"""

from __future__ import annotations

import time
from collections import deque

from jobforge_mcp.types import TenantId
from jobforge_mcp.worker.attempt import Attempt

AHEAD_SECONDS = 0.05

LONGEST_WAIT_SECONDS = 0.5

MAX_AHEAD = 500

TURN = 50
"""Jobs of one tenant before it is another's turn."""

_STILL_SECONDS = 0.1
"""Without an attempt that ended for so long the slots are taken by longer jobs than those that were measured."""


class Backlog:
    """The waiting attempts of one worker, and the pace at which it works."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._queues: dict[TenantId, deque[Attempt]] = {}
        self._turns: deque[deque[Attempt]] = deque()
        """The queues; the one whose turn it is first."""
        self._taken = 0
        """Jobs taken in this turn."""
        self._count = 0
        self._pace = 1.0
        self._ended_at = 0.0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, attempt: Attempt) -> bool:
        return attempt in self._queues.get(attempt.lease.tenant_id, ())

    def put(self, attempt: Attempt) -> None:
        """Let an attempt wait for a slot."""
        queue = self._queues.get(attempt.lease.tenant_id)
        if queue is None:
            queue = self._queues[attempt.lease.tenant_id] = deque()
            self._turns.append(queue)
        queue.append(attempt)
        self._count += 1

    def pop(self) -> Attempt:
        """Take the first of the tenant whose turn it is."""
        queue = self._turns[0]
        attempt = queue.popleft()
        self._count -= 1
        self._taken += 1
        if not queue:
            self._drop(queue, attempt)
        elif self._taken >= TURN:
            self._taken = 0
            self._turns.rotate(-1)
        return attempt

    def remove(self, attempt: Attempt) -> None:
        """Take out one that is not to run."""
        queue = self._queues[attempt.lease.tenant_id]
        queue.remove(attempt)
        self._count -= 1
        if not queue:
            self._drop(queue, attempt)

    def _drop(self, queue: deque[Attempt], last: Attempt) -> None:
        if queue is self._turns[0]:
            self._taken = 0
        del self._queues[last.lease.tenant_id]
        self._turns.remove(queue)

    def all(self) -> list[Attempt]:
        """Return the waiting attempts, those of a tenant in their order."""
        return [attempt for queue in self._turns for attempt in queue]

    def overdue(self) -> list[Attempt]:
        """Return those that waited too long, and fetch fewer from now on."""
        limit = time.monotonic() - LONGEST_WAIT_SECONDS
        found = [attempt for attempt in self.all() if attempt.received_at < limit]
        if found:
            self._pace = max(self._pace, LONGEST_WAIT_SECONDS)
        return found

    def note_end(self, began_at: float) -> None:
        """Learn how long an attempt took that ends now: a long one counts at once, short ones by and by."""
        now = self._ended_at = time.monotonic()
        more = now - began_at - self._pace
        self._pace += more * (0.5 if more > 0 else 0.05)

    @property
    def room_when_empty(self) -> int:
        """How many jobs may wait."""
        if time.monotonic() - self._ended_at > _STILL_SECONDS:
            return 0
        return min(MAX_AHEAD, int(self._slots * AHEAD_SECONDS / max(self._pace, 1e-6)))
