"""The whole of a server for a test, put together as the app does it: real database, real pool, real gate."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from jobforge_mcp.db.notify import Listener
from jobforge_mcp.db.pool import Database
from jobforge_mcp.definitions.catalog import Catalog
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.permits import Permits
from jobforge_mcp.policy.denials import Denials
from jobforge_mcp.policy.gate import Credential, Door, Gate
from jobforge_mcp.policy.keys import KeyFolder
from jobforge_mcp.policy.living import LivingTokens
from jobforge_mcp.policy.scopes import ALL_SCOPES, Scope
from jobforge_mcp.policy.tokens import Grant, issue_token
from jobforge_mcp.progress import RunWatcher
from jobforge_mcp.router.audit import AuditRouter
from jobforge_mcp.router.events import EventRouter
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.router.leases import WorkerRouter
from jobforge_mcp.router.tokens import TokenRouter
from jobforge_mcp.server.parts import ServerParts
from jobforge_mcp.settings import Settings, load_settings
from jobforge_mcp.triggers.desk import EventDesk
from jobforge_mcp.worker.pool import WorkerPool
from tests.postgres import ScratchDatabase
from tests.server.jobs import JOBS


@dataclass(frozen=True, slots=True)
class Stage:
    """An open server with its keys."""

    parts: ServerParts
    settings: Settings
    keys: KeyFolder
    pool: WorkerPool | None

    def token(
        self,
        tenant: str = "acme",
        scopes: Collection[Scope] = ALL_SCOPES,
        *,
        projects: Collection[str] = (),
        lifetime: timedelta = timedelta(hours=1),
    ) -> str:
        grant = Grant(tenant, scopes, projects, subject=f"agent@{tenant}", lifetime=lifetime)
        return issue_token(
            self.keys.ensure(),
            grant,
            issuer=self.settings.token_issuer,
            audience=self.settings.token_audience,
        )

    def credential(
        self, tenant: str = "acme", scopes: Collection[Scope] = ALL_SCOPES
    ) -> Credential:
        return Credential(self.token(tenant, scopes), Door.LOCAL)


@asynccontextmanager
async def open_stage(
    database: ScratchDatabase, tmp_path: Path, *, has_pool: bool = True, **overrides: object
) -> AsyncGenerator[Stage]:
    """Open everything a server needs on a test's own database; ``registry`` stands in for the usual jobs."""
    registry = overrides.pop("registry", None) or Registry(JOBS)
    assert isinstance(registry, Registry)
    keys = KeyFolder(tmp_path / "keys")
    keys.ensure()
    settings = load_settings(
        **{
            "database_url": database.url("jobforge_api"),
            "token_keys": str(tmp_path / "keys"),
            "state_dir": tmp_path,
            "port": 0,
            "drain_grace_seconds": 2,
            "worker_concurrency": 4,
            # what most tests of the tools are about; that it is off elsewhere is tests/server/test_features.py
            "events_enabled": True,
            "triggers_enabled": True,
            **overrides,
        }
    )
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(
            Database(database.url("jobforge_api"), role="jobforge_api")
        )
        listener = await stack.enter_async_context(Listener(database.url("jobforge_api")))
        router = Router(api)
        watcher = await stack.enter_async_context(RunWatcher(router, listener))
        pool = None
        if has_pool:
            worker = await stack.enter_async_context(
                Database(database.url("jobforge_worker"), role="jobforge_worker")
            )
            pool = WorkerPool(
                WorkerRouter(worker),
                registry,
                settings,
                listener=listener,
                on_change=watcher.publish,
                on_end=watcher.publish_end,
                heartbeat_url=database.url("jobforge_worker"),
            )
            await stack.enter_async_context(pool)
        catalog = Catalog(registry, router.definitions)
        parts = ServerParts(
            registry=registry,
            catalog=catalog,
            permits=Permits(catalog, router),
            router=router,
            desk=EventDesk(EventRouter(api), registry),
            gate=Gate.from_settings(settings),
            watcher=watcher,
            settings=settings,
            pool=pool,
            denials=Denials(AuditRouter(api)),
            living=LivingTokens(TokenRouter(api)),
        )
        yield Stage(parts, settings, keys, pool)
