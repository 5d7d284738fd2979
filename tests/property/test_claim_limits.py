"""Limits of keys under random orders of calls: never more than may run, counters that tell the truth, nothing left behind.

``JOBFORGE_PROPERTY_EXAMPLES`` runs more than the usual number of examples of 40 steps.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from typing import ClassVar
from uuid import UUID

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
from tests.property.test_state_machine import rolled_back
from tests.sql.acting import Queue, Row

EXAMPLES = int(os.environ.get("JOBFORGE_PROPERTY_EXAMPLES", "30"))
LIMITS = {"a": 1, "b": 2, "c": 3}
RATE = 4
PERIOD_MS = 10_000
LEASE_SECONDS = 30


def said(key: str, *, is_rated: bool) -> str:
    limits: dict[str, object] = {"concurrency": {"limit": LIMITS[key], "key": key}}
    if is_rated:
        limits["rateLimit"] = {"count": RATE, "periodMs": PERIOD_MS, "key": "r"}
    return json.dumps(limits)


class LimitMachine(RuleBasedStateMachine):
    """Random callers, workers, pauses and time."""

    queue: ClassVar[Queue]
    begin_anew: ClassVar[list[Callable[[], None]]]

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[UUID] = []
        self.held: list[Row] = []

    @initialize()
    def begin(self) -> None:
        for begin in self.begin_anew:
            begin()

    @rule(
        key=st.none() | st.sampled_from(sorted(LIMITS)),
        is_rated=st.booleans(),
        project=st.none() | st.sampled_from(["p1", "p2"]),
        priority=st.integers(0, 3),
        count=st.integers(1, 4),
    )
    def enqueue(
        self, key: str | None, is_rated: bool, project: str | None, priority: int, count: int
    ) -> None:
        limits = None if key is None else said(key, is_rated=is_rated)
        self.jobs += self.queue.enqueue_many(
            count,
            claim_limits=[limits] * count,
            project_ids=[project] * count,
            priorities=[priority] * count,
            backoff_ms=[0] * count,
            max_attempts=[5] * count,
        )

    @rule(worker=st.sampled_from(["w1", "w2"]), limit=st.integers(1, 5))
    def claim(self, worker: str, limit: int) -> None:
        claimed = self.queue.claim(limit, worker)
        assert len(claimed) <= limit
        self.held += claimed

    # Picks are numbers, since how many there are depends on the real time that steps take: rates do.
    @rule(pick=st.integers(0, 1_000), verb=st.sampled_from(["complete", "fail", "release"]))
    def settle(self, pick: int, verb: str) -> None:
        if self.held:
            row = self.held[pick % len(self.held)]
            getattr(self.queue, verb)(row)
            self.held.remove(row)

    @rule(pick=st.integers(0, 1_000))
    def cancel(self, pick: int) -> None:
        if self.jobs:
            job_id = self.jobs[pick % len(self.jobs)]
            self.queue.ask("cancel_runs", "acme", expected=10_000, limit=1, after_id=job_id)

    @rule(kind=st.sampled_from(["project", "type", "tenant"]))
    def pause(self, kind: str) -> None:
        self.queue.ask("pause_queue", "acme", kind, self.named(kind))

    @rule(kind=st.sampled_from(["project", "type", "tenant"]))
    def resume(self, kind: str) -> None:
        self.queue.ask("resume_queue", "acme", kind, self.named(kind))

    def named(self, kind: str) -> str | None:
        return {"project": "p1", "type": "demo.echo", "tenant": None}[kind]

    @rule()
    def lose_workers(self) -> None:
        self.queue.lose_worker(LEASE_SECONDS + 1)

    @rule(seconds=st.integers(1, 12))
    def pass_time(self, seconds: int) -> None:
        self.queue.advance(seconds)

    @rule()
    def tend(self) -> None:
        self.queue.tend()

    @rule()
    def everything_ends(self) -> None:
        """With all pauses over and time enough, whatever is open can be run to its end."""
        for kind in ("project", "type", "tenant"):
            self.resume(kind)
        self.queue.lose_worker(LEASE_SECONDS + 1)
        for number in range(400):
            claimed = self.queue.claim(20, f"last{number}")
            if claimed:
                self.queue.complete(*claimed)
                continue
            if not self.queue.look("select 1 as one from jobforge.jobs where final_status is null"):
                break
            self.queue.advance(PERIOD_MS / 1_000)
            self.queue.tend()
        assert self.queue.look("select id from jobforge.jobs where final_status is null") == []
        self.held.clear()

    @invariant()
    def no_key_runs_more_than_it_may_and_counters_are_right(self) -> None:
        rows = self.queue.look(
            """select j.slot_key from jobforge.leases l cross join lateral unnest(l.job_ids) h(id)
            join jobforge.jobs j on j.tenant_id = l.tenant_id and j.id = h.id where j.slot_key is not null"""
        )
        running = Counter(row.slot_key for row in rows)
        counted = self.queue.look(
            "select counter, running from jobforge.claim_counters where running > 0"
        )
        assert {row.counter: row.running for row in counted} == dict(running)
        assert all(count <= LIMITS[key[-1]] for key, count in running.items())

    @invariant()
    def every_open_job_is_in_one_place(self) -> None:
        rows = self.queue.look(
            """select j.id from jobforge.jobs j where (j.final_status is null) <> (
              (select count(*) from jobforge.ready x where x.job_id = j.id)
              + (select count(*) from jobforge.waiting x where x.job_id = j.id)
              + (select count(*) from jobforge.leases x where j.id = any (x.job_ids)) = 1)"""
        )
        assert rows == []


@pytest.mark.timeout(1800)  # a failure is made small before it is shown
@pytest.mark.requirement("sql.concurrency", "sql.concurrency-goes-on", "sql.pause")
def test_limits_hold_under_any_order_of_calls(shared_database: ScratchDatabase) -> None:
    """Forty steps of an example take about a third of a second."""
    with rolled_back(shared_database) as (queue, start_over):
        machine = type("Machine", (LimitMachine,), {"queue": queue, "begin_anew": [start_over]})
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
