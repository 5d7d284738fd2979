"""doctor, migrate, install, node and the worker's process."""

from __future__ import annotations

import signal
import subprocess

import psycopg
import pytest

from jobforge_mcp.db.doctor import State, examine_role
from jobforge_mcp.embedded.cluster import SUPERUSER
from tests.cli.conftest import Runner
from tests.postgres import ScratchDatabase


def findings(installed: Runner) -> dict[str, str]:
    """State by check; the worst where a check speaks twice."""
    states: dict[str, str] = {}
    for finding in installed("doctor", "--json").document["findings"]:
        if states.get(finding["check"]) != "failed":
            states[finding["check"]] = finding["state"]
    return states


@pytest.mark.requirement("cli.doctor")
def test_the_doctor_proves_a_healthy_installation(
    installed: Runner, admin: psycopg.Connection
) -> None:
    ran = installed("doctor", "--json")

    states = {finding["check"]: finding["state"] for finding in ran.document["findings"]}
    # The server of the tests flushes nothing on purpose, and the doctor says so.
    assert states.pop("durability") == "failed"
    assert states.pop("scope signing") == "warning"
    assert set(states.values()) == {"ok"}
    for promise in ("own run", "another's run", "another's scope", "no scope", "tables"):
        assert states[f"tenants: {promise}"] == "ok"
    assert admin.execute("select count(*) from jobforge.jobs").fetchone() == (0,)


@pytest.mark.requirement("server.about")
def test_the_doctor_shows_features_limits_and_how_callers_are_told_apart(
    installed: Runner, environment: pytest.MonkeyPatch
) -> None:
    ran = installed("doctor", "--json")
    environment.setenv("JOBFORGE_HTTP_CONNECTOR_ENABLED", "true")
    environment.setenv("JOBFORGE_HTTP_ALLOW_PRIVATE", "true")
    environment.setenv("JOBFORGE_HOST", "0.0.0.0")  # noqa: S104  # asked about, not bound
    unsafe = findings(installed)

    said = {finding["check"]: finding["message"] for finding in ran.document["findings"]}
    assert "JOBFORGE_ACTION_JOBS_ENABLED=true" in said["features"]
    assert "events off: set JOBFORGE_EVENTS_ENABLED=true" in said["features"]
    assert "features: local" not in said
    assert "waitSecondsCap 45" in said["limits"]
    assert "mode bearer" in said["auth"]
    assert unsafe["auth"] == "failed"


@pytest.mark.requirement("cli.doctor")
def test_the_doctor_proves_the_schedulers_login_where_it_has_one(
    installed: Runner, environment: pytest.MonkeyPatch, database: ScratchDatabase
) -> None:
    without = findings(installed)
    environment.setenv("JOBFORGE_SCHEDULER_DATABASE_URL", database.url("jobforge_scheduler"))

    assert "role jobforge_scheduler" not in without
    assert findings(installed)["role jobforge_scheduler"] == "ok"


@pytest.mark.requirement("cli.doctor")
def test_the_doctor_finds_tenants_that_see_each_other(
    installed: Runner, admin: psycopg.Connection
) -> None:
    admin.execute("create or replace function jobforge.require_tenant(p_tenant_id text)"
                  " returns void language sql stable as 'select'")  # fmt: skip
    admin.execute("grant select on jobforge.jobs to jobforge_api")

    states = findings(installed)

    assert states["tenants: another's scope"] == "failed"
    assert states["tenants: no scope"] == "failed"
    assert states["tenants: tables"] == "failed"


@pytest.mark.requirement("cli.doctor")
def test_a_role_that_row_level_security_does_not_bind_fails(database: ScratchDatabase) -> None:
    found = examine_role(database.url(), SUPERUSER)

    assert [finding.state for finding in found] == [State.FAILED]


def test_the_doctor_names_a_schema_that_is_behind(
    installed: Runner, environment: pytest.MonkeyPatch, empty_database: ScratchDatabase
) -> None:
    environment.setenv("DATABASE_URL", empty_database.url("jobforge_api"))
    environment.setenv("JOBFORGE_WORKER_DATABASE_URL", empty_database.url("jobforge_worker"))
    environment.setenv("JOBFORGE_ADMIN_DATABASE_URL", empty_database.url("jobforge_admin"))

    ran = installed("doctor", "--json")

    states = {finding["check"]: finding["state"] for finding in ran.document["findings"]}
    assert ran.code == 3
    assert states["migrations"] == "failed"


def test_a_queue_that_nobody_serves_is_a_warning(
    installed: Runner, admin: psycopg.Connection
) -> None:
    installed("run", "demo.countdown", "--background", "--json")
    admin.execute("update jobforge.jobs set run_at = run_at - interval '5 minutes'")
    admin.execute("update jobforge.ready set run_at = run_at - interval '5 minutes'")

    assert findings(installed)["runs: queue"] == "warning"


@pytest.mark.requirement("cli.migrate")
def test_migrate_checks_applies_and_prints(
    jobforge: Runner, environment: pytest.MonkeyPatch, empty_database: ScratchDatabase
) -> None:
    environment.setenv("DATABASE_URL", empty_database.url("jobforge_admin"))

    before = jobforge("migrate", "--check", "--json")
    script = jobforge("migrate", "--sql")
    applied = jobforge("migrate", "--json")
    after = jobforge("migrate", "--check", "--json")

    assert (before.code, before.document["isCurrent"]) == (1, False)
    assert "create" in script.out
    assert applied.document["applied"] == before.document["pending"]
    assert (after.code, after.document["isCurrent"]) == (0, True)


def test_a_worker_that_is_told_to_stop_drains_and_ends_well(
    worker_process: subprocess.Popen[str],
) -> None:
    worker_process.send_signal(signal.SIGTERM)
    _, err = worker_process.communicate(timeout=60)

    assert worker_process.returncode == 0
    assert "worker_draining" in err


def test_a_worker_without_a_job_type_does_not_start(installed: Runner) -> None:
    ran = installed("worker", "--type", "nothing.*")

    assert ran.code == 1
    assert "no job is named like nothing.*" in ran.err


def test_the_node_is_looked_at_without_being_started(jobforge: Runner) -> None:
    ran = jobforge("node", "status", "--json")

    assert ran.code == 0
    assert ran.document["state"] == "stopped"
    assert ran.document["database"] == "stopped"
    assert jobforge("node", "stop", "--json").document == {"wasRunning": False}


def test_install_shows_what_it_would_write(jobforge: Runner) -> None:
    ran = jobforge("install", "cursor", "--print", "--json")

    assert ran.code == 0
    assert ran.document["outcome"] == "shown"
    assert "jobforge" in ran.document["snippet"]


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["token", "issue", "--help"]])
def test_help_is_printed(jobforge: Runner, arguments: list[str]) -> None:
    ran = jobforge(*arguments)

    assert ran.code == 0
    assert "Usage: jobforge" in ran.out


def test_the_version_is_printed(jobforge: Runner) -> None:
    ran = jobforge("--version")

    assert ran.code == 0
    assert ran.out.startswith("jobforge-mcp ")
