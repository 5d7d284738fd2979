"""The Python client: the verbs of the tools, for applications, the command line and tests.

It speaks to the database through the router, as a server would; no server needs to run for it, but a worker must, or
nothing is executed. It acts as one caller, made from a policy token, and is held to that caller's scopes and projects.

`SyncClient` is the same for code without an event loop.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias, cast
from uuid import UUID

import anyio.to_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal

from jobforge_mcp.db.installation import open_installation
from jobforge_mcp.db.notify import Listener
from jobforge_mcp.db.pool import Database
from jobforge_mcp.definitions.json_limits import check_key
from jobforge_mcp.definitions.loader import load_jobs
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.errors import ConflictError, InvalidInputError
from jobforge_mcp.policy.gate import Gate, require_scope
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.progress import OnChange, RunWatcher
from jobforge_mcp.resources import job_definitions_folder
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.router.transactional import (
    AsyncConnection,
    SyncConnection,
    enqueue_job_in,
    enqueue_job_in_sync,
)
from jobforge_mcp.settings import Settings, load_settings
from jobforge_mcp.types import (
    Attempt,
    Caller,
    CallOrigin,
    Cause,
    Effects,
    Enqueued,
    EnqueueOutcome,
    JobId,
    JsonValue,
    LogLine,
    NewJob,
    Run,
    RunFilter,
    RunStatus,
)

RunRef: TypeAlias = JobId | UUID | str
"""A run's id, as the database or as an agent writes it."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a job is to be enqueued, beside its name and input."""

    idempotency_key: str | None = None
    """Enqueue once, however often this call is repeated. Needed by jobs with external effects."""
    ordering_key: str | None = None
    """Jobs of one key run one after the other, in the order they were enqueued."""
    priority: int = 2
    """0 is the most urgent, 3 the least."""
    run_at: datetime | None = None
    """Not before this time."""
    project_id: str | None = None
    labels: Mapping[str, str] | None = None
    trace_id: str | None = None
    is_dry_run: bool = False
    """Run the handler with ``dry_run`` set, which is its own business to honour."""


_DEFAULTS = Options()


