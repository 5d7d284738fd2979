-- Debounce: one pending run for each key of a job, the newest, after a while without newer ones.
--
-- Called by enqueue_jobs, before it writes the new runs. Locks: debounces by key, after idempotency_keys; then as cancel_job
-- does for a run that has not started. An application that enqueues and keeps its transaction open holds the key meanwhile.

set local role jobforge_rpc;

-- Returns when each new run is due: the window after now, but no later than the longest wait after the first run of the
-- series. A run that has started, or that waits for its next attempt, is not replaced; with it the series ends.
create or replace function jobforge.debounce_jobs(
  p_tenant_id text, p_ids uuid[], p_job_types text[], p_claim_limits text[], p_outcomes text[], p_run_ats timestamptz[])
returns timestamptz[]
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_now timestamptz := jobforge.now();
  v_run_ats timestamptz[] := coalesce(p_run_ats, array_fill(null::timestamptz, array[cardinality(p_ids)]));
  v_new record;
  v_last jobforge.debounces;
  v_is_replaced boolean;
begin
  for v_new in
    select u.ord::integer, u.id, k.debounce_key, (d.said ->> 'windowMs')::integer as window_ms,
      (d.said ->> 'maxWaitMs')::integer as max_wait_ms
    from unnest(p_ids, p_job_types, p_claim_limits) with ordinality u(id, job_type, limits, ord)
    cross join lateral (select u.limits::jsonb -> 'debounce' as said) d
    cross join lateral (select 'debounce:' || u.job_type || ':' || coalesce(d.said ->> 'key', '') as debounce_key) k
    where d.said is not null and (p_outcomes is null or p_outcomes[u.ord] = 'created')
    order by k.debounce_key collate "C", u.ord
  loop
    insert into jobforge.debounces as b (tenant_id, debounce_key, job_id, first_at, due_at)
    values (p_tenant_id, v_new.debounce_key, v_new.id, v_now, v_now)
    on conflict (tenant_id, debounce_key) do update set due_at = b.due_at
    returning * into v_last;
    v_is_replaced := v_last.job_id <> v_new.id and jobforge.replace_debounced(p_tenant_id, v_last.job_id, v_new.id);
    if not v_is_replaced then
      v_last.first_at := v_now;
    end if;
    v_last.due_at := greatest(v_run_ats[v_new.ord], least(v_now + v_new.window_ms * interval '1 millisecond',
      v_last.first_at + coalesce(v_new.max_wait_ms, 10 * v_new.window_ms::bigint) * interval '1 millisecond'));
    v_run_ats[v_new.ord] := v_last.due_at;
    update jobforge.debounces b set job_id = v_new.id, first_at = v_last.first_at, due_at = v_last.due_at
    where b.tenant_id = p_tenant_id and b.debounce_key = v_new.debounce_key;
  end loop;
  return v_run_ats;
end $$;
comment on function jobforge.debounce_jobs(text, uuid[], text[], text[], text[], timestamptz[]) is
  'Let new runs take the place of pending ones of their debounce keys, and say when they are due.';

-- Of several runs of one key in one call the last stays. Returns the others.
create or replace function jobforge.debounce_within(
  p_tenant_id text, p_ids uuid[], p_job_types text[], p_claim_limits text[], p_outcomes text[])
returns uuid[]
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_old record;
  v_replaced uuid[];
begin
  for v_old in
    select x.id, x.last_id
    from (
      select u.ord, u.id, last_value(u.id) over (partition by u.job_type, coalesce(u.limits::jsonb #>> '{debounce,key}', '') order by u.ord
          rows between unbounded preceding and unbounded following) as last_id
      from unnest(p_ids, p_job_types, p_claim_limits) with ordinality u(id, job_type, limits, ord)
      where u.limits::jsonb ? 'debounce' and (p_outcomes is null or p_outcomes[u.ord] = 'created')) x
    where x.id <> x.last_id order by x.ord
  loop
    if jobforge.replace_debounced(p_tenant_id, v_old.id, v_old.last_id) then
      v_replaced := v_replaced || v_old.id;
    end if;
  end loop;
  return v_replaced;
end $$;
comment on function jobforge.debounce_within(text, uuid[], text[], text[], text[]) is
  'Cancel new runs of one call that a later one of the same call takes the place of.';

create or replace function jobforge.replace_debounced(p_tenant_id text, p_job_id uuid, p_new_id uuid) returns boolean
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_job jobforge.jobs;
  v_place record;
begin
  select * into v_job from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = p_job_id;
  if not found or v_job.final_status is not null or exists (
    select from jobforge.leases l where l.tenant_id = p_tenant_id and p_job_id = any (l.job_ids))
  then
    return false;
  end if;
  delete from jobforge.ready r
  where r.tenant_id = p_tenant_id and r.job_type = case when v_job.lane_type is null then v_job.job_type else v_job.lane_type end
    and r.priority = v_job.priority and r.run_at = v_job.run_at and r.job_id = p_job_id and r.epoch = 0
  returning r.epoch, r.attempt_no into v_place;
  if v_place.epoch is null then
    delete from jobforge.waiting w
    where w.tenant_id = p_tenant_id and w.job_id = p_job_id and w.waiting_for in ('limit', 'turn') and w.epoch = 0
    returning w.epoch, w.attempt_no into v_place;
  elsif v_job.slot_key is not null then
    perform jobforge.unpark_jobs(array[p_tenant_id], array[v_job.slot_key::text], array[1]);
  end if;
  if v_place.epoch is null then
    return false;
  end if;
  update jobforge.jobs j
  set final_status = 'canceled', finished_at = jobforge.now(), epoch = v_place.epoch, attempt_no = v_place.attempt_no,
    error = jsonb_build_object('code', 'DEBOUNCED', 'retryable', false,
      'message', 'run ' || p_new_id || ' of the same debounce key was enqueued after it and takes its place', 'replacedBy', p_new_id)
  where j.tenant_id = p_tenant_id and j.id = p_job_id;
  perform jobforge.after_final(array[p_tenant_id], array[p_job_id]);
  if v_job.ordering_key is not null then
    perform jobforge.promote_next(array[p_tenant_id], array[v_job.ordering_key::text], array[p_job_id]);
  end if;
  perform jobforge.wake('runs');
  return true;
end $$;
comment on function jobforge.replace_debounced(text, uuid, uuid) is 'Cancel a run that has not started because a newer one of its debounce key came.';

reset role;
set local role jobforge_sys;

create or replace function jobforge.forget_debounces() returns void
language sql volatile
set search_path = jobforge, pg_temp
as $$
  delete from jobforge.debounces d
  where (d.tenant_id, d.debounce_key) in (
    select x.tenant_id, x.debounce_key from jobforge.debounces x
    where x.due_at < jobforge.now() - interval '1 day' limit 1000 for update skip locked)
$$;
comment on function jobforge.forget_debounces() is 'Forget keys whose last run was due more than a day ago.';

reset role;
