"""A scope that must be signed: what the server signed is believed, and nothing else is, whoever sets it."""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import uuid4

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from jobforge_mcp.db.context import ContextKey, ContextSigner
from tests.sql.acting import API, ECHO, WORKER, Connection, Queue, call, fences, refused

KEY = ContextKey("k1", bytes(range(32)))
OTHER = ContextKey("k2", bytes(32))
READONLY = "jobforge_readonly"
SIGNER = ContextSigner(KEY)
SAID = ("acme", "agent", "j1", "execute-job", "t1", '{"epoch":1}')
SETTINGS = ("tenant_id", "actor", "token_id", "tool", "trace_id", "claims")


def add_key(queue: Queue, key: ContextKey, slot: int = 1, *, is_enforced: bool = True) -> None:
    queue.look(
        """insert into jobforge.context_keys (key_id, slot, inner_pad, outer_pad, is_enforced, created_at)
        values (%s, %s, %s, %s, %s, jobforge.now())""",
        key.key_id,
        slot,
        *key.pads(),
        is_enforced,
    )


@pytest.fixture
def strict(queue: Queue) -> Queue:
    """A database that asks for signatures."""
    add_key(queue, KEY)
    return queue


def enter(connection: Connection, *said: str | None, signature: str | None = None) -> None:
    connection.execute(
        "select jobforge.enter_scope(%s, %s, %s, %s, %s, %s, %s)", [*said, signature]
    )


def sign(*said: str | None, signer: ContextSigner = SIGNER) -> str:
    tenant, *rest = said
    assert tenant is not None
    return signer.sign(tenant, *rest)


def list_runs(queue: Queue, signature: str | None, *said: str | None) -> object:
    with queue.acting(API) as connection:
        enter(connection, *(said or SAID), signature=signature)
        return call(connection, "list_runs", (said or SAID)[0])


@pytest.mark.requirement("sql.signed-scope")
def test_a_scope_that_was_signed_is_believed(strict: Queue) -> None:
    with strict.acting(API) as connection:
        enter(connection, *SAID, signature=sign(*SAID))
        (row,) = call(connection, "enqueue_job", "acme", ECHO)
        (seen,) = call(connection, "list_runs", "acme")
        claims = connection.execute("select jobforge.current_claims(), jobforge.current_tenant()")

        assert seen.job_id == row.job_id
        assert claims.fetchone() == ({"epoch": 1}, "acme")


@pytest.mark.requirement("sql.signed-scope")
@pytest.mark.parametrize(
    "signature",
    [
        None,
        "",
        "k1",
        "k1..",
        "k1.{soon}.",
        "k1.{soon}.{zeros}",
        "k1.-1.{zeros}",
        "k1.9999999999999.{zeros}",
        "\N{SNOWMAN}.1.1",
        "{unknown_key}",
        "{wrong_secret}",
    ],
)
def test_a_scope_without_a_good_signature_is_refused(strict: Queue, signature: str | None) -> None:
    parts = {
        "soon": int(time.time()) + 30,
        "zeros": "0" * 64,
        "unknown_key": ContextSigner(OTHER).sign(*SAID),
        "wrong_secret": ContextSigner(ContextKey("k1", bytes(32))).sign(*SAID),
    }
    with refused("JF403"):
        list_runs(strict, signature and signature.format(**parts))


@pytest.mark.requirement("sql.signed-scope")
@pytest.mark.parametrize("name", SETTINGS)
def test_nothing_of_a_signed_scope_can_be_changed(strict: Queue, name: str) -> None:
    with refused("JF403"), strict.acting(API) as connection:
        enter(connection, *SAID, signature=sign(*SAID))
        call(connection, "list_runs", "acme")
        changed = "globex" if name == "tenant_id" else '{"epoch":2}' if name == "claims" else "x"
        connection.execute("select set_config('jobforge.' || %s, %s, true)", [name, changed])
        call(connection, "list_runs", changed if name == "tenant_id" else "acme")


def test_letters_cannot_be_moved_from_one_part_to_the_next(strict: Queue) -> None:
    signature = sign("acme", "agent", "j1", "", "", "")
    for said in [("acm", "eagent", "j1", "", "", ""), ("acme", "agen", "tj1", "", "", "")]:
        with refused("JF403"):
            list_runs(strict, signature, *said)


@pytest.mark.parametrize(
    ("seconds", "is_good"), [(0, True), (29, True), (32, False), (3600, False)]
)
def test_a_signature_ends(strict: Queue, seconds: int, is_good: bool) -> None:
    signature = sign(*SAID)
    strict.advance(seconds)
    if is_good:
        list_runs(strict, signature)
        return
    with refused("JF403"):
        list_runs(strict, signature)


def test_a_signature_that_would_last_for_more_than_a_minute_is_refused(strict: Queue) -> None:
    signature = sign(*SAID)
    strict.advance(-32)
    with refused("JF403"):
        list_runs(strict, signature)


CALLS: list[tuple[str, tuple[object, ...]]] = [
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
]


@pytest.mark.parametrize(("function", "arguments"), CALLS, ids=[name for name, _ in CALLS])
@pytest.mark.requirement("sql.signed-scope")
def test_every_function_of_callers_refuses_a_scope_that_was_only_set(
    strict: Queue, function: str, arguments: tuple[object, ...]
) -> None:
    with refused("JF403"), strict.acting(API) as connection:
        connection.execute("select set_config('jobforge.tenant_id', 'acme', true)")
        call(connection, function, "acme", *arguments)


