"""Wait for a run on behalf of a client that may see progress meanwhile.

Progress of MCP must grow with every notification, while a job's own progress may stand still, start over with a retry or
be unknown. So what is sent is the job's figure where that grows, and a step too small to mislead where it does not. The
task of the request sends; a worker never touches a session.
"""

from __future__ import annotations

import math

from jobforge_mcp.progress import Watch
from jobforge_mcp.server.parts import Call, ServerParts
from jobforge_mcp.server.wire import ProgressView, describe_progress
from jobforge_mcp.types import JobId, Run, RunStatus

BEAT_SHARE = 0.9
"""Part of the promised interval after which a beat is sent, so that the promise survives a busy loop."""


class ProgressMeter:
    """Makes figures that only ever grow."""

    def __init__(self) -> None:
        self._last = 0.0
        self._total: float | None = None

    def advance(self, done: float | None, total: float | None) -> float:
        """Return what to send for a job's own figure, or for none."""
        self._total = total
        if done is not None and done > self._last:
            self._last = done
        else:
            self._last = max(self._last + self._step(), math.nextafter(self._last, math.inf))
        return self._last

    def _step(self) -> float:
        left = self._total - self._last if self._total is not None else 0.0
        return left / 1_000 if left > 0 else 0.001


async def wait_for_run(
    parts: ServerParts,
    call: Call,
    job_id: JobId,
    *,
    seconds: float,
    since_version: int | None = None,
    watch: Watch | None = None,
) -> Run:
    """Wait for a run and forward its progress; with ``watch`` nothing is read before there is news.

    Raises:
        NotFoundError: The caller has no such run.
    """
    meter = ProgressMeter()
    last: ProgressView | None = None
    total: float | None = None

    async def on_change(run: Run) -> None:
        nonlocal last, total
        view = ProgressView(
            done=run.progress_done, total=run.progress_total, message=_message_of(run)
        )
        if view != last:
            last, total = view, run.progress_total
            await call.report(meter.advance(view.done, total), total, view.message)

    async def on_beat() -> None:
        message = last.message if last is not None else "waiting for the job"
        await call.report(meter.advance(None, total), total, message)

    beat_seconds = parts.settings.beat_seconds * BEAT_SHARE
    parts.metrics.waiting.inc()
    try:
        if watch is not None:
            return await watch.until(
                since_version=since_version,
                timeout_seconds=seconds,
                on_change=on_change,
                beat_seconds=beat_seconds,
                on_beat=on_beat,
            )
        return await parts.watcher.wait_for_change(
            call.caller,
            job_id,
            since_version=since_version,
            timeout_seconds=seconds,
            on_change=on_change,
            beat_seconds=beat_seconds,
            on_beat=on_beat,
        )
    finally:
        parts.metrics.waiting.dec()


def capped(parts: ServerParts, wait_seconds: float | None, default: float) -> float:
    """Return how long a call may wait: what was asked, never more than the installation allows."""
    return min(default if wait_seconds is None else wait_seconds, parts.settings.wait_seconds_cap)


def _message_of(run: Run) -> str:
    if run.progress_message:
        return run.progress_message[:200]
    if run.status is RunStatus.RUNNING:
        again = f", attempt {run.attempt_no} of {run.max_attempts}" if run.attempt_no > 1 else ""
        return f"running{again}"
    return describe_progress(ProgressView(message=run.status.value))
