"""Every function a login may call × three tenants × ids of every kind × scopes: nothing of another tenant shows.

The functions come from the catalogue. One that is not described here, or a parameter of one, fails: whoever adds it says
what it is given and to whom it belongs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql

from tests.isolation.world import TENANTS, Belongings, canary, settle_in
from tests.sql.acting import ECHO, WORKER, Connection, Queue, Row

OF_THE_INSTALLATION = {
    "now": "a clock",
    "current_tenant": "says what the caller said",
    "current_claims": "says what the caller said",
    "enter_scope": "is the scope; every function below is called in each",
    "enter_own_scope": "reads the login of the session alone",
    "verified_scope": "is how a scope is believed",
    "is_context_signed": "a setting of the installation",
    "await_wakeup": "a listener of a process; hints are empty",
    "applied_files": "names of files",
    "register_worker": "a process of the installation",
    "forget_worker": "the same",
    "tell_installed_jobs": "what a process has installed",
    "claim_events": "maintenance works for all tenants",
    "due_triggers": "the same",
    "next_due_at": "the same: a time",
    "fire_due_triggers": "the same; each time is decided once, in the scope of its own tenant",
    "match_events": "the same, for events that it claimed",
    "process_event": "the same; an event is processed once, in the scope of its own tenant",
    "claim_jobs": "a worker works for all tenants, or for those that it names",
    "has_work": "a worker's question whether to claim",
    "reap_expired": "frees what lost workers held, of all tenants",
    "look_for_work": "says when something is due, and nothing else of it",
    "tend_lanes": "finds tenants whose waking was skipped",
    "scan_settings": "the database itself",
    "scan_database": "the database itself",
    "scan_tables": "the database itself",
    "scan_indexes": "the database itself",
    "scan_foreign_keys": "the database itself",
    "scan_sessions": "the database itself",
    "scan_rights": "the database itself",
    "scan_work": "counts; the job that calls it needs ops:read",
    "keep_environment": "a process of the installation",
    "purge_finished": "removes what each tenant kept long enough, of all tenants",
    "purge_events": "removes what expired, of all tenants",
    "purge_artifacts": "forgets what nothing needs, of all tenants, as reap_expired frees what lost workers held",
    "lock_sealing": "the auditor seals the logs of all tenants",
    "list_unsealed": "the same",
    "read_unsealed": "the same",
    "last_seal": "the same",
    "append_seal": "the same",
    "list_audit_tenants": "the auditor reads the logs of all tenants",
    "read_seals": "the same",
    "read_audit": "the same",
}
"""Functions that act for no tenant, or for all, with the reason."""

FENCED = {
    "heartbeat": "no row",
    "report_progress": "not accepted",
    "complete_jobs": "stale",
    "fail_jobs": "stale",
    "release_jobs": "stale",
    "enqueue_child": "JF410",
    "announce_artifact": "JF410",
    "record_artifact": "JF410",
    "read_runs": "JF410",
    "list_steps": "JF410",
    "list_step_definitions": "JF410",
    "enqueue_steps": "JF410",
    "submit_run_event": "JF410",
    "wait_for_steps": "stale",
}
"""A worker's functions about claims: they need the tenant, lease, run and epoch of a living one, all of the same claim."""

OWNERS = {"jobforge_owner", "jobforge_rpc", "jobforge_sys", "jobforge_admin", "jobforge_superuser"}
CONFINED = {
    "get_run", "get_runs", "get_payload", "list_runs", "list_attempts", "list_logs", "cancel_job",
    "retry_job", "explain_run", "list_artifacts", "read_artifact", "get_manifest", "list_child_runs",
}  # fmt: skip
"""What a caller confined to projects is told of its own tenant's other runs is what it is told of unknown ones."""

OF_DEFINITIONS = {
    "get_definition", "get_definitions", "list_guarded_definitions", "list_definition_versions", "approve_definition", "remove_definition",
}  # fmt: skip
"""Functions that are given the name of a job that a tenant registered."""

MALFORMED = ("not-a-uuid", "", "%", "00000000-0000-0000-0000-000000000000", "'; select 1 --")


