"""Progress and log lines of all attempts, sent together a few times a second.

Never more than one statement per ``INTERVAL_SECONDS`` for a whole worker, however much its handlers say; the first word
after a silence goes at once. Its answers carry cancel requests and lost leases, so a chatty attempt learns of them
before the next heartbeat.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import anyio
import structlog

from jobforge_mcp.router.leases import WorkerRouter
from jobforge_mcp.types import JobId, Report, ReportAnswer
from jobforge_mcp.worker.attempt import Attempt
from jobforge_mcp.worker.trouble import is_connection_trouble

INTERVAL_SECONDS = 0.25
"""Fast enough for a progress bar, slow enough to cost nothing: four small statements a second."""

log = structlog.stdlib.get_logger(__name__)


class Reporter:
    """Collects what attempts have to say, and says it."""

    def __init__(
        self, router: WorkerRouter, on_answer: Callable[[Attempt, ReportAnswer, float], None]
    ) -> None:
        """Take who is told each answer, with the monotonic time at which the question was sent."""
        self._router = router
        self._on_answer = on_answer
        self._dirty: dict[Attempt, None] = {}
        self._woken = anyio.Event()
        self._one_at_a_time = anyio.Lock()
        self._under_way: frozenset[Attempt] = frozenset()

    def has_word_of(self, attempt: Attempt) -> bool:
        """Tell whether something of an attempt is not yet in the database: unsaid, or on its way there."""
        return attempt.is_dirty or attempt in self._under_way

    @property
    def is_silent(self) -> bool:
        """Whether that is so of no attempt at all."""
        return not (self._dirty or self._under_way)

    def mark(self, attempt: Attempt) -> None:
        """Note that an attempt has something to say."""
        self._dirty[attempt] = None
        self._woken.set()

    async def run(self) -> None:
        """Report whatever is marked, until cancelled."""
        while True:
            await self._woken.wait()
            self._woken = anyio.Event()
            async with self._one_at_a_time:
                await self._send(list(self._dirty))
            await anyio.sleep(INTERVAL_SECONDS)
            if self._dirty:
                self._woken.set()

    async def flush(self, attempts: Iterable[Attempt]) -> None:
        """Say all that attempts which are at their end have to say; what cannot be delivered waits for the next try."""
        async with self._one_at_a_time:
            remaining = [attempt for attempt in attempts if attempt.is_dirty]
            while remaining:
                if not await self._send(remaining):
                    return
                remaining = [attempt for attempt in remaining if attempt.is_dirty]

    async def _send(self, attempts: list[Attempt]) -> bool:
        # One epoch of a job at a time: the answers name jobs.
        batch: dict[JobId, tuple[Attempt, Report]] = {}
        for attempt in attempts:
            self._dirty.pop(attempt, None)
            if attempt.fence.job_id in batch:
                self._dirty[attempt] = None
            elif (report := attempt.take_report()) is not None:
                batch[attempt.fence.job_id] = (attempt, report)
                if attempt.is_dirty:
                    self._dirty[attempt] = None
        if not batch:
            return True
        sent_at = time.monotonic()
        self._under_way = frozenset(attempt for attempt, _ in batch.values())
        try:
            answers = await self._router.report_progress([report for _, report in batch.values()])
        except Exception as error:  # noqa: BLE001 - what handlers say must not end the worker, whatever it is
            self._keep(batch.values(), error)
            return False
        finally:
            self._under_way = frozenset()
        for answer in answers:
            if (entry := batch.get(answer.job_id)) is not None:
                self._on_answer(entry[0], answer, sent_at)
        return True

    def _keep(self, batch: Iterable[tuple[Attempt, Report]], error: Exception) -> None:
        is_passing = is_connection_trouble(error)
        log.warning("report_failed", exc_info=error, will_retry=is_passing)
        for attempt, report in batch:
            if is_passing:
                attempt.give_back(report)
                self._dirty[attempt] = None