@pytest.mark.parametrize("view", ["runs", "job_results"])
def test_a_view_shows_nothing_of_a_scope_that_was_only_set(strict: Queue, view: str) -> None:
    with strict.acting(API) as connection:
        enter(connection, *SAID, signature=sign(*SAID))
        call(connection, "enqueue_job", "acme", ECHO)
    strict.complete(*strict.claim())
    query = sql.SQL("select * from jobforge.{}").format(sql.Identifier(view))

    with strict.acting(READONLY) as connection:
        enter(connection, *SAID, signature=sign(*SAID))
        assert len(connection.execute(query).fetchall()) == 1
    with refused("JF403"), strict.acting(READONLY) as connection:
        enter(connection, *SAID)
        connection.execute(query)
    with strict.acting(READONLY) as connection:
        connection.execute("select set_config('jobforge.tenant_id', '', true)")
        assert connection.execute(query).fetchall() == []


@pytest.mark.requirement("sql.signed-scope")
def test_an_operator_of_the_readers_own_makes_no_scope_signed(strict: Queue) -> None:
    """A policy asks a function that keeps the reader's search_path, where there may be an equality that always holds."""
    with strict.acting(API) as connection:
        enter(connection, *SAID, signature=sign(*SAID))
        call(connection, "enqueue_job", "acme", ECHO)
    with strict.acting("super") as connection:
        connection.execute("create schema theirs; grant usage on schema theirs to public")
        for kind in ("name", "text"):
            made = sql.SQL(
                "create function theirs.always({0}, {0}) returns boolean language sql"
                " as 'select true';"
                " create operator theirs.= (function = theirs.always, leftarg = {0}, rightarg = {0})"
            )
            connection.execute(made.format(sql.SQL(kind)))
    with refused("JF403"), strict.acting(READONLY) as connection:
        enter(connection, *SAID)
        connection.execute("set local search_path to theirs, pg_catalog")
        connection.execute("select job_id from jobforge.runs")


def test_nobody_who_logs_in_reads_a_key_or_enters_a_scope_on_trust(strict: Queue) -> None:
    for login in (API, WORKER, READONLY, "jobforge_scheduler", "jobforge_auditor"):
        for query in (
            "select * from jobforge.context_keys",
            "select * from jobforge.tenant_logins",
            "select jobforge.enter_trusted_scope('acme', 'a', null, null)",
            "select jobforge.scope_mac('', '', '', '', '', '', '', '', '')",
        ):
            with refused("42501"), strict.acting(login) as connection:
                connection.execute(query.encode())


@pytest.mark.parametrize("role", ["jobforge_rpc", "jobforge_sys"])
def test_the_roles_that_functions_run_as_read_no_key(strict: Queue, role: str) -> None:
    with refused("42501"), strict.acting(role) as connection:
        connection.execute("select * from jobforge.context_keys")


def test_workers_need_no_signature_for_what_their_lease_gives_them(strict: Queue) -> None:
    with strict.acting(API) as connection:
        enter(connection, *SAID, signature=sign(*SAID))
        call(connection, "enqueue_job", "acme", ECHO)
    (claimed,) = strict.claim()
    fence = [part[0] for part in fences([claimed])]
    with strict.acting(WORKER) as connection:
        rest = [None] * 5 + ["1", 3, 1000, 2.0, 60000, 300000]
        (child,) = call(connection, "enqueue_child", *fence, ECHO, "{}", None, *rest)
        runs = call(connection, "read_runs", "acme", claimed.job_id, claimed.epoch)
        left = connection.execute(
            "select current_setting('jobforge.tenant_id'), current_setting('jobforge.signature')"
        )

        assert child.status == "queued"
        assert [run.job_id for run in runs] == [child.job_id]
        assert left.fetchone() == ("", "")


def test_two_keys_are_good_at_once_and_a_removed_one_no_more(strict: Queue) -> None:
    add_key(strict, OTHER, 2)
    new = ContextSigner(OTHER)
    list_runs(strict, sign(*SAID))
    list_runs(strict, sign(*SAID, signer=new))

    strict.look("delete from jobforge.context_keys where key_id = 'k1'")
    list_runs(strict, sign(*SAID, signer=new))
    with refused("JF403"):
        list_runs(strict, sign(*SAID))


def test_a_third_key_has_no_place(strict: Queue) -> None:
    add_key(strict, OTHER, 2)
    with refused("23514"):
        add_key(strict, ContextKey("k3", bytes(32)), 3)


def test_a_key_that_is_not_enforced_refuses_nothing_unsigned(queue: Queue) -> None:
    add_key(queue, KEY, is_enforced=False)

    list_runs(queue, None)
    list_runs(queue, sign(*SAID))
    with refused("JF403"):  # what claims to be signed must be
        list_runs(queue, sign(*SAID)[:-1] + "x")


@pytest.mark.parametrize("is_signing", [False, True])
def test_whether_scopes_must_be_signed_may_be_asked(queue: Queue, is_signing: bool) -> None:
    if is_signing:
        add_key(queue, KEY)
    with queue.acting(API) as connection:
        row = connection.execute("select jobforge.is_context_signed()").fetchone()

    assert row == (is_signing,)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


def test_both_sides_write_the_same_signature(
    rollback: Callable[[str], psycopg.Connection],
) -> None:
    connection = rollback("jobforge_owner")

    @given(st.tuples(TEXT, TEXT, TEXT, TEXT, TEXT, TEXT))
    def agree(said: tuple[str, str, str, str, str, str]) -> None:
        key_id, expires_at, mac = SIGNER.sign(*said).split(".")
        row = connection.execute(
            "select jobforge.scope_mac(%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [*KEY.pads(), *said, expires_at],
        ).fetchone()
        assert (key_id, row) == ("k1", (mac,))

    agree()