@dataclass(frozen=True, slots=True)
class Target:
    """What a call asks for: something that is somebody's, nobody's, or nothing at all."""

    job_id: str
    lease_id: str
    words: str
    """Given wherever a name that tenants choose themselves is asked for."""
    epoch: int = 1

    @classmethod
    def of(cls, owner: Belongings, job_id: UUID | None = None) -> Target:
        mark = canary(owner.tenant)
        return cls(str(job_id or owner.running), str(owner.lease), mark, owner.epoch)

    @classmethod
    def unknown(cls) -> Target:
        return cls(str(uuid4()), str(uuid4()), "canary-nobody")


def values_of(target: Target) -> dict[str, object]:
    """What parameters are given, by name; what is missing here takes its default."""
    return {
        "p_job_id": target.job_id,
        "p_job_ids": [target.job_id],
        "p_parent_id": target.job_id,
        "p_child_ids": [target.job_id],
        "p_names": [ECHO],
        "p_lease_id": target.lease_id,
        "p_lease_ids": [target.lease_id],
        "p_epoch": target.epoch,
        "p_epochs": [target.epoch],
        "p_idempotency_key": target.words,
        "p_idempotency_keys": [target.words],
        "p_ordering_key": target.words,
        "p_ordering_keys": [target.words],
        "p_project_id": target.words,
        "p_project_ids": [target.words],
        "p_trace_id": target.words,
        "p_job_trace_id": target.words,
        "p_trace_ids": [target.words],
        "p_trigger_name": target.words,
        "p_webhook_name": target.words,
        "p_token_id": target.words,
        "p_token_ids": [target.words],
        "p_before_id": target.job_id,
        "p_job_type": ECHO,
        "p_job_types": [ECHO],
        "p_handlers": [ECHO],
        "p_payload": "{}",
        "p_payloads": ["{}"],
        "p_received": None,
        "p_worker_id": "w1",
        "p_lease_ms": 30_000,
        "p_priority": 2,
        "p_run_at": None,
        "p_labels": None,
        "p_job_version": "1",
        "p_max_attempts": 3,
        "p_backoff_ms": 1_000,
        "p_backoff_multiplier": 2,
        "p_max_backoff_ms": 60_000,
        "p_timeout_ms": 300_000,
        "p_dones": [1],
        "p_totals": [2],
        "p_messages": ["written by a stranger"],
        "p_logs": ['[["info", "written by a stranger"]]'],
        "p_results": ['"written by a stranger"'],
        "p_kinds": ["failed"],
        "p_errors": ['{"code": "STRANGER", "message": "x", "retryable": false}'],
        "p_tracebacks": [None],
        "p_delays_ms": [None],
        "p_manifests": ['{"metrics": {"cpuMs": 1}}'],
        "p_name": "report.md",
        "p_mime_type": "text/plain",
        "p_size": 5,
        "p_sha256": hashlib.sha256(b"hello").hexdigest(),
        "p_store": "directory",
        # of no scope of its own: the one that was entered
        "p_actor": None,
        "p_tool": None,
        "p_token_claims": None,
        "p_key_id": None,
        "p_signed_until": None,
        "p_mac": None,
    }


