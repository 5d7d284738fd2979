-- Limits and budgets: how much a token, a tenant, a job type or a tool may use.
--
-- check_policy is called once by whatever makes work, before it writes anything, and only where there is a limit to check.
-- Every limit that applies is checked by itself, so the strictest wins. What must be counted is counted under the lock of
-- the counter's row, held until commit: callers under the same limit wait for each other, and no two of them see the same
-- room. A claim obeys max_running; it never waits, and passes over a tenant at which another claim is.
-- Locks: rate_buckets, then limit_usage, each by kind and name, before all that enqueue and retry lock.

set local role jobforge_rpc;

create or replace function jobforge.refuse_over_limit(
  p_code text, p_limit text, p_scope text, p_value numeric, p_used numeric, p_hint text, p_retry_after_ms bigint default null)
returns void
language plpgsql stable
set search_path = jobforge, pg_temp
as $$
begin
  raise exception 'the limit % of % is %, and this call would make it %', p_limit, p_scope, trim_scale(p_value), trim_scale(p_used)
    using errcode = 'JF429', hint = p_hint,
    detail = jsonb_strip_nulls(jsonb_build_object('code', p_code, 'limit', p_limit, 'scope', p_scope, 'value', p_value,
      'used', p_used, 'retryAfterMs', p_retry_after_ms))::text;
end $$;
comment on function jobforge.refuse_over_limit(text, text, text, numeric, numeric, text, bigint) is
  'The one refusal of a limit: which, its value, what it would become, and when to try again.';

-- Jobs of a call that no idempotency key has made before, and their cost; of one type, or of all.
create or replace function jobforge.count_new_jobs(
  p_tenant_id text, p_job_types text[], p_project_ids text[], p_idempotency_keys text[], p_job_type text, p_now timestamptz)
returns table (jobs bigint, units bigint)
language plpgsql stable
set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
begin
  return query
  select count(*), coalesce(sum(coalesce(c.unit_cost, 1)), 0)::bigint
  from (
    select distinct on (u.job_type, coalesce(u.project_id, ''), u.key, case when u.key is null then u.ord end) u.*
    from unnest(p_job_types, p_project_ids, p_idempotency_keys) with ordinality u(job_type, project_id, key, ord)
    where u.job_type = p_job_type or p_job_type is null) u
  left join jobforge.idempotency_keys k on k.tenant_id = p_tenant_id and k.project_id = coalesce(u.project_id, '')
    and k.job_type = u.job_type and k.idempotency_key = u.key and k.expires_at > p_now
  left join jobforge.rate_limits c on c.tenant_id = p_tenant_id and c.kind = 'type' and c.name = u.job_type
  where k.job_id is null;
end $$;
comment on function jobforge.count_new_jobs(text, text[], text[], text[], text, timestamptz) is
  'How many jobs a call would really make, and what they cost.';

-- Runs held by leases under each limit that claims obey.
create or replace function jobforge.running_counts(p_tenant_id text)
returns table (counter text, max_running integer, running bigint)
language sql stable
set search_path = jobforge, pg_temp
as $$
  with held as materialized (
    select h.job_id, j.job_type
    from jobforge.leases l
    cross join lateral unnest(l.job_ids) h(job_id)
    join jobforge.jobs j on j.tenant_id = l.tenant_id and j.id = h.job_id
    where l.tenant_id = p_tenant_id
  )
  select r.counter, r.max_running,
    case
      when r.counter = 'tenant:' then (select count(*) from held)
      when r.counter like 'type:%' then (select count(*) from held h where h.job_type = substr(r.counter, 6))
      else (select count(*) from held h
        join jobforge.limited_jobs t on t.tenant_id = p_tenant_id and t.job_id = h.job_id and t.counter = r.counter)
    end
  from jobforge.running_limits r
  where r.tenant_id = p_tenant_id
$$;
comment on function jobforge.running_counts(text) is 'How many runs are running under each limit of running at once.';

-- A job of a narrowed token has a limit of its own, which counts what all that were narrowed from the same token run.
create or replace function jobforge.counters_of(p_tenant_id text, p_job_type text, p_job_id uuid)
returns table (counter text, own_max_running integer)
language sql stable
set search_path = jobforge, pg_temp
as $$
  select c.counter, null::integer from unnest(array['tenant:', 'type:' || p_job_type]) c(counter)
  union all
  select t.counter::text, (t.token_limits ->> 'max_running')::integer
  from jobforge.limited_jobs t where t.tenant_id = p_tenant_id and t.job_id = p_job_id
