"""The body of a process that does nothing but run jobs: ``jobforge worker``.

The first SIGTERM or SIGINT drains: no new claims, running jobs finish within the grace period, the rest are released
without using an attempt. The second one releases at once. A process that cannot end by itself after that, because a
handler neither returns nor lets itself be cancelled, is ended from inside; its leases are released by then.
"""

from __future__ import annotations

import gc
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

import anyio
import structlog

from jobforge_mcp.db.notify import EVENTS, READY, Listener
from jobforge_mcp.db.pool import Database
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.router.leases import WorkerRouter
from jobforge_mcp.settings import Settings
from jobforge_mcp.types import JobId, TenantId
from jobforge_mcp.worker.ending import end_for_certain
from jobforge_mcp.worker.pool import WorkerPool

ROLE = "jobforge_worker"

log = structlog.stdlib.get_logger(__name__)


async def run_worker(
    settings: Settings,
    registry: Registry,
    *,
    url: str,
    tenant_ids: Sequence[TenantId] | None = None,
    type_patterns: Sequence[str] = ("*",),
    on_started: Callable[[WorkerPool], None] = lambda _: None,
    beside: Callable[[Database, Listener], Coroutine[None, None, None]] | None = None,
) -> None:
    """Run jobs until a signal says otherwise.

    ``beside`` goes on next to the pool, through the same connections, until that has drained.

    ``url`` is the worker's database, settled by the caller, because only they know of the embedded one.

    Raises:
        OperatorError: The database cannot be reached, or is not ours, at the start.
    """
    async with (
        Database(url, role=ROLE, max_size=settings.database_pool_size, name="worker") as database,
        Listener(url, ROLE, channels=(READY, EVENTS)) as listener,
        WorkerPool(
            WorkerRouter(database),
            registry,
            settings,
            listener=listener,
            on_change=_nobody_waits,
            heartbeat_url=url,
            tenant_ids=tenant_ids,
            type_patterns=type_patterns,
        ) as pool,
        anyio.create_task_group() as tasks,
    ):
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            _collect_less_often()
            # Said only now: whoever hears it may send a signal at once, and may refuse to go on.
            on_started(pool)
            if beside is not None:
                tasks.start_soon(beside, database, listener)
            async for number in signals:
                log.info("worker_draining", signal=number.name, running=pool.running)
                break
            tasks.start_soon(_abandon_on_next, signals, pool)
            await pool.drain(settings.drain_grace_seconds)
            tasks.cancel_scope.cancel()
        end_for_certain()


def _collect_less_often() -> None:
    """Take a tenth off the CPU of each short job: what was made at start stays, and most jobs leave no cycles behind."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


async def _abandon_on_next(signals: AsyncIterator[signal.Signals], pool: WorkerPool) -> None:
    async for number in signals:
        log.warning("worker_abandoning", signal=number.name, running=pool.running)
        pool.abandon()


def _nobody_waits(job_id: JobId) -> None:
    """Tell nobody: no caller waits in this process."""
