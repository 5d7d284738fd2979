"""The same client for code without an event loop."""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager

from anyio.from_thread import BlockingPortal, start_blocking_portal

from jobforge_mcp.client.answers import RunRef, refuse_conflict, to_job_id
from jobforge_mcp.client.bulk import BlockingBulkVerbs
from jobforge_mcp.client.bundles import BundleRequest, Verdict
from jobforge_mcp.client.events import SyncEventVerbs, payload_text
from jobforge_mcp.client.evidence import BlockingEvidenceVerbs
from jobforge_mcp.client.options import DEFAULTS, Options
from jobforge_mcp.client.queues import BlockingQueueVerbs
from jobforge_mcp.client.verbs import Client
from jobforge_mcp.definitions.model import JobDefinition
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.router.transactional import SyncConnection
from jobforge_mcp.settings import Settings
from jobforge_mcp.types import (
    Caller,
    Enqueued,
    JsonObject,
    JsonValue,
    NewEvent,
    Registration,
    Run,
    RunFilter,
    SubmittedEvent,
)


class SyncClient(BlockingEvidenceVerbs, BlockingQueueVerbs, BlockingBulkVerbs):
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

    @property
    def events(self) -> SyncEventVerbs:
        """What this caller can do with events and triggers."""
        return SyncEventVerbs(self._portal, self._client.events)

    def submit_event(
        self,
        event_type: str,
        payload: Mapping[str, JsonValue] | None = None,
        *,
        source: str | None = None,
        subject: str | None = None,
        idempotency_key: str | None = None,
        trace_id: str | None = None,
        project_id: str | None = None,
        connection: SyncConnection | None = None,
    ) -> SubmittedEvent:
        """Store an event, and start what its triggers start; ``events.submit_event`` takes the whole envelope."""
        event = NewEvent(
            event_type,
            payload_text(payload),
            source=source,
            subject=subject,
            idempotency_key=idempotency_key,
            trace_id=trace_id,
            project_id=project_id,
        )
        return self.events.submit_event(event, connection=connection)

    def enqueue(
        self,
        name: str,
        input: JsonValue = None,
        options: Options = DEFAULTS,
        *,
        connection: SyncConnection | None = None,
    ) -> Enqueued:
        """Commit one job, or make it part of the transaction on ``connection``; see `Client.enqueue`."""
        if connection is None:
            return self._portal.call(self._client.enqueue, name, input, options)
        recording = self._client.recording("enqueue", job_type=name)
        with self._portal.wrap_async_context_manager(recording):
            job = self._portal.call(self._client.prepare, name, input, options)
            enqueued = self._client.own(job).enqueue_job(job).send_sync(connection)
        return refuse_conflict(enqueued)

    def enqueue_many(self, jobs: Iterable[tuple[str, JsonValue, Options]]) -> list[Enqueued]:
        """Commit many jobs at once; see `Client.enqueue_many`."""
        return self._portal.call(self._client.enqueue_many, jobs)

    def enqueue_bundle(
        self,
        requests: Sequence[BundleRequest],
        *,
        idempotency_key: str | None = None,
        is_plan: bool = False,
    ) -> list[Verdict]:
        """Commit jobs that depend on each other at once; see `Client.enqueue_bundle`."""
        enqueue = functools.partial(
            self._client.enqueue_bundle,
            requests,
            idempotency_key=idempotency_key,
            is_plan=is_plan,
        )
        return self._portal.call(enqueue)

    def get(self, run_id: RunRef) -> Run:
        """Read a run with its result."""
        return self._portal.call(self._client.get, run_id)

    def wait(self, run_id: RunRef, *, timeout_seconds: float | None = None) -> Run:
        """Return the run once it is final, or as it stands when the time is up."""
        wait = functools.partial(self._client.wait, run_id, timeout_seconds=timeout_seconds)
        return self._portal.call(wait)

    def result(self, run_id: RunRef, *, timeout_seconds: float | None = None) -> JsonValue:
        """Wait for a run and return what its handler returned; see `Client.result`."""
        result = functools.partial(self._client.result, run_id, timeout_seconds=timeout_seconds)
        return self._portal.call(result)

    def cancel(
        self,
        run_id: RunRef,
        *,
        reason: str | None = None,
        connection: SyncConnection | None = None,
    ) -> Run:
        """Ask for a run's end, or make that part of the transaction on ``connection``; see `Client.cancel`."""
        if connection is None:
            return self._portal.call(functools.partial(self._client.cancel, run_id, reason=reason))
        job_id = to_job_id(run_id)
        with self._portal.wrap_async_context_manager(
            self._client.recording("cancel", job_id=job_id)
        ):
            self._client.require_cancel(reason)
            own = self._client.own()
            run = own.get_run(job_id).send_sync(connection)
            self._portal.call(self._client.require_cancel_of, run)
            return own.cancel_job(job_id, reason=reason).send_sync(connection)

    def retry(self, run_id: RunRef, *, reset_attempts: bool = False, force: bool = False) -> Run:
        """Queue a final run again under the same id."""
        retry = functools.partial(
            self._client.retry, run_id, reset_attempts=reset_attempts, force=force
        )
        return self._portal.call(retry)

    def list_runs(self, wanted: RunFilter | None = None) -> list[Run]:
        """Return runs, newest first, without results."""
        return self._portal.call(self._client.list_runs, wanted)

    def register_job(self, definition: JsonObject, *, is_plan: bool = False) -> Registration:
        """Register a definition; see `Client.register_job`."""
        register = functools.partial(self._client.register_job, definition, is_plan=is_plan)
        return self._portal.call(register)

    def approve_job(self, name: str, version: str | None = None) -> Registration:
        """Let a quarantined version be run; see `Client.approve_job`."""
        return self._portal.call(self._client.approve_job, name, version)

    def remove_job(self, name: str, *, is_plan: bool = False) -> Registration:
        """Refuse new runs of a registered job; see `Client.remove_job`."""
        return self._portal.call(functools.partial(self._client.remove_job, name, is_plan=is_plan))

    def list_jobs(self, query: str | None = None, *, limit: int = 20) -> list[JobDefinition]:
        """Return a page of the jobs that this caller may run; see `Client.list_jobs`."""
        return self._portal.call(functools.partial(self._client.list_jobs, query, limit=limit))
