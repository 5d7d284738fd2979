"""Runs exist, end once, and keep what they ended with."""

from __future__ import annotations

from collections import defaultdict

from soak.record import FINAL, Breaches, Line, Record


def no_loss(record: Record) -> Breaches:
    """I1, I13: whatever was acknowledged exists and has ended; nobody waits for ever."""
    for nonce, runs in record.told.items():
        for run in runs:
            job = record.jobs.get(run)
            if job is None:
                yield f"run {run} of {nonce} was acknowledged and does not exist"
    for run in record.seen - record.jobs.keys():
        yield f"run {run} was seen before PostgreSQL was stopped and does not exist"
    yield from _misplaced(record)
    if not record.is_at_rest:
        return
    for run, job in record.jobs.items():
        if job["final_status"] is None:
            yield f"run {run} ({job['job_type']}) never ended"
    for row in record.rows(
        """
        select 'ready' as place, count(*) as n from jobforge.ready union all
        select 'leases', count(*) from jobforge.leases union all
        select 'waiting', count(*) from jobforge.waiting union all
        select 'job_dependencies', count(*) from jobforge.job_dependencies union all
        select 'ordering_keys', count(*) from jobforge.ordering_keys"""
    ):
        if row["n"]:
            yield f"{row['n']} rows are left in {row['place']} after the drain"


def _misplaced(record: Record) -> Breaches:
    """At every moment an open run is in a place from which it goes on, and one that has ended is in none."""
    places: dict[str, str] = {
        row["run"]: row["place"]
        for row in record.rows(
            """
            select r.job_id::text as run, 'ready' as place from jobforge.ready r union all
            select u.id::text, 'leases' from jobforge.leases l cross join unnest(l.job_ids) u(id) union all
            select w.job_id::text, 'waiting' from jobforge.waiting w"""
        )
    }
    for run, job in record.jobs.items():
        if job["final_status"] is None and run not in places:
            yield f"run {run} ({job['job_type']}) has not ended and is nowhere"
        elif job["final_status"] is not None and run in places:
            yield f"run {run} is {job['final_status']} and still in {places[run]}"
    for row in record.rows(
        "select k.ordering_key as key, k.head_job_id::text as head from jobforge.ordering_keys k"
    ):
        if row["head"] in record.jobs and record.jobs[row["head"]]["final_status"] is not None:
            yield f"ordering key {row['key']} waits for run {row['head']}, which has ended"


def no_ghosts(record: Record) -> Breaches:
    """I2: nothing exists that nobody asked for, and nothing twice."""
    steps = {step for chain in record.chains.values() for step in chain["steps"]}
    asked = record.enqueues.keys() | record.orders.keys() | steps
    seen: set[tuple[str, str | None]] = set()
    for run, job in record.jobs.items():
        if job["job_type"] == "soak.tick":
            continue  # schedules have a promise of their own
        name = job["nonce"], job["trigger"]
        if job["nonce"] not in (asked if job["trigger"] is None else record.events):
            yield f"nobody asked for run {run}"
        if name in seen:
            yield f"two jobs exist for {job['nonce']}"
        seen.add(name)


def one_end(record: Record) -> Breaches:
    """I3, I7, I21: a run ends once, leaves its end only by a retry, and its result never changes."""
    for run, epoch in record.seen_ends:
        job = record.jobs.get(run)
        if job is None or run in record.retried:
            continue
        if job["epoch"] != epoch or job["final_status"] is None:
            yield f"run {run} was seen ended at epoch {epoch} before PostgreSQL was stopped and is {job['final_status']} at {job['epoch']}"
    ends: dict[str, list[Line]] = defaultdict(list)
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


def one_run_per_key(record: Record) -> Breaches:
    """I10: one idempotency key is one run, and one event, however often it was asked for."""
    for nonce, ids in [*record.told.items(), *record.events_told.items()]:
        if len(ids) > 1:
            yield f"{nonce} was told as {len(ids)} runs or events"


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


def canceled_stays(record: Record) -> Breaches:
    """I18: a run that was told to be canceled stays that, and none is canceled that nobody asked to cancel."""
    cancelable = {nonce for bundle in record.bundles for nonce in bundle["nonces"]}
    for run, status in record.canceled.items():
        job = record.jobs.get(run)
        if (
            status == "canceled"
            and job is not None
            and job["final_status"] != "canceled"
            and run not in record.retried
        ):
            yield f"run {run} was told to be canceled and is {job['final_status']}"
    for run, job in record.jobs.items():
        if (
            job["final_status"] == "canceled"
            and run not in record.asked_cancel
            and job["nonce"] not in cancelable
            and job["parent_id"] is None
        ):
            yield f"run {run} was canceled and nobody asked for that"


def polls(record: Record) -> Breaches:
    """I20: a poller never sees a version shrink, an end undone, or a run unknown that was told."""
    for run, lines in record.polls.items():
        version, status = -1, None
        for line in sorted(lines, key=lambda line: line["t"]):
            if line["status"] == "RUN_NOT_FOUND":
                yield f"run {run} was told and then unknown"
                continue
            if line["version"] < version:
                yield f"run {run} went from version {version} back to {line['version']}"
            if status in FINAL and line["status"] != status and run not in record.retried:
                yield f"run {run} was seen {status} and then {line['status']}"
            version, status = line["version"], line["status"]


def progress(record: Record) -> Breaches:
    """I19: progress of an attempt never shrinks; a request hears nothing after its answer."""
    last: dict[tuple[str, int], float] = {}
    for row in record.rows(
        "select p.job_id::text as run, p.epoch, p.done from soak.progress p order by p.seq"
    ):
        key = row["run"], row["epoch"]
        if row["done"] < last.get(key, 0):
            yield f"progress of attempt {row['epoch']} of run {row['run']} went back to {row['done']}"
        last[key] = row["done"]
    for request, lines in record.heard.items():
        if "answered" in [line["what"] for line in lines[:-1]]:
            yield f"request {request} heard of progress after its answer"
