"""The worker: slots, leases, attempts, and the tasks that serve them, in one task group.

Entering starts it, leaving drains it. The pool decides when an attempt has to end (timeout, cancellation, lost lease,
drain) and sees to it that it does; what happens inside an attempt is the executor's, what is written about it the
settler's. Everything here runs on one event loop; the heartbeat thread speaks through the mailbox.

When a handler cannot be stopped (it swallows its cancellation, or runs on a thread) its attempt is settled after the
grace period all the same, its slot stays taken until it really ends, and the log says so by name.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Literal, Self

import anyio
import anyio.to_thread
import structlog

from jobforge_mcp.db.notify import READY, Listener
from jobforge_mcp.definitions.catalog import BoundDefinitions
from jobforge_mcp.definitions.composition import COMPOSITION_TYPE
from jobforge_mcp.definitions.features import EVENTS
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.evidence.environment import describe_environment, package_version
from jobforge_mcp.evidence.stores import open_store
from jobforge_mcp.logs import whose
from jobforge_mcp.router.heartbeat import HeartbeatConnection
from jobforge_mcp.router.leases import WorkerRouter
from jobforge_mcp.settings import Settings
from jobforge_mcp.types import (
    ClaimedJob,
    Completion,
    Effects,
    Ended,
    Isolation,
    JobAction,
    JobId,
    ReportAnswer,
    Settled,
    SettleOutcome,
    TenantId,
    WorkerId,
)
from jobforge_mcp.worker.artifacts import ArtifactLimits, Keeper
from jobforge_mcp.worker.attempt import Attempt, LeaseHold, Release, StopReason, Verdict
from jobforge_mcp.worker.children import ChildLimits, ChildPool
from jobforge_mcp.worker.claiming import Claimer, ClaimRules
from jobforge_mcp.worker.composition import compose
from jobforge_mcp.worker.executor import Execution, call_on_loop, execute, stopped
from jobforge_mcp.worker.heartbeat import BLOCKED_SECONDS, BeatTimes, Heartbeat, News
from jobforge_mcp.worker.links import Services
from jobforge_mcp.worker.mailbox import Mailbox
from jobforge_mcp.worker.reporting import Reporter
from jobforge_mcp.worker.runners import Runners
from jobforge_mcp.worker.secrets import SecretStore
from jobforge_mcp.worker.settling import Settler
from jobforge_mcp.worker.slots import COMPOSITION_SLOTS, Bell, SlotReservation, Track

TICK_SECONDS = 0.1
"""How exact timeouts are, and how often the loop shows that it is alive."""

MAX_KILL_GRACE_SECONDS = 10.0
"""The database ends a lease 15 s after the timeout of its job, whatever the worker says."""

REGISTER_SECONDS = 20.0
"""A worker not heard of for a minute counts as gone, and heartbeats tell only of those that hold leases."""

LAST_WORDS_SECONDS = 0.75
"""What remains, once the drain's grace is over, for handlers to be stopped and their jobs to be released."""

LAST_SETTLES_SECONDS = 5.0
"""What a drain waits for a database that does not answer; then the leases have to end by themselves."""

log = structlog.stdlib.get_logger(__name__)


