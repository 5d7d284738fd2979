-- Limits and budgets: how much a token, a tenant, a job type or a tool may use.
--
-- check_policy is called once by whatever makes work, before it writes anything, and only where there is a limit to check.
-- Every limit that applies is checked by itself, so the strictest wins. What must be counted is counted under the lock of
-- the counter's row, held until commit: callers under the same limit wait for each other, and no two of them see the same
-- room. What a claim obeys is in 17_running_limits.sql, what operators set in 18_limit_settings.sql.
-- Locks: limit_usage, by kind and name with that of a token last, before all that enqueue and retry lock.

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
  left join jobforge.idempotency_keys k on k.tenant_id = p_tenant_id and k.project_id = coalesce(u.project_id, '')
    and k.job_type = u.job_type and k.idempotency_key = u.key and k.expires_at > p_now
  left join jobforge.rate_limits c on c.tenant_id = p_tenant_id and c.kind = 'type' and c.name = u.job_type
  where k.job_id is null;
end $$;
comment on function jobforge.count_new_jobs(text, text[], text[], text[], text, timestamptz, integer[]) is
  'How many jobs a call would really make, and what they cost.';

-- Forget the jobs of a counter that have ended, and tell how long their attempts ran.
create or replace function jobforge.sweep_counter(p_tenant_id text, p_counter text) returns bigint
language sql volatile
set search_path = jobforge, pg_temp
as $$
  with ended as (
    delete from jobforge.limited_jobs t
    where t.tenant_id = p_tenant_id and t.counter = p_counter and not exists (
      select from jobforge.jobs j where j.tenant_id = t.tenant_id and j.id = t.job_id and j.final_status is null)
    returning t.job_id, t.tracked_at
  )
  select coalesce(ceil(sum(1000 * extract(epoch from
    coalesce(case when j.final_status = 'succeeded' then j.finished_at - j.started_at end, '0')
    + coalesce((select sum(a.finished_at - a.started_at) from jobforge.job_attempts a
      where a.tenant_id = p_tenant_id and a.job_id = e.job_id and a.finished_at > e.tracked_at), '0')))), 0)::bigint
  from ended e
  join jobforge.jobs j on j.tenant_id = p_tenant_id and j.id = e.job_id
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

-- What applies to a call: the operator's limits and those of the caller's token; for a child those of the token that its
-- parent stands under.
create or replace function jobforge.limits_of_call(p_tenant_id text, p_job_types text[], p_parent_id uuid)
returns jobforge.rate_limits[]
language plpgsql stable
set search_path = jobforge, pg_temp
as $$
declare
  v_claims jsonb;
  v_limits jobforge.rate_limits[];
  v_own jsonb;
begin
  v_limits := array(
    select l from jobforge.rate_limits l
    where l.tenant_id = p_tenant_id and (l.kind = 'tenant' or (l.kind = 'type' and l.name = any (p_job_types))
      or (l.kind = 'tool' and l.name = pg_catalog.current_setting('jobforge.tool', true)))
    order by l.kind, l.name);
  if p_parent_id is null then
    v_claims := coalesce(nullif(pg_catalog.current_setting('jobforge.claims', true), ''), '{}')::jsonb;
    if v_claims ? 'limits' and v_claims ->> 'jti' is not null then
      v_own := v_claims -> 'limits' || jsonb_build_object('kind', 'token', 'name', v_claims ->> 'jti');
    end if;
  else
    select t.token_limits || jsonb_build_object('kind', 'token', 'name', substr(t.counter, 7)) into v_own
    from jobforge.limited_jobs t
    where t.tenant_id = p_tenant_id and t.job_id = p_parent_id and t.token_limits is not null
    limit 1;
  end if;
  if v_own is not null then
    v_limits := v_limits || pg_catalog.jsonb_populate_record(null::jobforge.rate_limits, v_own);
  end if;
  return v_limits;
end $$;
comment on function jobforge.limits_of_call(text, text[], uuid) is 'The limits that apply to a call, in the order their counters are locked.';

