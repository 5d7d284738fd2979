"""Traps that others fell into, each by its name in ``reference/security.md`` §1.3 where it has one.

Those that need more than SQL are tested where they belong: LISTEN and poolers in ``tests/db``, disk and failover in the
soak. Per-key order (``NOT EXISTS earlier``) is ``test_ordering.test_the_job_that_committed_first_starts_first``;
racing enqueues and the REPEATABLE READ caller are in ``test_idempotency``.
"""

from __future__ import annotations

import random
import string

import pytest

from tests.sql.acting import API, ECHO, SUPERUSER, WORKER, Queue, call, enter, fences, refused
from tests.sql.conftest import MakeQueue

EXPLOSIVE = ["1e131071", "-1E+131071", "1e309", "1e0309", "1e-400", "9" * 400, "0." + "1" * 400]


def incompressible(length: int) -> str:
    return "".join(random.Random(7).choices(string.ascii_letters, k=length))


# --- key length


@pytest.mark.parametrize("column", ["idempotency_key", "ordering_key", "trace_id"])
def test_a_long_key_is_refused_by_a_named_check_and_not_by_its_index(
    queue: Queue, column: str
) -> None:
    with refused("23514" if column == "idempotency_key" else "JF400"):
        queue.ask(
            "enqueue_jobs", "acme", ["demo.echo"], ["{}"], **{f"{column}s": [incompressible(2700)]}
        )
    with refused("JF400"):
        queue.enqueue(**{column: incompressible(2700)})


@pytest.mark.parametrize("column", ["idempotency_key", "ordering_key", "trace_id"])
def test_the_longest_key_is_taken_whatever_its_letters(queue: Queue, column: str) -> None:
    job = queue.enqueue(**{column: incompressible(255)})

    assert job.outcome == "created"


# --- claim fetch


def test_a_claim_hands_inputs_over_as_text_so_that_one_that_cannot_be_decoded_fails_alone(
    queue: Queue,
) -> None:
    deep = "[" * 3000 + "]" * 3000
    # not by enqueue_job, which would refuse it
    queue.ask("enqueue_jobs", "acme", [ECHO] * 2, [deep, "{}"])

    claimed = queue.claim(10)

    assert [type(row.payload) for row in claimed] == [str, str]
    assert sorted(row.payload for row in claimed) == sorted([deep, "{}"])
    queue.fail(claimed[0], kind="permanent")
    queue.complete(claimed[1])


@pytest.mark.parametrize("moment", ["infinity", "-infinity", "10000-01-01 00:00Z", "0001-01-01"])
@pytest.mark.parametrize("function", ["enqueue", "retry"])
def test_a_time_that_python_cannot_hold_is_never_stored(
    queue: Queue, function: str, moment: str
) -> None:
    job = queue.enqueue()
    queue.cancel(job.job_id)

    with refused("JF400"):
        if function == "enqueue":
            queue.enqueue_many(1, run_ats=[moment])
        else:
            queue.retry(job.job_id, run_at=moment)


# --- big numbers


@pytest.mark.parametrize("number", EXPLOSIVE, ids=lambda number: number[:10])
@pytest.mark.parametrize("column", ["payloads", "received", "labels"])
def test_a_number_that_explodes_when_written_out_is_refused(
    queue: Queue, column: str, number: str
) -> None:
    given = {"payloads": ["{}"], column: [f'{{"a": {number}}}']}

    with refused("JF400"):
        queue.ask("enqueue_jobs", "acme", [ECHO], **given)


def test_a_number_that_explodes_is_refused_also_where_jsonb_already_holds_it(
    queue: Queue,
) -> None:
    with refused("JF400"):
        queue.enqueue(payload='{"a": 1e131071}')


def test_a_result_that_explodes_is_refused_and_the_run_stays_held(queue: Queue) -> None:
    queue.enqueue()
    claimed = queue.claim_one()

    with refused("JF400"):
        queue.complete(claimed, result="1e131071")

    assert queue.place(claimed.job_id) == ["lease"]


def test_many_numbers_that_explode_a_little_are_refused_together(queue: Queue) -> None:
    with refused("JF413"):
        queue.ask("enqueue_jobs", "acme", [ECHO], ["[" + "1e300," * 20_000 + "1]"])


