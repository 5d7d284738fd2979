"""Both histories of a soak, read: what callers and handlers wrote down, and what the database holds."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString

from soak.history import read_histories
from soak.server import Snapshot

FINAL = frozenset({"succeeded", "failed", "dead", "canceled"})
_ANSWERS = frozenset({"told", "event_told", "order_ended", "canceled", "seen"})
"""What tells what the database holds from then on."""
Line = dict[str, Any]
Breaches = Generator[str]


def _lists() -> dict[str, list[Line]]:
    return defaultdict(list)


@dataclass
class Record:
    """Everything that was written down."""

    database: Snapshot
    is_at_rest: bool = True
    """Whether everything has ended that ever will; else only what holds at every moment can be checked."""
    taken_at: float = 0.0
    """When the database was asked: answers that came later may tell of what it does not hold yet."""
    enqueues: dict[str, Line] = field(default_factory=dict[str, Line])
    """What was asked for, by nonce."""
    told: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Run ids that callers were told, by nonce."""
    orders: dict[str, str] = field(default_factory=dict[str, str])
    """Orders in an application's own transaction: kept, dropped or unknown."""
    events: dict[str, Line] = field(default_factory=dict[str, Line])
    """Events that were submitted, by nonce."""
    events_told: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Event ids that callers were told, by nonce."""
    bundles: list[Line] = field(default_factory=list[Line])
    chains: dict[str, Line] = field(default_factory=dict[str, Line])
    polls: dict[str, list[Line]] = field(default_factory=_lists)
    heard: dict[str, list[Line]] = field(default_factory=_lists)
    """Progress notifications and the answer, by request."""
    impostor: list[Line] = field(default_factory=list[Line])
    """Answers to a worker that had lost what it spoke of."""
    seen: set[str] = field(default_factory=set[str])
    """Runs that could be seen when PostgreSQL was stopped."""
    seen_ends: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    """Runs that could be seen to have ended then, with the epoch at which they had."""
    retried: set[str] = field(default_factory=set[str])
    canceled: dict[str, str] = field(default_factory=dict[str, str])
    asked_cancel: set[str] = field(default_factory=set[str])
    began: dict[tuple[str, int], float] = field(default_factory=dict[tuple[str, int], float])
    """When handlers began, by run and epoch."""
    told_to_end: dict[int, Line] = field(default_factory=dict[int, Line])
    gone: dict[int, Line] = field(default_factory=dict[int, Line])
    outages: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    """When the database could not be reached, as the nemesis knows."""
    doors: Counter[str] = field(default_factory=Counter[str])
    """Runs and events that agents were told, by door."""
    jobs: dict[str, Line] = field(default_factory=dict[str, Line])
    claims: dict[str, list[Line]] = field(default_factory=_lists)
    """What the database wrote down of every claim, by run."""

    def rows(self, query: LiteralString) -> list[Line]:
        """Ask the database."""
        return self.database.fetch(query)

    def outage_seconds(self, since: float, until: float) -> float:
        """Return how much of a span the database was out of reach."""
        return sum(max(0.0, min(until, end) - max(since, start)) for start, end in self.outages)


def read_record(database: Snapshot, folder: Path, *, is_at_rest: bool = True) -> Record:
    """Read everything that was written down: first what happened, then what was asked for."""
    record = Record(database, is_at_rest, time.time())
    for row in record.rows(
        """
        select j.id::text as id, j.tenant_id, j.job_type, j.final_status, j.attempt_no, j.epoch, j.max_attempts, j.ordering_key,
          j.payload ->> 'nonce' as nonce, j.payload ->> 'trigger' as trigger, (j.payload ->> 'sequence')::integer as sequence,
          j.run_at, j.created_at, j.started_at, j.finished_at, j.result, md5(j.result::text) as result_hash, j.backoff_ms,
          j.backoff_multiplier, j.max_backoff_ms, j.parent_id::text as parent_id, j.worker_id, j.priority
        from jobforge.jobs j"""
    ):
        record.jobs[row["id"]] = row
    for row in record.rows(
        "select c.job_id::text as run, c.epoch, c.worker_id, c.is_alone, c.claimed_at, c.at from soak.claims c order by c.seq"
    ):
        record.claims[row["run"]].append(row)
    for line in read_histories(folder, "caller"):
        if line["what"] not in _ANSWERS or line["t"] < record.taken_at:
            _read_caller(record, line)
    for line in read_histories(folder, "handler"):
        record.began[line["run"], line["epoch"]] = line["t"]
    for line in read_histories(folder, "conductor"):
        if line["what"] not in _ANSWERS or line["t"] < record.taken_at:
            _read_conductor(record, line)
    return record


def _read_caller(record: Record, line: Line) -> None:
    if "door" in line and line["what"] in ("told", "event_told"):
        record.doors[line["door"]] += 1
    match line["what"]:
        case "enqueue":
            record.enqueues[line["nonce"]] = line
        case "told":
            record.told[line["nonce"]].add(line["run"])
        case "order":
            record.orders[line["nonce"]] = "unknown"
        case "order_ended":
            record.orders[line["nonce"]] = "kept" if line["kept"] else "dropped"
        case "event":
            record.events[line["nonce"]] = line
        case "event_told":
            record.events_told[line["nonce"]].add(line["event"])
        case "bundle":
            record.bundles.append(line)
        case "chain":
            record.chains[line["nonce"]] = line
        case "poll":
            record.polls[line["run"]].append(line)
        case "poll_refused":
            record.polls[line["run"]].append({**line, "status": line["code"], "version": -1})
        case "heard" | "answered":
            record.heard[line["request"]].append(line)
        case "retry":
            record.retried.add(line["run"])
        case "cancel":
            record.asked_cancel.add(line["run"])
        case "canceled":
            record.canceled[line["run"]] = line["status"]
        case _:
            pass


def _read_conductor(record: Record, line: Line) -> None:
    match line["what"]:
        case "told_to_end":
            record.told_to_end[line["pid"]] = line
        case "gone":
            record.gone[line["pid"]] = line
        case "out_of_reach":
            record.outages.append((line["t"], line["t"] + line["seconds"]))
        case "was_out_of_reach":
            record.outages.append((line["t"] - line["seconds"], line["t"]))
        case "seen":
            record.seen |= {run for run, _ in line["rows"]}
            record.seen_ends |= {(run, epoch) for run, epoch in line["rows"] if epoch is not None}
        case "impostor":
            record.impostor.append(line)
        case _:
            pass