-- Take permits and count jobs of a call against one limit, under the lock of its counter: one row, written once.
drop function if exists jobforge.use_limit(text, jobforge.rate_limits, text, text[], text[], text[], integer, boolean);
drop function if exists jobforge.use_limit(text, jobforge.rate_limits, text, text[], text[], text[], integer, boolean, integer[]);
drop function if exists jobforge.use_limit(text, jobforge.rate_limits, text, integer, text[], text[], text[], integer, boolean, integer[]);
create or replace function jobforge.use_limit(
  p_tenant_id text, p_limit jobforge.rate_limits, p_scope text, p_permits integer, p_job_types text[], p_project_ids text[],
  p_idempotency_keys text[], p_count integer, p_is_plan boolean, p_costs integer[] default null,
  p_is_counted boolean default false)
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
  if p_is_counted then
    select u.* into v_usage from jobforge.limit_usage u where u.tenant_id = p_tenant_id and u.counter = v_counter;
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
  boolean) is
  'Count jobs against the rate, the queue and the budgets of one limit, or refuse.';

-- The same for one new job, in one statement. Every expression of a function is made ready anew in every transaction, so what
-- the limit is about to refuse, or has to count anew, is only found here; use_limit then says what and why.
create or replace function jobforge.count_one(
  p_tenant_id text, p_limit jobforge.rate_limits, p_permits integer, p_cost integer)
returns boolean
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_now timestamptz := jobforge.now();
  v_burst float8 := coalesce(p_limit.burst, greatest(1, ceil(p_limit.rps)));
  v_since timestamptz := coalesce(v_now - p_limit.period_seconds * interval '1 second', '-infinity');
  v_is_in_doubt boolean;
begin
  insert into jobforge.limit_usage as u
    (tenant_id, counter, jobs, units, period_started_at, touched_at, permits, refilled_at)
  values (p_tenant_id, p_limit.kind || ':' || p_limit.name, 1, case when p_limit.budget_units is null then 0 else p_cost end, v_now,
    v_now, v_burst - p_permits, case when p_permits is not null then v_now end)
  on conflict (tenant_id, counter) do update
    set permits = case when p_permits is null then u.permits
        else least(v_burst, u.permits + p_limit.rps * greatest(0, extract(epoch from v_now - u.refilled_at)::float8)) - p_permits end,
      refilled_at = greatest(u.refilled_at, excluded.refilled_at),
      jobs = excluded.jobs + case when u.period_started_at > v_since then u.jobs else 0 end,
      units = excluded.units + case when u.period_started_at > v_since then u.units else 0 end,
      run_ms = case when u.period_started_at > v_since then u.run_ms else 0 end,
      period_started_at = case when u.period_started_at > v_since then u.period_started_at else v_now end,
      open_ceiling = u.open_ceiling + 1,
      touched_at = v_now
  returning coalesce(p_permits is not null and u.permits < -0.000001, false)
    or coalesce(u.jobs > p_limit.budget_jobs, false) or coalesce(u.units > p_limit.budget_units, false)
    or p_limit.budget_run_seconds is not null
    or (p_limit.max_queued is not null
      and coalesce(u.open_ceiling > p_limit.max_queued or u.counted_at <= v_now - interval '10 seconds', true))
  into v_is_in_doubt;
  return v_is_in_doubt;
end $$;
comment on function jobforge.count_one(text, jobforge.rate_limits, integer, integer) is
  'Count one new job against a limit; true when the limit may have no room for it.';

create or replace function jobforge.check_shape(
  p_tenant_id text, p_limit jobforge.rate_limits, p_job_types text[], p_payloads text[], p_priorities integer[])
returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_scope text;
  v_bytes integer;
  v_priority integer;
begin
  if cardinality(p_job_types) = 1 then
    if coalesce(octet_length(p_payloads[1]) <= p_limit.max_payload_bytes, true)
      and coalesce(coalesce(p_priorities[1], 2) >= p_limit.max_priority, true)
    then
      return;
    end if;
  end if;
  select max(octet_length(u.payload)), min(coalesce(u.priority, 2)) into v_bytes, v_priority
  from unnest(p_job_types, p_payloads, p_priorities) u(job_type, payload, priority)
  where p_limit.kind <> 'type' or u.job_type = p_limit.name;
  v_scope := p_limit.kind || ' ' || case when p_limit.kind = 'tenant' then p_tenant_id else p_limit.name end;
  if v_bytes > p_limit.max_payload_bytes then
    perform jobforge.refuse_over_limit('PAYLOAD_TOO_LARGE', 'max_payload_bytes', v_scope, p_limit.max_payload_bytes,
      v_bytes, 'Store large data elsewhere and pass a reference.');
  end if;
  if v_priority < p_limit.max_priority then
    perform jobforge.refuse_over_limit('PRIORITY_TOO_HIGH', 'max_priority', v_scope, p_limit.max_priority,
      v_priority, format('Ask for priority %s or a higher number, which is less urgent.', p_limit.max_priority));
  end if;
