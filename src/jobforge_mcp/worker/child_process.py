"""One child process as its worker sees it: the process, the socket to it, and what it prints.

Who may have a child, and for how long, is decided in ``children.py``; the other end of the socket is ``child.py``.
"""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol, TypeAlias, cast

import anyio
import anyio.abc

from jobforge_mcp.definitions.model import BoundJob
from jobforge_mcp.errors import JobForgeError
from jobforge_mcp.types import FailureKind, JobId, JsonObject, JsonValue, RunError
from jobforge_mcp.worker.attempt import MAX_LOG_LINE_BYTES, Attempt
from jobforge_mcp.worker.descendants import find_descendants, kill_descendants
from jobforge_mcp.worker.evidence import Decision, capped, decision_of
from jobforge_mcp.worker.failures import MAX_MESSAGE_BYTES, MAX_TRACEBACK_BYTES, Told
from jobforge_mcp.worker.framing import END_OF_OUTPUT, FrameError, FrameReader, encode_frame
from jobforge_mcp.worker.requests import (
    ArtifactRef,
    ArtifactRequest,
    ChildRequest,
    EventRef,
    EventRequest,
)

_OUTPUT_WAIT_SECONDS = 1.0

Starter: TypeAlias = Callable[[Callable[[], Coroutine[object, object, None]]], None]
"""Starts a task of the worker."""


class Asked(Protocol):
    """Who answers what a handler in a child asks for."""

    def note_progress(
        self, attempt: Attempt, done: float, total: float | None, message: str | None
    ) -> None:
        """Remember progress."""
        ...

    def note_log(self, attempt: Attempt, message: str, level: str) -> None:
        """Remember a log line."""
        ...

    def note_decision(self, attempt: Attempt, decision: Decision) -> None:
        """Remember a decision."""
        ...

    @property
    def spool(self) -> str:
        """Folder where a child lays content that is too large for a message."""
        ...

    async def artifact(self, attempt: Attempt, request: ArtifactRequest) -> ArtifactRef:
        """Store an artifact."""
        ...

    async def fetch_secret(self, attempt: Attempt, name: str) -> str:
        """Return a secret."""
        ...

    async def enqueue(self, attempt: Attempt, request: ChildRequest) -> JobId:
        """Enqueue a child run."""
        ...

    async def submit_event(self, attempt: Attempt, request: EventRequest) -> EventRef:
        """Submit an event."""
        ...


