"""One claimed job as this process knows it, from the claim until its outcome was settled.

Nothing here speaks to the database or runs a handler; the pool, the executor, the reporter and the heartbeat meet in
this object, all of them on the loop's thread.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypeAlias

import anyio

from jobforge_mcp.definitions.model import BoundJob
from jobforge_mcp.redaction import Redactor
from jobforge_mcp.types import (
    ClaimedJob,
    Completion,
    Failure,
    Fence,
    Isolation,
    JobId,
    LeaseId,
    ProjectId,
    Report,
    Settled,
    TenantId,
)
from jobforge_mcp.worker.context import RunFacts
from jobforge_mcp.worker.evidence import Evidence, capped

MAX_LOG_LINES = 1_000
"""Log lines kept of one attempt; then one more says that the rest is dropped."""

MAX_LOG_LINE_BYTES = 4_096

MAX_PROGRESS_MESSAGE_BYTES = 500

LINES_PER_REPORT = 200
"""Lines one report carries, so that a chatty attempt does not hold up the others in the statement."""


class StopReason(StrEnum):
    """Why an attempt has to end before its handler returned."""

    TIMED_OUT = "timed_out"
    CANCELED = "canceled"
    RELEASED = "released"
    """The worker drains: the job goes back and spends no attempt."""
    LEASE_LOST = "lease_lost"
    """Somebody else may run it already: nothing is settled."""


@dataclass(frozen=True, slots=True)
class Release:
    """An attempt to give back without counting it."""

    fence: Fence


@dataclass(frozen=True, slots=True)
class Wait:
    """A composition to give back, uncharged, until enough of its steps have ended."""

    fence: Fence
    child_ids: tuple[JobId, ...]
    may_remain: int
    """So many of them may still be open when it goes on."""
    until_at: datetime
    """When it goes on whatever has ended."""


Verdict: TypeAlias = Completion | Failure | Release | Wait


class Signal:
    """Something that happens once; costs nothing while nobody waits for it, as in most attempts."""

    __slots__ = ("_event", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._event: anyio.Event | None = None

    def set(self) -> None:
        """Let it happen."""
        self.is_set = True
        if self._event is not None:
            self._event.set()

    async def wait(self) -> None:
        """Return once it has happened."""
        if not self.is_set:
            self._event = self._event or anyio.Event()
            await self._event.wait()


@dataclass(eq=False, slots=True)
class LeaseHold:
    """A lease this process holds, shared by the attempts of one claim and tenant."""

    tenant_id: TenantId
    lease_id: LeaseId
    until: float
    """Monotonic time at which it surely ends unless it is extended: never later than the database thinks."""
    attempts: dict[int, Attempt] = field(default_factory=dict[int, "Attempt"])
    """Attempts of it that are not settled yet, by their run's id as a number: hashing a UUID is Python."""
    is_lost: bool = False
    not_begun: int = 0
    """How many of them still wait for their turn."""

    @property
    def key(self) -> tuple[str, int]:
        """What names it among all leases."""
        return self.tenant_id, self.lease_id.int


