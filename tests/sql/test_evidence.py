"""Artifacts and manifests: who may write them, when they are shown, and what is swept."""

from __future__ import annotations

import hashlib
import json
from uuid import UUID

import pytest

from tests.sql.acting import (
    WORKER,
    Queue,
    call,
    fences,
    leave_artifact,
    meanwhile,
    refused,
    wait_until_blocked,
)
from tests.sql.conftest import MakeQueue
from tests.sql.test_limits import spawn

CONTENT = b"hello"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def shown(queue: Queue, job_id: UUID, tenant: str = "acme") -> list[tuple[str, int]]:
    rows = queue.ask("list_artifacts", tenant, job_id)
    return [(row.name, row.attempt_no) for row in rows]


def objects(queue: Queue) -> int:
    return queue.look("select count(*) as number from jobforge.artifact_objects")[0].number


# --- artifacts


@pytest.mark.requirement("evidence.artifacts")
def test_an_artifact_is_shown_while_its_attempt_runs_and_after_it_succeeded(queue: Queue) -> None:
    job_id = queue.enqueue().job_id
    claimed = queue.claim_one()
    leave_artifact(queue, claimed)

    running = shown(queue, job_id)
    queue.complete(claimed)
    (read,) = queue.ask("read_artifact", "acme", job_id, "report.md")

    assert running == shown(queue, job_id) == [("report.md", 1)]
    assert (bytes(read.content), read.sha256, read.size) == (CONTENT, DIGEST, 5)
    assert (read.mime_type, read.store, read.expires_at) == ("text/plain", "table", None)


@pytest.mark.requirement("evidence.fence")
def test_an_artifact_of_an_attempt_that_lost_its_lease_is_never_shown(queue: Queue) -> None:
    job_id = queue.enqueue(backoff_ms=0).job_id
    first = queue.claim_one()
    leave_artifact(queue, first, "first.md")

    queue.advance(31)
    expired = shown(queue, job_id)
    with refused("JF410"):
        leave_artifact(queue, first, "late.md")
    queue.reap()
    lost = shown(queue, job_id)
    second = queue.claim_one()
    with refused("JF410"):
        leave_artifact(queue, first, "later.md")
    leave_artifact(queue, second, "second.md")
    queue.complete(second)

    assert expired == lost == []
    assert shown(queue, job_id) == [("second.md", 2)]
    kept = queue.look("select name from jobforge.artifacts where job_id = %s", job_id)
    assert [row.name for row in kept] == ["second.md"]


def test_an_attempt_that_ran_out_by_losing_its_worker_shows_nothing(queue: Queue) -> None:
    job_id = queue.enqueue(max_attempts=1).job_id
    leave_artifact(queue, queue.claim_one())
    queue.lose_worker()

    assert queue.status(job_id) == "dead"
    assert shown(queue, job_id) == []


@pytest.mark.parametrize("wrong", ["tenant", "lease", "epoch"])
@pytest.mark.requirement("evidence.fence")
def test_only_the_living_claim_may_record(queue: Queue, wrong: str) -> None:
    queue.enqueue()
    other = queue.enqueue("globex").job_id
    claimed = queue.claim_one(tenant_ids=["acme"])
    tenant, lease, job, epoch = (row[0] for row in fences([claimed]))
    fences_of: dict[str, tuple[object, ...]] = {
        "tenant": ("globex", lease, job, epoch),
        "lease": (tenant, other, job, epoch),
        "epoch": (tenant, lease, job, claimed.epoch + 1),
    }
    fence = fences_of[wrong]

    with refused("JF410"):
        queue.work("record_artifact", *fence, "a", "text/plain", 5, DIGEST, "table", CONTENT)
    with refused("JF410"):
        queue.work("announce_artifact", *fence, DIGEST, 5, "directory")


def test_a_failed_attempt_keeps_what_it_made_and_the_newest_is_read(queue: Queue) -> None:
    job_id = queue.enqueue(backoff_ms=0).job_id
    first = queue.claim_one()
    leave_artifact(queue, first, content=b"first")
    queue.fail(first)
    queue.advance(1)
    second = queue.claim_one()
    leave_artifact(queue, second, content=b"second")
    queue.complete(second)

    (newest,) = queue.ask("read_artifact", "acme", job_id, "report.md")
    (oldest,) = queue.ask("read_artifact", "acme", job_id, "report.md", 1)

    assert shown(queue, job_id) == [("report.md", 1), ("report.md", 2)]
    assert (bytes(newest.content), bytes(oldest.content)) == (b"second", b"first")


