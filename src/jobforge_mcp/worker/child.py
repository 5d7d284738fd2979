"""The child's side of ``children.py``: a fresh interpreter that runs one handler at a time.

The main thread runs handlers, because only there a signal can interrupt one; a second thread reads what the worker says.
When the worker is gone, that thread ends the whole process group. This module never touches the database.
"""

from __future__ import annotations

import base64
import ctypes
import math
import os
import queue
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, cast
from uuid import UUID

import anyio
import anyio.to_thread

from jobforge_mcp import errors
from jobforge_mcp.definitions.json_limits import load_limited
from jobforge_mcp.definitions.loader import resolve
from jobforge_mcp.definitions.model import BoundJob, HandlerRef
from jobforge_mcp.definitions.registry import check_output
from jobforge_mcp.types import JobId, JsonObject, JsonValue, ProjectId, TenantId
from jobforge_mcp.worker.context import JobContext, RunFacts, Transaction
from jobforge_mcp.worker.evidence import Decision, Evidence
from jobforge_mcp.worker.failures import Told, tell
from jobforge_mcp.worker.framing import END_OF_OUTPUT, FrameReader, encode_frame
from jobforge_mcp.worker.requests import (
    ArtifactRef,
    ArtifactRequest,
    ChildRequest,
    EventRef,
    EventRequest,
    UsageError,
)

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

FRAMED_BYTES = 256 * 1024
"""Content up to this size travels in a message."""


class Stopped(BaseException):
    """The worker ends this process; raised inside the handler, so that it can clean up."""


class Line:
    """The line to the worker."""

    def __init__(self, to_worker: socket.socket) -> None:
        self.jobs: queue.SimpleQueue[JsonObject] = queue.SimpleQueue()
        self.is_stop_requested = False
        self._socket = to_worker
        self._sending = threading.Lock()
        self._numbers = 0
        self._asked: dict[int, Future[JsonValue]] = {}

    def send(self, message: JsonObject) -> None:
        """Send one message; from any thread."""
        frame = encode_frame(message)
        with self._sending:
            self._socket.sendall(frame)

    def ask(self, what: str, **details: JsonValue) -> JsonValue:
        """Ask the worker something, and wait for its answer."""
        future: Future[JsonValue] = Future()
        with self._sending:
            self._numbers += 1
            number = self._numbers
        self._asked[number] = future
        self.send({"op": "ask", "what": what, "number": number, **details})
        return future.result()

    def listen(self) -> None:
        """Take what the worker says, until it is gone; then end this process and all it started."""
        reader = FrameReader()
        with suppress(OSError):
            while data := self._socket.recv(65_536):
                for message in reader.feed(data):
                    self._hear(message)
        os.killpg(0, signal.SIGKILL)

    def _hear(self, message: JsonObject) -> None:
        match message["op"]:
            case "run" | "hello":
                self.is_stop_requested = False
                self.jobs.put(message)
            case "stop":
                self.is_stop_requested = True
            case "answer":
                future = self._asked.pop(cast("int", message["number"]))
                error = message.get("error")
                if isinstance(error, dict):
                    future.set_exception(_error(error))
                else:
                    future.set_result(message["value"])
            case _:
                pass