class ChildEndedError(Exception):
    """A child ended, or stopped making sense, while it ran a job."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@dataclass(eq=False, slots=True)
class ChildProcess:
    """One child process, and the socket to it."""

    process: anyio.abc.Process
    stream: anyio.abc.UNIXSocketStream
    limits: JsonObject
    """Those that it has set on itself."""
    uses: int = 0
    attempt: Attempt | None = None
    """Whose output it is that the child prints."""
    asked: Asked | None = None
    _reader: FrameReader = field(default_factory=FrameReader)
    _sending: anyio.Lock = field(default_factory=anyio.Lock)
    _output_ended: anyio.Event = field(default_factory=anyio.Event)
    _exited: anyio.Event = field(default_factory=anyio.Event)

    @classmethod
    async def spawn(
        cls, environ: Mapping[str, str], limits: JsonObject, start: Starter
    ) -> ChildProcess:
        """Start a fresh interpreter; the limits are those that ``child.py`` sets on itself."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # From the loop's thread and not a helper's: Linux ends the child when the thread that started it ends.
            process = await anyio.open_process(
                [sys.executable, "-P", "-m", "jobforge_mcp.worker.child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environ,
                start_new_session=True,
                pass_fds=[theirs.fileno()],
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        stream = await anyio.abc.UNIXSocketStream.from_socket(ours)
        child = cls(process, stream, limits)
        start(child.watch)
        start(child.read_output)
        hello: JsonObject = {
            "op": "hello",
            "parent": os.getpid(),
            "path": list[JsonValue](sys.path),
            "limits": limits,
        }
        with suppress(
            anyio.BrokenResourceError
        ):  # dead already: the first job finds out and says so
            await child.send(hello)
        return child

    @property
    def pid(self) -> int:
        """Return its process id, which is also its process group's."""
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended as far as we know."""
        return not self._exited.is_set()

    async def watch(self) -> None:
        """Wait for the end of the process, and let what it still said be read."""
        await self.process.wait()
        self._exited.set()
        # A process that the handler left behind may hold the socket open.
        with anyio.move_on_after(0.2, shield=True):
            await anyio.sleep_forever()
        with anyio.CancelScope(shield=True):
            await self.stream.aclose()

    async def run(self, attempt: Attempt, job: BoundJob, payload: str, asked: Asked) -> str | Told:
        """Run one job."""
        answer: str | Told | None = None
        self.uses += 1
        self.attempt, self.asked = attempt, asked
        self._output_ended = anyio.Event()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._pass_stop_on, attempt)
                answer = await self._converse(
                    {**_request(self.uses, attempt, job, payload), "spool": asked.spool}
                )
                group.cancel_scope.cancel()
            with anyio.move_on_after(_OUTPUT_WAIT_SECONDS):
                await self._output_ended.wait()
        except* ChildEndedError as ended:
            raise _first(ended) from None
        finally:
            self.attempt = None
        assert answer is not None
        return answer

    async def end(self, grace: float) -> None:
        """End the process and all it started; first with a word, then without."""
        family = find_descendants(self.pid) if self.is_alive else {}
        if self.is_alive and grace > 0:
            self._signal_group(signal.SIGTERM)
            with anyio.move_on_after(grace):
                await self._exited.wait()
        if self.is_alive or family:
            kill_descendants(self.pid, family)
        self._signal_group(signal.SIGKILL)
        await self._exited.wait()

    async def send(self, message: JsonObject) -> None:
        """Send one message."""
        async with self._sending:
            await self.stream.send(encode_frame(message))

    async def read_output(self) -> None:
        """Turn what the child prints into log lines of the job it runs."""
        assert self.process.stdout is not None
        rest = b""
        with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
            async for data in self.process.stdout:
                *lines, rest = (rest + data).split(b"\n")
                if len(rest) > MAX_LOG_LINE_BYTES:
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    self._print(line.decode(errors="replace").rstrip())
        self._print(rest.decode(errors="replace").rstrip())

    def _print(self, line: str) -> None:
        text, mark, number = line.rpartition(END_OF_OUTPUT)
        text = text if mark else line
        if text.strip() and self.attempt is not None and self.asked is not None:
            self.asked.note_log(self.attempt, text, "info")
        if mark and number == str(self.uses):
            self._output_ended.set()

    async def _pass_stop_on(self, attempt: Attempt) -> None:
        await attempt.stop_requested.wait()
        # Not to be cut in half by the answer that ends this task: what follows would be no message.
        with (
            anyio.CancelScope(shield=True),
            suppress(anyio.BrokenResourceError, anyio.ClosedResourceError),
        ):
            await self.send({"op": "stop"})

    async def _converse(self, request: JsonObject) -> str | Told:
        try:
            await self.send(request)
            while True:
                for message in self._reader.feed(await self.stream.receive()):
                    answer = await self._hear(message)
                    if answer is not None:
                        return answer
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream):
            with anyio.move_on_after(1, shield=True):
                await self._exited.wait()
            raise ChildEndedError(_obituary(self.process.returncode)) from None
        except (FrameError, KeyError, TypeError, ValueError) as error:
            raise ChildEndedError(
                f"the child process sent what is no message of ours: {type(error).__name__}"
            ) from error

    async def _hear(self, message: JsonObject) -> str | Told | None:
        """Act on one message; the last one of a job is its answer."""
        attempt, asked = self.attempt, self.asked
        assert attempt is not None
        assert asked is not None
        match message["op"]:
            case "progress":
                done, total = _number(message["done"]), _number(message["total"])
                if done is not None:
                    asked.note_progress(attempt, done, total, _text(message["message"]))
            case "log":
                asked.note_log(attempt, str(message["message"]), str(message["level"]))
            case "watching":
                attempt.is_watching = True
            case "saw_stop":
                attempt.has_seen_stop = attempt.stop_reason is not None
            case "decide":
                asked.note_decision(attempt, _decision(message))
            case "ask":
                await self.send(await _answer(asked, attempt, message))
            case "done":
                _keep_evidence(attempt, message)
                return str(message["result"])
            case "failed":
                _keep_evidence(attempt, message)
                return _told(message)
            case _:
                raise ValueError(message["op"])
        return None

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def _request(call: int, attempt: Attempt, job: BoundJob, payload: str) -> JsonObject:
    facts = attempt.facts
    return {
        "op": "run",
        "call": call,
        "source": job.ref.source,
        "name": job.ref.name,
        "payload": payload,
        "facts": {
            "run_id": str(facts.run_id),
            "tenant_id": facts.tenant_id,
            "project_id": facts.project_id,
            "trace_id": facts.trace_id,
            "attempt": facts.attempt,
            "max_attempts": facts.max_attempts,
            "epoch": facts.epoch,
            "dry_run": facts.dry_run,
            "deadline": facts.deadline.isoformat(),
        },
        "origin": attempt.claimed.claimed_at.isoformat(),
    }


async def _answer(asked: Asked, attempt: Attempt, message: JsonObject) -> JsonObject:
    """Answer a question of the handler, or say why not."""
    number = message["number"]
    try:
        match message["what"]:
            case "secret":
                value: JsonValue = await asked.fetch_secret(attempt, str(message["name"]))
            case "enqueue":
                value = str(await asked.enqueue(attempt, _child_request(message)))
            case "submit_event":
                stored = await asked.submit_event(attempt, _event_request(message))
                event_id = None if stored.event_id is None else str(stored.event_id)
                value = {"event_id": event_id, "outcome": stored.outcome}
            case "artifact":
                made = await asked.artifact(attempt, _artifact_request(message, asked.spool))
                value = {
                    "name": made.name,
                    "uri": made.uri,
                    "size": made.size,
                    "sha256": made.sha256,
                    "mime": made.mime,
                }
            case _:
                raise ValueError(message["what"])
    except JobForgeError as error:
        return {
            "op": "answer",
            "number": number,
            "error": {
                "class": type(error).__name__,
                "message": error.message,
                "code": error.code,
                "hint": error.hint,
                "retryable": error.retryable,
            },
        }
    return {"op": "answer", "number": number, "value": value}


def _child_request(message: JsonObject) -> ChildRequest:
    run_at, labels = _text(message["run_at"]), message["labels"]
    return ChildRequest(
        name=str(message["name"]),
        input=message["input"],
        key=_text(message["key"]),
        ordering_key=_text(message["ordering_key"]),
        priority=cast("int", message["priority"]),
        run_at=datetime.fromisoformat(run_at) if run_at is not None else None,
        labels=cast("dict[str, str] | None", labels),
    )


def _event_request(message: JsonObject) -> EventRequest:
    occurred_at = _text(message["occurred_at"])
    return EventRequest(
        event_type=str(message["event_type"]),
        payload=cast("JsonObject", message["payload"]),
        key=_text(message["key"]),
        source=_text(message["source"]),
        subject=_text(message["subject"]),
        occurred_at=datetime.fromisoformat(occurred_at) if occurred_at is not None else None,
        contains_pii=message["contains_pii"] is True,
        redaction_hints=cast("JsonObject | None", message["redaction_hints"]),
        attributes=cast("JsonObject | None", message["attributes"]),
    )


def _decision(message: JsonObject) -> Decision:
    try:
        return decision_of(str(message["name"]), message["choice"], _text(message["reason"]))
    except JobForgeError as error:
        raise ValueError(error.code) from None


def _artifact_request(message: JsonObject, spool: str) -> ArtifactRequest:
    data, path, keep = (
        _text(message["data"]),
        _text(message["path"]),
        _number(message["keep_seconds"]),
    )
    content = base64.b64decode(data, validate=True) if data is not None else Path(str(path))
    return ArtifactRequest(
        name=str(message["name"]),
        content=content,
        mime=_text(message["mime"]),
        keep=None if keep is None else timedelta(seconds=keep),
        # Only what lies where our own files do is deleted, whatever a child says.
        is_spooled=isinstance(content, Path)
        and bool(message["is_spooled"])
        and content.parent == Path(spool),
    )


def _told(message: JsonObject) -> Told:
    error = cast("JsonObject", message["error"])
    trace, delay = _text(message["traceback"]), message["delay_ms"]
    hint = _text(error["hint"])
    return Told(
        FailureKind(str(message["kind"])),
        RunError(
            code=capped(str(error["code"]), 100),
            message=capped(str(error["message"]), MAX_MESSAGE_BYTES),
            retryable=bool(error["retryable"]),
            type=_text(error["type"]),
            hint=capped(hint, MAX_MESSAGE_BYTES) if hint is not None else None,
        ),
        capped(trace, MAX_TRACEBACK_BYTES) if trace is not None else None,
        delay if isinstance(delay, int) else None,
    )


def _keep_evidence(attempt: Attempt, message: JsonObject) -> None:
    for entry in cast("list[list[JsonValue]]", message["evidence"]):
        attempt.evidence.entries.append((str(entry[0]), entry[1]))
    metrics = message["metrics"]
    if isinstance(metrics, dict):
        for name in ("cpuMs", "memoryMb"):
            if (value := _number(metrics.get(name))) is not None:
                attempt.evidence.metrics[name] = int(value)


def _number(value: JsonValue) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _text(value: JsonValue) -> str | None:
    return value if isinstance(value, str) else None


def _first(group: BaseExceptionGroup[ChildEndedError]) -> ChildEndedError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ChildEndedError)
    return error


def _obituary(returncode: int | None) -> str:
    if returncode is None:
        return "the child process closed its line to the worker while it ran the handler"
    if returncode >= 0:
        return f"the child process ended by itself with code {returncode} while it ran the handler"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = str(-returncode)
    if name == "SIGXCPU":
        return "the child process used more CPU than cpu_seconds of the job or JOBFORGE_CHILD_CPU_SECONDS allow, and was ended by signal SIGXCPU"
    return f"the child process was ended by signal {name} while it ran the handler"
