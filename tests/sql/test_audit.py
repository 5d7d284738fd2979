"""The audit log once it was written: refusals, pages, and that nobody changes it."""

from __future__ import annotations

import json
import time
from typing import LiteralString
from uuid import UUID

import psycopg
import pytest

from tests.sql.acting import API, ECHO, SUPERUSER, WORKER, Queue, call, enter, refused
from tests.sql.conftest import MakeQueue

AUDITOR = "jobforge_auditor"
LOGINS = [API, WORKER, "jobforge_scheduler", "jobforge_readonly", AUDITOR]


def deny(queue: Queue, reason: str = "scope", **named: object) -> None:
    queue.ask("record_denial", "acme", "enqueue", reason, **named)


def unsealed(queue: Queue) -> list[str]:
    with queue.acting(AUDITOR) as connection:
        rows = connection.execute("select tenant_id from jobforge.list_unsealed()").fetchall()
    return [row[0] for row in rows]


@pytest.mark.requirement("audit.denials")
def test_a_refusal_is_written_down_with_its_author_and_reason(queue: Queue) -> None:
    deny(queue, job_type=ECHO)

    (row,) = queue.look("select * from jobforge.audit_log")
    assert (row.tenant_id, row.action, row.outcome) == ("acme", "enqueue", "refused")
    assert (row.actor, row.job_type, row.detail) == ("tester", ECHO, {"reason": "scope"})


def test_one_row_may_stand_for_many_refusals(queue: Queue) -> None:
    deny(queue, count=17)

    (row,) = queue.look("select detail from jobforge.audit_log")
    assert row.detail == {"reason": "scope", "count": 17}


@pytest.mark.requirement("audit.denials")
def test_a_hundred_refusals_a_minute_are_written_and_the_others_counted(queue: Queue) -> None:
    with queue.acting(API) as connection:
        enter(connection, "acme")
        for _ in range(104):
            call(connection, "record_denial", "acme", "enqueue", "scope", count=2)
    assert queue.look("select count(*) from jobforge.audit_log")[0].count == 100
    deny_other = queue.ask("record_denial", "globex", "enqueue", "scope")
    queue.advance(61)
    deny(queue)

    assert deny_other
    (summary,) = queue.look("select detail from jobforge.audit_log where action = 'refusals'")
    assert (summary.detail["reason"], summary.detail["count"]) == ("TOO_MANY_TO_WRITE", 8)
    assert queue.look("select count(*) from jobforge.audit_log")[0].count == 103


@pytest.mark.parametrize("reason", ["", "a sentence is no reason", "x" * 101, None])
def test_a_refusal_holds_words_and_no_texts(queue: Queue, reason: str | None) -> None:
    with refused("JF400"):
        queue.ask("record_denial", "acme", "enqueue", reason)


@pytest.mark.requirement("audit.append-only")
@pytest.mark.parametrize("table", ["audit_log", "audit_seals"])
@pytest.mark.parametrize("verb", ["update", "delete", "truncate", "insert"])
@pytest.mark.parametrize("login", LOGINS)
def test_no_login_changes_the_log(queue: Queue, login: str, verb: str, table: str) -> None:
    statements: dict[str, LiteralString] = {
        "update audit_log": "update jobforge.audit_log set actor = 'me'",
        "delete audit_log": "delete from jobforge.audit_log",
        "truncate audit_log": "truncate jobforge.audit_log",
        "insert audit_log": "insert into jobforge.audit_log (tenant_id) values ('acme')",
        "update audit_seals": "update jobforge.audit_seals set key_id = 'mine'",
        "delete audit_seals": "delete from jobforge.audit_seals",
        "truncate audit_seals": "truncate jobforge.audit_seals",
        "insert audit_seals": "insert into jobforge.audit_seals (tenant_id) values ('acme')",
    }
    deny(queue)

    with refused("42501"), queue.acting(login) as connection:
        connection.execute("select set_config('jobforge.tenant_id', 'acme', true)")
        connection.execute(statements[f"{verb} {table}"])


@pytest.mark.requirement("audit.append-only")
@pytest.mark.parametrize("table", ["audit_log", "audit_seals"])
@pytest.mark.parametrize("role", [SUPERUSER, "jobforge_owner"])
@pytest.mark.parametrize("verb", ["update", "delete", "truncate"])
def test_not_even_its_owner_changes_the_log_by_mistake(
    queue: Queue, role: str, verb: str, table: str
) -> None:
    statements: dict[str, LiteralString] = {
        "update audit_log": "update jobforge.audit_log set actor = 'me'",
        "delete audit_log": "delete from jobforge.audit_log",
        "truncate audit_log": "truncate jobforge.audit_log",
        "update audit_seals": "update jobforge.audit_seals set key_id = 'mine'",
        "delete audit_seals": "delete from jobforge.audit_seals",
        "truncate audit_seals": "truncate jobforge.audit_seals",
    }

    with refused("JF403"), queue.acting(role) as connection:
        connection.execute(statements[f"{verb} {table}"])