$$;
comment on function jobforge.counters_of(text, text, uuid) is 'The counters a job stands under.';

create or replace function jobforge.full_limits(p_tenant_id text, p_job_type text, p_job_id uuid)
returns table (scope text, max_running integer)
language sql stable
set search_path = jobforge, pg_temp
as $$
  select case when c.counter = 'tenant:' then 'tenant ' || p_tenant_id else replace(c.counter, ':', ' ') end,
    least(r.max_running, c.own_max_running)
  from jobforge.running_counts(p_tenant_id) r
  join jobforge.counters_of(p_tenant_id, p_job_type, p_job_id) c on c.counter = r.counter
  where r.running >= least(r.max_running, c.own_max_running)
  order by 2
$$;
comment on function jobforge.full_limits(text, text, uuid) is 'The limits of running at once that have no room for this job now.';

-- Forget the jobs of a counter that have ended, and tell how long their attempts ran.
create or replace function jobforge.sweep_counter(p_tenant_id text, p_counter text) returns bigint
language sql volatile
set search_path = jobforge, pg_temp
as $$
  with ended as (
    delete from jobforge.limited_jobs t using jobforge.jobs j
    where t.tenant_id = p_tenant_id and t.counter = p_counter and j.tenant_id = t.tenant_id and j.id = t.job_id
      and j.final_status is not null
    returning t.job_id, t.tracked_at, j.final_status, j.finished_at - j.started_at as ran
  )
  select coalesce(ceil(sum(1000 * extract(epoch from coalesce(case when e.final_status = 'succeeded' then e.ran end, '0')
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
        select from jobforge.ready r where r.tenant_id = p_tenant_id and r.job_type = p_name limit p_most + 1) x)::integer
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

create or replace function jobforge.take_permits(p_tenant_id text, p_limit jobforge.rate_limits, p_count integer, p_scope text)
returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_now timestamptz := jobforge.now();
  v_burst float8 := coalesce(p_limit.burst, greatest(1, ceil(p_limit.rps)));
  v_left float8;
  v_wait_ms bigint;
begin
  if p_count > v_burst then
    perform jobforge.refuse_over_limit('RATE_LIMITED', 'burst', p_scope, v_burst::numeric, p_count,
      format('Send at most %s jobs in one call.', v_burst));
  end if;
  insert into jobforge.rate_buckets as b (tenant_id, counter, permits, refilled_at)
  values (p_tenant_id, p_limit.kind || ':' || p_limit.name, v_burst - p_count, v_now)
  on conflict (tenant_id, counter) do update
    set permits = least(v_burst, b.permits + p_limit.rps
        * greatest(0, extract(epoch from excluded.refilled_at - b.refilled_at)::float8)) - p_count,
      refilled_at = greatest(b.refilled_at, excluded.refilled_at)
  returning b.permits into v_left;
  if v_left < -0.000001 then
    v_wait_ms := ceil(-v_left / p_limit.rps * 1000);
    perform jobforge.refuse_over_limit('RATE_LIMITED', 'rps', p_scope, p_limit.rps::numeric,
      (v_burst - v_left)::numeric(20, 3), format('Try again in %s s.', ceil(v_wait_ms / 1000.0)), v_wait_ms);
  end if;
end $$;
comment on function jobforge.take_permits(text, jobforge.rate_limits, integer, text) is 'Take permits from a token bucket, or refuse.';

-- What applies to a call: the operator's limits and those of the caller's token; for a child those of the token that its
-- parent stands under.
create or replace function jobforge.limits_of_call(p_tenant_id text, p_job_types text[], p_parent_id uuid)
returns jobforge.rate_limits[]
language plpgsql stable
set search_path = jobforge, pg_temp
as $$
declare
  v_claims jsonb := case when p_parent_id is null then jobforge.current_claims() end;
  v_tool text := pg_catalog.current_setting('jobforge.tool', true);
begin
  return (
  select array_agg(x.l order by (x.l).kind, (x.l).name)
  from (
    select l from jobforge.rate_limits l
    where l.tenant_id = p_tenant_id and (l.kind = 'tenant' or (l.kind = 'type' and l.name = any (p_job_types))
      or (l.kind = 'tool' and l.name = v_tool))
    union all
    select pg_catalog.jsonb_populate_record(null::jobforge.rate_limits, v_claims -> 'limits'
      || jsonb_build_object('kind', 'token', 'name', v_claims ->> 'jti'))
    where v_claims ? 'limits' and v_claims ->> 'jti' is not null
    union all
    select pg_catalog.jsonb_populate_record(null::jobforge.rate_limits, t.token_limits
      || jsonb_build_object('kind', 'token', 'name', substr(t.counter, 7)))
    from jobforge.limited_jobs t
    where t.tenant_id = p_tenant_id and t.job_id = p_parent_id and t.token_limits is not null
  ) x);
end $$;
comment on function jobforge.limits_of_call(text, text[], uuid) is 'The limits that apply to a call, in the order their counters are locked.';

-- Count jobs of a call against one limit, under the lock of its counter.
create or replace function jobforge.use_limit(
  p_tenant_id text, p_limit jobforge.rate_limits, p_scope text, p_job_types text[], p_project_ids text[],
  p_idempotency_keys text[], p_count integer, p_is_plan boolean)
returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_now timestamptz := jobforge.now();
  v_counter text := p_limit.kind || ':' || p_limit.name;
  v_type text := case when p_limit.kind = 'type' then p_limit.name end;
  v_has_keys boolean := array_length(array_remove(p_idempotency_keys, null), 1) > 0;
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
  if p_limit.budget_units is not null and cardinality(p_job_types) = 1 then
    v_units := coalesce((select c.unit_cost from jobforge.rate_limits c
      where c.tenant_id = p_tenant_id and c.kind = 'type' and c.name = p_job_types[1]), 1);
    v_added_units := case when p_is_plan then 0 else v_units end;
  elsif p_limit.budget_units is not null then
    select n.units into v_units from jobforge.count_new_jobs(p_tenant_id, p_job_types, null, null, v_type, v_now) n;
    v_added_units := case when p_is_plan then 0 else v_units end;
  end if;
  insert into jobforge.limit_usage as u (tenant_id, counter, jobs, units, period_started_at, touched_at)
  values (p_tenant_id, v_counter, v_added, v_added_units, v_now, v_now)
  on conflict (tenant_id, counter) do update
    set jobs = excluded.jobs + case when u.period_started_at > v_now - p_limit.period_seconds * interval '1 second'
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

  -- now nobody else counts here: only what the keys have not made before is new
  if v_has_keys then
    select * into v_new from jobforge.count_new_jobs(p_tenant_id, p_job_types, p_project_ids, p_idempotency_keys, v_type, v_now);
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
comment on function jobforge.use_limit(text, jobforge.rate_limits, text, text[], text[], text[], integer, boolean) is
  'Count jobs against the queue and the budgets of one limit, or refuse.';

-- Returns the counters that the new jobs are to be tracked under, for track_jobs; null if none. p_action cancel takes
-- from the rates alone. A child takes from none: its handler is bound by fan-out, depth, queue and budget.
create or replace function jobforge.check_policy(
  p_tenant_id text, p_action text, p_job_types text[], p_payloads text[] default null, p_priorities integer[] default null,
  p_project_ids text[] default null, p_idempotency_keys text[] default null, p_parent_id uuid default null,
  p_is_plan boolean default false)
returns text[]
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_limits jobforge.rate_limits[] := jobforge.limits_of_call(p_tenant_id, p_job_types, p_parent_id);
  v_limit jobforge.rate_limits;
  v_scope text;
  v_count integer;
  v_most record;
  v_used bigint;
  v_tracked text[];
begin
  if v_limits is null then
    return null;
  end if;
  foreach v_limit in array v_limits loop
    v_scope := v_limit.kind || ' ' || case when v_limit.kind = 'tenant' then p_tenant_id else v_limit.name end;
    v_count := case when v_limit.kind = 'type' and cardinality(p_job_types) > 1
      then cardinality(array_positions(p_job_types, v_limit.name::text)) else cardinality(p_job_types) end;
    if p_action <> 'cancel' and coalesce(v_limit.max_payload_bytes, v_limit.max_priority) is not null then
      select max(octet_length(u.payload)) as bytes, min(coalesce(u.priority, 2)) as priority into v_most
      from unnest(p_job_types, p_payloads, p_priorities) u(job_type, payload, priority)
      where v_limit.kind <> 'type' or u.job_type = v_limit.name;
      if v_most.bytes > v_limit.max_payload_bytes then
        perform jobforge.refuse_over_limit('PAYLOAD_TOO_LARGE', 'max_payload_bytes', v_scope, v_limit.max_payload_bytes,
          v_most.bytes, 'Store large data elsewhere and pass a reference.');
      end if;
      if v_most.priority < v_limit.max_priority then
        perform jobforge.refuse_over_limit('PRIORITY_TOO_HIGH', 'max_priority', v_scope, v_limit.max_priority,
          v_most.priority, format('Ask for priority %s or a higher number, which is less urgent.', v_limit.max_priority));
      end if;
    end if;
    if v_limit.rps is not null and p_parent_id is null then
      perform jobforge.take_permits(p_tenant_id, v_limit, v_count, v_scope);
    end if;
  end loop;
  if p_action = 'cancel' then
    return null;
  end if;

  foreach v_limit in array v_limits loop
    v_scope := v_limit.kind || ' ' || case when v_limit.kind = 'tenant' then p_tenant_id else v_limit.name end;
    v_count := case when v_limit.kind = 'type' and cardinality(p_job_types) > 1
      then cardinality(array_positions(p_job_types, v_limit.name::text)) else cardinality(p_job_types) end;
    if v_limit.budget_run_seconds is not null
      or (v_limit.kind = 'tool' and coalesce(v_limit.max_queued, v_limit.max_running) is not null)
      or (v_limit.kind = 'token' and num_nonnulls(v_limit.max_running, v_limit.max_queued, v_limit.max_payload_bytes,
        v_limit.max_priority, v_limit.max_children, v_limit.max_depth, v_limit.budget_jobs, v_limit.budget_units) > 0)
    then
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
    if v_limit.kind || ':' || v_limit.name = any (v_tracked)
      or num_nonnulls(v_limit.max_queued, v_limit.budget_jobs, v_limit.budget_units) > 0
    then
      perform jobforge.use_limit(p_tenant_id, v_limit, v_scope, p_job_types, p_project_ids, p_idempotency_keys, v_count, p_is_plan);
    end if;
    if p_parent_id is not null then
      perform jobforge.check_family(p_tenant_id, v_limit, v_scope, p_parent_id, p_job_types, p_project_ids, p_idempotency_keys);
    end if;
  end loop;
  return v_tracked;
end $$;
comment on function jobforge.check_policy(text, text, text[], text[], integer[], text[], text[], uuid, boolean) is
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
    v_token_limits := jobforge.current_claims() -> 'limits';
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
set local role jobforge_sys;

-- Jobs of a tenant that has limits of running at once. One claim at a time: what others hold is then committed, and what
-- is counted stays true until this claim commits. Whoever does not get the lock leaves the tenant to the next claim.
create or replace function jobforge.take_limited(p_tenant_id text, p_job_types text[], p_limit integer, p_now timestamptz)
returns table (job_id uuid, epoch integer, attempt_no smallint)
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_counters text[];
  v_most integer[];
  v_running bigint[];
  v_full text[];
  v_job record;
  v_places integer[];
  v_has_room boolean;
  v_taken integer := 0;
begin
  if not pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended(p_tenant_id, 5749)) then
    return;
  end if;
  select array_agg(r.counter::text), array_agg(r.max_running), array_agg(r.running),
    coalesce(array_agg(r.counter::text) filter (where r.running >= r.max_running), '{}')
  into v_counters, v_most, v_running, v_full
  from jobforge.running_counts(p_tenant_id) r;
  for v_job in
    select h.* from (
      select distinct n.job_type from jobforge.lanes n
      where n.tenant_id = p_tenant_id and n.job_type = any (p_job_types)
        and not v_full && array['tenant:', 'type:' || n.job_type]) l
    cross join (values (0::smallint), (1::smallint), (2::smallint), (3::smallint)) p(priority)
    cross join lateral (
      select r.job_type, r.priority, r.run_at, r.job_id from jobforge.ready r
      where r.tenant_id = p_tenant_id and r.job_type = l.job_type and r.priority = p.priority and r.run_at <= p_now
        and not r.is_suspect
        and not exists (select from jobforge.limited_jobs t
          where t.tenant_id = p_tenant_id and t.job_id = r.job_id and t.counter = any (v_full))
      order by r.run_at, r.job_id limit p_limit) h
    order by h.priority, h.run_at, h.job_id
  loop
    exit when v_taken = p_limit;
    select array_agg(x.place), bool_and(v_running[x.place] < least(v_most[x.place], x.own_max_running))
    into v_places, v_has_room
    from (select array_position(v_counters, c.counter) as place, c.own_max_running
      from jobforge.counters_of(p_tenant_id, v_job.job_type, v_job.job_id) c where c.counter = any (v_counters)) x;
    continue when not v_has_room;
    return query
    delete from jobforge.ready d
    where d.ctid = (
      select r.ctid from jobforge.ready r
      where r.tenant_id = p_tenant_id and r.job_type = v_job.job_type and r.priority = v_job.priority
        and r.run_at = v_job.run_at and r.job_id = v_job.job_id for update skip locked)
    returning d.job_id, d.epoch + 1, (d.attempt_no + 1)::smallint;
    if found then
      v_taken := v_taken + 1;
      for v_place in 1..coalesce(cardinality(v_places), 0) loop
        v_running[v_places[v_place]] := v_running[v_places[v_place]] + 1;
      end loop;
    end if;
  end loop;
end $$;
comment on function jobforge.take_limited(text, text[], integer, timestamptz) is
  'Take due jobs of a tenant out of ready, as many as its limits of running at once have room for.';

create or replace function jobforge.has_room(p_tenant_id text, p_job_type text, p_job_id uuid) returns boolean
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
begin
  return pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended(p_tenant_id, 5749)) and not exists (
    select from jobforge.running_counts(p_tenant_id) r
    join jobforge.counters_of(p_tenant_id, p_job_type, p_job_id) c on c.counter = r.counter
    where r.running >= least(r.max_running, c.own_max_running));
