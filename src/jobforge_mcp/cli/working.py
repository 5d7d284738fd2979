"""The body of ``jobforge worker``, apart from its command: a worker loads no parser of command lines.

Nor is one needed for what supervisors start thousands of times. Whatever is not plain here is left to the whole program, with
its help and its complaints.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobforge_mcp.cli.output import say
from jobforge_mcp.logs import configure_logging
from jobforge_mcp.settings import Settings, clear_token_from_environment, load_settings

if TYPE_CHECKING:
    from jobforge_mcp.db.notify import Listener
    from jobforge_mcp.db.pool import Database
    from jobforge_mcp.worker.pool import WorkerPool


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a worker was told on its command line."""

    concurrency: int | None = None
    """Jobs to run at the same time; ``None`` leaves it to the settings."""
    tenants: tuple[str, ...] = ()
    """Only jobs of these tenants; none means all."""
    types: tuple[str, ...] = ()
    """Only job types like these; none means all."""


def plain_options(given: Sequence[str]) -> WorkerOptions | None:
    """Read the command line of a worker; ``None`` if it is another command's, or anything but options with good values."""
    if given[:1] != ["worker"]:
        return None
    found: dict[str, list[str]] = {"--concurrency": [], "--tenant": [], "--type": []}
    words = iter(given[1:])
    for word in words:
        name, is_joined, value = word.partition("=")
        if not is_joined:
            value = next(words, "")
        if name not in found or not value or value.startswith("-"):
            return None
        found[name].append(value)
    wanted = found["--concurrency"][-1:]
    if any(not (text.isascii() and text.isdecimal() and int(text) >= 1) for text in wanted):
        return None
    concurrency = int(wanted[0]) if wanted else None
    return WorkerOptions(concurrency, tuple(found["--tenant"]), tuple(found["--type"]))


def work(options: WorkerOptions) -> None:
    """Run jobs until told to stop."""
    import anyio

    from jobforge_mcp.db.installation import open_installation, scheduler_database
    from jobforge_mcp.definitions.composition import COMPOSITION_TYPE
    from jobforge_mcp.definitions.features import fires_triggers
    from jobforge_mcp.definitions.installed import load_registry
    from jobforge_mcp.errors import InvalidInputError
    from jobforge_mcp.evidence.stores import open_store
    from jobforge_mcp.purging import Purger
    from jobforge_mcp.router.evidence import ArtifactRouter
    from jobforge_mcp.router.maintenance import MaintenanceRouter
    from jobforge_mcp.types import TenantId
    from jobforge_mcp.worker.main import run_worker

    settings = load_settings(worker_concurrency=options.concurrency)
    configure_logging(settings.log_level, settings.log_format)
    # No handler and no child process may find it.
    clear_token_from_environment()
    registry = load_registry(settings)
    patterns = options.types or ("*",)

    def announce(pool: WorkerPool) -> None:
        if not set(pool.job_types) - {COMPOSITION_TYPE}:
            raise InvalidInputError(
                f"no job is named like {', '.join(patterns)}", hint="jobforge jobs lists them"
            )
        say(f"worker {pool.worker_id}: {len(pool.job_types)} job types, ready")

    async def maintain(database: Database, listener: Listener) -> None:
        router = MaintenanceRouter(database)
        async with (
            scheduler_database(installation, database) as schedules,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(Purger(router, ArtifactRouter(database), open_store(settings)).run)
            if fires_triggers(settings):
                from jobforge_mcp.maintenance import Maintenance

                keeper = MaintenanceRouter(schedules)
                maintenance = Maintenance(keeper, registry, most_depth=settings.event_depth_most)
                tasks.start_soon(maintenance.run, listener)

    with open_installation(settings, on_progress=say) as installation:

        async def until_told(settings: Settings) -> None:
            await run_worker(
                settings,
                registry,
                url=installation.worker_url,
                tenant_ids=[TenantId(name) for name in options.tenants] or None,
                type_patterns=patterns,
                on_started=announce,
                beside=maintain,
            )

        run_on_loop(until_told, settings)


def run_on_loop(work: Callable[[Settings], Awaitable[None]], settings: Settings) -> None:
    """Run to the end on uvloop where there is one."""
    import anyio

    options = {"use_uvloop": True} if sys.platform != "win32" else {}
    anyio.run(work, settings, backend_options=options)
