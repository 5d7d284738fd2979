"""``demo.stubborn``: blocks and ignores every request to stop, so that only the kill of its process ends it early."""

from __future__ import annotations

import os
import signal
import time

from pydantic import BaseModel, Field

from jobforge_mcp import JobContext, job


class StubbornInput(BaseModel):
    """How long to block."""

    seconds: float = Field(default=60, ge=0, le=3_600, description="Length of the block.")


class StubbornOutput(BaseModel):
    """What was sat through."""

    seconds: float
    pid: int


@job(
    name="demo.stubborn",
    title="Stubborn",
    description="Blocks for the given seconds and ignores cancellation until it is killed. Use it to see that cancel works.",
    timeout="65m",
    tags=["demo"],
    isolation="process",
    effects="none",
    idempotent=True,
)
def stubborn(input: StubbornInput, job: JobContext) -> StubbornOutput:
    """Block, and never look at ``job.cancelled``."""
    job.log(f"blocking for {input.seconds:g} s and deaf to cancellation", level="warning")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the worker sets it anew for the next job
    time.sleep(input.seconds)
    return StubbornOutput(seconds=input.seconds, pid=os.getpid())
