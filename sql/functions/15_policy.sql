-- Limits and budgets: how much a token, a tenant, a job type or a tool may use.
--
-- check_policy is called once by whatever makes work, before it writes anything, and only where there is a limit to check.
-- Every limit that applies is checked by itself, so the strictest wins. What must be counted is counted under the lock of
-- the counter's row, held until commit: callers under the same limit wait for each other, and no two of them see the same
-- room. What a claim obeys is in 17_running_limits.sql, what operators set in 18_limit_settings.sql.
-- Locks: limit_usage, by counter, before all that enqueue and retry lock.

set local role jobforge_rpc;

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
      or (l.kind = 'tool' and l.name = pg_catalog.current_setting('jobforge.tool', true))));
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
  return array(select l from unnest(v_limits) l order by l.kind, l.name);
end $$;
comment on function jobforge.limits_of_call(text, text[], uuid) is 'The limits that apply to a call, in the order their counters are locked.';

drop function if exists jobforge.count_one(text, jobforge.rate_limits, integer, integer);
create or replace function jobforge.scope_of(p_tenant_id text, p_limit jobforge.rate_limits) returns text
language sql immutable
set search_path = jobforge, pg_temp
as $$ select p_limit.kind || ' ' || case when p_limit.kind = 'tenant' then p_tenant_id else p_limit.name end $$;
comment on function jobforge.scope_of(text, jobforge.rate_limits) is 'What a refusal calls whoever a limit is of.';

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
  select max(octet_length(u.payload)), min(coalesce(u.priority, 2)) into v_bytes, v_priority
  from unnest(p_job_types, p_payloads, p_priorities) u(job_type, payload, priority)
  where p_limit.kind <> 'type' or u.job_type = p_limit.name;
  v_scope := jobforge.scope_of(p_tenant_id, p_limit);
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

-- Limit by limit. What count_jobs has counted already is named, with the units that it took.
create or replace function jobforge.check_each_limit(
  p_tenant_id text, p_action text, p_job_types text[], p_payloads text[], p_priorities integer[], p_project_ids text[],
  p_idempotency_keys text[], p_parent_id uuid, p_is_plan boolean, p_costs integer[], p_counted text[], p_counted_units bigint)
returns text[]
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_limits jobforge.rate_limits[] := jobforge.limits_of_call(p_tenant_id, p_job_types, p_parent_id);
  v_limit jobforge.rate_limits;
  v_claims jsonb := coalesce(nullif(pg_catalog.current_setting('jobforge.claims', true), ''), '{}')::jsonb;
  v_counter text;
  v_scope text;
  v_count integer;
  v_permits integer;
  v_is_rated boolean := p_parent_id is null and v_claims -> 'rates' is distinct from 'false'::jsonb;
  v_is_tracked boolean;
  v_tracked text[];
