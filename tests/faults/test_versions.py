"""Workers and schemas of different ages: each works with the other, or says which of them is too old before it does anything."""

from __future__ import annotations

import psycopg
import pytest

from jobforge_mcp.db.migrate import migrate
from jobforge_mcp.errors import SchemaError
from jobforge_mcp.types import RunStatus
from tests.postgres import ADMIN, ScratchDatabase
from tests.worker.conftest import Desk
from tests.worker.test_processes import Starter


@pytest.mark.requirement("faults.versions")
async def test_an_old_worker_goes_on_under_a_newer_schema(
    desk: Desk, start_worker: Starter, admin: psycopg.Connection, database: ScratchDatabase
) -> None:
    """What a newer schema may do while old workers live: add columns, tables, parameters with defaults, replace functions."""
    worker = start_worker()
    await desk.until_final(await desk.enqueue("echo", number=1))

    admin.execute("alter table jobforge.jobs add column of_the_future text not null default ''")
    admin.execute(
        """do $$ declare v_old text; begin
          select pg_get_functiondef(p.oid) into v_old from pg_proc p
          where p.pronamespace = 'jobforge'::regnamespace and p.proname = 'heartbeat';
          drop function jobforge.heartbeat;
          execute replace(v_old, 'p_lease_ms integer DEFAULT 30000)', 'p_lease_ms integer DEFAULT 30000, p_new text DEFAULT NULL)');
          grant execute on function jobforge.heartbeat to jobforge_worker;
          alter function jobforge.heartbeat owner to jobforge_sys;
        end $$"""
    )
    runs = [await desk.until_final(await desk.enqueue("echo", number=n)) for n in range(10)]
    # longer than its lease: the replaced function holds it
    held = await desk.until_final(await desk.enqueue("count", number=4_000))

    assert {run.status for run in runs} == {RunStatus.SUCCEEDED}
    assert (held.status, held.epoch) == (RunStatus.SUCCEEDED, 1)
    assert worker.poll() is None


@pytest.mark.requirement("faults.versions")
async def test_an_old_version_refuses_to_migrate_a_newer_schema_and_is_not_ready_on_it(
    admin: psycopg.Connection, database: ScratchDatabase
) -> None:
    admin.execute(
        """insert into jobforge.schema_migrations
        select (jsonb_populate_record(m, '{"name": "migrations/9999_of_the_future.sql"}')).*
        from jobforge.schema_migrations m where m.name like '%0001%'"""
    )
    before = admin.execute("select count(*) from jobforge.schema_migrations").fetchone()

    with pytest.raises(SchemaError) as refused:
        migrate(database.url(ADMIN))
    with pytest.raises(SchemaError):
        migrate(database.url("jobforge_api"), check=True)

    assert "9999_of_the_future" in str(refused.value)
    assert admin.execute("select count(*) from jobforge.schema_migrations").fetchone() == before


@pytest.mark.requirement("faults.versions")
async def test_a_new_worker_under_an_old_schema_says_so_and_holds_no_job(
    desk: Desk, start_worker: Starter, admin: psycopg.Connection
) -> None:
    """An old schema lacks what a new worker calls: it keeps trying, claims nothing, and works once it is migrated."""
    admin.execute("alter function jobforge.claim_jobs rename to claim_jobs_of_the_future")
    job_id = await desk.enqueue("echo", number=1)
    worker = start_worker()
    assert worker.stderr is not None
    lines: list[bytes] = []
    for line in iter(worker.stderr.readline, b""):
        lines.append(line)
        if b"jobforge migrate" in line or b"does not fit" in line:
            break
    waiting = await desk.router.get_run(desk.caller, job_id)

    assert any(b"does not fit this version" in line or b"migrate" in line for line in lines), lines
    assert (waiting.status, waiting.epoch) == (RunStatus.QUEUED, 0)
    admin.execute("alter function jobforge.claim_jobs_of_the_future rename to claim_jobs")
    if worker.poll() is not None:
        start_worker()
    run = await desk.until_final(job_id)
    assert run.status is RunStatus.SUCCEEDED
