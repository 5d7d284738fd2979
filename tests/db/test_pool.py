"""The pool: which roles it is, what it does when connections break, and what cancellation does not do."""

from __future__ import annotations

from contextlib import suppress

import anyio
import anyio.lowlevel
import psycopg
import pytest
from psycopg import sql

from jobforge_mcp.db.pool import Database, Row
from jobforge_mcp.errors import (
    DatabaseUnavailableError,
    JobForgeError,
    SchemaError,
    SettingsError,
)
from tests.postgres import ADMIN, ScratchDatabase


async def test_a_login_that_is_somebody_else_acts_as_the_role(database: ScratchDatabase) -> None:
    async with Database(database.url(), role="jobforge_api") as opened:
        rows = await opened.fetch("select current_user::text as role, session_user::text as login")

    assert rows == [{"role": "jobforge_api", "login": "jobforge_superuser"}]


@pytest.mark.parametrize("role", ["jobforge_superuser", "unbound"])
@pytest.mark.requirement("database.bound-roles")
async def test_a_role_that_row_level_security_does_not_bind_is_refused(
    database: ScratchDatabase, admin: psycopg.Connection, role: str
) -> None:
    if role == "unbound":
        admin.execute("create role unbound login bypassrls")
    try:
        with pytest.raises(SettingsError):
            async with Database(database.url(role), role=role):
                pass
    finally:
        admin.execute("drop role if exists unbound")


async def test_a_login_that_may_not_be_the_role_is_refused(database: ScratchDatabase) -> None:
    with pytest.raises(SettingsError):
        async with Database(database.url("jobforge_auditor"), role="jobforge_api"):
            pass


async def test_a_database_without_our_schema_is_refused(
    empty_database: ScratchDatabase, template: None
) -> None:
    with pytest.raises(SchemaError):
        async with Database(empty_database.url(), role="jobforge_api"):
            pass


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("postgresql:///x?host=/nowhere", DatabaseUnavailableError),
        ("postgresql://127.0.0.1:1/x", DatabaseUnavailableError),
        ("postgresql://[", SettingsError),
    ],
)
async def test_what_cannot_be_reached_is_told_from_what_is_malformed(
    url: str, error: type[JobForgeError]
) -> None:
    with pytest.raises(error):
        async with Database(url, role="jobforge_api"):
            pass


async def test_a_password_is_never_repeated(database: ScratchDatabase) -> None:
    url = database.url("no_such_role") + "&password=hunter2"

    with pytest.raises(SettingsError) as refused:
        async with Database(url, role="jobforge_api"):
            pass

    assert "hunter2" not in refused.value.message


async def test_times_are_read_in_utc_whatever_the_database_says(
    database: ScratchDatabase, admin: psycopg.Connection
) -> None:
    statement = sql.SQL("alter database {} set timezone to 'Asia/Tokyo'")
    admin.execute(statement.format(sql.Identifier(database.name)))

    async with Database(database.url(), role="jobforge_api") as opened:
        rows = await opened.fetch("select now() as now")

    assert rows[0]["now"].utcoffset().total_seconds() == 0


def terminate_all(admin: psycopg.Connection, application: str = "jobforge") -> int:
    rows = admin.execute(
        "select pg_terminate_backend(a.pid, 5000) from pg_stat_activity a"
        " where a.datname = current_database() and a.application_name = %s",
        [application],
    ).fetchall()
    return len(rows)


async def test_connections_that_died_idle_are_replaced_before_a_write_is_sent(
    api_database: Database, admin: psycopg.Connection
) -> None:
    await api_database.fetch("select 1")
    assert terminate_all(admin) == 1

    rows = await api_database.fetch("select 2 as answer")

    assert rows == [{"answer": 2}]


BREAK_ONCE = """
    select pg_terminate_backend(pg_backend_pid()) where nextval('jobforge_test.breaks') = 1"""


@pytest.mark.requirement("database.unknown-outcome")
async def test_a_connection_that_breaks_before_the_answer_is_an_unknown_outcome_for_a_write(
    api_database: Database, admin: psycopg.Connection
) -> None:
    admin.execute("create sequence jobforge_test.breaks")
    admin.execute("grant usage on sequence jobforge_test.breaks to public")

    with pytest.raises(DatabaseUnavailableError) as unknown:
        await api_database.fetch(BREAK_ONCE)

    assert (unknown.value.code, unknown.value.retryable) == ("OUTCOME_UNKNOWN", False)