begin
  foreach v_limit in array v_limits loop
    if p_action <> 'cancel' then
      perform jobforge.check_shape(p_tenant_id, v_limit, p_job_types, p_payloads, p_priorities);
    end if;
    if v_limit.unit_cost is not null and cardinality(p_job_types) = 1 then
      p_costs := array[v_limit.unit_cost];  -- what the operator set goes before what the definition declares
    end if;
  end loop;

  foreach v_limit in array v_limits loop
    v_counter := v_limit.kind || ':' || v_limit.name;
    v_scope := jobforge.scope_of(p_tenant_id, v_limit);
    v_count := case when v_limit.kind = 'type' and cardinality(p_job_types) > 1
      then cardinality(array_positions(p_job_types, v_limit.name::text)) else cardinality(p_job_types) end;
    v_permits := case when v_limit.rps is not null and v_is_rated then v_count end;
    if p_action = 'cancel' then
      if v_permits is not null then
        perform jobforge.use_limit(p_tenant_id, v_limit, v_scope, v_permits, p_job_types, null, null, 0, false);
      end if;
      continue;
    end if;
    if v_limit.kind = 'token' and p_parent_id is null and p_is_plan is not true and not exists (
      select from jobforge.limit_usage u
      where u.tenant_id = p_tenant_id and u.counter = v_counter and u.limits = v_claims -> 'limits')
    then
      perform jobforge.keep_limit(p_tenant_id, v_limit, v_claims -> 'limits');
    end if;
    v_is_tracked := jobforge.is_tracked(v_limit);
    if v_is_tracked then
      v_tracked := v_tracked || v_counter;
      if v_limit.kind = 'token' and v_limit.max_running is not null and not exists (
        select from jobforge.running_limits r
        where r.tenant_id = p_tenant_id and r.counter = v_counter and r.max_running >= v_limit.max_running)
      then
        insert into jobforge.running_limits as r (tenant_id, counter, max_running)
        values (p_tenant_id, v_counter, v_limit.max_running)
        on conflict (tenant_id, counter) do update set max_running = greatest(r.max_running, excluded.max_running);
      end if;
    end if;
    if v_is_tracked or num_nonnulls(v_permits, v_limit.max_queued, v_limit.budget_jobs, v_limit.budget_units) > 0 then
      perform jobforge.use_limit(p_tenant_id, v_limit, v_scope, v_permits, p_job_types, p_project_ids, p_idempotency_keys, v_count,
        p_is_plan, p_costs, case when v_counter = any (p_counted) then p_counted_units end);
    end if;
    if p_parent_id is not null then
      perform jobforge.check_family(p_tenant_id, v_limit, v_scope, p_parent_id, p_job_types, p_project_ids, p_idempotency_keys);
    end if;
  end loop;
  return v_tracked;
end $$;
comment on function jobforge.check_each_limit(text, text, text[], text[], integer[], text[], text[], uuid, boolean, integer[], text[],
  bigint) is 'Check a call against one limit after the other; those counted already are only judged.';

-- Returns the counters that the new jobs are to be tracked under, for track_jobs; null if none. p_action cancel takes
-- from the rates alone. A child takes from none: its handler is bound by fan-out, depth, queue and budget. What count_jobs
-- has counted is named; unless that is in doubt all is well but for jobs that their key had made before.
drop function if exists jobforge.check_policy(text, text, text[], text[], integer[], text[], text[], uuid, boolean);
drop function if exists jobforge.check_policy(text, text, text[], text[], integer[], text[], text[], uuid, boolean, integer[]);
create or replace function jobforge.check_policy(
  p_tenant_id text, p_action text, p_job_types text[], p_payloads text[] default null, p_priorities integer[] default null,
  p_project_ids text[] default null, p_idempotency_keys text[] default null, p_parent_id uuid default null,
  p_is_plan boolean default false, p_costs integer[] default null, p_counted text[] default null,
  p_tracked text[] default null, p_is_in_doubt boolean default true)
returns text[]
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
begin
  -- whoever made the same key under the same counter has committed by now
  if p_is_in_doubt is not true and not exists (
    select from jobforge.idempotency_keys k
    where k.tenant_id = p_tenant_id and k.project_id = case when p_project_ids[1] is null then '' else p_project_ids[1] end
      and k.job_type = p_job_types[1]
      and k.idempotency_key = p_idempotency_keys[1] and k.expires_at > jobforge.now())
  then
    return p_tracked;
  end if;
  return jobforge.check_each_limit(p_tenant_id, p_action, p_job_types, p_payloads, p_priorities, p_project_ids, p_idempotency_keys,
    p_parent_id, p_is_plan, p_costs, p_counted, cardinality(p_job_types) * coalesce(p_costs[1], 1));
end $$;
comment on function jobforge.check_policy(text, text, text[], text[], integer[], text[], text[], uuid, boolean, integer[], text[],
  text[], boolean) is 'Check a call against every limit that applies to it, before it writes anything.';

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