class ChildLink:
    """The link of a handler that runs in this process."""

    def __init__(self, line: Line, *, is_async: bool, spool: str) -> None:
        self.is_async = is_async
        self._line = line
        self._spool = spool
        self._is_watching = False
        self._has_seen_stop = False

    def progress(self, done: float, total: float | None, message: str | None) -> None:
        """See :meth:`JobContext.progress`."""
        if done == done and abs(done) != float("inf"):  # noqa: PLR0124 - not a number is not equal to itself
            self._line.send({"op": "progress", "done": done, "total": total, "message": message})

    def log(self, message: str, level: str) -> None:
        """See :meth:`JobContext.log`."""
        self._line.send({"op": "log", "message": message[:8_192], "level": level})

    def is_cancelled(self) -> bool:
        """See :attr:`JobContext.cancelled`."""
        if not self._is_watching:
            self._is_watching = True
            self._line.send({"op": "watching"})
        if self._line.is_stop_requested and not self._has_seen_stop:
            self._has_seen_stop = True
            self._line.send({"op": "saw_stop"})
        return self._line.is_stop_requested

    def secret(self, name: str) -> str:
        """See :meth:`JobContext.secret`."""
        return str(self._line.ask("secret", name=name))

    async def fetch_secret(self, name: str) -> str:
        """See :meth:`JobContext.fetch_secret`."""
        return await anyio.to_thread.run_sync(self.secret, name)

    def decide(self, decision: Decision) -> None:
        """See :meth:`JobContext.decide`; told at once, so that it is known even if this process is killed."""
        self._line.send(
            {
                "op": "decide",
                "name": decision.name,
                "choice": decision.choice,
                "reason": decision.reason,
            }
        )

    async def artifact(self, request: ArtifactRequest) -> ArtifactRef:
        """See :meth:`JobContext.artifact`."""
        return await anyio.to_thread.run_sync(self.artifact_sync, request)

    def artifact_sync(self, request: ArtifactRequest) -> ArtifactRef:
        """See :meth:`JobContext.artifact_sync`; what is large goes by way of a file that the worker takes over."""
        content = request.content
        data: str | None = None
        path: str | None = None
        if isinstance(content, bytes) and len(content) <= FRAMED_BYTES:
            data = base64.b64encode(content).decode()
        else:
            path = str(content) if isinstance(content, Path) else self._spooled(content)
        answer = self._line.ask(
            "artifact",
            name=request.name,
            data=data,
            path=path,
            is_spooled=not isinstance(content, Path),
            mime=request.mime,
            keep_seconds=None if request.keep is None else request.keep.total_seconds(),
        )
        ref = cast("dict[str, str]", answer)
        return ArtifactRef(ref["name"], ref["uri"], int(ref["size"]), ref["sha256"], ref["mime"])

    def _spooled(self, content: bytes) -> str:
        folder = Path(self._spool)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        number, name = tempfile.mkstemp(dir=folder)
        with os.fdopen(number, "wb") as file:
            file.write(content)
        return name

    async def enqueue(self, request: ChildRequest) -> JobId:
        """See :meth:`JobContext.enqueue`."""
        return await anyio.to_thread.run_sync(self._enqueue, request)

    def enqueue_sync(self, request: ChildRequest) -> JobId:
        """See :meth:`JobContext.enqueue_sync`."""
        return self._enqueue(request)

    async def submit_event(self, request: EventRequest) -> EventRef:
        """See :meth:`JobContext.submit_event`."""
        return await anyio.to_thread.run_sync(self.submit_event_sync, request)

    def submit_event_sync(self, request: EventRequest) -> EventRef:
        """See :meth:`JobContext.submit_event_sync`."""
        answer = cast(
            "JsonObject",
            self._line.ask(
                "submit_event",
                event_type=request.event_type,
                payload=request.payload,
                key=request.key,
                source=request.source,
                subject=request.subject,
                occurred_at=request.occurred_at.isoformat() if request.occurred_at else None,
                contains_pii=request.contains_pii,
                redaction_hints=request.redaction_hints,
                attributes=request.attributes,
            ),
        )
        event_id = answer["event_id"]
        return EventRef(None if event_id is None else UUID(str(event_id)), str(answer["outcome"]))

    def transaction(self, *, read_only: bool) -> AbstractAsyncContextManager[Transaction]:
        """Refuse: this process has no connection to the database, and shall have none."""
        raise UsageError(
            "job.transaction() needs an async def handler on the worker's event loop",
            hint="write async def without isolation, or open a connection of the handler's own",
        )

    def _enqueue(self, request: ChildRequest) -> JobId:
        labels = cast("JsonObject | None", dict(request.labels) if request.labels else None)
        answer = self._line.ask(
            "enqueue",
            name=request.name,
            input=request.input,
            key=request.key,
            ordering_key=request.ordering_key,
            priority=request.priority,
            run_at=request.run_at.isoformat() if request.run_at else None,
            labels=labels,
        )
        return JobId(UUID(str(answer)))


def main(descriptor: int) -> None:
    """Run jobs until the worker says otherwise."""
    _die_with(os.getppid())
    to_worker = socket.socket(fileno=descriptor)
    to_worker.set_inheritable(False)
    line = Line(to_worker)
    threading.Thread(target=line.listen, name="jobforge-line", daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hello = line.jobs.get()
    if hello["parent"] != os.getppid():
        return
    sys.path[:] = [str(entry) for entry in cast("list[JsonValue]", hello["path"])]
    limits = cast("dict[str, int]", hello["limits"])
    limit_resources(limits)
    with suppress(AttributeError):
        sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]  # a text file here
    while True:
        request = line.jobs.get()
        _limit_cpu(limits["cpu_seconds"])
        answer = run(line, request)
        _end_output(cast("int", request["call"]))
        _reap()
        line.send(answer)


class _State(NamedTuple):
    facts: RunFacts
    evidence: Evidence


def run(line: Line, request: JsonObject) -> JsonObject:
    """Run one job and return the last message about it."""
    facts = _facts(cast("JsonObject", request["facts"]))
    evidence = Evidence(facts.run_id, facts.epoch, datetime.fromisoformat(str(request["origin"])))
    used = _used()
    try:
        bound = resolve(HandlerRef(str(request["source"]), str(request["name"])))
        validated = bound.input_type.validate_python(load_limited(str(request["payload"])))
        link = ChildLink(line, is_async=bound.is_async, spool=str(request["spool"]))
        context = JobContext(_State(facts, evidence), validated, link=link)
        value = _call(bound, validated, context)
        answer: JsonObject = {"op": "done", "result": check_output(bound, value)}
    except Stopped:
        sys.exit(0)
    except BaseException as error:  # noqa: BLE001 - a handler may raise anything, SystemExit too
        answer = _failed(tell(error))
    entries = [list[JsonValue](entry) for entry in evidence.entries]
    return {**answer, "evidence": list[JsonValue](entries), "metrics": _measured(used)}


