"""What the long form does once while everything goes on: a rolling restart, a migration, a failover."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import anyio

from jobforge_mcp import resources
from jobforge_mcp.db.migrate import migrate
from soak.clock import speed_up
from soak.crew import Crew
from soak.history import History
from soak.nemesis import Act
from soak.proxy import Proxy
from soak.server import Server

RUNS_IN_STEP = 200
"""Runs that end while every commit waits for the standby, before it has to take over."""
_NEXT_MIGRATION = """\
set local role jobforge_owner;
alter table jobforge.jobs add column next_release text;
create index jobs_of_next_release on jobforge.jobs (tenant_id, next_release) where next_release is not null;
"""


class Phases:
    """The three of them; each leaves what it was given in a state to go on with."""

    def __init__(
        self, server: Server, proxy: Proxy, crew: Crew, history: History, folder: Path
    ) -> None:
        """Act on these, with files in a folder of its own."""
        self._server = server
        self._proxy = proxy
        self._crew = crew
        self._history = history
        self._folder = folder

    @property
    def plan(self) -> Sequence[tuple[float, str, Act]]:
        """When each comes, as a share of the soak."""
        return (
            (0.25, "rolling restart", self.roll),
            (0.45, "migration", self.migrate),
            (0.65, "failover", self.fail_over),
        )

    async def roll(self) -> None:
        """Replace every process that runs jobs or serves, one after the other."""
        await self._crew.roll()

    async def migrate(self) -> None:
        """Bring the schema to a release that none of the processes knows, and replace every function under their hands."""
        release = self._folder / "next_release"
        shutil.copytree(resources.sql_folder(), release)
        (release / "migrations" / "9999_next_release.sql").write_text(_NEXT_MIGRATION)
        for path in [*(release / "functions").glob("*.sql"), *(release / "policies").glob("*.sql")]:
            path.write_text(path.read_text() + "\n-- the next release\n")
        # The new functions know nothing of the fast clock: schedules rest until they do.
        self._server.execute(
            "create table soak.resting as select tenant_id, name, next_fire_at from jobforge.triggers"
            " where next_fire_at is not null;"
            " update jobforge.triggers set next_fire_at = null where next_fire_at is not null"
        )
        self._server.execute(
            "update soak.resting r set next_fire_at = f.last + interval '1 minute' from (select tenant_id, trigger_name,"
            " max(scheduled_at) as last from jobforge.trigger_fires where kind = 'cron' group by 1, 2) f"
            " where f.tenant_id = r.tenant_id and f.trigger_name = r.name"
        )
        await anyio.to_thread.run_sync(lambda: migrate(self._server.url(), folder=release))
        speed_up(self._server)
        self._server.execute(
            "update jobforge.triggers t set next_fire_at = r.next_fire_at from soak.resting r"
            " where t.tenant_id = r.tenant_id and t.name = r.name"
        )

    async def fail_over(self) -> None:
        """Lose the server for good, with all that is on its disk, and go on with the standby."""
        self._server.start_standby()
        with anyio.fail_after(60):
            while not self._server.is_standby_in_step():  # noqa: ASYNC110 - the database tells nobody
                await anyio.sleep(0.1)
        await self._ends(RUNS_IN_STEP)
        began = anyio.current_time()
        self._server.fail_over()
        self._proxy.turn_to(self._server.port)
        self._history.note("was_out_of_reach", seconds=anyio.current_time() - began)

    async def _ends(self, count: int) -> None:
        """Wait until so many runs have ended from now on."""

        def ended() -> int:
            return int(self._server.fetch("select count(*) as n from soak.ends")[0]["n"])

        wanted = ended() + count
        with anyio.fail_after(60):
            while ended() < wanted:  # noqa: ASYNC110 - the database tells nobody
                await anyio.sleep(0.1)
