"""Rules that hold for everything in the schema, read from the catalogue: the next function cannot forget them."""

from __future__ import annotations

import re
from collections.abc import Callable
from inspect import getsource
from types import ModuleType

import pytest

from jobforge_mcp import resources
from jobforge_mcp.router import (
    audit,
    bulk,
    bundles,
    definitions,
    enqueueing,
    events,
    evidence,
    heartbeat,
    jobs,
    leases,
    maintenance,
    queues,
    scope,
    seals,
    steps,
    tokens,
    webhooks,
)
from tests.sql.acting import API, WORKER, Queue, Row

# What belongs to the installation and not to a tenant.
WITHOUT_TENANT = {
    "workers",
    "worker_environments",
    "listeners",
    "installed_jobs",
    "schema_migrations",
    "context_keys",
    "tenant_logins",
}
# What decides whom to believe; read by functions of the owner alone.
OF_THE_OWNER = {"context_keys", "tenant_logins"}
LOGINS = [API, WORKER, "jobforge_scheduler", "jobforge_readonly", "jobforge_auditor"]
# Facts about the installation, which are nobody's.
FREE_OF_TENANT = {
    "now",
    "current_tenant",
    "current_claims",
    "verified_scope",
    "is_context_signed",
    "enter_scope",
    "await_wakeup",
    "applied_files",
}
CORE_LANGUAGES = {"sql", "plpgsql"}
# Their module speaks for two roles: workers write what callers read.
OF_BOTH = {
    "announce_artifact",
    "record_artifact",
    "keep_environment",
    "purge_artifacts",
    "list_artifacts",
    "read_artifact",
    "get_manifest",
    "list_child_runs",
}


@pytest.fixture
def functions(queue: Queue) -> list[Row]:
    return queue.look(
        """select p.oid, p.proname as name, p.prosecdef as is_definer, p.proconfig as settings,
          p.prosrc as source, p.proleakproof as is_leakproof, l.lanname as language,
          r.rolname as owner, r.rolcanlogin as owner_logs_in, r.rolsuper as owner_is_superuser,
          r.rolbypassrls as owner_bypasses, obj_description(p.oid, 'pg_proc') as comment,
          coalesce(p.proargnames, '{}') as argument_names, p.proacl::text[] as rights,
          coalesce((select array_agg(g.rolname::text) from pg_roles g
            where g.rolname = any (%s) and has_function_privilege(g.oid, p.oid, 'execute')), '{}')
            as logins
        from pg_proc p join pg_language l on l.oid = p.prolang join pg_roles r on r.oid = p.proowner
        where p.pronamespace = 'jobforge'::regnamespace order by p.proname""",
        LOGINS,
    )


def names(rows: list[Row], is_wrong: Callable[[Row], object]) -> list[str]:
    return [row.name for row in rows if is_wrong(row)]


# --- functions


def test_every_function_says_in_a_sentence_what_it_does(functions: list[Row]) -> None:
    assert names(functions, lambda row: not (row.comment or "").endswith(".")) == []


def test_every_security_definer_has_its_search_path_pinned(functions: list[Row]) -> None:
    pinned = "search_path=jobforge, pg_temp"

    assert names(functions, lambda row: row.is_definer and pinned not in (row.settings or [])) == []


def test_no_login_calls_what_follows_its_own_search_path_but_what_is_qualified(
    functions: list[Row],
) -> None:
    """An operator of the caller's own would take part in it. These hold no name or operator without its schema."""
    qualified = {"now", "current_tenant", "current_claims"}

    def is_wrong(row: Row) -> bool:
        settings: list[str] = row.settings or []
        is_pinned = any(setting.startswith("search_path=") for setting in settings)
        return bool(row.logins) and not is_pinned and row.name not in qualified

    assert names(functions, is_wrong) == []


def test_what_logins_call_runs_as_a_role_that_cannot_log_in(functions: list[Row]) -> None:
    owners = {"jobforge_rpc", "jobforge_sys", "jobforge_owner"}
    assert {row.owner for row in functions} <= owners
    for flag in ("owner_logs_in", "owner_is_superuser", "owner_bypasses", "is_leakproof"):
        assert names(functions, lambda row, flag=flag: getattr(row, flag)) == []


def test_nothing_is_executable_by_everybody(functions: list[Row]) -> None:
    def is_public(row: Row) -> bool:
        return row.rights is None or any(right.startswith("=") for right in row.rights)

    assert names(functions, is_public) == []


def test_what_callers_call_takes_the_tenant_first(functions: list[Row]) -> None:
    def is_wrong(row: Row) -> bool:
        return (
            API in row.logins
            and row.name not in FREE_OF_TENANT
            and row.argument_names[:1] != ["p_tenant_id"]
        )

    assert names(functions, is_wrong) == []