class WorkerPool:
    """Runs jobs of the registry in this process."""

    def __init__(
        self,
        router: WorkerRouter,
        registry: Registry,
        settings: Settings,
        *,
        listener: Listener,
        on_change: Callable[[JobId], None],
        on_end: Callable[[Ended], None] | None = None,
        heartbeat_url: str,
        tenant_ids: Sequence[TenantId] | None = None,
        type_patterns: Sequence[str] = ("*",),
        environ: Mapping[str, str] = os.environ,
        blocked_seconds: float = BLOCKED_SECONDS,
    ) -> None:
        """Take what to run, for whom, and whom to tell that a run changed, or how it ended where that is known whole.

        ``type_patterns`` choose among the registry's jobs as a shell does among files; ``tenant_ids`` confines the
        worker to some tenants.
        """
        self.worker_id = new_worker_id()
        self._router = router
        self._registry = registry
        self._settings = settings
        self._listener = listener
        self._on_change = on_change
        self._on_end = on_end
        self._environ = environ
        self._job_types = [
            name
            for name in registry.names()
            if any(fnmatchcase(name, pattern) for pattern in type_patterns)
        ]
        self._tenant_ids = tenant_ids
        self._heartbeat_url = heartbeat_url
        self._times = BeatTimes(settings.lease_ms, settings.heartbeat_interval_ms, blocked_seconds)
        self._kill_grace = min(settings.kill_grace_seconds, MAX_KILL_GRACE_SECONDS)
        self._bell = Bell()
        self._handlers = Track(settings.worker_concurrency, self._bell)
        self._compositions = Track(COMPOSITION_SLOTS, self._bell)
        self._runners = Runners(self._run_attempt, self._start_task)
        self._running: set[Attempt] = set()
        self._stack = AsyncExitStack()
        self._is_draining = False
        self._is_drained = False
        self._is_abandoned = False
        self._waiting_scopes: list[anyio.CancelScope] = []

    @property
    def free_slots(self) -> int:
        """How many more handlers this worker could start now."""
        return 0 if self._is_draining else self._handlers.slots.free

    @property
    def is_serving(self) -> bool:
        """Whether jobs are claimed, and their leases kept."""
        return not self._is_draining and self._heartbeat.is_alive

    @property
    def running(self) -> int:
        """How many handlers run."""
        return len(self._running)

    @property
    def job_types(self) -> Sequence[str]:
        """The types this worker claims."""
        return (*self._job_types, COMPOSITION_TYPE)

    @property
    def child_pids(self) -> set[int]:
        """The child processes that live."""
        return self._children.pids

    def try_reserve(self, lane_type: str | None = None) -> SlotReservation | None:
        """Keep a slot for a job about to be enqueued, if one is free; compositions have slots of their own."""
        slots = self._track(lane_type).slots
        if self._is_draining or slots.free == 0:
            return None
        slots.take()
        return SlotReservation(slots, self._start_one)

    def adopt(self, claimed: ClaimedJob) -> None:
        """Run a job that was inserted already leased to this worker, whether a slot is free or not."""
        self._track(claimed.lane_type).slots.take()
        self._start_one(claimed, time.monotonic())

    def cancel(self, job_id: JobId) -> None:
        """Stop a job whose cancellation was committed just now, without waiting for a heartbeat to tell of it."""
        held = [*self._running, *self._waiting()]
        for attempt in [a for a in held if a.fence.job_id == job_id]:
            self._cancel(attempt)

    async def drain(self, grace_seconds: float) -> None:
        """Claim no more, let running jobs finish for so long, release the rest; :meth:`abandon` cuts the wait short."""
        if self._is_drained:
            return
        self._is_draining = True
        with anyio.move_on_after(LAST_SETTLES_SECONDS):
            await self._claimer.stop()
        for attempt in self._waiting():
            self._request_stop(attempt, StopReason.RELEASED)
        with anyio.move_on_after(grace_seconds) as waiting:
            self._waiting_scopes.append(waiting)
            if self._is_abandoned:
                waiting.cancel()
            await self._wait_until_idle()
        for attempt in list(self._running):
            self._request_stop(attempt, StopReason.RELEASED)
            attempt.enforce()
        with anyio.move_on_after(LAST_WORDS_SECONDS):
            await self._wait_until_idle()
        for attempt in self._running:
            log.warning("handler_not_stoppable", reason=StopReason.RELEASED, **attempt.names)
            self._settler.put(attempt, Release(attempt.fence))
        with anyio.move_on_after(LAST_SETTLES_SECONDS):
            await self._settler.wait_idle()
        self._is_drained = True

    def abandon(self) -> None:
        """Stop at once: no more grace for running jobs, in a drain under way or to come."""
        self._is_abandoned = True
        for scope in self._waiting_scopes:
            scope.cancel()

    async def __aenter__(self) -> Self:
        self._idle = anyio.Event()
        self._mailbox = Mailbox()
        try:
            self._build()
            await self._register()
            await self._router.tell_installed_jobs(asked_of_callers(self._registry))
            await self._router.artifacts.keep_environment(self.worker_id, describe_environment())
            self._tasks = await self._stack.enter_async_context(anyio.create_task_group())
        except BaseException:
            self._mailbox.close()
            await self._stack.aclose()
            raise
        self._heartbeat.start(call_on_loop.__code__)
        for task in (
            self._mailbox.deliver,
            self._keep_time,
            self._stay_registered,
            self._reporter.run,
            self._settler.run,
            self._claimer.run,
            self._claimer.tend,
        ):
            self._tasks.start_soon(task)
        log.info("worker_started", worker_id=self.worker_id, concurrency=self._handlers.slots.total)
        return self

    def _build(self) -> None:
        """Make the parts; nothing runs yet."""
        settings = self._settings
        self._heartbeat = Heartbeat(
            lambda: HeartbeatConnection(self._heartbeat_url, "jobforge_worker"),
            self.worker_id,
            self._times,
            mailbox=self._mailbox,
            news=News(on_lost=self._lose, on_cancel=self._cancel),
        )
        self._reporter = Reporter(self._router, self._hear_report)
        self._settler = Settler(self._router, self._reporter, self._hear_settled)
        self._services = Services(
            self._router,
            self._registry,
            BoundDefinitions(self._registry),
            self._reporter,
            self._mailbox,
            self._start_task,
            Keeper(
                self._router.artifacts,
                open_store(settings),
                ArtifactLimits.from_settings(settings),
            ),
            SecretStore.from_settings(settings, self._environ),
            EVENTS.is_on_for_some(settings),
        )
        self._children = ChildPool(
            ChildLimits(
                settings.process_children,
                settings.child_memory_mb,
                self._kill_grace,
                settings.child_cpu_seconds,
                settings.child_processes,
            ),
            asked=self._services,
            start=self._start_task,
            environ=self._environ,
        )
        self._hints = self._stack.enter_context(self._listener.subscribe(READY))
        self._claimer = Claimer(
            self._router,
            ClaimRules(
                self.worker_id,
                self._job_types,
                self._tenant_ids,
                settings.lease_ms,
                settings.poll_ms,
            ),
            self._handlers,
            self._compositions,
            self._bell,
            wait_for_hint=self._hints.wait,
            hears=lambda: self._listener.is_healthy,
            start=self._start_claimed,
            settler=self._settler,
        )

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool | None:
        with anyio.CancelScope(shield=True):
            await self.drain(self._settings.drain_grace_seconds)
            await self._children.close()
            self._tasks.cancel_scope.cancel()
        try:
            return await self._stack.__aexit__(exc_type, exc_val, exc_tb)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._heartbeat.stop)
                self._mailbox.close()
                await self._forget()
            log.info("worker_stopped", worker_id=self.worker_id)

    # Starting

    def _start_claimed(self, claimed: Sequence[ClaimedJob], claimed_at: float) -> None:
        """Run what slots are free for, and let the rest wait for one."""
        for job in claimed:
            self._track(job.lane_type).backlog.put(self._attempt(job, claimed_at))
        if not self._is_draining:  # else the drain releases them
            self._take_from_backlog(self._handlers)
            self._take_from_backlog(self._compositions)

    def _take_from_backlog(self, track: Track) -> None:
        while track.backlog and track.slots.free:
            track.slots.take()
            self._run(track.backlog.pop())

    def _track(self, lane_type: str | None) -> Track:
        return self._compositions if lane_type == COMPOSITION_TYPE else self._handlers

    def _waiting(self) -> list[Attempt]:
        """Return the attempts that have no slot yet."""
        return [*self._handlers.backlog.all(), *self._compositions.backlog.all()]

    def _attempt(self, claimed: ClaimedJob, claimed_at: float) -> Attempt:
        """Make an attempt of a claimed job, and keep its lease."""
        until = claimed_at + self._times.lease_ms / 1_000
        lease = self._heartbeat.hold(claimed.fence, until)
        attempt = Attempt(claimed, lease)
        lease.attempts[claimed.fence.job_id.int] = attempt
        lease.not_begun += 1
        return attempt

    def _start_one(self, claimed: ClaimedJob, claimed_at: float) -> None:
        """Run one job in a slot that is taken for it already."""
        attempt = self._attempt(claimed, claimed_at)
        if self._is_draining:
            self._track(claimed.lane_type).slots.give_back()
            attempt.lease.not_begun -= 1
            attempt.stop_reason = StopReason.RELEASED
            self._settler.put(attempt, Release(claimed.fence))
            return
        self._run(attempt)

    def _run(self, attempt: Attempt) -> None:
        attempt.has_slot = True
        attempt.received_at = time.monotonic()
        self._running.add(attempt)
        self._runners.put(attempt)

    async def _run_attempt(self, attempt: Attempt) -> None:
        attempt.lease.not_begun -= 1
        whose.set(lambda: attempt.names)
        try:
            if attempt.claimed.lane_type == COMPOSITION_TYPE:
                verdict = await compose(attempt, self._services)
            else:
                verdict = await execute(Execution(attempt, self._services, self._children))
        finally:
            self._end_attempt(attempt)
        if attempt.committed is not None:
            attempt.is_settling = True
            self._hear_settled(attempt, attempt.committed)
        elif verdict is not None:
            self._settler.put(attempt, verdict)
        elif not attempt.is_settling:
            self._heartbeat.drop(attempt)

    def _end_attempt(self, attempt: Attempt) -> None:
        attempt.end()
        running = self._running
        running.discard(attempt)
        track = self._track(attempt.claimed.lane_type)
        following = track.note_end(attempt.received_at)
        if following is not None:
            self._run(following)  # in the same slot
        elif not running:
            self._idle.set()

    async def _wait_until_idle(self) -> None:
        while self._running:
            self._idle = anyio.Event()
            await self._idle.wait()

    def _start_task(self, task: Callable[[], Coroutine[object, object, None]]) -> None:
        self._tasks.start_soon(task)

    # Stopping attempts

    async def _keep_time(self) -> None:
        """Notice timeouts and leases that could not be extended, and show that the loop is alive."""
        while True:
            self._heartbeat.tick()
            now = time.monotonic()
            for attempt in [a for a in self._running if a.stop_reason is None]:
                if now >= attempt.deadline:
                    self._request_stop(attempt, StopReason.TIMED_OUT)
            for attempt in (
                *self._handlers.backlog.overdue(),
                *self._compositions.backlog.overdue(),
            ):
                self._request_stop(attempt, StopReason.RELEASED)
            for lease in self._heartbeat.leases_to_give_up():
                log.warning("lease_given_up", tenant_id=lease.tenant_id, jobs=len(lease.attempts))
                self._lose(lease)
            await anyio.sleep(TICK_SECONDS)

    def _request_stop(self, attempt: Attempt, reason: StopReason) -> None:
        """Say once that an attempt has to end; that its lease is lost is said over whatever was said before."""
        if attempt.is_settling or attempt.committed is not None or attempt.stop_reason is reason:
            return
        if attempt.stop_reason is not None and reason is not StopReason.LEASE_LOST:
            return
        is_first = attempt.stop_reason is None
        attempt.stop_reason = reason
        attempt.stop_requested.set()
        if not attempt.has_slot:
            self._give_up_waiting(attempt)
            return
        if is_first:
            self._tasks.start_soon(self._see_off, attempt)
        elif not attempt.has_ended:
            attempt.enforce()

    def _give_up_waiting(self, attempt: Attempt) -> None:
        """Settle a job that never got a slot."""
        backlog = self._track(attempt.claimed.lane_type).backlog
        if attempt in backlog:
            backlog.remove(attempt)
            attempt.lease.not_begun -= 1
            attempt.end()
            self._conclude(attempt, stopped(attempt))

    def _conclude(self, attempt: Attempt, verdict: Verdict | None) -> None:
        """Have a verdict settled; without one the lease is gone, or about to be."""
        if verdict is None:
            self._heartbeat.drop(attempt)
        else:
            self._settler.put(attempt, verdict)

    async def _see_off(self, attempt: Attempt) -> None:
        """See to it that an attempt ends: by itself if it is watching, then by force, then without its consent."""
        if attempt.stop_reason is StopReason.CANCELED and attempt.is_watching:
            with anyio.move_on_after(self._kill_grace):
                await attempt.wait_for_end()
                return
        attempt.enforce()
        # A child is killed when its grace is over, which takes a moment more.
        extra = 1.0 if attempt.isolation is Isolation.PROCESS else 0.0
        with anyio.move_on_after(self._kill_grace + extra):
            await attempt.wait_for_end()
            return
        log.warning("handler_not_stoppable", reason=attempt.stop_reason, **attempt.names)
        verdict = stopped(attempt)
        if attempt.committed is not None:
            return
        self._conclude(attempt, verdict)

    def _lose(self, lease: LeaseHold) -> None:
        """Stop whatever runs under a lease that is not ours any more."""
        self._heartbeat.forget(lease)
        for attempt in list(lease.attempts.values()):
            if not attempt.is_settling and attempt.committed is None:
                log.warning("lease_lost", **attempt.names)
            self._request_stop(attempt, StopReason.LEASE_LOST)

    def _cancel(self, attempt: Attempt) -> None:
        self._request_stop(attempt, StopReason.CANCELED)

    # Answers of the database

    def _hear_report(self, attempt: Attempt, answer: ReportAnswer, sent_at: float) -> None:
        if not answer.is_accepted:
            self._request_stop(attempt, StopReason.LEASE_LOST)
            return
        self._heartbeat.extend(attempt.lease, sent_at)
        self._tell(attempt.fence.job_id)
        if answer.is_cancel_requested:
            self._cancel(attempt)

    def _hear_settled(self, attempt: Attempt, settled: Settled | None) -> None:
        self._heartbeat.drop(attempt)
        if attempt.claimed.is_suspect and not attempt.lease.attempts:
            # A worker holds one lease of them: what a claim left behind for that can be had now, and nobody tells of it.
            self._hints.wake()
        if settled is None or settled.outcome is SettleOutcome.STALE:
            log.warning("settle_came_too_late", **attempt.names)
            return
        ended = None if self._on_end is None else _known_end(attempt, settled, self.worker_id)
        if ended is None:
            self._tell(attempt.fence.job_id)
        else:
            self._tell_end(ended)

    def _tell(self, job_id: JobId) -> None:
        try:
            self._on_change(job_id)
        except Exception:  # whoever listens must not harm the worker
            log.exception("change_not_told")

    def _tell_end(self, ended: Ended) -> None:
        assert self._on_end is not None
        try:
            self._on_end(ended)
        except Exception:  # whoever listens must not harm the worker
            log.exception("end_not_told")

    # Being known

    async def _register(self) -> None:
        await self._router.register_worker(
            self.worker_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=package_version("jobforge-mcp"),
            job_types=self.job_types,
            concurrency=self._handlers.slots.total,
        )

    async def _stay_registered(self) -> None:
        while True:
            await anyio.sleep(REGISTER_SECONDS)
            try:
                await self._register()
            except Exception:  # the next turn tries again
                log.warning("worker_not_registered", exc_info=True)

    async def _forget(self) -> None:
        try:
            with anyio.move_on_after(2):
                await self._router.forget_worker(self.worker_id)
        except Exception:  # the row is forgotten after a day
            log.warning("worker_not_forgotten", exc_info=True)


