"""Pause and resume of a tenant, a type and a project."""

from __future__ import annotations

import pytest

from tests.sql.acting import ECHO, Queue, refused

OTHER = "other.type"
TYPES = (ECHO, OTHER)


def pause(queue: Queue, kind: str, name: str | None = None, reason: str | None = None) -> str:
    return queue.ask("pause_queue", "acme", kind, name, reason)[0].outcome


def resume(queue: Queue, kind: str, name: str | None = None) -> str:
    return queue.ask("resume_queue", "acme", kind, name)[0].resume_queue


def claimed(queue: Queue) -> set[str]:
    return {row.job_type for row in queue.claim(50, types=TYPES)}


@pytest.mark.requirement("sql.pause")
def test_nothing_of_a_paused_tenant_starts(queue: Queue) -> None:
    queue.enqueue()
    queue.enqueue(tenant="zeta", job_type=OTHER)
    pause(queue, "tenant")

    assert claimed(queue) == {OTHER}
    assert resume(queue, "tenant") == "resumed"
    assert claimed(queue) == {ECHO}


@pytest.mark.requirement("sql.pause")
def test_nothing_of_a_paused_type_starts(queue: Queue) -> None:
    queue.enqueue()
    queue.enqueue(job_type=OTHER)
    pause(queue, "type", ECHO)

    assert claimed(queue) == {OTHER}
    resume(queue, "type", ECHO)
    assert claimed(queue) == {ECHO}


@pytest.mark.requirement("sql.pause")
def test_nothing_of_a_paused_project_starts_and_its_neighbours_do(queue: Queue) -> None:
    held = [queue.enqueue(project_id="p1").job_id for _ in range(3)]
    free = queue.enqueue(project_id="p2").job_id
    bare = queue.enqueue().job_id
    pause(queue, "project", "p1")

    assert {row.job_id for row in queue.claim(50)} == {free, bare}
    assert {queue.status(job) for job in held} == {"queued"}
    resume(queue, "project", "p1")
    assert {row.job_id for row in queue.claim(50)} == set(held)


def test_more_parked_runs_than_one_call_brings_back_follow(queue: Queue) -> None:
    queue.enqueue_many(20, project_ids=["p1"] * 20)
    pause(queue, "project", "p1")
    queue.claim(50)
    queue.look("delete from jobforge.pauses")  # as if the call had ended after its first batch

    queue.tend()

    assert len(queue.claim(50)) == 20


def test_what_runs_goes_on_and_its_retry_waits(queue: Queue) -> None:
    job = queue.enqueue().job_id
    running = queue.claim_one()
    pause(queue, "type", ECHO)

    queue.release(running)

    assert queue.claim(1) == []
    assert queue.status(job) == "queued"


def test_suspects_of_a_paused_lane_wait(queue: Queue) -> None:
    queue.enqueue_many(2)
    queue.claim(2)
    queue.lose_worker()
    pause(queue, "tenant")

    assert queue.claim(2) == []


def test_an_inline_call_does_not_pass_a_pause(queue: Queue) -> None:
    pause(queue, "project", "p1")

    (row,) = queue.ask("enqueue_jobs", "acme", [ECHO], ["{}"], worker_id="w1", project_ids=["p1"])

    assert row.lease_id is None


@pytest.mark.parametrize(("kind", "name"), [("tenant", None), ("type", ECHO), ("project", "p1")])
def test_explain_says_what_is_paused_by_whom_and_why(
    queue: Queue, kind: str, name: str | None
) -> None:
    job = queue.enqueue(project_id="p1").job_id
    pause(queue, kind, name, "provider is down")

    cause = queue.explain(job)

    assert cause.cause == "paused"
    assert "tester: provider is down" in cause.message


def test_a_second_pause_changes_nothing(queue: Queue) -> None:
    assert pause(queue, "type", ECHO, "first") == "paused"
    assert pause(queue, "type", ECHO, "second") == "unchanged"

    (found,) = queue.ask("list_pauses", "acme")
    assert (found.kind, found.name, found.reason, found.paused_by) == (
        "type",
        ECHO,
        "first",
        "tester",
    )


def test_resuming_what_is_not_paused_changes_nothing(queue: Queue) -> None:
    assert resume(queue, "tenant") == "unchanged"


def test_pauses_are_audited(queue: Queue) -> None:
    pause(queue, "project", "p1", "why")
    resume(queue, "project", "p1")

    rows = queue.look("select action, outcome, detail from jobforge.audit_log order by id")
    assert [(row.action, row.outcome, row.detail) for row in rows] == [
        ("pause", "paused", {"kind": "project", "name": "p1", "reason": "why"}),
        ("resume", "resumed", {"kind": "project", "name": "p1"}),
    ]


@pytest.mark.parametrize(
    ("kind", "name"),
    [("tenant", "x"), ("type", None), ("queue", "x"), (None, None), ("type", "x" * 201)],
)
def test_what_cannot_be_paused_is_refused(queue: Queue, kind: str | None, name: str | None) -> None:
    with refused("JF400"):
        queue.ask("pause_queue", "acme", kind, name)
