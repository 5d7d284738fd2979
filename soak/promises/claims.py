"""Claims, leases and attempts."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime

from soak.crew import GRACE_SECONDS, LEASE_SECONDS
from soak.record import Breaches, Record

ENDED = ("failed", "permanent", "timed_out")
JITTER = 1.25
RESCUE_SECONDS = 30.0
"""What may pass after the end of a lease until somebody takes its jobs out: the promise is one second, on a machine that is
not loaded, while the database can be reached."""
END_SECONDS = 15.0
"""What may pass beyond its grace until a worker that was told to end has: six seconds are its own, the rest is load."""
CLAIM_SECONDS = 8.0
"""How long a claim that was sent before a worker was told to end may be on its way."""


def fence(record: Record) -> Breaches:
    """I4, I24: the accepted result is that of the last claim, of this very run, and of its tenant."""
    for run, job in record.jobs.items():
        if job["final_status"] != "succeeded" or "epoch" not in (job["result"] or {}):
            continue
        result = job["result"]
        if "impostor" in result:
            yield f"run {run} has a result of a worker that had lost it"
        elif result["run_id"] != run or result["tenant_id"] != job["tenant_id"]:
            yield f"run {run} has the result of run {result['run_id']} of {result['tenant_id']}"
        elif result["epoch"] != job["epoch"]:
            yield f"run {run} ended at epoch {job['epoch']} with the result of epoch {result['epoch']}"
    for row in record.rows(
        "select a.job_id::text as run from jobforge.job_attempts a where a.error ->> 'code' = 'IMPOSTOR'"
        " union select p.job_id::text from jobforge.run_progress p where p.message = 'impostor'"
    ):
        yield f"run {row['run']} was changed by a worker that had lost it"


def stale_answers(record: Record) -> Breaches:
    """I4, I5: whoever speaks of an attempt that has ended hears that it is stale, or what was answered before."""
    for line in record.impostor:
        accepted = line["answers"].count("accepted")
        if accepted:
            yield f"{accepted} calls of {line['call']} were accepted for attempts that had ended"


def claims(record: Record) -> Breaches:
    """I6: every claim has the next epoch; I8: it has its end before the next; I9: attempts stay within their maximum."""
    tried: dict[str, set[int]] = defaultdict(set)
    for row in record.rows("select a.job_id::text as run, a.epoch from jobforge.job_attempts a"):
        tried[row["run"]].add(row["epoch"])
    for run, job in record.jobs.items():
        numbers = [claim["epoch"] for claim in record.claims.get(run, [])]
        if numbers != list(range(1, len(numbers) + 1)):
            yield f"run {run} was claimed with epochs {numbers}"
        if record.is_at_rest and job["epoch"] != len(numbers):
            yield f"run {run} is at epoch {job['epoch']} after {len(numbers)} claims"
        for number in numbers if record.is_at_rest else ():
            is_accepted = job["final_status"] == "succeeded" and number == job["epoch"]
            if not is_accepted and number not in tried[run] and job["job_type"] in SINGLE:
                yield f"claim {number} of run {run} has no end"
        if job["attempt_no"] > job["max_attempts"] and run not in record.retried:
            yield f"run {run} used {job['attempt_no']} of {job['max_attempts']} attempts"
        if job["final_status"] == "dead" and job["attempt_no"] < job["max_attempts"]:
            yield f"run {run} is dead with {job['attempt_no']} of {job['max_attempts']} attempts"


SINGLE = frozenset(
    f"soak.{name}" for name in ("quick", "asked", "slow", "flaky", "hopeless", "poison", "blocking", "limited", "event", "tick")
)  # fmt: skip
"""Jobs with a handler: a composition gives its run back without an attempt."""


def attempts(record: Record) -> Breaches:
    """I8: nothing is lost under a living lease; I9, I23: an attempt is charged when it should be, and only then."""
    alone = {
        (run, claim["epoch"])
        for run, found in record.claims.items()
        for claim in found
        if claim["is_alone"]
    }
    charged: dict[str, int] = defaultdict(int)
    failed: dict[str, int] = defaultdict(int)
    for row in record.rows(
        """
        select a.job_id::text as run, a.epoch, a.outcome, extract(epoch from a.finished_at - a.started_at)::float8 as lasted
        from jobforge.job_attempts a"""
    ):
        charged[row["run"]] += row["outcome"] not in ("released", "deferred")
        is_lost_alone = row["outcome"] == "lost" and (row["run"], row["epoch"]) in alone
        failed[row["run"]] += row["outcome"] in ENDED or is_lost_alone
        if row["outcome"] == "lost" and row["lasted"] < LEASE_SECONDS:
            yield f"run {row['run']} was lost after {row['lasted']:.2f} s, under a living lease"
    for run, job in record.jobs.items():
        if job["job_type"] not in SINGLE:
            continue
        is_success = job["final_status"] == "succeeded"
        if job["attempt_no"] > charged[run] + is_success:
            yield f"run {run} is at attempt {job['attempt_no']} after {charged[run]} that could be charged"
        if job["attempt_no"] < failed[run] + is_success:
            yield f"run {run} is at attempt {job['attempt_no']} after {failed[run]} failures and losses alone"


def not_early(record: Record) -> Breaches:
    """I16: no run starts before it is due; I17: no retry before its backoff is over, and none is told to wait longer."""
    for row in record.rows(
        """
        select r.job_id::text as run, c.at, r.run_at, r.at as failed_at, r.epoch, a.attempt_no, a.outcome::text as outcome
        from soak.retries r
        join jobforge.job_attempts a on a.tenant_id = r.tenant_id and a.job_id = r.job_id and a.epoch = r.epoch
        left join soak.claims c on c.tenant_id = r.tenant_id and c.job_id = r.job_id and c.epoch = r.epoch + 1
        where a.outcome = 'failed'"""
    ):
        job = record.jobs[row["run"]]
        least = min(
            job["max_backoff_ms"],
            job["backoff_ms"] * job["backoff_multiplier"] ** (row["attempt_no"] - 1),
        )
        waits = (row["run_at"] - row["failed_at"]).total_seconds() * 1_000
        if waits > least * JITTER + 1:
            yield f"run {row['run']} has to wait {waits:.0f} ms after attempt {row['attempt_no']}, not {least:.0f}"
        if row["at"] is not None and row["at"] < row["run_at"]:
            yield f"run {row['run']} was tried again {row['run_at'] - row['at']} too soon"
    for row in record.rows(
        """
        select c.job_id::text as run, a.finished_at, c.at from soak.claims c
        join jobforge.job_attempts a on a.job_id = c.job_id and a.epoch = c.epoch - 1
        join jobforge.jobs j on j.tenant_id = c.tenant_id and j.id = c.job_id
        where a.outcome = 'failed' and c.at < a.finished_at + j.backoff_ms * interval '1 millisecond'"""
    ):
        if row["run"] not in record.retried:
            yield f"run {row['run']} was tried again {row['at'] - row['finished_at']} after it failed"
    for run, found in record.claims.items():
        asked = record.enqueues.get(record.jobs[run]["nonce"], {}).get("run_at")
        if asked is not None and found[0]["at"].timestamp() < asked:
            yield f"run {run} was claimed {asked - found[0]['at'].timestamp():.3f} s before it was due"


def rescue_seconds(record: Record) -> list[float]:
    """Return how long after their ends leases were taken apart, less what the database was out of reach."""
    found: list[float] = []
    for row in record.rows("select e.lease_until, e.at from soak.expiries e"):
        since, until = row["lease_until"].timestamp(), row["at"].timestamp()
        found.append(until - since - record.outage_seconds(since, until))
    return sorted(found)


def rescued(record: Record) -> Breaches:
    """I22: the jobs of a lost worker are taken up again soon after its lease."""
    for seconds in rescue_seconds(record):
        if seconds > RESCUE_SECONDS:
            yield f"a lease was taken apart {seconds:.1f} s after its end"


def drained(record: Record) -> Breaches:
    """I23: a worker that is told to end claims nothing more, and ends within its grace."""
    last_claim: dict[int, datetime] = {}
    for found in record.claims.values():
        for claim in found:
            pid = int(claim["worker_id"].split(":")[1])
            last_claim[pid] = max(claim["at"], last_claim.get(pid, claim["at"]))
    for pid, told in record.told_to_end.items():
        if told["signal"] != "SIGTERM" or pid not in record.gone:
            continue
        until = record.gone[pid]["t"]
        took = until - told["t"] - record.outage_seconds(told["t"], until)
        if took > GRACE_SECONDS + END_SECONDS:
            yield f"worker {pid} took {took:.1f} s to end"
        if pid in last_claim:
            late = last_claim[pid].timestamp() - told["t"]
            if late > CLAIM_SECONDS:
                yield f"worker {pid} claimed {late:.1f} s after it was told to end"
