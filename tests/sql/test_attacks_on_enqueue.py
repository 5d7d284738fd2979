"""Attacks of whoever speaks SQL as the server: arguments that no server sends, and scopes that are not what they seem."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from tests.sql.acting import API, ECHO, Queue, Row, call, enter, refused
from tests.sql.test_plain_jobs import KEY, SIGNER, send, strict

__all__ = ["strict"]  # a fixture
HELD = {"jti": "j1", "denyTypes": ["mail.**"], "limits": {"budget_jobs": 1}}


def said(claims: dict[str, Any] | str) -> tuple[str, ...]:
    """Write the scope of a token with these claims."""
    text = claims if isinstance(claims, str) else json.dumps(claims)
    return ("acme", "agent", "j1", "execute-job", "t1", text)


def attack(queue: Queue, claims: dict[str, Any], **named: Any) -> list[Row]:
    """Enqueue one job in a scope that a server signed for a token with these claims."""
    scope = said(claims)
    return send(queue, said=scope, signature=SIGNER.sign(*scope), **named)


def attack_with(queue: Queue, claims: dict[str, Any], job_type: str, **named: object) -> list[Row]:
    """The same with a job type of one's own, in a scope that was entered before."""
    scope = said(claims)
    with queue.acting(API) as connection:
        connection.execute(
            "select jobforge.enter_scope(%s, %s, %s, %s, %s, %s, %s)", [*scope, SIGNER.sign(*scope)]
        )
        return call(connection, "enqueue_jobs", "acme", [job_type], ["{}"], **named)


def nothing_was_made(queue: Queue) -> bool:
    (row,) = queue.look(
        """select (select count(*) from jobforge.jobs) + (select count(*) from jobforge.ready)
          + (select count(*) from jobforge.audit_log where action = 'enqueue') as count"""
    )
    return row.count == 0


@pytest.mark.requirement("policy.children")
def test_naming_a_parent_frees_no_token_from_what_it_denies(strict: Queue) -> None:
    """A child is held to the token of its line: whoever could choose the line would choose one that is held to nothing."""
    (free,) = attack(strict, {"jti": "j2"})

    for parent in (None, free.job_id):
        with refused("JF403"):
            attack_with(strict, HELD, "mail.send", parent_id=parent)
    with refused("JF403"):
        attack(strict, HELD, parent_id=free.job_id)


@pytest.mark.requirement("policy.children")
def test_naming_a_parent_frees_nobody_from_the_rate_of_the_tenant(strict: Queue) -> None:
    (free,) = attack(strict, {})
    strict.look(
        """select jobforge.set_limit('acme', 'tenant', null, '{"rps": 0.001, "burst": 1}')"""
    )
    attack(strict, {})

    with refused("JF429"):
        attack(strict, {})
    with refused("JF403"):
        attack(strict, {}, parent_id=free.job_id)


@pytest.mark.requirement("policy.single-use")
def test_a_token_for_one_write_is_used_up_by_a_call_that_does_not_say_whether_it_is_a_plan(
    strict: Queue,
) -> None:
    once = {"jti": "j1", "once": True}
    attack(strict, once, is_plan=None)

    for is_plan in (None, False):
        with refused("JF403"):
            attack(strict, once, is_plan=is_plan)


@pytest.mark.requirement("policy.single-use")
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("cancel_job", ("{id}", None, None)),
        ("retry_job", ("{id}", None, None, False, True, None)),
        ("submit_event", ("order.paid", "{}")),
        ("remove_definition", ("made.up", None)),
        ("remove_trigger", ("made.up", None)),
        ("run_trigger", ("made.up", '{"version": 1, "payload": "{}"}', None, None)),
    ],
)
def test_a_token_that_was_used_up_does_nothing_more(
    strict: Queue, function: str, arguments: tuple[object, ...]
) -> None:
    (row,) = attack(strict, {"jti": "j1", "once": True})
    given = [row.job_id if value == "{id}" else value for value in arguments]
    named = {"is_plan": None} if function == "submit_event" else {}
    scope = said({"jti": "j1", "once": True})

    with refused("JF403"), strict.acting(API) as connection:
        connection.execute(
            "select jobforge.enter_scope(%s, %s, %s, %s, %s, %s, %s)", [*scope, SIGNER.sign(*scope)]
        )
        call(connection, function, "acme", *given, **named)