end $$;
comment on function jobforge.has_room(text, text, uuid) is 'Whether a job may run besides those of its tenant that do; until the end of the transaction nobody else is told so.';

-- Counters of tokens and runs that nobody came back to; what an operator set stays.
create or replace function jobforge.forget_usage() returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_before timestamptz := jobforge.now() - interval '7 days';
begin
  with gone as (
    delete from jobforge.limit_usage u
    where (u.tenant_id, u.counter) in (
      select x.tenant_id, x.counter from jobforge.limit_usage x
      where x.touched_at < v_before and (x.counter like 'token:%' or x.counter like 'run:%')
        and not exists (select from jobforge.limited_jobs t join jobforge.jobs j on j.tenant_id = t.tenant_id and j.id = t.job_id
          where t.tenant_id = x.tenant_id and t.counter = x.counter and j.final_status is null)
      limit 1000 for update skip locked)
    returning u.tenant_id, u.counter
  ), untracked as (
    delete from jobforge.limited_jobs t using gone g where t.tenant_id = g.tenant_id and t.counter = g.counter
  )
  delete from jobforge.running_limits r using gone g where r.tenant_id = g.tenant_id and r.counter = g.counter;
  delete from jobforge.rate_buckets b
  where (b.tenant_id, b.counter) in (
    select x.tenant_id, x.counter from jobforge.rate_buckets x
    where x.refilled_at < v_before and x.counter like 'token:%' limit 1000 for update skip locked);
