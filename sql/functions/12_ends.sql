-- Cancel runs that are open, and retry those that have ended.
--
-- Called by jobforge_api and by tenants' logins; the bulk forms in 22_bulk.sql take the same steps. Every function belongs
-- to jobforge_rpc and refuses a tenant that is not the scope's. Locks: where limits apply check_policy takes its counters
-- first; then the job's place, jobs, and ordering_keys. Nothing here waits for a worker.

set local role jobforge_rpc;

-- A job can move from place to place while we look for it; each place is tried under its row's lock, and if it moved past
-- us we look again.
create or replace function jobforge.cancel_open_job(p_tenant_id text, p_job_id uuid, p_reason text, p_is_plan boolean)
returns table (outcome text, job_type text)
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
  v_reason text := left(p_reason, 1000);
  v_job jobforge.jobs;
  v_place record;
  v_is_reaped boolean := false;
  v_outcome text;
begin
  for v_try in 1..20 loop
    select * into v_job from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = p_job_id;
    if not found then
      perform jobforge.refuse_unknown_run(p_job_id);
    end if;
    -- what our own reaping ended is told and not refused: an error would undo it, and the run would be open again
    if v_job.final_status = 'canceled' or (v_job.final_status is not null and v_is_reaped) then
      v_outcome := 'unchanged';
      exit;
    end if;
    if v_job.final_status is not null then
      raise exception 'run % is % and cannot be canceled', p_job_id, v_job.final_status using errcode = 'JF409',
        hint = 'Only queued, waiting or running runs can be canceled.';
    end if;
    if p_is_plan then
      v_outcome := 'planned';
      exit;
    end if;

    update jobforge.leases l set cancel_ids = array_append(array_remove(l.cancel_ids, p_job_id), p_job_id)
    where l.tenant_id = p_tenant_id and p_job_id = any (l.job_ids) and l.lease_until > v_now;
    if found then
      v_outcome := 'requested';
      exit;
    end if;
    -- expired: nobody holds it any more. The lock waits for whoever is at it, since a reaper passes over what is locked
    perform from jobforge.leases l where l.tenant_id = p_tenant_id and p_job_id = any (l.job_ids) for update;
    if found then
      perform jobforge.reap_tenant(p_tenant_id);
      v_is_reaped := true;
      continue;
    end if;

    delete from jobforge.ready r
    where r.tenant_id = p_tenant_id and r.job_type = case when v_job.lane_type is null then v_job.job_type else v_job.lane_type end
      and r.priority = v_job.priority and r.run_at = v_job.run_at and r.job_id = p_job_id
    returning r.epoch, r.attempt_no into v_place;
    if found and v_job.slot_key is not null then  -- it may have been brought back for a slot: then that is the next one's
      perform jobforge.unpark_jobs(array[p_tenant_id], array[v_job.slot_key::text], array[1]);
    end if;
    if v_place.epoch is null then
      begin
        perform jobforge.lock_dependents(p_tenant_id, p_job_id);
        delete from jobforge.waiting w where w.tenant_id = p_tenant_id and w.job_id = p_job_id
        returning w.epoch, w.attempt_no into v_place;
        if not found then
          raise no_data_found;
        end if;
      exception when no_data_found then
        null;  -- it moved on: the next try may wait for another row, and holds none of these meanwhile
      end;
    end if;
    if v_place.epoch is not null then
      update jobforge.jobs j
      set final_status = 'canceled', finished_at = v_now, epoch = v_place.epoch, attempt_no = v_place.attempt_no,
        error = jsonb_build_object('code', 'CANCELED', 'message', coalesce(v_reason, 'canceled before it ran'), 'retryable', false)
      where j.tenant_id = p_tenant_id and j.id = p_job_id;
      perform jobforge.after_final(array[p_tenant_id], array[p_job_id]);
      perform jobforge.cancel_orphans(p_tenant_id, 1000);
      if v_job.ordering_key is not null then
        perform jobforge.promote_next(array[p_tenant_id], array[v_job.ordering_key], array[p_job_id]);
      end if;
      v_outcome := 'canceled';
      exit;
    end if;
  end loop;
  if v_outcome is null then
    raise exception 'run % kept moving while it was to be canceled', p_job_id using errcode = '40001';
  end if;

  if v_outcome not in ('unchanged', 'planned') then
    insert into jobforge.run_progress as p (tenant_id, job_id, changes, cancel_requested_at, cancel_reason)
    values (p_tenant_id, p_job_id, 1, v_now, v_reason)
    on conflict (tenant_id, job_id) do update
      set changes = p.changes + 1, cancel_requested_at = coalesce(p.cancel_requested_at, excluded.cancel_requested_at),
        cancel_reason = coalesce(p.cancel_reason, excluded.cancel_reason);
    perform jobforge.wake('runs');
  end if;
  return query select v_outcome, v_job.job_type::text;
