"""The heartbeat's connection: extends, reconnects, and hangs on nobody."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta

import psycopg
import pytest

from jobforge_mcp.errors import DatabaseUnavailableError, SettingsError
from jobforge_mcp.router.heartbeat import HeartbeatConnection
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.router.leases import WorkerRouter
from jobforge_mcp.types import Caller, ClaimedJob, LeaseId, NewJob, TenantId, WorkerId
from tests.postgres import Clock, ScratchDatabase

WORKER = WorkerId("worker-1")
HEARTBEATS = "select a.pid from pg_stat_activity a where a.application_name = 'jobforge heartbeat'"


@pytest.fixture
async def claimed(router: Router, worker_router: WorkerRouter, acme: Caller) -> ClaimedJob:
    await router.enqueue_job(acme, NewJob("demo.echo", "{}"))
    return (await worker_router.claim_jobs(WORKER, ["demo.echo"], 1))[0]


def lease_of(job: ClaimedJob) -> list[tuple[TenantId, LeaseId]]:
    return [(job.fence.tenant_id, job.fence.lease_id)]


async def test_a_beat_extends_the_lease_and_brings_the_wish_to_cancel(
    database: ScratchDatabase, claimed: ClaimedJob, router: Router, acme: Caller, clock: Clock
) -> None:
    clock.advance(timedelta(seconds=20))

    with HeartbeatConnection(database.url("jobforge_worker")) as heartbeat:
        first = heartbeat.beat(WORKER, lease_of(claimed), 30_000)
        await router.cancel_job(acme, claimed.fence.job_id)
        second = heartbeat.beat(WORKER, lease_of(claimed), 30_000)

    assert [lease.lease_id for lease in first] == [claimed.fence.lease_id]
    assert first[0].lease_until >= claimed.lease_until + timedelta(seconds=19)
    assert (first[0].cancel_ids, second[0].cancel_ids) == (
        frozenset(),
        frozenset({claimed.fence.job_id}),
    )


async def test_a_lease_that_is_gone_is_not_in_the_answer(
    database: ScratchDatabase, claimed: ClaimedJob, clock: Clock
) -> None:
    clock.advance(timedelta(seconds=31))

    with HeartbeatConnection(database.url("jobforge_worker")) as heartbeat:
        assert heartbeat.beat(WORKER, lease_of(claimed), 30_000) == []


async def test_a_beat_whose_connection_was_lost_says_so_and_the_next_begins_afresh(
    database: ScratchDatabase, claimed: ClaimedJob, admin: psycopg.Connection
) -> None:
    with HeartbeatConnection(database.url("jobforge_worker")) as heartbeat:
        heartbeat.beat(WORKER, lease_of(claimed), 30_000)
        admin.execute(f"select pg_terminate_backend(h.pid, 5000) from ({HEARTBEATS}) h")

        with pytest.raises(DatabaseUnavailableError):
            heartbeat.beat(WORKER, lease_of(claimed), 30_000)
        assert len(heartbeat.beat(WORKER, lease_of(claimed), 30_000)) == 1


@pytest.mark.requirement("heartbeat.bounded")
async def test_a_server_that_does_not_answer_is_given_up_well_within_a_lease(
    database: ScratchDatabase, claimed: ClaimedJob, admin: psycopg.Connection
) -> None:
    """Takes the four seconds that it is about."""
    with HeartbeatConnection(database.url("jobforge_worker")) as heartbeat:
        heartbeat.beat(WORKER, lease_of(claimed), 30_000)
        row = admin.execute(HEARTBEATS).fetchone()
        assert row is not None
        os.kill(row[0], signal.SIGSTOP)
        try:
            started_at = time.monotonic()
            with pytest.raises(DatabaseUnavailableError):
                heartbeat.beat(WORKER, lease_of(claimed), 30_000)
            seconds = time.monotonic() - started_at
        finally:
            os.kill(row[0], signal.SIGCONT)

        assert seconds < 20  # of the thirty of a lease
        assert len(heartbeat.beat(WORKER, lease_of(claimed), 30_000)) == 1


def test_a_heartbeat_as_superuser_is_refused(database: ScratchDatabase) -> None:
    with (
        HeartbeatConnection(database.url(), "jobforge_superuser") as heartbeat,
        pytest.raises(SettingsError),
    ):
        heartbeat.beat(WORKER, [], 30_000)


def test_a_database_that_is_down_is_unavailable() -> None:
    with (
        HeartbeatConnection("postgresql:///x?host=/nowhere") as heartbeat,
        pytest.raises(DatabaseUnavailableError),
    ):
        heartbeat.beat(WORKER, [], 30_000)
