"""Who keeps schedules may have a login of its own, which can do nothing else."""

from __future__ import annotations

import psycopg
import pytest

from jobforge_mcp.db.installation import open_installation, scheduler_database
from jobforge_mcp.db.pool import Database
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.maintenance import Maintenance
from jobforge_mcp.router.maintenance import MaintenanceRouter
from jobforge_mcp.settings import load_settings
from jobforge_mcp.triggers.desk import EventDesk
from jobforge_mcp.types import Caller
from tests.postgres import ScratchDatabase
from tests.triggers.conftest import new_event, on_event
from tests.triggers.test_maintenance import counts

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("has_login", [True, False])
async def test_triggers_are_fired_through_the_schedulers_login_where_it_has_one(
    has_login: bool,
    desk: EventDesk,
    registry: Registry,
    agent: Caller,
    database: ScratchDatabase,
    worker_database: Database,
    admin: psycopg.Connection,
) -> None:
    url = database.url("jobforge_scheduler") if has_login else None
    settings = load_settings(database_url=database.url("jobforge_api"), scheduler_database_url=url)
    await desk.register(agent, on_event())
    await desk.router.submit_event(agent, new_event(), None, most_depth=20)

    with open_installation(settings) as installation:
        async with scheduler_database(installation, worker_database) as schedules:
            who = await schedules.fetch("select current_user::text as name")
            await Maintenance(MaintenanceRouter(schedules), registry).run_once()

    assert who[0]["name"] == ("jobforge_scheduler" if has_login else "jobforge_worker")
    assert counts(admin) == (1, 0)