end $$;
comment on function jobforge.cancel_open_job(text, uuid, text, boolean) is
  'Cancel one run, for cancel_job and cancel_runs: canceled, requested, unchanged or planned.';

drop function if exists jobforge.cancel_job(text, uuid, text);
create or replace function jobforge.cancel_job(p_tenant_id text, p_job_id uuid, p_reason text default null, p_is_plan boolean default false)
returns setof jobforge.runs
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_outcome text;
  v_type text;
begin
  perform jobforge.require_tenant(p_tenant_id);
  perform jobforge.require_run(p_tenant_id, p_job_id);
  if p_reason is not null and current_setting('jobforge.tool', true) = 'sql' then  -- others have looked
    perform jobforge.refuse_keys('the reason', p_reason);
  end if;
  if p_is_plan is not true and current_setting('jobforge.token_id', true) <> '' then
    perform jobforge.use_token();
  end if;
  if jobforge.current_claims() ? 'limits' or exists (select from jobforge.rate_limits l where l.tenant_id = p_tenant_id) then
    -- before the counters, as an attempt does that makes a child
    perform from jobforge.leases l where l.tenant_id = p_tenant_id and p_job_id = any (l.job_ids) for update;
    perform jobforge.check_policy(p_tenant_id, 'cancel', array[j.job_type::text], p_is_plan => p_is_plan)
    from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = p_job_id;
  end if;
  select c.* into v_outcome, v_type from jobforge.cancel_open_job(p_tenant_id, p_job_id, p_reason, p_is_plan) c;
  perform jobforge.record_audit(p_tenant_id, 'cancel', v_outcome, p_job_id, v_type);
  return query select r.* from jobforge.runs r where r.tenant_id = p_tenant_id and r.job_id = p_job_id;
end $$;
comment on function jobforge.cancel_job(text, uuid, text, boolean) is
  'Cancel a run: at once while it is queued or waiting, by request to its worker while it runs.';

-- The checks and the moves of a retry; who calls wakes lanes and workers.
create or replace function jobforge.requeue_final_job(
  p_tenant_id text, p_job_id uuid, p_if_version bigint, p_run_at timestamptz, p_reset_attempts boolean, p_force boolean,
  p_counters text[], p_is_plan boolean)
returns jobforge.jobs
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_now timestamptz := jobforge.now();
  v_job jobforge.jobs;
  v_version bigint;
begin
  select * into v_job from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = p_job_id for update;
  if not found then
    perform jobforge.refuse_unknown_run(p_job_id);
  end if;
  select r.version into v_version from jobforge.runs r where r.tenant_id = p_tenant_id and r.job_id = p_job_id;
  if v_job.final_status is null then
    raise exception 'run % has not ended and cannot be retried', p_job_id using errcode = 'JF409',
      hint = 'Wait for it, or cancel it first.';
  end if;
  if p_if_version <> v_version then
    raise exception 'run % is at version %, not %', p_job_id, v_version, p_if_version using errcode = 'JF409',
      hint = 'Read its status again and decide with that.';
  end if;
  if v_job.final_status = 'succeeded' and p_force is not true then
    raise exception 'run % succeeded; a retry would run its effects again', p_job_id using errcode = 'JF409',
      hint = 'Pass force if that is wanted.';
  end if;

  if coalesce(v_job.lane_type, v_job.job_type) = v_job.job_type and exists (
    select from jobforge.registered_jobs d
    where d.tenant_id = p_tenant_id and d.job_type = v_job.job_type and d.removed_at is not null)
  then
    raise exception 'the definition of % was removed, and nothing could run it again', v_job.job_type using errcode = 'JF409',
      hint = 'Register the definition again, or enqueue a job of another type.';
  end if;

  if p_is_plan then
    return v_job;
  end if;
  if v_job.lane_type is not null then
    perform jobforge.forget_steps(p_tenant_id, p_job_id, v_job.final_status = 'succeeded');
  end if;
  update jobforge.jobs j
  set final_status = null, finished_at = null, started_at = null, worker_id = null, result = null, error = null,
    run_at = coalesce(p_run_at, v_now), attempt_no = case when p_reset_attempts then 0 else j.attempt_no end,
    -- without fresh attempts the run gets the one more it was asked for
    max_attempts = case when p_reset_attempts then j.max_attempts else greatest(j.max_attempts, least(j.attempt_no + 1, 1000)) end
  where j.tenant_id = p_tenant_id and j.id = p_job_id
  returning * into v_job;
  -- Back from step 3 (final) to 2 or 1 within one epoch: four changes keep the version growing.
  insert into jobforge.run_progress as p (tenant_id, job_id, changes) values (p_tenant_id, p_job_id, 4)
  on conflict (tenant_id, job_id) do update
    set changes = p.changes + 4, cancel_requested_at = null, cancel_reason = null, epoch = null;

  if p_counters is not null then
    perform jobforge.track_jobs(p_tenant_id, array[p_job_id], array[v_job.job_type::text], array[p_job_id], p_counters, null);
  end if;
  if v_job.ordering_key is not null then
    perform jobforge.join_ordering_keys(p_tenant_id, array[p_job_id]);
  else
    insert into jobforge.ready (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no, own_type)
    values (p_tenant_id, coalesce(v_job.lane_type, v_job.job_type), v_job.priority, v_job.run_at, p_job_id, v_job.epoch,
      v_job.attempt_no, case when v_job.lane_type is not null then v_job.job_type end);
  end if;
  return v_job;
