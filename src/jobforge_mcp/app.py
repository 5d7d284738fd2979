"""The composition root: the only file that knows every part of a serving process.

It opens the database of the installation, the listener, the watcher and, where the process runs jobs, one worker pool,
and hands them to the server. Leaving closes them in the opposite order, so that running jobs finish or are released while
there still is a database to say so to.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import anyio
import anyio.to_thread
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage

from jobforge_mcp.audit.keys import audit_keys_folder, signing_key
from jobforge_mcp.audit.sealer import Sealer
from jobforge_mcp.db.installation import Installation, open_installation, scheduler_database
from jobforge_mcp.db.migrate import migrate
from jobforge_mcp.db.notify import Listener
from jobforge_mcp.db.pool import Database
from jobforge_mcp.definitions.catalog import Catalog
from jobforge_mcp.definitions.features import fires_triggers
from jobforge_mcp.definitions.installed import load_registry
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.errors import DatabaseUnavailableError, OperatorError, SchemaError
from jobforge_mcp.evidence.stores import open_store
from jobforge_mcp.maintenance import Maintenance
from jobforge_mcp.permits import Permits
from jobforge_mcp.policy.denials import Denials
from jobforge_mcp.policy.gate import Credential, Gate
from jobforge_mcp.policy.living import LivingTokens
from jobforge_mcp.progress import RunWatcher
from jobforge_mcp.purging import Purger
from jobforge_mcp.router.audit import AuditRouter
from jobforge_mcp.router.events import EventRouter
from jobforge_mcp.router.evidence import ArtifactRouter
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.router.leases import WorkerRouter
from jobforge_mcp.router.maintenance import MaintenanceRouter
from jobforge_mcp.router.seals import SealRouter
from jobforge_mcp.router.tokens import TokenRouter
from jobforge_mcp.server.build import build_server
from jobforge_mcp.server.parts import Check, ServerParts
from jobforge_mcp.settings import Settings
from jobforge_mcp.triggers.desk import EventDesk
from jobforge_mcp.worker.pool import WorkerPool
from jobforge_mcp.worker.secrets import SecretStore

Incoming = MemoryObjectReceiveStream[SessionMessage | Exception]
Outgoing = MemoryObjectSendStream[SessionMessage]

_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class App:
    """The open parts of one serving process."""

    settings: Settings
    installation: Installation
    registry: Registry
    router: Router
    worker_router: WorkerRouter | None
    """``None`` where this process runs no jobs."""
    gate: Gate
    watcher: RunWatcher
    pool: WorkerPool | None
    parts: ServerParts
    """The same, as the tools take them."""

    async def serve_streams(
        self, incoming: Incoming, outgoing: Outgoing, token: str | None = None
    ) -> None:
        """Speak MCP over one pair of message streams, as the holder of a token or as the local tenant."""
        server = build_server(self.parts, Credential(token))
        await server.run(incoming, outgoing, server.create_initialization_options())


@asynccontextmanager
async def open_app(settings: Settings, *, with_workers: bool | None = None) -> AsyncGenerator[App]:
    """Open everything a serving process needs; ``with_workers`` overrides the setting of the same meaning.

    Raises:
        OperatorError: a setting, the schema, a job definition or the embedded server stands in the way.
        DatabaseUnavailableError: the database cannot be reached.
    """
    has_workers = settings.workers if with_workers is None else with_workers
    registry = load_registry(settings)
    gate = Gate.from_settings(settings, registry.by_name.values())
    async with AsyncExitStack() as stack:
        installation = await _enter_installation(stack, settings)
        database = Database(
            installation.api_url,
            role="jobforge_api",
            max_size=settings.database_pool_size,
            name="jobforge-api",
        )
        router = Router(await stack.enter_async_context(database), signer=installation.signer)
        denials = Denials(AuditRouter(database, signer=installation.signer))
        stack.push_async_callback(denials.flush)
        listener = await stack.enter_async_context(Listener(installation.api_url, "jobforge_api"))
        watcher = await stack.enter_async_context(RunWatcher(router, listener))
        worker_router = pool = None
        if has_workers:
            worker_router, pool = await _enter_pool(
                stack, settings, installation, registry, listener, watcher
            )
        await _enter_sealer(stack, settings, installation)
        await _enter_keys(stack, settings, gate)
        catalog = Catalog(registry, router.definitions)
        parts = ServerParts(
            registry=registry,
            catalog=catalog,
            permits=Permits(catalog, router),
            router=router,
            desk=EventDesk(
                EventRouter(database, signer=installation.signer),
                registry,
                most_depth=settings.event_depth_most,
                asks_triggers=fires_triggers(settings),
            ),
            gate=gate,
            watcher=watcher,
            settings=settings,
            pool=pool,
            denials=denials,
            living=LivingTokens(TokenRouter(database, signer=installation.signer)),
            secret=SecretStore.from_settings(settings, os.environ).get,
            checks=_checks(database, listener, installation, pool),
        )
        yield App(
            settings, installation, registry, router, worker_router, gate, watcher, pool, parts
        )


async def _enter_installation(stack: AsyncExitStack, settings: Settings) -> Installation:
    """Find or start the database; it outlives everything that is entered after it."""
    manager = open_installation(settings)
    installation = await anyio.to_thread.run_sync(manager.__enter__)

    async def leave() -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(manager.__exit__, None, None, None)

    stack.push_async_callback(leave)
    return installation


async def _enter_sealer(
    stack: AsyncExitStack, settings: Settings, installation: Installation
) -> None:
    """Seal the audit log from this process, where it has the key and may act as the auditor."""
    if settings.audit_seal_seconds == 0 or audit_keys_folder(settings) is None:
        return
    database = Database(
        installation.auditor_url,
        role="jobforge_auditor",
        min_size=0,
        max_size=1,
        name="jobforge-audit",
    )
    try:
        router = SealRouter(await stack.enter_async_context(database))
    except OperatorError as error:  # no reason not to serve
        _log.warning("audit_not_sealed", code=error.code, reason=error.message)
        return
    key = await anyio.to_thread.run_sync(signing_key, settings)
    tasks = await stack.enter_async_context(anyio.create_task_group())
    stack.callback(tasks.cancel_scope.cancel)
    sealer = Sealer(router, key, reload=lambda: signing_key(settings))
    tasks.start_soon(sealer.run, settings.audit_seal_seconds)


async def _enter_keys(stack: AsyncExitStack, settings: Settings, gate: Gate) -> None:
    """Fetch the issuer's keys again and again, where they come from a URL."""
    if settings.has_remote_keys:
        tasks = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(tasks.cancel_scope.cancel)
        tasks.start_soon(gate.run)


