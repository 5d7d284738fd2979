"""What is behind a :class:`JobContext` in the worker itself: on the event loop, and on a thread of it.

A child process has its own link (``child.py``); what it asks for over the pipe is answered by the same functions.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, LiteralString, TypeVar, cast

import anyio.to_thread

from jobforge_mcp.definitions.catalog import BoundDefinitions
from jobforge_mcp.definitions.enqueuing import job_of
from jobforge_mcp.definitions.json_limits import check_key, load_limited
from jobforge_mcp.definitions.model import BoundJob
from jobforge_mcp.definitions.pinning import pinned_jobs
from jobforge_mcp.definitions.registry import Registry, handler_values
from jobforge_mcp.errors import CallerError, ConflictError, NotFoundError, PermanentError
from jobforge_mcp.router.leases import JobTransaction, WorkerRouter
from jobforge_mcp.types import EnqueueOutcome, JobId, JsonObject, JsonValue, NewEvent, NewJob
from jobforge_mcp.worker.artifacts import Keeper
from jobforge_mcp.worker.attempt import Attempt
from jobforge_mcp.worker.child_process import Starter
from jobforge_mcp.worker.context import Transaction
from jobforge_mcp.worker.evidence import Decision
from jobforge_mcp.worker.mailbox import Mailbox
from jobforge_mcp.worker.reporting import Reporter
from jobforge_mcp.worker.requests import (
    ArtifactRef,
    ArtifactRequest,
    ChildRequest,
    EventRef,
    EventRequest,
    UsageError,
)
from jobforge_mcp.worker.secrets import SecretStore, references_in, resolved

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Services:
    """What attempts need of their worker."""

    router: WorkerRouter
    registry: Registry
    definitions: BoundDefinitions
    reporter: Reporter
    mailbox: Mailbox
    start: Starter
    keeper: Keeper
    secrets: SecretStore = field(default_factory=SecretStore)
    has_events: bool = True
    """Whether this installation has events switched on."""

    def note_progress(
        self, attempt: Attempt, done: float, total: float | None, message: str | None
    ) -> None:
        """Remember progress, to be reported soon."""
        if attempt.note_progress(done, total, message):
            self.reporter.mark(attempt)

    def note_log(self, attempt: Attempt, message: str, level: str) -> None:
        """Remember a log line, to be reported soon."""
        if attempt.note_log(message, level):
            self.reporter.mark(attempt)

    def note_decision(self, attempt: Attempt, decision: Decision) -> None:
        """Remember a decision, for the manifest."""
        attempt.evidence.decide(decision)

    @property
    def spool(self) -> str:
        """Folder for files of ours on their way into the store."""
        return str(self.keeper.store.incoming)

    async def artifact(self, attempt: Attempt, request: ArtifactRequest) -> ArtifactRef:
        """Store an artifact of an attempt."""
        return await self.keeper.keep(attempt, request)

    def secret(self, attempt: Attempt, name: str) -> str:
        """Return a secret, and strike it out of what the attempt says from now on."""
        value = self.secrets.get(name)
        attempt.keep_secret(name, value)
        return value

    async def fetch_secret(self, attempt: Attempt, name: str) -> str:
        """Do the same without keeping the event loop, where a command has to be asked."""
        if self.secrets.is_at_hand(name):
            return self.secret(attempt, name)
        value = await anyio.to_thread.run_sync(self.secrets.get, name)
        attempt.keep_secret(name, value)
        return value

    async def resolve_references(
        self, attempt: Attempt, job: BoundJob
    ) -> Callable[[JsonObject], JsonObject] | None:
        """Fetch the secrets that an input names as ``secret://NAME``; what comes back puts them into it.

        Raises:
            PermanentError: there is no such secret, or the input may not name it.
        """
        payload = attempt.claimed.payload
        asked = references_in([payload])
        given = job.definition.input
        fixed = references_in([json.dumps(given)]) if given else set[str]()
        whole: JsonObject | None = None
        if job.lane_type is not None and given:
            # Whoever registered the definition is a tenant like the caller: what it names is asked for, not granted.
            whole = handler_values(job, cast("JsonObject", load_limited(payload)))
            asked, fixed = asked | fixed | references_in([json.dumps(whole)]), set[str]()
        if not asked and not fixed:
            return None
        if whole is None:
            whole = {**given, **cast("JsonObject", json.loads(payload))}
        for name in sorted(asked):
            self.secrets.require_allowed(name, attempt.fence.tenant_id, whole)
        names = sorted(asked | fixed)
        values = (
            await anyio.to_thread.run_sync(self._get_all, names)
            if self.secrets.is_slow
            else self._get_all(names)
        )
        for name, value in values.items():
            attempt.keep_secret(name, value)
        return lambda given: cast("JsonObject", resolved(given, values))

    def _get_all(self, names: Sequence[str]) -> dict[str, str]:
        return {name: self.secrets.get(name) for name in names}

    async def prepare_steps(
        self, attempt: Attempt, steps: Sequence[tuple[str, JsonValue]]
    ) -> list[NewJob | CallerError]:
        """Check the inputs of steps, each for the job of a name; what a job does not take is told in its place.

        A registered job is run in the version that was pinned when the composition was registered.
        """
        pinned = pinned_jobs(attempt.claimed.definition)
        asked = sorted({name for name, _ in steps if name in pinned})
        rows = await self.router.steps.list_step_definitions(attempt.fence, asked) if asked else []
        found = {row.job_type: row for row in rows}
        prepared: list[NewJob | CallerError] = []
        for name, given in steps:
            try:
                if name not in pinned:
                    bound = self.registry.get(name)
                elif (row := found.get(name)) is not None:
                    tenant_id = attempt.fence.tenant_id
                    bound = self.definitions.bind(
                        tenant_id, name, row.job_version, row.lane_type, row.definition
                    )
                else:
                    raise _gone(name, pinned[name])
                checked = self.registry.prepare_bound(bound, given)
            except CallerError as error:
                prepared.append(error)
                continue
            prepared.append(job_of(checked, bound.lane_type))
        return prepared

    async def enqueue(self, attempt: Attempt, request: ChildRequest) -> JobId:
        """Enqueue a child of an attempt."""
        prepared = self.registry.prepare(request.name, request.input)
        attempt.children += 1
        key = request.key or f"{attempt.fence.job_id}:{attempt.children}"
        # A secret that the handler passes on is stored as what it is called.
        prepared = prepared._replace(
            payload=attempt.redact_json(prepared.payload, mark="secret://{}"),
            received=attempt.redact_json(prepared.received, mark="secret://{}"),
        )
        job = job_of(prepared)._replace(
            idempotency_key=key,
            ordering_key=request.ordering_key,
            priority=request.priority,
            run_at=request.run_at,
            labels=request.labels,
        )
        said = json.dumps([key, request.ordering_key, dict(request.labels or {})])
        if attempt.redact_json(said) != said:
            raise PermanentError("a key or label of the child holds a secret", code="SECRET_IN_KEY")
        enqueued = await self.router.enqueue_child(attempt.fence, job)
        if enqueued.outcome is EnqueueOutcome.CONFLICT:
            raise ConflictError(
                f"the key {key!r} is known with another input for {request.name}",
                code="IDEMPOTENCY_CONFLICT",
                hint="give each child a key of its own that follows from its input",
            )
        return enqueued.job_id

    async def submit_event(self, attempt: Attempt, request: EventRequest) -> EventRef:
        """Submit an event of an attempt."""
        if not self.has_events:
            raise PermanentError(
                "events are switched off on this installation",
                code="FEATURE_DISABLED",
                hint="whoever operates it can set JOBFORGE_EVENTS_ENABLED=true",
            )
        event = _new_event(attempt, request)
        check_key(event.idempotency_key or "", "key")
        load_limited(event.payload)
        event_id, outcome = await self.router.submit_event(attempt.fence, event)
        if outcome == EnqueueOutcome.CONFLICT:
            raise ConflictError(
                f"the key {event.idempotency_key!r} is known with another event",
                code="IDEMPOTENCY_CONFLICT",
                hint="give each event a key of its own that follows from what happened",
            )
        return EventRef(event_id, outcome)


class LocalLink:
    """The link of a handler that runs in the worker's own process."""

    def __init__(self, services: Services, attempt: Attempt, *, is_async: bool) -> None:
        self.is_async = is_async
        self._services = services
        self._attempt = attempt

    def progress(self, done: float, total: float | None, message: str | None) -> None:
        """See :meth:`JobContext.progress`; from any thread."""
        self._services.mailbox.run(
            lambda: self._services.note_progress(self._attempt, done, total, message)
        )

    def log(self, message: str, level: str) -> None:
        """See :meth:`JobContext.log`; from any thread."""
        self._services.mailbox.run(lambda: self._services.note_log(self._attempt, message, level))

    def is_cancelled(self) -> bool:
        """See :attr:`JobContext.cancelled`; from any thread."""
        return self._attempt.look()

    def secret(self, name: str) -> str:
        """See :meth:`JobContext.secret`."""
        if self.is_async and not self._services.secrets.is_at_hand(name):
            raise PermanentError(
                "the secret comes from a command, and waiting for that would stop every job of this process",
                code="SECRET_WOULD_BLOCK",
                hint="in an async handler write: await job.fetch_secret(name)",
            )
        return self._services.secret(self._attempt, name)

    async def fetch_secret(self, name: str) -> str:
        """See :meth:`JobContext.fetch_secret`."""
        return await self._services.fetch_secret(self._attempt, name)

    def decide(self, decision: Decision) -> None:
        """See :meth:`JobContext.decide`; from any thread."""
        self._attempt.evidence.decide(decision)

    async def artifact(self, request: ArtifactRequest) -> ArtifactRef:
        """See :meth:`JobContext.artifact`."""
        return await self._services.artifact(self._attempt, request)

    def artifact_sync(self, request: ArtifactRequest) -> ArtifactRef:
        """See :meth:`JobContext.artifact_sync`; called on the handler's thread, never on the loop's."""
        return self._call(lambda: self._services.artifact(self._attempt, request))

    async def enqueue(self, request: ChildRequest) -> JobId:
        """See :meth:`JobContext.enqueue`."""
        return await self._services.enqueue(self._attempt, request)

    def enqueue_sync(self, request: ChildRequest) -> JobId:
        """See :meth:`JobContext.enqueue_sync`; called on the handler's thread, never on the loop's."""
        return self._call(lambda: self._services.enqueue(self._attempt, request))

    async def submit_event(self, request: EventRequest) -> EventRef:
        """See :meth:`JobContext.submit_event`."""
        return await self._services.submit_event(self._attempt, request)

    def submit_event_sync(self, request: EventRequest) -> EventRef:
        """See :meth:`JobContext.submit_event_sync`; called on the handler's thread, never on the loop's."""
        return self._call(lambda: self._services.submit_event(self._attempt, request))

    def _call(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Have the loop do something, and wait for its answer on the handler's thread."""
        future: Future[_T] = Future()

        async def answer() -> None:
            try:
                future.set_result(await ask())
            except Exception as error:  # noqa: BLE001 - it belongs to the handler that waits on its thread
                future.set_exception(error)

        self._services.mailbox.post(lambda: self._services.start(answer))
        return future.result()

    def transaction(self, *, read_only: bool) -> AbstractAsyncContextManager[Transaction]:
        """See :meth:`JobContext.transaction`."""
        if not self.is_async:
            raise no_transaction()
        return _transaction(self._services, self._attempt, read_only=read_only)


def no_transaction() -> UsageError:
    """Describe why a handler cannot have a transaction."""
    return UsageError(
        "job.transaction() needs an async def handler on the worker's event loop",
        hint="write async def without isolation, or open a connection of the handler's own",
    )


def _gone(name: str, version: str) -> NotFoundError:
    return NotFoundError(
        f"version {version} of the registered job {name} may not be run any more",
        code="JOB_REMOVED",
        hint="register the job again, or register the composition anew",
    )


def _new_event(attempt: Attempt, request: EventRequest) -> NewEvent:
    """Number an event of an attempt, and write it without the secrets that the attempt was given.

    Raises:
        PermanentError: ``EVENT_INVALID``: it is no JSON; ``SECRET_IN_KEY``: its key holds a secret.
    """
    attempt.events += 1
    key = request.key or f"run:{attempt.fence.job_id}:{attempt.events}"
    if attempt.redact_json(json.dumps(key)) != json.dumps(key):
        raise PermanentError("the key of the event holds a secret", code="SECRET_IN_KEY")
    document: JsonObject = {
        "payload": request.payload,
        "source": request.source,
        "subject": request.subject,
        "attributes": request.attributes,
    }
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise PermanentError(
            f"an event of type {request.event_type!r} is no JSON: {error}", code="EVENT_INVALID"
        ) from None
    clean = cast("JsonObject", json.loads(attempt.redact_json(text)))
    return NewEvent(
        request.event_type,
        json.dumps(clean["payload"], ensure_ascii=False),
        source=cast("str | None", clean["source"]),
        subject=cast("str | None", clean["subject"]),
        occurred_at=request.occurred_at,
        idempotency_key=key,
        contains_pii=request.contains_pii,
        redaction_hints=request.redaction_hints,
        attributes=cast("JsonObject | None", clean["attributes"]),
    )


@asynccontextmanager
async def _transaction(
    services: Services, attempt: Attempt, *, read_only: bool
) -> AsyncGenerator[Transaction]:
    if attempt.committed is not None:
        raise UsageError("the run was completed by an earlier job.transaction() of this attempt")
    async with services.router.transaction(attempt.fence) as inner:
        if read_only:
            await inner.execute("set transaction isolation level repeatable read, read only")
            yield _HandlerTransaction(inner, is_last_act=False)
            return
        await services.reporter.flush([attempt])
        transaction = _HandlerTransaction(inner, is_last_act=True)
        yield transaction
        job = attempt.job or services.definitions.of(attempt.claimed)
        result = attempt.redact_json(services.registry.check_output(job, transaction.output))
        kept = await services.keeper.keep_result(attempt, result)
        settled = await inner.complete(kept, manifest=attempt.manifest())
    # Only now, after the commit.
    attempt.committed = settled


class _HandlerTransaction:
    """What the handler sees of the transaction."""

    def __init__(self, inner: JobTransaction, *, is_last_act: bool) -> None:
        self.output: object = None
        self._inner = inner
        self._is_last_act = is_last_act

    async def execute(self, query: LiteralString, parameters: Sequence[object] = ()) -> None:
        await self._inner.execute(query, parameters)

    async def fetch(
        self, query: LiteralString, parameters: Sequence[object] = ()
    ) -> list[dict[str, Any]]:
        return await self._inner.fetch(query, parameters)

    def complete(self, output: object) -> None:
        if not self._is_last_act:
            raise UsageError("a read-only transaction completes nothing")
        self.output = output
