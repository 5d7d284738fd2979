-- Counters of limits: what is used of a rate, a queue or a budget, counted exactly.
--
-- What must be counted is counted under the lock of the counter's row, held until commit: callers under the same limit wait
-- for each other, and no two of them see the same room. Called by check_each_limit; keep_limit by set_limit as well.
-- Locks: limit_usage.

set local role jobforge_rpc;

create or replace function jobforge.refuse_over_limit(
  p_code text, p_limit text, p_scope text, p_value numeric, p_used numeric, p_hint text, p_retry_after_ms bigint default null)
returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
begin
  perform jobforge.note_refusal();
  raise exception 'the limit % of % is %, and this call would make it %', p_limit, p_scope, trim_scale(p_value), trim_scale(p_used)
    using errcode = 'JF429', hint = p_hint,
    detail = jsonb_strip_nulls(jsonb_build_object('code', p_code, 'limit', p_limit, 'scope', p_scope, 'value', p_value,
      'used', p_used, 'retryAfterMs', p_retry_after_ms))::text;
end $$;
comment on function jobforge.refuse_over_limit(text, text, text, numeric, numeric, text, bigint) is
  'The one refusal of a limit: which, its value, what it would become, and when to try again.';

-- Jobs of a call that no idempotency key has made before, and their cost; of one type, or of all.
drop function if exists jobforge.count_new_jobs(text, text[], text[], text[], text, timestamptz);
create or replace function jobforge.count_new_jobs(
  p_tenant_id text, p_job_types text[], p_project_ids text[], p_idempotency_keys text[], p_job_type text, p_now timestamptz,
  p_costs integer[] default null)
returns table (jobs bigint, units bigint)
language plpgsql stable
set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
begin
  return query
  select count(*), coalesce(sum(coalesce(c.unit_cost, u.cost, 1)), 0)::bigint
  from (
    select distinct on (u.job_type, coalesce(u.project_id, ''), u.key, case when u.key is null then u.ord end) u.*
    from unnest(p_job_types, p_project_ids, p_idempotency_keys, p_costs) with ordinality u(job_type, project_id, key, cost, ord)
    where u.job_type = p_job_type or p_job_type is null) u
  left join jobforge.idempotency_keys k on k.tenant_id = p_tenant_id and k.project_id = case when u.project_id is null then '' else u.project_id end
    and k.job_type = u.job_type and k.idempotency_key = u.key and k.expires_at > p_now
  left join jobforge.rate_limits c on c.tenant_id = p_tenant_id and c.kind = 'type' and c.name = u.job_type
  where k.job_id is null;
end $$;
comment on function jobforge.count_new_jobs(text, text[], text[], text[], text, timestamptz, integer[]) is
  'How many jobs a call would really make, and what they cost.';

-- Forget the jobs of a counter that have ended, and tell how long their attempts ran. Each job is looked up by its key, for
-- itself: a plan that was made while the tables were small would compare each with every job of the tenant, and 20,000 jobs
-- took longer than a call may. What stands in a sub-select of its own is never made a join.
create or replace function jobforge.sweep_counter(p_tenant_id text, p_counter text) returns bigint
language sql volatile
set search_path = jobforge, pg_temp
set enable_seqscan = off
as $$
  with ended as (
    delete from jobforge.limited_jobs t
    where t.tenant_id = p_tenant_id and t.counter = p_counter and coalesce((
      select j.final_status is not null from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = t.job_id), true)
    returning t.job_id, t.tracked_at
  )
  select coalesce(ceil(sum(1000 * extract(epoch from
    coalesce((select case when j.final_status = 'succeeded' then j.finished_at - j.started_at end
      from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = e.job_id), '0')
    + coalesce((select sum(a.finished_at - a.started_at) from jobforge.job_attempts a
      where a.tenant_id = p_tenant_id and a.job_id = e.job_id and a.finished_at > e.tracked_at), '0')))), 0)::bigint
  from ended e