def _used() -> float:
    """Return seconds of CPU that this process and what it started have used."""
    import resource  # not on Windows

    own = resource.getrusage(resource.RUSAGE_SELF)
    started = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + started.ru_utime + started.ru_stime


def _measured(before: float) -> JsonObject:
    """Return what one job took. Memory is the most this process ever had, the jobs before included."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1024 * 1024 if sys.platform == "darwin" else 1024
    return {"cpuMs": round((_used() - before) * 1_000), "memoryMb": round(peak / unit)}


def _call(bound: BoundJob, validated: object, context: JobContext) -> object:
    if not bound.is_async:
        signal.signal(signal.SIGTERM, _raise_stopped)
        try:
            return bound.handler(validated, context)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    async def call() -> object:
        value: object = None
        is_stopped = True
        async with anyio.create_task_group() as group:
            group.start_soon(_cancel_on_signal, group.cancel_scope)
            value = await cast("Callable[..., Awaitable[object]]", bound.handler)(
                validated, context
            )
            is_stopped = group.cancel_scope.cancel_called
            group.cancel_scope.cancel()
        if is_stopped:
            raise Stopped
        return value

    return anyio.run(call)


async def _cancel_on_signal(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


def _raise_stopped(number: int, frame: object) -> None:
    raise Stopped


def _facts(facts: JsonObject) -> RunFacts:
    project, trace = facts["project_id"], facts["trace_id"]
    return RunFacts(
        run_id=JobId(UUID(str(facts["run_id"]))),
        tenant_id=TenantId(str(facts["tenant_id"])),
        project_id=ProjectId(str(project)) if project is not None else None,
        trace_id=str(trace) if trace is not None else None,
        attempt=cast("int", facts["attempt"]),
        max_attempts=cast("int", facts["max_attempts"]),
        epoch=cast("int", facts["epoch"]),
        dry_run=bool(facts["dry_run"]),
        deadline=datetime.fromisoformat(str(facts["deadline"])),
    )


def _failed(told: Told) -> JsonObject:
    error = told.error
    return {
        "op": "failed",
        "kind": told.kind.value,
        "error": {
            "code": error.code,
            "message": error.message,
            "retryable": error.retryable,
            "type": error.type,
            "hint": error.hint,
        },
        "traceback": told.traceback,
        "delay_ms": told.delay_ms,
    }


def _error(error: JsonObject) -> errors.JobForgeError:
    """Make the error again that the worker met, as far as a handler can tell."""
    kind: object = getattr(errors, str(error["class"]), None)
    if not (isinstance(kind, type) and issubclass(kind, errors.JobForgeError)):
        kind = errors.JobForgeError
    hint = error["hint"]
    # Not through the class's own __init__, which may ask for more than a message.
    made = kind.__new__(kind, str(error["message"]))
    errors.JobForgeError.__init__(
        made,
        str(error["message"]),
        code=str(error["code"]),
        hint=str(hint) if hint is not None else None,
        retryable=bool(error["retryable"]),
    )
    return made


def _end_output(call: int) -> None:
    """Mark the end of what a job printed; a handler may have closed or replaced its streams."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    with suppress(OSError):
        os.write(1, f"{END_OF_OUTPUT}{call}\n".encode())


def _die_with(parent: int) -> None:
    """Have the kernel end this process when its worker ends, where it can."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            _guard(ctypes.CDLL(None).prctl)
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            # whoever leaves its parent and its group stays our descendant, and is found when we are ended
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        if os.getppid() != parent:
            os.killpg(0, signal.SIGKILL)


def _guard(prctl: Callable[..., int]) -> None:
    """Leave a process in this group that ends all of it when this process does: what a handler started has no other end."""
    child = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    if os.fork() != 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        return
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    prctl(PR_SET_PDEATHSIG, signal.SIGUSR1)
    os.closerange(0, 1_024)  # the worker must see the end of what this process says
    if os.getppid() == child:
        signal.sigwait({signal.SIGUSR1})
    os.killpg(0, signal.SIGKILL)


def limit_resources(limits: Mapping[str, int]) -> None:
    """Set the limits that hold for the life of this process, and for what it starts."""
    import resource  # not on Windows

    if limits["memory_mb"]:
        most = limits["memory_mb"] * 1024 * 1024
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if limits["processes"]:
        resource.setrlimit(resource.RLIMIT_NPROC, (limits["processes"], limits["processes"]))
    if limits["cpu_seconds"]:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # SIGXCPU would write one


def _limit_cpu(seconds: int) -> None:
    """Give the next job so many seconds of CPU: the kernel counts those of the whole process."""
    if seconds:
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        most = math.ceil(used.ru_utime + used.ru_stime) + seconds
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _reap() -> None:
    """Let go of those that a job left behind and that have ended: their parent is this process now."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]))
    except Stopped:
        sys.exit(0)
    except Exception:  # noqa: BLE001 - the worker reads this as output of the job, the exit code as its end
        traceback.print_exc()
        sys.exit(70)
