-- What is thrown away once it was kept long enough, and how many open runs a person sees at a glance.
--
-- purge_finished is called again and again by maintenance, in small batches, so that no purge holds locks for long; it
-- passes over rows that others hold. set_retention is for operators. Locks: jobs by tenant_id and id, with all that hangs
-- on them; idempotency_keys.

set local role jobforge_sys;

-- The smallest id that a run made at this time can have: ids begin with the milliseconds since 1970.
create or replace function jobforge.lowest_id(p_at timestamptz) returns uuid
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select (lpad(to_hex(greatest(0, floor(extract(epoch from p_at) * 1000))::bigint), 12, '0') || '00000000000000000000')::uuid
$$;
comment on function jobforge.lowest_id(timestamptz) is 'The smallest id of runs made at this time or later.';

-- Ids are in the order of making, so a tenant's oldest runs are at the left edge of its key, and the edge moves on as they
-- go. A run waits for those that wait for it: a composition still reads the results of its steps.
create or replace function jobforge.purge_finished(p_limit integer default 1000)
returns table (runs bigint, idempotency_keys bigint)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
  v_tenant record;
  v_runs bigint := 0;
  v_some bigint;
  v_keys bigint;
begin
  if coalesce(p_limit, 0) not between 1 and 10000 then
    raise exception 'a purge takes 1 to 10,000 at a time, not %', p_limit using errcode = 'JF400';
  end if;
  for v_tenant in
    select t.tenant_id, v_now - t.retain_days * interval '1 day' as ended_before from jobforge.tenants t order by t.tenant_id
  loop
    exit when v_runs >= p_limit;
    with old as materialized (
      select j.tenant_id, j.id from jobforge.jobs j
      where j.tenant_id = v_tenant.tenant_id and j.id < jobforge.lowest_id(v_tenant.ended_before)
        and j.final_status is not null and j.finished_at < v_tenant.ended_before
        and not exists (
          select from jobforge.jobs p where p.tenant_id = j.tenant_id and p.id = j.parent_id and p.final_status is null)
      order by j.id limit p_limit - v_runs for update skip locked
    )
    delete from jobforge.jobs j using old o where j.tenant_id = o.tenant_id and j.id = o.id;
    get diagnostics v_some = row_count;
    v_runs := v_runs + v_some;
  end loop;
  delete from jobforge.idempotency_keys k
  where k.ctid = any (array(
    select x.ctid from jobforge.idempotency_keys x where x.expires_at < v_now limit p_limit for update skip locked));
  get diagnostics v_keys = row_count;
  return query select v_runs, v_keys;
end $$;
comment on function jobforge.purge_finished(integer) is
  'Remove runs that ended longer ago than their tenant keeps them, and expired idempotency keys; returns how many of each.';

create or replace function jobforge.set_retention(p_tenant_id text, p_retain_days integer) returns integer
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
begin
  if coalesce(p_retain_days, 0) not between 30 and 36500 then
    raise exception 'runs are kept for 30 to 36,500 days, not %', p_retain_days using errcode = 'JF400',
      hint = 'An idempotency key answers for 30 days and must not name a run that is gone.';
  end if;
  insert into jobforge.tenants as t (tenant_id, created_at, retain_days) values (p_tenant_id, jobforge.now(), p_retain_days)
  on conflict (tenant_id) do update set retain_days = excluded.retain_days;
  perform jobforge.record_audit(p_tenant_id, 'set_retention', 'done', null, null, jsonb_build_object('retainDays', p_retain_days));
  return p_retain_days;
end $$;
comment on function jobforge.set_retention(text, integer) is 'Set for how many days after their end the runs of a tenant are kept.';

create or replace function jobforge.list_retention() returns table (tenant_id text, retain_days integer)
language sql stable
security definer set search_path = jobforge, pg_temp
as $$ select t.tenant_id::text, t.retain_days from jobforge.tenants t order by t.tenant_id $$;
comment on function jobforge.list_retention() is 'For how many days each tenant''s runs are kept after their end.';

reset role;
set local role jobforge_rpc;

create or replace view jobforge.running_runs as
select r.tenant_id, r.job_id, r.job_type, r.project_id, r.attempt_no, r.max_attempts, r.worker_id, r.started_at, r.lease_until,
  r.progress_done, r.progress_total, r.progress_message, r.cancel_requested_at
from jobforge.runs r
where r.status = 'running';
comment on view jobforge.running_runs is 'Runs of the scope''s tenant that a worker holds.';

create or replace view jobforge.failed_runs as
select j.tenant_id, j.id as job_id, j.job_type, j.project_id, j.final_status as status, j.attempt_no, j.max_attempts,
  j.error ->> 'code' as error_code, j.error ->> 'message' as error_message, j.created_at, j.finished_at
from jobforge.jobs j
where j.final_status in ('failed', 'dead');
comment on view jobforge.failed_runs is 'Runs of the scope''s tenant that failed or died, with the error that ended them.';

create or replace view jobforge.queue_depth as
select s.tenant_id, s.job_type, count(*) filter (where s.status = 'queued') as queued,
  count(*) filter (where s.status = 'queued' and s.run_at <= jobforge.now()) as due,
  count(*) filter (where s.status = 'running') as running, count(*) filter (where s.status = 'waiting') as waiting,
  min(s.run_at) filter (where s.status = 'queued' and s.run_at <= jobforge.now()) as oldest_due_at
from jobforge.runs s
where s.status in ('queued', 'running', 'waiting')
group by s.tenant_id, s.job_type;
comment on view jobforge.queue_depth is 'Open runs of the scope''s tenant by type and status.';

create or replace view jobforge.trigger_status as
select t.tenant_id, t.name, t.kind, t.job_name, t.project_id, t.is_enabled, t.paused_at, t.next_fire_at, t.disabled_reason,
  l.decision as last_decision, l.reason as last_reason, l.decided_at as last_decided_at, f.decided_at as last_fired_at,
  f.job_id as last_job_id
from jobforge.triggers t
left join lateral (
  select x.decision, x.reason, x.decided_at from jobforge.trigger_fires x
  where x.tenant_id = t.tenant_id and x.trigger_name = t.name
  order by x.decided_at desc limit 1) l on true
left join lateral (
  select x.job_id, x.decided_at from jobforge.trigger_fires x
  where x.tenant_id = t.tenant_id and x.trigger_name = t.name and x.job_id is not null
  order by x.decided_at desc limit 1) f on true;
comment on view jobforge.trigger_status is 'Triggers of the scope''s tenant, each with its last decision and the last run that it started.';

reset role;