SPECIAL: dict[str, dict[str, object]] = {
    "submit_event": {"p_event_type": "order.paid"},
    "submit_run_event": {"p_event_type": "order.paid"},
    "receive_webhook": {"p_event_type": "order.paid", "p_delivery_id": "d1"},
    "match_triggers": {"p_event_type": "order.paid"},
    "register_trigger": {
        "p_kind": "event",
        "p_job_name": ECHO,
        "p_event_type": "order.paid",
        "p_dedupe_key": '{"$ref": "/event/payload/mark"}',
    },
    "list_triggers": {"p_job_name": ECHO},
    "list_trigger_fires": {"p_event_id": None},
    "run_trigger": {"p_fire": '{"version": 1, "payload": "{}"}'},
    # without these the call would be refused for another reason, and prove nothing
    "record_denial": {"p_action": "execute-job", "p_reason": "scope"},
    "list_audit": {"p_token_id": None},
    "limits_left": {"p_token_id": "t", "p_token_limits": '{"budget_jobs": 5}'},
    "enqueue_jobs": {"p_worker_id": None, "p_received": None, "p_parent_id": None},
    "cancel_runs": {"p_after_id": None},
    "retry_runs": {"p_after_id": None},
    "pause_queue": {"p_kind": "project"},
    "resume_queue": {"p_kind": "project"},
    "enqueue_child": {"p_received": "{}"},
    # planned, because the hash of a definition is an answer that follows from the question
    "register_definition": {
        "p_definition": '{"name": "made.up", "handler": "demo.echo"}',
        "p_lane_type": ECHO,
        "p_is_plan": True,
    },
    "enqueue_bundle": {
        "p_received": None,
        "p_priorities": None,
        "p_run_ats": None,
        "p_labels": None,
        "p_job_versions": None,
        "p_max_attempts": None,
        "p_backoff_ms": None,
        "p_backoff_multipliers": None,
        "p_max_backoff_ms": None,
        "p_timeout_ms": None,
        "p_dry_runs": None,
        "p_costs": None,
        "p_lane_types": None,
        "p_depends_on": ["[]"],
        "p_on_failures": ["cancel"],
    },
    "enqueue_steps": {
        "p_steps": ["steps/a"],
        "p_received": ["{}"],
        "p_priorities": [2],
        "p_job_versions": ["1"],
        "p_max_attempts": [1],
        "p_backoff_ms": [0],
        "p_backoff_multipliers": [1.0],
        "p_max_backoff_ms": [0],
        "p_timeout_ms": [1000],
        "p_costs": [None],
        "p_lane_types": [None],
    },
}


@dataclass(frozen=True, slots=True)
class Function:
    """One function of the catalogue, and the logins that may call it."""

    name: str
    parameters: tuple[tuple[str, str, bool], ...]
    """Name, type and whether it has a default."""
    logins: tuple[str, ...]

    @property
    def is_tenants(self) -> bool:
        return self.parameters[:1] != () and self.parameters[0][0] == "p_tenant_id"

    def undescribed(self) -> list[str]:
        """Name parameters that nobody described: all without a default, and with one those that name something."""
        known = {"p_tenant_id", "p_tenant_ids", *values_of(Target.unknown())}
        known |= SPECIAL.get(self.name, {}).keys()
        return [
            name
            for name, type_, has_default in self.parameters
            if name not in known and (not has_default or names_something(name, type_))
        ]

    def arguments(self, tenant: str, target: Target) -> dict[str, tuple[object, str]]:
        given = {**values_of(target), **SPECIAL.get(self.name, {})}
        if self.name in OF_DEFINITIONS:
            given |= {"p_job_type": target.words, "p_job_types": [target.words]}
        given |= {"p_tenant_id": tenant, "p_tenant_ids": [tenant]}
        return {
            name: (as_type(given[name], type_), type_)
            for name, type_, _ in self.parameters
            if name in given
        }


def names_something(name: str, type_: str) -> bool:
    """Whether a parameter could name what is another tenant's."""
    return type_.startswith("uuid") or name.endswith(("_id", "_ids", "_key", "_keys", "_name"))


def as_type(value: object, type_: str) -> object:
    is_one = type_.endswith("[]") and isinstance(value, (int, float, str))
    return [value] if is_one else value


@pytest.fixture
def functions(queue: Queue) -> list[Function]:
    rows = queue.look(
        """select r.rolname::text as name from pg_roles r
        where r.rolname like 'jobforge\\_%%' and r.rolname <> all (%s) and r.rolcanlogin""",
        list(OWNERS),
    )
    return functions_of(queue, [row.name for row in rows])


def functions_of(queue: Queue, roles: list[str]) -> list[Function]:
    """Read from the catalogue what any of these roles may call."""
    rows = queue.look(
        """select p.proname as name, p.pronargdefaults as defaults, p.pronargs as count,
          coalesce(p.proargnames, '{}') as names,
          array(select format_type(t.oid, null) from unnest(p.proargtypes) with ordinality t(oid, n)
            order by t.n) as types,
          array(select r.rolname::text from pg_roles r
            where r.rolname = any (%s) and has_function_privilege(r.oid, p.oid, 'execute')
            order by 1) as logins
        from pg_proc p where p.pronamespace = 'jobforge'::regnamespace order by p.proname""",
        roles,
    )
    return [function_of(row) for row in rows if row.logins]