end $$;
comment on function jobforge.requeue_final_job(text, uuid, bigint, timestamptz, boolean, boolean, text[], boolean) is
  'Queue one ended run again, for retry_job and retry_runs.';

drop function if exists jobforge.retry_job(text, uuid, bigint, timestamptz, boolean, boolean);
create or replace function jobforge.retry_job(
  p_tenant_id text, p_job_id uuid, p_if_version bigint default null, p_run_at timestamptz default null,
  p_reset_attempts boolean default false, p_force boolean default false, p_is_plan boolean default false)
returns setof jobforge.runs
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_job jobforge.jobs;
  v_counters text[];
begin
  perform jobforge.require_tenant(p_tenant_id);
  perform jobforge.require_run(p_tenant_id, p_job_id);
  if not jobforge.is_due_time(p_run_at) then
    raise exception 'a run is due from 1970 to 9999, in UTC' using errcode = 'JF400', hint = 'Nothing was retried: correct the value.';
  end if;
  if current_setting('jobforge.tool', true) = 'sql' then  -- others have asked; the run has its key already
    perform jobforge.require_startable(coalesce(j.lane_type, j.job_type), ''),
      jobforge.require_steps_startable(j.job_type, d.definition, '')
    from jobforge.jobs j left join jobforge.job_definitions d
      on d.tenant_id = j.tenant_id and d.job_type = j.job_type and d.job_version = j.job_version and j.lane_type is not null
    where j.tenant_id = p_tenant_id and j.id = p_job_id;
  end if;
  if p_is_plan is not true and current_setting('jobforge.token_id', true) <> '' then
    perform jobforge.use_token();
  end if;
  if jobforge.current_claims() ? 'limits' or exists (select from jobforge.rate_limits l where l.tenant_id = p_tenant_id) then
    select jobforge.check_policy(p_tenant_id, 'retry', array[j.job_type::text], p_priorities => array[j.priority::integer],
      p_costs => array[j.cost], p_is_plan => p_is_plan) into v_counters
    from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = p_job_id;
  end if;
  v_job := jobforge.requeue_final_job(p_tenant_id, p_job_id, p_if_version, p_run_at, p_reset_attempts, p_force, v_counters,
    p_is_plan);
  if p_is_plan then
    perform jobforge.record_audit(p_tenant_id, 'retry', 'planned', p_job_id, v_job.job_type);
    return query select r.* from jobforge.runs r where r.tenant_id = p_tenant_id and r.job_id = p_job_id;
    return;
  end if;
  perform jobforge.touch_lanes(array[p_tenant_id], array[coalesce(v_job.lane_type, v_job.job_type)]);
  perform jobforge.wake('ready'), jobforge.wake('runs');
  perform jobforge.record_audit(p_tenant_id, 'retry', 'queued', p_job_id, v_job.job_type,
    jsonb_build_object('resetAttempts', p_reset_attempts, 'force', p_force));
  return query select r.* from jobforge.runs r where r.tenant_id = p_tenant_id and r.job_id = p_job_id;
end $$;
comment on function jobforge.retry_job(text, uuid, bigint, timestamptz, boolean, boolean, boolean) is
  'Queue a run again that had ended, with one more attempt or with fresh ones.';

reset role;