def test_what_callers_call_asks_whether_the_tenant_is_the_scopes(functions: list[Row]) -> None:
    def is_wrong(row: Row) -> bool:
        return (
            API in row.logins
            and row.name not in FREE_OF_TENANT | {"enqueue_job"}  # that one only calls enqueue_jobs
            and "perform jobforge.require_tenant(p_tenant_id);" not in row.source
            and not asks_by_itself(row.source)
        )

    def asks_by_itself(source: str) -> bool:
        """Tell whether it asks for the tenant, and for the token in a statement that asks for more."""
        asks_scope = "v_claims := jobforge.require_claims(p_tenant_id);" in source or (
            "v_is_signed boolean := jobforge.is_signed_with(p_tenant_id," in source
            and "where v_is_signed\n" in source
        )
        asks_token = (
            "jobforge.revocations(p_tenant_id, v_claims)" in source
            or "jobforge.enqueue_any_jobs(p_tenant_id," in source  # which begins with it
        )
        return asks_scope and asks_token

    assert names(functions, is_wrong) == []


def test_no_function_builds_statements_from_text(functions: list[Row]) -> None:
    def is_dynamic(row: Row) -> bool:
        return re.search(r"\bexecute\s+(format|'|\(|[vp]_)", row.source, re.IGNORECASE) is not None

    assert names(functions, is_dynamic) == []


def test_functions_are_written_in_the_languages_of_every_postgres(functions: list[Row]) -> None:
    assert {row.language for row in functions} <= CORE_LANGUAGES


def test_no_extension_is_needed(queue: Queue) -> None:
    rows = queue.look("select extname from pg_extension")

    assert [row.extname for row in rows] == ["plpgsql"]


def test_time_is_read_in_one_place(functions: list[Row]) -> None:
    """Ids are made of the real time, and the server's sessions are measured against it."""
    clocks = re.compile(
        r"clock_timestamp|current_timestamp|localtime|transaction_timestamp|statement_timestamp"
        r"|(?<!jobforge\.)\bnow\(\)"
    )

    found = names(functions, lambda row: clocks.search(row.source))

    assert set(found) <= {"now", "new_id", "scan_sessions"}


def test_errors_raised_on_purpose_carry_a_code_of_ours(functions: list[Row]) -> None:
    for row in functions:
        for raised in re.findall(r"raise exception.*?;\n", row.source, re.DOTALL):
            assert re.search(r"errcode = '(JF\d{3}|40001)'", raised), f"{row.name}: {raised}"


def test_functions_have_no_overloads(functions: list[Row]) -> None:
    every = [row.name for row in functions]

    assert sorted(every) == sorted(set(every))


@pytest.mark.parametrize(
    ("role", "modules"),
    [
        (
            API,
            [
                definitions,
                bulk,
                events,
                enqueueing,
                jobs,
                queues,
                scope,
                audit,
                tokens,
                evidence,
                bundles,
                webhooks,
            ],
        ),
        ("jobforge_scheduler", [maintenance]),
        (WORKER, [maintenance, leases, heartbeat, evidence, steps]),
        ("jobforge_auditor", [seals]),
    ],
    ids=["api", "scheduler", "worker", "auditor"],
)
def test_the_router_calls_every_function_of_its_role_and_no_other(
    functions: list[Row], role: str, modules: list[ModuleType]
) -> None:
    sources = "".join(getsource(module) for module in modules)
    called = set(re.findall(r"jobforge\.([a-z_]+)\(", sources))
    granted = {row.name for row in functions if role in row.logins}
    # of applications in their transactions, of the migrator, and of jobs about the database itself
    of_others = {"now", "current_tenant", "current_claims", "enqueue_job", "applied_files"}
    of_others |= {"read_runs", "verified_scope", "is_context_signed"}

    assert {name for name in granted - of_others if not name.startswith("scan_")} <= called
    assert called - OF_BOTH <= granted


# --- tables and views


@pytest.fixture
def relations(queue: Queue) -> list[Row]:
    return queue.look(
        """select c.oid, c.relname as name, c.relkind as kind, c.relrowsecurity as is_enabled,
          c.relforcerowsecurity as is_forced, r.rolname as owner, r.rolsuper as is_superuser,
          obj_description(c.oid, 'pg_class') as comment
        from pg_class c join pg_roles r on r.oid = c.relowner
        where c.relnamespace = 'jobforge'::regnamespace and c.relkind in ('r', 'v', 'm', 'p', 'S')"""
    )


def test_every_table_and_view_says_what_it_holds(relations: list[Row]) -> None:
    assert names(relations, lambda row: not row.comment) == []


def test_row_level_security_is_enabled_and_forced_on_every_table(relations: list[Row]) -> None:
    assert names(relations, lambda row: row.kind == "r" and not row.is_enabled) == []
    assert names(relations, lambda row: row.kind == "r" and not row.is_forced) == []


def test_no_relation_belongs_to_a_superuser(relations: list[Row]) -> None:
    assert names(relations, lambda row: row.is_superuser) == []


def test_views_belong_to_the_role_that_sees_one_tenant(relations: list[Row]) -> None:
    assert {row.owner for row in relations if row.kind == "v"} == {"jobforge_rpc"}


