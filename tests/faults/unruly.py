"""Handlers that do what handlers should not, each in a child process; a file so that children can load them too."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from pydantic import BaseModel

from jobforge_mcp.definitions.model import Retry, job
from jobforge_mcp.worker.context import JobContext

ONCE = Retry(max_attempts=1)


class Noted(BaseModel):
    file: str
    """Where the handler writes the ids of its processes."""


def note(input: Noted, *pids: int) -> None:
    """Write them at once: whoever reads finds all or nothing."""
    written = Path(f"{input.file}.new")
    written.write_text(" ".join(str(pid) for pid in (os.getpid(), *pids)))
    written.rename(input.file)


def ignore_all() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def forever() -> None:
    while True:
        time.sleep(1)


@job(name="unruly.ignores", timeout="15s", retry=ONCE)
def ignores(input: Noted, job: JobContext) -> None:
    ignore_all()
    note(input)
    forever()


@job(name="unruly.counts", timeout="15s", retry=ONCE)
def counts_in_c(input: Noted, job: JobContext) -> int:
    """Never comes back to the interpreter, so that no signal handler of Python's runs."""
    note(input)
    return sum(range(10**13))


@job(name="unruly.reads", timeout="15s", retry=ONCE)
def reads_what_never_comes(input: Noted, job: JobContext) -> None:
    ignore_all()
    reading, writing = os.pipe()
    note(input)
    os.read(reading, 1)
    os.close(writing)


@job(name="unruly.daemon", timeout="15s", retry=ONCE)
def leaves_a_daemon(input: Noted, job: JobContext) -> None:
    """Start a process of a session of its own whose parent is gone, as a daemon does."""
    told_by, tell = os.pipe()
    if (middle := os.fork()) == 0:
        os.setsid()
        if (daemon := os.fork()) == 0:
            ignore_all()
            forever()
        os.write(tell, str(daemon).encode())
        os._exit(0)
    os.waitpid(middle, 0)
    note(input, int(os.read(told_by, 32)))
    forever()


@job(name="unruly.forks", timeout="15s", retry=ONCE)
def forks_many(input: Noted, job: JobContext) -> None:
    """Start thirty processes, each the leader of a session of its own."""
    pids: list[int] = []
    for _ in range(30):
        if (pid := os.fork()) == 0:
            os.setsid()
            ignore_all()
            forever()
        pids.append(pid)
    note(input, *pids)
    forever()


@job(name="unruly.burns", timeout="60s", retry=ONCE)
def burns(input: Noted, job: JobContext) -> int:
    return sum(range(10**13))


@job(name="unruly.burns-little", timeout="60s", retry=ONCE, cpu_seconds=1)
def burns_what_it_may(input: Noted, job: JobContext) -> int:
    return sum(range(10**13))


@job(name="unruly.eats", timeout="60s", retry=ONCE, memory_mb=1_024)
def eats_more_than_it_may(input: Noted, job: JobContext) -> int:
    return len(bytearray(1 << 31))


@job(name="unruly.eats-freely", timeout="60s", retry=ONCE)
def eats_as_much_as_it_likes(input: Noted, job: JobContext) -> int:
    return len(bytearray(1 << 31))
