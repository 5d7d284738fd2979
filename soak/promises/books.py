"""Tenants and the audit log."""

from __future__ import annotations

from collections import Counter

from soak.record import Breaches, Record


def tenancy(record: Record) -> Breaches:
    """I24: whatever belongs to a run is of its tenant, and the run of whoever asked for it."""
    for run, job in record.jobs.items():
        asked = record.enqueues.get(job["nonce"]) or (record.events if job["trigger"] else {}).get(
            job["nonce"]
        )
        if asked is not None and asked["tenant"] != job["tenant_id"]:
            yield f"run {run} of {job['tenant_id']} was asked for by {asked['tenant']}"
        parent = record.jobs.get(job["parent_id"] or "")
        if parent is not None and parent["tenant_id"] != job["tenant_id"]:
            yield f"run {run} of {job['tenant_id']} has a parent of {parent['tenant_id']}"
    for row in record.rows(
        """
        select x.place, x.run from (
          select 'job_attempts' as place, a.tenant_id, a.job_id::text as run from jobforge.job_attempts a union all
          select 'audit_log', a.tenant_id, a.job_id::text from jobforge.audit_log a where a.job_id is not null union all
          select 'trigger_fires', f.tenant_id, f.job_id::text from jobforge.trigger_fires f where f.job_id is not null union all
          select 'idempotency_keys', k.tenant_id, k.job_id::text from jobforge.idempotency_keys k union all
          select 'run_progress', p.tenant_id, p.job_id::text from jobforge.run_progress p union all
          select 'claims', c.tenant_id, c.job_id::text from soak.claims c) x
        where not exists (select from jobforge.jobs j where j.tenant_id = x.tenant_id and j.id::text = x.run)"""
    ):
        yield f"{row['place']} speaks of run {row['run']} under another tenant"


def audited(record: Record) -> Breaches:
    """I25: one audit row for each write that happened, in its transaction."""
    singles = {nonce for nonce, line in record.enqueues.items() if not line.get("bulk")}
    singles |= record.orders.keys()
    audited = {
        row["run"]: row["n"]
        for row in record.rows(
            "select a.job_id::text as run, count(*) as n from jobforge.audit_log a"
            " where a.action = 'enqueue' and a.outcome = 'created' and a.job_id is not null group by 1"
        )
    }
    for run, job in record.jobs.items():
        if job["nonce"] in singles and job["trigger"] is None and audited.get(run, 0) != 1:
            yield f"run {run} has {audited.get(run, 0)} audit rows of its making"
    yield from _audited_in_bulk(record)
    for row in record.rows(
        """
        select e.id::text as event, count(a.id) as n from jobforge.events e
        left join jobforge.audit_log a on a.tenant_id = e.tenant_id and a.action = 'submit_event' and a.outcome = 'created'
          and a.detail ->> 'eventId' = e.id::text
        group by 1 having count(a.id) <> 1"""
    ):
        yield f"event {row['event']} has {row['n']} audit rows of its making"
    for row in record.rows(
        """
        select r.run, r.n, count(a.id) as found from (
          select e.tenant_id, e.job_id, e.job_id::text as run, count(*) as n from soak.ends e
          where e.before is not null and e.after is null group by 1, 2) r
        left join jobforge.audit_log a on a.tenant_id = r.tenant_id and a.job_id = r.job_id and a.action = 'retry'
          and a.outcome not in ('refused', 'denied', 'planned')
        group by 1, 2 having count(a.id) <> r.n"""
    ):
        yield f"run {row['run']} was retried {row['n']} times and has {row['found']} audit rows of that"


def _audited_in_bulk(record: Record) -> Breaches:
    """Compare what the one row of each call in bulk says it made with what is there."""
    made = Counter(
        job["tenant_id"]
        for job in record.jobs.values()
        if job["trigger"] is None and record.enqueues.get(job["nonce"], {}).get("bulk")
    )
    said = {
        row["tenant_id"]: row["n"]
        for row in record.rows(
            "select a.tenant_id, sum((a.detail ->> 'created')::integer)::integer as n from jobforge.audit_log a"
            " where a.action = 'enqueue' and a.outcome = 'created' and a.tool = 'client' and a.job_id is null group by 1"
        )
    }
    for tenant in made.keys() | said.keys():
        if made[tenant] != said.get(tenant, 0):
            yield f"{made[tenant]} jobs of {tenant} were made in bulk, and audit rows tell of {said.get(tenant, 0)}"
