"""A job's states under random orders of calls, against a model that is a dict.

Invariants are those of the reliability reference: nothing lost (I1), no ghosts (I2), one end (I3), the fence (I4),
repeated settles (I5), epochs that only grow (I6), legal moves (I7), one claim at a time (I8), attempts within their
maximum (I9), order per key (I12), no early start (I16), and a status and version that a poller never sees go back (I20).

The parts run more than 50,000 steps between them; each counts its own and fails when there were fewer. That takes one
round trip a step where it can: everything happens in one transaction of a superuser on one connection, by a clock that stands
still until a step moves it. ``JOBFORGE_PROPERTY_EXAMPLES`` runs more than the usual number of examples of 50 steps a part.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import isqrt
from typing import ClassVar, LiteralString
from uuid import UUID

import psycopg
import psycopg.sql
import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jobforge_mcp.db.context import ContextKey
from tests.postgres import ScratchDatabase
from tests.sql.acting import SUPERUSER, Acting, Connection, Queue, Row, fences, within

PARTS = 4
STEPS_OF_A_PART = 12_600
STEPS_OF_AN_EXAMPLE = 50
EXAMPLES = int(os.environ.get("JOBFORGE_PROPERTY_EXAMPLES", "295"))
"""A tenth of the steps goes to beginnings and to examples that end early."""
FINAL = {"succeeded", "failed", "dead", "canceled"}
TENANTS = ["acme", "globex"]
LEASE_SECONDS = 30
LONG_SECONDS = 400 * 86_400
"""Longer than any run or key is kept."""
SHORT: LiteralString = """
    select e.* from jobforge.context_keys k
    cross join lateral (select date_part('epoch', jobforge.now())::bigint + 30 as until) u
    cross join lateral jobforge.{}(%s, 'agent', null, null, null, null, k.key_id, u.until,
      jobforge.scope_digest(k.inner_pad, k.outer_pad, %s, 'agent', null, null, null, null, u.until::text), 'demo.echo', {}) e"""
"""Call a short function with a scope that is signed at the moment where the clock stands."""
LEASE: LiteralString = SHORT.format(
    "enqueue_leased_job", "'{}', %s, 30000, p_max_attempts => %s, p_backoff_ms => 0"
)
PLAIN: LiteralString = SHORT.format(
    "enqueue_plain_jobs", "array['{}'], p_max_attempts => array[%s::int], p_backoff_ms => array[0]"
)
BUNDLES = {"pair": [[], [1]], "chain": [[], [1], [2]], "join": [[], [], [1, 2]]}
"""What each item depends on, by place."""


@dataclass
class Model:
    """What the test knows about one job."""

    tenant: str
    ordering_key: str | None
    project: str | None = None
    priority: int = 2
    due: float = 0.0
    """When it may start, in seconds of the model."""
    depends_on: set[UUID] = field(default_factory=set[UUID])
    on_failure: str = "cancel"
    parent: UUID | None = None
    status: str = "queued"
    epoch: int = 0
    attempt_no: int = 0
    max_attempts: int = 2
    is_cancel_requested: bool = False
    is_suspect: bool = False
    most_together: int = 1
    """Of suspects: how many may be claimed at once."""
    holder: Row | None = None
    """The claim that lives, also while it is expired and nobody took the job out of it."""
    version: int = 0
    settled: dict[int, str] = field(default_factory=dict[int, str])
    """How each claim was settled by its own worker, by epoch."""


class JobMachine(RuleBasedStateMachine):
    """Random callers, workers and time; every step is compared with the model."""

    queue: ClassVar[Queue]
    begin_anew: ClassVar[list[Callable[[], None]]]
    steps: ClassVar[int]
    began_at: ClassVar[datetime]

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[UUID, Model] = {}
        self.keys: dict[tuple[str, str | None, str], UUID] = {}
        self.claims: list[Row] = []
        self.lines: dict[tuple[str, str], list[UUID]] = {}
        self.paused: set[tuple[str, str]] = set()
        self.seconds = 0.0
        self.looks = 0

    @initialize()
    def begin(self) -> None:
        for begin in self.begin_anew:
            begin()

    def teardown(self) -> None:
        with self.queue.acting(SUPERUSER) as connection:
            if connection.info.transaction_status is psycopg.pq.TransactionStatus.INTRANS:
                self.compare_runs()

    # --- callers

    @rule(
        tenant=st.sampled_from(TENANTS),
        key=st.none() | st.sampled_from(["i1", "i2"]),
        ordering_key=st.none() | st.sampled_from(["o1", "o2"]),
        project=st.none() | st.just("p1"),
        priority=st.integers(0, 3),
        max_attempts=st.integers(1, 3),
        delay=st.sampled_from([None, None, 15, 40]),
    )
    def enqueue(
        self,
        tenant: str,
        key: str | None,
        ordering_key: str | None,
        project: str | None,
        priority: int,
        max_attempts: int,
        delay: int | None,
    ) -> None:
        due = self.seconds + (delay or 0)
        row = self.queue.enqueue(
            tenant,
            idempotency_key=key,
            ordering_key=ordering_key,
            project_id=project,
            priority=priority,
            max_attempts=max_attempts,
            backoff_ms=0,
            run_at=None if delay is None else self.began_at + timedelta(seconds=due),
        )

        if key and (tenant, project, key) in self.keys:
            assert (row.outcome, row.job_id) == ("replayed", self.keys[tenant, project, key])
            return
        if key:
            self.keys[tenant, project, key] = row.job_id
        job = Model(tenant, ordering_key, project, priority, due, max_attempts=max_attempts)
        self.add(row, job)

    @rule(
        tenant=st.sampled_from(TENANTS),
        worker=st.none() | st.sampled_from(["w1", "w2"]),
        max_attempts=st.integers(1, 3),
    )
    def enqueue_by_short_call(self, tenant: str, worker: str | None, max_attempts: int) -> None:
        """Ask for nothing, and with a worker for a slot of its pool."""
        if worker is None:
            (row,) = self.queue.look(PLAIN, tenant, tenant, max_attempts)
            (row.job_id,), row.lease_id = row.job_ids, None
        else:
            (row,) = self.queue.look(LEASE, tenant, tenant, worker, max_attempts)
        is_held_up = any(each == tenant for each, _ in self.paused) or any(
            job.tenant == tenant and job.status == "queued" and job.due <= self.seconds
            for job in self.jobs.values()
        )
        assert (row.lease_id is not None) == (worker is not None and not is_held_up)
        job = Model(tenant, None, due=self.seconds, max_attempts=max_attempts)
        if row.lease_id is None:
            self.add(row, job)
            return
        assert (row.outcome, row.status) == ("created", "running")
        assert row.job_id not in self.jobs
        job.status, job.epoch, job.attempt_no = "running", 1, 1
        row.tenant_id, row.worker_id, row.is_suspect, row.epoch = tenant, worker, False, 1
        row.until = self.seconds + LEASE_SECONDS
        job.holder = row
        self.jobs[row.job_id] = job
        self.claims.append(row)

    @rule(
        tenant=st.sampled_from(TENANTS),
        shape=st.sampled_from(sorted(BUNDLES)),
        policy=st.sampled_from(["cancel", "continue"]),
        ordering_key=st.none() | st.sampled_from(["o1", "o3"]),
    )
    def enqueue_bundle(
        self, tenant: str, shape: str, policy: str, ordering_key: str | None
    ) -> None:
        places = BUNDLES[shape]
        count = len(places)
        rows = self.queue.ask(
            "enqueue_bundle", tenant, ["demo.echo"] * count, ["{}"] * count, None, None, [ordering_key] * count,
            None, None, None, None, None, None, [1] * count, [0] * count, [1.0] * count, [0] * count, None, None, None, None,
            [json.dumps(depends) for depends in places], [policy if depends else None for depends in places],
        )  # fmt: skip

        for row, depends in zip(rows, places, strict=True):
            job = Model(tenant, ordering_key, due=self.seconds, max_attempts=1, on_failure=policy)
            job.depends_on = {rows[place - 1].job_id for place in depends}
            self.add(row, job)

    @rule(data=st.data())
    def enqueue_child(self, data: st.DataObject) -> None:
        if not self.claims:
            return
        row = data.draw(st.sampled_from(self.claims))
        parent = self.jobs.get(row.job_id)

        def act() -> list[Row]:
            fence = [column[0] for column in fences([row])]
            rest = ["1", 1, 0, 1.0, 0, 60_000]
            return self.queue.work(
                "enqueue_child", *fence, "demo.echo", "{}", "{}", None, None, 2, None, None, *rest
            )

        if parent is None or parent.holder is not row or not self.is_alive(row):
            assert self.is_refused(act, "JF410")
            return
        job = Model(parent.tenant, None, parent.project, due=self.seconds, max_attempts=1)
        job.parent = row.job_id
        self.add(act()[0], job)

    def add(self, row: Row, job: Model) -> None:
        assert row.outcome == "created"
        assert row.job_id not in self.jobs
        self.jobs[row.job_id] = job
        if job.depends_on:
            job.status = "waiting"
        else:
            self.join_line(row.job_id)
        assert row.status == job.status

    @rule(tenant=st.sampled_from(TENANTS), kind=st.sampled_from(["tenant", "project"]))
    def pause(self, tenant: str, kind: str) -> None:
        self.queue.ask("pause_queue", tenant, kind, "p1" if kind == "project" else None)
        self.paused.add((tenant, kind))

    @rule(tenant=st.sampled_from(TENANTS), kind=st.sampled_from(["tenant", "project"]))
    def resume(self, tenant: str, kind: str) -> None:
        (answer,) = self.queue.ask(
            "resume_queue", tenant, kind, "p1" if kind == "project" else None
        )
        was_paused = (tenant, kind) in self.paused
        assert answer.resume_queue == ("resumed" if was_paused else "unchanged")
        self.paused.discard((tenant, kind))

    def is_paused(self, job: Model) -> bool:
        is_project_paused = job.project is not None and (job.tenant, "project") in self.paused
        return is_project_paused or (job.tenant, "tenant") in self.paused

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
            self.end((job_id, "canceled"))
        elif self.is_alive(job.holder):
            job.is_cancel_requested = True
        else:
            self.reap_model(job.tenant)
            if job.status not in FINAL:
                self.end((job_id, "canceled"))
        assert run.status == job.status

    @rule(data=st.data(), reset=st.booleans(), force=st.booleans())
    def retry(self, data: st.DataObject, reset: bool, force: bool) -> None:
        if not self.jobs:
            return
        job_id = data.draw(st.sampled_from(list(self.jobs)))
        job = self.jobs[job_id]
        job.depends_on = job.depends_on if job.status not in FINAL else set()

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
        job.status, job.due = "queued", self.seconds
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
            assert job.due <= self.seconds
            assert not self.is_paused(job)
            assert row.epoch == job.epoch + 1
            assert row.attempt_no == job.attempt_no + 1 <= row.max_attempts == job.max_attempts
            assert row.is_suspect == job.is_suspect
            assert not job.is_suspect or sum(r.is_suspect for r in claimed) <= job.most_together
            if job.ordering_key:
                assert self.lines[job.tenant, job.ordering_key][0] == row.job_id
            row.worker_id = worker
            row.until = self.seconds + LEASE_SECONDS
            job.epoch += 1
            job.attempt_no += 1
            job.status = "running"
            job.holder = row
            self.claims.append(row)
        left = [
            job
            for job in self.jobs.values()
            if job.status == "queued" and job.due <= self.seconds and not self.is_paused(job)
        ]
        if len(claimed) < limit:  # then nothing that may run was left, but suspects beyond the one
            assert all(job.is_suspect for job in left)
        for row in claimed:
            if not row.is_suspect:
                assert not any(
                    job.tenant == row.tenant_id
                    and not job.is_suspect
                    and job.priority < row.priority
                    for job in left
                )

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
        job = self.jobs.get(row.job_id)

        answer = self.queue.report(row, 1)

        is_accepted = job is not None and job.holder is row and self.is_alive(row)
        assert answer.is_accepted == is_accepted
        is_told = is_accepted and job is not None and job.is_cancel_requested
        assert answer.is_cancel_requested == is_told

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

        same = "complete" if verb == "complete" else "other"
        held = [
            row for row in rows if row.job_id in self.jobs and self.jobs[row.job_id].holder is row
        ]
        repeated = [row for row in rows if row not in held and self.is_repeated(row, same)]
        self.settle_model([(row.job_id, verb, True) for row in held])
        for row, answer in zip(rows, answers, strict=True):
            if row in held:
                job = self.jobs[row.job_id]
                job.settled[row.epoch] = same
                assert (answer.outcome, answer.status in FINAL) == ("accepted", job.status in FINAL)
            else:
                assert answer.outcome == ("repeated" if row in repeated else "stale")

    def is_repeated(self, row: Row, same: str) -> bool:
        job = self.jobs.get(row.job_id)
        if job is None:
            return False
        if same == "complete":
            return job.status == "succeeded" and job.epoch == row.epoch
        return job.settled.get(row.epoch) == same

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

    @precondition(lambda self: sum(job.status in FINAL for job in self.jobs.values()) >= 5)
    @rule()
    def purge(self) -> None:
        """After a year runs that ended are gone, and so is what their keys said; open ones stay."""
        self.queue.advance(LONG_SECONDS)
        self.seconds += LONG_SECONDS

        self.queue.work("purge_finished")

        self.keys.clear()
        kept = {
            job_id: job
            for job_id, job in self.jobs.items()
            if job.status not in FINAL
            or (
                job.parent is not None
                and job.parent in self.jobs
                and self.jobs[job.parent].status not in FINAL
            )
        }
        self.jobs = kept

    # --- what always holds

    @invariant()
    def every_run_is_what_the_model_says(self) -> None:
        type(self).steps += 1
        rows = self.queue.look(
            """select j.id as job_id, j.final_status::text, p.place, coalesce(p.epoch, j.epoch) as epoch,
              coalesce(p.attempt_no, j.attempt_no) as attempt_no
            from jobforge.jobs j left join (
              select r.job_id, 'queued' as place, r.epoch, r.attempt_no from jobforge.ready r
              union all select w.job_id, case when w.waiting_for = 'limit' then 'queued' else 'waiting' end, w.epoch, w.attempt_no
                from jobforge.waiting w
              union all select h.job_id, 'running', h.epoch, h.attempt_no
                from jobforge.leases l cross join lateral unnest(l.job_ids, l.epochs, l.attempt_nos) h(job_id, epoch, attempt_no)) p
              on p.job_id = j.id"""
        )
        assert len(rows) == len(self.jobs)  # a job in two places has two rows
        for row in rows:
            job = self.jobs[row.job_id]  # I1, I2
            assert (row.final_status is None) == (row.place is not None)
            assert (row.final_status or row.place) == job.status
            assert (row.epoch, row.attempt_no) == (job.epoch, job.attempt_no)
        self.looks += 1
        if self.looks % 8 == 0:
            self.compare_runs()

    def compare_runs(self) -> None:
        """Compare what callers are told, too."""
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

    def end(self, *ended: tuple[UUID, str]) -> None:
        """End jobs in one call: first those go on that depended on them, then those behind them in line."""
        for job_id, status in ended:
            self.jobs[job_id].status, self.jobs[job_id].holder = status, None
        released: list[UUID] = []
        canceled: list[UUID] = []
        left = [(job_id, status != "succeeded") for job_id, status in ended]
        while left:
            cause, has_failed = left.pop(0)
            for job_id, job in self.jobs.items():
                if job.status != "waiting" or cause not in job.depends_on:
                    continue
                job.depends_on.discard(cause)
                if has_failed and job.on_failure == "cancel":
                    job.status, job.depends_on = "canceled", set()
                    canceled.append(job_id)
                    left.append((job_id, True))
                elif not job.depends_on:
                    released.append(job_id)
        for job_id in sorted(released):
            if job_id not in canceled:
                self.jobs[job_id].due = max(self.jobs[job_id].due, self.seconds)
                self.jobs[job_id].status = "queued"
                self.join_line(job_id)
        for job_id, _ in ended:
            self.leave_line(job_id)

    def leave_line(self, job_id: UUID) -> None:
        job = self.jobs[job_id]
        line = self.lines.get((job.tenant, job.ordering_key or ""), [])
        if job_id in line:
            line.remove(job_id)
            if line and self.jobs[line[0]].status == "waiting":
                self.jobs[line[0]].status = "queued"

    def settle_model(self, settled: Iterable[tuple[UUID, str, bool]]) -> None:
        """Settle jobs in one call, each with what became of it and whether its attempt is charged."""
        ended: list[tuple[UUID, str]] = []
        for job_id, verb, may_charge in settled:
            job = self.jobs[job_id]
            is_charged = may_charge and verb not in {"deferred", "release"}
            if verb == "complete":
                ended.append((job_id, "succeeded"))
            elif verb == "permanent":
                ended.append((job_id, "failed"))
            else:
                job.attempt_no -= not is_charged
                job.is_suspect = verb == "lost"
                if job.is_cancel_requested:
                    ended.append((job_id, "canceled"))
                elif is_charged and job.attempt_no >= job.max_attempts:
                    ended.append((job_id, "dead"))
                else:
                    job.status, job.holder, job.due = "queued", None, self.seconds
        self.end(*ended)

    def reap_model(self, tenant: str | None) -> None:
        holders = [job.holder for job in self.jobs.values() if job.holder]
        held = Counter(row.worker_id for row in holders)
        leased = Counter(row.lease_id for row in holders)
        lost = [
            (job_id, job, row)
            for job_id, job in self.jobs.items()
            if (row := job.holder) and not self.is_alive(row) and tenant in {None, job.tenant}
        ]
        for _, job, row in lost:
            job.most_together = 1 if row.is_suspect else isqrt(held[row.worker_id])
        self.settle_model(
            [
                (
                    job_id,
                    "lost",
                    held[row.worker_id] == 1 or (row.is_suspect and leased[row.lease_id] == 1),
                )
                for job_id, _, row in lost
            ]
        )

    def is_refused(self, act: Callable[[], object], sqlstate: str) -> bool:
        try:
            with self.queue.acting(SUPERUSER) as connection, connection.transaction():
                act()
        except psycopg.Error as error:
            return error.sqlstate == sqlstate
        return False


@contextmanager
def rolled_back(
    database: ScratchDatabase, acting: Callable[[Connection], Acting] = within
) -> Generator[tuple[Queue, Callable[[], None]]]:
    """Give a queue in one transaction, and a way to start that over."""
    with database.connect(autocommit=False) as connection:
        connection.prepare_threshold = 0

        def start_over() -> None:
            connection.rollback()
            connection.execute("select 1")

        yield Queue(acting(connection)), start_over
        connection.rollback()


def straight(connection: Connection) -> Acting:
    """Act as the superuser that we are, without a savepoint: a refusal that is expected brings its own."""

    @contextmanager
    def act(role: str) -> Generator[Connection]:
        yield connection

    return act


def stand_still(database: ScratchDatabase) -> datetime:
    """Let the clock of a database move by steps alone."""
    with database.connect() as connection:
        row = connection.execute("select clock_timestamp()").fetchone()
        assert row is not None
        connection.execute(
            "insert into jobforge.context_keys (key_id, slot, inner_pad, outer_pad, is_enforced, created_at)"
            " values ('k1', 1, %s, %s, false, jobforge.now())",
            ContextKey("k1", bytes(range(32))).pads(),
        )
        connection.execute(
            psycopg.sql.SQL(
                "create or replace function jobforge.now() returns timestamptz language sql stable as"
                " $$ select {}::timestamptz + (select c.shift from jobforge_test.clock c) $$"
            ).format(psycopg.sql.Literal(row[0]))
        )
        return row[0]


@pytest.mark.requirement("sql.invariants")
@pytest.mark.timeout(1800)  # a failure is made small before it is shown
@pytest.mark.parametrize("part", range(PARTS))
def test_a_job_keeps_its_invariants_under_any_order_of_calls(
    database: ScratchDatabase, part: int
) -> None:
    """Half a minute each on a quiet core: the parts are 50,000 steps."""
    began_at = stand_still(database)
    with rolled_back(database, straight) as (queue, start_over):
        known = {"queue": queue, "begin_anew": [start_over], "steps": 0, "began_at": began_at}
        machine = type("Machine", (JobMachine,), known)
        run_state_machine_as_test(
            seed(part)(machine),
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS_OF_AN_EXAMPLE,
                deadline=None,
                derandomize="JOBFORGE_PROPERTY_EXAMPLES" not in os.environ,
                database=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            ),
        )
        steps = known["steps"] = machine.steps

    print(f"{steps} steps")  # noqa: T201 - shown with -s, and when it fails
    assert steps >= min(STEPS_OF_A_PART, EXAMPLES * STEPS_OF_AN_EXAMPLE // 2)
    assert PARTS * STEPS_OF_A_PART >= 50_000