@pytest.mark.parametrize(
    "payload",
    [
        '{"a": 1.7976931348623157e308, "b": -2.5e-308, "c": 9007199254740991}',
        '{"a": "1e131071", "b": "x\\"1e131071", "1e131071": 0}',
        '{"hash": "7e999e999", "digits": "' + "9" * 1000 + '"}',
    ],
    ids=["doubles", "text", "digits"],
)
def test_what_only_looks_like_a_large_number_is_taken(queue: Queue, payload: str) -> None:
    job = queue.ask("enqueue_jobs", "acme", [ECHO], [payload])[0]

    assert job.outcome == "created"


# --- pooled settings


def test_a_tenant_does_not_outlast_its_transaction(make_queue: MakeQueue) -> None:
    queue = make_queue()
    queue.enqueue()

    with queue.acting(API) as connection:
        row = connection.execute("select jobforge.current_tenant()").fetchone()
    with refused("JF403"), queue.acting(API) as connection:
        call(connection, "list_runs", "acme")

    assert row == (None,)


def test_nothing_that_a_function_sets_outlasts_its_transaction(make_queue: MakeQueue) -> None:
    queue = make_queue()
    queue.enqueue()
    queue.claim(1)

    with queue.acting(WORKER) as connection:
        row = connection.execute("show synchronous_commit").fetchone()

    assert row == ("on",)


def test_no_function_takes_a_lock_that_outlasts_its_transaction(queue: Queue) -> None:
    rows = queue.look(
        """select proname from pg_proc where pronamespace = 'jobforge'::regnamespace
        and prosrc ~ 'pg_(try_)?advisory_lock'"""
    )

    assert rows == []


# --- a held xmin horizon


def test_an_old_snapshot_changes_nothing_of_what_is_claimed(make_queue: MakeQueue) -> None:
    old, queue = make_queue(), make_queue()
    with old.acting(SUPERUSER) as holding:
        holding.execute("set transaction isolation level repeatable read")
        holding.execute("select count(*) from jobforge.ready")

        seen: set[object] = set()
        for _ in range(10):
            queue.enqueue_many(30)
            claimed = queue.claim(30)
            seen |= {row.job_id for row in claimed}
            assert {row.outcome for row in queue.complete(*claimed)} == {"accepted"}

    assert len(seen) == 300


# --- a repeated answer that was lost


def test_a_settle_whose_answer_was_lost_can_be_sent_again_after_the_lease_would_have_ended(
    queue: Queue,
) -> None:
    queue.enqueue()
    claimed = queue.claim_one()
    queue.complete(claimed, result="1")
    queue.advance(3600)
    queue.reap()

    (again,) = queue.complete(claimed, result="1")

    assert (again.outcome, again.status) == ("repeated", "succeeded")


# --- statements about text that is not text


@pytest.mark.parametrize("payload", ['"\\u0000"', '"\\ud800"', "NaN", "Infinity", "'x'", ""])
def test_what_is_no_json_text_is_refused_as_a_value(queue: Queue, payload: str) -> None:
    with pytest.raises(Exception, match=r"(?i)json|unicode") as caught:
        queue.ask("enqueue_jobs", "acme", [ECHO], [payload])

    assert getattr(caught.value, "sqlstate", "")[:2] == "22"


# --- the scope of one statement, as the router calls it


def test_scope_and_call_in_one_statement_agree(queue: Queue) -> None:
    job = queue.enqueue()

    with queue.acting(API) as connection:
        connection.execute("reset jobforge.tenant_id")
        row = connection.execute(
            """select r.job_id from jobforge.enter_scope('acme', 'a', null, null, null) as s(tenant_id),
            lateral jobforge.get_run(s.tenant_id, %s) as r""",
            [job.job_id],
        ).fetchone()

    assert row == (job.job_id,)


def test_a_scope_can_be_changed_within_a_transaction_and_the_last_one_counts(
    queue: Queue,
) -> None:
    queue.enqueue("acme")

    with queue.acting(API) as connection:
        enter(connection, "acme")
        enter(connection, "globex")
        with refused("JF403"), connection.transaction():
            call(connection, "list_runs", "acme")
        assert call(connection, "list_runs", "globex") == []


def test_a_fence_of_one_tenant_settles_nothing_of_another(queue: Queue) -> None:
    queue.enqueue("acme")
    queue.enqueue("globex")
    mine, other = queue.claim(2)
    tenants, leases, ids, epochs = fences([mine])

    (answer,) = queue.work("complete_jobs", tenants, leases, [other.job_id], epochs, ["null"])

    assert answer.outcome == "stale"
    assert ids == [mine.job_id]
    assert queue.status(other.job_id, other.tenant_id) == "running"
