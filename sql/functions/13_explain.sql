-- Say why a run is not running.
--
-- Called by jobforge_api and by tenants' logins. It belongs to jobforge_rpc, refuses a tenant that is not the scope's, and
-- takes no lock.

set local role jobforge_rpc;

-- One named cause. A future worker sees the same facts, so the order of the questions is the order in which they matter.
create or replace function jobforge.explain_run(p_tenant_id text, p_job_id uuid)
returns table (cause text, message text, until_at timestamptz, blocked_by uuid)
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
  v_run jobforge.runs;
  v_key jobforge.ordering_keys;
  v_before bigint;
  v_projects text[];
  v_lane text;
begin
  perform jobforge.require_tenant(p_tenant_id);
  perform jobforge.require_run(p_tenant_id, p_job_id);
  v_projects := jobforge.confined_projects();
  select * into v_run from jobforge.runs r where r.tenant_id = p_tenant_id and r.job_id = p_job_id;
  if not found then
    perform jobforge.refuse_unknown_run(p_job_id);
  end if;
  select coalesce(j.lane_type, j.job_type) into v_lane from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = p_job_id;

  if v_run.error ->> 'code' = 'DEBOUNCED' then
    return query select 'debounced', 'A newer run of its debounce key took its place.', v_run.finished_at, (
      select j.id from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id::text = v_run.error ->> 'replacedBy'
        and (v_projects is null or j.project_id = any (v_projects)));
  elsif v_run.finished_at is not null then
    return query select 'final', format('It ended %s.', v_run.status), v_run.finished_at, null::uuid;
  elsif v_run.status = 'running' and v_run.cancel_requested_at is not null then
    return query select 'canceling', 'It runs, and its worker has been asked to stop it.', v_run.lease_until, null::uuid;
  elsif v_run.status = 'running' then
    return query select 'running', format('Worker %s runs it under a lease.', v_run.worker_id), v_run.lease_until, null::uuid;
  elsif v_run.status = 'waiting' and v_run.waiting_for = 'turn' then
    select * into v_key from jobforge.ordering_keys k where k.tenant_id = p_tenant_id and k.ordering_key = v_run.ordering_key;
    return query select 'waiting_turn', 'Another run of its ordering key comes first and blocks the key until it ends.',
      null::timestamptz, (select j.id from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = v_key.head_job_id
        and (v_projects is null or j.project_id = any (v_projects)));
  elsif v_run.status = 'waiting' and v_run.waiting_for in ('child', 'dependency') then
    return query select 'waiting_' || v_run.waiting_for, b.message, b.until_at, b.blocked_by
    from jobforge.blocking_runs(p_tenant_id, p_job_id, v_projects) b;
  elsif v_run.status = 'waiting' then
    return query select 'waiting_' || v_run.waiting_for, format('It waits for: %s.', v_run.waiting_for), null::timestamptz, null::uuid;
  elsif exists (
    select from jobforge.registered_jobs d
    where d.tenant_id = p_tenant_id and d.job_type = v_run.job_type and d.removed_at is not null)
    and v_lane = v_run.job_type
  then
    return query select 'definition_removed', format('The definition of %s was removed.', v_run.job_type), null::timestamptz, null::uuid;
  elsif exists (select from jobforge.pause_of(p_tenant_id, p_job_id)) then
    return query select 'paused', p.message, null::timestamptz, null::uuid from jobforge.pause_of(p_tenant_id, p_job_id) p;
  elsif not jobforge.has_worker(v_lane) then
    return query select 'no_worker', format('No living worker can run %s; it stays queued and spends no attempt.', v_run.job_type),
      null::timestamptz, null::uuid;
  elsif v_run.run_at > v_now and v_run.attempt_no > 0 then
    return query select 'retrying', format('Attempt %s of %s failed; the next is due later.', v_run.attempt_no, v_run.max_attempts),
      v_run.run_at, null::uuid;
  elsif v_run.run_at > v_now and exists (
    select from jobforge.debounces d where d.tenant_id = p_tenant_id and d.job_id = p_job_id)
  then
    return query select 'debouncing', 'It starts when no newer run of its debounce key has come for a while.', v_run.run_at, null::uuid;
  elsif v_run.run_at > v_now then
    return query select 'not_due', 'It was asked to run later.', v_run.run_at, null::uuid;
  elsif v_run.lease_until is not null then
    return query select 'lease_expired', 'Its worker was lost; any worker takes it over within a second.', null::timestamptz, null::uuid;
  elsif exists (select from jobforge.full_limits(p_tenant_id, v_run.job_type, p_job_id)) then
    return query select 'limit_reached', format('At most %s runs of %s may run at once, and as many do.', f.max_running, f.scope),
      null::timestamptz, null::uuid from jobforge.full_limits(p_tenant_id, v_run.job_type, p_job_id) f limit 1;
  elsif exists (select from jobforge.full_counter(p_tenant_id, p_job_id)) then
    return query select f.cause, f.message, f.until_at, (select j.id from jobforge.jobs j where j.tenant_id = p_tenant_id
        and j.id = f.blocked_by and (v_projects is null or j.project_id = any (v_projects)))
      from jobforge.full_counter(p_tenant_id, p_job_id) f;
  else
    select count(*) into v_before from (
      select from jobforge.ready r
      where r.tenant_id = p_tenant_id and r.job_type = v_lane and r.run_at <= v_now
        and (r.priority, r.run_at, r.job_id) < (v_run.priority, v_run.run_at, v_run.job_id)
      limit 10000) b;
    return query select 'queued_behind', case v_before
        when 0 then 'It is due and the next of its type.'
        when 1 then 'One due run of its type comes before it.'
        else format('%s due runs of its type come before it.', v_before) end,
      null::timestamptz, null::uuid;
  end if;
end $$;
comment on function jobforge.explain_run(text, uuid) is 'Why a run is not running: one named cause.';

reset role;