def test_no_function_takes_a_missing_word_for_a_plan(queue: Queue) -> None:
    """In SQL `not null` is null, and what is asked only `if not p_is_plan` is then not asked of what is done all the same."""
    rows = queue.look(
        r"""select p.proname as name from pg_proc p
        where p.pronamespace = 'jobforge'::regnamespace and p.prosrc ~ '\mnot p_is_plan\M'"""
    )
    assert rows == []


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "claims",
    [
        {"projects": ["p1"]},
        {"jobTypes": ["report.*"]},
        {"denyTypes": ["demo.*"]},
        {"jti": "j1", "limits": {"max_payload_bytes": 1}},
        {"jti": "j1", "limits": {"budget_jobs": 0}},
        {"jti": "j1", "limits": {"max_priority": 3}},
    ],
    ids=json.dumps,
)
def test_what_a_token_says_holds_jobs_that_ask_for_nothing(
    strict: Queue, claims: dict[str, Any], count: int
) -> None:
    scope = said(claims)

    with pytest.raises(psycopg.Error) as caught:
        send(strict, ["{}"] * count, said=scope, signature=SIGNER.sign(*scope))

    assert caught.value.sqlstate in {"JF403", "JF429"}
    assert nothing_was_made(strict)


@pytest.mark.parametrize("count", [1, 2])
def test_tokens_of_a_tenant_that_were_revoked_together_enqueue_nothing(
    strict: Queue, count: int
) -> None:
    """A caller without a token was not revoked with them."""
    strict.look(
        """insert into jobforge.tenants (tenant_id, created_at, token_epoch)
        values ('acme', jobforge.now(), 7)"""
    )
    for claims in ({"jti": "j1"}, {"jti": "j1", "epoch": 6}, {"jti": "j9", "links": ["j1"]}):
        scope = said(claims)
        with refused("JF403"):
            send(strict, ["{}"] * count, said=scope, signature=SIGNER.sign(*scope))

    assert nothing_was_made(strict)
    attack(strict, {})
    attack(strict, {"jti": "j1", "epoch": 7})


@pytest.mark.parametrize(
    ("kind", "limits"),
    [
        ("tenant", {"rps": 0.001, "burst": 1}),
        ("type", {"budget_jobs": 1}),
        ("tool", {"max_queued": 1}),
    ],
)
def test_an_operators_limit_holds_jobs_that_ask_for_nothing(
    strict: Queue, kind: str, limits: dict[str, Any]
) -> None:
    name = {"tenant": None, "type": ECHO, "tool": "execute-job"}[kind]
    strict.look("select jobforge.set_limit('acme', %s, %s, %s)", kind, name, json.dumps(limits))
    attack(strict, {})

    with refused("JF429"):
        attack(strict, {})


@pytest.mark.requirement("sql.signed-scope")
def test_a_scope_that_was_set_by_hand_counts_for_nothing_beside_one_that_was_signed(
    strict: Queue,
) -> None:
    """Settings of another tenant, of other claims and of another author, set before the call: none of them is read."""
    with strict.acting(API) as connection:
        for name, value in (
            ("tenant_id", "globex"),
            ("claims", "{}"),
            ("actor", "somebody"),
            ("token_id", "j9"),
            ("tool", "made-up"),
            ("trace_id", "t9"),
        ):
            connection.execute("select set_config('jobforge.' || %s, %s, true)", [name, value])
        scope = said({"jti": "j1"})
        names = ("actor", "token_id", "tool", "trace_id", "token_claims")
        named = dict(zip(names, scope[1:], strict=True)) | {"signature": SIGNER.sign(*scope)}
        (row,) = call(connection, "enqueue_jobs", "acme", [ECHO], ["{}"], **named)
    (kept,) = strict.look(
        """select a.tenant_id, a.actor, a.token_id, a.tool, a.trace_id, j.created_by
        from jobforge.audit_log a join jobforge.jobs j on j.id = a.job_id where a.job_id = %s""",
        row.job_id,
    )
    assert list(vars(kept).values()) == ["acme", "agent", "j1", "execute-job", "t1", "agent"]