end $$;
comment on function jobforge.check_shape(text, jobforge.rate_limits, text[], text[], integer[]) is
  'Refuse jobs that are larger or more urgent than a limit allows.';

-- Returns the counters that the new jobs are to be tracked under, for track_jobs; null if none. p_action cancel takes
-- from the rates alone. A child takes from none: its handler is bound by fan-out, depth, queue and budget.
drop function if exists jobforge.check_policy(text, text, text[], text[], integer[], text[], text[], uuid, boolean);
create or replace function jobforge.check_policy(
  p_tenant_id text, p_action text, p_job_types text[], p_payloads text[] default null, p_priorities integer[] default null,
  p_project_ids text[] default null, p_idempotency_keys text[] default null, p_parent_id uuid default null,
  p_is_plan boolean default false, p_costs integer[] default null)
returns text[]
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_limits jobforge.rate_limits[] := jobforge.limits_of_call(p_tenant_id, p_job_types, p_parent_id);
  v_limit jobforge.rate_limits;
  v_scope text;
  v_count integer;
  v_permits integer;
  v_is_single boolean := cardinality(p_job_types) = 1 and p_action <> 'cancel' and p_idempotency_keys[1] is null
    and p_parent_id is null and not p_is_plan;
  v_is_rated boolean := p_parent_id is null and coalesce(nullif(pg_catalog.current_setting('jobforge.claims', true), ''), '{}')::jsonb -> 'rates' is distinct from 'false'::jsonb;
  v_is_tracked boolean;
  v_tracked text[];
begin
  foreach v_limit in array v_limits loop
    if p_action <> 'cancel' and coalesce(v_limit.max_payload_bytes, v_limit.max_priority) is not null then
      perform jobforge.check_shape(p_tenant_id, v_limit, p_job_types, p_payloads, p_priorities);
    end if;
    if v_limit.unit_cost is not null and cardinality(p_job_types) = 1 then
      p_costs := array[v_limit.unit_cost];  -- what the operator set goes before what the definition declares
    end if;
  end loop;

  foreach v_limit in array v_limits loop
    v_scope := v_limit.kind || ' ' || case when v_limit.kind = 'tenant' then p_tenant_id else v_limit.name end;
    v_count := case when v_limit.kind = 'type' and cardinality(p_job_types) > 1
      then cardinality(array_positions(p_job_types, v_limit.name::text)) else cardinality(p_job_types) end;
    v_permits := case when v_limit.rps is not null and v_is_rated then v_count end;
    if p_action = 'cancel' then
      if v_permits is not null then
        perform jobforge.use_limit(p_tenant_id, v_limit, v_scope, v_permits, p_job_types, null, null, 0, false);
      end if;
      continue;
    end if;
    v_is_tracked := v_limit.budget_run_seconds is not null
      or (v_limit.kind = 'tool' and coalesce(v_limit.max_queued, v_limit.max_running) is not null)
      or (v_limit.kind = 'token' and num_nonnulls(v_limit.max_running, v_limit.max_queued, v_limit.max_payload_bytes,
        v_limit.max_priority, v_limit.max_children, v_limit.max_depth, v_limit.budget_jobs, v_limit.budget_units) > 0);
    if v_is_tracked then
      v_tracked := v_tracked || (v_limit.kind || ':' || v_limit.name);
      if v_limit.kind = 'token' and v_limit.max_running is not null and not exists (
        select from jobforge.running_limits r
        where r.tenant_id = p_tenant_id and r.counter = 'token:' || v_limit.name and r.max_running >= v_limit.max_running)
      then
        insert into jobforge.running_limits as r (tenant_id, counter, max_running)
        values (p_tenant_id, 'token:' || v_limit.name, v_limit.max_running)
        on conflict (tenant_id, counter) do update set max_running = greatest(r.max_running, excluded.max_running);
      end if;
    end if;
    if v_is_tracked or num_nonnulls(v_permits, v_limit.max_queued, v_limit.budget_jobs, v_limit.budget_units) > 0 then
      if not v_is_single then
        perform jobforge.use_limit(p_tenant_id, v_limit, v_scope, v_permits, p_job_types, p_project_ids, p_idempotency_keys, v_count,
          p_is_plan, p_costs);
      elsif jobforge.count_one(p_tenant_id, v_limit, v_permits, coalesce(p_costs[1], 1)) then
        perform jobforge.use_limit(p_tenant_id, v_limit, v_scope, v_permits, p_job_types, null, null, 1, false, p_costs, true);
      end if;
    end if;
    if p_parent_id is not null then
      perform jobforge.check_family(p_tenant_id, v_limit, v_scope, p_parent_id, p_job_types, p_project_ids, p_idempotency_keys);
    end if;
  end loop;
  return v_tracked;