def test_the_artifacts_of_a_success_that_is_retried_go_with_its_result(queue: Queue) -> None:
    job_id = queue.enqueue().job_id
    claimed = queue.claim_one()
    leave_artifact(queue, claimed)
    queue.complete(claimed)

    queue.retry(job_id, force=True)

    assert shown(queue, job_id) == []


def test_the_last_word_on_a_name_counts_and_repeating_it_changes_nothing(queue: Queue) -> None:
    job_id = queue.enqueue().job_id
    claimed = queue.claim_one()
    for content in (b"draft", CONTENT, CONTENT):
        leave_artifact(queue, claimed, content=content)

    (read,) = queue.ask("read_artifact", "acme", job_id, "report.md")

    assert bytes(read.content) == CONTENT


def test_content_that_is_not_what_its_hash_says_is_refused(queue: Queue) -> None:
    queue.enqueue()
    fence = [row[0] for row in fences([queue.claim_one()])]

    with refused("JF400"):
        queue.work("record_artifact", *fence, "a", "text/plain", 5, DIGEST, "table", b"HELLO")


@pytest.mark.parametrize("name", ["", "../etc/passwd", ".hidden", "a b", "x" * 101, "$other"])
def test_a_name_that_could_be_a_path_is_refused(queue: Queue, name: str) -> None:
    queue.enqueue()

    with refused("23514"):
        leave_artifact(queue, queue.claim_one(), name)


def test_an_artifact_ends_when_it_was_said_to(queue: Queue) -> None:
    job_id = queue.enqueue().job_id
    claimed = queue.claim_one()
    leave_artifact(queue, claimed, "short.txt", keep_ms=60_000)
    leave_artifact(queue, claimed, "long.txt")
    queue.complete(claimed)

    queue.advance(61)
    hidden = shown(queue, job_id)
    queue.work("purge_artifacts", 10)

    assert hidden == [("long.txt", 1)]
    rows = queue.look("select name from jobforge.artifacts")
    assert [row.name for row in rows] == ["long.txt"]


# --- content outside


@pytest.mark.requirement("evidence.orphans")
def test_an_object_that_nothing_needs_is_given_out_for_deletion_an_hour_later(queue: Queue) -> None:
    job_id = queue.enqueue().job_id
    claimed = queue.claim_one(lease_ms=3_600_000)
    leave_artifact(queue, claimed, store="directory")
    fence = [row[0] for row in fences([claimed])]
    orphan = hashlib.sha256(b"never recorded").hexdigest()
    queue.work("announce_artifact", *fence, orphan, 14, "directory")
    queue.complete(claimed)

    early = queue.work("purge_artifacts", 10)
    queue.advance(3_601)
    late = queue.work("purge_artifacts", 10)
    queue.look("delete from jobforge.jobs where id = %s", job_id)
    orphaned = queue.work("purge_artifacts", 10)

    assert early == []
    assert [(row.tenant_id, row.store, row.sha256) for row in late] == [
        ("acme", "directory", orphan)
    ]
    assert [row.sha256 for row in orphaned] == [DIGEST]
    assert objects(queue) == 0


def test_content_outside_must_be_announced_before_it_is_recorded(queue: Queue) -> None:
    queue.enqueue()
    fence = [row[0] for row in fences([queue.claim_one()])]

    with refused("JF409"):
        queue.work("record_artifact", *fence, "a", "text/plain", 5, DIGEST, "directory")


