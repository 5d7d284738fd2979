-- Limits that a claim obeys: how many runs of a tenant, token, type or tool may run at once.
--
-- Called by claim_jobs and explain_run. A claim never waits: it passes over a tenant at which another claim is. A tenant
-- without a row in running_limits pays nothing for any of this.
-- Locks: an advisory lock for each tenant with limits, tried and never waited for, before the tenant's ready rows.

set local role jobforge_rpc;

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
      select distinct n.job_type, 'type:' || n.job_type = any (v_full) as is_full from jobforge.lanes n
      where n.tenant_id = p_tenant_id and n.job_type = any (p_job_types) and 'tenant:' <> all (v_full)) l
    cross join (values (0::smallint), (1::smallint), (2::smallint), (3::smallint)) p(priority)
    cross join lateral (
      (select r.job_type, r.own_type, r.priority, r.run_at, r.job_id from jobforge.ready r
      where not l.is_full and r.tenant_id = p_tenant_id and r.job_type = l.job_type and r.priority = p.priority
        and r.run_at <= p_now and not r.is_suspect and (r.own_type is null or 'type:' || r.own_type <> all (v_full))
        and not exists (select from jobforge.limited_jobs t
          where t.tenant_id = p_tenant_id and t.job_id = r.job_id and t.counter = any (v_full))
      order by r.run_at, r.job_id limit p_limit)
      union all  -- a full type is passed over whole, but for those of its lane that are of other types
      (select r.job_type, r.own_type, r.priority, r.run_at, r.job_id from jobforge.ready r
      where l.is_full and r.tenant_id = p_tenant_id and r.job_type = l.job_type and r.priority = p.priority
        and r.run_at <= p_now and not r.is_suspect and r.own_type is not null and 'type:' || r.own_type <> all (v_full)
        and not exists (select from jobforge.limited_jobs t
          where t.tenant_id = p_tenant_id and t.job_id = r.job_id and t.counter = any (v_full))
      order by r.run_at, r.job_id limit p_limit)) h
    order by h.priority, h.run_at, h.job_id
  loop
    exit when v_taken = p_limit;
    select array_agg(x.place), bool_and(v_running[x.place] < least(v_most[x.place], x.own_max_running))
    into v_places, v_has_room
    from (select array_position(v_counters, c.counter) as place, c.own_max_running
      from jobforge.counters_of(p_tenant_id, coalesce(v_job.own_type, v_job.job_type), v_job.job_id) c where c.counter = any (v_counters)) x;
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

reset role;
