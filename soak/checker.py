"""Compares what callers were told, what handlers did and what the database holds with what was promised.

Each function is one promise, named by its number in the list of invariants of docs/reliability.md, and yields a sentence
for every breach. Nothing here knows which faults happened: none of them is an excuse.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, LiteralString

from soak.crew import LEASE_SECONDS
from soak.history import read_histories
from soak.server import Server

FINAL = frozenset({"succeeded", "failed", "dead", "canceled"})
Breaches = Generator[str]


@dataclass(frozen=True, slots=True)
class Breach:
    """One promise that did not hold."""

    promise: str
    what: str


@dataclass
class Record:
    """Both histories, read."""

    server: Server
    enqueues: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """What was asked for, by nonce."""
    told: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Run ids that callers were told, by nonce."""
    orders: dict[str, str] = field(default_factory=dict[str, str])
    """Orders in an application's own transaction: kept, dropped or unknown."""
    polls: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    retried: set[str] = field(default_factory=set[str])
    canceled: dict[str, str] = field(default_factory=dict[str, str])
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])

    def rows(self, query: LiteralString) -> list[dict[str, Any]]:
        """Ask the database."""
        return self.server.fetch(query)


def read_record(server: Server, folder: Path) -> Record:
    """Read everything that was written down."""
    record = Record(server)
    for line in read_histories(folder, "caller"):
        match line["what"]:
            case "enqueue":
                record.enqueues[line["nonce"]] = line
            case "told":
                record.told[line["nonce"]].add(line["run"])
            case "order":
                record.orders[line["nonce"]] = "unknown"
            case "order_ended":
                record.orders[line["nonce"]] = "kept" if line["kept"] else "dropped"
            case "poll":
                record.polls[line["run"]].append(line)
            case "poll_refused":
                record.polls[line["run"]].append({**line, "status": line["code"], "version": -1})
            case "retry":
                record.retried.add(line["run"])
            case "canceled":
                record.canceled[line["run"]] = line["status"]
            case _:
                pass
    for row in record.rows(
        """
        select j.id::text as id, j.tenant_id, j.job_type, j.final_status, j.attempt_no, j.epoch, j.max_attempts, j.ordering_key,
          j.payload ->> 'nonce' as nonce, (j.payload ->> 'sequence')::integer as sequence, j.run_at, j.created_at, j.started_at,
          j.finished_at, j.result, md5(j.result::text) as result_hash, j.backoff_ms
        from jobforge.jobs j"""
    ):
        record.jobs[row["id"]] = row
    return record


def no_loss(record: Record) -> Breaches:
    """I1: whatever was acknowledged exists and has ended."""
    for nonce, runs in record.told.items():
        for run in runs:
            job = record.jobs.get(run)
            if job is None:
                yield f"run {run} of {nonce} was acknowledged and does not exist"
            elif job["final_status"] is None:
                yield f"run {run} ({job['job_type']}) never ended"
    for row in record.rows(
        """
        select 'ready' as place, count(*) as n from jobforge.ready union all
        select 'leases', count(*) from jobforge.leases union all
        select 'waiting', count(*) from jobforge.waiting union all
        select 'ordering_keys', count(*) from jobforge.ordering_keys"""
    ):
        if row["n"]:
            yield f"{row['n']} rows are left in {row['place']} after the drain"


def no_ghosts(record: Record) -> Breaches:
    """I2: nothing exists that nobody asked for, and nothing twice."""
    asked = record.enqueues.keys() | record.orders.keys()
    seen: set[str] = set()
    for run, job in record.jobs.items():
        if job["nonce"] not in asked:
            yield f"nobody asked for run {run}"
        if job["nonce"] in seen:
            yield f"two jobs exist for {job['nonce']}"
        seen.add(job["nonce"])


def one_end(record: Record) -> Breaches:
    """I3, I7: a run ends once, and leaves its end only by a retry; I21: a result never changes."""
    ends: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in record.rows("select e.*, e.job_id::text as run from soak.ends e order by e.seq"):
        ends[row["run"]].append(row)
    for run, rows in ends.items():
        status = None
        for row in rows:
            if row["before"] != status:
                yield f"run {run} went from {row['before']} although it was {status}"
            if row["before"] is not None and row["after"] is not None:
                yield f"run {run} went from {row['before']} to {row['after']} (or its result changed)"
            if row["before"] is not None and run not in record.retried:
                yield f"run {run} left {row['before']} and nobody retried it"
            status = row["after"]
        if status != record.jobs[run]["final_status"]:
            yield f"run {run} is {record.jobs[run]['final_status']}, its last change says {status}"
        if rows[-1]["result_hash"] != record.jobs[run]["result_hash"]:
            yield f"the result of run {run} changed after its end"


