"""``ops.database.scan``: what it finds in a database that was hurt on purpose, and that it finds nothing grave in a new one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from jobforge_mcp.types import RunStatus
from tests.jobs.conftest import Runner, result_of
from tests.worker.conftest import Desk


def found(scan: dict[str, Any]) -> dict[str, str]:
    return {finding["id"]: finding["severity"] for finding in scan["findings"]}


@pytest.mark.requirement("jobs.scan")
async def test_a_new_database_has_no_grave_finding(run: Runner) -> None:
    scanned = await run("ops.database.scan")

    scan = result_of(scanned)
    grave = {id for id, severity in found(scan).items() if severity in {"critical", "high"}}
    # The test server runs without fsync, because nothing on it outlives the tests.
    assert grave <= {"settings.fsync", "settings.full_page_writes", "settings.synchronous_commit"}
    assert scan["work"]["workers"] == 1
    assert scan["work"]["running"] == 1
    assert scan["cost"]["databaseBytes"] > 1_000_000
    assert len(scan["cost"]["biggestTables"]) == 10
    assert sum(scan["counts"].values()) == len(scan["findings"])


@pytest.mark.requirement("jobs.scan")
async def test_a_database_that_only_its_logins_may_connect_to_is_scanned(
    run: Runner, admin: psycopg.Connection
) -> None:
    # As the embedded server is made: the owner of the scanning functions cannot log in, and may not connect either.
    admin.execute(
        """do $$ begin
          execute format('revoke connect, temporary on database %I from public', current_database());
        end $$"""
    )

    scanned = await run("ops.database.scan")

    assert result_of(scanned)["cost"]["databaseBytes"] > 1_000_000


HURTS = {
    "rls.jobforge.jobs": ("alter table jobforge.jobs no force row level security", "critical"),
    "rls.jobforge.leases": ("alter table jobforge.leases disable row level security", "critical"),
    "rights.public_can_execute.jobforge.get_run(text,uuid)": (
        "grant execute on function jobforge.get_run to public",
        "high",
    ),
    "rights.login_has_table_rights.jobforge.jobs": (
        "grant select on jobforge.jobs to jobforge_worker",
        "high",
    ),
    "rights.unsafe_search_path.jobforge.loose()": (
        (
            "create function jobforge.loose() returns int language sql security definer as 'select 1';"
            " revoke execute on function jobforge.loose() from public"
        ),
        "high",
    ),
    "rights.public_can_create.public": ("grant create on schema public to public", "medium"),
    "constraint.public.child.child_parent_fkey": (
        (
            "create table public.parent (id int primary key);"
            " create table public.child (parent int references public.parent)"
        ),
        "low",
    ),
}


@pytest.mark.requirement("jobs.scan")
@pytest.mark.parametrize("finding", list(HURTS))
async def test_a_hurt_is_found_with_its_severity(
    finding: str, admin: psycopg.Connection, run: Runner
) -> None:
    hurt, severity = HURTS[finding]
    admin.execute(hurt.encode())

    scan = result_of(await run("ops.database.scan", areas=["security", "health"]))

    assert found(scan).get(finding) == severity, found(scan)
    (told,) = [one for one in scan["findings"] if one["id"] == finding]
    assert told["advice"]
    assert told["detail"]


@pytest.mark.requirement("jobs.scan")
async def test_an_invalid_index_is_found(admin: psycopg.Connection, run: Runner) -> None:
    admin.execute("create table public.twice as select 1 as n from generate_series(1, 2)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        admin.execute("create unique index concurrently twice_n on public.twice (n)")

    scan = result_of(await run("ops.database.scan", areas=["health"]))

    assert found(scan)["index.public.twice_n.invalid"] == "high"


@pytest.mark.requirement("jobs.scan")
async def test_runs_that_nobody_can_run_are_found(
    run: Runner, desk: Desk, admin: psycopg.Connection
) -> None:
    admin.execute("select jobforge.enter_scope('globex')")
    admin.execute(
        "select s.tenant_id, e.status from jobforge.enter_scope('globex') s(tenant_id),"
        " lateral jobforge.enqueue_job(s.tenant_id, 'unknown.type', '{}') e"
    )

    scan = result_of(await run("ops.database.scan", minSeverity="high"))

    assert found(scan)["work.no_worker.unknown.type"] == "high"
    assert "globex" not in str(scan)
    assert scan["work"]["due"] == 1


async def test_a_scan_reads_and_completes_in_one_attempt(run: Runner, desk: Desk) -> None:
    scanned = await run("ops.database.scan", areas=["cost"])

    assert (scanned.status, scanned.attempt_no) == (RunStatus.SUCCEEDED, 1)
    assert {finding["area"] for finding in result_of(scanned)["findings"]} <= {"cost"}


@pytest.mark.requirement("jobs.scan")
def test_scan_functions_are_for_workers_alone(
    rollback: Callable[[str], psycopg.Connection],
) -> None:
    connection = rollback("jobforge_api")

    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("select * from jobforge.scan_work()")
