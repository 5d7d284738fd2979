"""Verbs about whole queues: pause, resume, and what is in them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING

from jobforge_mcp.policy.permissions import require_scope, require_type
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.types import Caller, CallOrigin, JobId, NewJob, Pause, PauseKind, QueueStats

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

    from jobforge_mcp.client.verbs import Client
    from jobforge_mcp.router.jobs import Router


class QueueVerbs:
    """The part of `Client` that is about queues."""

    caller: Caller
    _router: Router

    @abstractmethod
    def origin(self, job: NewJob | None = None) -> CallOrigin:
        """Return what the audit log is told of a call."""

    @abstractmethod
    def recording(
        self, action: str, *, job_type: str | None = None, job_id: JobId | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Have what this block is refused in the audit log."""

    async def pause(
        self,
        *,
        job_type: str | None = None,
        project: str | None = None,
        reason: str | None = None,
    ) -> Pause:
        """Let no more runs of a type or project start, or of the whole tenant if neither is named; what runs goes on."""
        async with self.recording("pause", job_type=job_type):
            kind, name = self._queue_of(job_type, project)
            return await self._router.queues.pause_queue(
                self.caller, kind, name, reason=reason, origin=self.origin()
            )

    async def resume(self, *, job_type: str | None = None, project: str | None = None) -> bool:
        """Let runs start again, and say whether they were paused."""
        async with self.recording("resume", job_type=job_type):
            kind, name = self._queue_of(job_type, project)
            return await self._router.queues.resume_queue(
                self.caller, kind, name, origin=self.origin()
            )

    async def pauses(self) -> Sequence[Pause]:
        """Return what is paused, by whom and why."""
        require_scope(self.caller, Scope.JOBS_READ)
        return await self._router.queues.list_pauses(self.caller)

    async def queue_stats(self) -> Sequence[QueueStats]:
        """Count the open runs of the tenant by type."""
        require_scope(self.caller, Scope.JOBS_READ)
        return await self._router.queue_stats(self.caller)

    def _queue_of(self, job_type: str | None, project: str | None) -> tuple[PauseKind, str | None]:
        require_scope(self.caller, Scope.QUEUES_WRITE)
        if job_type is not None:
            require_type(self.caller, job_type)
            if project is None:
                return PauseKind.TYPE, job_type
            raise ValueError("a queue is that of a type or of a project, not of both")
        return (PauseKind.TENANT, None) if project is None else (PauseKind.PROJECT, project)


class BlockingQueueVerbs:
    """The part of `SyncClient` that is about queues."""

    _portal: BlockingPortal
    _client: Client

    def pause(
        self,
        *,
        job_type: str | None = None,
        project: str | None = None,
        reason: str | None = None,
    ) -> Pause:
        """Let no more runs start; see `Client.pause`."""
        pause = partial(self._client.pause, job_type=job_type, project=project, reason=reason)
        return self._portal.call(pause)

    def resume(self, *, job_type: str | None = None, project: str | None = None) -> bool:
        """Let runs start again; see `Client.resume`."""
        return self._portal.call(partial(self._client.resume, job_type=job_type, project=project))

    def pauses(self) -> Sequence[Pause]:
        """Return what is paused."""
        return self._portal.call(self._client.pauses)

    def queue_stats(self) -> Sequence[QueueStats]:
        """Count the open runs of the tenant by type."""
        return self._portal.call(self._client.queue_stats)
