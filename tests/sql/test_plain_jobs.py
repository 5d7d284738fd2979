"""Jobs that ask for nothing: the short function stores what the long one stores, and believes the scope that comes with a call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from jobforge_mcp.db.context import ContextKey, ContextSigner
from jobforge_mcp.router.scope import split_signature
from tests.sql.acting import API, ECHO, Queue, Row, call, enter, refused

KEY = ContextKey("k1", bytes(range(32)))
SIGNER = ContextSigner(KEY)
SAID: tuple[str, ...] = ("acme", "agent", "j1", "execute-job", "t1", '{"jti":"j1"}')
AUTHOR = ("agent", "j1", "execute-job", "t1")
CHOSEN = {
    "priorities",
    "trace_ids",
    "job_versions",
    "max_attempts",
    "backoff_ms",
    "backoff_multipliers",
    "max_backoff_ms",
    "timeout_ms",
    "dry_runs",
    "call_traces",
}
SCOPE = ("actor", "token_id", "tool", "trace_id", "token_claims", "signature")


@pytest.fixture
def strict(queue: Queue) -> Queue:
    """A database that asks for signatures."""
    add_key(queue)
    return queue


def add_key(queue: Queue) -> None:
    """Have the database ask for signatures of this key."""
    queue.look(
        """insert into jobforge.context_keys (key_id, slot, inner_pad, outer_pad, is_enforced, created_at)
        values (%s, 1, %s, %s, true, jobforge.now())""",
        KEY.key_id,
        *KEY.pads(),
    )


def send(
    queue: Queue,
    payloads: Sequence[str] = ("{}",),
    said: Sequence[str | None] = SAID,
    signature: str | None = None,
    **named: object,
) -> list[Row]:
    """Enqueue with the scope in the call; signed, unless something is said of the signature.

    What says more than plain jobs do is for `enqueue_jobs`.
    """
    signature = signature or SIGNER.sign(*SAID)
    with queue.acting(API) as connection:
        if named.keys() <= CHOSEN:
            return one_by_one(call(
                connection, "enqueue_plain_jobs", *said, *split_signature(signature), ECHO,
                list(payloads), **named,
            ))  # fmt: skip
        scope = dict(zip(SCOPE, [*said[1:], signature], strict=True))
        return call(
            connection, "enqueue_jobs", said[0], [ECHO] * len(payloads), list(payloads),
            **scope, **named,
        )  # fmt: skip


def one_by_one(rows: list[Row]) -> list[Row]:
    """Give each job of an answer a row of its own, as the long function does."""
    found = [(job_id, vars(row)) for row in rows for job_id in row.job_ids]
    unleased = {"lease_id": None, "lease_until": None}
    return [
        Row(**row, **unleased, ord=place, job_id=job_id)
        for place, (job_id, row) in enumerate(found, 1)
    ]


def stored(queue: Queue, row: Row) -> list[Any]:
    """Read all that was written of a job, without its id and times."""
    written = queue.look(
        """select to_jsonb(j) - '{id,run_at,created_at}'::text[] as job, to_jsonb(r) - '{job_id,run_at}'::text[] as place,
          j.run_at = r.run_at and j.created_at = r.run_at as is_timely
        from jobforge.jobs j join jobforge.ready r on r.job_id = j.id where j.id = %s""",
        row.job_id,
    )
    audit = audited(queue, row)
    answer = (row.ord, row.outcome, row.status, row.version, row.lease_id, row.lease_until)
    return [written[0].job, written[0].place, written[0].is_timely, audit, answer]


def audited(queue: Queue, row: Row) -> list[Any]:
    rows = queue.look(
        """select to_jsonb(a) - '{id,job_id,occurred_at,xact_no}'::text[] as said from jobforge.audit_log a
        where a.job_id = %s""",
        row.job_id,
    )
    return [row.said for row in rows]


@pytest.mark.parametrize(
    "named",
    [
        {},
        {"trace_ids": ["t9"]},
        {
            "priorities": [1],
            "job_versions": ["2"],
            "max_attempts": [7],
            "timeout_ms": [5],
            "backoff_ms": [6],
            "backoff_multipliers": [3.0],
            "max_backoff_ms": [9],
            "trace_ids": ["t9"],
            "dry_runs": [True],
        },
    ],
    ids=["usual", "traced", "chosen"],
)
@pytest.mark.parametrize("is_awake", [False, True], ids=["lane asleep", "lane awake"])
def test_a_plain_job_is_stored_as_any_other(
    strict: Queue, is_awake: bool, named: dict[str, Any]
) -> None:
    if is_awake:
        send(strict)
    (plain,) = send(strict, ['{"a": 1}'], **named)
    # what the long function is asked for: it has one thing more to look at
    (other,) = send(strict, ['{"a": 1}'], costs=[1], **named)

    mine, others = stored(strict, plain), stored(strict, other)
    assert others[0].pop("cost") == 1
    assert mine[0].pop("cost") is None
    assert mine == others


def test_plain_jobs_of_one_call_have_one_audit_row_and_those_of_several_one_each(
    strict: Queue,
) -> None:
    rows = send(strict, ['{"i": 0}', '{"i": 1}', '{"i": 2}'])
    calls = send(strict, ['{"i": 3}', '{"i": 4}'], call_traces=["t7", ""])

    found = strict.look(
        """select a.actor, a.token_id, a.tool, a.trace_id, a.job_id, a.detail from jobforge.audit_log a
        where a.action = 'enqueue' order by a.job_id nulls first"""
    )
    assert [row.ord for row in rows] == [1, 2, 3]
    assert [row.job_id for row in rows] == sorted(row.job_id for row in rows)
    assert found[0].detail == {"count": 3, "created": 3}
    assert (found[0].actor, found[0].token_id, found[0].tool, found[0].trace_id) == AUTHOR
    assert [(row.trace_id, row.job_id) for row in found[1:]] == [
        ("t7", calls[0].job_id),
        (None, calls[1].job_id),
    ]


def test_inputs_of_one_call_stay_in_their_order(strict: Queue) -> None:
    send(strict, [json.dumps({"i": number}) for number in range(20)])

    found = strict.look("select j.payload ->> 'i' as i from jobforge.jobs j order by j.id")
    assert [row.i for row in found] == [str(number) for number in range(20)]


@pytest.mark.requirement("sql.signed-scope")
@pytest.mark.parametrize("place", range(len(SAID)))
@pytest.mark.parametrize("named", [{}, {"costs": [1]}], ids=["plain", "not plain"])
def test_a_call_whose_scope_is_not_what_was_signed_is_refused(
    strict: Queue, place: int, named: dict[str, Any]
) -> None:
    said: list[str | None] = [*SAID]
    said[place] = '{"jti":"j2"}' if place == 5 else "globex"

    with refused("JF403"):
        send(strict, said=said, **named)


@pytest.mark.requirement("sql.signed-scope")
@pytest.mark.parametrize("signature", ["k1", "k1..", "k1.x.y", "k2.1.1", "\N{SNOWMAN}.1.1"])
def test_a_call_without_a_good_signature_is_refused(strict: Queue, signature: str) -> None:
    with refused("JF403"):
        send(strict, signature=signature, costs=[1])


@pytest.mark.requirement("sql.signed-scope")
@pytest.mark.parametrize(
    "signature",
    [
        (None, None, None),
        ("k1", None, None),
        ("k1", 1, b""),
        ("k2", 1, b"1"),
        ("\N{SNOWMAN}", -(2**63), b"\0"),
        ("k1", 2**63 - 1, bytes(32)),
    ],
)
def test_a_plain_call_without_a_good_signature_is_refused(
    strict: Queue, signature: tuple[str | None, int | None, bytes | None]
) -> None:
    with refused("JF403"), strict.acting(API) as connection:
        call(connection, "enqueue_plain_jobs", *SAID, *signature, ECHO, ["{}"])


@pytest.mark.parametrize(
    ("payloads", "state"),
    [(None, "JF400"), ([], "JF400"), ([None], "JF400"), (["{"], "22P02"), (["{}"] * 10_001, "JF400")],
    ids=["null", "none", "null among them", "no JSON", "too many"],
)  # fmt: skip
def test_a_plain_call_with_other_inputs_is_refused_as_any_other(
    strict: Queue, payloads: list[str | None] | None, state: str
) -> None:
    signature = split_signature(SIGNER.sign(*SAID))
    with refused(state), strict.acting(API) as connection:
        call(connection, "enqueue_plain_jobs", *SAID, *signature, ECHO, payloads)


@pytest.mark.parametrize(
    "claims", ['{"jti":"j1","denyTypes":["demo.*"]}', '{"jti":"j1","jobTypes":["other.*"]}']
)
def test_a_token_with_restrictions_is_asked_about_them_by_a_plain_call_too(
    strict: Queue, claims: str
) -> None:
    said = ("acme", "agent", "j1", "execute-job", "t1", claims)
    with refused("JF403"):
        send(strict, said=said, signature=SIGNER.sign(*said))


def test_a_plain_call_of_a_tenant_with_limits_is_counted(strict: Queue) -> None:
    strict.look("select jobforge.set_limit('acme', 'tenant', null, '{\"max_queued\": 1}')")
    send(strict)

    with refused("JF429"):
        send(strict)


@pytest.mark.requirement("sql.signed-scope")
@pytest.mark.parametrize("seconds", [-32, 32])
def test_a_call_is_refused_when_its_signature_does_not_hold_now(
    strict: Queue, seconds: int
) -> None:
    signature = SIGNER.sign(*SAID)
    strict.advance(seconds)

    with refused("JF403"):
        send(strict, signature=signature)


def test_a_call_brings_its_scope_where_scopes_are_not_signed(queue: Queue) -> None:
    with queue.acting(API) as connection:
        scope = dict(zip(SCOPE, [*SAID[1:], ""], strict=True))
        (row,) = call(connection, "enqueue_jobs", "acme", [ECHO], ["{}"], **scope)

    (said,) = audited(queue, row)
    assert (said["actor"], said["token_id"], said["tool"], said["trace_id"]) == AUTHOR


def test_a_call_that_brings_a_scope_acts_in_no_other(strict: Queue) -> None:
    """Neither does what the transaction said before count, nor does what follows inherit anything."""
    with strict.acting(API) as connection:
        connection.execute(
            "select jobforge.enter_scope('globex', 'a', null, null, null, null, 'k1.1.1')"
        )
        signature = split_signature(SIGNER.sign(*SAID))
        (row,) = one_by_one(call(connection, "enqueue_plain_jobs", *SAID, *signature, ECHO, ["{}"]))
        with refused("JF403"), connection.transaction():
            call(connection, "list_runs", "acme")
    (said,) = audited(strict, row)
    assert (said["tenant_id"], said["actor"]) == ("acme", "agent")


def test_a_revoked_token_enqueues_no_plain_job(strict: Queue) -> None:
    send(strict)
    strict.look(
        """insert into jobforge.policy_tokens (tenant_id, token_id, revoked_at, expires_at)
        values ('acme', 'j1', jobforge.now(), jobforge.now() + interval '1 day')"""
    )
    with refused("JF403"):
        send(strict)
    with refused("JF403"):
        send(strict, ["{}", "{}"])


@pytest.mark.parametrize("payload", ["1e400", "[" + "1" * 309 + "]", '{"a": 1e131071}'])
@pytest.mark.parametrize("count", [1, 2])
def test_a_plain_job_has_no_number_that_is_no_double(
    strict: Queue, payload: str, count: int
) -> None:
    for _ in range(2):  # asleep, and awake
        with refused("JF400"):
            send(strict, [payload] * count, costs=[1] * count)
        with refused("JF400"):
            send(strict, [payload] * count)
        send(strict, ["1e300"])


def test_a_type_that_is_none_is_refused_before_anything_is_written(queue: Queue) -> None:
    for types in (["Not A Type"], ["Not A Type"] * 2):
        with refused("JF400"):
            queue.ask("enqueue_jobs", "acme", types, ["{}"] * len(types))
    with queue.acting(API) as connection:
        enter(connection, "acme")
        assert call(connection, "list_runs", "acme") == []
