"""login: applications that call the functions by plain SQL, as far as a token of the same scopes would let them."""

from __future__ import annotations

from collections.abc import Generator
from typing import LiteralString
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from tests.cli.conftest import Runner
from tests.postgres import ScratchDatabase
from tests.test_docs import run_script

ENQUEUE: LiteralString = (
    "select job_id from jobforge.enqueue_job(%s, 'demo.echo', p_project_id => %s)"
)


@pytest.fixture
def name(admin: psycopg.Connection) -> Generator[str]:
    """Name a login of this test's own: the server's databases share their roles."""
    name = f"app_{uuid4().hex[:12]}"
    yield name
    admin.execute(sql.SQL("drop role if exists {}").format(sql.Identifier(name)))


def create(installed: Runner, name: str, *options: str) -> None:
    assert installed("login", "create", name, "--tenant", "acme", *options).code == 0


def is_refused(connection: psycopg.Connection, query: LiteralString, *arguments: object) -> str:
    with pytest.raises(psycopg.Error) as caught:
        connection.execute(query, arguments)
    return caught.value.sqlstate or ""


@pytest.mark.requirement("sql.tenant-login")
@pytest.mark.parametrize("is_signing", [False, True])
def test_a_login_acts_for_its_tenant_and_for_no_other(
    installed: Runner, name: str, database: ScratchDatabase, is_signing: bool
) -> None:
    if is_signing:
        installed("context-key", "create")
        installed("context-key", "enforce")
    create(installed, name, "--scope", "jobs:execute")

    with database.connect(name) as connection:
        row = connection.execute(ENQUEUE, ["acme", None]).fetchone()
        seen = connection.execute("select job_id, created_by from jobforge.list_runs('acme')")
        assert row is not None
        assert seen.fetchall() == [(row[0], f"login:{name}")]
        assert is_refused(connection, ENQUEUE, "globex", None) == "JF403"
        entered = "select jobforge.list_runs(jobforge.enter_scope('globex'))"
        assert is_refused(connection, entered) == "JF403"
        with connection.transaction():
            for setting in ("tenant_id", "actor", "claims"):
                connection.execute(
                    "select set_config('jobforge.' || %s, 'globex', true)", [setting]
                )
            connection.execute(ENQUEUE, ["acme", None])
        authors = connection.execute("select distinct created_by from jobforge.list_runs('acme')")
        assert authors.fetchall() == [(f"login:{name}",)]
        with connection.transaction(force_rollback=True):
            connection.execute("select set_config('jobforge.tenant_id', 'globex', true)")
            assert is_refused(connection, "select jobforge.list_runs('globex')") == "JF403"


@pytest.mark.requirement("sql.tenant-login")
def test_a_login_may_do_what_its_scopes_say(
    installed: Runner, name: str, database: ScratchDatabase
) -> None:
    create(installed, name, "--scope", "jobs:read")

    with database.connect(name) as connection:
        assert connection.execute("select * from jobforge.queue_stats('acme')").fetchall() == []
        for query in (
            "select jobforge.enqueue_job('acme', 'demo.echo')",
            "select jobforge.enqueue_jobs('acme', '{demo.echo}', '{\"{}\"}')",
            "select jobforge.cancel_job('acme', gen_random_uuid())",
            "select jobforge.retry_job('acme', gen_random_uuid())",
            "select jobforge.claim_jobs('w', '{demo.echo}', 1)",
            "select jobforge.enter_trusted_scope('acme', '', '', '')",
            "select from jobforge.jobs",
            "select from jobforge.ready",
            "select from jobforge.tenant_logins",
            "set role jobforge_api",
        ):
            assert is_refused(connection, query) == "42501", query


@pytest.mark.requirement("sql.tenant-login")
def test_a_login_of_one_project_sees_and_makes_runs_there_alone(
    installed: Runner, name: str, database: ScratchDatabase, admin: psycopg.Connection
) -> None:
    scopes = ("--scope", "jobs:execute", "--scope", "jobs:cancel", "--scope", "jobs:retry")
    create(installed, name, "--project", "p1", *scopes)
    admin.execute("select jobforge.enter_scope('acme')")
    with admin.transaction():
        admin.execute("select jobforge.enter_scope('acme')")
        other = admin.execute(ENQUEUE, ["acme", "p2"]).fetchone()
    assert other is not None

    with database.connect(name) as connection:
        mine = connection.execute(ENQUEUE, ["acme", "p1"]).fetchone()
        assert mine is not None
        for project in (None, "p2"):
            assert is_refused(connection, ENQUEUE, "acme", project) == "JF403"
        listed = connection.execute("select job_id from jobforge.list_runs('acme')")
        assert listed.fetchall() == [mine]
        asked = connection.execute(
            "select job_id from jobforge.get_runs('acme', %s)", [[*mine, *other]]
        )
        assert asked.fetchall() == [mine]
        filtered = connection.execute(
            "select from jobforge.list_runs('acme', p_project_ids => '{p2}')"
        )
        assert filtered.fetchall() == []
        for function in (
            "get_run",
            "get_payload",
            "list_attempts",
            "list_logs",
            "explain_run",
            "cancel_job",
            "retry_job",
        ):
            call = sql.SQL("select * from jobforge.{}('acme', %s)").format(sql.Identifier(function))
            with pytest.raises(psycopg.Error, match="is known"):
                connection.execute(call, [*other])
        assert is_refused(connection, "select jobforge.queue_stats('acme')") == "JF403"
        connection.execute("select jobforge.cancel_job('acme', %s)", [*mine])


