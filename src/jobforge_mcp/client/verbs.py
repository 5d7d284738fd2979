"""The asynchronous client, one method per verb."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
)
from datetime import datetime
from typing import cast

import anyio.to_thread

from jobforge_mcp.client.answers import RunRef, refuse_conflict, result_of, to_job_id
from jobforge_mcp.client.bulk import BulkVerbs
from jobforge_mcp.client.bundles import BundleRequest, Verdict, arranged_of, verdicts_of
from jobforge_mcp.client.definitions import DefinitionVerbs
from jobforge_mcp.client.events import EventVerbs
from jobforge_mcp.client.evidence import EvidenceVerbs, is_elsewhere
from jobforge_mcp.client.options import DEFAULTS, Options
from jobforge_mcp.client.queues import QueueVerbs
from jobforge_mcp.db.installation import open_installation
from jobforge_mcp.db.notify import Listener
from jobforge_mcp.db.pool import Database
from jobforge_mcp.definitions.catalog import Catalog
from jobforge_mcp.definitions.enqueuing import job_like, job_of
from jobforge_mcp.definitions.features import fires_triggers
from jobforge_mcp.definitions.installed import load_registry
from jobforge_mcp.definitions.json_limits import check_key
from jobforge_mcp.definitions.model import BoundJob, is_job_name
from jobforge_mcp.definitions.registry import Prepared, Registry
from jobforge_mcp.errors import InvalidInputError
from jobforge_mcp.evidence.stores import ContentStore, open_store
from jobforge_mcp.permits import Permits
from jobforge_mcp.policy.denials import Denials
from jobforge_mcp.policy.gate import Gate
from jobforge_mcp.policy.permissions import (
    ask_guards,
    confine,
    may_list,
    require_job,
    require_runnable,
    require_scope,
    require_type,
)
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.progress import OnChange, RunWatcher
from jobforge_mcp.router.audit import AuditRouter
from jobforge_mcp.router.errors import run_not_found
from jobforge_mcp.router.events import EventRouter
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.router.scope import ScopeSigner
from jobforge_mcp.router.transactional import AsyncConnection, OwnTransaction
from jobforge_mcp.settings import Settings, load_settings
from jobforge_mcp.triggers.desk import EventDesk
from jobforge_mcp.types import (
    Attempt,
    Caller,
    CallOrigin,
    Cause,
    Effects,
    Enqueued,
    JobAction,
    JobId,
    JsonValue,
    LogLine,
    NewJob,
    Run,
    RunFilter,
    SubmittedEvent,
)


def _no_store() -> ContentStore:
    raise RuntimeError("a client without a store cannot read large artifacts")


class Client(DefinitionVerbs, EvidenceVerbs, QueueVerbs, BulkVerbs):
    """Enqueues jobs and follows runs as one caller."""

    def __init__(
        self,
        router: Router,
        registry: Registry,
        caller: Caller,
        *,
        watcher: RunWatcher | None = None,
        tool: str = "client",
        denials: Denials | None = None,
        open_store: Callable[[], ContentStore] = _no_store,
        desk: EventDesk | None = None,
        settings: Settings | None = None,
    ) -> None:
        """Act through these parts; ``watcher`` is needed by ``wait`` and ``result``, ``desk`` by ``events``.

        ``tool`` names us in the audit log, where ``denials`` writes down what this client is refused.
        """
        self.caller = confine(caller, registry.by_name.values())
        self.registry = registry
        self.catalog = Catalog(registry, router.definitions)
        self.permits = Permits(self.catalog, router)
        self._router = router
        self._watcher = watcher
        self._tool = tool
        self._denials = denials
        self._open_store = open_store
        self._desk = desk
        self._settings = settings

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
        gate = Gate.from_settings(settings)
        await gate.prepare(token)
        caller = gate.caller_of(token)
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
            await stack.enter_async_context(database)
            router = Router(database, signer=installation.signer)
            listener = None
            if is_listening:
                listener = await stack.enter_async_context(
                    Listener(installation.api_url, "jobforge_api")
                )
            watcher = await stack.enter_async_context(RunWatcher(router, listener))
            registry = registry or load_registry(settings)
            denials = Denials(AuditRouter(database, signer=installation.signer))
            stack.push_async_callback(denials.flush)
            desk = EventDesk(
                EventRouter(database, signer=installation.signer),
                registry,
                most_depth=settings.event_depth_most,
                asks_triggers=fires_triggers(settings),
            )
            yield cls(
                router,
                registry,
                caller,
                watcher=watcher,
                tool=tool,
                denials=denials,
                open_store=lambda: open_store(settings),
                desk=desk,
                settings=settings,
            )

    @property
    def signer(self) -> ScopeSigner | None:
        """What signs this client's scope, where the database asks for that."""
        return self._router.signer

    @property
    def events(self) -> EventVerbs:
        """What this caller can do with events and triggers."""
        if self._desk is None:
            raise RuntimeError("a client without a desk has no events")
        return EventVerbs(self._desk, self.caller, tool=self._tool, settings=self._settings)

    async def submit_event(
        self,
        event_type: str,
        payload: Mapping[str, JsonValue] | None = None,
        *,
        source: str | None = None,
        subject: str | None = None,
        idempotency_key: str | None = None,
        trace_id: str | None = None,
        project_id: str | None = None,
        connection: AsyncConnection | None = None,
    ) -> SubmittedEvent:
        """Store an event, and start what its triggers start; ``events.submit`` takes the rest of the envelope.

        With ``connection``, an open psycopg connection of the application, the event becomes part of its transaction.
        """
        return await self.events.submit(
            event_type,
            payload,
            source=source,
            subject=subject,
            idempotency_key=idempotency_key,
            trace_id=trace_id,
            project_id=project_id,
            connection=connection,
        )

    async def enqueue(
        self,
        name: str,
        input: JsonValue = None,
        options: Options = DEFAULTS,
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
        async with self.recording("enqueue", job_type=name):
            job = await self.prepare(name, input, options)
            origin = self.origin(job)
            if connection is not None:
                enqueued = await self.own(job).enqueue_job(job).send(connection)
            else:
                enqueued = await self._router.enqueue_job(self.caller, job, origin=origin)
        return refuse_conflict(enqueued)

    async def enqueue_many(self, jobs: Iterable[tuple[str, JsonValue, Options]]) -> list[Enqueued]:
        """Commit many jobs at once, all or none; a conflict of one shows in its ``outcome`` and does not stop the others."""
        async with self.recording("enqueue"):
            prepared = await self._prepare_many(jobs)
            return await self._router.enqueue_jobs(self.caller, prepared, origin=self.origin())

    async def enqueue_bundle(
        self,
        requests: Sequence[BundleRequest],
        *,
        idempotency_key: str | None = None,
        is_plan: bool = False,
    ) -> list[Verdict]:
        """Commit up to 100 jobs at once, some of which wait until others of them have ended; answers in the order given.

        What cannot be run is refused with all that depends on it, and the rest is enqueued. With ``idempotency_key`` the
        same call again answers with the same runs; a request may have a key of its own. A plan says what would happen.

        Raises:
            InvalidInputError: an id is unknown or there twice, or requests depend on each other in a circle.
            ConflictError: a request depends on one whose key was used with another input.
            LimitError: there are too many, or a limit refuses the call.
        """
        async with self.recording("enqueue_bundle"):
            arranged = await arranged_of(requests, self.prepare, idempotency_key)
            if self._denials is not None:
                refused = [
                    (one.name, arranged.refused[one.id])
                    for one in requests
                    if one.id in arranged.refused and is_job_name(one.name)
                ]
                await self._denials.record_each(self.caller, "enqueue", self.origin(), refused)
            found = await self._router.enqueue_bundle(
                self.caller, arranged.items, origin=self.origin(), is_plan=is_plan
            )
        return verdicts_of(requests, arranged, found)

    async def plan(
        self, name: str, input: JsonValue = None, options: Options = DEFAULTS
    ) -> Enqueued:
        """Say what `enqueue` would do, and do nothing."""
        async with self.recording("enqueue", job_type=name):
            job = await self.prepare(name, input, options)
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
        run = await self.wait(run_id, timeout_seconds=timeout_seconds)
        return await self.whole_result(run) if is_elsewhere(run) else result_of(run)

    async def cancel(
        self,
        run_id: RunRef,
        *,
        reason: str | None = None,
        connection: AsyncConnection | None = None,
    ) -> Run:
        """Ask for a run's end; a running one ends soon after.

        With ``connection``, an open psycopg connection of the application, that is part of its transaction.
        """
        job_id = to_job_id(run_id)
        async with self.recording("cancel", job_id=job_id):
            self.require_cancel(reason)
            if connection is None:
                await self.permits.require_run(self.caller, job_id, JobAction.CANCEL)
                return await self._router.cancel_job(
                    self.caller, job_id, reason=reason, origin=self.origin()
                )
            own = self.own()
            await self.require_cancel_of(await own.get_run(job_id).send(connection))
            return await own.cancel_job(job_id, reason=reason).send(connection)

    def require_cancel(self, reason: str | None) -> None:
        """Refuse a caller that may cancel nothing, or a reason that holds what it must not."""
        require_scope(self.caller, Scope.JOBS_CANCEL)
        self.registry.scan({"reason": reason})

    async def require_cancel_of(self, run: Run) -> None:
        """Refuse the cancellation of a run that this caller may not see, or whose definition does not allow it."""
        if not await self._router.shown(self.caller, [run]):
            raise run_not_found(run.job_id)
        await self.permits.require_known(self.caller, run, JobAction.CANCEL)

    def own(self, job: NewJob | None = None) -> OwnTransaction:
        """Return what is done in transactions of the application, as this client's caller."""
        return OwnTransaction(self.caller, self.origin(job), self.signer)

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
        job_id = to_job_id(run_id)
        async with self.recording("retry", job_id=job_id):
            require_scope(self.caller, Scope.JOBS_RETRY)
            await self.permits.require_run(self.caller, job_id, JobAction.EXECUTE)
            await require_runnable(self._router, self.registry, self.caller, job_id)
            return await self._router.retry_job(
                self.caller,
                job_id,
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

    def recording(
        self, action: str, *, job_type: str | None = None, job_id: JobId | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Have what this block is refused in the audit log."""
        if self._denials is None:
            return nullcontext()
        named = job_type if job_type is not None and is_job_name(job_type) else None
        return self._denials.recording(
            self.caller, action, self.origin(), job_type=named, job_id=job_id
        )

    def origin(self, job: NewJob | None = None) -> CallOrigin:
        """Return what the audit log is told of a call."""
        return CallOrigin(tool=self._tool, trace_id=job.trace_id if job is not None else None)

    async def prepare(self, name: str, input: JsonValue, options: Options = DEFAULTS) -> NewJob:
        """Check that the caller may enqueue this job with this input, and return it ready for the router."""
        bound = await self._admit(name, options)
        return self._new_job(bound, self._check_input(bound, input), options)

    async def _prepare_many(self, jobs: Iterable[tuple[str, JsonValue, Options]]) -> list[NewJob]:
        """Do the same for each; what does not depend on the input is asked once for neighbours that agree in it."""
        prepared: list[NewJob] = []
        bound = admitted = neighbour = None
        for name, input, options in jobs:
            if bound is None or bound.name != name or admitted is not options:
                bound, admitted = await self._admit(name, options), options
                neighbour = None
            checked = self._check_input(bound, input)
            if neighbour is None:
                neighbour = self._new_job(bound, checked, options)
            prepared.append(job_like(neighbour, checked))
        return prepared

    async def _admit(self, name: str, options: Options) -> BoundJob:
        """Return the job of this name, if the caller may enqueue it with these options."""
        require_scope(self.caller, Scope.JOBS_EXECUTE)
        require_type(self.caller, name)
        bound = await self.catalog.find(self.caller, name, is_visible=may_list(self.caller))
        require_job(self.caller, bound, JobAction.EXECUTE)
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
        self.registry.scan(
            {
                "the idempotency key": options.idempotency_key,
                "the ordering key": options.ordering_key,
                "labels": dict(options.labels or {}),
            }
        )
        return bound

    def _check_input(self, bound: BoundJob, input: JsonValue) -> Prepared:
        prepared = self.registry.prepare_bound(bound, input)
        if bound.guards:
            ask_guards(self.caller, bound, JobAction.EXECUTE, json.loads(prepared.payload))
        return prepared

    def _new_job(self, bound: BoundJob, prepared: Prepared, options: Options) -> NewJob:
        return job_of(prepared, bound.lane_type)._replace(
            idempotency_key=options.idempotency_key,
            ordering_key=options.ordering_key,
            priority=options.priority,
            run_at=options.run_at,
            project_id=options.project_id or _only_project(self.caller),
            labels=options.labels,
            trace_id=options.trace_id,
            is_dry_run=options.is_dry_run,
        )


def _only_project(caller: Caller) -> str | None:
    """A caller confined to one project means that one."""
    projects = caller.projects
    return next(iter(projects)) if projects is not None and len(projects) == 1 else None