def function_of(row: Row) -> Function:
    first_default = row.count - row.defaults
    names = row.names[: row.count]
    described = zip(names, row.types, (n >= first_default for n in range(row.count)), strict=True)
    return Function(row.name, tuple(described), tuple(row.logins))


# --- what a call tells, and what it does


def told(
    connection: Connection, function: Function, arguments: dict[str, tuple[object, str]]
) -> str:
    """Call a function and write down everything that comes back."""
    named = [
        sql.SQL("{} => {}::{}").format(sql.Identifier(name), sql.Placeholder(), sql.SQL(type_))  # pyright: ignore[reportArgumentType]  # a type's name from the catalogue
        for name, (_, type_) in arguments.items()
    ]
    query = sql.SQL("select * from jobforge.{}({})").format(
        sql.Identifier(function.name), sql.SQL(", ").join(named)
    )
    try:
        with connection.transaction():
            cursor = connection.execute(query, [value for value, _ in arguments.values()])
            return "\n".join(shown(row) for row in cursor.fetchall())
    except psycopg.Error as error:
        said = error.diag
        return (
            f"{error.sqlstate} {said.message_primary} / {said.message_detail} / {said.message_hint}"
        )


def shown(row: tuple[Any, ...]) -> str:
    """Write a row, without the moment of the call, which some tell in milliseconds."""
    return json.dumps(["a time" if is_time(value) else value for value in row], default=str)


def is_time(value: object) -> bool:
    return isinstance(value, datetime) or (isinstance(value, int) and value > 10**12)


def without(text: str, target: Target) -> str:
    """Take out of an answer what the question held."""
    for asked in (target.job_id, target.lease_id, target.words):
        text = text.replace(asked, "<asked>") if asked else text
    return text


def without_new_ids(text: str, known: set[str]) -> str:
    """Call ids that were made by the call alike."""
    words = text.split('"')
    return '"'.join("<new>" if is_id(word) and word not in known else word for word in words)


def is_id(word: str) -> bool:
    try:
        UUID(word)
    except ValueError:
        return False
    return True


def rows_of_others(queue: Queue, tenant: str | None) -> str:
    """One hash over every row of every table that belongs to another tenant."""
    return str(queue.look("select pg_temp.rows_of_others(%s) as hash", tenant)[0].hash)


def prepare_hashes(queue: Queue) -> None:
    """Make the function that `rows_of_others` asks, with a plan that lives as long as the session."""
    tables = queue.look(
        """select c.relname as name from pg_class c join pg_attribute a on a.attrelid = c.oid
        where c.relnamespace = 'jobforge'::regnamespace and c.relkind = 'r' and a.attname = 'tenant_id'
        order by 1"""
    )
    parts = [
        sql.SQL(
            "select hashtextextended(t::text, {}) as hash"
            " from jobforge.{} t where t.tenant_id is distinct from p_tenant_id"
        ).format(sql.Literal(number), sql.Identifier(table.name))
        for number, table in enumerate(tables)
    ]
    query = sql.SQL(
        "create function pg_temp.rows_of_others(p_tenant_id text) returns numeric language plpgsql"
        " as $$ begin return (select sum(h.hash::numeric) from ({}) h); end $$"
    ).format(sql.SQL(" union all ").join(parts))
    with queue.acting("super") as connection:
        connection.execute(query)


@pytest.fixture
def world(queue: Queue) -> dict[str, Belongings]:
    prepare_hashes(queue)
    return settle_in(queue)


@dataclass(frozen=True, slots=True)
class Scope:
    """As whom a login calls."""

    tenant: str | None
    project: str | None = None

    def enter(self, connection: Connection) -> None:
        if self.tenant is None:
            connection.execute("select set_config('jobforge.tenant_id', '', true)")
        else:
            claims = None if self.project is None else json.dumps({"projects": [self.project]})
            connection.execute(
                "select jobforge.enter_scope(%s, 'tester', null, null, null, %s)",
                [self.tenant, claims],
            )


def scopes() -> Iterator[Scope]:
    yield Scope(None)
    for tenant in TENANTS:
        yield Scope(tenant)
        yield Scope(tenant, canary(tenant))
        yield Scope(tenant, "elsewhere")


