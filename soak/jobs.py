"""The jobs of a soak. Each says in its process's history that it began, and what it is about to return."""

from __future__ import annotations

import os
import signal
import time
from functools import cache
from pathlib import Path

import anyio
from pydantic import BaseModel

from jobforge_mcp import JobContext, PermanentError, Retry, job


class Work(BaseModel):
    nonce: str
    """Names the enqueue that made this job."""
    sequence: int | None = None
    """Place among the jobs of its ordering key."""
    fails: int = 0
    """How many attempts fail before one succeeds."""
    milliseconds: int = 0
    """How long it works."""
    trigger: str | None = None
    """Name of the trigger that made this job, which has its nonce from an event."""


class Outcome(BaseModel):
    nonce: str
    run_id: str
    epoch: int
    tenant_id: str
    process: int


@cache
def _history() -> int:
    folder = Path(os.environ["SOAK_HISTORY"])
    return os.open(
        folder / f"handler-{os.getpid()}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
    )


def _begin(work: Work, job: JobContext) -> Outcome:
    line = (
        f'{{"t": {time.time()}, "what": "begin", "run": "{job.run_id}", "epoch": {job.epoch}, '
        f'"attempt": {job.attempt}, "nonce": "{work.nonce}"}}\n'
    )
    os.write(_history(), line.encode())
    return Outcome(
        nonce=work.nonce,
        run_id=str(job.run_id),
        epoch=job.epoch,
        tenant_id=job.tenant_id,
        process=os.getpid(),
    )


TIMEOUT = os.environ.get("SOAK_TIMEOUT", "30s")
LONG = Retry(max_attempts=25, backoff="100ms", max_backoff="500ms")
SOON = Retry(max_attempts=4, backoff="200ms", multiplier=2, max_backoff="1s")


@job(
    name="soak.quick",
    timeout=TIMEOUT,
    retry=LONG,
)
async def quick(work: Work, job: JobContext) -> Outcome:
    """Return at once."""
    return _begin(work, job)


@job(
    name="soak.slow",
    timeout=TIMEOUT,
    retry=LONG,
)
async def slow(work: Work, job: JobContext) -> Outcome:
    """Work for a while, and say how far it is."""
    outcome = _begin(work, job)
    for step in range(5):
        job.progress(step, 5, f"step {step}")
        await anyio.sleep(work.milliseconds / 5_000)
    return outcome


@job(name="soak.flaky", timeout=TIMEOUT, retry=SOON)
async def flaky(work: Work, job: JobContext) -> Outcome:
    """Fail a few times first."""
    outcome = _begin(work, job)
    if job.attempt <= work.fails:
        raise RuntimeError("not this time")
    return outcome


@job(name="soak.hopeless", timeout=TIMEOUT, retry=SOON)
async def hopeless(work: Work, job: JobContext) -> Outcome:
    """Fail for good."""
    _begin(work, job)
    raise PermanentError("this cannot work", code="HOPELESS")


@job(name="soak.poison", timeout=TIMEOUT, retry=Retry(max_attempts=2, backoff="200ms"))
async def poison(work: Work, job: JobContext) -> Outcome:
    """Kill the worker."""
    _begin(work, job)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@job(name="soak.asked", timeout=TIMEOUT, retry=LONG)
async def asked(work: Work, job: JobContext) -> Outcome:
    """Do what an agent asked for: nothing else waits in this lane, so that the job begins where it was asked for."""
    outcome = _begin(work, job)
    await anyio.sleep(work.milliseconds / 1_000)
    return outcome


@job(
    name="soak.blocking",
    timeout=TIMEOUT,
    isolation="process",
    retry=LONG,
)
def blocking(work: Work, job: JobContext) -> Outcome:
    """Hold its thread, in a child process."""
    outcome = _begin(work, job)
    time.sleep(work.milliseconds / 1_000)
    return outcome


@job(name="soak.limited", timeout=TIMEOUT, retry=LONG, concurrency=3)
async def limited(work: Work, job: JobContext) -> Outcome:
    """Work for a moment, beside two others of its tenant at most."""
    outcome = _begin(work, job)
    await anyio.sleep(work.milliseconds / 1_000)
    return outcome


@job(name="soak.event", timeout=TIMEOUT, retry=LONG)
async def event(work: Work, job: JobContext) -> Outcome:
    """Do what an event asked for."""
    return _begin(work, job)


@job(name="soak.tick", timeout=TIMEOUT, retry=LONG)
async def tick(work: Work, job: JobContext) -> Outcome:
    """Do what a schedule asked for."""
    return _begin(work, job)
