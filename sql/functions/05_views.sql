-- Every job with its true status, and accepted results.
--
-- Both views belong to jobforge_rpc, whose row policy admits the scope's tenant alone; a login that may select from them
-- and has not entered a scope sees nothing. One branch for each place a job can be in, so that the status is a fact of
-- where the row came from and a search by id is four look-ups by key.

set local role jobforge_rpc;

create or replace view jobforge.runs as
select
  s.tenant_id, s.job_id, j.project_id, j.job_type, j.job_version, s.status, s.waiting_for, s.attempt_no,
  j.max_attempts, s.epoch,
  -- Grows with every visible change and is written by none of them: a claim raises the epoch, within one epoch a job
  -- runs, then waits or is lost, then is queued again, then ends, and `changes` counts what these do not show.
  4 * s.epoch::bigint + s.step + coalesce(p.changes, 0) as version,
  j.priority, j.run_at, j.ordering_key, j.labels, j.trace_id, j.parent_id, j.timeout_ms, j.is_dry_run, j.created_at,
  j.created_by, s.started_at, j.finished_at, s.worker_id, s.lease_until,
  case when p.epoch = s.epoch then p.done end as progress_done,
  case when p.epoch = s.epoch then p.total end as progress_total,
  case when p.epoch = s.epoch then p.message end as progress_message,
  p.cancel_requested_at, p.cancel_reason, j.error, j.result
from (
  select q.tenant_id, q.id as job_id, 'queued'::text as status, null::text as waiting_for, r.attempt_no, r.epoch, 2 as step,
    null::timestamptz as started_at, null::text as worker_id, null::timestamptz as lease_until
  -- A ready row is found by its whole key, which its job knows: without the join a search by id would read the tenant's,
  -- and without the offset a plan made while ready was empty would.
  -- A case and not a coalesce, which counts as leaky: row level security would keep it from being looked up in the index.
  from jobforge.jobs q
  cross join lateral (
    select k.attempt_no, k.epoch from jobforge.ready k
    where k.tenant_id = q.tenant_id and k.job_type = case when q.lane_type is null then q.job_type else q.lane_type end
      and k.priority = q.priority and k.run_at = q.run_at and k.job_id = q.id offset 0) r
  where q.final_status is null
  union all
  -- A job over a limit is parked there by a claim, of which nobody is told: it is queued before, meanwhile and after.
  select w.tenant_id, w.job_id, case when w.waiting_for = 'limit' then 'queued' else 'waiting' end,
    case when w.waiting_for <> 'limit' then w.waiting_for end, w.attempt_no, w.epoch,
    case when w.waiting_for = 'limit' then 2 else 1 end, null, null, null
  from jobforge.waiting w
  union all
  -- An expired lease is nobody's: its jobs go back to ready by whoever sees it first, and until then are as good as there.
  select l.tenant_id, h.job_id, case when l.lease_until > jobforge.now() then 'running' else 'queued' end, null,
    h.attempt_no, h.epoch, case when l.lease_until > jobforge.now() then 0 else 1 end, l.claimed_at, l.worker_id, l.lease_until
  from jobforge.leases l
  cross join lateral unnest(l.job_ids, l.epochs, l.attempt_nos) h(job_id, epoch, attempt_no)
  union all
  select f.tenant_id, f.id, f.final_status, null, f.attempt_no, f.epoch, 3, f.started_at, f.worker_id, null
  from jobforge.jobs f
  where f.final_status is not null
) s
cross join lateral (select x.* from jobforge.jobs x where x.tenant_id = s.tenant_id and x.id = s.job_id offset 0) j
left join lateral (select y.* from jobforge.run_progress y where y.tenant_id = s.tenant_id and y.job_id = s.job_id offset 0) p on true;
comment on view jobforge.runs is 'Every job of the scope''s tenant with its true status, progress and version.';

create or replace view jobforge.job_results as
select j.tenant_id, j.id as job_id, j.job_type, j.epoch, j.attempt_no, j.finished_at, j.result
from jobforge.jobs j
where j.final_status = 'succeeded';
comment on view jobforge.job_results is 'Accepted results of the scope''s tenant; one for each succeeded run, never changed once written.';

reset role;