@pytest.mark.requirement("database.unknown-outcome")
async def test_a_connection_that_breaks_before_the_answer_is_no_matter_for_what_may_be_repeated(
    api_database: Database, admin: psycopg.Connection
) -> None:
    admin.execute("create sequence jobforge_test.breaks")
    admin.execute("grant usage on sequence jobforge_test.breaks to public")

    assert await api_database.fetch(BREAK_ONCE, is_repeatable=True) == []
    assert admin.execute("select last_value from jobforge_test.breaks").fetchone() == (2,)


async def test_a_database_that_is_gone_is_unavailable_and_may_be_asked_again(
    database: ScratchDatabase, admin: psycopg.Connection
) -> None:
    refuse = sql.SQL("alter database {} connection limit 0").format(sql.Identifier(database.name))
    url = database.url("jobforge_api")
    async with Database(url, role="jobforge_api", acquire_timeout_seconds=1) as opened:
        await opened.fetch("select 1")
        admin.execute(refuse)
        terminate_all(admin)

        with pytest.raises(DatabaseUnavailableError) as gone:
            await opened.fetch("select 1")

    assert (gone.value.code, gone.value.retryable) == ("DATABASE_UNAVAILABLE", True)


async def test_a_pool_recovers_by_itself_when_the_database_is_back(
    database: ScratchDatabase, admin: psycopg.Connection
) -> None:
    limit = sql.SQL("alter database {} connection limit {}")
    name = sql.Identifier(database.name)
    url = database.url("jobforge_api")
    async with Database(url, role="jobforge_api", acquire_timeout_seconds=1) as opened:
        admin.execute(limit.format(name, sql.Literal(0)))
        terminate_all(admin)
        with pytest.raises(DatabaseUnavailableError):
            await opened.fetch("select 1")
        admin.execute(limit.format(name, sql.Literal(-1)))

        rows: list[Row] = []
        with anyio.fail_after(60):
            while not rows:
                with suppress(DatabaseUnavailableError):
                    rows = await opened.fetch("select 1 as one")

    assert rows == [{"one": 1}]


async def test_callers_beyond_the_pool_wait_in_turn_and_not_for_ever(
    database: ScratchDatabase,
) -> None:
    url = database.url("jobforge_api")
    async with Database(url, role="jobforge_api", max_size=1, acquire_timeout_seconds=1) as opened:
        async with opened.transaction():
            with pytest.raises(DatabaseUnavailableError):
                await opened.fetch("select 1")

        assert await opened.fetch("select 1 as one") == [{"one": 1}]


@pytest.mark.requirement("database.canceled-caller")
async def test_calls_one_after_another_go_over_the_same_connection(
    database: ScratchDatabase,
) -> None:
    async with Database(database.url(), role="jobforge_api", min_size=2, max_size=2) as opened:
        used = [await _backend(opened) for _ in range(6)]
        both: set[int] = set()

        async def use() -> None:
            async with opened.transaction() as transaction:
                rows = await transaction.fetch("select pg_backend_pid() as pid, pg_sleep(0.2)")
                both.add(rows[0]["pid"])

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(use)

    assert len(set(used)) == 1
    assert len(both) == 2, "who waits is given the connection of whoever is done"


async def test_a_canceled_caller_costs_no_connection(database: ScratchDatabase) -> None:
    async with Database(database.url("jobforge_api"), role="jobforge_api", max_size=1) as opened:
        for _ in range(5):
            with anyio.move_on_after(0.01):
                await opened.fetch("select pg_sleep(0.05)")

        with anyio.fail_after(60):
            assert await opened.fetch("select 1 as one") == [{"one": 1}]