$$;
comment on function jobforge.sweep_counter(text, text) is 'Forget ended jobs of a counter and return the milliseconds they ran.';

-- Open runs under a counter, counted no further than the limit needs.
create or replace function jobforge.count_open(p_tenant_id text, p_kind text, p_name text, p_most integer)
returns table (queued integer, running integer)
language plpgsql stable
set search_path = jobforge, pg_temp
as $$
declare
  v_counter text := p_kind || ':' || p_name;
begin
  if p_kind = 'tenant' then
    return query select
      (select count(*) from (select from jobforge.ready r where r.tenant_id = p_tenant_id limit p_most + 1) x)::integer
        + (select count(*) from (select from jobforge.waiting w where w.tenant_id = p_tenant_id limit p_most + 1) x)::integer,
      (select coalesce(sum(cardinality(l.job_ids)), 0) from jobforge.leases l where l.tenant_id = p_tenant_id)::integer;
  elsif p_kind = 'type' then
    return query select
      (select count(*) from (
        select from jobforge.ready r
        where r.tenant_id = p_tenant_id and r.job_type = any (jobforge.lanes_of(p_tenant_id, p_name))
          and coalesce(r.own_type, r.job_type) = p_name limit p_most + 1) x)::integer
        + (select count(*) from (
          select from jobforge.waiting w join jobforge.jobs j on j.tenant_id = w.tenant_id and j.id = w.job_id
          where w.tenant_id = p_tenant_id and j.job_type = p_name limit p_most + 1) x)::integer,
      (select count(*) from jobforge.leases l cross join lateral unnest(l.job_ids) h(job_id)
        join jobforge.jobs j on j.tenant_id = l.tenant_id and j.id = h.job_id
        where l.tenant_id = p_tenant_id and j.job_type = p_name)::integer;
  else  -- its ended jobs were just swept
    return query select t.total - h.held, h.held
    from (select count(*)::integer as total from jobforge.limited_jobs x
      where x.tenant_id = p_tenant_id and x.counter = v_counter) t
    cross join (select count(*)::integer as held from jobforge.leases l cross join lateral unnest(l.job_ids) u(job_id)
      join jobforge.limited_jobs x on x.tenant_id = l.tenant_id and x.job_id = u.job_id and x.counter = v_counter
      where l.tenant_id = p_tenant_id) h;
  end if;
end $$;
comment on function jobforge.count_open(text, text, text, integer) is 'How many runs are queued or waiting, and how many are running, under a counter.';

drop function if exists jobforge.take_permits(text, jobforge.rate_limits, integer, text);
create or replace function jobforge.refuse_over_rate(p_limit jobforge.rate_limits, p_scope text, p_burst float8, p_left float8)
returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_wait_ms bigint := ceil(-p_left / p_limit.rps * 1000);
begin
  perform jobforge.refuse_over_limit('RATE_LIMITED', 'rps', p_scope, p_limit.rps::numeric,
    (p_burst - p_left)::numeric(20, 3), format('Try again in %s s.', ceil(v_wait_ms / 1000.0)), v_wait_ms);
end $$;
comment on function jobforge.refuse_over_rate(jobforge.rate_limits, text, float8, float8) is 'The refusal of a token bucket that has too few permits left.';

-- What a token limits beyond its rate binds the children of its jobs as well, which find it by the job.
create or replace function jobforge.is_tracked(p_limit jobforge.rate_limits) returns boolean
language sql immutable
set search_path = jobforge, pg_temp
as $$
  select (p_limit).budget_run_seconds is not null
    or ((p_limit).kind = 'tool' and num_nonnulls((p_limit).max_queued, (p_limit).max_running) > 0)
    or ((p_limit).kind = 'token' and num_nonnulls((p_limit).max_running, (p_limit).max_queued, (p_limit).max_payload_bytes,
      (p_limit).max_priority, (p_limit).max_children, (p_limit).max_depth, (p_limit).budget_jobs, (p_limit).budget_units) > 0)
