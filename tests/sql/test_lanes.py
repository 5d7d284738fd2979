"""Jobs of registered definitions: seen under their own name, claimed in the lane of their handler."""

from __future__ import annotations

import pytest

from tests.sql.acting import ECHO, Queue, Row, refused

NAMED = "acme.greeting"


def define(
    queue: Queue, tenant: str = "acme", *, job_type: str = NAMED, version: str = "1"
) -> None:
    """Have a definition there that runs in the lane of the echo handler."""
    queue.look(
        """insert into jobforge.job_definitions (tenant_id, job_type, job_version, definition,
          definition_hash, created_at, lane_type, approved_at)
        values (%s, %s, %s, jsonb_build_object('version', %s::text), '', jobforge.now(), %s, jobforge.now())""",
        tenant,
        job_type,
        version,
        version,
        ECHO,
    )
    queue.look(
        """insert into jobforge.registered_jobs
          (tenant_id, job_type, name_key, job_version, latest_version, version_no, search_text, created_at, updated_at)
        values (%s, %s, %s, %s, %s, 1, '', jobforge.now(), jobforge.now())
        on conflict (tenant_id, job_type) do update set job_version = excluded.job_version""",
        tenant,
        job_type,
        job_type,
        version,
        version,
    )


def enqueue(queue: Queue, version: str = "1", **named: object) -> Row:
    """Enqueue one job of the definition."""
    (row,) = queue.ask(
        "enqueue_jobs",
        "acme",
        [NAMED],
        ["{}"],
        job_versions=[version],
        lane_types=[ECHO],
        **named,
    )
    return row


@pytest.mark.requirement("definitions.lanes")
def test_a_worker_of_the_handler_claims_it_with_the_definition_it_began_with(queue: Queue) -> None:
    define(queue)
    job = enqueue(queue)
    define(queue, version="2")
    plain = queue.enqueue()

    claimed, other = queue.claim(2)

    assert (claimed.job_id, claimed.job_type, claimed.lane_type) == (job.job_id, NAMED, ECHO)
    assert claimed.definition == '{"version": "1"}'
    assert (other.job_id, other.lane_type, other.definition) == (plain.job_id, None, None)


@pytest.mark.requirement("definitions.lanes")
def test_everybody_sees_its_own_name(queue: Queue) -> None:
    define(queue)
    job = enqueue(queue)
    queue.enqueue()

    assert queue.run(job.job_id).job_type == NAMED
    for status in (None, "queued"):
        found = queue.ask("list_runs", "acme", job_type=NAMED, status=status)
        assert [run.job_id for run in found] == [job.job_id]
    stats = {row.job_type: row.queued for row in queue.ask("queue_stats", "acme")}
    assert stats == {NAMED: 1, ECHO: 1}
    assert len(queue.ask("list_runs", "acme", job_type=ECHO, status="queued")) == 1


def test_a_living_worker_of_the_handler_counts(queue: Queue) -> None:
    define(queue)
    job = enqueue(queue)
    before = queue.explain(job.job_id).cause
    queue.register()

    assert (before, queue.explain(job.job_id).cause) == ("no_worker", "queued_behind")


def test_it_comes_back_to_its_lane_after_a_failure_a_loss_and_a_retry(queue: Queue) -> None:
    define(queue)
    job = enqueue(queue, backoff_ms=[0], max_attempts=[2])
    queue.fail(queue.claim_one())
    queue.claim_one()
    queue.lose_worker()
    assert queue.status(job.job_id) == "dead"
    queue.retry(job.job_id)

    again = queue.claim_one()

    assert (again.job_id, again.job_type, again.lane_type) == (job.job_id, NAMED, ECHO)
    assert again.definition == '{"version": "1"}'


def test_its_turn_in_an_ordering_key_comes_in_its_lane(queue: Queue) -> None:
    define(queue)
    first = enqueue(queue, ordering_keys=["o"])
    second = enqueue(queue, ordering_keys=["o"])
    assert queue.status(second.job_id) == "waiting"

    claimed = queue.claim_one()
    queue.complete(claimed)

    assert claimed.job_id == first.job_id
    assert queue.claim_one().job_id == second.job_id


def test_it_can_be_canceled_while_it_is_queued(queue: Queue) -> None:
    define(queue)
    job = enqueue(queue)

    assert queue.cancel(job.job_id).status == "canceled"
    assert queue.place(job.job_id) == []
    assert queue.claim(1) == []


def test_a_free_slot_takes_it_at_once_only_if_nothing_of_its_lane_waits(queue: Queue) -> None:
    define(queue)
    at_once = enqueue(queue, worker_id="w1")
    queue.enqueue()
    behind = enqueue(queue, worker_id="w1")

    assert at_once.status == "running"
    assert (behind.status, behind.lease_id) == ("queued", None)


@pytest.mark.requirement("definitions.lanes")
def test_a_limit_of_a_type_counts_the_name_and_not_the_lane(queue: Queue) -> None:
    define(queue)
    for name in (NAMED, ECHO):
        queue.look("select jobforge.set_limit('acme', 'type', %s, '{\"max_running\": 1}')", name)
    named = [enqueue(queue).job_id for _ in range(2)]
    plain = [queue.enqueue().job_id for _ in range(2)]

    claimed = queue.claim(4)

    assert {row.job_id for row in claimed} == {named[0], plain[0]}
    assert queue.explain(named[1]).cause in ("limit_reached", "no_worker")
    queue.complete(*[row for row in claimed if row.job_id == named[0]])
    assert [row.job_id for row in queue.claim(4)] == [named[1]]


def test_a_lane_that_no_approved_version_has_is_refused(queue: Queue) -> None:
    define(queue)
    queue.look("update jobforge.job_definitions set approved_at = null where job_version = '1'")
    with refused("JF404"):
        enqueue(queue)
    with refused("JF404"):
        enqueue(queue, version="7")
    with refused("JF404"):
        queue.ask("enqueue_jobs", "acme", ["x.y"], ["{}"], job_versions=["1"], lane_types=[ECHO])
    with refused("JF404"):
        queue.ask("enqueue_jobs", "globex", [NAMED], ["{}"], job_versions=["1"], lane_types=[ECHO])


def test_a_child_keeps_its_lane(queue: Queue) -> None:
    define(queue)
    queue.enqueue()
    parent = queue.claim_one()
    (child,) = queue.work(
        "enqueue_child",
        *("acme", parent.lease_id, parent.job_id, parent.epoch, NAMED, "{}", "{}", None, None, 2),
        *(None, None, "1", 3, 1000, 2.0, 60000, 300000),
        lane_type=ECHO,
    )

    claimed = queue.claim_one()

    assert (claimed.job_id, claimed.lane_type) == (child.job_id, ECHO)
