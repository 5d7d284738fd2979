"""Handlers that the tests of the worker run; loaded as a file, so that children can load them too."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import cast

import anyio
from pydantic import BaseModel

from jobforge_mcp.definitions.model import Retry, job
from jobforge_mcp.errors import PermanentError, RetryableError, RetryLater
from jobforge_mcp.types import JsonValue
from jobforge_mcp.worker.context import JobContext


class Nothing(BaseModel):
    pass


class Named(BaseModel):
    name: str = ""


class Numbered(BaseModel):
    number: int = 1


@job(name="echo")
async def echo(input: Numbered, job: JobContext) -> int:
    return input.number


@job(name="echo.thread", isolation="thread")
def echo_on_thread(input: Numbered, job: JobContext) -> int:
    job.progress(input.number)
    job.log("on a thread")
    return input.number


@job(name="echo.process")
def echo_in_process(input: Numbered, job: JobContext) -> dict[str, JsonValue]:
    job.progress(input.number, 10, "half")
    job.log("in a process", level="warning")
    print("printed by the handler")  # noqa: T201 - that is the point
    return {
        "number": input.number,
        "pid": os.getpid(),
        "run_id": str(job.run_id),
        "environment": list[JsonValue](sorted(os.environ)),
    }


@job(name="echo.async-process", isolation="process")
async def echo_async_in_process(input: Numbered, job: JobContext) -> int:
    await anyio.lowlevel.checkpoint()
    return input.number


@job(name="context")
async def context(input: Nothing, job: JobContext) -> dict[str, JsonValue]:
    return _facts(job)


@job(name="context.process")
def context_in_process(input: Nothing, job: JobContext) -> dict[str, JsonValue]:
    return _facts(job)


def _facts(job: JobContext) -> dict[str, JsonValue]:
    return {
        "run_id": str(job.run_id),
        "tenant_id": job.tenant_id,
        "project_id": job.project_id,
        "trace_id": job.trace_id,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "epoch": job.epoch,
        "dry_run": job.dry_run,
        "has_time": job.deadline - job.now() < timedelta(minutes=5),
        "random": job.random(),
        "uuid": str(job.uuid()),
        "cancelled": job.cancelled,
    }


@job(name="count", retry=Retry(max_attempts=1))
async def count(input: Numbered, job: JobContext) -> None:
    for number in range(input.number):
        job.progress(number + 1, input.number, f"step {number + 1}")
        await anyio.sleep(0.001)


@job(name="chatter")
async def chatter(input: Numbered, job: JobContext) -> None:
    for number in range(input.number):
        job.log(f"line {number}")
    job.log("\0 and \ud800 and " + "x" * 10_000)


@job(name="raise")
async def raise_error(input: Named, job: JobContext) -> None:
    _raise(input.name)


@job(name="raise.process")
def raise_in_process(input: Named, job: JobContext) -> None:
    _raise(input.name)


def _raise(name: str) -> None:
    match name:
        case "permanent":
            raise PermanentError("this will never work", code="NEVER")
        case "later":
            raise RetryLater(60)
        case "retry_after":
            error = ValueError("slow down")
            error.retry_after = 120  # pyright: ignore[reportAttributeAccessIssue]  # as HTTP clients do
            raise error
        case "group":
            raise ExceptionGroup("two", [ValueError("one"), PermanentError("other")])
        case "exit":
            sys.exit(3)
        case "long":
            raise ValueError("x" * 100_000)
        case _:
            raise ValueError(f"broken {name}")


class Cat(BaseModel):
    legs: int


@job(name="wrong-result")
async def wrong_result(input: Nothing, job: JobContext) -> Cat:
    return "no cat"  # pyright: ignore[reportReturnType]  # that is the point


@job(name="wrong-result.process")
def wrong_result_in_process(input: Nothing, job: JobContext) -> Cat:
    return "no cat"  # pyright: ignore[reportReturnType]  # that is the point


@job(name="sleep", timeout="30s")
async def sleep_well(input: Nothing, job: JobContext) -> None:
    job.progress(0, 1, "asleep")
    await anyio.sleep_forever()


@job(name="sleep.briefly", timeout="300ms")
async def sleep_too_long(input: Nothing, job: JobContext) -> None:
    await anyio.sleep_forever()


@job(name="swallow", timeout="300ms", retry=Retry(max_attempts=1))
async def swallow(input: Named, job: JobContext) -> str:
    """Go on after being cancelled, until a file appears."""
    with anyio.CancelScope(shield=True):
        await _appearance_of(input.name)
    return "too late"


@job(name="swallow.long", timeout="10m", retry=Retry(max_attempts=1))
async def swallow_long(input: Named, job: JobContext) -> str:
    """Go on after being cancelled, whatever happens."""
    job.progress(0, message="swallowing")
    with anyio.CancelScope(shield=True):
        await _appearance_of(input.name)
    return "too late"


@job(name="obey", timeout="30s")
async def obey(input: Nothing, job: JobContext) -> str:
    """End by itself when asked to."""
    while not job.cancelled:
        job.progress(0)
        await anyio.sleep(0.01)
    return "ended by itself"


@job(name="obey.process", timeout="30s")
def obey_in_process(input: Named, job: JobContext) -> str:
    job.progress(0, message=str(os.getpid()))
    while not job.cancelled:
        time.sleep(0.01)
    Path(input.name).write_text("ended by itself")
    return "ended by itself"


@job(name="stubborn.process", timeout="30s", retry=Retry(max_attempts=1))
def stubborn(input: Named, job: JobContext) -> None:
    """Ignore whatever is asked, with a grandchild."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    grandchild = subprocess.Popen(["sleep", "60"])
    job.progress(0, message=f"{os.getpid()} {grandchild.pid}")
    while True:
        time.sleep(1)


