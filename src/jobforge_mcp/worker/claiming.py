"""The loop that claims: for the slots that are free and a little ahead, in turn from the tenants; asleep when idle.

Polling is the truth, the notification a hint. Before it sleeps, a worker asks to be notified and then looks once more,
so that a job enqueued in between is either seen by that look or announced. While notifications arrive, an idle worker does
not claim for nothing: one statement asks anew, tends the lanes and tells when something is due; where nothing is known to
be, the next is five polls away.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import anyio
import anyio.lowlevel
import structlog

from jobforge_mcp.definitions.composition import COMPOSITION_TYPE
from jobforge_mcp.router.leases import WorkerRouter
from jobforge_mcp.types import ClaimedJob, TenantId, WorkerId
from jobforge_mcp.worker.frontier import Frontier
from jobforge_mcp.worker.settling import Settler
from jobforge_mcp.worker.slots import Bell, Track
from jobforge_mcp.worker.trouble import is_connection_trouble

READY = "ready"

REAP_SECONDS = 1.0
"""Longest time between two looks for expired leases: the promise is that a job starts again within lease + 1 s."""

REAP_WITH_CLAIM_SECONDS = 0.75
"""A claim looks as well when the last look is older: the shortest pause of an idle worker is longer, so each of its
polls does, and a busy worker's many claims do not."""

TEND_SECONDS = 5.0

MAX_BATCH = 500
"""Jobs of one claim: enough to make its cost small, few enough to leave some to other workers."""

MAX_UNSETTLED = 1_000
"""Finished attempts that wait for the database, above which no more work is fetched from it."""

ASK_FOR_POLLS = 5
"""Polls that one request to be notified lasts, so that an idle worker writes little."""

REST_SECONDS = 5.0
"""Longest rest of a worker that polls more often than that; the database announces jobs of the next six seconds."""

COMPOSITIONS_SECONDS = 0.1
"""Between two looks for compositions while no slot is free for handlers, as long as there were some lately."""

COMPOSITIONS_LATELY_SECONDS = 10.0

_MAX_BACKOFF_SECONDS = 5.0

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ClaimRules:
    """What a worker claims, and how often it looks."""

    worker_id: WorkerId
    job_types: Sequence[str]
    """Those with handlers; compositions are claimed besides."""
    tenant_ids: Sequence[TenantId] | None
    lease_ms: int
    poll_ms: int