@pytest.mark.requirement("sql.signed-scope")
def test_a_signature_is_good_for_its_own_tenant_alone(strict: Queue) -> None:
    scope = said({"jti": "j1"})
    with refused("JF403"):
        send(strict, said=("globex", *scope[1:]), signature=SIGNER.sign(*scope))
    with refused("JF403"), strict.acting(API) as connection:
        connection.execute(
            "select jobforge.enter_scope(%s, %s, %s, %s, %s, %s, %s)", [*scope, SIGNER.sign(*scope)]
        )
        call(connection, "enqueue_jobs", "globex", [ECHO], ["{}"])
    assert nothing_was_made(strict)


@pytest.mark.requirement("sql.signed-scope")
def test_a_signature_that_was_seen_is_good_elsewhere_until_it_ends(make_queue: Any) -> None:
    """It is bound to no connection, because behind a pooler the next statement has another one; so it ends soon."""
    queue: Queue = make_queue()
    queue.look(
        """insert into jobforge.context_keys (key_id, slot, inner_pad, outer_pad, is_enforced, created_at)
        values ('k1', 1, %s, %s, true, jobforge.now())""",
        *KEY.pads(),
    )
    scope = said({"jti": "j1"})
    signature = SIGNER.sign(*scope)
    send(queue, said=scope, signature=signature)
    send(queue, said=scope, signature=signature)
    queue.advance(61)
    with refused("JF403"):
        send(queue, said=scope, signature=signature)


@pytest.mark.parametrize("claims", ["", None])
def test_a_scope_without_claims_is_one_however_that_is_said(
    strict: Queue, claims: str | None
) -> None:
    author = ("acme", "agent", "j1", "execute-job", "t1")

    (row,) = send(strict, said=(*author, claims), signature=SIGNER.sign(*author, claims))

    assert row.outcome == "created"


MISSHAPEN: dict[str, tuple[str, str, str]] = {
    "nothing at all": ("{}", "{}", "JF400"),
    "null arrays": ("null", "null", "JF400"),
    "no payloads": ("{demo.echo}", "null", "JF400"),
    "a payload too many": ("{demo.echo}", "{1,2}", "JF400"),
    "a payload too few": ("{demo.echo,demo.echo}", "{1}", "JF400"),
    "a payload missing": ("{demo.echo}", "{null}", "JF400"),
    "a payload of several missing": ("{demo.echo,demo.echo}", "{1,null}", "JF400"),
    "a type missing": ("{null}", "{1}", "JF400"),
    "the first type missing": ("{null,demo.echo}", "{1,2}", "JF400"),
    "the last type missing": ("{demo.echo,null}", "{1,2}", "JF400"),
    "a type that is none behind": ("{demo.echo,Not A Type}", "{1,2}", "JF400"),
    "types in two dimensions": ("{{demo.echo},{demo.echo}}", "{1,2}", "JF400"),
    "payloads in two dimensions": ("{demo.echo,demo.echo}", "{{1},{2}}", "0A000"),
    "types that begin elsewhere": ("[5:5]={demo.echo}", "{1}", "JF400"),
    "payloads that begin elsewhere": ("{demo.echo}", "[5:5]={1}", "23502"),
    "several that begin elsewhere": ("[0:1]={demo.echo,demo.echo}", "[0:1]={1,2}", "23502"),
    "no JSON": ("{demo.echo}", "{x}", "22P02"),
    "half a pair of surrogates": ("{demo.echo}", r'{"\"\\ud800\""}', "22P02"),
    "a null character": ("{demo.echo}", r'{"\"\\u0000\""}', "22P05"),
}


@pytest.mark.parametrize("shape", MISSHAPEN)
@pytest.mark.parametrize("is_awake", [False, True], ids=["lane asleep", "lane awake"])
def test_misshapen_arrays_make_nothing(queue: Queue, shape: str, is_awake: bool) -> None:
    types, payloads, sqlstate = (None if text == "null" else text for text in MISSHAPEN[shape])
    if is_awake:
        queue.look(
            """insert into jobforge.lanes (tenant_id, job_type, seen_at)
            values ('acme', 'demo.echo', jobforge.now())"""
        )
    assert sqlstate is not None
    with refused(sqlstate), queue.acting(API) as connection:
        enter(connection, "acme")
        connection.execute(
            "select * from jobforge.enqueue_jobs('acme', %s::text[], %s::text[])", [types, payloads]
        )
    assert nothing_was_made(queue)


