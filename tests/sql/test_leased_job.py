"""A job for a free slot of the caller's own pool: the short function stores, leases and refuses what the long one does."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from jobforge_mcp.router.scope import split_signature
from tests.postgres import ScratchDatabase
from tests.sql.acting import API, ECHO, Queue, Row, call, refused
from tests.sql.conftest import MakeQueue
from tests.sql.test_plain_jobs import AUTHOR, SAID, SCOPE, SIGNER, add_key, audited

CHOSEN: dict[str, Any] = {
    "priority": 1,
    "job_trace_id": "t9",
    "job_version": "2",
    "max_attempts": 7,
    "backoff_ms": 6,
    "backoff_multiplier": 3.0,
    "max_backoff_ms": 9,
    "timeout_ms": 5,
    "is_dry_run": True,
}
ARRAYS = {
    "priority": "priorities",
    "job_trace_id": "trace_ids",
    "job_version": "job_versions",
    "max_attempts": "max_attempts",
    "backoff_ms": "backoff_ms",
    "backoff_multiplier": "backoff_multipliers",
    "max_backoff_ms": "max_backoff_ms",
    "timeout_ms": "timeout_ms",
    "is_dry_run": "dry_runs",
}


def lease(
    queue: Queue,
    payload: str | None = "{}",
    said: Sequence[str | None] = SAID,
    signature: str | None = None,
    worker_id: str | None = "w1",
    lease_ms: int = 30_000,
    job_type: str | None = ECHO,
    **named: object,
) -> Row:
    """Enqueue by the short function, signed unless something is said of the signature."""
    signed = split_signature(signature or SIGNER.sign(*SAID))
    with queue.acting(API) as connection:
        given = [*said, *signed, job_type, payload, worker_id, lease_ms]
        (row,) = call(connection, "enqueue_leased_job", *given, **named)
    return row


def lease_as_any(
    queue: Queue, payload: str | None = "{}", job_type: str | None = ECHO, **named: object
) -> Row:
    """Enqueue the same by the long function."""
    scope = dict(zip(SCOPE, [*SAID[1:], SIGNER.sign(*SAID)], strict=True))
    given = {ARRAYS[name]: [value] for name, value in named.items()}
    with queue.acting(API) as connection:
        (row,) = call(
            connection, "enqueue_jobs", "acme", [job_type], [payload], worker_id="w1", **scope, **given
        )  # fmt: skip
    return row


def stored(queue: Queue, row: Row) -> list[Any]:
    """Read all that was written of a job, without its ids and times."""
    (written,) = queue.look(
        """select to_jsonb(j) - '{id,run_at,created_at}'::text[] as job, l.worker_id, l.is_suspect, l.epochs, l.attempt_nos,
          l.cancel_ids, l.job_ids = array[j.id] and l.lease_id = %s as is_its, l.lease_until - l.claimed_at as length,
          l.overdue_at - l.claimed_at as overdue, l.deadlines = array[l.overdue_at] as is_one,
          j.run_at = l.claimed_at and j.created_at = l.claimed_at as is_timely
        from jobforge.jobs j join jobforge.leases l on l.tenant_id = j.tenant_id and j.id = any (l.job_ids) where j.id = %s""",
        row.lease_id,
        row.job_id,
    )
    answer = (row.ord, row.outcome, row.status, row.version, row.lease_until - row.created_at)
    run = queue.run(row.job_id)
    assert (run.status, run.version, run.lease_until) == (row.status, row.version, row.lease_until)
    return [list(vars(written).values()), audited(queue, row), answer, queue.place(row.job_id)]


@pytest.fixture
def strict(queue: Queue) -> Queue:
    """A database that asks for signatures."""
    add_key(queue)
    return queue


@pytest.fixture
def loose(strict: Queue) -> Queue:
    """A database that checks signatures, and lets tests arrange things without any."""
    strict.look("update jobforge.context_keys set is_enforced = false")
    return strict


@pytest.mark.parametrize("named", [{}, CHOSEN], ids=["usual", "chosen"])
def test_a_leased_job_is_stored_as_any_other(loose: Queue, named: dict[str, Any]) -> None:
    mine, others = lease(loose, '{"a": 1}', **named), lease_as_any(loose, '{"a": 1}', **named)

    found = stored(loose, mine)
    assert found == stored(loose, others)
    (said,) = found[1]
    assert (said["actor"], said["token_id"], said["tool"], said["trace_id"]) == AUTHOR
    assert mine.lease_id != others.lease_id


def is_queued(queue: Queue, row: Row) -> bool:
    return (row.status, row.lease_id, queue.place(row.job_id)) == ("queued", None, ["ready"])


@pytest.mark.parametrize("priority", [0, 3])
def test_a_job_is_not_leased_ahead_of_others_of_its_lane(loose: Queue, priority: int) -> None:
    loose.enqueue(priority=priority)
    loose.enqueue(job_type="demo.other", run_at=loose.now() + timedelta(hours=1))

    assert is_queued(loose, lease(loose))
    assert lease(loose, job_type="demo.other").status == "running"


def test_a_job_is_not_leased_without_a_worker(strict: Queue) -> None:
    assert is_queued(strict, lease(strict, worker_id=None))


def test_a_job_of_a_tenant_with_a_pause_waits_for_a_claim(loose: Queue) -> None:
    loose.ask("pause_queue", "acme", "project", "p1")

    assert is_queued(loose, lease(loose))


def test_a_job_of_a_tenant_that_may_not_run_everything_at_once_waits_for_a_claim(
    loose: Queue,
) -> None:
    loose.look("select jobforge.set_limit('acme', 'tenant', null, '{\"max_running\": 1}')")

    assert is_queued(loose, lease(loose))


def test_a_leased_job_of_a_tenant_with_limits_is_counted(strict: Queue) -> None:
    strict.look(
        """select jobforge.set_limit('acme', 'tenant', null, '{"rps": 0.001, "burst": 1}')"""
    )
    assert lease(strict).status == "running"

    with refused("JF429"):
        lease(strict)


def test_another_tenants_limits_and_pauses_and_jobs_do_not_matter(loose: Queue) -> None:
    loose.enqueue(tenant="globex")
    loose.ask("pause_queue", "globex", "tenant")
    loose.look("select jobforge.set_limit('globex', 'tenant', null, '{\"max_queued\": 1}')")

    assert lease(loose).status == "running"


@pytest.mark.requirement("sql.signed-scope")
@pytest.mark.parametrize("place", range(len(SAID)))
def test_a_leased_job_whose_scope_is_not_what_was_signed_is_refused(
    strict: Queue,
    place: int,
) -> None:
    said: list[str | None] = [*SAID]
    said[place] = '{"jti":"j2"}' if place == 5 else "globex"

    with refused("JF403"):
        lease(strict, said=said)


@pytest.mark.requirement("sql.signed-scope")
@pytest.mark.parametrize("seconds", [-32, 32])
def test_a_leased_job_is_refused_when_its_signature_does_not_hold_now(
    strict: Queue,
    seconds: int,
) -> None:
    signature = SIGNER.sign(*SAID)
    strict.advance(seconds)

    with refused("JF403"):
        lease(strict, signature=signature)


@pytest.mark.parametrize(
    "claims", ['{"jti":"j1","denyTypes":["demo.*"]}', '{"jti":"j1","jobTypes":["other.*"]}']
)
def test_a_token_with_restrictions_is_asked_about_them_by_a_leased_job_too(
    strict: Queue,
    claims: str,
) -> None:
    tenant, actor, token_id, tool, trace_id, _ = SAID
    said = (tenant, actor, token_id, tool, trace_id, claims)

    with refused("JF403"):
        lease(strict, said=said, signature=SIGNER.sign(*said))


def test_a_revoked_token_enqueues_no_leased_job(strict: Queue) -> None:
    strict.look(
        """insert into jobforge.policy_tokens (tenant_id, token_id, revoked_at, expires_at)
        values ('acme', 'j1', jobforge.now(), jobforge.now() + interval '1 day')"""
    )

    with refused("JF403"):
        lease(strict)


@pytest.mark.parametrize(
    ("given", "state"),
    [
        ({"payload": None}, "JF400"),
        ({"payload": "{"}, "22P02"),
        ({"payload": "1e400"}, "JF400"),
        ({"payload": "[" + "1" * 309 + "]"}, "JF400"),
        ({"payload": '"' + "x" * 1_048_576 + '"'}, "JF413"),
        ({"job_type": None}, "JF400"),
        ({"job_type": "Not A Type"}, "JF400"),
        ({"job_type": "x" * 101}, "JF400"),
        ({"job_trace_id": "x" * 256}, "JF400"),
        ({"priority": 4}, "JF400"),
        ({"job_version": ""}, "JF400"),
        ({"max_attempts": 0}, "JF400"),
        ({"timeout_ms": 604_800_001}, "JF400"),
        ({"backoff_ms": -1}, "JF400"),
        ({"max_backoff_ms": -1}, "JF400"),
        ({"backoff_multiplier": 101.0}, "JF400"),
    ],
    ids=str,
)
def test_a_leased_job_that_does_not_fit_is_refused_as_any_other(
    strict: Queue,
    given: dict[str, Any],
    state: str,
) -> None:
    with refused(state):
        lease_as_any(strict, **given)
    with refused(state):
        lease(strict, **given)


def test_a_lease_that_ends_soon_is_told_to_who_rests(
    make_queue: MakeQueue, database: ScratchDatabase
) -> None:
    queue = make_queue()
    add_key(queue)
    queue.work("await_wakeup", "w2", "ready", 60_000)
    with database.connect(API) as listening:
        listening.execute("listen jobforge_ready")
        heard: list[list[str]] = []
        for lease_ms in (30_000, 5_000):
            assert lease(queue, lease_ms=lease_ms).status == "running"
            listening.execute("select 1")  # by whose answer it has arrived
            heard.append([note.channel for note in listening.notifies(timeout=0)])

    assert heard == [[], ["jobforge_ready"]]