class Claimer:
    """Claims until it is told to stop."""

    def __init__(
        self,
        router: WorkerRouter,
        rules: ClaimRules,
        handlers: Track,
        compositions: Track,
        bell: Bell,
        *,
        wait_for_hint: Callable[[float], Awaitable[bool]],
        hears: Callable[[], bool],
        start: Callable[[Sequence[ClaimedJob], float], None],
        settler: Settler,
    ) -> None:
        """Take how to wait so many seconds for a notification, whether they arrive, and how to run what was claimed at a monotonic time."""
        self._router = router
        self._rules = rules
        self._handlers = handlers
        self._compositions = compositions
        self._bell = bell
        self._is_more = False
        self._looks = _Looks(rules.poll_ms / 1_000)
        self._wait_for_hint = wait_for_hint
        self._hears = hears
        self._is_all_taken = False
        self._start = start
        self._settler = settler
        self._after_tenant: str = ""
        self._frontier = Frontier()
        self._reaped_at = 0.0
        self._tended_at = time.monotonic() - TEND_SECONDS * random.random()
        self._resting_until = 0.0
        self._asked_until = 0.0
        self._scope = anyio.CancelScope()
        self._stopped = anyio.Event()

    async def stop(self) -> None:
        """Claim no more, and return when the answer to a claim under way was dealt with."""
        self._scope.cancel()
        await self._stopped.wait()

    async def run(self) -> None:
        """Claim, until stopped."""
        try:
            await self._run()
        finally:
            self._stopped.set()

    async def tend(self) -> None:
        """Look after leases and lanes when no claim does: all slots may be taken for a long time."""
        while True:
            due_at = max(self._reaped_at + REAP_SECONDS, self._resting_until)
            # A hint may end a rest at any time.
            await anyio.sleep(min(max(due_at - time.monotonic(), 0.01), REAP_SECONDS))
            now = time.monotonic()
            try:
                if now >= self._resting_until and now >= self._reaped_at + REAP_SECONDS:
                    self._reaped_at = now
                    await self._router.reap_expired()
                if now >= self._resting_until and now >= self._tended_at + TEND_SECONDS:
                    self._tended_at = now
                    await self._router.tend_lanes()
            except Exception as error:  # noqa: BLE001 - the next turn tries again
                self._complain(error)

    async def _run(self) -> None:
        backoff = 0.1
        with self._scope:
            while True:
                try:
                    await self._work_or_sleep()
                    backoff = 0.1
                except Exception as error:  # noqa: BLE001 - a worker outlives whatever a claim may meet
                    self._complain(error)
                    await anyio.sleep(backoff * random.uniform(0.5, 1.0))
                    backoff = min(backoff * 2, _MAX_BACKOFF_SECONDS)

    async def _work_or_sleep(self) -> None:
        # A claim is shielded, so that a worker with always a free slot would not hear that it is to stop.
        await anyio.lowlevel.checkpoint_if_cancelled()
        while not self._wanted():
            await self._look_for_compositions()
        if self._settler.pending > MAX_UNSETTLED:
            await self._settler.wait_idle()
        if await self._claim():
            # What was claimed begins before the next claim is made ready.
            await anyio.lowlevel.checkpoint()
            if not self._is_all_taken:
                return
        elif time.monotonic() >= self._asked_until:
            await self._ask_for_hints()
            if await self._claim():
                return
        await self._sleep()

    async def _sleep(self) -> None:
        """Rest until a hint comes, or something is due that no hint tells of."""
        seconds = self._rules.poll_ms / 1_000 * random.uniform(0.8, 1.0)
        if self._compositions.room == 0:
            # Those that were left out just now may be claimed when one of the others ends, which takes milliseconds.
            with anyio.move_on_after(seconds):
                await self._bell.wait()
            return
        try:
            while not await self._wait_for_hint(seconds) and self._is_announced:
                seconds = await self._look()
                if seconds == 0 or self._compositions.room == 0:
                    return
        finally:
            self._resting_until = 0.0

    @property
    def _is_announced(self) -> bool:
        """Whether what becomes due is told of now, and heard."""
        return time.monotonic() < self._asked_until and self._hears()

    async def _look(self) -> float:
        """Ask anew to be notified, and return for how long nothing is due."""
        now = time.monotonic()
        poll_ms = self._rules.poll_ms
        tend = now >= self._tended_at + TEND_SECONDS / 2
        listen_ms = poll_ms * ASK_FOR_POLLS
        rest_ms = await self._router.look_for_work(
            self._rules.worker_id,
            [*self._rules.job_types, COMPOSITION_TYPE],
            self._rules.tenant_ids,
            listen_ms=listen_ms + 2_000,
            poll_ms=poll_ms,
            rest_ms=max(poll_ms, min(listen_ms, int(REST_SECONDS * 1_000))),
            tend=tend,
        )
        self._asked_until = now + listen_ms / 1_000 + 1
        if tend:
            self._tended_at = now
        if rest_ms == 0:
            return 0
        seconds = rest_ms / 1_000 * (random.uniform(0.8, 1.0) if rest_ms >= poll_ms else 1.0)
        # Nothing ends before that, and whoever takes a lease meanwhile was announced to this worker too. Then this looks first.
        self._resting_until = time.monotonic() + min(seconds, REST_SECONDS) + REAP_SECONDS / 2
        return seconds

    async def _look_for_compositions(self) -> None:
        """While there is no room for handlers: claim compositions now and then, or wait for a slot."""
        room = min(self._compositions.room, MAX_BATCH)
        if room > 0 and self._looks.is_due:
            self._looks.looked(await self._claim_types([COMPOSITION_TYPE], room), room)
            return
        with anyio.move_on_after(self._looks.seconds_left if room > 0 else None):
            await self._bell.wait()

    async def _ask_for_hints(self) -> None:
        for_ms = self._rules.poll_ms * ASK_FOR_POLLS
        until = time.monotonic() + for_ms / 1_000
        # A little longer there than here, so that there is no gap between two requests.
        await self._router.await_wakeup(self._rules.worker_id, READY, for_ms + 2_000)
        self._asked_until = until

    async def _claim(self) -> int:
        """Claim for the slots that are free, and start what came; compositions as well while there is room for them."""
        wanted = self._wanted()
        if not wanted:
            return 0
        types = self._rules.job_types
        if self._compositions.room > 0:
            types = [*types, COMPOSITION_TYPE]
        count = await self._claim_types(types, wanted)
        self._is_more = count == wanted
        return count

    async def _claim_types(self, types: Sequence[str], wanted: int) -> int:
        now = time.monotonic()
        reap = now - self._reaped_at >= REAP_WITH_CLAIM_SECONDS
        start = self._frontier.start()
        is_announced = self._is_announced
        kept = [
            (track.slots, min(wanted, track.slots.free))
            for track in (self._handlers, self._compositions)
        ]
        for slots, count in kept:
            slots.take(count)
        claimed: list[ClaimedJob] = []
        try:
            # Shielded: the answer to a claim that was sent is jobs that nobody else will run for a whole lease.
            with anyio.CancelScope(shield=True):
                claimed = await self._router.claim_jobs(
                    self._rules.worker_id,
                    types,
                    wanted,
                    after_tenant=self._after_tenant,
                    tenant_ids=self._rules.tenant_ids,
                    lease_ms=self._rules.lease_ms,
                    reap=reap,
                    start=start,
                )
            self._frontier.looked(start, claimed, now)
        finally:
            # Started at once below, before anybody else could take the slots.
            for slots, count in kept:
                slots.give_back(count)
        if reap:
            self._reaped_at = now
        # Less than was wanted, seen from the edge: what came later was announced, and it needs no second look.
        is_full_look = COMPOSITION_TYPE in types and not start.tenants
        self._is_all_taken = is_announced and is_full_look and len(claimed) < wanted
        if claimed:
            self._after_tenant = claimed[0].after_tenant or claimed[-1].fence.tenant_id
            self._start(claimed, now)
        return len(claimed)

    def _wanted(self) -> int:
        """How many jobs to claim now; none while there is enough to do and a larger claim is cheaper."""
        backlog = self._handlers.backlog
        wanted = min(self._handlers.room, MAX_BATCH)
        if self._is_more and backlog and wanted < min(backlog.room_when_empty, MAX_BATCH) / 2:
            return 0
        return max(0, wanted)

    def _complain(self, error: Exception) -> None:
        if is_connection_trouble(error):
            log.warning("claim_delayed", error=type(error).__name__, reason=str(error))
        else:
            log.error("claim_failed", exc_info=error)


class _Looks:
    """When to look for compositions while no slot is free for handlers, so that a full worker asks for little."""

    def __init__(self, poll_seconds: float) -> None:
        self._poll_seconds = poll_seconds
        self._next_at = 0.0
        self._found_at = 0.0

    @property
    def is_due(self) -> bool:
        return self.seconds_left <= 0

    @property
    def seconds_left(self) -> float:
        return self._next_at - time.monotonic()

    def looked(self, found: int, wanted: int) -> None:
        """Look again at once after as many as were wanted, soon after some, and else as an idle worker would."""
        now = time.monotonic()
        if found:
            self._found_at = now
        is_lately = now - self._found_at < COMPOSITIONS_LATELY_SECONDS
        pause = min(COMPOSITIONS_SECONDS, self._poll_seconds) if is_lately else self._poll_seconds
        self._next_at = now + (0 if found == wanted else pause)
