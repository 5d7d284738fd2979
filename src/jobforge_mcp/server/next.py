"""Say in one sentence what a model should do now about a run, and when to look again.

The one place where such advice is worded, so that a tool's answer, an error and a resource never disagree. It names only
tools that the caller's token may call.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import assert_never

from jobforge_mcp.types import Caller, Cause, Run, RunStatus

POLL_STEPS_MS = ((10_000, 2_000), (60_000, 5_000), (600_000, 15_000))
"""Age of the run in milliseconds up to which it is worth looking again after so many: long runs are looked at less."""

_SAID_OTHERWISE = {"running", "final", "not_due", "retrying"}
"""Causes that status and due time of a run tell already."""

POLL_MOST_MS = 30_000
DELAY_MOST_MS = 3_600_000
SOON = timedelta(minutes=2)
"""A run that is due later than this is not worth waiting for."""


def next_step(
    run: Run, caller: Caller, *, cause: Cause | None = None, is_by_reference: bool = False
) -> str:
    """Return one sentence for a run; ``cause`` is why it is not running, where that was asked."""
    scopes = caller.scopes
    match run.status:
        case RunStatus.QUEUED | RunStatus.RUNNING | RunStatus.WAITING:
            return _because(run, cause) + _look_again(run, scopes)
        case RunStatus.SUCCEEDED:
            return (
                "Done: read resultUri for the whole result."
                if is_by_reference
                else "Done: use the result."
            )
        case RunStatus.FAILED:
            return "Not worth retrying as it is: mend the cause in error, then " + _start_anew(
                scopes
            )
        case RunStatus.DEAD:
            return "Out of attempts: mend the cause in error, then " + _try_again(scopes)
        case RunStatus.CANCELED:
            return _why_canceled(run) + _try_again(scopes)
        case _:
            assert_never(run.status)


def next_of_several(runs: Collection[Run]) -> str:
    """Return one sentence for the runs that were found of those that were asked for."""
    if not runs:
        return "None was found: list-runs shows the runs this token may see."
    if any(not run.status.is_final for run in runs):
        return "Call get-job-status again with the runIds that are not final and waitSeconds 20."
    return "All are final: read each result from its resultUri."


def next_after_plan(outcome: str) -> str:
    """Return one sentence for a call that only planned."""
    match outcome:
        case "replayed":
            return "Nothing was written: this key already made the run named here, which the call would return."
        case "conflict":
            return "Nothing was written: this key was used with another input, so use another key."
        case "canceled":
            return "Nothing was written: without dryRun the run would be canceled at once."
        case "requested":
            return "Nothing was written: without dryRun the worker would be asked to stop the run."
        case "queued":
            return "Nothing was written: without dryRun the run would be queued again."
        case _:
            return "Nothing was written: call again without dryRun to create the run."


def poll_after_ms(run: Run, now: datetime | None = None) -> int | None:
    """Return after how many milliseconds a look is likely to show something new; ``None`` for a final run."""
    if run.status.is_final:
        return None
    now = now or datetime.now(UTC)
    until_due = int((run.run_at - now).total_seconds() * 1000)
    if run.status is RunStatus.QUEUED and until_due > POLL_STEPS_MS[0][1]:
        return min(until_due, DELAY_MOST_MS)
    age = (now - (run.started_at or run.created_at)).total_seconds() * 1000
    return next((after for up_to, after in POLL_STEPS_MS if age < up_to), POLL_MOST_MS)


def _because(run: Run, cause: Cause | None) -> str:
    if run.cancel_requested_at is not None:
        return "Cancellation is requested; the job is being stopped. "
    if cause is not None and cause.cause not in _SAID_OTHERWISE:
        comes_first = f" First: run {cause.blocked_by}." if cause.blocked_by is not None else ""
        return f"{_sentence(cause.message)}{comes_first}{_until(cause)} "
    if run.waiting_for is not None:
        what = "its turn in the ordering key" if run.waiting_for == "turn" else run.waiting_for
        return f"Waiting for {what}. "
    return ""


def _until(cause: Cause) -> str:
    if cause.until is None or cause.cause not in {"debouncing", "rate_limited"}:
        return ""
    return f" Not before {cause.until.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}."


def _why_canceled(run: Run) -> str:
    match run.error.code if run.error is not None else None:
        case "DEBOUNCED":
            return "Follow the newer run that error names instead; to run this one as well, "
        case "DEPENDENCY_FAILED":
            return "A run it depends on did not succeed: retry that one first, and then this: "
        case _:
            return "Canceled on request: to run it after all, "


def _look_again(run: Run, scopes: Collection[str]) -> str:
    if "jobs:read" not in scopes:
        return "It goes on by itself; this token may not read it."
    is_later = run.status is RunStatus.QUEUED and run.run_at > datetime.now(UTC)
    why = "; include attempts tells why" if is_later and run.attempt_no > 0 else ""
    if is_later and run.run_at - datetime.now(UTC) > SOON:
        return f"It is not due yet: call get-job-status with this runId after runAt{why}."
    return (
        f"Call get-job-status with this runId, waitSeconds 20 and sinceVersion {run.version}{why}."
    )


def _start_anew(scopes: Collection[str]) -> str:
    if "jobs:execute" in scopes:
        return "call execute-job with a new idempotencyKey."
    return _try_again(scopes)


def _try_again(scopes: Collection[str]) -> str:
    if "jobs:retry" in scopes:
        return "call retry-job with resetAttempts true."
    return "ask someone whose token may retry it."


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