@pytest.mark.requirement("database.canceled-caller")
async def test_a_statement_that_was_sent_is_carried_out_though_its_caller_is_canceled(
    api_database: Database, admin: psycopg.Connection
) -> None:
    admin.execute("create table jobforge_test.done (id int)")
    admin.execute("grant insert on jobforge_test.done to public")

    async def cancel_once_sent(scope: anyio.CancelScope) -> None:
        look = "select from pg_stat_activity where state = 'active' and query like 'with late%'"
        while not admin.execute(look).rowcount:  # noqa: ASYNC110  # nothing tells
            await anyio.sleep(0.001)
        scope.cancel()

    with anyio.CancelScope() as scope, anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel_once_sent, scope)
            await api_database.fetch(
                "with late as materialized (select pg_sleep(1))"
                " insert into jobforge_test.done select 1 from late"
            )
            await anyio.lowlevel.checkpoint()

    assert scope.cancelled_caught
    assert admin.execute("select count(*) from jobforge_test.done").fetchone() == (1,)


async def test_a_statement_out_of_time_is_ended_by_the_server(database: ScratchDatabase) -> None:
    url = database.url("jobforge_api")
    async with Database(url, role="jobforge_api", statement_timeout_seconds=1) as opened:
        with pytest.raises(psycopg.errors.QueryCanceled):
            await opened.fetch("select pg_sleep(30)")

        assert await opened.fetch("select 1 as one") == [{"one": 1}]


async def test_a_prepared_function_may_be_replaced_by_one_with_other_columns(
    api_database: Database, admin: psycopg.Connection
) -> None:
    body = "language sql as 'select 1, 2'"
    admin.execute(f"create function jobforge_test.f(out a int, out b int) {body}")
    for _ in range(3):
        await api_database.fetch("select f.* from jobforge_test.f() as f")
    admin.execute("drop function jobforge_test.f()")
    body = "language sql as 'select 1, 2, 3'"
    admin.execute(f"create function jobforge_test.f(out a int, out b int, out c int) {body}")

    rows = await api_database.fetch("select f.* from jobforge_test.f() as f")

    assert rows == [{"a": 1, "b": 2, "c": 3}]


async def test_a_deadlock_is_tried_again(api_database: Database, admin: psycopg.Connection) -> None:
    admin.execute(
        "create function jobforge_test.unlucky() returns bigint language plpgsql as $$"
        " begin if nextval('jobforge_test.tries') < 3 then raise exception 'x' using errcode = '40P01'; end if;"
        " return currval('jobforge_test.tries'); end $$"
    )
    admin.execute("create sequence jobforge_test.tries")
    admin.execute("grant usage on sequence jobforge_test.tries to public")

    rows = await api_database.fetch("select jobforge_test.unlucky() as tries")

    assert rows == [{"tries": 3}]


async def test_a_transaction_is_committed_whole_or_not_at_all(
    api_database: Database, admin: psycopg.Connection
) -> None:
    admin.execute("create table jobforge_test.done (id int)")
    admin.execute("grant all on jobforge_test.done to public")

    async with api_database.transaction() as transaction:
        await transaction.execute("insert into jobforge_test.done values (%s)", [1])
        await transaction.execute("insert into jobforge_test.done values (%s)", [2])
    with suppress(ZeroDivisionError):
        async with api_database.transaction() as transaction:
            await transaction.execute("insert into jobforge_test.done values (3)")
            raise ZeroDivisionError
    with anyio.move_on_after(0.05):
        async with api_database.transaction() as transaction:
            await transaction.execute("insert into jobforge_test.done values (4)")
            await anyio.sleep_forever()

    assert admin.execute(
        "select array_agg(d.id order by d.id) from jobforge_test.done d"
    ).fetchone() == ([1, 2],)


async def test_a_transaction_that_lost_its_connection_says_so_to_its_user(
    api_database: Database, admin: psycopg.Connection
) -> None:
    async def lose() -> None:
        async with api_database.transaction() as transaction:
            await transaction.fetch("select 1")
            terminate_all(admin)
            await transaction.fetch("select 1")

    with pytest.raises(DatabaseUnavailableError) as lost:
        await lose()

    assert lost.value.code == "DATABASE_UNAVAILABLE"


async def test_the_admin_of_an_embedded_server_can_stand_in_for_the_roles(
    database: ScratchDatabase,
) -> None:
    async with Database(database.url(ADMIN), role="jobforge_worker") as opened:
        assert await opened.fetch("select current_user::text as role") == [
            {"role": "jobforge_worker"}
        ]


async def _backend(opened: Database) -> int:
    rows = await opened.fetch("select pg_backend_pid() as pid")
    pid: int = rows[0]["pid"]
    return pid
