"""``demo.countdown``: takes one step a second, with progress, and can be canceled between any two."""

from __future__ import annotations

import anyio
from pydantic import BaseModel, Field

from jobforge_mcp import JobContext, job


class CountdownInput(BaseModel):
    """How long to count."""

    seconds: float = Field(default=5, ge=0, le=3_600, description="Length of the countdown.")
    steps: int | None = Field(
        default=None, ge=1, le=10_000, description="Number of steps; default one per second."
    )


class CountdownOutput(BaseModel):
    """What was counted."""

    steps: int
    message: str


@job(
    name="demo.countdown",
    title="Countdown",
    description="Counts down the given seconds in steps with progress. Use it to see a run live.",
    timeout="65m",
    tags=["demo"],
    effects="none",
    idempotent=True,
)
async def countdown(input: CountdownInput, job: JobContext) -> CountdownOutput:
    """Report each step and wait for its share of the time."""
    steps = input.steps or max(1, round(input.seconds))
    for step in range(steps):
        job.progress(step, steps, f"T minus {steps - step}")
        await anyio.sleep(input.seconds / steps)
    job.progress(steps, steps, "liftoff")
    return CountdownOutput(steps=steps, message="liftoff")