$$;
comment on function jobforge.is_tracked(jobforge.rate_limits) is 'Whether the jobs of a limit are kept in limited_jobs.';

-- What a limit allows, written to the row of its counter. Whoever was not counted before is counted at the next look.
create or replace function jobforge.keep_limit(p_tenant_id text, p_limit jobforge.rate_limits, p_limits jsonb default null)
returns void
language sql volatile
set search_path = jobforge, pg_temp
as $$
  insert into jobforge.limit_usage as u (tenant_id, counter, jobs, units, period_started_at, touched_at, rps, burst, max_queued,
    max_payload_bytes, max_priority, budget_jobs, budget_units, budget_run_seconds, period_seconds, unit_cost, is_tracked, is_counted,
    limits)
  select p_tenant_id, p_limit.kind || ':' || p_limit.name, 0, 0, '-infinity', jobforge.now(), p_limit.rps,
    coalesce(p_limit.burst, greatest(1, ceil(p_limit.rps))), p_limit.max_queued, p_limit.max_payload_bytes, p_limit.max_priority,
    p_limit.budget_jobs, p_limit.budget_units, p_limit.budget_run_seconds, p_limit.period_seconds, p_limit.unit_cost, t.is_tracked,
    t.is_tracked or num_nonnulls(p_limit.rps, p_limit.max_queued, p_limit.budget_jobs, p_limit.budget_units, p_limit.unit_cost) > 0,
    p_limits
  from (select jobforge.is_tracked(p_limit) as is_tracked) t
  on conflict (tenant_id, counter) do update set rps = excluded.rps, burst = excluded.burst, max_queued = excluded.max_queued,
    max_payload_bytes = excluded.max_payload_bytes, max_priority = excluded.max_priority, budget_jobs = excluded.budget_jobs,
    budget_units = excluded.budget_units, budget_run_seconds = excluded.budget_run_seconds, period_seconds = excluded.period_seconds,
    unit_cost = excluded.unit_cost, is_tracked = excluded.is_tracked, is_counted = excluded.is_counted, limits = excluded.limits,
    open_ceiling = null, counted_at = null
$$;
comment on function jobforge.keep_limit(text, jobforge.rate_limits, jsonb) is 'Write what a limit allows to the row of its counter, which begins here.';

-- Take permits and count jobs of a call against one limit, under the lock of its counter: one row, written once. What
-- check_policy has counted already, with this many units, is only judged, and begins the period of a budget that is over.
drop function if exists jobforge.use_limit(text, jobforge.rate_limits, text, text[], text[], text[], integer, boolean);
drop function if exists jobforge.use_limit(text, jobforge.rate_limits, text, text[], text[], text[], integer, boolean, integer[]);
drop function if exists jobforge.use_limit(text, jobforge.rate_limits, text, integer, text[], text[], text[], integer, boolean, integer[]);
drop function if exists jobforge.use_limit(text, jobforge.rate_limits, text, integer, text[], text[], text[], integer, boolean, integer[], boolean);
create or replace function jobforge.use_limit(
  p_tenant_id text, p_limit jobforge.rate_limits, p_scope text, p_permits integer, p_job_types text[], p_project_ids text[],
  p_idempotency_keys text[], p_count integer, p_is_plan boolean, p_costs integer[] default null,
  p_counted_units bigint default null)
returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_now timestamptz := jobforge.now();
  v_counter text := p_limit.kind || ':' || p_limit.name;
  v_type text := case when p_limit.kind = 'type' then p_limit.name end;
  v_has_keys boolean := array_length(array_remove(p_idempotency_keys, null), 1) > 0;
  v_burst float8;
  v_usage jobforge.limit_usage;
  v_units bigint := 0;
  v_new record;
  v_open record;
  v_added integer := case when p_is_plan then 0 else p_count end;
  v_added_units bigint := 0;
  v_ran bigint;
  v_wait_ms bigint;
  v_hint text;