def test_there_are_no_materialized_views_and_no_sequences(relations: list[Row]) -> None:
    assert {row.kind for row in relations} == {"r", "v"}


def test_no_login_and_not_everybody_has_a_right_on_a_table(queue: Queue) -> None:
    rows = queue.look(
        """select c.relname, a.grantee::regrole::text as grantee
        from pg_class c cross join lateral aclexplode(c.relacl) a
        left join pg_roles r on r.oid = a.grantee
        where c.relnamespace = 'jobforge'::regnamespace and c.relkind = 'r'
          and (a.grantee = 0 or r.rolname = any (%s))""",
        LOGINS,
    )

    assert rows == []


def test_a_policy_admits_the_scopes_tenant_and_is_read_once_a_statement(queue: Queue) -> None:
    rows = queue.look(
        """select tablename, policyname, roles::text[] as roles, qual, with_check from pg_policies
        where schemaname = 'jobforge' and policyname <> 'schema_migrations_owner'"""
    )

    admits = re.compile(
        r"\(tenant_id = \( SELECT jobforge\.current_tenant\(\) AS current_tenant\)\)"
    )
    for row in rows:
        if row.roles == ["jobforge_rpc"]:
            assert admits.fullmatch(row.qual), row
            assert row.with_check == row.qual, row
        else:
            keepers = ["jobforge_owner"] if row.tablename in OF_THE_OWNER else ["jobforge_sys"]
            assert (row.roles, row.qual, row.with_check) == (keepers, "true", "true")


def test_the_tenant_leads_every_key_index_and_reference(queue: Queue) -> None:
    rows = queue.look(
        """select t.relname as relation, i.relname as name, a.attname as first
        from pg_index x join pg_class i on i.oid = x.indexrelid join pg_class t on t.oid = x.indrelid
        join pg_attribute a on a.attrelid = t.oid and a.attnum = x.indkey[0]
        where t.relnamespace = 'jobforge'::regnamespace
        union all
        select t.relname, c.conname, a.attname
        from pg_constraint c join pg_class t on t.oid = c.conrelid
        join pg_attribute a on a.attrelid = t.oid and a.attnum = c.conkey[1]
        where c.contype = 'f' and t.relnamespace = 'jobforge'::regnamespace"""
    )

    wrong = [row for row in rows if row.first != "tenant_id"]
    assert {row.relation for row in wrong} == WITHOUT_TENANT


def test_every_index_names_the_function_that_needs_it(queue: Queue) -> None:
    rows = queue.look(
        """select i.relname as name, obj_description(i.oid, 'pg_class') as comment
        from pg_index x join pg_class i on i.oid = x.indexrelid
        where i.relnamespace = 'jobforge'::regnamespace and not x.indisprimary"""
    )

    assert rows != []
    assert names(rows, lambda row: not row.comment) == []


def test_every_constraint_has_a_name_that_was_chosen(queue: Queue) -> None:
    rows = queue.look(
        """select c.conname as name from pg_constraint c join pg_class t on t.oid = c.conrelid
        where t.relnamespace = 'jobforge'::regnamespace and c.contype = 'c'"""
    )

    assert names(rows, lambda row: re.search(r"_check\d*$", row.name)) == []


def test_no_index_of_jobs_holds_a_column_that_a_settle_changes(queue: Queue) -> None:
    rows = queue.look(
        """select distinct a.attname::text as name
        from pg_index x join pg_attribute a on a.attrelid = x.indrelid and a.attnum = any (x.indkey)
        where x.indrelid = 'jobforge.jobs'::regclass"""
    )

    settled = {"final_status", "attempt_no", "epoch", "worker_id", "started_at", "finished_at"}
    settled |= {"result", "error", "run_at"}
    assert {row.name for row in rows} & settled == set()


def test_columns_whose_name_is_not_the_whole_truth_are_explained(queue: Queue) -> None:
    rows = queue.look(
        """select c.relname || '.' || a.attname as name from pg_attribute a
        join pg_class c on c.oid = a.attrelid
        where c.relnamespace = 'jobforge'::regnamespace and a.attnum > 0
          and col_description(c.oid, a.attnum) is not null"""
    )

    explained = {row.name for row in rows}
    assert explained >= {
        "jobs.id",
        "jobs.payload",
        "jobs.priority",
        "jobs.run_at",
        "jobs.final_status",
        "jobs.attempt_no",
        "jobs.epoch",
        "ready.attempt_no",
        "ready.is_suspect",
        "leases.attempt_nos",
        "leases.deadlines",
        "leases.cancel_ids",
        "run_progress.changes",
        "run_progress.epoch",
        "idempotency_keys.input_hash",
        "lanes.is_found",
    }


# --- files


def test_every_file_begins_by_saying_what_it_is_for() -> None:
    for path in sorted(resources.sql_folder().rglob("*.sql")):
        assert path.read_text().startswith("-- "), path.name
