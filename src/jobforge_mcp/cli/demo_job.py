"""The job of the demo that is passed from a killed worker to another one.

Not among the jobs that ship: only the worker processes that the demo starts load this module, so that no other worker
can take the run, and killing one of them hurts nobody.
"""

from __future__ import annotations

import os

import anyio
from pydantic import BaseModel, Field

from jobforge_mcp import JobContext, Retry, job

HANDLER = "demo.relay"


class RelayInput(BaseModel):
    """How long to work."""

    steps: int = Field(default=6, ge=1, le=100)
    step_seconds: float = Field(default=0.5, ge=0, le=10)


class RelayOutput(BaseModel):
    """Who did it."""

    process: int = Field(description="Process that finished the job.")


@job(
    name=HANDLER,
    title="Relay",
    description="Works in steps and tells in which process, so that it can be seen passing from one to another.",
    timeout="1m",
    retry=Retry(max_attempts=5, backoff="100ms"),
    tags=["demo"],
    effects="none",
    idempotent=True,
)
async def relay(input: RelayInput, job: JobContext) -> RelayOutput:
    """Report each step with the number of this process."""
    for step in range(1, input.steps + 1):
        await anyio.sleep(input.step_seconds)
        job.progress(step, input.steps, f"step {step} of {input.steps} in process {os.getpid()}")
    return RelayOutput(process=os.getpid())
