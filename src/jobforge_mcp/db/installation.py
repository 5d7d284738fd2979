"""Where the database of an installation is, started and migrated when it is the embedded one.

A database that was named is taken as it is: who runs it decides when it is migrated. The embedded one belongs to whoever
needs it, so it is brought up to date by whoever comes first.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobforge_mcp.db.context import ContextKey, ContextSigner, ensure_own_key
from jobforge_mcp.db.pool import Database
from jobforge_mcp.settings import Settings

if TYPE_CHECKING:
    from jobforge_mcp.embedded import Cluster


@dataclass(frozen=True, slots=True)
class Installation:
    """URLs of one database, by what they are for. They may hold passwords, so none is ever shown."""

    api_url: str
    worker_url: str
    admin_url: str
    auditor_url: str
    cluster: Cluster | None = None
    """This process's hold on the embedded server, if that is what is used."""
    signer: ContextSigner | None = None
    """Signs the scope of each call, if there is a key to sign with."""
    scheduler_url: str | None = None
    """For what is due and what waits; ``None`` where the connections of workers do that as well."""

    def __repr__(self) -> str:
        return f"Installation({'embedded' if self.cluster else 'database'})"


@contextmanager
def open_installation(
    settings: Settings,
    *,
    on_progress: Callable[[str], None] | None = None,
    is_migrated: bool = True,
) -> Generator[Installation]:
    """Find the database; start and migrate the embedded one, which runs at least until the block is left.

    Blocks; call it in a thread from async code. ``is_migrated=False`` leaves the schema as it is found.

    Raises:
        OperatorError: the embedded server cannot be started, or its schema cannot be brought up to date.
    """
    api_url = settings.url_for("api")
    if api_url is not None:
        yield Installation(
            api_url,
            settings.url_for("worker") or api_url,
            settings.url_for("admin") or api_url,
            settings.url_for("auditor") or api_url,
            signer=_signer_of(settings),
            scheduler_url=settings.scheduler_url,
        )
        return
    # Nobody with a database of their own, which is every large fleet, needs the embedded one's keeper in memory.
    from jobforge_mcp.db.migrate import migrate
    from jobforge_mcp.embedded import ensure_running

    with ensure_running(settings.state_dir, on_progress=on_progress) as cluster:
        admin_url = cluster.url("jobforge_admin")
        if is_migrated:
            migrate(admin_url)
        key = ensure_own_key(admin_url)
        yield Installation(
            cluster.url("jobforge_api"),
            cluster.url("jobforge_worker"),
            admin_url,
            cluster.url("jobforge_auditor"),
            cluster,
            None if key is None else ContextSigner(key),
        )


@asynccontextmanager
async def scheduler_database(
    installation: Installation, workers: Database
) -> AsyncGenerator[Database]:
    """Open the connections by which schedules are kept: those of the workers, unless the scheduler has a login of its own."""
    if installation.scheduler_url is None:
        yield workers
        return
    async with Database(
        installation.scheduler_url,
        role="jobforge_scheduler",
        min_size=0,
        max_size=2,
        name="jobforge-scheduler",
    ) as database:
        yield database


def _signer_of(settings: Settings) -> ContextSigner | None:
    if settings.context_key is None:
        return None
    return ContextSigner(ContextKey.parse(settings.context_key.get_secret_value()))
