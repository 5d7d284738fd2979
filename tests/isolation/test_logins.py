"""Every function that a login bound to one tenant may call × every scope × projects × whatever it asks for.

Such a login speaks plain SQL, so nothing stands between it and the functions: it names any tenant, any id, and sets what a
scope is made of. The roles and their functions come from the catalogue, as in `test_functions`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest
from psycopg import sql

from jobforge_mcp.db.logins import ROLES
from tests.isolation.test_functions import (
    MALFORMED,
    OF_THE_INSTALLATION,
    Function,
    Target,
    functions_of,
    prepare_hashes,
    rows_of_others,
    told,
    without,
    without_new_ids,
)
from tests.isolation.world import TENANTS, Belongings, canary, settle_in
from tests.sql.acting import Queue

MEMBER = "jobforge_tenant"
VIEWS = "jobforge_tenant_views"
DENIED = "42501 permission denied for function"


@dataclass(frozen=True, slots=True)
class Login:
    """A login bound to a tenant, as ``jobforge login create`` makes it."""

    name: str
    tenant: str
    claims: dict[str, list[str]]
    roles: tuple[str, ...]

    def create(self, queue: Queue) -> None:
        """Make it, inside of the transaction that is rolled back."""
        with queue.acting("super") as connection:
            connection.execute(
                "insert into jobforge.tenant_logins (login_name, tenant_id, claims, created_at)"
                " values (%s, %s, %s::jsonb, jobforge.now())",
                [self.name, self.tenant, json.dumps(self.claims)],
            )
            name = sql.Identifier(self.name)
            connection.execute(sql.SQL("create role {} login").format(name))
            for role in (MEMBER, *self.roles):
                connection.execute(sql.SQL("grant {} to {}").format(sql.Identifier(role), name))


def logins(queue: Queue, tenant: str) -> Iterator[Login]:
    """Each scope alone and all of them, of all projects, one's own, and another."""
    kinds = {"every": scope_roles(queue), **{role: (role,) for role in scope_roles(queue)}}
    for number, (kind, roles) in enumerate(kinds.items()):
        for project in (None, canary(tenant), "elsewhere") if kind == "every" else (None,):
            suffix = "all" if project is None else project.replace("-", "_")
            claims = {} if project is None else {"projects": [project]}
            yield Login(f"app_{os.getpid()}_{tenant}_{number}_{suffix}", tenant, claims, roles)


def scope_roles(queue: Queue) -> tuple[str, ...]:
    """Every role that gives a bound login functions, which the product names ``jobforge_<noun>_<verb>``."""
    rows = queue.look(
        """select r.rolname::text as name from pg_roles r
        where not r.rolcanlogin and r.rolname ~ '^jobforge_[a-z]+_[a-z]+$' and r.rolname <> %s
        order by 1""",
        VIEWS,
    )
    return tuple(row.name for row in rows)


@pytest.fixture
def functions(queue: Queue) -> list[Function]:
    return functions_of(queue, [MEMBER, *scope_roles(queue)])


@pytest.fixture
def world(queue: Queue) -> dict[str, Belongings]:
    prepare_hashes(queue)
    return settle_in(queue)


def ask(
    queue: Queue,
    login: Login,
    function: Function,
    tenant: str,
    target: Target,
    forged: dict[str, str] | None = None,
) -> tuple[str, str]:
    """Call as this login, and take it back: what was told, and a hash of what belongs to others afterwards."""
    with queue.acting("super") as connection, connection.transaction(force_rollback=True):
        name = sql.Identifier(login.name)
        connection.execute(sql.SQL("set local session authorization {}").format(name))
        for setting, value in (forged or {}).items():
            connection.execute("select set_config(%s, %s, true)", [setting, value])
        answer = told(connection, function, function.arguments(tenant, target))
        connection.execute("reset session authorization")
        after = rows_of_others(queue, login.tenant)
    return without(answer, target), after


def is_asked(function: Function) -> bool:
    """Whether a function is of a tenant; ``enter_scope`` only says which, and of a bound login nobody listens."""
    return function.is_tenants and function.name not in OF_THE_INSTALLATION


