"""What a handler is given beside its input: who it runs for, and how it speaks to its run.

One class for every handler, wherever it runs. What belongs to the place (event loop, thread, child process) is behind
:class:`ContextLink`; this module imports nothing heavy, because a child process loads it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, LiteralString, NamedTuple, Protocol, TypeAlias
from uuid import UUID

from jobforge_mcp.types import JobId, JsonObject, JsonValue, ProjectId, TenantId
from jobforge_mcp.worker.evidence import Decision, Evidence, decision_of
from jobforge_mcp.worker.requests import (
    ArtifactRef,
    ArtifactRequest,
    ChildRequest,
    EventRef,
    EventRequest,
    UsageError,
    artifact_request,
)

LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
"""How much a log line matters."""


class RunFacts(NamedTuple):
    """What is fixed for one attempt."""

    run_id: JobId
    tenant_id: TenantId
    project_id: ProjectId | None
    trace_id: str | None
    attempt: int
    max_attempts: int
    epoch: int
    dry_run: bool
    deadline: datetime


class Transaction(Protocol):
    """One database transaction that also ends the run.

    The statements of the handler and the acceptance of its result are committed together or not at all.
    """

    async def execute(self, query: LiteralString, parameters: Sequence[object] = ()) -> None:
        """Run one statement for its effect; the worker's role needs the right to it."""
        ...

    async def fetch(
        self, query: LiteralString, parameters: Sequence[object] = ()
    ) -> list[dict[str, Any]]:
        """Run one statement and return its rows by the names of their columns."""
        ...

    def complete(self, output: object) -> None:
        """Say what the run's result is, before the block is left; without it the result is null."""
        ...


class ContextLink(Protocol):
    """How a context reaches its worker from the place where the handler runs."""

    is_async: bool
    """Whether the handler is ``async def``."""

    def progress(self, done: float, total: float | None, message: str | None) -> None:
        """Note how far the work is."""
        ...

    def log(self, message: str, level: str) -> None:
        """Note a log line."""
        ...

    def is_cancelled(self) -> bool:
        """Tell whether the attempt should end."""
        ...

    def secret(self, name: str) -> str:
        """Fetch a secret."""
        ...

    async def fetch_secret(self, name: str) -> str:
        """Fetch a secret without keeping the event loop."""
        ...

    def decide(self, decision: Decision) -> None:
        """Note a decision."""
        ...

    async def artifact(self, request: ArtifactRequest) -> ArtifactRef:
        """Leave an artifact behind."""
        ...

    def artifact_sync(self, request: ArtifactRequest) -> ArtifactRef:
        """Leave an artifact behind, blocking the handler's thread."""
        ...

    async def enqueue(self, request: ChildRequest) -> JobId:
        """Enqueue a child run."""
        ...

    def enqueue_sync(self, request: ChildRequest) -> JobId:
        """Enqueue a child run, blocking the handler's thread."""
        ...

    async def submit_event(self, request: EventRequest) -> EventRef:
        """Submit an event."""
        ...

    def submit_event_sync(self, request: EventRequest) -> EventRef:
        """Submit an event, blocking the handler's thread."""
        ...

    def transaction(self, *, read_only: bool) -> AbstractAsyncContextManager[Transaction]:
        """Open the transaction that ends the run."""
        ...


class AttemptState(Protocol):
    """What a context tells of its attempt; made when a handler first asks, which most do not."""

    @property
    def facts(self) -> RunFacts:
        """What is fixed."""
        ...

    @property
    def evidence(self) -> Evidence:
        """What it took from outside its input, and what it decided."""
        ...