begin
  if p_permits is not null then
    v_burst := coalesce(p_limit.burst, greatest(1, ceil(p_limit.rps)));
    if p_permits > v_burst then
      perform jobforge.refuse_over_limit('RATE_LIMITED', 'burst', p_scope, v_burst::numeric, p_permits,
        format('Send at most %s jobs in one call.', v_burst));
    end if;
  end if;
  if p_count = 0 or p_limit.budget_units is null then
    v_units := 0;
  elsif cardinality(p_job_types) = 1 then
    v_units := coalesce(p_costs[1], 1);
    v_added_units := case when p_is_plan then 0 else v_units end;
  else
    select n.units into v_units from jobforge.count_new_jobs(p_tenant_id, p_job_types, null, null, v_type, v_now, p_costs) n;
    v_added_units := case when p_is_plan then 0 else v_units end;
  end if;
  if p_counted_units is not null then
    update jobforge.limit_usage u
    set jobs = case when n.is_new then v_added else u.jobs end,
      units = case when n.is_new then v_added_units
        when p_limit.budget_units is null then u.units else u.units - p_counted_units + v_added_units end,
      run_ms = case when n.is_new then 0 else u.run_ms end,
      period_started_at = case when n.is_new then v_now else u.period_started_at end
    from (select x.period_started_at <= v_now - p_limit.period_seconds * interval '1 second' is true as is_new
      from jobforge.limit_usage x where x.tenant_id = p_tenant_id and x.counter = v_counter) n
    where u.tenant_id = p_tenant_id and u.counter = v_counter
    returning u.* into v_usage;
  else
    insert into jobforge.limit_usage as u
      (tenant_id, counter, jobs, units, period_started_at, touched_at, permits, refilled_at)
    values (p_tenant_id, v_counter, v_added, v_added_units, v_now, v_now, v_burst - p_permits,
      case when p_permits is not null then v_now end)
    on conflict (tenant_id, counter) do update
      set permits = case when p_permits is null then u.permits
          else coalesce(least(v_burst, u.permits + p_limit.rps * greatest(0, extract(epoch from v_now - u.refilled_at)::float8)),
            v_burst) - p_permits end,
        refilled_at = greatest(u.refilled_at, excluded.refilled_at),
        jobs = excluded.jobs + case when u.period_started_at > v_now - p_limit.period_seconds * interval '1 second'
          or p_limit.period_seconds is null then u.jobs else 0 end,
        units = excluded.units + case when u.period_started_at > v_now - p_limit.period_seconds * interval '1 second'
          or p_limit.period_seconds is null then u.units else 0 end,
        run_ms = case when u.period_started_at > v_now - p_limit.period_seconds * interval '1 second'
          or p_limit.period_seconds is null then u.run_ms else 0 end,
        period_started_at = case when u.period_started_at > v_now - p_limit.period_seconds * interval '1 second'
          or p_limit.period_seconds is null then u.period_started_at else v_now end,
        open_ceiling = u.open_ceiling + v_added,
        touched_at = v_now
    returning u.* into v_usage;
  end if;
  if p_permits is not null and v_usage.permits < -0.000001 then
    perform jobforge.refuse_over_rate(p_limit, p_scope, v_burst, v_usage.permits);
  end if;
  if p_count = 0 then
    return;
  end if;

  -- now nobody else counts here: only what the keys have not made before is new
  if v_has_keys then
    select * into v_new from jobforge.count_new_jobs(p_tenant_id, p_job_types, p_project_ids, p_idempotency_keys, v_type, v_now, p_costs);
    if v_new.jobs < p_count then
      v_usage.jobs := v_usage.jobs - v_added + case when p_is_plan then 0 else v_new.jobs end;
      v_usage.units := v_usage.units - v_added_units
        + case when p_is_plan or p_limit.budget_units is null then 0 else v_new.units end;
      v_usage.open_ceiling := v_usage.open_ceiling - v_added + case when p_is_plan then 0 else v_new.jobs end;
      update jobforge.limit_usage u set jobs = v_usage.jobs, units = v_usage.units, open_ceiling = v_usage.open_ceiling
      where u.tenant_id = p_tenant_id and u.counter = v_counter;
      if v_new.jobs = 0 then
        return;
      end if;
      p_count := v_new.jobs;
      v_units := v_new.units;
    end if;
  end if;
  if p_is_plan then
    v_usage.jobs := v_usage.jobs + p_count;
    v_usage.units := v_usage.units + v_units;
  end if;

  v_wait_ms := ceil(1000 * extract(epoch from
    v_usage.period_started_at + p_limit.period_seconds * interval '1 second' - v_now));
  v_hint := case when v_wait_ms is null then 'Ask whoever gave it for more.'
    else format('The budget is whole again in %s s.', ceil(v_wait_ms / 1000.0)) end;
  if v_usage.jobs > p_limit.budget_jobs then
    perform jobforge.refuse_over_limit('BUDGET_USED_UP', 'budget_jobs', p_scope, p_limit.budget_jobs, v_usage.jobs, v_hint, v_wait_ms);
  end if;
  if v_usage.units > p_limit.budget_units then
    perform jobforge.refuse_over_limit('BUDGET_USED_UP', 'budget_units', p_scope, p_limit.budget_units, v_usage.units, v_hint, v_wait_ms);
  end if;
  if p_limit.budget_run_seconds is not null then
    if coalesce(v_usage.swept_at, '-infinity') <= v_now - interval '1 second' then
      v_ran := jobforge.sweep_counter(p_tenant_id, v_counter);
      v_usage.run_ms := v_usage.run_ms + v_ran;
      update jobforge.limit_usage u set run_ms = v_usage.run_ms, swept_at = v_now
      where u.tenant_id = p_tenant_id and u.counter = v_counter;
    end if;
    if v_usage.run_ms >= p_limit.budget_run_seconds * 1000 then
      perform jobforge.refuse_over_limit('BUDGET_USED_UP', 'budget_run_seconds', p_scope, p_limit.budget_run_seconds,
        v_usage.run_ms / 1000.0, v_hint, v_wait_ms);
    end if;
  end if;
  if p_limit.max_queued is not null and (v_usage.open_ceiling is null or v_usage.open_ceiling > p_limit.max_queued
    or v_usage.counted_at <= v_now - interval '10 seconds' or p_is_plan)
  then
    if p_limit.kind in ('token', 'tool') then
      v_ran := jobforge.sweep_counter(p_tenant_id, v_counter);
    end if;
    select * into v_open from jobforge.count_open(p_tenant_id, p_limit.kind, p_limit.name, p_limit.max_queued);
    if v_open.queued + p_count > p_limit.max_queued then
      perform jobforge.refuse_over_limit('QUEUE_FULL', 'max_queued', p_scope, p_limit.max_queued, v_open.queued + p_count,
        case when p_count > p_limit.max_queued then format('Send at most %s jobs in one call.', p_limit.max_queued)
          else 'Try again in 1 s, when queued runs have been started or canceled.' end,
        case when p_count <= p_limit.max_queued then 1000 end);
    end if;
    update jobforge.limit_usage u set counted_at = v_now, run_ms = u.run_ms + coalesce(v_ran, 0),
      open_ceiling = v_open.queued + v_open.running + case when p_is_plan then 0 else p_count end
    where u.tenant_id = p_tenant_id and u.counter = v_counter;
  end if;
end $$;
comment on function jobforge.use_limit(text, jobforge.rate_limits, text, integer, text[], text[], text[], integer, boolean, integer[],
  bigint) is
  'Count jobs against the rate, the queue and the budgets of one limit, or refuse.';

reset role;