def ask(
    queue: Queue, login: str, scope: Scope, function: Function, tenant: str, target: Target
) -> tuple[str, str]:
    """Call, and take it back: what was told, and a hash of what belongs to others afterwards."""
    with queue.acting("super") as connection, connection.transaction(force_rollback=True):
        connection.execute(sql.SQL("set local role {}").format(sql.Identifier(login)))
        scope.enter(connection)
        answer = told(connection, function, function.arguments(tenant, target))
        connection.execute("set local role none")
        after = rows_of_others(queue, scope.tenant)
    return without(answer, target), after


def callers(functions: list[Function]) -> list[tuple[Function, str]]:
    """Functions of tenants, once for each login that may call them."""
    return [
        (function, login)
        for function in functions
        for login in function.logins
        if function.is_tenants and function.name not in OF_THE_INSTALLATION.keys() | FENCED.keys()
    ]


# --- the tests


def test_every_function_and_parameter_is_described(functions: list[Function]) -> None:
    nobodys = [
        function.name
        for function in functions
        if not function.is_tenants
        and function.name not in OF_THE_INSTALLATION.keys() | FENCED.keys()
    ]
    undescribed = {
        function.name: missing
        for function in functions
        if function.name not in OF_THE_INSTALLATION and (missing := function.undescribed())
    }

    assert nobodys == [], "say in OF_THE_INSTALLATION why it takes no tenant, or in FENCED"
    assert undescribed == {}, "say in values_of what these are given"


@pytest.mark.requirement("isolation.functions")
@pytest.mark.parametrize("tenant", TENANTS)
def test_what_is_foreign_answers_as_what_is_unknown_and_stays_as_it_is(
    queue: Queue, functions: list[Function], world: dict[str, Belongings], tenant: str
) -> None:
    others = [world[name] for name in TENANTS if name != tenant]
    before = rows_of_others(queue, tenant)
    marks = [canary(owner.tenant) for owner in others] + [str(i) for o in others for i in o.runs]
    known = {str(job_id) for owner in world.values() for job_id in owner.runs}
    failures: list[str] = []
    answered: dict[str, bool] = {}

    for scope in scopes():
        if scope.tenant != tenant:
            continue
        own, hidden = world[tenant].runs, scope.project == "elsewhere"
        for function, login in callers(functions):
            unknown, _ = ask(queue, login, scope, function, tenant, Target.unknown())
            unknown = without_new_ids(unknown, known)
            foreign = [Target.of(other, job_id) for other in others for job_id in other.runs]
            alike = [Target.of(world[tenant], job_id) for job_id in own] if hidden else []
            for target in [*foreign, *(alike if function.name in CONFINED else [])]:
                answer, after = ask(queue, login, scope, function, tenant, target)
                place = f"{function.name} as {login} in {scope} for {target.job_id}"
                if without_new_ids(answer, known) != unknown:
                    failures.append(f"{place}: told {answer!r}, and of an unknown one {unknown!r}")
                if after != before:
                    failures.append(f"{place}: changed rows of another tenant")
            for job_id in MALFORMED:
                target = Target(job_id, job_id, job_id)
                answer, after = ask(queue, login, scope, function, tenant, target)
                if any(mark in answer for mark in marks) or after != before:
                    failures.append(
                        f"{function.name} as {login} in {scope} for {job_id!r}: {answer!r}"
                    )
            for job_id in own:
                answer, after = ask(
                    queue, login, scope, function, tenant, Target.of(world[tenant], job_id)
                )
                is_answered = answer.startswith("[")
                answered[function.name] = answered.get(function.name, False) or is_answered
                if any(mark in answer for mark in marks) or after != before:
                    failures.append(
                        f"{function.name} as {login} in {scope} for its own: {answer!r}"
                    )

    assert failures == []
    assert [name for name, was in answered.items() if not was] == [], (
        "never answered: proves nothing"
    )