@pytest.mark.parametrize("role", ["jobforge_rpc", "jobforge_sys"])
@pytest.mark.parametrize("verb", ["update", "delete", "truncate"])
def test_no_role_of_the_functions_has_the_right_to_change_the_log(
    queue: Queue, role: str, verb: str
) -> None:
    rows = queue.look(
        """select has_table_privilege(%s, 'jobforge.audit_log', %s) as log,
          has_table_privilege(%s, 'jobforge.audit_seals', %s) as seals""",
        role,
        verb,
        role,
        verb,
    )

    assert (rows[0].log, rows[0].seals) == (False, False)


def test_the_log_is_listed_newest_first_in_pages(queue: Queue) -> None:
    made = [queue.enqueue().job_id for _ in range(5)]
    queue.enqueue("globex")

    seen: list[UUID] = []
    before = None
    while page := queue.ask("list_audit", "acme", limit=2, before=before):
        seen += [row.job_id for row in page]
        before = page[-1].place

    assert seen == made[::-1]


def test_the_list_is_narrowed(queue: Queue) -> None:
    made = queue.enqueue()
    deny(queue)

    assert [row.outcome for row in queue.ask("list_audit", "acme", outcome="refused")] == [
        "refused"
    ]
    assert [row.job_id for row in queue.ask("list_audit", "acme", job_id=made.job_id)] == [
        made.job_id
    ]
    assert queue.ask("list_audit", "acme", action="cancel") == []
    assert queue.ask("list_audit", "acme", token_id="other") == []


@pytest.mark.parametrize("before", ["x", "1.2", "1.2.3' or true", "0.99999999999999999999.0"])
def test_a_place_that_is_none_is_refused(queue: Queue, before: str) -> None:
    with refused("JF400"):
        queue.ask("list_audit", "acme", before=before)


def test_what_an_open_transaction_wrote_is_not_sealed_and_holds_back_what_is_younger(
    make_queue: MakeQueue,
) -> None:
    queue, other = make_queue(), make_queue()
    with queue.acting(API) as connection:
        enter(connection, "acme")
        connection.execute("select jobforge.record_denial('acme', 'enqueue', 'scope')")
        deny(other)
        assert unsealed(other) == []

    # what the horizon waits for is older than it on the whole server, other tests' transactions too
    deadline = time.monotonic() + 60
    while not (found := unsealed(other)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found == ["acme"]


def test_a_restored_database_is_not_sealed_before_a_new_era_begins(queue: Queue) -> None:
    deny(queue)
    queue.look(
        """insert into jobforge.audit_seals values ('acme', 1, 1, 1, 0, 1000000000000,
        gen_random_uuid(), sha256(''), jobforge.now(), 'k', sha256('') || sha256(''))"""
    )
    with pytest.raises(psycopg.Error) as caught:
        unsealed(queue)
    assert caught.value.sqlstate == "JF409"

    queue.look("alter table jobforge.audit_log alter column era set default 1")
    deny(queue)

    assert queue.look("select max(era) as era from jobforge.audit_log")[0].era == 1
    assert unsealed(queue) == []  # its own transaction is still open


# --- who is confined


def listed(queue: Queue, claims: dict[str, object], token_id: str = "t9") -> list[tuple[str, str]]:
    """Read the log as the holder of a token; job type and project of each row, by way of its label."""
    with queue.acting(API) as connection:
        connection.execute(
            "select jobforge.enter_scope('acme', 'reader', %s, null, null, %s)",
            [token_id, json.dumps({"jti": token_id, **claims})],
        )
        found = call(connection, "list_audit", "acme")
    return sorted((row.action, row.job_type) for row in found)


@pytest.mark.requirement("audit.confined")
@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({}, ["a.one", "a.two", "b.one", "b.two"]),
        ({"projects": ["p1"]}, ["a.one", "b.one"]),
        ({"projects": ["none"]}, []),
        ({"jobTypes": ["a.*"]}, ["a.one", "a.two"]),
        ({"denyTypes": ["a.*"]}, ["b.one", "b.two"]),
        ({"projects": ["p2"], "jobTypes": ["*.two"], "denyTypes": ["a.**"]}, ["b.two"]),
    ],
)
def test_a_confined_reader_sees_rows_of_its_projects_and_types_alone(
    queue: Queue, claims: dict[str, object], expected: list[str]
) -> None:
    for name, project in (("a.one", "p1"), ("a.two", "p2"), ("b.one", "p1"), ("b.two", "p2")):
        queue.enqueue("acme", name, project_id=project)
    if claims:  # of no run: not for whoever is confined
        deny(queue)

    assert listed(queue, claims) == [("enqueue", name) for name in expected]


def test_a_confined_reader_sees_what_its_own_token_did(queue: Queue) -> None:
    with queue.acting(API) as connection:
        connection.execute("select jobforge.enter_scope('acme', 'reader', 't9')")
        call(connection, "record_denial", "acme", "enqueue", "POLICY_DENIED", "c.three")
    deny(queue)

    assert listed(queue, {"projects": ["p1"]}) == [("enqueue", "c.three")]
    assert listed(queue, {"projects": ["p1"]}, "t8") == []