class Client:
    """Enqueues jobs and follows runs as one caller."""

    def __init__(
        self,
        router: Router,
        registry: Registry,
        caller: Caller,
        *,
        watcher: RunWatcher | None = None,
        tool: str = "client",
    ) -> None:
        """Act through these parts; ``watcher`` is needed by ``wait`` and ``result``, ``tool`` names us in the audit log."""
        self.caller = caller
        self.registry = registry
        self._router = router
        self._watcher = watcher
        self._tool = tool

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        settings: Settings | None = None,
        *,
        token: str | None = None,
        registry: Registry | None = None,
        tool: str = "client",
        is_listening: bool = True,
        on_progress: Callable[[str], None] | None = None,
    ) -> AsyncGenerator[Client]:
        """Connect to the installation that the settings describe, as the holder of a token.

        Args:
            settings: where; read from the environment if absent.
            token: as whom; the settings' token if absent, and the local tenant on embedded Postgres without one.
            registry: the jobs that may be enqueued; loaded as a server loads them if absent.
            tool: what the audit log calls this client.
            is_listening: hear of changes at once rather than by looking; costs one connection.
            on_progress: gets a sentence when the embedded server takes a while to start.

        Raises:
            PolicyDeniedError: the token is absent or not good.
            OperatorError: the database cannot be reached or is not ready.
        """
        settings = settings or load_settings()
        if token is None and settings.token is not None:
            token = settings.token.get_secret_value()
        caller = Gate.from_settings(settings).caller_of(token)
        async with AsyncExitStack() as stack:
            opening = open_installation(settings, on_progress=on_progress)
            installation = await anyio.to_thread.run_sync(opening.__enter__)
            stack.callback(opening.__exit__, None, None, None)
            database = Database(
                installation.api_url,
                role="jobforge_api",
                max_size=settings.database_pool_size,
                name=f"jobforge {tool}",
            )
            router = Router(await stack.enter_async_context(database))
            listener = None
            if is_listening:
                listener = await stack.enter_async_context(
                    Listener(installation.api_url, "jobforge_api")
                )
            watcher = await stack.enter_async_context(RunWatcher(router, listener))
            registry = registry or load_registry(settings)
            yield cls(router, registry, caller, watcher=watcher, tool=tool)

    async def enqueue(
        self,
        name: str,
        input: JsonValue = None,
        options: Options = _DEFAULTS,
        *,
        connection: AsyncConnection | None = None,
    ) -> Enqueued:
        """Commit one job; a worker runs it.

        With ``connection``, an open psycopg connection of the application, the job becomes part of the transaction that
        is open on it, and exists when and only when that is committed.

        Raises:
            NotFoundError: there is no job of this name.
            InvalidInputError: the input does not fit its definition.
            ConflictError: the idempotency key was used with another input.
            PolicyDeniedError: the caller may not.
        """
        job = self.prepare(name, input, options)
        origin = self.origin(job)
        if connection is not None:
            enqueued = await enqueue_job_in(connection, self.caller, job, origin=origin)
        else:
            enqueued = await self._router.enqueue_job(self.caller, job, origin=origin)
        return refuse_conflict(enqueued)

    async def enqueue_many(self, jobs: Iterable[tuple[str, JsonValue, Options]]) -> list[Enqueued]:
        """Commit many jobs at once, all or none; a conflict of one shows in its ``outcome`` and does not stop the others."""
        prepared = [self.prepare(name, input, options) for name, input, options in jobs]
        return await self._router.enqueue_jobs(self.caller, prepared, origin=self.origin())

    async def plan(
        self, name: str, input: JsonValue = None, options: Options = _DEFAULTS
    ) -> Enqueued:
        """Say what `enqueue` would do, and do nothing."""
        job = self.prepare(name, input, options)
        return await self._router.enqueue_job(
            self.caller, job, origin=self.origin(job), is_plan=True
        )

    async def get(self, run_id: RunRef) -> Run:
        """Read a run with its result."""
        require_scope(self.caller, Scope.JOBS_READ)
        return await self._router.get_run(self.caller, to_job_id(run_id))

    async def wait(
        self,
        run_id: RunRef,
        *,
        timeout_seconds: float | None = None,
        on_change: OnChange | None = None,
    ) -> Run:
        """Return the run once it is final, or as it stands when the time is up. Leaving a wait cancels nothing."""
        require_scope(self.caller, Scope.JOBS_READ)
        if self._watcher is None:
            raise RuntimeError("a client without a watcher cannot wait")
        return await self._watcher.wait_for_change(
            self.caller,
            to_job_id(run_id),
            since_version=None,
            timeout_seconds=math.inf if timeout_seconds is None else timeout_seconds,
            on_change=on_change,
        )

    async def result(self, run_id: RunRef, *, timeout_seconds: float | None = None) -> JsonValue:
        """Wait for a run and return what its handler returned.

        Raises:
            ConflictError: the run is not over in time (``RUN_NOT_FINISHED``), or ended without a result: then the code
                is the one its error has.
        """
        return result_of(await self.wait(run_id, timeout_seconds=timeout_seconds))

    async def cancel(self, run_id: RunRef, *, reason: str | None = None) -> Run:
        """Ask for a run's end; a running one ends soon after."""
        require_scope(self.caller, Scope.JOBS_CANCEL)
        return await self._router.cancel_job(
            self.caller, to_job_id(run_id), reason=reason, origin=self.origin()
        )

    async def retry(
        self,
        run_id: RunRef,
        *,
        if_version: int | None = None,
        run_at: datetime | None = None,
        reset_attempts: bool = False,
        force: bool = False,
    ) -> Run:
        """Queue a final run again under the same id; ``force`` is needed for one that succeeded."""
        require_scope(self.caller, Scope.JOBS_RETRY)
        return await self._router.retry_job(
            self.caller,
            to_job_id(run_id),
            if_version=if_version,
            run_at=run_at,
            reset_attempts=reset_attempts,
            force=force,
            origin=self.origin(),
        )

    async def list_runs(self, wanted: RunFilter | None = None) -> list[Run]:
        """Return runs, newest first, without results."""
        require_scope(self.caller, Scope.JOBS_READ)
        return await self._router.list_runs(self.caller, wanted or RunFilter())

    async def payload(self, run_id: RunRef) -> JsonValue:
        """Return the input a run was enqueued with, defaults filled in."""
        require_scope(self.caller, Scope.JOBS_READ)
        text = await self._router.get_payload(self.caller, to_job_id(run_id))
        return cast("JsonValue", json.loads(text))

    async def attempts(self, run_id: RunRef) -> Sequence[Attempt]:
        """Return the attempts of a run that did not succeed."""
        require_scope(self.caller, Scope.JOBS_READ)
        return await self._router.list_attempts(self.caller, to_job_id(run_id))

    async def logs(self, run_id: RunRef, *, after: int = 0, limit: int = 200) -> Sequence[LogLine]:
        """Return lines that a run's handler logged, from after a ``line_no`` on."""
        require_scope(self.caller, Scope.JOBS_READ)
        return await self._router.list_logs(
            self.caller, to_job_id(run_id), after=after, limit=limit
        )

    async def explain(self, run_id: RunRef) -> Sequence[Cause]:
        """Say why a run is not running."""
        require_scope(self.caller, Scope.JOBS_READ)
        return await self._router.explain_run(self.caller, to_job_id(run_id))

    def origin(self, job: NewJob | None = None) -> CallOrigin:
        """Return what the audit log is told of a call."""
        return CallOrigin(tool=self._tool, trace_id=job.trace_id if job is not None else None)

    def prepare(self, name: str, input: JsonValue, options: Options = _DEFAULTS) -> NewJob:
        """Check that the caller may enqueue this job with this input, and return it ready for the router."""
        require_scope(self.caller, Scope.JOBS_EXECUTE)
        bound = self.registry.get(name)
        for scope in sorted(bound.definition.required_scopes("execute")):
            require_scope(self.caller, Scope(scope))
        if bound.effects is Effects.EXTERNAL and options.idempotency_key is None:
            raise InvalidInputError(
                f"{bound.name} acts outside this database, so it needs an idempotency key",
                code="IDEMPOTENCY_KEY_REQUIRED",
                hint="give one, and the same one whenever this very call is repeated",
            )
        if options.idempotency_key is not None:
            check_key(options.idempotency_key, "idempotency key")
        if options.ordering_key is not None:
            check_key(options.ordering_key, "ordering key")
        prepared = self.registry.prepare(name, input)
        retry = prepared.definition.retry
        return NewJob(
            job_type=bound.name,
            payload=prepared.payload,
            received=prepared.received,
            idempotency_key=options.idempotency_key,
            ordering_key=options.ordering_key,
            priority=options.priority,
            run_at=options.run_at,
            project_id=options.project_id or _only_project(self.caller),
            labels=options.labels,
            trace_id=options.trace_id,
            job_version=prepared.definition.version,
            max_attempts=retry.max_attempts,
            backoff_ms=retry.backoff_ms,
            backoff_multiplier=retry.backoff_multiplier,
            max_backoff_ms=retry.max_backoff_ms,
            timeout_ms=prepared.definition.timeout_ms,
            is_dry_run=options.is_dry_run,
        )