def test_every_scope_of_a_login_has_a_role_and_every_role_a_scope(queue: Queue) -> None:
    assert sorted(ROLES.values()) == sorted(scope_roles(queue)), (
        "say in db/logins.py which scope the role is for, or revoke its functions"
    )


def test_no_bound_login_may_call_what_acts_for_all_tenants(functions: list[Function]) -> None:
    harmless = {
        "now", "current_tenant", "current_claims", "verified_scope", "is_context_signed", "enter_own_scope",
        "note_refusal",
    }  # fmt: skip
    found = {function.name for function in functions if not function.is_tenants} - harmless

    assert found == set(), "a login of one tenant may call functions that take no tenant"
    # it counts a refusal of the scope it is called in, and returns nothing
    assert harmless - {"note_refusal"} <= OF_THE_INSTALLATION.keys()


@pytest.mark.requirement("isolation.logins")
@pytest.mark.parametrize("tenant", TENANTS)
def test_a_bound_login_finds_of_others_what_it_finds_of_nobody(
    queue: Queue, functions: list[Function], world: dict[str, Belongings], tenant: str
) -> None:
    others = [world[name] for name in TENANTS if name != tenant]
    marks = [canary(owner.tenant) for owner in others] + [str(i) for o in others for i in o.runs]
    known = {str(job_id) for owner in world.values() for job_id in owner.runs}
    asked = [function for function in functions if is_asked(function)]
    foreign = [Target.of(other, job_id) for other in others for job_id in other.runs]
    own = [Target.of(world[tenant], job_id) for job_id in world[tenant].runs]
    malformed = [Target(text, text, text) for text in MALFORMED]
    answered: dict[str, bool] = {function.name: False for function in asked}
    failures: list[str] = []

    for login in logins(queue, tenant):
        login.create(queue)
        before = rows_of_others(queue, tenant)
        for function in asked:
            is_allowed = bool({MEMBER, *login.roles} & set(function.logins))
            unknown, _ = ask(queue, login, function, tenant, Target.unknown())
            unknown = without_new_ids(unknown, known)
            every = [*foreign, *own, *malformed]
            for target in every if is_allowed else [foreign[0], own[0], malformed[0]]:
                answer, after = ask(queue, login, function, tenant, target)
                place = f"{function.name} as {login} for {target.job_id!r}"
                is_read = target in malformed and answer.startswith("22P02")  # before rights are
                if is_allowed == answer.startswith(DENIED) and not (is_read and not is_allowed):
                    failures.append(f"{place}: may call it: {is_allowed}, and is told {answer!r}")
                if target in foreign and without_new_ids(answer, known) != unknown:
                    failures.append(f"{place}: told {answer!r}, and of an unknown one {unknown!r}")
                if any(mark in answer for mark in marks):
                    failures.append(f"{place}: learns of another tenant: {answer!r}")
                if after != before:
                    failures.append(f"{place}: changed rows of another tenant")
                answered[function.name] |= target in own and answer.startswith("[")

    assert failures == []
    assert [name for name, was in answered.items() if not was] == [], (
        "never answered: proves nothing"
    )


@pytest.mark.requirement("isolation.logins")
@pytest.mark.parametrize("tenant", TENANTS)
def test_a_bound_login_that_names_or_claims_another_tenant_is_refused_in_the_same_words(
    queue: Queue, functions: list[Function], world: dict[str, Belongings], tenant: str
) -> None:
    strangers = [name for name in (*TENANTS, "nobody", "", "a b") if name != tenant]
    failures: list[str] = []

    for login in logins(queue, tenant):
        login.create(queue)
        before = rows_of_others(queue, tenant)
        for function in functions:
            if not is_asked(function) or not {MEMBER, *login.roles} & set(function.logins):
                continue
            refusals = set[str]()
            for name in strangers:
                target = Target.of(world[name]) if name in world else Target.unknown()
                for forged in (None, {"jobforge.tenant_id": name, "jobforge.claims": "{}"}):
                    answer, after = ask(queue, login, function, name, target, forged)
                    refusals.add(answer)
                    if after != before:
                        failures.append(f"{function.name} as {login} on {name!r}: wrote")
            if len(refusals) != 1 or not all(text.startswith("JF403 ") for text in refusals):
                failures.append(f"{function.name} as {login}: {refusals}")

    assert failures == []


