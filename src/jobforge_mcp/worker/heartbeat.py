"""The heartbeat: a thread and a connection of its own that keep the leases of one worker alive.

A handler that blocks the event loop stops everything else of its worker, but not this: its neighbours keep their leases,
and the handler is named in the log. The thread owns nothing but the connection. It reads the leases from a dictionary
that the loop keeps, and gives its news back through the mailbox, never waiting for the loop.

What happens when something dies here: a connection that breaks is opened anew at the next beat; when the database stays
out of reach, the pool gives its leases up by its own clock before the database takes them
(:meth:`Heartbeat.leases_to_give_up`); when the process dies, so do the beats, and the leases end by themselves.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Protocol

import structlog

from jobforge_mcp.types import Fence, HeldLease, JobId, LeaseId, TenantId, WorkerId
from jobforge_mcp.worker.attempt import Attempt, LeaseHold
from jobforge_mcp.worker.mailbox import Mailbox

BLOCKED_SECONDS = 2.0
"""A loop that was not seen for so long is blocked: it ticks ten times a second."""

log = structlog.stdlib.get_logger(__name__)


class BeatConnection(Protocol):
    """What the thread beats through; after a failure it begins afresh by itself."""

    def beat(
        self, worker_id: WorkerId, leases: Sequence[tuple[TenantId, LeaseId]], lease_ms: int
    ) -> list[HeldLease]:
        """Extend leases."""
        ...

    def close(self) -> None:
        """Close the connection, if there is one."""
        ...


@dataclass(frozen=True, slots=True)
class BeatTimes:
    """How often, and how long a lease lasts."""

    lease_ms: int
    interval_ms: int
    blocked_seconds: float = BLOCKED_SECONDS

    @property
    def margin_seconds(self) -> float:
        """How long before its end a lease is given up: time to stop the work."""
        return min(1.0, self.lease_ms / 5_000)


@dataclass(frozen=True, slots=True)
class News:
    """Whom the loop's side tells what the database answered."""

    on_lost: Callable[[LeaseHold], None]
    on_cancel: Callable[[Attempt], None]


