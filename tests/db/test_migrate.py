"""The migrator: what it applies, what it refuses, and what is left when it fails. Acts on folders of its own."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from functools import partial
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from psycopg import sql

from jobforge_mcp import resources
from jobforge_mcp.db.migrate import MigrationReport, migrate, plan_sql
from jobforge_mcp.embedded.binaries import find_binaries
from jobforge_mcp.embedded.cluster import SUPERUSER
from jobforge_mcp.errors import DatabaseUnavailableError, SchemaError, SettingsError
from tests.postgres import ADMIN, DatabaseMaker, ScratchDatabase, choose_binaries

# Roles belong to the cluster: made by a superuser first, they would not be the ordinary owner's to act as.
pytestmark = pytest.mark.usefixtures("template")

FIRST = "migrations/0001_first.sql"
SECOND = "migrations/0002_second.sql"
GREET = "functions/10_greet.sql"
RIGHTS = "policies/rights.sql"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small ``sql/`` with one file of each kind."""
    write(tmp_path, FIRST, "create table jobforge.things (id int primary key);")
    write(
        tmp_path,
        GREET,
        "create or replace function jobforge.greet() returns text\nlanguage sql as $$ select 'hello' $$;",
    )
    write(tmp_path, RIGHTS, "revoke all on function jobforge.greet() from public;")
    return tmp_path


@pytest.fixture
def url(empty_database: ScratchDatabase) -> str:
    return empty_database.url(ADMIN)


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def recorded(database: ScratchDatabase) -> list[str]:
    with database.connect() as connection:
        rows = connection.execute(
            "select m.name from jobforge.schema_migrations m order by m.applied_at, m.name"
        )
        return [name for (name,) in rows]


def greeting(database: ScratchDatabase) -> str:
    with database.connect() as connection:
        row = connection.execute("select jobforge.greet()").fetchone()
    assert row is not None
    return row[0]


def wait_until(looking: psycopg.Connection, query: LiteralString) -> None:
    """Wait until a query has a row."""
    deadline = time.monotonic() + 60
    while not looking.execute(query).fetchone():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_everything_is_applied_in_order_and_then_nothing_is_pending(
    url: str, folder: Path, empty_database: ScratchDatabase
) -> None:
    first = migrate(url, folder=folder)
    second = migrate(url, folder=folder)

    assert first == MigrationReport((FIRST, GREET, RIGHTS), ())
    assert second == MigrationReport((), ())
    assert sorted(recorded(empty_database)) == sorted((FIRST, GREET, RIGHTS))


@pytest.mark.requirement("migrate.check")
def test_check_says_what_is_pending_and_writes_nothing(
    url: str, folder: Path, empty_database: ScratchDatabase
) -> None:
    report = migrate(url, check=True, folder=folder)

    assert report == MigrationReport((), (FIRST, GREET, RIGHTS))
    assert not report.is_current
    with empty_database.connect() as connection:
        assert connection.execute("select to_regnamespace('jobforge')").fetchone() == (None,)


@pytest.mark.parametrize("role", [ADMIN, SUPERUSER])
@pytest.mark.requirement("migrate.any-owner")
def test_the_real_schema_is_applied_by_a_superuser_and_by_an_ordinary_owner(
    empty_database: ScratchDatabase, role: str
) -> None:
    migrate(empty_database.url(role))

    assert migrate(empty_database.url(role), check=True).is_current


def test_who_migrates_next_need_not_be_who_migrated_first(
    empty_database: ScratchDatabase, databases: DatabaseMaker
) -> None:
    migrate(empty_database.url(SUPERUSER))
    databases.connection.execute(f"grant jobforge_owner, jobforge_rpc, jobforge_sys to {ADMIN}")

    assert migrate(empty_database.url(ADMIN)).is_current


def test_a_changed_function_is_applied_again_with_all_functions_and_policies(
    url: str, folder: Path, empty_database: ScratchDatabase
) -> None:
    migrate(url, folder=folder)
    write(folder, GREET, (folder / GREET).read_text().replace("hello", "good evening"))

    report = migrate(url, folder=folder)

    assert report.applied == (GREET, RIGHTS)
    assert greeting(empty_database) == "good evening"


