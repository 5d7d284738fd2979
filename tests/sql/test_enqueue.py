"""Enqueue: what is stored, what is refused, what the answer says."""

from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest

from tests.sql.acting import ECHO, Queue, refused


def test_a_new_job_is_queued_and_due_at_once(queue: Queue) -> None:
    job = queue.enqueue()

    run = queue.run(job.job_id)

    assert (job.outcome, job.status, job.version) == ("created", "queued", 2)
    assert (run.status, run.attempt_no, run.epoch, run.version) == ("queued", 0, 0, 2)
    assert run.run_at == run.created_at


def test_what_was_given_is_what_a_run_shows(queue: Queue) -> None:
    later = queue.now() + timedelta(hours=1)

    job = queue.enqueue(
        "acme",
        ECHO,
        '{"a": 1}',
        ordering_key="k",
        priority=0,
        run_at=later,
        project_id="p1",
        labels='{"team": "x"}',
        trace_id="t1",
        job_version="7",
        max_attempts=5,
        timeout_ms=1000,
    )

    run = queue.run(job.job_id)
    assert run.run_at == later
    assert (run.ordering_key, run.priority, run.project_id, run.trace_id) == ("k", 0, "p1", "t1")
    assert (run.labels, run.job_version, run.max_attempts) == ({"team": "x"}, "7", 5)
    assert (run.timeout_ms, run.created_by) == (1000, "tester")
    assert queue.ask("get_payload", "acme", job.job_id)[0].get_payload == '{"a": 1}'


def test_a_bulk_call_answers_in_the_order_of_its_elements(queue: Queue) -> None:
    types = ["demo.one", "demo.two", "demo.three"]

    rows = queue.ask("enqueue_jobs", "acme", types, ["{}"] * 3)

    assert [row.ord for row in rows] == [1, 2, 3]
    assert [queue.run(row.job_id).job_type for row in rows] == types


def test_a_bulk_call_of_jobs_without_order_starts_them_in_the_order_of_its_elements(
    queue: Queue,
) -> None:
    ids = queue.enqueue_many(20)

    assert [row.job_id for row in queue.claim(20)] == ids


def test_null_elements_of_a_bulk_call_mean_the_defaults(queue: Queue) -> None:
    first, second = queue.enqueue_many(2, priorities=[0, None], max_attempts=[None, 9])

    assert (queue.run(first).priority, queue.run(first).max_attempts) == (0, 3)
    assert (queue.run(second).priority, queue.run(second).max_attempts) == (2, 9)


def test_a_plan_writes_nothing_but_its_audit_row(queue: Queue) -> None:
    rows = queue.ask("enqueue_jobs", "acme", [ECHO], ["{}"], is_plan=True)

    assert [(row.job_id, row.outcome) for row in rows] == [(None, "created")]
    assert queue.look("select 1 as one from jobforge.jobs") == []
    audit = queue.look("select action, outcome from jobforge.audit_log")
    assert [(row.action, row.outcome) for row in audit] == [("enqueue", "planned")]


def test_a_plan_tells_which_key_was_used_before(queue: Queue) -> None:
    job = queue.enqueue(idempotency_key="k")

    arguments = ([ECHO] * 2, ["{}", "{}"], None, ["k", "other"])
    rows = queue.ask("enqueue_jobs", "acme", *arguments, is_plan=True)

    assert [row.outcome for row in rows] == ["replayed", "created"]
    assert [row.job_id for row in rows] == [job.job_id, None]


def test_a_bulk_call_is_one_audit_row_with_its_author(queue: Queue) -> None:
    queue.enqueue_many(3)

    audit = queue.look("select action, outcome, actor, detail from jobforge.audit_log")
    assert [(row.action, row.outcome, row.actor) for row in audit] == [
        ("enqueue", "created", "tester")
    ]
    assert audit[0].detail == {"count": 3, "created": 3}


# --- already leased


def test_a_job_can_be_handed_to_a_free_worker_at_once(queue: Queue) -> None:
    row = queue.ask("enqueue_jobs", "acme", [ECHO], ["{}"], worker_id="w1")[0]

    run = queue.run(row.job_id)
    assert (row.status, row.version) == ("running", 4)
    assert (run.status, run.epoch, run.attempt_no, run.worker_id, run.version) == (
        "running",
        1,
        1,
        "w1",
        4,
    )
    assert run.lease_until == row.lease_until