class SyncClient:
    """`Client` for code without an event loop: the same verbs, each of which blocks its thread.

    It runs an event loop on a thread of its own; one client may be shared by many threads.
    """

    def __init__(self, portal: BlockingPortal, client: Client) -> None:
        self._portal = portal
        self._client = client

    @classmethod
    @contextmanager
    def connect(
        cls,
        settings: Settings | None = None,
        *,
        token: str | None = None,
        registry: Registry | None = None,
        tool: str = "client",
    ) -> Generator[SyncClient]:
        """Connect as `Client.connect` does."""
        with start_blocking_portal("asyncio") as portal:
            opening = Client.connect(settings, token=token, registry=registry, tool=tool)
            with portal.wrap_async_context_manager(opening) as client:
                yield cls(portal, client)

    @property
    def caller(self) -> Caller:
        """As whom the client acts."""
        return self._client.caller

    def enqueue(
        self,
        name: str,
        input: JsonValue = None,
        options: Options = _DEFAULTS,
        *,
        connection: SyncConnection | None = None,
    ) -> Enqueued:
        """Commit one job, or make it part of the transaction on ``connection``; see `Client.enqueue`."""
        if connection is None:
            return self._portal.call(self._client.enqueue, name, input, options)
        job = self._client.prepare(name, input, options)
        origin = self._client.origin(job)
        return refuse_conflict(enqueue_job_in_sync(connection, self.caller, job, origin=origin))

    def enqueue_many(self, jobs: Iterable[tuple[str, JsonValue, Options]]) -> list[Enqueued]:
        """Commit many jobs at once; see `Client.enqueue_many`."""
        return self._portal.call(self._client.enqueue_many, jobs)

    def get(self, run_id: RunRef) -> Run:
        """Read a run with its result."""
        return self._portal.call(self._client.get, run_id)

    def wait(self, run_id: RunRef, *, timeout_seconds: float | None = None) -> Run:
        """Return the run once it is final, or as it stands when the time is up."""
        wait = functools.partial(self._client.wait, run_id, timeout_seconds=timeout_seconds)
        return self._portal.call(wait)

    def result(self, run_id: RunRef, *, timeout_seconds: float | None = None) -> JsonValue:
        """Wait for a run and return what its handler returned; see `Client.result`."""
        return result_of(self.wait(run_id, timeout_seconds=timeout_seconds))

    def cancel(self, run_id: RunRef, *, reason: str | None = None) -> Run:
        """Ask for a run's end."""
        return self._portal.call(functools.partial(self._client.cancel, run_id, reason=reason))

    def retry(self, run_id: RunRef, *, reset_attempts: bool = False, force: bool = False) -> Run:
        """Queue a final run again under the same id."""
        retry = functools.partial(
            self._client.retry, run_id, reset_attempts=reset_attempts, force=force
        )
        return self._portal.call(retry)

    def list_runs(self, wanted: RunFilter | None = None) -> list[Run]:
        """Return runs, newest first, without results."""
        return self._portal.call(self._client.list_runs, wanted)


