"""What must be true of the tables whenever no call is under way: recomputed from the jobs themselves, one name for each rule."""

from __future__ import annotations

from typing import LiteralString

from tests.sql.acting import Queue

# A breach is a row of text. Everything that is open is in one place; what is counted is counted right; nobody waits for nothing.
TRUTH: LiteralString = """
create function explore.truth() returns table (breach text) language sql as $$
with held as (
  select l.tenant_id, l.lease_id, h.job_id, h.epoch, h.attempt_no, l.cancel_ids from jobforge.leases l
  cross join lateral unnest(l.job_ids, l.epochs, l.attempt_nos) h(job_id, epoch, attempt_no)
), places as (
  select r.tenant_id, r.job_id, 'ready' as place, r.epoch, r.attempt_no from jobforge.ready r
  union all select w.tenant_id, w.job_id, 'waiting', w.epoch, w.attempt_no from jobforge.waiting w
  union all select h.tenant_id, h.job_id, 'lease', h.epoch, h.attempt_no from held h
)
select format('job %s (%s) is in %s places: %s', j.payload ->> 'w', coalesce(j.final_status, 'open'), count(p.place), string_agg(p.place, ' '))
from jobforge.jobs j left join places p on p.tenant_id = j.tenant_id and p.job_id = j.id
group by j.tenant_id, j.id, j.payload, j.final_status having count(p.place) <> (j.final_status is null)::integer
union all
select format('a place of no job: %s', p) from places p
where not exists (select from jobforge.jobs j where j.tenant_id = p.tenant_id and j.id = p.job_id)
union all
select format('job %s: attempt %s above %s', j.payload ->> 'w', p.attempt_no, j.max_attempts)
from places p join jobforge.jobs j on j.tenant_id = p.tenant_id and j.id = p.job_id
where p.attempt_no > j.max_attempts or (p.place <> 'lease' and p.attempt_no >= j.max_attempts)
union all
select format('job %s: epoch %s is not above the %s of an ended attempt', j.payload ->> 'w', p.epoch, a.epoch)
from places p join jobforge.jobs j on j.tenant_id = p.tenant_id and j.id = p.job_id
join jobforge.job_attempts a on a.tenant_id = p.tenant_id and a.job_id = p.job_id
where a.epoch > p.epoch or (p.place = 'lease' and a.epoch = p.epoch)
union all
select format('job %s is %s with result %s', j.payload ->> 'w', j.final_status, j.result)
from jobforge.jobs j where (j.final_status = 'succeeded') is distinct from (j.result is not null) and j.final_status is not null
union all
select format('ordering key %s: %s open of %s at the head', k.ordering_key, count(j.id) filter (where j.final_status is null), count(*))
from jobforge.ordering_keys k left join jobforge.jobs j on j.tenant_id = k.tenant_id and j.id = k.head_job_id
left join jobforge.waiting w on w.tenant_id = k.tenant_id and w.job_id = k.head_job_id and w.waiting_for in ('turn', 'dependency')
group by k.tenant_id, k.ordering_key
having count(j.id) filter (where j.final_status is null) <> 1 or count(w.job_id) > 0
union all
select format('job %s of ordering key %s is neither its head nor in its line', j.payload ->> 'w', j.ordering_key)
from jobforge.jobs j where j.ordering_key is not null and j.final_status is null
  and not exists (select from jobforge.ordering_keys k where k.tenant_id = j.tenant_id and k.ordering_key = j.ordering_key and k.head_job_id = j.id)
  and not exists (select from jobforge.waiting w where w.tenant_id = j.tenant_id and w.job_id = j.id
    and (w.waiting_for = 'dependency' or (w.waiting_for = 'turn' and exists (
      select from jobforge.ordering_keys k where k.tenant_id = j.tenant_id and k.ordering_key = j.ordering_key and w.turn < k.next_turn))))
union all
select format('turn %s of ordering key %s was given twice', w.turn, w.ordering_key) from jobforge.waiting w
where w.waiting_for = 'turn' group by w.tenant_id, w.ordering_key, w.turn having count(*) > 1
union all
select format('counter %s says %s, and %s run', n.counter, n.running, n.truth) from (
  select coalesce(c.tenant_id, r.tenant_id) as tenant_id, coalesce(c.counter, r.slot_key) as counter, coalesce(c.running, 0) as running,
    coalesce(r.count, 0) as truth
  from jobforge.claim_counters c full join (
    select h.tenant_id, j.slot_key, count(*) from held h
    join jobforge.jobs j on j.tenant_id = h.tenant_id and j.id = h.job_id and j.slot_key is not null group by 1, 2) r
  on r.tenant_id = c.tenant_id and r.slot_key = c.counter) n where n.running <> n.truth
union all
select format('counter %s: %s run where %s may', j.slot_key, count(*), min(j.slot_limit)) from held h
join jobforge.jobs j on j.tenant_id = h.tenant_id and j.id = h.job_id where j.slot_key is not null
group by h.tenant_id, j.slot_key having count(*) > min(j.slot_limit)
union all
select format('job %s is parked at %s, which has room', j.payload ->> 'w', w.counter) from jobforge.waiting w
join jobforge.jobs j on j.tenant_id = w.tenant_id and j.id = w.job_id
where w.waiting_for = 'limit' and (
  (w.counter like 'slot:%' and not exists (
    select from jobforge.claim_counters c where c.tenant_id = w.tenant_id and c.counter = w.counter and c.running >= c.most))
  or (w.counter like 'rate:%' and not exists (
    select from jobforge.claim_counters c where c.tenant_id = w.tenant_id and c.counter = w.counter and c.next_at is not null))
  or (w.counter like 'pause:%' and not exists (
    select from jobforge.pauses p where p.tenant_id = w.tenant_id and 'pause:' || p.kind || ':' || p.name = w.counter)))
union all
select format('job %s waits for a %s, and for nothing', j.payload ->> 'w', w.waiting_for) from jobforge.waiting w
join jobforge.jobs j on j.tenant_id = w.tenant_id and j.id = w.job_id
where w.waiting_for in ('dependency', 'child') and not exists (
  select from jobforge.job_dependencies d join jobforge.jobs o on o.tenant_id = d.tenant_id and o.id = d.depends_on_id and o.final_status is null
  where d.tenant_id = w.tenant_id and d.job_id = w.job_id and not d.is_orphan)
union all
select format('job %s does not wait, and depends on %s', j.payload ->> 'w', d.depends_on_id) from jobforge.job_dependencies d
join jobforge.jobs j on j.tenant_id = d.tenant_id and j.id = d.job_id
where not d.is_orphan and not exists (select from jobforge.waiting w where w.tenant_id = d.tenant_id and w.job_id = d.job_id)
union all
select format('a key of no job: %s', k.idempotency_key) from jobforge.idempotency_keys k
where not exists (select from jobforge.jobs j where j.tenant_id = k.tenant_id and j.id = k.job_id)
union all
select format('type %s of %s has no lane', r.job_type, r.tenant_id) from jobforge.ready r
where not exists (select from jobforge.lanes l where l.tenant_id = r.tenant_id and l.job_type = r.job_type)
union all
select format('a fire of no job: %s', f.fire_key) from jobforge.trigger_fires f
where f.job_id is not null and not exists (select from jobforge.jobs j where j.tenant_id = f.tenant_id and j.id = f.job_id)
union all
select format('%s events of one key', count(*)) from jobforge.events e where e.idempotency_key is not null
group by e.tenant_id, e.idempotency_key, e.source, e.event_type having count(*) > 1
union all
select format('open runs of %s are above what its count may be: %s of %s', u.counter, o.count, u.open_ceiling)
from jobforge.limit_usage u cross join lateral (
  select count(*) from jobforge.jobs j where j.tenant_id = u.tenant_id and j.final_status is null
    and u.counter in ('tenant:', 'type:' || j.job_type)) o
where u.open_ceiling is not null and o.count > u.open_ceiling
$$;
"""

