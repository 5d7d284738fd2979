"""What callers by plain SQL are asked that a server would ask in its own process."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from jobforge_mcp.db.logins import create_login, remove_login
from jobforge_mcp.redaction import shape_of
from tests.postgres import ADMIN, ScratchDatabase

Maker = Callable[..., psycopg.Connection[Any]]

# Written in two parts, so that nobody's scanner takes this file for a leak.
KEYS = [
    "-----BEGIN RSA PRIVATE" + " KEY-----\nMIIE",
    "AKIA" + "Q" * 16,
    "text before\nASIA" + "2" * 16,
    "ghp_" + "a" * 36,
    "token=github_pat_" + "b" * 50,
    "glpat-" + "c" * 20,
    "xoxb-" + "1234567890",
    "https://hooks.slack.com/services/T" + "A" * 8 + "/B" + "B" * 8 + "/" + "c" * 24,
    "AIza" + "d" * 35,
    "\tsk_live_" + "e" * 16,
    "SG." + "f" * 22 + "." + "g" * 43,
    "sk-ant-" + "h" * 20,
    "npm_" + "i" * 36,
    "pypi-" + "j" * 50,
    "Bearer eyJ" + "k" * 20 + ".eyJ" + "l" * 20 + "." + "m" * 32,
]
HARMLESS = [
    "AKIA is how they begin, and -----BEGIN PUBLIC KEY----- is no secret",
    "notAKIA" + "Q" * 16,
    "AKIA" + "Q" * 17,
    "a ghp_short",
    "sk-proj-ect plan",
    "x" * 100_000,
    "eyJ0eXAiOiJKV1QifQ",
    "secret://crm",
]


@pytest.fixture
def login(database: ScratchDatabase) -> Generator[Maker]:
    """Make logins of tenant acme with these scopes, and connect as one."""
    made: list[str] = []
    connections: list[psycopg.Connection[Any]] = []

    def make(*scopes: str) -> psycopg.Connection[Any]:
        name = f"app_{uuid4().hex[:12]}"
        create_login(database.url(ADMIN), name, "acme", scopes=scopes)
        made.append(name)
        connections.append(database.connect(name))
        return connections[-1]

    yield make
    for connection in connections:
        connection.close()
    for name in made:
        remove_login(database.url(ADMIN), name)


@pytest.fixture
def told(database: ScratchDatabase) -> None:
    """A worker was here twice, and told of its jobs."""
    tell = "select from jobforge.tell_installed_jobs(%s, %s, %s)"
    with database.connect("jobforge_worker") as worker:
        worker.execute(tell, [["shop.charge", "shop.heavy"], [1, 9], [None, "action"]])
        jobs = ["shop.charge", "shop.heavy", "shop.boss"]
        worker.execute(tell, [jobs, [1, 7, 1], ["action", None, "permission"]])


def outcome(connection: psycopg.Connection[Any], query: sql.SQL | str, *arguments: object) -> str:
    """Say what became of a call: created, or its error."""
    try:
        row = connection.execute(query, arguments).fetchone()  # pyright: ignore[reportArgumentType]
    except psycopg.Error as error:
        return f"{error.sqlstate} {error.diag.message_detail or ''}".strip()
    assert row is not None
    return str(row[0])


ENQUEUE = "select outcome from jobforge.enqueue_job('acme', %s, jsonb_build_object('in', %s::text))"


@pytest.mark.requirement("secrets.scan-of-plain-sql")
@pytest.mark.parametrize("key", KEYS)
def test_plain_sql_refuses_what_a_server_refuses(login: Maker, key: str) -> None:
    app = login("jobs:execute", "jobs:cancel", "events:submit")
    refusal = "JF400 SECRET_IN_INPUT"

    assert shape_of(key) is not None
    assert outcome(app, ENQUEUE, "test.echo", key) == refusal
    for argument in ("p_labels => jsonb_build_object('l', %s::text)", "p_idempotency_key => %s"):
        query = f"select outcome from jobforge.enqueue_job('acme', 'test.echo', {argument})"
        assert outcome(app, query, key) == refusal, argument
    event = (
        "select outcome from jobforge.submit_event('acme', 'x', jsonb_build_object('in', %s::text))"
    )
    assert outcome(app, event, key) == refusal
    made = app.execute(
        "select job_id from jobforge.enqueue_job('acme', 'test.echo', '{}')"
    ).fetchone()
    assert made is not None
    cancel = "select status from jobforge.cancel_job('acme', %s, %s)"
    assert outcome(app, cancel, made[0], key) == refusal
    assert outcome(app, cancel, made[0], "not needed") == "canceled"


@pytest.mark.requirement("secrets.scan-of-plain-sql")
@pytest.mark.parametrize("text", HARMLESS)
def test_plain_sql_takes_what_a_server_takes(login: Maker, text: str) -> None:
    assert shape_of(text) is None
    assert outcome(login("jobs:execute"), ENQUEUE, "test.echo", text) == "created"


@pytest.mark.requirement("policy.plain-sql")
@pytest.mark.usefixtures("told")
def test_plain_sql_is_charged_what_the_job_declares(
    login: Maker, admin: psycopg.Connection[Any]
) -> None:
    admin.execute("select jobforge.set_limit('acme', 'tenant', null, '{\"budget_units\": 8}')")
    app = login("jobs:execute")

    outcomes = [outcome(app, ENQUEUE, name, "") for name in ("shop.heavy", "shop.heavy", "x", "x")]

    assert outcomes[0] == "created"
    assert outcomes[1].startswith("JF429")
    assert outcomes[2] == "created"
    assert outcomes[3].startswith("JF429")
    assert admin.execute("select job_type, cost from jobforge.jobs order by 1").fetchall() == [
        ("shop.heavy", 7),
        ("x", None),
    ]


@pytest.mark.requirement("policy.plain-sql")
@pytest.mark.usefixtures("told")
def test_a_login_starts_what_acts_outside_only_with_the_right_and_a_key(
    login: Maker, admin: psycopg.Connection[Any]
) -> None:
    keyed = "select outcome from jobforge.enqueue_job('acme', %s, p_idempotency_key => 'k')"
    plain, allowed = login("jobs:execute", "jobs:retry"), login("jobs:execute", "action:execute")

    assert outcome(plain, keyed, "shop.charge") == "JF403"
    assert outcome(allowed, ENQUEUE, "shop.charge", "") == "JF400 IDEMPOTENCY_KEY_REQUIRED"
    assert outcome(allowed, keyed, "shop.charge") == "created"
    assert outcome(allowed, keyed, "shop.charge") == "replayed"
    assert outcome(allowed, keyed, "shop.boss") == "JF403"
    assert outcome(plain, ENQUEUE, "shop.unknown", "") == "created"
    run = admin.execute("select id from jobforge.jobs where job_type = 'shop.charge'").fetchone()
    assert run is not None
    assert outcome(plain, "select status from jobforge.retry_job('acme', %s)", run[0]) == "JF403"


def register(database: ScratchDatabase, name: str, lane: str, **definition: object) -> None:
    """Register a definition as a server does, for tenant acme."""
    text = json.dumps({"name": name, "version": "1", **definition})
    with database.connect("jobforge_api") as server, server.transaction():
        server.execute("select jobforge.enter_scope('acme', 'author')")
        server.execute(
            "select * from jobforge.register_definition('acme', %s, %s, '1', false)", [text, lane]
        )


COMPOSITION = "jobforge.composition"
CHAIN = {"chain": [{"name": "a", "handler": "test.echo"}, {"name": "b", "handler": "shop.charge"}]}


@pytest.mark.requirement("policy.plain-sql")
@pytest.mark.usefixtures("told")
@pytest.mark.parametrize(
    "definition",
    [
        CHAIN,
        {**CHAIN, "effects": "external"},
        {"map": {"over": {"$ref": "/input/all"}, "do": {"handler": "shop.charge"}}},
        {"switch": {"cases": [{"when": True, "do": CHAIN}]}},
        {
            "chain": [{"name": "a", "handler": "acme.inner"}],
            "pinned": {"handlers": ["shop.charge"]},
        },
        {"chain": [{"name": "a", "handler": "acme.unknown"}], "pinned": {"effects": "external"}},
    ],
    ids=["step", "declared", "map", "switch", "pinned handler", "pinned effects"],
)
def test_a_login_starts_no_composition_of_which_it_could_not_start_every_step(
    database: ScratchDatabase,
    login: Maker,
    admin: psycopg.Connection[Any],
    definition: dict[str, object],
) -> None:
    register(database, "acme.all", COMPOSITION, **definition)
    keyed = "select outcome from jobforge.enqueue_job('acme', %s, p_idempotency_key => 'k')"
    plain, allowed = login("jobs:execute", "jobs:retry"), login("jobs:execute", "action:execute")

    assert outcome(plain, keyed, "acme.all") == "JF403"
    assert outcome(allowed, keyed, "acme.all") == "created"
    run = admin.execute("select id from jobforge.jobs").fetchone()
    assert run is not None
    assert outcome(plain, "select status from jobforge.retry_job('acme', %s)", run[0]) == "JF403"


@pytest.mark.requirement("policy.plain-sql")
@pytest.mark.usefixtures("told")
@pytest.mark.parametrize(
    "definition",
    [
        {"chain": [{"name": "a", "handler": "shop.boss"}]},
        {"handler": "test.echo", "permissions": [{"action": "execute", "roles": ["boss"]}]},
        {"pinned": {"permissions": [{"action": "execute", "roles": ["boss"]}]}},
    ],
    ids=["step", "own", "pinned"],
)
def test_a_login_starts_no_registered_job_that_asks_for_what_only_a_token_carries(
    database: ScratchDatabase, login: Maker, definition: dict[str, object]
) -> None:
    lane = "test.echo" if "handler" in definition else COMPOSITION
    register(database, "acme.asks", lane, **definition)
    keyed = "select outcome from jobforge.enqueue_job('acme', %s, p_idempotency_key => 'k')"

    assert outcome(login("jobs:execute", "action:execute"), keyed, "acme.asks") == "JF403"


@pytest.mark.requirement("policy.plain-sql")
def test_nobody_names_the_interpreter_of_compositions_himself(login: Maker) -> None:
    app = login("jobs:execute", "action:execute")

    assert outcome(app, ENQUEUE, COMPOSITION, "") == "JF400"
    assert outcome(app, ENQUEUE, "jobforge.anything", "") == "JF400"
    assert outcome(app, ENQUEUE, "jobforge_is_a_name", "") == "created"