def test_a_new_migration_applies_the_functions_again(url: str, folder: Path) -> None:
    migrate(url, folder=folder)
    write(folder, SECOND, "alter table jobforge.things add column name text;")

    assert migrate(url, folder=folder).applied == (SECOND, GREET, RIGHTS)


def test_a_removed_function_file_is_forgotten(
    url: str, folder: Path, empty_database: ScratchDatabase
) -> None:
    write(
        folder,
        "functions/20_old.sql",
        "create or replace function jobforge.old() returns int language sql as 'select 1';",
    )
    migrate(url, folder=folder)
    (folder / "functions/20_old.sql").unlink()
    write(folder, GREET, (folder / GREET).read_text() + "\n-- changed\n")

    migrate(url, folder=folder)

    assert sorted(recorded(empty_database)) == sorted((FIRST, GREET, RIGHTS))


def test_line_ends_of_the_checkout_do_not_count(url: str, folder: Path) -> None:
    write(folder, FIRST, "create table jobforge.things (\n  id int primary key);\n")
    migrate(url, folder=folder)
    (folder / FIRST).write_bytes((folder / FIRST).read_bytes().replace(b"\n", b"\r\n"))

    assert migrate(url, folder=folder).is_current


@pytest.mark.requirement("migrate.changed-file")
def test_a_changed_released_migration_is_refused_by_name(url: str, folder: Path) -> None:
    migrate(url, folder=folder)
    write(folder, FIRST, "create table jobforge.things (id bigint primary key);")

    with pytest.raises(SchemaError, match=FIRST):
        migrate(url, folder=folder)


@pytest.mark.requirement("migrate.newer-schema")
def test_a_schema_newer_than_this_version_is_refused(url: str, folder: Path) -> None:
    write(folder, SECOND, "select 1;")
    migrate(url, folder=folder)
    (folder / SECOND).unlink()

    with pytest.raises(SchemaError, match=SECOND):
        migrate(url, folder=folder)


def test_a_migration_slipped_in_below_the_newest_is_refused(url: str, folder: Path) -> None:
    write(folder, "migrations/0003_third.sql", "select 1;")
    migrate(url, folder=folder)
    write(folder, SECOND, "select 1;")

    with pytest.raises(SchemaError, match=SECOND):
        migrate(url, folder=folder)


@pytest.mark.parametrize("name", ["migrations/1_short.sql", "migrations/0001_again.sql"])
def test_a_misnamed_or_doubled_migration_is_refused(url: str, folder: Path, name: str) -> None:
    write(folder, name, "select 1;")

    with pytest.raises(SchemaError):
        migrate(url, folder=folder)


def test_a_folder_without_migrations_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(SchemaError):
        migrate(url, folder=tmp_path)


@pytest.mark.requirement("migrate.half-failed")
def test_a_failed_file_leaves_nothing_of_itself_and_says_where_it_failed(
    url: str, folder: Path, empty_database: ScratchDatabase
) -> None:
    write(folder, SECOND, "create table jobforge.half (id int);\n\nselect nonsense;\n")

    with pytest.raises(SchemaError, match=f"{SECOND} cannot be applied at line 3"):
        migrate(url, folder=folder)

    assert recorded(empty_database) == [FIRST]
    with empty_database.connect() as connection:
        assert connection.execute("select to_regclass('jobforge.half')").fetchone() == (None,)


def test_a_failed_first_migration_leaves_the_database_empty(
    url: str, folder: Path, empty_database: ScratchDatabase
) -> None:
    write(folder, FIRST, "create table jobforge.half (id int); select nonsense;")

    with pytest.raises(SchemaError):
        migrate(url, folder=folder)

    with empty_database.connect() as connection:
        assert connection.execute("select to_regnamespace('jobforge')").fetchone() == (None,)


def test_a_failed_function_file_leaves_the_old_functions(
    url: str, folder: Path, empty_database: ScratchDatabase
) -> None:
    migrate(url, folder=folder)
    write(folder, GREET, (folder / GREET).read_text().replace("hello", "good evening"))
    write(
        folder,
        "functions/20_broken.sql",
        "create function jobforge.broken() returns int language sql as 'select x';",
    )

    with pytest.raises(SchemaError, match=r"functions/20_broken\.sql"):
        migrate(url, folder=folder)

    assert greeting(empty_database) == "hello"