# Written so that ids and times of a run of the experiment do not matter: jobs are told apart by their letters.
DIGEST: LiteralString = """
create function explore.digest() returns table (line text) language sql as $$
select format('job %s %s %s epoch %s attempt %s%s', j.payload ->> 'w', j.job_type, coalesce(j.final_status, p.place),
  greatest(j.epoch, p.epoch), coalesce(p.attempt_no, j.attempt_no), case when g.cancel_requested_at is not null then ' to cancel' end)
from jobforge.jobs j
left join (
  select r.tenant_id, r.job_id, 'ready' as place, r.epoch, r.attempt_no from jobforge.ready r
  union all select w.tenant_id, w.job_id, 'waits for ' || w.waiting_for, w.epoch, w.attempt_no from jobforge.waiting w
  union all select l.tenant_id, h.job_id, 'held by ' || l.worker_id, h.epoch, h.attempt_no from jobforge.leases l
    cross join lateral unnest(l.job_ids, l.epochs, l.attempt_nos) h(job_id, epoch, attempt_no)) p
  on p.tenant_id = j.tenant_id and p.job_id = j.id
left join jobforge.run_progress g on g.tenant_id = j.tenant_id and g.job_id = j.id
union all select format('key %s is of %s', regexp_replace(k.idempotency_key, '[0-9a-f-]{36}', 'an id'), j.payload ->> 'w') from jobforge.idempotency_keys k
  join jobforge.jobs j on j.tenant_id = k.tenant_id and j.id = k.job_id
union all select format('line %s begins with %s', k.ordering_key, j.payload ->> 'w') from jobforge.ordering_keys k
  join jobforge.jobs j on j.tenant_id = k.tenant_id and j.id = k.head_job_id
union all select format('attempt %s of %s %s', a.epoch, j.payload ->> 'w', a.outcome) from jobforge.job_attempts a
  join jobforge.jobs j on j.tenant_id = a.tenant_id and j.id = a.job_id
union all select format('%s counts %s', c.counter, c.running) from jobforge.claim_counters c where c.running > 0
-- what was counted while its limit was removed is forgotten later
union all select format('%s used %s jobs', u.counter, u.jobs) from jobforge.limit_usage u join jobforge.rate_limits l
  on l.tenant_id = u.tenant_id and l.kind || ':' || l.name = u.counter
union all select format('pause %s %s', p.kind, p.name) from jobforge.pauses p
union all select format('definition %s %s %s', d.job_type, d.job_version, d.approved_at is not null) from jobforge.job_definitions d
union all select format('registered %s %s removed %s', r.job_type, r.job_version, r.removed_at is not null) from jobforge.registered_jobs r
union all select format('trigger %s version %s enabled %s', t.name, t.version, t.is_enabled) from jobforge.triggers t
union all select format('fire %s %s %s', f.trigger_name, f.kind, f.decision) from jobforge.trigger_fires f
union all select format('event %s processed %s', e.event_type, e.processed_at is not null) from jobforge.events e
union all select format('did %s %s %s', a.action, a.outcome, count(*)) from jobforge.audit_log a group by a.action, a.outcome
union all select format('logs %s', count(*)) from jobforge.run_logs
$$;
"""


def breaches(queue: Queue) -> list[str]:
    """Name what is not true."""
    return [row.breach for row in queue.look("select breach from explore.truth()")]


def digest(queue: Queue) -> tuple[str, ...]:
    """Write down what callers and workers could tell apart."""
    return tuple(sorted(row.line for row in queue.look("select line from explore.digest()")))