@job(name="stubborn.briefly", timeout="2s", retry=Retry(max_attempts=1))
def stubborn_with_timeout(input: Named, job: JobContext) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(input.name).write_text(str(os.getpid()))
    while True:
        time.sleep(1)


@job(name="clean-up.process", timeout="2s", retry=Retry(max_attempts=1))
def clean_up(input: Named, job: JobContext) -> None:
    try:
        time.sleep(60)
    finally:
        Path(input.name).write_text("cleaned up")


async def _appearance_of(name: str) -> None:
    while not await anyio.Path(name).exists():  # noqa: ASYNC110 - the test that makes it may be another process
        await anyio.sleep(0.01)


@job(name="wait.thread", timeout="300ms", isolation="thread", retry=Retry(max_attempts=1))
def wait_on_thread(input: Named, job: JobContext) -> None:
    while not Path(input.name).exists():
        time.sleep(0.01)


@job(name="block", timeout="30s")
async def block(input: Numbered, job: JobContext) -> None:
    """Block the event loop for so many tenths of a second."""
    time.sleep(input.number / 10)  # noqa: ASYNC251 - that is the point


@job(name="die.process", retry=Retry(max_attempts=1))
def die(input: Named, job: JobContext) -> None:
    if input.name == "exit":
        os._exit(7)
    if input.name == "segfault":
        ctypes.string_at(0)
    if input.name == "garbage":
        for descriptor in range(3, 64):
            try:
                os.write(descriptor, b"\xff" * 64)
            except OSError:
                continue
        time.sleep(60)
    os.kill(os.getpid(), signal.SIGKILL)


@job(name="eat.process", retry=Retry(max_attempts=1))
def eat(input: Nothing, job: JobContext) -> int:
    return len(bytearray(1 << 31))


@job(name="poison", retry=Retry(max_attempts=2, backoff="1ms"))
async def poison(input: Nothing, job: JobContext) -> None:
    """Kill the worker."""
    os.kill(os.getpid(), signal.SIGKILL)


@job(name="parent")
async def parent(input: Numbered, job: JobContext) -> list[str]:
    return [str(await job.enqueue("echo", {"number": n})) for n in range(input.number)]


@job(name="parent.process")
def parent_in_process(input: Numbered, job: JobContext) -> list[str]:
    return [str(job.enqueue_sync("echo", {"number": n})) for n in range(input.number)]


@job(name="parent.thread", isolation="thread")
def parent_on_thread(input: Numbered, job: JobContext) -> list[str]:
    return [str(job.enqueue_sync("echo", {"number": n})) for n in range(input.number)]


@job(name="parent.wrong")
def parent_of_nobody(input: Nothing, job: JobContext) -> None:
    job.enqueue_sync("nobody", {})


@job(name="announce", retry=Retry(backoff="1ms"))
async def announce(input: Numbered, job: JobContext) -> list[str]:
    made = [
        await job.submit_event("order.paid", {"n": n, "key": job.secret("api-key")}, subject="s")
        for n in range(input.number)
    ]
    if job.attempt == 1:
        raise RetryableError("again", retry_after=0)
    return [f"{event.outcome} {event.event_id}" for event in made]


@job(name="announce.process", retry=Retry(backoff="1ms"))
def announce_in_process(input: Numbered, job: JobContext) -> list[str]:
    return _announce(input, job)


@job(name="announce.thread", isolation="thread", retry=Retry(backoff="1ms"))
def announce_on_thread(input: Numbered, job: JobContext) -> list[str]:
    return _announce(input, job)


def _announce(input: Numbered, job: JobContext) -> list[str]:
    made = [
        job.submit_event_sync("order.paid", {"n": n, "key": job.secret("api-key")}, subject="s")
        for n in range(input.number)
    ]
    if job.attempt == 1:
        raise RetryableError("again", retry_after=0)
    return [f"{event.outcome} {event.event_id}" for event in made]


@job(name="announce.wrong")
async def announce_wrongly(input: Named, job: JobContext) -> None:
    match input.name:
        case "type":
            await job.submit_event("no type")
        case "nan":
            await job.submit_event("order.paid", {"n": float("nan")})
        case "key":
            await job.submit_event("order.paid", {"n": 1}, key="k")
            await job.submit_event("order.paid", {"n": 2}, key="k")
        case "sync":
            job.submit_event_sync("order.paid")
        case _:
            await job.submit_event("order.paid")