def load_registry(settings: Settings) -> Registry:
    """Load the jobs of an installation: those that come with the package, then those of the setting ``jobs``."""
    return Registry(load_jobs([job_definitions_folder(), *settings.jobs]))


def result_of(run: Run) -> JsonValue:
    """Return what a run's handler returned.

    Raises:
        ConflictError: the run is not final, or ended without a result.
    """
    if run.status is RunStatus.SUCCEEDED:
        return cast("JsonValue", json.loads(run.result)) if run.result is not None else None
    if not run.status.is_final:
        raise ConflictError(
            f"run {run.job_id} is still {run.status.value}",
            code="RUN_NOT_FINISHED",
            hint="wait longer; leaving a wait does not stop the run",
            retryable=True,
        )
    error = run.error
    raise ConflictError(
        f"run {run.job_id} is {run.status.value}" + (f": {error.message}" if error else ""),
        code=error.code if error else "RUN_CANCELED",
        hint=error.hint if error else None,
    )


def refuse_conflict(enqueued: Enqueued) -> Enqueued:
    """Raise for an idempotency key that was used with another input; nothing was written then."""
    if enqueued.outcome is EnqueueOutcome.CONFLICT:
        raise ConflictError(
            "this idempotency key was used before with another input, so nothing was created",
            code="IDEMPOTENCY_CONFLICT",
            hint="use a new key for new work, or repeat the first input unchanged",
        )
    return enqueued


def to_job_id(run_id: RunRef) -> JobId:
    """Read a run's id.

    Raises:
        InvalidInputError: it is not one.
    """
    if isinstance(run_id, UUID):
        return JobId(run_id)
    try:
        return JobId(UUID(run_id))
    except ValueError:
        raise InvalidInputError(
            "the run id is not a UUID", hint="it was printed when the job was enqueued"
        ) from None


def _only_project(caller: Caller) -> str | None:
    """A caller confined to one project means that one."""
    projects = caller.projects
    return next(iter(projects)) if projects is not None and len(projects) == 1 else None