class JobContext:
    """The handler's side of one attempt.

    ``progress`` and ``log`` are plain calls everywhere: they note what to say, and the worker says it a few times a
    second, so they may be called as often as is convenient.
    """

    __slots__ = ("_input", "_link", "_of")

    def __init__(self, of: AttemptState, validated: object, *, link: ContextLink) -> None:
        self._of = of
        self._input = validated
        self._link = link

    @property
    def run_id(self) -> JobId:
        """Id of this run; with ``epoch`` it is what a receiver needs to tell a dead attempt from the living one."""
        return self._of.facts.run_id

    @property
    def tenant_id(self) -> TenantId:
        """Tenant that owns the run."""
        return self._of.facts.tenant_id

    @property
    def project_id(self) -> ProjectId | None:
        """Project of the tenant, when the run belongs to one."""
        return self._of.facts.project_id

    @property
    def trace_id(self) -> str | None:
        """Trace that the run is part of, the same over all its attempts and children."""
        return self._of.facts.trace_id

    @property
    def attempt(self) -> int:
        """Number of this try, from 1."""
        return self._of.facts.attempt

    @property
    def max_attempts(self) -> int:
        """Tries after which the run is dead."""
        return self._of.facts.max_attempts

    @property
    def epoch(self) -> int:
        """Number of this claim; grows with every claim, also with those that spend no attempt."""
        return self._of.facts.epoch

    @property
    def dry_run(self) -> bool:
        """Whether the handler should do everything but its effects."""
        return self._of.facts.dry_run

    @property
    def deadline(self) -> datetime:
        """When the timeout ends the work, by the database's clock."""
        return self._of.facts.deadline

    @property
    def input(self) -> object:
        """The validated input, the same object as the handler's first argument."""
        return self._input

    @property
    def cancelled(self) -> bool:
        """Whether the attempt should end: a cancellation was requested, or the worker must stop.

        A handler that looks here gets the grace period to end by itself before it is stopped.
        """
        return self._link.is_cancelled()

    def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """Say how far the work is; only the latest word is sent."""
        self._link.progress(done, total, message)

    def log(self, message: str, level: LogLevel = "info") -> None:
        """Add a line to the run's log, which an agent can read; 1,000 lines of 4 KiB are kept per attempt."""
        self._link.log(message, level)

    def secret(self, name: str) -> str:
        """Return a secret of the worker's environment, ``JOBFORGE_SECRET_<NAME>``.

        From then on its value is struck from this attempt's logs, progress and errors.

        Raises:
            PermanentError: The worker has no such secret; or, in an async handler, it comes from a command: then
                `fetch_secret` waits for it.
        """
        return self._link.secret(name)

    async def fetch_secret(self, name: str) -> str:
        """Do the same in an async handler, without keeping its event loop waiting for a command.

        Raises:
            PermanentError: The worker has no such secret.
        """
        return await self._link.fetch_secret(name)

    def decide(self, name: str, choice: JsonValue, reason: str | None = None) -> None:
        """Say what was decided, and why: the manifest of this attempt tells it. A plain call everywhere, like ``log``.

        Raises:
            PermanentError: ``DECISION_INVALID``: the choice is no JSON value, or above 2 KiB.
        """
        self._link.decide(decision_of(name, choice, reason))

    def artifact(
        self,
        name: str,
        content: bytes | Path,
        mime: str | None = None,
        *,
        keep: timedelta | None = None,
    ) -> Awaitable[ArtifactRef]:
        """Leave bytes, or a file by its path, behind with the run; for ``async def`` handlers.

        It is stored when the call returns, and shown as long as this attempt does not lose its lease. Whoever may read
        the run may read it. A second one of the same name replaces the first. Text is free of the secrets this attempt
        was given; what is no text is stored as it is.

        Args:
            name: letters, digits, dots, hyphens and underscores, at most 100.
            content: the bytes, or the path of a file, which is read now.
            mime: what it is; guessed from the name if absent.
            keep: how long; as long as the run, or as the operator set, if absent.

        Raises:
            PermanentError: ``ARTIFACT_NAME``, ``ARTIFACT_TYPE``, ``ARTIFACT_TOO_LARGE``, ``TOO_MANY_ARTIFACTS`` or
                ``ARTIFACT_UNREADABLE``.
            LeaseLostError: This attempt is no longer the living one.
        """
        if not self._link.is_async:
            raise UsageError(
                "job.artifact() is awaited; this handler is a def", hint="call job.artifact_sync()"
            )
        return self._link.artifact(artifact_request(name, content, mime, keep))

    def artifact_sync(
        self,
        name: str,
        content: bytes | Path,
        mime: str | None = None,
        *,
        keep: timedelta | None = None,
    ) -> ArtifactRef:
        """Do what :meth:`artifact` does, for ``def`` handlers."""
        if self._link.is_async:
            raise UsageError(
                "job.artifact_sync() would block the event loop of this async handler",
                hint="await job.artifact()",
            )
        return self._link.artifact_sync(artifact_request(name, content, mime, keep))

    def enqueue(
        self,
        name: str,
        input: JsonValue = None,
        *,
        key: str | None = None,
        ordering_key: str | None = None,
        priority: int = 2,
        run_at: datetime | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Awaitable[JobId]:
        """Enqueue a child run and return its id; for ``async def`` handlers.

        The default key is ``<run_id>:<n>``, so the n-th call of a second attempt finds the child of the first.
        ``None`` as input is an empty object.

        Raises:
            NotFoundError: No such job is defined.
            InvalidInputError: The input does not fit the child's schema.
            LeaseLostError: This attempt is no longer the living one.
        """
        if not self._link.is_async:
            raise UsageError(
                "job.enqueue() is awaited; this handler is a def", hint="call job.enqueue_sync()"
            )
        return self._link.enqueue(
            ChildRequest(name, input, key, ordering_key, priority, run_at, labels)
        )

    def enqueue_sync(
        self,
        name: str,
        input: JsonValue = None,
        *,
        key: str | None = None,
        ordering_key: str | None = None,
        priority: int = 2,
        run_at: datetime | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> JobId:
        """Do what :meth:`enqueue` does, for ``def`` handlers: the call returns when the child is committed."""
        if self._link.is_async:
            raise UsageError(
                "job.enqueue_sync() would block the event loop of this async handler",
                hint="await job.enqueue()",
            )
        return self._link.enqueue_sync(
            ChildRequest(name, input, key, ordering_key, priority, run_at, labels)
        )

    def submit_event(
        self,
        event_type: str,
        payload: Mapping[str, JsonValue] | None = None,
        *,
        key: str | None = None,
        source: str | None = None,
        subject: str | None = None,
        occurred_at: datetime | None = None,
        contains_pii: bool = False,
        redaction_hints: JsonObject | None = None,
        attributes: JsonObject | None = None,
    ) -> Awaitable[EventRef]:
        """Submit an event, and return when it is committed; for ``async def`` handlers.

        It belongs to the project and the trace of this run, so that the loop guard counts it, and its triggers decide a
        moment later. The default key is ``run:<run_id>:<n>``, so the n-th call of a second attempt finds the event of the
        first. In a dry run nothing is stored.

        Raises:
            InvalidInputError: A member of the event does not fit.
            PolicyDeniedError: The token that enqueued this run does not allow events of this type.
            ConflictError: The key was used for another event.
            PermanentError: ``FEATURE_DISABLED``: events are switched off.
            LeaseLostError: This attempt is no longer the living one.
        """
        if not self._link.is_async:
            raise UsageError(
                "job.submit_event() is awaited; this handler is a def",
                hint="call job.submit_event_sync()",
            )
        return self._link.submit_event(
            EventRequest(
                event_type,
                dict(payload or {}),
                key,
                source,
                subject,
                occurred_at,
                contains_pii,
                redaction_hints,
                attributes,
            )
        )

    def submit_event_sync(
        self,
        event_type: str,
        payload: Mapping[str, JsonValue] | None = None,
        *,
        key: str | None = None,
        source: str | None = None,
        subject: str | None = None,
        occurred_at: datetime | None = None,
        contains_pii: bool = False,
        redaction_hints: JsonObject | None = None,
        attributes: JsonObject | None = None,
    ) -> EventRef:
        """Do what :meth:`submit_event` does, for ``def`` handlers."""
        if self._link.is_async:
            raise UsageError(
                "job.submit_event_sync() would block the event loop of this async handler",
                hint="await job.submit_event()",
            )
        return self._link.submit_event_sync(
            EventRequest(
                event_type,
                dict(payload or {}),
                key,
                source,
                subject,
                occurred_at,
                contains_pii,
                redaction_hints,
                attributes,
            )
        )

    def transaction(self, *, read_only: bool = False) -> AbstractAsyncContextManager[Transaction]:
        """Open a short transaction that is the job's last act, and its completion with it.

        Whatever is written inside is committed together with the accepted result, exactly once, or not at all: when
        the block raises or this attempt is no longer the living one, nothing of it remains. The handler's return value
        is ignored once it was used. ``read_only=True`` reads one consistent state and completes nothing.

        Raises:
            UsageError: The handler does not run on the worker's event loop.
            LeaseLostError: This attempt is no longer the living one.
        """
        return self._link.transaction(read_only=read_only)

    def now(self) -> datetime:
        """Return the time by the database's clock, recorded."""
        return self._of.evidence.now()

    def random(self) -> float:
        """Return a number of [0, 1), recorded and seeded by run and epoch; no material for secrets."""
        return self._of.evidence.random()

    def uuid(self) -> UUID:
        """Return a UUID, recorded and seeded by run and epoch; no material for secrets."""
        return self._of.evidence.uuid()