def fence(record: Record) -> Breaches:
    """I4: the accepted result is that of the last claim, of this very run, and of its tenant (I24)."""
    for run, job in record.jobs.items():
        if job["final_status"] != "succeeded":
            continue
        result = job["result"]
        if result["run_id"] != run or result["tenant_id"] != job["tenant_id"]:
            yield f"run {run} has the result of run {result['run_id']} of {result['tenant_id']}"
        elif result["epoch"] != job["epoch"]:
            yield f"run {run} ended at epoch {job['epoch']} with the result of epoch {result['epoch']}"


def claims(record: Record) -> Breaches:
    """I6: every claim has the next epoch; I8: it has its end before the next; I9: attempts stay within their maximum."""
    epochs: dict[str, list[int]] = defaultdict(list)
    for row in record.rows(
        "select c.job_id::text as run, c.epoch from soak.claims c order by c.seq"
    ):
        epochs[row["run"]].append(row["epoch"])
    tried: dict[str, set[int]] = defaultdict(set)
    for row in record.rows("select a.job_id::text as run, a.epoch from jobforge.job_attempts a"):
        tried[row["run"]].add(row["epoch"])
    for run, job in record.jobs.items():
        numbers = epochs.get(run, [])
        if numbers != list(range(1, len(numbers) + 1)):
            yield f"run {run} was claimed with epochs {numbers}"
        if job["epoch"] != len(numbers):
            yield f"run {run} is at epoch {job['epoch']} after {len(numbers)} claims"
        for number in numbers:
            is_accepted = job["final_status"] == "succeeded" and number == job["epoch"]
            if not is_accepted and number not in tried[run]:
                yield f"claim {number} of run {run} has no end"
        if job["attempt_no"] > job["max_attempts"] and run not in record.retried:
            yield f"run {run} used {job['attempt_no']} of {job['max_attempts']} attempts"
        if job["final_status"] == "dead" and job["attempt_no"] < job["max_attempts"]:
            yield f"run {run} is dead with {job['attempt_no']} of {job['max_attempts']} attempts"


def attempts(record: Record) -> Breaches:
    """I8: nothing is lost under a living lease; I9, I23: an attempt is charged when it should be, and only then."""
    charged: dict[str, int] = defaultdict(int)
    failed: dict[str, int] = defaultdict(int)
    for row in record.rows(
        """
        select a.job_id::text as run, a.outcome, extract(epoch from a.finished_at - a.started_at)::float8 as lasted
        from jobforge.job_attempts a"""
    ):
        charged[row["run"]] += row["outcome"] not in ("released", "deferred")
        failed[row["run"]] += row["outcome"] in ("failed", "permanent", "timed_out")
        if row["outcome"] == "lost" and row["lasted"] < LEASE_SECONDS:
            yield f"run {row['run']} was lost after {row['lasted']:.2f} s, under a living lease"
    for run, job in record.jobs.items():
        is_success = job["final_status"] == "succeeded"
        if job["attempt_no"] > charged[run] + is_success:
            yield f"run {run} is at attempt {job['attempt_no']} after {charged[run]} that could be charged"
        if job["attempt_no"] < failed[run] + is_success:
            yield f"run {run} is at attempt {job['attempt_no']} after {failed[run]} failures"


def one_run_per_key(record: Record) -> Breaches:
    """I10: one idempotency key is one run, however often it was asked for."""
    for nonce, runs in record.told.items():
        if len(runs) > 1:
            yield f"{nonce} was told as {len(runs)} runs"


def atomic_enqueue(record: Record) -> Breaches:
    """I11: a job enqueued in a transaction exists if and only if that committed."""
    orders = {row["nonce"] for row in record.rows("select o.nonce from soak.orders o")}
    jobs = {job["nonce"] for job in record.jobs.values()}
    for nonce, end in record.orders.items():
        if (nonce in orders) != (nonce in jobs):
            yield f"order {nonce}: order {nonce in orders}, job {nonce in jobs}"
        if end == "dropped" and nonce in jobs:
            yield f"order {nonce} was rolled back and its job exists"
        if end == "kept" and nonce not in jobs:
            yield f"order {nonce} was committed and its job does not exist"