end $$;
comment on function jobforge.forget_usage() is 'Forget counters of tokens and runs that were not used for a week.';

-- Operators only: granted to the schema's owner, which no login of a server is.
create or replace function jobforge.set_limit(p_tenant_id text, p_kind text, p_name text, p_limits jsonb)
returns jsonb
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_limit jobforge.rate_limits;
  v_known text[] := array['rps', 'burst', 'max_running', 'max_queued', 'max_payload_bytes', 'max_priority', 'max_children',
    'max_depth', 'budget_jobs', 'budget_units', 'budget_run_seconds', 'period_seconds', 'unit_cost'];
  v_unknown text;
begin
  if p_tenant_id is null or jsonb_typeof(p_limits) is distinct from 'object' then
    raise exception 'a limit needs a tenant and an object of limits' using errcode = 'JF400';
  end if;
  select k.key into v_unknown from jsonb_object_keys(p_limits) k(key) where k.key <> all (v_known) limit 1;
  if found then
    raise exception 'no limit is called %', left(v_unknown, 40) using errcode = 'JF400', hint = 'One of ' || array_to_string(v_known, ', ') || '.';
  end if;
  perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(p_tenant_id, 5750));
  select * into v_limit from jobforge.rate_limits l where l.tenant_id = p_tenant_id and l.kind = p_kind and l.name = coalesce(p_name, '');
  v_limit := pg_catalog.jsonb_populate_record(v_limit, p_limits || jsonb_build_object('tenant_id', p_tenant_id, 'kind', p_kind,
    'name', coalesce(p_name, ''), 'set_at', jobforge.now()));
  if jsonb_strip_nulls(to_jsonb(v_limit)) - '{tenant_id,kind,name,set_at,period_seconds}'::text[] = '{}' then
    raise exception 'nothing would be limited' using errcode = 'JF400', hint = 'Give a limit a value, or remove it.';
  end if;
  delete from jobforge.rate_limits l where l.tenant_id = p_tenant_id and l.kind = p_kind and l.name = v_limit.name;
  insert into jobforge.rate_limits values (v_limit.*);
  delete from jobforge.running_limits r where r.tenant_id = p_tenant_id and r.counter = p_kind || ':' || v_limit.name;
  if v_limit.max_running is not null then
    insert into jobforge.running_limits (tenant_id, counter, max_running)
    values (p_tenant_id, p_kind || ':' || v_limit.name, v_limit.max_running);
  end if;
  -- those who were not counted before are now
  update jobforge.limit_usage u set open_ceiling = null where u.tenant_id = p_tenant_id and u.counter = p_kind || ':' || v_limit.name;
  perform jobforge.record_audit(p_tenant_id, 'set_limit', 'done', null, null,
    jsonb_build_object('kind', p_kind, 'name', v_limit.name, 'limits', p_limits));
  return jsonb_strip_nulls(to_jsonb(v_limit)) - '{tenant_id,kind,name,set_at}'::text[];