def test_a_file_can_ask_for_no_transaction(
    url: str, folder: Path, empty_database: ScratchDatabase
) -> None:
    write(
        folder,
        SECOND,
        "-- no transaction\ncreate index concurrently if not exists things_back on jobforge.things (id desc);\n",
    )

    report = migrate(url, folder=folder)

    assert report.applied == (FIRST, SECOND, GREET, RIGHTS)
    with empty_database.connect() as connection:
        valid = connection.execute(
            "select i.indisvalid from pg_index i where i.indexrelid = 'jobforge.things_back'::regclass"
        )
        assert valid.fetchone() == (True,)


@pytest.mark.requirement("migrate.two-at-once")
def test_two_migrators_at_once_apply_each_file_once(
    url: str, folder: Path, empty_database: ScratchDatabase
) -> None:
    write(folder, FIRST, "create table jobforge.things (id int primary key); select pg_sleep(0.3);")
    write(
        folder,
        SECOND,
        "-- no transaction\ncreate index concurrently things_back on jobforge.things (id desc);\n",
    )
    reports: list[MigrationReport] = []
    threads = [
        threading.Thread(target=lambda: reports.append(migrate(url, folder=folder)))
        for _ in range(3)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)

    applied = [name for report in reports for name in report.applied]
    assert len(reports) == 3
    assert sorted(applied) == sorted((FIRST, SECOND, GREET, RIGHTS))


@pytest.mark.parametrize("held", ["context_keys", "audit_log"])
def test_functions_are_replaced_under_a_caller_who_needs_two_tables_at_once(
    database: ScratchDatabase, tmp_path: Path, held: str
) -> None:
    """A caller that holds one and then asks for the other would wait for the migrator, and that for the caller."""
    folder = tmp_path / "sql"
    shutil.copytree(resources.sql_folder(), folder)
    write(folder, "functions/99_more.sql", "-- nothing yet\n")
    reports: list[MigrationReport] = []
    migrator = threading.Thread(
        target=lambda: reports.append(migrate(database.url(SUPERUSER), folder=folder))
    )
    with database.connect(autocommit=False) as caller, database.connect() as looking:
        caller.execute(f"lock table jobforge.{held} in access share mode".encode())
        migrator.start()
        wait_until(
            looking,
            "select true from pg_locks l join pg_stat_activity a using (pid)"
            " where a.application_name = 'jobforge migrate' and a.datname = current_database() and not l.granted",
        )

        caller.execute("select from jobforge.runs limit 1")  # would be ended by the deadlock
        caller.commit()
    migrator.join(120)

    assert [report.applied[-1].partition("/")[0] for report in reports] == ["policies"]


def test_callers_who_are_always_in_a_ring_with_the_migrator_give_way_in_the_end(
    database: ScratchDatabase, tmp_path: Path
) -> None:
    """Whenever it locks `leases`, somebody has `jobs` and will want `leases`: no number of tries helps while it is the one to go."""
    folder = tmp_path / "sql"
    shutil.copytree(resources.sql_folder(), folder)
    write(folder, "functions/99_more.sql", "-- nothing yet\n")
    is_over = threading.Event()
    met: list[str] = []

    def call() -> None:
        with database.connect() as caller:
            while not is_over.is_set():
                try:
                    with caller.transaction():
                        caller.execute("lock table jobforge.jobs in row exclusive mode")
                        time.sleep(0.2)
                        caller.execute("lock table jobforge.leases in row exclusive mode")
                except psycopg.errors.DeadlockDetected as error:
                    met.append(str(error))

    callers = [threading.Thread(target=call) for _ in range(6)]
    for caller in callers:
        caller.start()
        time.sleep(0.04)
    try:
        report = migrate(database.url(SUPERUSER), folder=folder)
    finally:
        is_over.set()
        for caller in callers:
            caller.join(60)

    assert report.applied[-1].startswith("policies/")
    assert met


