"""Jobs that the tests of the server run: real handlers on the real pool."""

from __future__ import annotations

import anyio
from pydantic import BaseModel

from jobforge_mcp import JobContext, PermanentError, Retry, RetryableError, job
from jobforge_mcp.definitions.model import BoundJob


class Nothing(BaseModel):
    """No input."""


class Words(BaseModel):
    text: str = "hello"
    times: int = 1


class Failures(BaseModel):
    failures: int = 1


class Length(BaseModel):
    length: int


class Steps(BaseModel):
    steps: int = 3
    seconds: float = 0.1


@job(name="test.noop", description="Does nothing.", effects="none")
async def noop(input: Nothing, job: JobContext) -> None:
    return None


@job(name="test.echo", description="Says it again.", tags=["text"], labels={"team": "words"})
async def echo(input: Words, job: JobContext) -> dict[str, str]:
    job.log("echoing")
    return {"said": input.text * input.times}


@job(name="test.steps", description="Takes steps.")
async def steps(input: Steps, job: JobContext) -> int:
    for step in range(input.steps):
        job.progress(step, input.steps, f"step {step}")
        await anyio.sleep(input.seconds)
    return input.steps


@job(name="test.leaves", description="Leaves things behind.", effects="none")
async def leaves(input: Words, job: JobContext) -> dict[str, str]:
    job.decide("tone", "friendly", "## forged heading\n[link](https://evil.example)")
    job.log("ink is low", level="warning")
    await job.artifact("letter.md", input.text.encode())
    await job.artifact("picture.png", bytes(range(256)))
    return {"said": input.text * input.times}


@job(name="test.forever", description="Ends only when it is canceled.")
async def forever(input: Nothing, job: JobContext) -> None:
    job.progress(0, 1, "for ever")
    await anyio.sleep_forever()


@job(name="test.fails", description="Is not worth retrying.")
async def fails(input: Nothing, job: JobContext) -> None:
    raise PermanentError("the cable is cut", code="CABLE_CUT", hint="mend the cable")


@job(
    name="test.dies",
    description="Fails for ever.",
    retry=Retry(max_attempts=2, backoff="1ms"),
)
async def dies(input: Nothing, job: JobContext) -> None:
    raise RetryableError("still broken", code="BROKEN")


@job(name="test.big", description="Returns so many characters.")
async def big(input: Length, job: JobContext) -> str:
    return "ab " * (input.length // 3)


@job(name="test.number", description="Returns numbers in many forms.")
async def number(input: Nothing, job: JobContext) -> dict[str, float]:
    return {"large": 1e300, "small": 2.5e-300, "whole": 3.0, "below": -0.0}


@job(name="test.email", description="Acts outside.", effects="external")
async def email(input: Nothing, job: JobContext) -> str:
    return "would send" if job.dry_run else "sent"


@job(name="test.guarded", description="Needs more.", scopes=["ops:read"])
async def guarded(input: Nothing, job: JobContext) -> str:
    return "seen"


@job(name="test.prints", description="Writes to standard output.")
async def prints(input: Nothing, job: JobContext) -> str:
    print("this must not reach the protocol", flush=True)  # noqa: T201
    return "printed"


@job(name="test.environment", description="Looks for the token.", effects="none")
async def environment(input: Nothing, job: JobContext) -> bool:
    import os

    return "JOBFORGE_TOKEN" in os.environ


JOBS: list[BoundJob] = [
    noop, echo, steps, leaves, forever, fails, dies, big, number, email, guarded, prints, environment,
]  # fmt: skip