def test_a_job_is_not_handed_over_ahead_of_others_of_its_lane(queue: Queue) -> None:
    queue.enqueue(priority=3)

    row = queue.ask("enqueue_jobs", "acme", [ECHO], ["{}"], worker_id="w1")[0]

    assert (row.status, row.lease_id) == ("queued", None)
    assert queue.place(row.job_id) == ["ready"]


def test_a_job_is_handed_over_ahead_of_others_that_are_not_due(queue: Queue) -> None:
    queue.enqueue(run_at=queue.now() + timedelta(hours=1))

    row = queue.ask("enqueue_jobs", "acme", [ECHO], ["{}"], worker_id="w1")[0]

    assert row.status == "running"


def test_a_job_of_the_future_is_not_handed_over(queue: Queue) -> None:
    later = queue.now() + timedelta(hours=1)

    row = queue.ask("enqueue_jobs", "acme", [ECHO], ["{}"], run_ats=[later], worker_id="w1")[0]

    assert (row.status, row.lease_id) == ("queued", None)


def test_a_job_with_an_ordering_key_is_not_handed_over(queue: Queue) -> None:
    row = queue.ask("enqueue_jobs", "acme", [ECHO], ["{}"], ordering_keys=["k"], worker_id="w1")[0]

    assert (row.status, row.lease_id) == ("queued", None)
    assert queue.place(row.job_id) == ["ready"]


def test_a_replayed_job_is_not_handed_over_again(queue: Queue) -> None:
    arguments = ("enqueue_jobs", "acme", [ECHO], ["{}"], None, ["k"])
    first = queue.ask(*arguments, worker_id="w1")[0]

    again = queue.ask(*arguments, worker_id="w1")[0]

    assert (again.job_id, again.outcome, again.lease_id) == (first.job_id, "replayed", None)
    assert again.status == "running"


def test_several_jobs_are_queued_even_if_a_worker_is_named(queue: Queue) -> None:
    ids = queue.enqueue_many(2, worker_id="w1", ordering_keys=[None, "k"])

    assert [queue.place(job_id) for job_id in ids] == [["ready"], ["ready"]]


# --- refused


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"priorities": [4]}, "a priority is 0 to 3, and 0 is first"),
        ({"priorities": [None, -1]}, "a priority is 0 to 3, and 0 is first"),
        ({"max_attempts": [0]}, "a job has 1 to 1,000 attempts"),
        ({"timeout_ms": [0]}, "a timeout is 1 ms to 7 days"),
        ({"backoff_ms": [-1]}, "a backoff is 0 ms or more, and becomes 1 to 100 times as long"),
        (
            {"backoff_multipliers": [0.5]},
            "a backoff is 0 ms or more, and becomes 1 to 100 times as long",
        ),
        ({"costs": [0]}, "a cost is 1 to 1,000,000"),
        ({"ordering_keys": [""]}, "an ordering key has 1 to 255 bytes"),
        ({"ordering_keys": [None, "k" * 256]}, "an ordering key has 1 to 255 bytes"),
        (
            {"job_types": ["Not.A.Type"]},
            "the job type must be 1 to 100 lower-case letters, digits, dots, hyphens or underscores",
        ),
        (
            {"job_types": [ECHO, "Not.A.Type"]},
            "the job type must be 1 to 100 lower-case letters, digits, dots, hyphens or underscores",
        ),
        (
            {"project_ids": ["no spaces"]},
            "a project id has 1 to 63 letters, digits, dots, colons, hyphens or underscores",
        ),
        ({"labels": ["[1]"]}, "labels are one object"),
        ({"trace_ids": ["t" * 256]}, "a trace id has at most 255 bytes"),
        ({"job_versions": [""]}, "a job version has 1 to 100 bytes"),
        ({"run_ats": ["infinity"]}, "a run is due from 1970 to 9999, in UTC"),
        ({"run_ats": ["-infinity"]}, "a run is due from 1970 to 9999, in UTC"),
        ({"run_ats": ["10000-01-01 00:00Z"]}, "a run is due from 1970 to 9999, in UTC"),
    ],
)
@pytest.mark.parametrize("is_plan", [False, True])
def test_a_value_out_of_range_is_refused_in_words(
    queue: Queue, given: dict[str, list[object]], message: str, is_plan: bool
) -> None:
    count = max(len(values) for values in given.values())
    lists = {"job_types": [ECHO] * count, "payloads": ["{}"] * count, **given}
    with pytest.raises(psycopg.Error) as caught:
        queue.ask("enqueue_jobs", "acme", **lists, is_plan=is_plan)

    assert (caught.value.sqlstate, caught.value.diag.message_primary) == ("JF400", message)


