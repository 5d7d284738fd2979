"""Order, limits, bundles and chains, events with triggers, and schedules."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from itertools import pairwise

from soak.record import Breaches, Line, Record
from soak.stage import EVENT_TRIGGERS

LIMIT = 3
"""Runs of ``soak.limited`` that a tenant may have at once."""


def order(record: Record) -> Breaches:
    """I12: jobs of one ordering key begin in the order they were committed, each after the end of the one before."""
    lines: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for job in record.jobs.values():
        if job["ordering_key"] is not None and job["sequence"] is not None:
            lines[job["tenant_id"], job["ordering_key"]].append(job)
    ended = _first_ends(record)
    for key, line in lines.items():
        line.sort(key=lambda job: job["sequence"])
        for before, after in pairwise(line):
            found = record.claims.get(after["id"])
            if found and (before["id"] not in ended or found[0]["at"] < ended[before["id"]]):
                yield f"{key}: job {after['sequence']} began before job {before['sequence']} had ended"


def limits(record: Record) -> Breaches:
    """Never do more runs of a limited job hold a slot than its limit allows."""
    for row in record.rows(
        """
        with spans as (
          select c.tenant_id, c.job_id, c.at as began, coalesce(a.finished_at, j.finished_at) as ended
          from soak.claims c join jobforge.jobs j on j.tenant_id = c.tenant_id and j.id = c.job_id
          left join jobforge.job_attempts a on a.tenant_id = c.tenant_id and a.job_id = c.job_id and a.epoch = c.epoch
          where j.job_type = 'soak.limited'
        ), marks as (
          select tenant_id, began as at, 1 as step from spans where ended > began
          union all select tenant_id, ended, -1 from spans where ended > began
        )
        select tenant_id, max(held) as most from (
          select tenant_id, sum(step) over (partition by tenant_id order by at, step) as held from marks) h group by 1"""
    ):
        if row["most"] > LIMIT:
            yield f"{row['most']} limited runs of {row['tenant_id']} ran at once"


def bundles(record: Record) -> Breaches:
    """A member of a bundle starts when what it needs has ended, and not at all if that did not succeed."""
    by_nonce = {job["nonce"]: job for job in record.jobs.values()}
    ended = _first_ends(record)
    for bundle in record.bundles:
        found = [by_nonce.get(nonce) for nonce in bundle["nonces"]]
        if any(job is None for job in found):
            if any(job is not None for job in found):
                yield f"bundle {bundle['nonces'][0]} exists in part"
            continue
        jobs = [job for job in found if job is not None]
        for before, after in pairwise(jobs):
            claimed = record.claims.get(after["id"])
            if claimed and (before["id"] not in ended or claimed[0]["at"] < ended[before["id"]]):
                yield f"run {after['id']} began before run {before['id']}, which it depends on, had ended"
        first, second, last = jobs
        if any(job["final_status"] is None for job in jobs):
            continue  # that it ends at all is for another promise
        is_touched = {job["id"] for job in jobs} & (record.asked_cancel | record.retried)
        wanted = "succeeded" if first["final_status"] == "succeeded" else "canceled"
        if not is_touched and (second["final_status"], last["final_status"]) != (
            wanted,
            "succeeded",
        ):
            yield f"bundle {first['id']} ended {[job['final_status'] for job in jobs]}"


def chains(record: Record) -> Breaches:
    """Each step of a chain has one run, in order, and the chain succeeds with what its steps returned."""
    runs: dict[str, list[Line]] = defaultdict(list)
    chains = {job["nonce"]: job for job in record.jobs.values() if job["nonce"] in record.chains}
    for job in record.jobs.values():
        runs[job["nonce"]].append(job)
    for nonce, chain in record.chains.items():
        job = chains.get(nonce)
        if job is None or job["id"] in record.asked_cancel:
            continue
        steps = [runs[step] for step in chain["steps"]]
        if [len(found) for found in steps] != [1, 1, 1]:
            yield f"the steps of chain {job['id']} have {[len(found) for found in steps]} runs"
            continue
        if job["final_status"] != "succeeded":
            if not {found[0]["id"] for found in steps} & record.asked_cancel:
                yield f"chain {job['id']} is {job['final_status']}"
            continue
        if any(found[0]["parent_id"] != job["id"] for found in steps):
            yield f"a step of chain {job['id']} is not its child"
        told = [result["run_id"] for result in job["result"]]
        if told != [found[0]["id"] for found in steps[1:]]:
            yield f"chain {job['id']} has the results of {told}"


def events(record: Record) -> Breaches:
    """I14: an event is stored once, and makes one run for each trigger that wants it."""
    stored: dict[str, list[Line]] = defaultdict(list)
    for row in record.rows(
        "select e.id::text as id, e.tenant_id, e.payload ->> 'nonce' as nonce, e.processed_at from jobforge.events e"
    ):
        stored[row["nonce"]].append(row)
    fired: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for row in record.rows(
        "select f.event_id::text as event, f.trigger_name as trigger, f.decision::text as decision, f.job_id::text as run"
        " from jobforge.trigger_fires f where f.kind = 'event'"
    ):
        fired[row["event"], row["trigger"]].append(row)
    made: dict[tuple[str, str], list[str]] = defaultdict(list)
    for run, job in record.jobs.items():
        if job["trigger"] is not None:
            made[job["nonce"], job["trigger"]].append(run)
    for nonce, ids in record.events_told.items():
        if not ids <= {row["id"] for row in stored[nonce]}:
            yield f"event {nonce} was acknowledged and does not exist"
    for nonce, rows in stored.items():
        if len(rows) > 1:
            yield f"event {nonce} is stored {len(rows)} times"
        if nonce not in record.events:
            yield f"nobody submitted event {nonce}"
            continue
        if rows[0]["processed_at"] is None:
            if record.is_at_rest:
                yield f"the triggers of event {nonce} were never asked"
            continue
        for trigger, is_big in EVENT_TRIGGERS.items():
            wanted = not is_big or record.events[nonce]["big"]
            decided = fired[rows[0]["id"], trigger]
            if [row["decision"] for row in decided] != ["fired" if wanted else "no_match"]:
                yield f"trigger {trigger} decided {decided} about event {nonce}"
            elif [row["run"] for row in decided if row["run"]] != made[nonce, trigger]:
                yield f"event {nonce} and trigger {trigger} made {made[nonce, trigger]}, not {decided}"


def schedules(record: Record) -> Breaches:
    """I15: every minute of a schedule is decided once, by its rule, and makes one run or none."""
    times: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for row in record.rows(
        "select f.tenant_id, f.trigger_name as trigger, f.scheduled_at as at, f.decision::text as decision, f.job_id::text as run"
        " from jobforge.trigger_fires f where f.kind = 'cron' order by f.scheduled_at"
    ):
        times[row["tenant_id"], row["trigger"]].append(row)
    runs = {run for run, job in record.jobs.items() if job["job_type"] == "soak.tick"}
    for (tenant, trigger), rows in times.items():
        for before, after in pairwise(rows):
            if after["at"] - before["at"] != timedelta(minutes=1):
                yield f"schedule {trigger} of {tenant} went from {before['at']} to {after['at']}"
        allowed = {
            "all": {"fired", "caught_up"},
            "one": {"fired", "caught_up", "skipped"},
            "none": {"fired", "late"},
        }
        for row in rows:
            if row["decision"] not in allowed[trigger.removeprefix("tick-")]:
                yield f"schedule {trigger} of {tenant} decided {row['decision']} for {row['at']}"
            if row["run"] is not None:
                if row["run"] not in runs:
                    yield f"run {row['run']} of schedule {trigger} of {tenant} does not exist, or is of two times"
                runs.discard(row["run"])
    for run in runs:
        yield f"run {run} belongs to no time of a schedule"


def _first_ends(record: Record) -> dict[str, Line]:
    return {
        row["run"]: row["at"]
        for row in record.rows(
            "select e.job_id::text as run, min(e.at) as at from soak.ends e where e.after is not null group by 1"
        )
    }