@pytest.mark.requirement("isolation.logins")
def test_a_bound_login_that_sets_what_a_scope_is_made_of_changes_nothing_by_it(
    queue: Queue, functions: list[Function], world: dict[str, Belongings]
) -> None:
    """The claims of its binding confine it, to projects or to job types, not those that it sets."""
    forgeries = [
        {"jobforge.claims": "{}"},
        {"jobforge.claims": '{"job_types": ["**"], "projects": ["canary-acme"]}'},
        {"jobforge.claims": "no json"},
        {"jobforge.actor": "root", "jobforge.token_id": "t", "jobforge.tool": "x"},
        {"jobforge.tenant_id": "globex", "jobforge.signature": "k.1.x"},
    ]
    confined = [
        Login(f"app_{os.getpid()}_{number}", "acme", claims, scope_roles(queue))
        for number, claims in enumerate(
            [{"projects": ["elsewhere"]}, {"job_types": ["other.*"]}, {"deny_types": ["demo.*"]}]
        )
    ]
    failures: list[str] = []

    for login in confined:
        login.create(queue)
        for function in functions:
            if not is_asked(function):
                continue
            for job_id in world["acme"].runs:
                target = Target.of(world["acme"], job_id)
                honest, _ = ask(queue, login, function, "acme", target)
                for forged in forgeries:
                    answer, _ = ask(queue, login, function, "acme", target, forged)
                    if answer != honest:
                        failures.append(
                            f"{function.name} as {login} with {forged}: {answer!r}, not {honest!r}"
                        )

    assert failures == []


@pytest.mark.requirement("isolation.logins")
@pytest.mark.parametrize("tenant", TENANTS)
def test_a_bound_login_that_may_read_views_sees_its_own_rows_whatever_it_sets(
    queue: Queue, world: dict[str, Belongings], tenant: str
) -> None:
    login = Login(f"app_{os.getpid()}_{tenant}_views", tenant, {}, (VIEWS,))
    login.create(queue)
    views = queue.look(
        "select c.relname as name from pg_class c where c.relnamespace = 'jobforge'::regnamespace"
        " and c.relkind in ('r', 'v', 'm') and has_table_privilege(%s, c.oid, 'select')",
        VIEWS,
    )
    seen: dict[tuple[str, str], set[str]] = {}

    for view in views:
        for forged in ("", *TENANTS, "nobody"):
            with queue.acting("super") as connection, connection.transaction(force_rollback=True):
                name = sql.Identifier(login.name)
                connection.execute(sql.SQL("set local session authorization {}").format(name))
                connection.execute("select set_config('jobforge.tenant_id', %s, true)", [forged])
                query = sql.SQL("select distinct tenant_id from jobforge.{}")
                rows = connection.execute(query.format(sql.Identifier(view.name))).fetchall()
                connection.execute("reset session authorization")
            seen[view.name, forged] = {row[0] for row in rows}

    assert world.keys() == set(TENANTS)
    assert seen != {}
    assert {place: rows for place, rows in seen.items() if rows != {tenant}} == {}


@pytest.mark.requirement("isolation.logins")
def test_a_bound_login_can_read_no_table_or_view(
    queue: Queue, world: dict[str, Belongings]
) -> None:
    (login, *_) = logins(queue, "acme")
    login.create(queue)
    relations = queue.look(
        "select c.relname as name from pg_class c where c.relnamespace = 'jobforge'::regnamespace"
        " and c.relkind in ('r', 'v', 'm', 'p', 'S', 'f')"
    )
    attempts = [
        sql.SQL("select * from jobforge.{}").format(sql.Identifier(row.name)) for row in relations
    ]
    told: dict[str, str | None] = {}

    for attempt in attempts:
        with queue.acting("super") as connection, connection.transaction(force_rollback=True):
            name = sql.Identifier(login.name)
            connection.execute(sql.SQL("set local session authorization {}").format(name))
            try:
                with connection.transaction():
                    connection.execute(attempt)
                told[attempt.as_string()] = None
            except psycopg.Error as error:
                told[attempt.as_string()] = error.sqlstate
            connection.execute("reset session authorization")

    assert len(relations) > 10
    assert {query: state for query, state in told.items() if state != "42501"} == {}