end $$;
comment on function jobforge.check_policy(text, text, text[], text[], integer[], text[], text[], uuid, boolean, integer[]) is
  'Check a call against every limit that applies to it, before it writes anything.';

create or replace function jobforge.check_family(
  p_tenant_id text, p_limit jobforge.rate_limits, p_scope text, p_parent_id uuid, p_job_types text[], p_project_ids text[],
  p_idempotency_keys text[])
returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_now timestamptz := jobforge.now();
  v_type text := case when p_limit.kind = 'type' then p_limit.name end;
  v_counter text := 'run:' || p_parent_id || ':' || p_limit.kind || ':' || p_limit.name;
  v_depth integer;
  v_new bigint;
  v_used bigint;
begin
  if p_limit.max_depth is not null then
    with recursive line (id, depth) as (
      select p_parent_id, 1
      union all
      select j.parent_id, line.depth + 1
      from line join jobforge.jobs j on j.tenant_id = p_tenant_id and j.id = line.id
      where j.parent_id is not null and line.depth <= p_limit.max_depth
    )
    select max(line.depth) into v_depth from line;
    if v_depth > p_limit.max_depth then
      perform jobforge.refuse_over_limit('TOO_DEEP', 'max_depth', p_scope, p_limit.max_depth, v_depth,
        'Do the work in this run instead of in a child.');
    end if;
  end if;
  if p_limit.max_children is not null then
    insert into jobforge.limit_usage as u (tenant_id, counter, jobs, units, period_started_at, touched_at)
    values (p_tenant_id, v_counter, 0, 0, v_now, v_now)
    on conflict (tenant_id, counter) do update set touched_at = v_now;
    select n.jobs into v_new
    from jobforge.count_new_jobs(p_tenant_id, p_job_types, p_project_ids, p_idempotency_keys, v_type, v_now) n;
    update jobforge.limit_usage u set jobs = u.jobs + v_new
    where u.tenant_id = p_tenant_id and u.counter = v_counter
    returning u.jobs into v_used;
    if v_new > 0 and v_used > p_limit.max_children then
      perform jobforge.refuse_over_limit('TOO_MANY_CHILDREN', 'max_children', p_scope, p_limit.max_children, v_used,
        'Give each child more of the work.');
    end if;
  end if;
end $$;
comment on function jobforge.check_family(text, jobforge.rate_limits, text, uuid, text[], text[], text[]) is
  'Check how many children a run has, and how deep it stands below its first ancestor.';

-- Not read from `jobs`: a plan made while that was empty would scan it whole ever after.
create or replace function jobforge.track_jobs(
  p_tenant_id text, p_job_ids uuid[], p_job_types text[], p_new_ids uuid[], p_counters text[], p_parent_id uuid)
returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_now timestamptz := jobforge.now();
  v_token_limits jsonb;
begin
  if p_parent_id is null then
    v_token_limits := coalesce(nullif(pg_catalog.current_setting('jobforge.claims', true), ''), '{}')::jsonb -> 'limits';
  else
    select t.token_limits into v_token_limits from jobforge.limited_jobs t
    where t.tenant_id = p_tenant_id and t.job_id = p_parent_id and t.token_limits is not null;
  end if;
  insert into jobforge.limited_jobs as t (tenant_id, job_id, counter, tracked_at, token_limits)
  select p_tenant_id, j.id, c.counter, v_now, case when c.counter like 'token:%' then v_token_limits end
  from unnest(p_job_ids, p_job_types) j(id, job_type) cross join unnest(p_counters) c(counter)
  where j.id = any (p_new_ids) and (c.counter not like 'type:%' or c.counter = 'type:' || j.job_type)
  order by j.id, c.counter
  on conflict (tenant_id, job_id, counter) do update set token_limits = excluded.token_limits;
end $$;
comment on function jobforge.track_jobs(text, uuid[], text[], uuid[], text[], uuid) is 'Remember under which counters new jobs stand.';

reset role;