def test_who_holds_a_table_all_the_time_is_told_of_and_nothing_is_half_done(
    database: ScratchDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobforge_mcp.db.migrate._TRIES", 2)
    folder = tmp_path / "sql"
    shutil.copytree(resources.sql_folder(), folder)
    write(
        folder,
        "functions/99_more.sql",
        "create function jobforge.more() returns void language sql as ''",
    )
    with database.connect(autocommit=False) as caller:
        caller.execute("lock table jobforge.leases in row exclusive mode")
        with pytest.raises(
            SchemaError, match=r"in the way of functions/00_scope\.sql .*lock timeout"
        ) as refused:
            migrate(database.url(SUPERUSER), folder=folder)
        caller.rollback()

    assert refused.value.retryable
    assert migrate(database.url(SUPERUSER), folder=folder, check=True).pending


def test_databases_of_one_cluster_can_be_migrated_at_once(databases: DatabaseMaker) -> None:
    made = [databases.create_empty() for _ in range(3)]
    reports: list[MigrationReport] = []
    threads = [
        threading.Thread(target=partial(_report_migration, one.url(ADMIN), reports)) for one in made
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for one in made:
        databases.drop(one)

    assert len(reports) == 3
    assert all(report.applied for report in reports)


@pytest.mark.parametrize("head", ["", "-- no transaction\n"])
def test_a_search_path_of_the_role_is_not_followed(
    url: str, folder: Path, empty_database: ScratchDatabase, head: str
) -> None:
    """Whoever may make objects where it leads could put a function of theirs before PostgreSQL's."""
    migrate(url, folder=folder)
    with empty_database.connect() as connection:
        connection.execute("create schema theirs; grant usage on schema theirs to public")
        connection.execute(
            "create function theirs.upper(text) returns text language sql as $$ select 'stolen' $$"
        )
        name = sql.Identifier(empty_database.name)
        path = sql.SQL("alter database {} set search_path to theirs, pg_catalog")
        connection.execute(path.format(name))
    write(folder, SECOND, f"{head}create table jobforge.shout as select upper('x') as word;")

    migrate(url, folder=folder)

    with empty_database.connect() as connection:
        assert connection.execute("select word from jobforge.shout").fetchone() == ("X",)


@pytest.mark.requirement("migrate.plan")
def test_the_plan_is_what_psql_can_run(empty_database: ScratchDatabase, tmp_path: Path) -> None:
    script = tmp_path / "plan.sql"
    script.write_text(plan_sql())
    # Some builds are servers alone; psql speaks to older ones than itself.
    folder = choose_binaries().folder
    psql = folder / "psql" if (folder / "psql").exists() else find_binaries({}) / "psql"

    said = subprocess.run(
        [
            psql,
            "--no-psqlrc",
            "--quiet",
            "-f",
            script,
            empty_database.url(ADMIN),
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (said.returncode, said.stderr) == (0, "")
    assert migrate(empty_database.url(ADMIN), check=True).is_current


def test_the_plan_for_a_database_holds_only_what_it_lacks(url: str, folder: Path) -> None:
    migrate(url, folder=folder)
    write(folder, SECOND, "alter table jobforge.things add column name text;")

    plan = plan_sql(url, folder=folder)

    assert f"-- {SECOND}" in plan
    assert f"-- {FIRST}" not in plan


def test_a_role_that_may_not_migrate_is_told_so(
    empty_database: ScratchDatabase, folder: Path, template: None
) -> None:
    with pytest.raises(SchemaError) as refused:
        migrate(empty_database.url("jobforge_api"), folder=folder)

    assert refused.value.hint is not None


def test_a_database_that_is_not_there_is_a_setting_and_a_server_that_is_down_is_not(
    empty_database: ScratchDatabase,
) -> None:
    with pytest.raises(SettingsError):
        migrate(empty_database.cluster.url(ADMIN, "no_such_database"))
    with pytest.raises(DatabaseUnavailableError):
        migrate("postgresql:///x?host=/nowhere")
    with pytest.raises(SettingsError):
        migrate("postgresql://[")


def test_the_record_is_as_closed_as_every_table(database: ScratchDatabase) -> None:
    with (
        database.connect("jobforge_api") as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("select from jobforge.schema_migrations")
    with database.connect() as connection:
        secured = connection.execute(
            "select c.relrowsecurity, c.relforcerowsecurity from pg_class c"
            " where c.oid = 'jobforge.schema_migrations'::regclass"
        )
        assert secured.fetchone() == (True, True)


def _report_migration(url: str, reports: list[MigrationReport]) -> None:
    reports.append(migrate(url))


def test_a_role_that_serves_may_see_whether_the_schema_is_current(
    database: ScratchDatabase,
) -> None:
    report = migrate(database.url("jobforge_api"), check=True)

    assert report == MigrationReport((), ())