def order(record: Record) -> Breaches:
    """I12: jobs of one ordering key begin in the order they were committed, each after the end of the one before."""
    lines: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for job in record.jobs.values():
        if job["ordering_key"] is not None:
            lines[job["tenant_id"], job["ordering_key"]].append(job)
    first = {
        row["run"]: row["at"]
        for row in record.rows(
            "select c.job_id::text as run, min(c.at) as at from soak.claims c group by 1"
        )
    }
    ended = {
        row["run"]: row["at"]
        for row in record.rows(
            "select e.job_id::text as run, min(e.at) as at from soak.ends e where e.after is not null group by 1"
        )
    }
    for key, line in lines.items():
        line.sort(key=lambda job: job["sequence"])
        for before, after in pairwise(line):
            if after["id"] in first and (
                before["id"] not in ended or first[after["id"]] < ended[before["id"]]
            ):
                yield f"{key}: job {after['sequence']} began before job {before['sequence']} had ended"


def not_early(record: Record) -> Breaches:
    """I16: no run starts before it is due; I17: no retry before its backoff is over."""
    for row in record.rows(
        """
        select c.job_id::text as run, a.finished_at, c.at, j.backoff_ms from soak.claims c
        join jobforge.job_attempts a on a.job_id = c.job_id and a.epoch = c.epoch - 1
        join jobforge.jobs j on j.tenant_id = c.tenant_id and j.id = c.job_id
        where a.outcome = 'failed' and c.at < a.finished_at + j.backoff_ms * interval '1 millisecond'"""
    ):
        if row["run"] not in record.retried:
            yield f"run {row['run']} was tried again {row['at'] - row['finished_at']} after it failed"
    for row in record.rows(
        "select c.job_id::text as run, min(c.at) as at from soak.claims c group by 1"
    ):
        asked = record.enqueues.get(record.jobs[row["run"]]["nonce"], {}).get("run_at")
        if asked is not None and row["at"].timestamp() < asked:
            yield f"run {row['run']} was claimed {asked - row['at'].timestamp():.3f} s before it was due"


def canceled_stays(record: Record) -> Breaches:
    """I18: a run that was told to be canceled stays that."""
    for run, status in record.canceled.items():
        job = record.jobs.get(run)
        if (
            status == "canceled"
            and job is not None
            and job["final_status"] != "canceled"
            and run not in record.retried
        ):
            yield f"run {run} was told to be canceled and is {job['final_status']}"


def polls(record: Record) -> Breaches:
    """I20: a poller never sees a version shrink, an end undone, or a run unknown that was told."""
    for run, lines in record.polls.items():
        version, status = -1, None
        for line in lines:
            if line["status"] == "RUN_NOT_FOUND":
                yield f"run {run} was told and then unknown"
                continue
            if line["version"] < version:
                yield f"run {run} went from version {version} back to {line['version']}"
            if status in FINAL and line["status"] != status and run not in record.retried:
                yield f"run {run} was seen {status} and then {line['status']}"
            version, status = line["version"], line["status"]


def audited(record: Record) -> Breaches:
    """I25: one audit row for each write that happened."""
    for row in record.rows(
        """
        select j.id::text as run, count(a.id) as n from jobforge.jobs j
        left join jobforge.audit_log a on a.tenant_id = j.tenant_id and a.job_id = j.id and a.action = 'enqueue' and a.outcome = 'created'
        where not exists (select from jobforge.idempotency_keys k where k.tenant_id = j.tenant_id and k.job_id = j.id
            and exists (select from jobforge.audit_log b where b.tenant_id = j.tenant_id and b.action = 'enqueue'
              and b.occurred_at = j.created_at and b.job_id is null))
          and j.payload ->> 'nonce' in (select o.nonce from soak.orders o)
        group by 1 having count(a.id) <> 1"""
    ):
        yield f"run {row['run']} has {row['n']} audit rows of its making"
    singles = {nonce for nonce, line in record.enqueues.items() if not line.get("bulk")}
    audited = {
        row["run"]: row["n"]
        for row in record.rows(
            "select a.job_id::text as run, count(*) as n from jobforge.audit_log a"
            " where a.action = 'enqueue' and a.outcome = 'created' and a.job_id is not null group by 1"
        )
    }
    for run, job in record.jobs.items():
        if job["nonce"] in singles and audited.get(run, 0) != 1:
            yield f"run {run} has {audited.get(run, 0)} audit rows of its making"


PROMISES: dict[str, Callable[[Record], Iterable[str]]] = {
    "no loss": no_loss,
    "no ghosts": no_ghosts,
    "one end": one_end,
    "fence": fence,
    "claims": claims,
    "attempts": attempts,
    "one run per key": one_run_per_key,
    "atomic enqueue": atomic_enqueue,
    "order": order,
    "not early": not_early,
    "canceled stays canceled": canceled_stays,
    "polls": polls,
    "audit": audited,
}


def check(record: Record) -> list[Breach]:
    """Check every promise."""
    return [Breach(name, what) for name, promise in PROMISES.items() for what in promise(record)]
