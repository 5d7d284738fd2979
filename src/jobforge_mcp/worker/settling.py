"""Outcomes of attempts, settled together.

While one statement is under way, the attempts that finish pile up and go with the next: an idle worker settles at once,
a busy one in batches. A lease that is settled whole costs the database a quarter less than one that is settled bit by bit:
what has ended of it waits a moment for those of its jobs whose turn is about to come. Trouble with the connection is waited out for as long as the lease
may live; a row that the database refuses must not take the others of its statement with it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import assert_never

import anyio
import structlog

from jobforge_mcp.router.leases import WorkerRouter
from jobforge_mcp.types import Completion, Failure, FailureKind, RunError, Settled
from jobforge_mcp.worker.attempt import Attempt, Release, Verdict, Wait
from jobforge_mcp.worker.evidence import capped
from jobforge_mcp.worker.failures import MAX_MESSAGE_BYTES
from jobforge_mcp.worker.reporting import Reporter
from jobforge_mcp.worker.trouble import is_connection_trouble

MAX_BATCH = 500
"""Attempts one statement settles."""

MAX_BATCH_CHARACTERS = 8 * 1024 * 1024
"""Of results in one statement: a few large ones go alone rather than keep the small ones waiting."""

WHOLE_LEASE = 50
"""Attempts that make a lease worth a statement of its own, when all that is left of it has ended."""

HOLD_SECONDS = 0.02
"""What an attempt that has ended waits at most for others of its lease that have not begun."""

MAX_BACKOFF_SECONDS = 2.0

LEASE_MARGIN_SECONDS = 1.0
"""How long after its reckoned end a lease is surely gone; trying a little too long is harmless, the fence refuses."""

log = structlog.stdlib.get_logger(__name__)


class Settler:
    """Takes finished attempts and writes what became of them."""

    def __init__(
        self,
        router: WorkerRouter,
        reporter: Reporter,
        on_settled: Callable[[Attempt, Settled | None], None],
    ) -> None:
        """Take who is told each answer; ``None`` is no answer, the lease ended first."""
        self._router = router
        self._reporter = reporter
        self._on_settled = on_settled
        self._waiting: list[Attempt] = []
        self._under_way = 0
        self._woken = anyio.Event()
        self._idle = anyio.Event()
        self._idle.set()

    @property
    def pending(self) -> int:
        """How many attempts are finished and not settled."""
        return len(self._waiting) + self._under_way

    def put(self, attempt: Attempt, verdict: Verdict) -> None:
        """Hand over an attempt; from here on it neither reports nor changes its mind."""
        if attempt.is_settling:
            return
        attempt.is_settling = True
        attempt.verdict = verdict
        attempt.ended_at = time.monotonic()
        waiting = self._waiting
        waiting.append(attempt)
        if len(waiting) == 1:
            self._idle = anyio.Event() if self._idle.is_set() else self._idle
            self._woken.set()
        elif not attempt.lease.not_begun or type(verdict) is not Completion:
            self._woken.set()

    async def wait_idle(self) -> None:
        """Return when nothing is left to settle."""
        await self._idle.wait()

    async def run(self) -> None:
        """Settle what is handed over, until cancelled."""
        while True:
            await self._woken.wait()
            self._woken = anyio.Event()
            while self._waiting:
                batch = self._take_batch()
                if not batch:
                    self._woken = anyio.Event()
                    held_for = time.monotonic() - self._waiting[0].ended_at
                    with anyio.move_on_after(max(HOLD_SECONDS - held_for, 0.001)):
                        await self._woken.wait()
                    continue
                self._under_way = len(batch)
                await self._settle_batch(batch)
                self._under_way = 0
            self._idle.set()

    def _take_batch(self) -> list[Attempt]:
        """Take what is due, in the order in which it ended; nothing when all of it had better wait for others."""
        limit = time.monotonic() - HOLD_SECONDS
        batch: list[Attempt] = []
        rest: list[Attempt] = []
        size = 0
        for attempt in self._waiting:
            verdict = attempt.verdict
            if type(verdict) is Completion:
                size += len(verdict.result)
                is_due = not attempt.lease.not_begun or attempt.ended_at < limit
            else:
                is_due = True
            if not is_due or len(batch) == MAX_BATCH or (batch and size > MAX_BATCH_CHARACTERS):
                rest.append(attempt)
            else:
                batch.append(attempt)
        self._waiting = rest
        return batch

    async def _settle_batch(self, batch: list[Attempt]) -> None:
        # Also what is on its way: it would arrive after the settle, and be refused.
        reporter = self._reporter
        if not reporter.is_silent and any(map(reporter.has_word_of, batch)):
            await reporter.flush(batch)
        by_kind: defaultdict[type[Verdict | None], list[Attempt]] = defaultdict(list)
        for attempt in batch:
            by_kind[type(attempt.verdict)].append(attempt)
        for kind in (Completion, Failure, Release, Wait):
            for same in divide(by_kind[kind]):
                await self._settle(same)

    async def _settle(self, attempts: list[Attempt]) -> None:
        """Settle attempts whose verdicts are of one kind, however long it takes."""
        backoff = 0.05
        while attempts:
            try:
                answers = await self._send(attempts)
            except Exception as error:  # noqa: BLE001 - whatever it is, the other attempts must still be settled
                if not is_connection_trouble(error):
                    await self._settle_apart(attempts, error)
                    return
                log.warning("settle_delayed", attempts=len(attempts), error=type(error).__name__)
            else:
                self._tell(attempts, answers)
                return
            await anyio.sleep(backoff)
            backoff = min(backoff * 2, MAX_BACKOFF_SECONDS)
            attempts = self._still_ours(attempts)

    async def _settle_apart(self, attempts: list[Attempt], error: Exception) -> None:
        """Find the one that the database refuses, and let it fail alone."""
        if len(attempts) > 1:
            middle = len(attempts) // 2
            await self._settle(attempts[:middle])
            await self._settle(attempts[middle:])
            return
        (attempt,) = attempts
        log.error("settle_refused", exc_info=error, **attempt.names)
        replacement = _replacement(attempt, error)
        if replacement is None:
            self._on_settled(attempt, None)
            return
        attempt.verdict = replacement
        await self._settle([attempt])

    def _still_ours(self, attempts: list[Attempt]) -> list[Attempt]:
        now = time.monotonic()
        gone = [a for a in attempts if now > a.lease.until + LEASE_MARGIN_SECONDS]
        for attempt in gone:
            log.warning("settle_given_up", **attempt.names)
            self._on_settled(attempt, None)
        return [attempt for attempt in attempts if attempt not in gone]

    async def _send(self, attempts: Sequence[Attempt]) -> list[Settled]:
        return await _statement(self._router, [a.verdict for a in attempts if a.verdict])

    def _tell(self, attempts: list[Attempt], answers: Sequence[Settled]) -> None:
        for attempt, answer in zip(attempts, answers, strict=True):
            self._on_settled(attempt, answer)


def divide(attempts: list[Attempt]) -> list[list[Attempt]]:
    """Divide attempts into statements: whole leases, if large, by themselves and in their own order, then the rest."""
    if len(attempts) < WHOLE_LEASE:
        return [attempts] if attempts else []
    by_lease: defaultdict[int, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        by_lease[id(attempt.lease)].append(attempt)
    statements: list[list[Attempt]] = []
    rest: list[Attempt] = []
    for same in by_lease.values():
        whole = list(same[0].lease.attempts.values())
        if len(same) >= WHOLE_LEASE and set(same) == set(whole):
            statements.append(whole)
        else:
            rest += same
    return [*statements, rest] if rest else statements


def _statement(router: WorkerRouter, verdicts: Sequence[Verdict]) -> Awaitable[list[Settled]]:
    first = verdicts[0]
    match first:
        case Completion():
            return router.complete_jobs([v for v in verdicts if isinstance(v, Completion)])
        case Failure():
            return router.fail_jobs([v for v in verdicts if isinstance(v, Failure)])
        case Release():
            return router.release_jobs([v.fence for v in verdicts if isinstance(v, Release)])
        case Wait():
            return _wait(router, [v for v in verdicts if isinstance(v, Wait)])
        case _:
            assert_never(first)


async def _wait(router: WorkerRouter, waits: Sequence[Wait]) -> list[Settled]:
    """One after another: each locks the steps it waits for, and none may hold up another."""
    return [
        await router.steps.wait_for_steps(
            wait.fence, wait.child_ids, may_remain=wait.may_remain, until_at=wait.until_at
        )
        for wait in waits
    ]


def _replacement(attempt: Attempt, error: Exception) -> Verdict | None:
    """Return what can be written instead of a verdict that was refused; nothing, when that was it already."""
    code = "OUTCOME_REFUSED"
    before = attempt.verdict
    if isinstance(before, Release) or (isinstance(before, Failure) and before.error.code == code):
        return None
    message = f"the database refused to store the outcome: {type(error).__name__}"
    kind = before.kind if isinstance(before, Failure) else FailureKind.PERMANENT
    is_retryable = kind is not FailureKind.PERMANENT
    return Failure(
        attempt.fence,
        kind,
        RunError(code, capped(message, MAX_MESSAGE_BYTES), is_retryable),
        delay_ms=before.delay_ms if isinstance(before, Failure) else None,
    )