end $$;
comment on function jobforge.set_limit(text, text, text, jsonb) is
  'Set limits of a tenant, or of one of its job types or tools; those not named stay, null takes one away.';

create or replace function jobforge.remove_limit(p_tenant_id text, p_kind text, p_name text) returns boolean
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_counter text := p_kind || ':' || coalesce(p_name, '');
begin
  perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(p_tenant_id, 5750));
  delete from jobforge.rate_limits l where l.tenant_id = p_tenant_id and l.kind = p_kind and l.name = coalesce(p_name, '');
  if not found then
    return false;
  end if;
  delete from jobforge.rate_buckets b where b.tenant_id = p_tenant_id and b.counter = v_counter;
  delete from jobforge.limit_usage u where u.tenant_id = p_tenant_id and u.counter = v_counter;
  delete from jobforge.limited_jobs t where t.tenant_id = p_tenant_id and t.counter = v_counter;
  delete from jobforge.running_limits r where r.tenant_id = p_tenant_id and r.counter = v_counter;
  perform jobforge.record_audit(p_tenant_id, 'remove_limit', 'done', null, null,
    jsonb_build_object('kind', p_kind, 'name', coalesce(p_name, '')));
  return true;
end $$;
comment on function jobforge.remove_limit(text, text, text) is 'Take all limits of a tenant, job type or tool away and forget what was used of them.';

create or replace function jobforge.list_limits(p_tenant_id text default null)
returns table (tenant_id text, kind text, name text, limits jsonb, used jsonb, set_at timestamptz)
language sql stable
security definer set search_path = jobforge, pg_temp
as $$
  select l.tenant_id::text, l.kind::text, l.name::text,
    jsonb_strip_nulls(to_jsonb(l)) - '{tenant_id,kind,name,set_at}'::text[],
    jsonb_strip_nulls(jsonb_build_object('jobs', u.jobs, 'units', u.units, 'run_seconds', round(u.run_ms / 1000.0, 3))), l.set_at
  from jobforge.rate_limits l
  left join jobforge.limit_usage u on u.tenant_id = l.tenant_id and u.counter = l.kind || ':' || l.name
  where p_tenant_id is null or l.tenant_id = p_tenant_id
  order by l.tenant_id, l.kind, l.name
$$;
comment on function jobforge.list_limits(text) is 'The limits that were set, and what was used of their budgets.';

reset role;