@job(name="tell")
async def tell_secret(input: Nothing, job: JobContext) -> None:
    value = job.secret("api-key")
    job.log(f"the key is {value}")
    job.progress(1, message=value)
    raise PermanentError(f"refused {value}")


@job(name="tell.process")
def tell_secret_in_process(input: Nothing, job: JobContext) -> None:
    value = job.secret("api-key")
    job.log(f"the key is {value}")
    print(f"printed {value}")  # noqa: T201 - that is the point
    raise PermanentError(f"refused {value}")


@job(name="write")
async def write(input: Named, job: JobContext) -> str:
    async with job.transaction() as transaction:
        await transaction.execute("insert into app.effects (name) values (%s)", [input.name])
        rows = await transaction.fetch("select count(*) as n from app.effects")
        transaction.complete(f"effect {rows[0]['n']}")
    return "ignored"


@job(name="write.late", timeout="30s")
async def write_late(input: Named, job: JobContext) -> str:
    """Write when a file appears, and let nothing stop it."""
    with anyio.CancelScope(shield=True):
        await _appearance_of(input.name)
        async with job.transaction() as transaction:
            await transaction.execute("insert into app.effects (name) values ('late')")
            transaction.complete("late")
    return "ignored"


@job(name="read")
async def read(input: Nothing, job: JobContext) -> int:
    async with job.transaction(read_only=True) as transaction:
        rows = await transaction.fetch("select count(*)::int as n from app.effects")
    return rows[0]["n"]


@job(name="write.process")
def write_in_process(input: Nothing, job: JobContext) -> None:
    job.transaction()


class Left(BaseModel):
    name: str = "report.md"
    size: int = 5
    count: int = 1
    mime: str | None = None
    as_file: bool = False


def _left(input: Left, number: int) -> tuple[str, bytes | Path]:
    name = input.name if input.count == 1 else f"{number}-{input.name}"
    content = (b"hello" * (input.size // 5 + 1))[: input.size]
    if not input.as_file:
        return name, content
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(content)
    return name, Path(file.name)


@job(name="leave")
async def leave(input: Left, job: JobContext) -> list[str]:
    return [
        (await job.artifact(*_left(input, number), input.mime)).uri for number in range(input.count)
    ]


@job(name="leave.thread", isolation="thread")
def leave_on_thread(input: Left, job: JobContext) -> list[str]:
    return [job.artifact_sync(*_left(input, n), input.mime).uri for n in range(input.count)]


@job(name="leave.process")
def leave_in_process(input: Left, job: JobContext) -> list[str]:
    return [job.artifact_sync(*_left(input, n), input.mime).uri for n in range(input.count)]


@job(name="leave.async-process", isolation="process")
async def leave_async_in_process(input: Left, job: JobContext) -> list[str]:
    return [(await job.artifact(*_left(input, n), input.mime)).uri for n in range(input.count)]


@job(name="leave.text")
async def leave_text(input: Nothing, job: JobContext) -> None:
    await job.artifact("a.txt", cast("bytes", "a path, or the content?"))


@job(name="leave.secret")
async def leave_secret(input: Nothing, job: JobContext) -> None:
    secret = job.secret("api_key")
    job.decide("key", secret, f"it is {secret}")
    await job.artifact("log.txt", f"the key is {secret}".encode())


def _decide(input: Numbered, job: JobContext) -> None:
    for number in range(input.number):
        job.decide("model", {"name": f"m{number}"}, "it is cheap\0")
    job.random()


@job(name="decide")
async def decide(input: Numbered, job: JobContext) -> None:
    _decide(input, job)


@job(name="decide.thread", isolation="thread")
def decide_on_thread(input: Numbered, job: JobContext) -> None:
    _decide(input, job)


@job(name="decide.process", retry=Retry(max_attempts=1))
def decide_in_process(input: Numbered, job: JobContext) -> None:
    _decide(input, job)


@job(name="decide.fail", retry=Retry(max_attempts=1))
def decide_and_fail(input: Nothing, job: JobContext) -> None:
    job.decide("give up", True, "no use")
    raise PermanentError("no use")


@job(name="decide.die", retry=Retry(max_attempts=1))
def decide_and_die(input: Nothing, job: JobContext) -> None:
    job.decide("die", "now")
    os.kill(os.getpid(), signal.SIGKILL)


@job(name="decide.much")
async def decide_much(input: Nothing, job: JobContext) -> None:
    job.decide("everything", "x" * 3_000)


@job(name="long")
async def long(input: Numbered, job: JobContext) -> list[str]:
    return ["é" * 1_000] * input.number


@job(name="long.process")
def long_in_process(input: Numbered, job: JobContext) -> list[str]:
    return ["é" * 1_000] * input.number


@job(name="long.transaction")
async def long_in_transaction(input: Numbered, job: JobContext) -> list[str]:
    async with job.transaction() as transaction:
        transaction.complete(["é" * 1_000] * input.number)
    return []