def test_a_login_of_another_database_is_nobody_here(
    installed: Runner, name: str, database: ScratchDatabase, admin: psycopg.Connection
) -> None:
    create(installed, name, "--scope", "jobs:execute")
    admin.execute("delete from jobforge.tenant_logins")

    with database.connect(name) as connection, connection.transaction():
        connection.execute("select set_config('jobforge.tenant_id', 'acme', true)")
        assert is_refused(connection, ENQUEUE, "acme", None) == "JF403"


def test_logins_are_listed_and_removed(
    installed: Runner, name: str, admin: psycopg.Connection
) -> None:
    made = installed("login", "create", name, "--tenant", "acme", "--scope", "jobs:execute")
    assert made.out.count("\n") == 1

    assert installed("login", "create", name, "--tenant", "b", "--scope", "jobs:read").code == 1
    assert installed("login", "list", "--json").document == [
        {"login": name, "tenant": "acme", "projects": None, "scopes": ["jobs:read", "jobs:execute"]}
    ]
    assert made.out.strip() not in installed("login", "list").out
    assert installed("login", "remove", name).code == 0
    assert installed("login", "list", "--json").document == []
    assert admin.execute("select from pg_roles where rolname = %s", [name]).fetchone() is None
    assert installed("login", "remove", name).code == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("jobforge_x", "--tenant", "acme", "--scope", "jobs:read"),
        ("x y", "--tenant", "acme", "--scope", "jobs:read"),
        ("app", "--tenant", "a b", "--scope", "jobs:read"),
        ("app", "--tenant", "acme", "--project", "a b", "--scope", "jobs:read"),
        ("app", "--tenant", "acme", "--scope", "ops:read"),
        ("app", "--tenant", "acme"),
    ],
)
def test_a_login_that_would_make_no_sense_is_refused(
    installed: Runner, arguments: tuple[str, ...]
) -> None:
    assert installed("login", "create", *arguments).code == 1
    assert installed("login", "list", "--json").document == []


@pytest.mark.requirement("audit.denials")
def test_what_a_login_is_refused_is_counted_although_its_transaction_is_rolled_back(
    installed: Runner, name: str, database: ScratchDatabase, admin: psycopg.Connection
) -> None:
    create(installed, name, "--scope", "jobs:execute", "--project", "p1")
    with database.connect(name) as connection:
        for project in (None, "p2", "p3"):
            assert is_refused(connection, ENQUEUE, "acme", project) == "JF403"
        assert is_refused(connection, ENQUEUE, "globex", "p1") == "JF403"
        connection.execute(ENQUEUE, ["acme", "p1"])
        connection.execute("select jobforge.record_denial('acme', 'own-check', 'TOO_LATE')")

    with database.connect("jobforge_worker") as worker:
        worker.execute("select jobforge.tend_lanes()")
        worker.execute("select jobforge.tend_lanes()")

    rows = admin.execute(
        "select action, actor, tool, detail from jobforge.audit_log where outcome = 'refused' order by id"
    ).fetchall()
    assert rows == [
        ("own-check", f"login:{name}", "sql", {"reason": "TOO_LATE"}),
        ("refusals", f"login:{name}", "sql", {"reason": "REFUSED", "count": 4}),
    ]
    assert installed("login", "remove", name).code == 0
    (left,) = admin.execute(
        "select count(*) from pg_class where relname like 'refusals%'"
    ).fetchone() or (None,)
    assert left == 0


@pytest.mark.requirement("sql.tenant-login")
@pytest.mark.parametrize("is_signing", [False, True])
def test_what_the_docs_show_works_for_a_bound_login_too(
    installed: Runner,
    name: str,
    database: ScratchDatabase,
    admin: psycopg.Connection,
    is_signing: bool,
) -> None:
    if is_signing:
        installed("context-key", "create")
        installed("context-key", "enforce")
    create(installed, name, "--scope", "jobs:execute", "--scope", "jobs:read")
    admin.execute("create table public.orders (id bigint primary key)")
    admin.execute(sql.SQL("grant insert on public.orders to {}").format(sql.Identifier(name)))
    admin.execute(
        """insert into jobforge.jobs (tenant_id, id, job_type, job_version, payload, priority, max_attempts, timeout_ms,
        backoff_ms, max_backoff_ms, backoff_multiplier, run_at, created_at)
        values ('globex', gen_random_uuid(), 'a.b', '1', '{}', 2, 3, 1000, 0, 0, 1, now(), now())"""
    )

    with database.connect(name) as connection:
        ((made,),) = run_script(connection, "enqueue.sql")
        looked = run_script(connection, "look.sql")
        explained = run_script(connection, "explain.sql")
        results = connection.execute("select count(*) from jobforge.job_results").fetchone()
        with connection.transaction(force_rollback=True):
            connection.execute("select jobforge.enter_scope('globex')")
            tenants = connection.execute("select distinct tenant_id from jobforge.runs").fetchall()
    admin.execute("drop table public.orders")  # whose right would keep the role

    assert [row[0] for row in looked[1]] == [made[0]]
    assert explained[1][0][0] == "no_worker"
    assert results == (0,)
    assert tenants == [("acme",)]


def test_a_login_that_is_confined_to_projects_reads_no_view(
    installed: Runner, name: str, database: ScratchDatabase
) -> None:
    create(installed, name, "--scope", "jobs:read", "--project", "p1")

    with database.connect(name) as connection:
        assert is_refused(connection, "select from jobforge.runs") == "42501"
