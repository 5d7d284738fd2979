"""``demo.flaky``: fails as often as it is told, then succeeds."""

from __future__ import annotations

from pydantic import BaseModel, Field

from jobforge_mcp import JobContext, Retry, RetryableError, job


class FlakyInput(BaseModel):
    """How often to fail."""

    failures: int = Field(default=2, ge=0, le=100, description="Attempts that fail first.")


class FlakyOutput(BaseModel):
    """How it ended."""

    attempts: int
    message: str


@job(
    name="demo.flaky",
    title="Flaky",
    description="Fails the given number of times, is retried, then succeeds. Use it to see retries.",
    timeout="1m",
    retry=Retry(max_attempts=5, backoff="500ms", max_backoff="5s"),
    tags=["demo"],
    effects="none",
    idempotent=True,
)
async def flaky(input: FlakyInput, job: JobContext) -> FlakyOutput:
    """Fail by attempt number, so that nothing need be remembered between attempts."""
    if job.attempt <= input.failures:
        job.log(f"attempt {job.attempt} fails, as asked", level="warning")
        raise RetryableError(
            f"failure {job.attempt} of {input.failures}, as asked", code="DEMO_FAILURE"
        )
    return FlakyOutput(attempts=job.attempt, message=f"succeeded on attempt {job.attempt}")
