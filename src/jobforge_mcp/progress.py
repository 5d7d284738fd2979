"""Fan the changes of runs out to whoever waits for them, with one poller per process.

A wait is a place in this module and nothing in the database: whoever leaves takes only that place along, and the run
goes on. The poller reads every waited-for run of a caller in one statement, at once when the embedded pool says that it
wrote something (:meth:`RunWatcher.publish`), soon when the listener hears of a change elsewhere, and at a bounded
interval whatever happens: a hint that is lost costs a moment, never an answer.

Above sits ``server``, which turns what it hears here into progress notifications. Nothing here knows of MCP.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Self
from uuid import uuid4

import anyio
import structlog

from jobforge_mcp.db.notify import RUNS, Listener
from jobforge_mcp.errors import NotFoundError
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.types import Caller, Ended, JobId, Run, RunStatus

POLL_SECONDS = 1.0
"""Between looks at waited-for runs while the listener hears of changes; a lost hint costs at most this."""

DEAF_POLL_SECONDS = 0.25
"""The same while the listener is down, or was never there."""

WAKEUP_MS = 30_000
"""How long the database is asked to announce changes of runs; renewed at half of it while somebody waits."""

BACKOFF_SECONDS = 0.5
"""Pause after the database did not answer the poller."""

KNOWN_RESULT_CHARS = 8_192
"""A result up to here is answered as its handler wrote it; a longer one is read, and cut where the stored text says."""

_EXPONENT = re.compile("[0-9][eE]")
"""What the database writes out: 1e3 is stored as 1000."""

_VERSION_AFTER_ONE_CLAIM = 7
"""Of a run that was claimed once, succeeded and had nothing to report: see the view ``runs``."""

log = structlog.stdlib.get_logger(__name__)

OnChange = Callable[[Run], Awaitable[None]]
OnBeat = Callable[[], Awaitable[None]]


@dataclass(eq=False, slots=True)
class _Waiter:
    """One place in the waiting room."""

    caller: Caller
    job_id: JobId
    version: int
    """The newest version this waiter was told of."""
    created: Run | None = None
    """The row that this very call wrote, already leased to this process."""
    run: Run | None = None
    """The newest row, once there is one that is news."""
    news: anyio.Event = field(default_factory=anyio.Event)
    since: float = field(default_factory=anyio.current_time)

    def tell(self, run: Run) -> None:
        if run.version > self.version or (run.status.is_final and self.run is None):
            self.version = run.version
            self.run = run
            self.news.set()


class RunWatcher:
    """Lets calls wait for runs. An async context manager: its poller lives inside."""

    def __init__(self, router: Router, listener: Listener | None = None) -> None:
        self._router = router
        self._listener = listener
        self._waiters: dict[JobId, set[_Waiter]] = {}
        self._published: set[JobId] = set()
        self._is_hinted = False
        self._wake = anyio.Event()
        self._somebody = anyio.Event()
        self._nobody = anyio.Event()
        self._look_at_all_from = 0.0
        self._stopping = anyio.Event()
        self._listener_id = f"watcher-{uuid4().hex}"
        self._announced_until = 0.0
        self._tasks = anyio.create_task_group()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._poll)
        if self._listener is not None:
            self._tasks.start_soon(self._listen, self._listener)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop_waiting()
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)

    @property
    def waiting(self) -> int:
        """How many calls wait at this moment."""
        return sum(len(waiters) for waiters in self._waiters.values())

    def publish(self, job_id: JobId) -> None:
        """Say that this process changed a run, after the change was committed."""
        if job_id in self._waiters:
            self._published.add(job_id)
            self._wake.set()

    def publish_end(self, ended: Ended) -> None:
        """Say that a run ended in this process: who enqueued it, and knows the rest of its row, need not read it again."""
        for waiter in tuple(self._waiters.get(ended.job_id, ())):
            run = _ended(waiter.created, ended)
            if run is None:
                self.publish(ended.job_id)
            else:
                waiter.tell(run)

    def stop_waiting(self) -> None:
        """Let every wait, present and future, return what is known by now: the process is about to end."""
        self._stopping.set()
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.news.set()

    async def wait_for_change(
        self,
        caller: Caller,
        job_id: JobId,
        *,
        since_version: int | None,
        timeout_seconds: float,
        on_change: OnChange | None = None,
        beat_seconds: float | None = None,
        on_beat: OnBeat | None = None,
    ) -> Run:
        """Return the run once it passed ``since_version`` or is final, or as it stands when the time is up.

        Without ``since_version`` only a final run ends the wait; ``on_change`` hears of every change meanwhile, and
        ``on_beat`` that there was none for ``beat_seconds``.

        Raises:
            NotFoundError: The caller has no such run.
        """
        with self.watch(caller, job_id) as watch:
            run = await self._router.get_run(caller, job_id)
            watch.saw(run)
            if run.status.is_final or (since_version is not None and run.version > since_version):
                return run
            return await watch.until(
                since_version=since_version,
                timeout_seconds=timeout_seconds,
                on_change=on_change,
                beat_seconds=beat_seconds,
                on_beat=on_beat,
            )

    @contextmanager
    def watch(
        self, caller: Caller, job_id: JobId, *, version: int = 0, created: Run | None = None
    ) -> Generator[Watch]:
        """Take a place before a run starts, so that nothing it does can be missed.

        ``created`` is its row, where the caller wrote it just now and this process runs it.
        """
        waiter = _Waiter(caller, job_id, version, created)
        self._waiters.setdefault(job_id, set()).add(waiter)
        self._somebody.set()
        try:
            yield Watch(self, waiter)
        finally:
            waiters = self._waiters[job_id]
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[job_id]
            if not self._waiters:
                self._nobody.set()

    async def read(self, caller: Caller, job_id: JobId) -> Run:
        """Read a run with its result."""
        return await self._router.get_run(caller, job_id)

    @property
    def is_stopping(self) -> bool:
        """Whether waits return at once because the process is about to end."""
        return self._stopping.is_set()

    async def stopped(self) -> None:
        """Return when the process is about to end."""
        await self._stopping.wait()

    async def wait_until_nobody_waits(self) -> None:
        """Return when every wait has ended."""
        while self._waiters:
            self._nobody = anyio.Event()
            await self._nobody.wait()

    def look_soon(self) -> None:
        """Make the poller look at every waited-for run without delay."""
        self._is_hinted = True
        self._wake.set()

    async def _listen(self, listener: Listener) -> None:
        with listener.subscribe(RUNS) as hints:
            while True:
                await hints.wait()
                if self._waiters:
                    self.look_soon()

    async def _poll(self) -> None:
        while True:
            await self._wait_for_reason()
            published, self._published = self._published, set()
            is_time = self._is_hinted or anyio.current_time() >= self._look_at_all_from
            job_ids = self._worth_a_look() | published if is_time else published
            if is_time:
                self._is_hinted = False
                self._look_at_all_from = anyio.current_time() + self._interval()
            try:
                await self._ask_for_announcements(job_ids - published)
                await self._look_at(job_ids)
            except (
                Exception
            ):  # the poller outlives a database that is away; waits have their own end
                log.exception("runs_not_read", runs=len(job_ids))
                await anyio.sleep(BACKOFF_SECONDS)

    def _worth_a_look(self) -> set[JobId]:
        """Name the waited-for runs, without those that began here a moment ago: what becomes of them this process is told first.

        Otherwise calls that wait one after the other would have all changes announced, and be read in the midst of their runs.
        """
        began = anyio.current_time() - POLL_SECONDS
        return {
            job_id
            for job_id, waiters in self._waiters.items()
            if any(waiter.created is None or waiter.since <= began for waiter in waiters)
        }

    async def _wait_for_reason(self) -> None:
        """Return on a publication or hint, or when it is time to look at all; never while nobody waits."""
        if not self._waiters:
            self._somebody = anyio.Event()
            await self._somebody.wait()
            self._look_at_all_from = anyio.current_time() + self._interval()
        with anyio.move_on_after(max(self._look_at_all_from - anyio.current_time(), 0)):
            await self._wake.wait()
        self._wake = anyio.Event()

    def _interval(self) -> float:
        is_deaf = self._listener is None or not self._listener.is_healthy
        return DEAF_POLL_SECONDS if is_deaf else POLL_SECONDS

    async def _ask_for_announcements(self, elsewhere: set[JobId]) -> None:
        """Have changes announced while somebody waits for a run that this process was not the one to change."""
        if not elsewhere or self._listener is None or anyio.current_time() < self._announced_until:
            return
        await self._router.await_wakeup(self._listener_id, "runs", WAKEUP_MS)
        self._announced_until = anyio.current_time() + WAKEUP_MS / 2_000

    async def _look_at(self, job_ids: Iterable[JobId]) -> None:
        wanted: dict[Caller, set[JobId]] = {}
        for job_id in job_ids:
            for waiter in self._waiters.get(job_id, ()):
                wanted.setdefault(waiter.caller, set()).add(job_id)
        for caller, ids in wanted.items():
            for run in await self._read(caller, sorted(ids)):
                for waiter in tuple(self._waiters.get(run.job_id, ())):
                    if waiter.caller == caller:
                        waiter.tell(run)

    async def _read(self, caller: Caller, job_ids: Sequence[JobId]) -> list[Run]:
        """Read many at once; a single run is read with its result, which saves the waiter a second look."""
        if len(job_ids) == 1:
            try:
                return [await self._router.get_run(caller, job_ids[0])]
            except NotFoundError:  # purged while somebody waited, who will learn of it by reading
                return []
        return await self._router.get_runs(caller, job_ids)


def _ended(created: Run | None, ended: Ended) -> Run | None:
    """Return the row as it must be by now; nothing where the stored result may read otherwise than the one that was sent."""
    if created is None or len(ended.result) > KNOWN_RESULT_CHARS or _EXPONENT.search(ended.result):
        return None
    return replace(
        created,
        status=RunStatus.SUCCEEDED,
        version=_VERSION_AFTER_ONE_CLAIM,
        started_at=ended.started_at,
        finished_at=ended.finished_at,
        worker_id=ended.worker_id,
        lease_until=None,
        result=ended.result,
    )


class Watch:
    """One call's place in the waiting room; see :meth:`RunWatcher.watch`."""

    def __init__(self, watcher: RunWatcher, waiter: _Waiter) -> None:
        self._watcher = watcher
        self._waiter = waiter

    def saw(self, run: Run) -> None:
        """Note a row that the caller has read by itself: only later versions are news."""
        if run.version >= self._waiter.version:
            self._waiter.version = run.version
            self._waiter.run = run

    async def until(
        self,
        *,
        since_version: int | None,
        timeout_seconds: float,
        on_change: OnChange | None = None,
        beat_seconds: float | None = None,
        on_beat: OnBeat | None = None,
    ) -> Run:
        """Wait for a version past ``since_version`` or for the end, at most so long, and return the run as it stands.

        ``on_beat`` is called whenever ``beat_seconds`` passed without anything to say.
        """
        waiter = self._waiter
        ends_at = anyio.current_time() + max(timeout_seconds, 0)
        while not self._watcher.is_stopping and (left := ends_at - anyio.current_time()) > 0:
            with anyio.move_on_after(min(left, beat_seconds or left)) as moment:
                await waiter.news.wait()
            if moment.cancelled_caught:
                if on_beat is not None and anyio.current_time() < ends_at:
                    await on_beat()
                continue
            waiter.news = anyio.Event()
            run = waiter.run
            if run is None:
                continue
            if run.status.is_final or (since_version is not None and run.version > since_version):
                break
            if on_change is not None:
                await on_change(run)
        known = waiter.run
        if known is None or (known.status.is_final and known.result is None):
            return await self._watcher.read(waiter.caller, waiter.job_id)
        return known
