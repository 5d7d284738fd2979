"""Warm child processes: where handlers run that must be stoppable for certain.

A child is a fresh interpreter (``python -m jobforge_mcp.worker.child``), never a fork: it inherits no connection, no
thread, no lock, and none of our credentials. It is the leader of a session and process group of its own, so that
whatever the handler starts is killed with it, and it dies with its worker. It runs one job at a time and is used again, for
jobs of the same limits: what the kernel holds a process to is never more again.

What it prints belongs to the run's log, never to our stdout, which may be an MCP client's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import anyio

from jobforge_mcp.definitions.model import BoundJob
from jobforge_mcp.types import FailureKind, JsonObject, RunError
from jobforge_mcp.worker.attempt import Attempt, StopReason
from jobforge_mcp.worker.child_process import Asked, ChildEndedError, ChildProcess, Starter
from jobforge_mcp.worker.evidence import capped
from jobforge_mcp.worker.failures import MAX_MESSAGE_BYTES, Told

MAX_USES = 1_000
"""Jobs after which a child is replaced: handlers leak."""

RELEASE_GRACE_SECONDS = 0.25
"""When a worker drains its grace period is over already, and a lost job may be running elsewhere already."""


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """What children may take."""

    warm: int
    """Idle children that are kept."""
    memory_mb: int
    """Address space of one; 0 is no limit."""
    kill_grace_seconds: float
    """Between asking a child to end and killing it."""
    cpu_seconds: int = 0
    """CPU time of one job; 0 is no limit."""
    processes: int = 0
    """Processes that the account may have while a job starts another; 0 is no limit."""

    def told(self, job: BoundJob) -> JsonObject:
        """Return those that a child for this job sets on itself."""
        return {
            "memory_mb": _least(self.memory_mb, job.memory_mb),
            "cpu_seconds": _least(self.cpu_seconds, job.cpu_seconds),
            "processes": self.processes,
        }


def _least(*limits: int) -> int:
    return min((limit for limit in limits if limit), default=0)


class ChildPool:
    """The children of one worker."""

    def __init__(
        self, limits: ChildLimits, *, asked: Asked, start: Starter, environ: Mapping[str, str]
    ) -> None:
        self._limits = limits
        self._asked = asked
        self._start = start
        self._environ = child_environment(environ)
        self._idle: list[ChildProcess] = []
        self._all: set[ChildProcess] = set()

    @property
    def pids(self) -> set[int]:
        """Return the children that live."""
        return {child.pid for child in self._all}

    async def run(self, attempt: Attempt, job: BoundJob, payload: str) -> str | Told:
        """Run a handler in a child and return its result as JSON text, or how it failed.

        When the calling task is cancelled the child is ended, and with it all that the handler started.
        """
        try:
            child = await self._take(self._limits.told(job))
        except OSError as error:
            message = capped(f"no child process could be started: {error}", MAX_MESSAGE_BYTES)
            return Told(FailureKind.FAILED, RunError("CHILD_NOT_STARTED", message, retryable=True))
        try:
            answer = await child.run(attempt, job, payload, self._asked)
        except ChildEndedError as ended:
            await self._end(child, grace=0)
            return Told(FailureKind.FAILED, RunError("CHILD_DIED", ended.message, retryable=True))
        except BaseException:
            is_hurried = attempt.stop_reason in (StopReason.RELEASED, StopReason.LEASE_LOST)
            grace = RELEASE_GRACE_SECONDS if is_hurried else self._limits.kill_grace_seconds
            await self._end(child, grace=grace)
            raise
        if child.uses < MAX_USES:
            self._idle.append(
                child
            )  # before those of other limits, which nobody has asked for since
            child = self._idle.pop(0) if len(self._idle) > self._limits.warm else None
        if child is not None:
            await self._end(child, grace=RELEASE_GRACE_SECONDS)
        return answer

    async def close(self) -> None:
        """End every child."""
        self._idle.clear()
        for child in list(self._all):
            await self._end(child, grace=0)

    async def _take(self, limits: JsonObject) -> ChildProcess:
        while fitting := [child for child in self._idle if child.limits == limits]:
            child = fitting[-1]
            self._idle.remove(child)
            if child.is_alive:
                return child
            await self._end(child, grace=0)
        # Not to be interrupted: a process that nobody knows would never be ended.
        with anyio.CancelScope(shield=True):
            self._all.add(child := await ChildProcess.spawn(self._environ, limits, self._start))
            return child
        raise AssertionError  # a shielded scope swallows nothing

    async def _end(self, child: ChildProcess, *, grace: float) -> None:
        with anyio.CancelScope(shield=True):
            await child.end(grace)
        self._all.discard(child)


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without anything that opens our database or speaks for our caller."""
    return {name: value for name, value in environ.items() if not _is_credential(name)}


def _is_credential(name: str) -> bool:
    if not name.startswith("JOBFORGE_"):
        return name == "DATABASE_URL" or name.startswith("PG")
    # The other settings stay: a handler that reads them must find the limits that the operator set.
    return any(word in name for word in ("URL", "TOKEN", "SECRET", "KEY", "PASSWORD"))