@pytest.mark.requirement("isolation.functions")
def test_a_tenant_that_is_not_the_scopes_is_refused_in_the_same_words_whoever_it_is(
    queue: Queue, functions: list[Function], world: dict[str, Belongings]
) -> None:
    failures: list[str] = []

    for scope in scopes():
        before = rows_of_others(queue, scope.tenant)
        strangers = [tenant for tenant in (*TENANTS, "nobody", "", "a b") if tenant != scope.tenant]
        for function, login in callers(functions):
            refusals = set[str]()
            for tenant in strangers:
                target = Target.of(world[tenant]) if tenant in world else Target.unknown()
                answer, after = ask(queue, login, scope, function, tenant, target)
                refusals.add(answer)
                if after != before:
                    failures.append(f"{function.name} as {login} in {scope} on {tenant!r}: wrote")
            if len(refusals) != 1 or not all(text.startswith("JF403 ") for text in refusals):
                failures.append(f"{function.name} as {login} in {scope}: {refusals}")

    assert failures == []


@pytest.mark.requirement("isolation.functions")
@pytest.mark.parametrize("tenant", TENANTS)
def test_a_claim_of_one_tenant_moves_nothing_of_another(
    queue: Queue, functions: list[Function], world: dict[str, Belongings], tenant: str
) -> None:
    own = world[tenant]
    nothing = rows_of_others(queue, None)
    failures: list[str] = []
    fenced = [function for function in functions if function.name in FENCED]
    as_worker = Scope(None)

    for function in fenced:
        unknown, _ = ask(queue, WORKER, as_worker, function, tenant, Target.unknown())
        mine, _ = ask(queue, WORKER, as_worker, function, tenant, Target.of(own, own.running))
        assert mine != unknown, (
            f"{function.name}: its own claim is not answered, so this proves nothing"
        )
        for other in (world[name] for name in TENANTS if name != tenant):
            mark = canary(other.tenant)
            attempts = [(tenant, other.lease, other.running)]
            if "p_job_id" in function_parameters(function):
                attempts += [(tenant, own.lease, other.running)]
            if "p_lease_id" in function_parameters(function):
                attempts += [
                    (tenant, other.lease, own.running),
                    (other.tenant, own.lease, own.running),
                ]
            for named, lease, job_id in attempts:
                target = Target(str(job_id), str(lease), mark, other.epoch)
                answer, after = ask(queue, WORKER, as_worker, function, named, target)
                if answer != unknown or after != nothing:
                    place = f"{function.name} for {named} with {lease} and {job_id}"
                    failures.append(f"{place}: {answer!r}, and for an unknown one {unknown!r}")

    assert {function.name for function in fenced} == FENCED.keys()
    assert failures == []


def function_parameters(function: Function) -> set[str]:
    return {name.removesuffix("s") for name, _, _ in function.parameters}


@pytest.mark.requirement("isolation.functions")
def test_a_worker_that_names_its_tenants_is_given_no_other_ones_jobs(
    queue: Queue, world: dict[str, Belongings]
) -> None:
    claimed = queue.claim(10, tenant_ids=["acme"])

    assert world.keys() > {"acme"}
    assert {row.tenant_id for row in claimed} == {"acme"}


@pytest.mark.requirement("isolation.functions")
def test_views_show_each_scope_its_own_rows_and_no_scope_none(
    queue: Queue, world: dict[str, Belongings]
) -> None:
    views = queue.look(
        """select c.relname as name, r.rolname::text as login from pg_class c cross join pg_roles r
        where c.relnamespace = 'jobforge'::regnamespace and r.rolname like 'jobforge\\_%%'
          and r.rolname <> all (%s) and r.rolcanlogin and has_table_privilege(r.oid, c.oid, 'select')""",
        list(OWNERS),
    )
    seen: dict[tuple[str, str, str | None], set[str]] = {}

    for view in views:
        for tenant in (None, *TENANTS):
            with queue.acting(view.login) as connection:
                Scope(tenant).enter(connection)
                query = sql.SQL("select distinct tenant_id from jobforge.{}")
                rows = connection.execute(query.format(sql.Identifier(view.name))).fetchall()
            seen[view.name, view.login, tenant] = {row[0] for row in rows}

    assert seen != {}
    assert world.keys() == set(TENANTS)
    assert {place: rows for place, rows in seen.items() if rows != ({place[2]} - {None})} == {}