@pytest.mark.parametrize(
    "named",
    [
        {"priorities": [2, 9]},
        {"priorities": [None, -1]},
        {"max_attempts": [None, 0]},
        {"timeout_ms": [1, 0]},
        {"backoff_ms": [None, -1]},
        {"backoff_multipliers": [None, float("nan")]},
        {"backoff_multipliers": [None, float("inf")]},
        {"trace_ids": [None, "x" * 256]},
        {"job_versions": [None, ""]},
    ],
    ids=lambda named: str(named)[:40],
)
@pytest.mark.parametrize("is_awake", [False, True], ids=["lane asleep", "lane awake"])
def test_a_value_that_does_not_fit_is_found_wherever_it_stands(
    queue: Queue, named: dict[str, Any], is_awake: bool
) -> None:
    if is_awake:
        queue.ask("enqueue_jobs", "acme", [ECHO], ["{}"])

    with refused("JF400"):
        queue.ask("enqueue_jobs", "acme", [ECHO] * 2, ["{}"] * 2, **named)


def test_ten_thousand_jobs_are_made_and_one_more_is_refused(queue: Queue) -> None:
    with refused("JF400"):
        queue.ask("enqueue_jobs", "acme", [ECHO] * 10_001, ["{}"] * 10_001)
    assert nothing_was_made(queue)

    assert len(queue.enqueue_many(10_000)) == 10_000


@pytest.mark.parametrize("count", [1, 2])
def test_an_input_that_is_too_large_is_refused_wherever_it_stands(queue: Queue, count: int) -> None:
    large = json.dumps("x" * 1_048_576)

    with refused("JF413"):
        queue.ask("enqueue_jobs", "acme", [ECHO] * count, ["{}"] * (count - 1) + [large])

    assert nothing_was_made(queue)


def test_letters_of_every_kind_come_back_as_they_were_sent(strict: Queue) -> None:
    text = "\U0001f4a3\u202e\ufeff\u0001\N{COMBINING ACUTE ACCENT}" + "e\u0301" * 3
    scope = ("acme", text, "j1", "execute-job", text, '{"jti":"j1"}')
    (row,) = send(
        strict,
        [json.dumps({"t": text}, ensure_ascii=False)],
        said=scope,
        signature=SIGNER.sign(*scope),
    )
    (kept,) = strict.look(
        """select j.payload ->> 't' as text, j.created_by, a.trace_id from jobforge.jobs j
        join jobforge.audit_log a on a.job_id = j.id where j.id = %s""",
        row.job_id,
    )
    assert list(vars(kept).values()) == [text, text, text]


def test_those_who_log_in_elsewhere_do_not_enqueue_as_servers_do(queue: Queue) -> None:
    for login in ("jobforge_worker", "jobforge_readonly", "jobforge_scheduler", "jobforge_auditor"):
        for query in (
            "select * from jobforge.enqueue_jobs('acme', array['demo.echo'], array['{}'])",
            "select jobforge.enqueue_plain_jobs('acme', '', '', '', '', '', 'k1', 1, '', 'demo.echo', '{}')",
            "select jobforge.enqueue_leased_job('acme', '', '', '', '', '', 'k1', 1, '', 'demo.echo', '{}', 'w', 1)",
            "select jobforge.enqueue_any_jobs('acme', array['demo.echo'], array['{}'])",
        ):
            with refused("42501"), queue.acting(login) as connection:
                connection.execute(query.encode())
    for query in (
        "select jobforge.scope_digest('', '', 'acme', '', '', '', '', '', '1')",
        "select jobforge.enqueue_any_jobs('acme', array['demo.echo'], array['{}'])",
        "select jobforge.is_signed('acme', '', '', '', '', '', '', now())",
    ):
        with refused("42501"), queue.acting(API) as connection:
            connection.execute(query.encode())
