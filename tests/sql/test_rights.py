"""Who may do what, asked as the roles themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql

from tests.sql.acting import (
    API,
    ECHO,
    WORKER,
    Connection,
    Queue,
    call,
    enter,
    leave_artifact,
    leave_event,
    refused,
)

LOGINS = [API, WORKER, "jobforge_scheduler", "jobforge_readonly", "jobforge_auditor"]
TENANT_TABLES = [
    "artifact_manifests",
    "artifact_objects",
    "artifacts",
    "audit_log",
    "audit_seals",
    "claim_counters",
    "composition_steps",
    "connector_configs",
    "debounces",
    "denial_windows",
    "events",
    "idempotency_keys",
    "job_attempts",
    "job_definitions",
    "job_dependencies",
    "jobs",
    "lanes",
    "leases",
    "limit_usage",
    "limited_jobs",
    "limited_tenants",
    "ordering_keys",
    "pauses",
    "policy_tokens",
    "rate_limits",
    "ready",
    "registered_jobs",
    "run_logs",
    "run_progress",
    "running_limits",
    "tenants",
    "trigger_fires",
    "triggers",
    "waiting",
    "webhook_receipts",
]
TABLES = [
    *TENANT_TABLES,
    "context_keys",
    "installed_jobs",
    "listeners",
    "schema_migrations",
    "tenant_logins",
    "worker_environments",
    "workers",
]
Rollback = Callable[[str], psycopg.Connection]


@pytest.fixture
def filled(queue: Queue) -> Queue:
    """Two tenants with a row in every table."""
    for tenant in ("acme", "globex"):
        limits = '{"rps": 100, "max_running": 100, "budget_run_seconds": 100}'
        queue.look("select jobforge.set_limit(%s, 'tenant', null, %s)", tenant, limits)
        queue.enqueue(tenant, idempotency_key="k", ordering_key="o", backoff_ms=0)
        queue.enqueue(tenant, ordering_key="o")
        (claimed,) = queue.claim(1, tenant_ids=[tenant])
        queue.report(claimed, 1, logs='[["info", "x"]]')
        leave_artifact(queue, claimed, store="directory")
        queue.fail(claimed, manifest="{}")
        queue.claim(1, tenant_ids=[tenant])
        queue.enqueue(tenant)
        queue.ask("record_denial", tenant, "enqueue", "scope")
        queue.look(
            """insert into jobforge.policy_tokens (tenant_id, token_id, revoked_at, expires_at)
            values (%s, 't', jobforge.now(), jobforge.now())""",
            tenant,
        )
        queue.look(
            """insert into jobforge.job_definitions
            (tenant_id, job_type, job_version, definition, definition_hash, created_at)
            values (%s, %s, '1', '{}', '', jobforge.now())""",
            tenant,
            ECHO,
        )
        queue.look(
            """insert into jobforge.job_dependencies values (%s, gen_random_uuid(), gen_random_uuid(), 'cancel', false)""",
            tenant,
        )
        queue.look(
            """insert into jobforge.composition_steps
            select j.tenant_id, j.id, 'steps/a', gen_random_uuid(), jobforge.now() from jobforge.jobs j where j.tenant_id = %s limit 1""",
            tenant,
        )
        queue.look(
            """insert into jobforge.registered_jobs
            (tenant_id, job_type, name_key, latest_version, version_no, search_text, created_at, updated_at)
            values (%s, 'demo.registered', 'demo.registered', '1', 1, '', jobforge.now(), jobforge.now())""",
            tenant,
        )
        leave_event(queue, tenant, "x")
        hook = '{"url": "https://a.example/", "secrets": ["k"], "scope": "label"}'
        queue.look("select jobforge.set_completion_webhook(%s, 'erp', %s)", tenant, hook)
        heard = '{"scheme": "github", "secrets": ["k"]}'
        queue.look("select jobforge.set_incoming_webhook(%s, 'hub', %s)", tenant, heard)
        queue.ask("receive_webhook", tenant, "hub", "d1", "hub.push", "{}")
        queue.look(
            """insert into jobforge.audit_seals
            values (%s, 1, 1, 1, 0, 1, gen_random_uuid(), sha256(''), jobforge.now(), 'k', sha256('') || sha256(''))""",
            tenant,
        )
        queue.enqueue_many(1, tenant, claim_limits=['{"concurrency": {"limit": 1}}'])
        queue.claim(10, tenant_ids=[tenant])
        queue.enqueue(tenant)
        queue.enqueue_many(1, tenant, claim_limits=['{"debounce": {"windowMs": 1000}}'])
        queue.ask("pause_queue", tenant, "type", "other.type")
    return queue


def count(connection: Connection, table: str) -> int:
    query = sql.SQL("select count(*) from jobforge.{}").format(sql.Identifier(table))
    (number,) = connection.execute(query).fetchone() or (0,)
    return number


def test_the_lists_of_tables_are_whole(queue: Queue) -> None:
    rows = queue.look("select tablename from pg_tables where schemaname = 'jobforge' order by 1")

    assert [row.tablename for row in rows] == sorted(TABLES)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("login", LOGINS)
def test_a_login_may_do_nothing_with_a_table(queue: Queue, login: str, table: str) -> None:
    name = sql.SQL("jobforge.{}").format(sql.Identifier(table))

    for verb in ("select from", "delete from", "truncate", "lock table"):
        with refused("42501"), queue.acting(login) as connection:
            connection.execute(sql.SQL(verb) + sql.SQL(" ") + name)


@pytest.mark.requirement("sql.rights")
@pytest.mark.parametrize("table", TENANT_TABLES)
@pytest.mark.parametrize(("tenant", "rows"), [(None, 0), ("", 0), ("other", 0), ("acme", 1)])
def test_the_tenants_role_sees_the_rows_of_its_scope_alone(
    filled: Queue, table: str, tenant: str | None, rows: int
) -> None:
    whole = filled.look("select tenant_id from jobforge.jobs")
    assert {row.tenant_id for row in whole} == {"acme", "globex"}

    with filled.acting("super") as connection:
        connection.execute(sql.SQL("grant select on all tables in schema jobforge to jobforge_rpc"))
    with filled.acting("jobforge_rpc") as connection:
        if tenant is None:
            connection.execute("reset jobforge.tenant_id")
        else:
            connection.execute("select set_config('jobforge.tenant_id', %s, true)", [tenant])
        seen = count(connection, table)
    with filled.acting("super") as connection:
        everything = count(connection, table)

    assert (seen > 0) == bool(rows)
    assert everything >= 2 * seen
    assert everything >= 2


@pytest.mark.parametrize("table", [*TENANT_TABLES, "workers", "listeners", "installed_jobs"])
def test_the_owner_of_the_tables_sees_nothing(filled: Queue, table: str) -> None:
    with filled.acting("jobforge_owner") as connection:
        assert count(connection, table) == 0


@pytest.mark.parametrize("table", ["workers", "listeners", "installed_jobs"])
def test_the_tenants_role_sees_no_table_without_a_tenant(queue: Queue, table: str) -> None:
    with refused("42501"), queue.acting("jobforge_rpc") as connection:
        count(connection, table)


def test_the_tenants_role_writes_no_row_of_another_tenant(queue: Queue) -> None:
    with refused("42501"), queue.acting("jobforge_rpc") as connection:
        enter(connection, "acme")
        connection.execute(
            """insert into jobforge.ordering_keys (tenant_id, ordering_key, head_job_id, next_turn)
            values ('globex', 'k', gen_random_uuid(), 0)"""
        )


WORKER_CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("claim_jobs", ("w", [ECHO], 1)),
    ("complete_jobs", ([], [], [], [], [])),
    ("fail_jobs", ([], [], [], [], [], [], [], [])),
    ("release_jobs", ([], [], [], [])),
    ("heartbeat", ("w", [], [])),
    ("report_progress", ([], [], [], [], [], [], [], [])),
    ("reap_expired", (1,)),
    ("tend_lanes", ()),
    ("look_for_work", ("w", [], None, 1, 1, 1, True)),
    ("register_worker", ("w", "h", 1, "1", [], 1)),
    ("forget_worker", ("w",)),
    ("tell_installed_jobs", ([], [], [])),
]


@pytest.mark.parametrize(("function", "arguments"), WORKER_CALLS)
def test_the_api_may_not_do_what_workers_do(
    queue: Queue, function: str, arguments: tuple[object, ...]
) -> None:
    with refused("42501"), queue.acting(API) as connection:
        call(connection, function, *arguments)
    queue.work(function, *arguments)


CALLER_CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("enqueue_job", ("acme", ECHO)),
    ("enqueue_jobs", ("acme", [ECHO], ["{}"])),
    ("get_run", ("acme", uuid4())),
    ("get_runs", ("acme", [])),
    ("get_payload", ("acme", uuid4())),
    ("list_runs", ("acme",)),
    ("list_attempts", ("acme", uuid4())),
    ("list_logs", ("acme", uuid4())),
    ("queue_stats", ("acme",)),
    ("cancel_job", ("acme", uuid4())),
    ("retry_job", ("acme", uuid4())),
    ("explain_run", ("acme", uuid4())),
    ("revoke_token", ("acme", "t")),
    ("revoke_tenant_tokens", ("acme",)),
    ("check_token", ("acme", ["t"])),
    ("limits_left", ("acme",)),
    ("record_denial", ("acme", "enqueue", "scope")),
    ("list_audit", ("acme",)),
    ("enter_scope", ("acme",)),
]


@pytest.mark.parametrize(("function", "arguments"), CALLER_CALLS)
@pytest.mark.parametrize("login", [WORKER, "jobforge_scheduler", "jobforge_auditor"])
def test_only_the_api_does_what_callers_do(
    queue: Queue, login: str, function: str, arguments: tuple[object, ...]
) -> None:
    with refused("42501"), queue.acting(login) as connection:
        call(connection, function, *arguments)


@pytest.mark.parametrize(
    "function",
    [
        "touch_lanes",
        "wake",
        "record_audit",
        "promote_next",
        "join_ordering_keys",
        "claim_idempotency_keys",
        "lease_new_job",
        "lease_jobs",
        "leave_leases",
        "end_lease",
        "close_jobs",
        "take_suspects",
        "reap_leases",
        "reap_tenant",
        "small_runs",
        "new_id",
        "has_worker",
        "check_policy",
        "use_limit",
        "refuse_over_rate",
        "check_shape",
        "track_jobs",
        "take_limited",
        "has_room",
        "set_limit",
        "remove_limit",
        "list_limits",
        "set_incoming_webhook",
        "set_completion_webhook",
        "list_webhooks",
        "remove_webhook",
        "audit_era",
        "refuse_audit_change",
    ],
)
def test_no_login_may_call_what_functions_use_among_themselves(queue: Queue, function: str) -> None:
    rows = queue.look(
        """select r.rolname from pg_proc p cross join pg_roles r
        where p.pronamespace = 'jobforge'::regnamespace and p.proname = %s
          and r.rolname = any (%s) and has_function_privilege(r.oid, p.oid, 'execute')""",
        function,
        LOGINS,
    )

    assert rows == []


# --- the scope


TENANT_CALLS: list[tuple[str, tuple[object, ...]]] = [
    ("enqueue_job", (ECHO,)),
    ("enqueue_jobs", ([ECHO], ["{}"])),
    ("get_run", (uuid4(),)),
    ("get_runs", ([],)),
    ("get_payload", (uuid4(),)),
    ("list_runs", ()),
    ("list_attempts", (uuid4(),)),
    ("list_logs", (uuid4(),)),
    ("queue_stats", ()),
    ("cancel_job", (uuid4(),)),
    ("retry_job", (uuid4(),)),
    ("explain_run", (uuid4(),)),
    ("pause_queue", ("tenant",)),
    ("resume_queue", ("tenant",)),
    ("list_pauses", ()),
    ("cancel_runs", ()),
    ("retry_runs", ()),
    ("revoke_token", ("t",)),
    ("revoke_tenant_tokens", ()),
    ("check_token", (["t"],)),
    ("limits_left", ()),
    ("record_denial", ("enqueue", "scope")),
    ("list_audit", ()),
]


@pytest.mark.parametrize("scope", [None, "globex"])
@pytest.mark.parametrize(("function", "arguments"), TENANT_CALLS)
def test_a_function_refuses_a_tenant_that_is_not_the_scopes(
    queue: Queue, function: str, arguments: tuple[object, ...], scope: str | None
) -> None:
    with refused("JF403"), queue.acting(API) as connection:
        connection.execute("reset jobforge.tenant_id")
        if scope:
            enter(connection, scope)
        call(connection, function, "acme", *arguments)


@pytest.mark.parametrize(("function", "arguments"), TENANT_CALLS)
def test_a_function_refuses_no_tenant(
    queue: Queue, function: str, arguments: tuple[object, ...]
) -> None:
    with refused("JF403"), queue.acting(API) as connection:
        connection.execute("reset jobforge.tenant_id")
        call(connection, function, None, *arguments)


@pytest.mark.parametrize(
    "function", ["get_run", "get_payload", "cancel_job", "retry_job", "explain_run"]
)
def test_a_foreign_run_and_an_unknown_run_get_the_same_answer(queue: Queue, function: str) -> None:
    foreign = queue.enqueue("globex").job_id
    answers: list[str] = []
    for job_id in (foreign, uuid4()):
        with pytest.raises(psycopg.Error) as caught:
            queue.ask(function, "acme", job_id)
        diagnostics = caught.value.diag
        message = (diagnostics.message_primary or "").replace(str(job_id), "<id>")
        answers.append(f"{caught.value.sqlstate} {message} {diagnostics.message_hint}")

    assert answers[0] == answers[1]
    assert answers[0].startswith("JF404")
    assert queue.status(foreign, "globex") == "queued"


@pytest.mark.parametrize("function", ["list_attempts", "list_logs"])
def test_a_foreign_run_has_no_history(filled: Queue, function: str) -> None:
    (row,) = filled.look("select job_id from jobforge.run_logs where tenant_id = 'globex'")
    foreign: UUID = row.job_id

    assert filled.ask(function, "globex", foreign) != []
    assert filled.ask(function, "acme", foreign) == []


def test_the_scope_ends_with_its_transaction(queue: Queue) -> None:
    with queue.acting("super") as connection, connection.transaction(force_rollback=True):
        enter(connection, "acme")
    with queue.acting("super") as connection:
        row = connection.execute("select jobforge.current_tenant()").fetchone()

    assert row == (None,)


def test_a_worker_cannot_list_a_tenant_by_setting_it(queue: Queue) -> None:
    queue.enqueue()
    with refused("42501"), queue.acting(WORKER) as connection:
        connection.execute("select set_config('jobforge.tenant_id', 'acme', true)")
        connection.execute("select * from jobforge.runs")


# --- views


@pytest.mark.parametrize("view", ["runs", "job_results"])
def test_a_reader_sees_its_tenant_through_the_views_and_nothing_without_one(
    queue: Queue, view: str
) -> None:
    for tenant in ("acme", "globex"):
        queue.enqueue(tenant)
    queue.complete(*queue.claim(2))

    with queue.acting("jobforge_readonly") as connection:
        connection.execute("reset jobforge.tenant_id")
        without = count(connection, view)
        enter(connection, "acme")
        within = count(connection, view)

    assert (without, within) == (0, 1)


@pytest.mark.parametrize("view", ["runs", "job_results"])
def test_nobody_changes_a_view_and_only_readers_read_it(queue: Queue, view: str) -> None:
    rows = queue.look(
        """select r.rolname, p.name
        from pg_roles r cross join unnest(array['select', 'insert', 'update', 'delete']) p(name)
        where r.rolname = any (%s) and has_table_privilege(r.oid, %s::regclass, p.name)""",
        LOGINS,
        f"jobforge.{view}",
    )

    assert [(row.rolname, row.name) for row in rows] == [("jobforge_readonly", "select")]


def test_nobody_who_logs_in_can_become_another_or_make_anything(queue: Queue) -> None:
    for login in LOGINS:
        with refused("42501"), queue.acting(login) as connection:
            connection.execute("create table jobforge.mine (a int)")
        rows = queue.look(
            """select r.rolname from pg_roles r
            where r.rolname <> %s and pg_has_role(%s, r.oid, 'member')""",
            login,
            login,
        )
        assert rows == []