@pytest.mark.requirement("evidence.orphans")
def test_who_announces_what_is_being_swept_waits_until_it_is_gone(make_queue: MakeQueue) -> None:
    queue, other, watching = make_queue(), make_queue(), make_queue()
    queue.enqueue()
    claimed = queue.claim_one(lease_ms=3_600_000)
    fence = [row[0] for row in fences([claimed])]
    queue.work("announce_artifact", *fence, DIGEST, 5, "directory")
    queue.look("update jobforge.artifact_objects set announced_at = announced_at - interval '2 h'")

    with other.acting(WORKER) as writing:
        with queue.acting(WORKER) as sweeping:
            swept = call(sweeping, "purge_artifacts", 10)
            announced = meanwhile(
                lambda: call(writing, "announce_artifact", *fence, DIGEST, 5, "directory")
            )
            wait_until_blocked(watching, writing)
        announced.result(30)

    assert [row.sha256 for row in swept] == [DIGEST]
    assert objects(queue) == 1


# --- manifests


@pytest.mark.requirement("evidence.manifest")
def test_a_plain_success_has_a_manifest_without_a_row_of_its_own(queue: Queue) -> None:
    environment = json.dumps({"os": "Linux", "runtime": "CPython 3.11"})
    queue.work("keep_environment", "w1", environment)
    job_id = queue.enqueue(payload='{"b": 1, "a": 2}').job_id
    queue.complete(queue.claim_one(), result='{"done": true}')

    (found,) = queue.ask("get_manifest", "acme", job_id)

    stored = '{"a": 2, "b": 1}'
    assert queue.look("select from jobforge.artifact_manifests") == []
    assert (found.outcome, found.attempt_no, found.worker_id) == ("succeeded", 1, "w1")
    assert found.input_hash == hashlib.sha256(stored.encode()).hexdigest()
    assert found.result_hash == hashlib.sha256(b'{"done": true}').hexdigest()
    assert found.environment == json.loads(environment)
    assert len(found.environment_hash) == 64
    assert found.facts is None
    assert found.finished_at >= found.started_at


@pytest.mark.requirement("evidence.manifest")
def test_every_finished_attempt_has_a_manifest_of_its_own(queue: Queue) -> None:
    job_id = queue.enqueue(backoff_ms=0).job_id
    queue.fail(queue.claim_one(), manifest='{"decisions": [1]}')
    queue.advance(1)
    second = queue.claim_one()
    queue.work("complete_jobs", *fences([second]), ["1"], ['{"decisions": [2]}'])

    (newest,) = queue.ask("get_manifest", "acme", job_id)
    (first,) = queue.ask("get_manifest", "acme", job_id, 1)
    third = queue.ask("get_manifest", "acme", job_id, 3)

    assert (newest.outcome, newest.facts) == ("succeeded", {"decisions": [2]})
    assert (first.outcome, first.facts) == ("failed", {"decisions": [1]})
    assert first.error["code"] == "OOPS"
    assert third == []


def test_a_settle_that_is_refused_leaves_no_manifest(queue: Queue) -> None:
    queue.enqueue(backoff_ms=0)
    stale = queue.claim_one()
    queue.lose_worker()
    answers = queue.work("complete_jobs", *fences([stale]), ["1"], ['{"decisions": [1]}'])

    assert [row.outcome for row in answers] == ["stale"]
    assert queue.look("select from jobforge.artifact_manifests") == []


def test_a_run_that_runs_or_never_began_has_a_pending_manifest(queue: Queue) -> None:
    job_id = queue.enqueue().job_id
    (queued,) = queue.ask("get_manifest", "acme", job_id)
    queue.claim_one()
    (running,) = queue.ask("get_manifest", "acme", job_id)

    assert (queued.outcome, queued.attempt_no, queued.started_at) == ("queued", 0, None)
    assert (running.outcome, running.attempt_no) == ("running", 1)


def test_the_manifest_of_an_unknown_run_is_refused_as_the_run_is(queue: Queue) -> None:
    job_id = queue.enqueue("globex").job_id

    with refused("JF404"):
        queue.ask("get_manifest", "acme", job_id)
    assert shown(queue, job_id, "acme") == []


def test_the_runs_that_a_handler_enqueued_are_listed(queue: Queue) -> None:
    queue.enqueue(trace_id="t")
    parent = queue.claim_one()
    queue.enqueue(trace_id="t")
    child = spawn(queue, parent, "a")

    rows = queue.ask("list_child_runs", "acme", parent.job_id)

    assert [(row.job_id, row.job_type, row.status) for row in rows] == [
        (child.job_id, "demo.echo", "queued")
    ]