async def _enter_pool(
    stack: AsyncExitStack,
    settings: Settings,
    installation: Installation,
    registry: Registry,
    listener: Listener,
    watcher: RunWatcher,
) -> tuple[WorkerRouter, WorkerPool]:
    database = await stack.enter_async_context(_worker_database(settings, installation))
    worker_router = WorkerRouter(database)
    tasks = await stack.enter_async_context(anyio.create_task_group())
    stack.callback(tasks.cancel_scope.cancel)
    tasks.start_soon(_purger(settings, database).run)
    if fires_triggers(settings):
        schedules = await stack.enter_async_context(scheduler_database(installation, database))
        keeping = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(keeping.cancel_scope.cancel)
        keeping.start_soon(_maintenance(settings, registry, schedules).run, listener)
    pool = WorkerPool(
        worker_router,
        registry,
        settings,
        listener=listener,
        on_change=watcher.publish,
        on_end=watcher.publish_end,
        heartbeat_url=installation.worker_url,
    )
    return worker_router, await stack.enter_async_context(pool)


def _purger(settings: Settings, database: Database) -> Purger:
    return Purger(MaintenanceRouter(database), ArtifactRouter(database), open_store(settings))


def _maintenance(settings: Settings, registry: Registry, database: Database) -> Maintenance:
    return Maintenance(MaintenanceRouter(database), registry, most_depth=settings.event_depth_most)


def _worker_database(settings: Settings, installation: Installation) -> Database:
    return Database(
        installation.worker_url,
        role="jobforge_worker",
        max_size=settings.database_pool_size,
        name="jobforge-worker",
    )


def _checks(
    database: Database, listener: Listener, installation: Installation, pool: WorkerPool | None
) -> dict[str, Check]:
    """What ``/ready`` asks; each raises when the answer is no."""

    async def database_answers() -> None:
        await database.fetch("select jobforge.now()")

    async def listener_hears() -> None:
        if not listener.is_healthy:
            raise DatabaseUnavailableError("notifications do not arrive; polling goes on")

    async def schema_is_current() -> None:
        report = await anyio.to_thread.run_sync(
            lambda: migrate(installation.api_url, check=True), abandon_on_cancel=True
        )
        if not report.is_current:
            raise SchemaError("migrations are pending", hint="run: jobforge migrate")

    async def pool_serves() -> None:
        if pool is not None and not pool.is_serving:
            raise OperatorError("the worker pool of this server claims no jobs", hint="restart it")

    checks: dict[str, Check] = {
        "database": database_answers,
        "listener": listener_hears,
        "migrations": schema_is_current,
    }
    return checks if pool is None else {**checks, "pool": pool_serves}
