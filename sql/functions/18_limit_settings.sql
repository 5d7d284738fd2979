-- Limits as operators set them, and what was counted for them.
--
-- Called by the command line as the schema's owner; forget_usage by whoever maintains the tables. Locks: an advisory lock
-- for each tenant, so that two settings of one limit do not mix; then rate_limits, limit_usage.

set local role jobforge_sys;

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
    'name', coalesce(p_name, ''), 'counter', p_kind || ':' || coalesce(p_name, ''), 'set_at', jobforge.now()));
  if jsonb_strip_nulls(to_jsonb(v_limit)) - '{tenant_id,kind,name,counter,set_at,period_seconds}'::text[] = '{}' then
    raise exception 'nothing would be limited' using errcode = 'JF400', hint = 'Give a limit a value, or remove it.';
  end if;
  delete from jobforge.rate_limits l where l.tenant_id = p_tenant_id and l.kind = p_kind and l.name = v_limit.name;
  insert into jobforge.rate_limits values (v_limit.*);
  perform jobforge.keep_limit(p_tenant_id, v_limit);
  delete from jobforge.running_limits r where r.tenant_id = p_tenant_id and r.counter = p_kind || ':' || v_limit.name;
  if v_limit.max_running is not null then
    insert into jobforge.running_limits (tenant_id, counter, max_running)
    values (p_tenant_id, p_kind || ':' || v_limit.name, v_limit.max_running);
  end if;
  perform jobforge.record_audit(p_tenant_id, 'set_limit', 'done', null, null,
    jsonb_build_object('kind', p_kind, 'name', v_limit.name, 'limits', p_limits));
  return jsonb_strip_nulls(to_jsonb(v_limit)) - '{tenant_id,kind,name,counter,set_at}'::text[];
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
    jsonb_strip_nulls(to_jsonb(l)) - '{tenant_id,kind,name,counter,set_at}'::text[],
    jsonb_strip_nulls(jsonb_build_object('jobs', u.jobs, 'units', u.units, 'run_seconds', round(u.run_ms / 1000.0, 3))), l.set_at
  from jobforge.rate_limits l
  left join jobforge.limit_usage u on u.tenant_id = l.tenant_id and u.counter = l.kind || ':' || l.name
  where p_tenant_id is null or l.tenant_id = p_tenant_id
  order by l.tenant_id, l.kind, l.name
$$;
comment on function jobforge.list_limits(text) is 'The limits that were set, and what was used of their budgets.';

reset role;