def asked_of_callers(
    registry: Registry,
) -> list[tuple[str, int, Literal["action", "permission"] | None]]:
    """Say of each job what it costs and what it asks of whoever starts it, for callers whom no process of ours asks."""
    found: list[tuple[str, int, Literal["action", "permission"] | None]] = []
    for name, bound in sorted(registry.by_name.items()):
        asks_for = None
        if bound.guards or any(
            permission.action is JobAction.EXECUTE for permission in bound.permissions
        ):
            asks_for = "permission"
        elif bound.effects is Effects.EXTERNAL:
            asks_for = "action"
        found.append((name, bound.definition.cost, asks_for))
    return found


def _known_end(attempt: Attempt, settled: Settled, worker_id: WorkerId) -> Ended | None:
    """Return the end of a run whose row need not be read, because this process knows all of it."""
    verdict, claimed = attempt.verdict, attempt.claimed
    if (
        settled.finished_at is None
        or settled.outcome is not SettleOutcome.ACCEPTED
        or not isinstance(verdict, Completion)
        or claimed.fence.epoch != 1
    ):
        return None
    return Ended(
        claimed.fence.job_id,
        worker_id,
        claimed.claimed_at,
        settled.finished_at,
        verdict.result,
    )


def new_worker_id() -> WorkerId:
    """Make a name that no other process has, now or later."""
    return WorkerId(f"{socket.gethostname()[:40]}:{os.getpid()}:{secrets.token_hex(4)}")