class Heartbeat:
    """Holds the leases of one worker."""

    def __init__(
        self,
        connect: Callable[[], BeatConnection],
        worker_id: WorkerId,
        times: BeatTimes,
        *,
        mailbox: Mailbox,
        news: News,
    ) -> None:
        self._connect = connect
        self._worker_id = worker_id
        self._times = times
        self._mailbox = mailbox
        self._news = news
        # One claim of many tenants is a lease of each, all with one id.
        self._leases: dict[tuple[str, int], LeaseHold] = {}
        self._stopping = threading.Event()
        self._loop_thread = threading.get_ident()
        self._ticked_at = time.monotonic()
        self._handler_code: CodeType | None = None
        self._thread = threading.Thread(target=self._run, name="jobforge-heartbeat", daemon=True)

    def start(self, handler_code: CodeType) -> None:
        """Begin; a frame of ``handler_code`` on the loop's stack tells which attempt blocks it."""
        self._handler_code = handler_code
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread beats."""
        return self._thread.is_alive() and not self._stopping.is_set()

    def stop(self, timeout: float = 5.0) -> None:
        """End the thread; blocks until its last beat returned, so not to be called on the loop."""
        self._stopping.set()
        self._thread.join(timeout)

    def hold(self, fence: Fence, until: float) -> LeaseHold:
        """Begin to extend a lease, and return it; the same one for every job of it."""
        key = (fence.tenant_id, fence.lease_id.int)
        lease = self._leases.get(key)
        if lease is None:
            lease = LeaseHold(TenantId(fence.tenant_id), fence.lease_id, until)
            self._leases[key] = lease
        return lease

    def drop(self, attempt: Attempt) -> None:
        """Let go of one job of a lease, and of the lease with its last job."""
        lease, number = attempt.lease, attempt.fence.job_id.int
        attempts = lease.attempts
        if attempts.get(number) is attempt:
            del attempts[number]
        if not attempts:
            self._leases.pop(lease.key, None)

    def extend(self, lease: LeaseHold, sent_at: float) -> None:
        """Note that a call sent at that time extended a lease."""
        lease.until = max(lease.until, sent_at + self._times.lease_ms / 1_000)

    def tick(self) -> None:
        """Show that the loop is alive."""
        self._ticked_at = time.monotonic()

    def leases_to_give_up(self) -> list[LeaseHold]:
        """Return the leases that no beat could extend and that are about to end."""
        limit = time.monotonic() + self._times.margin_seconds
        return [lease for lease in self._leases.values() if lease.until < limit]

    def forget(self, lease: LeaseHold) -> None:
        """Stop extending a lease that is lost."""
        lease.is_lost = True
        self._leases.pop(lease.key, None)

    def _run(self) -> None:
        connection = self._connect()
        interval = self._times.interval_ms / 1_000
        pause = min(0.5, interval / 2, self._times.blocked_seconds / 4)
        next_beat = time.monotonic() + interval
        watch = _LoopWatch(self)
        while not self._stopping.wait(pause):
            watch.look()
            if time.monotonic() < next_beat:
                continue
            started = time.monotonic()
            try:
                self._beat(connection)
            except Exception as error:  # the beats go on whatever stopped this one; only the clock gives a lease up
                log.warning("heartbeat_failed", error=type(error).__name__, exc_info=error)
                # Soon again: a lease survives two lost beats, not three.
                next_beat = time.monotonic() + min(1.0, interval / 4)
            else:
                next_beat = started + interval
        connection.close()

    def _beat(self, connection: BeatConnection) -> None:
        asked = list(self._leases.copy().values())
        if not asked:
            return
        sent_at = time.monotonic()
        answers = connection.beat(
            self._worker_id,
            [(lease.tenant_id, lease.lease_id) for lease in asked],
            self._times.lease_ms,
        )
        held = {(str(answer.tenant_id), answer.lease_id.int): answer for answer in answers}
        lost: list[LeaseHold] = []
        canceled: list[tuple[LeaseHold, frozenset[JobId]]] = []
        for lease in asked:
            answer = held.get(lease.key)
            if answer is None:
                lost.append(lease)
                continue
            self.extend(lease, sent_at)
            if answer.cancel_ids:
                canceled.append((lease, answer.cancel_ids))
        if lost or canceled:
            self._mailbox.post(lambda: self._tell(lost, canceled))

    def _tell(
        self, lost: list[LeaseHold], canceled: list[tuple[LeaseHold, frozenset[JobId]]]
    ) -> None:
        """Pass the news on, on the loop's thread."""
        for lease in lost:
            # A lease whose last job was settled while the beat was under way is not lost.
            if self._leases.get(lease.key) is lease:
                self._news.on_lost(lease)
        for lease, job_ids in canceled:
            for number in {job_id.int for job_id in job_ids} & lease.attempts.keys():
                self._news.on_cancel(lease.attempts[number])

    def blocking_attempt(self) -> tuple[Attempt | None, str]:
        """Find on the loop's stack which attempt's handler is being executed, and where."""
        frame = sys._current_frames().get(self._loop_thread)  # pyright: ignore[reportPrivateUsage]  # documented for this use
        place = f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "unknown"
        return _attempt_on(frame, self._handler_code), place

    @property
    def silent_seconds(self) -> float:
        """How long the loop has not been seen."""
        return time.monotonic() - self._ticked_at

    @property
    def is_blocked(self) -> bool:
        """Whether the loop has not been seen for too long."""
        return self.silent_seconds > self._times.blocked_seconds


class _LoopWatch:
    """Reports a blocked loop once, and once more when it is free again."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat
        self._blocked_since: float | None = None

    def look(self) -> None:
        heartbeat = self._heartbeat
        if heartbeat.is_blocked and self._blocked_since is None:
            self._blocked_since = time.monotonic() - heartbeat.silent_seconds
            attempt, place = heartbeat.blocking_attempt()
            log.warning(
                "event_loop_blocked",
                seconds=round(heartbeat.silent_seconds, 1),
                place=place,
                **(attempt.names if attempt else {}),
            )
        elif not heartbeat.is_blocked and self._blocked_since is not None:
            seconds = round(time.monotonic() - self._blocked_since, 1)
            self._blocked_since = None
            log.info("event_loop_free", seconds=seconds)


def _attempt_on(frame: FrameType | None, handler_code: CodeType | None) -> Attempt | None:
    while frame is not None:
        if frame.f_code is handler_code:
            attempt = frame.f_locals.get("attempt")
            return attempt if isinstance(attempt, Attempt) else None
        frame = frame.f_back
    return None