class Attempt:
    """The state of one attempt in this process.

    Most attempts are short and need little of it: what is not set yet is the class's.
    """

    has_slot: bool = False
    ended_at: float = 0.0
    """Monotonic time at which its verdict was handed over."""
    job: BoundJob | None = None
    """Set when the definition was found."""
    isolation: Isolation | None = None
    """The same."""
    stop_reason: StopReason | None = None
    scope: anyio.CancelScope | None = None
    """Around the handler, once it runs; cancelled when asking was not enough."""
    is_enforced: bool = False
    """The handler was cancelled or its child told to end: what it returns now is no result."""
    is_watching: bool = False
    """The handler has looked at ``cancelled``, so it is given time to end by itself."""
    has_seen_stop: bool = False
    """The handler has been told that it should end."""
    committed: Settled | None = None
    """Its own transaction completed the run: there is nothing left to settle."""
    has_ended: bool = False
    """The handler has really ended."""
    verdict: Verdict | None = None
    is_settling: bool = False
    """Its verdict was handed over; a second one, or progress, is dropped."""
    children: int = 0
    events: int = 0
    """Child runs enqueued and events submitted so far, for their default keys."""
    _ended: Signal | None = None
    _stop_requested: Signal | None = None
    _artifacts: set[str] | None = None
    _evidence: Evidence | None = None
    _facts: RunFacts | None = None
    _secrets: Redactor | None = None
    _progress: tuple[float, float | None, str | None] | None = None
    _logs: list[tuple[str, str]] | None = None
    _lines: int = 0

    def __init__(self, claimed: ClaimedJob, lease: LeaseHold) -> None:
        """Begin with a job that was just claimed."""
        self.claimed = claimed
        self.lease = lease
        self.fence: Fence = claimed.fence
        """What every call to the database speaks for."""
        self.received_at = self._claimed_at = time.monotonic()
        """Monotonic time at which it came; once it has a slot, that at which it got it."""

    @property
    def stop_requested(self) -> Signal:
        """Set when it has to end."""
        if self._stop_requested is None:
            self._stop_requested = Signal()
        return self._stop_requested

    def end(self) -> None:
        """Note that the handler has really ended."""
        self.has_ended = True
        if self._ended is not None:
            self._ended.set()

    async def wait_for_end(self) -> None:
        """Return once the handler has really ended."""
        if not self.has_ended:
            self._ended = self._ended or Signal()
            await self._ended.wait()

    @property
    def artifacts(self) -> set[str]:
        """Names of the artifacts that were stored or are on their way, for the limit of their count."""
        if self._artifacts is None:
            self._artifacts = set()
        return self._artifacts

    @property
    def evidence(self) -> Evidence:
        """What it took from outside its input, and what it decided."""
        if self._evidence is None:
            fence = self.fence
            self._evidence = Evidence(
                fence.job_id, fence.epoch, self.claimed.claimed_at, self._claimed_at
            )
        return self._evidence

    @property
    def deadline(self) -> float:
        """Monotonic time at which the timeout ends the work."""
        return self.received_at + self.claimed.timeout_ms / 1_000

    @property
    def names(self) -> dict[str, str | int | None]:
        """What a log line says about whose it is."""
        claimed = self.claimed
        return {
            "tenant_id": claimed.fence.tenant_id,
            "job_id": str(claimed.fence.job_id),
            "job_type": claimed.job_type,
            "attempt_no": claimed.attempt_no,
            "trace_id": claimed.trace_id,
        }

    @property
    def facts(self) -> RunFacts:
        """What the handler's context says of the run."""
        if self._facts is not None:
            return self._facts
        claimed = self.claimed
        self._facts = RunFacts(
            run_id=claimed.fence.job_id,
            tenant_id=TenantId(claimed.fence.tenant_id),
            project_id=ProjectId(claimed.project_id) if claimed.project_id else None,
            trace_id=claimed.trace_id,
            attempt=claimed.attempt_no,
            max_attempts=claimed.max_attempts,
            epoch=claimed.fence.epoch,
            dry_run=claimed.is_dry_run,
            deadline=claimed.claimed_at + timedelta(milliseconds=claimed.timeout_ms),
        )
        return self._facts

    def enforce(self) -> None:
        """Stop asking: cancel the handler, or tell its child to end. A thread can only be waited for."""
        self.is_enforced = True
        if self.isolation is not Isolation.THREAD and self.scope is not None:
            self.scope.cancel()

    def look(self) -> bool:
        """Answer ``job.cancelled``."""
        self.is_watching = True
        if self.stop_reason is not None:
            self.has_seen_stop = True
        return self.stop_reason is not None

    def note_progress(self, done: float, total: float | None, message: str | None) -> bool:
        """Remember the latest progress; say whether there is something new to report."""
        if self.is_settling or not math.isfinite(done):
            return False
        total = total if total is not None and math.isfinite(total) else None
        if message is not None:
            message = capped(self.redact(message), MAX_PROGRESS_MESSAGE_BYTES)
        self._progress = (float(done), None if total is None else float(total), message)
        return True

    def note_log(self, message: str, level: str) -> bool:
        """Remember a log line; say whether there is something new to report."""
        if self.is_settling or self._lines > MAX_LOG_LINES:
            return False
        if self._lines == MAX_LOG_LINES:
            level, message = "warning", f"further lines are dropped: {MAX_LOG_LINES} are kept"
        self._lines += 1
        self._logs = self._logs or []
        self._logs.append((level, capped(self.redact(message), MAX_LOG_LINE_BYTES)))
        return True

    @property
    def is_dirty(self) -> bool:
        """Whether something waits to be reported."""
        return self._progress is not None or bool(self._logs)

    def take_report(self) -> Report | None:
        """Take what waits to be reported, at most ``LINES_PER_REPORT`` lines of it."""
        if not self.is_dirty:
            return None
        done, total, message = self._progress or (None, None, None)
        lines = self._logs or []
        logs = tuple(lines[:LINES_PER_REPORT])
        del lines[:LINES_PER_REPORT]
        self._progress = None
        return Report(self.fence, done, total, message, logs)

    def give_back(self, report: Report) -> None:
        """Keep a report that could not be delivered for the next try."""
        self._logs = [*report.logs, *(self._logs or ())]
        if self._progress is None and report.done is not None:
            self._progress = (report.done, report.total, report.message)

    def manifest(self) -> str | None:
        """Write what the attempt says of itself, without the secrets it was given."""
        facts = None if self._evidence is None else self._evidence.facts()
        return None if facts is None else self.redact_json(facts)

    def redact_bytes(self, data: bytes) -> bytes:
        """Strike the secrets out of a text; bytes that are no UTF-8 stay as they are."""
        if self._secrets is None:
            return data
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return data
        return self._secrets.text(text).encode()

    @property
    def has_secrets(self) -> bool:
        """Whether the attempt was given any."""
        return self._secrets is not None

    def keep_secret(self, name: str, value: str) -> None:
        """Strike this value out of everything the attempt says from now on."""
        if self._secrets is None:
            self._secrets = Redactor()
        self._secrets.learn(name, value)

    def redact(self, text: str) -> str:
        """Strike out the secrets this attempt was given."""
        return text if self._secrets is None else self._secrets.text(text)

    def redact_json(self, text: str, *, mark: str = "[secret {}]") -> str:
        """Strike them out of JSON text, which stays JSON."""
        return text if self._secrets is None else self._secrets.json_text(text, mark=mark)