@pytest.mark.parametrize("key", ["", "é" * 128])
def test_an_idempotency_key_that_does_not_fit_is_refused_by_name(queue: Queue, key: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        queue.ask("enqueue_jobs", "acme", [ECHO], ["{}"], None, [key])

    assert caught.value.diag.constraint_name == "idempotency_keys_key_fits"


@pytest.mark.parametrize(
    "given",
    [
        {"job_type": "Not.A.Type"},
        {"job_type": None},
        {"payload": None},
        {"idempotency_key": ""},
        {"idempotency_key": "é" * 128},
        {"ordering_key": "k" * 256},
        {"priority": 4},
        {"run_at": "infinity"},
        {"run_at": "10000-01-01 00:00Z"},
        {"run_at": "1969-12-31 23:59Z"},
        {"project_id": "no spaces"},
        {"trace_id": "t" * 256},
        {"labels": "[1]"},
        {"payload": "[" * 65 + "]" * 65},
        {"payload": '{"a": ' * 64 + "[]" + "}" * 64},
        {"payload": '{"a": [9007199254740993]}'},
        {"payload": '{"a": -1e20}'},
    ],
)
def test_who_enqueues_one_job_is_told_in_words_what_is_wrong(
    queue: Queue, given: dict[str, object]
) -> None:
    with pytest.raises(psycopg.Error) as caught:
        queue.enqueue(**given)  # pyright: ignore[reportArgumentType]

    assert caught.value.sqlstate == "JF400"
    assert "constraint" not in str(caught.value.diag.message_primary)


@pytest.mark.parametrize(
    "payload",
    [
        "[" * 64 + "]" * 64,
        '{"a": [' + "[]," * 100 + "[]]}",
        '{"a": 9007199254740992, "b": -9007199254740992}',
        '{"a": "9007199254740993", "b": 0.12345678901234567}',
    ],
)
def test_an_input_at_the_limits_is_taken(queue: Queue, payload: str) -> None:
    assert queue.enqueue(payload=payload).outcome == "created"


@pytest.mark.parametrize("tenant", ["", " ", "-acme", "a" * 64, "acme corp", "acme/x"])
def test_a_malformed_tenant_is_refused(queue: Queue, tenant: str) -> None:
    with refused("JF403"):
        queue.enqueue(tenant)


def test_as_many_payloads_as_types_are_needed(queue: Queue) -> None:
    with refused("JF400"):
        queue.ask("enqueue_jobs", "acme", [ECHO, ECHO], ["{}"])


def test_no_jobs_are_refused(queue: Queue) -> None:
    with refused("JF400"):
        queue.ask("enqueue_jobs", "acme", [], [])


def test_a_missing_payload_is_refused(queue: Queue) -> None:
    with refused("JF400"):
        queue.ask("enqueue_jobs", "acme", [ECHO], [None])


@pytest.mark.parametrize("column", ["payloads", "received"])
def test_a_payload_above_one_mebibyte_is_refused(queue: Queue, column: str) -> None:
    given = {"payloads": ["{}"], column: [f'"{"x" * 1_048_575}"']}

    with refused("JF413"):
        queue.ask("enqueue_jobs", "acme", [ECHO], **given)


def test_a_payload_of_exactly_one_mebibyte_is_taken(queue: Queue) -> None:
    text = f'"{"x" * 1_048_574}"'

    row = queue.ask("enqueue_jobs", "acme", [ECHO], [text])[0]

    assert queue.ask("get_payload", "acme", row.job_id)[0].get_payload == text


def test_labels_above_their_limit_are_refused(queue: Queue) -> None:
    with refused("JF413"):
        queue.enqueue(labels=f'{{"a": "{"x" * 16_384}"}}')


def test_a_payload_that_is_no_json_is_refused(queue: Queue) -> None:
    with refused("22P02"):
        queue.ask("enqueue_jobs", "acme", [ECHO], ["{"])


def test_one_bad_job_of_a_bulk_call_refuses_all(queue: Queue) -> None:
    with refused("JF400"):
        queue.enqueue_many(3, priorities=[1, 2, 9])

    assert queue.look("select 1 as one from jobforge.jobs") == []
