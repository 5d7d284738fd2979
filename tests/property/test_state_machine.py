"""A job's states under random orders of calls, against a model that is a dict.

Invariants are those of the reliability reference: nothing lost (I1), no ghosts (I2), one end (I3), the fence (I4),
repeated settles (I5), epochs that only grow (I6), legal moves (I7), one claim at a time (I8), attempts within their
maximum (I9), order per key (I12), and a status and version that a poller never sees go back (I20).

``JOBFORGE_PROPERTY_EXAMPLES`` runs more than the usual number of examples of 40 steps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.postgres import ScratchDatabase
from tests.sql.acting import Queue, Row, within

EXAMPLES = int(os.environ.get("JOBFORGE_PROPERTY_EXAMPLES", "50"))
FINAL = {"succeeded", "failed", "dead", "canceled"}
TENANTS = ["acme", "globex"]
LEASE_SECONDS = 30


@dataclass
class Model:
    """What the test knows about one job."""

    tenant: str
    ordering_key: str | None
    status: str = "queued"
    epoch: int = 0
    attempt_no: int = 0
    max_attempts: int = 2
    is_cancel_requested: bool = False
    is_suspect: bool = False
    holder: Row | None = None
    """The claim that lives, also while it is expired and nobody took the job out of it."""
    version: int = 0
    settled: dict[int, str] = field(default_factory=dict[int, str])
    """How each claim was settled by its own worker, by epoch."""


class JobMachine(RuleBasedStateMachine):
    """Random callers, workers and time; every step is compared with the model."""

    queue: ClassVar[Queue]
    begin_anew: ClassVar[list[Callable[[], None]]]

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[UUID, Model] = {}
        self.keys: dict[tuple[str, str], UUID] = {}
        self.claims: list[Row] = []
        self.lines: dict[tuple[str, str], list[UUID]] = {}
        self.seconds = 0.0

    @initialize()
    def begin(self) -> None:
        for begin in self.begin_anew:
            begin()

    # --- callers

    @rule(
        tenant=st.sampled_from(TENANTS),
        key=st.none() | st.sampled_from(["i1", "i2"]),
        ordering_key=st.none() | st.sampled_from(["o1", "o2"]),
        priority=st.integers(0, 3),
        max_attempts=st.integers(1, 3),
    )
    def enqueue(
        self,
        tenant: str,
        key: str | None,
        ordering_key: str | None,
        priority: int,
        max_attempts: int,
    ) -> None:
        row = self.queue.enqueue(
            tenant,
            idempotency_key=key,
            ordering_key=ordering_key,
            priority=priority,
            max_attempts=max_attempts,
            backoff_ms=0,
        )

        if key and (tenant, key) in self.keys:
            assert (row.outcome, row.job_id) == ("replayed", self.keys[tenant, key])
            return
        assert row.outcome == "created"
        assert row.job_id not in self.jobs
        if key:
            self.keys[tenant, key] = row.job_id
        job = Model(tenant, ordering_key, max_attempts=max_attempts)
        self.jobs[row.job_id] = job
        self.join_line(row.job_id)
        assert row.status == job.status

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if not self.jobs:
            return
        job_id = data.draw(st.sampled_from(list(self.jobs)))
        job = self.jobs[job_id]
        if job.status in FINAL - {"canceled"}:
            assert self.is_refused(lambda: self.queue.cancel(job_id, job.tenant), "JF409")
            return

        run = self.queue.cancel(job_id, job.tenant)

        if job.status == "canceled":
            pass
        elif job.holder is None:
            self.end(job_id, "canceled")
        elif self.is_alive(job.holder):
            job.is_cancel_requested = True
        else:
            self.reap_model(job.tenant)
            if job.status not in FINAL:
                self.end(job_id, "canceled")
        assert run.status == job.status

    @rule(data=st.data(), reset=st.booleans(), force=st.booleans())
    def retry(self, data: st.DataObject, reset: bool, force: bool) -> None:
        if not self.jobs:
            return
        job_id = data.draw(st.sampled_from(list(self.jobs)))
        job = self.jobs[job_id]

        def act() -> Row:
            return self.queue.retry(job_id, job.tenant, reset_attempts=reset, force=force)

        if job.status not in FINAL or (job.status == "succeeded" and not force):
            assert self.is_refused(act, "JF409")
            return
        act()
        if reset:
            job.attempt_no = 0
        else:
            job.max_attempts = max(job.max_attempts, job.attempt_no + 1)
        job.is_cancel_requested = job.is_suspect = False
        job.status = "queued"
        self.join_line(job_id)

    # --- workers

    @rule(worker=st.sampled_from(["w1", "w2"]), limit=st.integers(1, 4))
    def claim(self, worker: str, limit: int) -> None:
        claimed = self.queue.claim(limit, worker)

        assert len(claimed) <= limit
        assert len({row.job_id for row in claimed}) == len(claimed)
        for row in claimed:
            job = self.jobs[row.job_id]
            assert (job.status, job.holder) == ("queued", None)
            assert row.epoch == job.epoch + 1
            assert row.attempt_no == job.attempt_no + 1 <= row.max_attempts == job.max_attempts
            assert row.is_suspect == job.is_suspect
            if job.ordering_key:
                assert self.lines[job.tenant, job.ordering_key][0] == row.job_id
            row.worker_id = worker
            row.until = self.seconds + LEASE_SECONDS
            job.epoch += 1
            job.attempt_no += 1
            job.status = "running"
            job.holder = row
            self.claims.append(row)
        if len(claimed) < limit:  # then nothing that may run was left, but suspects beyond the one
            left = [job for job in self.jobs.values() if job.status == "queued" and not job.holder]
            assert all(job.is_suspect for job in left)

    @rule(data=st.data())
    def heartbeat(self, data: st.DataObject) -> None:
        if not self.claims:
            return
        row = data.draw(st.sampled_from(self.claims))
        is_held = any(
            job.holder and job.holder.lease_id == row.lease_id and job.tenant == row.tenant_id
            for job in self.jobs.values()
        )

        held = self.queue.heartbeat(row, worker=row.worker_id)

        assert bool(held) == (is_held and self.is_alive(row))
        if held:
            for claim in self.claims:
                if (claim.lease_id, claim.tenant_id) == (row.lease_id, row.tenant_id):
                    claim.until = self.seconds + LEASE_SECONDS

    @rule(data=st.data())
    def report(self, data: st.DataObject) -> None:
        if not self.claims:
            return
        row = data.draw(st.sampled_from(self.claims))
        job = self.jobs[row.job_id]

        answer = self.queue.report(row, 1)

        is_accepted = job.holder is row and self.is_alive(row)
        assert answer.is_accepted == is_accepted
        assert answer.is_cancel_requested == (is_accepted and job.is_cancel_requested)

    @rule(
        data=st.data(),
        verb=st.sampled_from(["complete", "failed", "permanent", "deferred", "release"]),
    )
    def settle(self, data: st.DataObject, verb: str) -> None:
        """Settle with any claim that was ever made, alone or together with another."""
        if not self.claims:
            return
        rows = data.draw(st.lists(st.sampled_from(self.claims), min_size=1, max_size=2))
        if len({row.job_id for row in rows}) < len(rows):
            return
        if verb == "complete":
            answers = self.queue.complete(*rows)
        elif verb == "release":
            answers = self.queue.release(*rows)
        else:
            answers = self.queue.fail(*rows, kind=verb)

        for row, answer in zip(rows, answers, strict=True):
            job = self.jobs[row.job_id]
            if job.holder is row:
                assert answer.outcome == "accepted"
                self.settle_model(row.job_id, verb)
                job.settled[row.epoch] = "complete" if verb == "complete" else "other"
                assert answer.status == job.status
            else:
                same = "complete" if verb == "complete" else "other"
                if verb == "complete":
                    is_repeated = job.status == "succeeded" and job.epoch == row.epoch
                else:
                    is_repeated = job.settled.get(row.epoch) == same
                assert answer.outcome == ("repeated" if is_repeated else "stale")

    @rule()
    def lose_time(self) -> None:
        """Let every lease expire that no heartbeat extends."""
        self.queue.advance(LEASE_SECONDS + 1)
        self.seconds += LEASE_SECONDS + 1

    @rule()
    def pass_time(self) -> None:
        self.queue.advance(11)
        self.seconds += 11

    @rule()
    def reap(self) -> None:
        self.queue.reap()
        self.reap_model(None)

    @rule()
    def tend(self) -> None:
        self.queue.work("tend_lanes")

    # --- what always holds

    @invariant()
    def every_run_is_what_the_model_says(self) -> None:
        rows = self.queue.look(
            """select j.id as job_id, j.final_status is null as is_open,
              (select count(*) from jobforge.ready x where x.job_id = j.id)
              + (select count(*) from jobforge.waiting x where x.job_id = j.id)
              + (select count(*) from jobforge.leases x where j.id = any (x.job_ids)) as places
            from jobforge.jobs j"""
        )
        assert {row.job_id for row in rows} == self.jobs.keys()  # I1, I2
        assert all(row.places == row.is_open for row in rows)
        ids = list(self.jobs)
        runs = self.queue.look(
            """select r.*
            from jobforge.enter_scope('acme') s(t), lateral jobforge.get_runs(s.t, %s) r
            union all select r.*
            from jobforge.enter_scope('globex') s(t), lateral jobforge.get_runs(s.t, %s) r""",
            ids,
            ids,
        )
        assert {row.job_id for row in runs} == self.jobs.keys()
        for run in runs:
            self.compare(run, self.jobs[run.job_id])

    def compare(self, run: Row, job: Model) -> None:
        status = job.status
        if status == "running" and job.holder and not self.is_alive(job.holder):
            status = "queued"
        assert run.status == status
        assert (run.epoch, run.attempt_no) == (job.epoch, job.attempt_no)
        assert run.attempt_no <= run.max_attempts
        assert run.version >= job.version
        job.version = run.version

    # --- the model

    def is_alive(self, row: Row) -> bool:
        return self.seconds < row.until

    def join_line(self, job_id: UUID) -> None:
        job = self.jobs[job_id]
        if job.ordering_key:
            line = self.lines.setdefault((job.tenant, job.ordering_key), [])
            line.append(job_id)
            job.status = "queued" if len(line) == 1 else "waiting"

    def end(self, job_id: UUID, status: str) -> None:
        job = self.jobs[job_id]
        job.status, job.holder = status, None
        if job.ordering_key:
            line = self.lines[job.tenant, job.ordering_key]
            line.remove(job_id)
            if line and self.jobs[line[0]].status == "waiting":
                self.jobs[line[0]].status = "queued"

    def settle_model(self, job_id: UUID, verb: str, *, is_charged: bool = True) -> None:
        job = self.jobs[job_id]
        is_charged = is_charged and verb not in {"deferred", "release"}
        if verb == "complete":
            self.end(job_id, "succeeded")
        elif verb == "permanent":
            self.end(job_id, "failed")
        else:
            job.attempt_no -= not is_charged
            job.is_suspect = verb == "lost"
            if job.is_cancel_requested:
                self.end(job_id, "canceled")
            elif is_charged and job.attempt_no >= job.max_attempts:
                self.end(job_id, "dead")
            else:
                job.status, job.holder = "queued", None

    def reap_model(self, tenant: str | None) -> None:
        held: dict[str, int] = {}
        for job in self.jobs.values():
            if job.holder:
                held[job.holder.worker_id] = held.get(job.holder.worker_id, 0) + 1
        for job_id, job in self.jobs.items():
            row = job.holder
            if row and not self.is_alive(row) and tenant in {None, job.tenant}:
                is_alone = row.is_suspect or held[row.worker_id] == 1
                self.settle_model(job_id, "lost", is_charged=is_alone)

    def is_refused(self, act: Callable[[], object], sqlstate: str) -> bool:
        try:
            act()
        except psycopg.Error as error:
            return error.sqlstate == sqlstate
        return False


@contextmanager
def rolled_back(database: ScratchDatabase) -> Generator[tuple[Queue, Callable[[], None]]]:
    """Give a queue in one transaction, and a way to start that over."""
    with database.connect(autocommit=False) as connection:

        def start_over() -> None:
            connection.rollback()
            connection.execute("select 1")

        yield Queue(within(connection)), start_over
        connection.rollback()


@pytest.mark.requirement("sql.invariants")
@pytest.mark.timeout(1800)  # a failure is made small before it is shown
def test_a_job_keeps_its_invariants_under_any_order_of_calls(
    shared_database: ScratchDatabase,
) -> None:
    with rolled_back(shared_database) as (queue, start_over):
        machine = type("Machine", (JobMachine,), {"queue": queue, "begin_anew": [start_over]})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=40,
                deadline=None,
                derandomize="JOBFORGE_PROPERTY_EXAMPLES" not in os.environ,
                database=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            ),
        )
