-- Read runs: one, a page, their inputs, attempts and logs, and how many stand where.
--
-- Called by jobforge_api and by tenants' logins. Every function belongs to jobforge_rpc, whose row policy admits the
-- scope's tenant alone, and refuses a tenant that is not the scope's. Nothing here takes a lock.

set local role jobforge_rpc;

create or replace function jobforge.refuse_unknown_run(p_job_id uuid) returns void
language plpgsql stable
set search_path = jobforge, pg_temp
as $$
begin
  raise exception 'no run % is known', p_job_id using errcode = 'JF404', hint = 'List runs to find the id.';
end $$;
comment on function jobforge.refuse_unknown_run(uuid) is 'The one answer for a run that does not exist or belongs to another tenant.';

create or replace function jobforge.get_run(p_tenant_id text, p_job_id uuid) returns setof jobforge.runs
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
begin
  perform jobforge.require_tenant(p_tenant_id);
  perform jobforge.require_run(p_tenant_id, p_job_id);
  return query
  select r.* from jobforge.runs r where r.tenant_id = p_tenant_id and r.job_id = p_job_id;
  if not found then
    perform jobforge.refuse_unknown_run(p_job_id);
  end if;
end $$;
comment on function jobforge.get_run(text, uuid) is 'One run with its result; JF404 when the tenant has no such run.';

-- A page of runs by id, without their results: lists stay small whatever the jobs produced.
create or replace function jobforge.small_runs(p_tenant_id text, p_job_ids uuid[]) returns setof jobforge.runs
language sql stable
set search_path = jobforge, pg_temp
as $$
  select r.tenant_id, r.job_id, r.project_id, r.job_type, r.job_version, r.status, r.waiting_for, r.attempt_no,
    r.max_attempts, r.epoch, r.version, r.priority, r.run_at, r.ordering_key, r.labels, r.trace_id, r.parent_id,
    r.timeout_ms, r.is_dry_run, r.created_at, r.created_by, r.started_at, r.finished_at, r.worker_id, r.lease_until,
    r.progress_done, r.progress_total, r.progress_message, r.cancel_requested_at, r.cancel_reason, r.error, null::jsonb
  from jobforge.runs r
  where r.tenant_id = p_tenant_id and r.job_id = any (p_job_ids)
    and r.job_id between (select u from unnest(p_job_ids) u order by u limit 1)
      and (select u from unnest(p_job_ids) u order by u desc limit 1)
  order by r.job_id desc
$$;
comment on function jobforge.small_runs(text, uuid[]) is 'Runs by id without their results, newest first.';

create or replace function jobforge.get_runs(p_tenant_id text, p_job_ids uuid[]) returns setof jobforge.runs
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_projects text[];
  v_claims jsonb;
begin
  perform jobforge.require_tenant(p_tenant_id);
  if cardinality(p_job_ids) > 1000 then
    raise exception 'at most 1,000 runs can be read in one call' using errcode = 'JF413';
  end if;
  v_projects := jobforge.confined_projects();
  v_claims := jobforge.confining_claims();
  return query select r.* from jobforge.small_runs(p_tenant_id, p_job_ids) r
  where (v_projects is null or r.project_id = any (v_projects))
    and (v_claims is null or jobforge.allows_type(v_claims, r.job_type));
end $$;
comment on function jobforge.get_runs(text, uuid[]) is 'Those of these runs that the tenant has, without their results.';

create or replace function jobforge.get_payload(p_tenant_id text, p_job_id uuid) returns text
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_payload text;
begin
  perform jobforge.require_tenant(p_tenant_id);
  perform jobforge.require_run(p_tenant_id, p_job_id);
  select j.payload::text into v_payload from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = p_job_id;
  if not found then
    perform jobforge.refuse_unknown_run(p_job_id);
  end if;
  return v_payload;
end $$;
comment on function jobforge.get_payload(text, uuid) is 'The input of a run, as JSON text.';

-- Newest first by id. Open runs are looked for in the place their status names, which holds few rows; those that failed
-- among the attempts that did; the others by walking the jobs of the tenant backwards.
create or replace function jobforge.list_runs(
  p_tenant_id text, p_job_type text default null, p_status text default null, p_project_ids text[] default null,
  p_trace_id text default null, p_since timestamptz default null, p_before_id uuid default null,
  p_limit integer default 20)
returns setof jobforge.runs
language plpgsql stable
security definer set search_path = jobforge, pg_temp
set enable_bitmapscan = off
as $$
declare
  v_now timestamptz := jobforge.now();
  v_ids uuid[];
  v_projects text[];
  v_claims jsonb;
  v_lanes text[];
begin
  perform jobforge.require_tenant(p_tenant_id);
  v_projects := jobforge.confined_projects();
  v_claims := jobforge.confining_claims();
  v_projects := case when v_projects is null or p_project_ids is null then coalesce(v_projects, p_project_ids)
    else array(select u.id from unnest(p_project_ids) u(id) where u.id = any (v_projects)) end;
  if coalesce(p_limit, 0) not between 1 and 1000 then
    raise exception 'a page holds 1 to 1,000 runs, not %', p_limit using errcode = 'JF400';
  end if;
  if p_status in ('failed', 'dead') then  -- few among many, and each has an attempt on record
    select array_agg(x.job_id) into v_ids from (
      select s.job_id
      from (
        select distinct a.job_id from jobforge.job_attempts a
        where a.tenant_id = p_tenant_id and (p_before_id is null or a.job_id < p_before_id)
        order by a.job_id desc offset 0
      ) s
      cross join lateral (
        select y from jobforge.jobs y
        where y.tenant_id = p_tenant_id and y.id = s.job_id and y.final_status = p_status offset 0) j(y)
      where jobforge.is_wanted(j.y, p_job_type, v_projects, v_claims, p_trace_id, p_since)
      order by s.job_id desc limit p_limit) x;
  elsif p_status is null or p_status in ('succeeded', 'canceled') then
    select array_agg(x.id) into v_ids from (
      select j.id from jobforge.jobs j
      where j.tenant_id = p_tenant_id
        and (p_before_id is null or j.id < p_before_id)
        and (p_status is null or j.final_status = p_status)
        and jobforge.is_wanted(j, p_job_type, v_projects, v_claims, p_trace_id, p_since)
      order by j.id desc limit p_limit) x;
  elsif p_status in ('queued', 'running', 'waiting') then
    v_lanes := jobforge.lanes_of(p_tenant_id, p_job_type);
    select array_agg(x.job_id) into v_ids from (
      select s.job_id
      from (
        select o.job_id from (
          select r.job_id from jobforge.ready r
          where p_status = 'queued' and r.tenant_id = p_tenant_id and (p_job_type is null or r.job_type = any (v_lanes))
          union all
          select w.job_id from jobforge.waiting w
          where p_status in ('queued', 'waiting') and w.tenant_id = p_tenant_id
            and (w.waiting_for = 'limit') = (p_status = 'queued')
          union all
          select h.job_id from jobforge.leases l cross join lateral unnest(l.job_ids) h(job_id)
          where p_status in ('queued', 'running') and l.tenant_id = p_tenant_id
            and (l.lease_until > v_now) = (p_status = 'running')
        ) o
        where p_before_id is null or o.job_id < p_before_id
        order by o.job_id desc offset 0
      ) s
      -- one by one, and no more than the page takes
      cross join lateral (select y from jobforge.jobs y where y.tenant_id = p_tenant_id and y.id = s.job_id offset 0) j(y)
      where jobforge.is_wanted(j.y, p_job_type, v_projects, v_claims, p_trace_id, p_since)
      order by s.job_id desc limit p_limit) x;
  else
    raise exception 'no status is called %', left(p_status, 40) using errcode = 'JF400',
      hint = 'One of queued, running, waiting, succeeded, failed, dead, canceled.';
  end if;
  return query select r.* from jobforge.small_runs(p_tenant_id, v_ids) r;
end $$;
comment on function jobforge.list_runs(text, text, text, text[], text, timestamptz, uuid, integer) is
  'A page of the tenant''s runs, newest first, without their results.';

create or replace function jobforge.list_attempts(p_tenant_id text, p_job_id uuid)
returns table (attempt_no integer, epoch integer, outcome text, worker_id text, started_at timestamptz,
  finished_at timestamptz, error jsonb)
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
begin
  perform jobforge.require_tenant(p_tenant_id);
  perform jobforge.require_run(p_tenant_id, p_job_id);
  return query
  select a.attempt_no::integer, a.epoch, a.outcome::text, a.worker_id, a.started_at, a.finished_at, a.error
  from jobforge.job_attempts a
  where a.tenant_id = p_tenant_id and a.job_id = p_job_id
  order by a.epoch;
end $$;
comment on function jobforge.list_attempts(text, uuid) is 'Attempts of a run that did not succeed, oldest first.';

create or replace function jobforge.list_logs(
  p_tenant_id text, p_job_id uuid, p_after integer default 0, p_limit integer default 200)
returns table (line_no integer, attempt_no integer, level text, message text, logged_at timestamptz)
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
begin
  perform jobforge.require_tenant(p_tenant_id);
  perform jobforge.require_run(p_tenant_id, p_job_id);
  return query
  select g.line_no, g.attempt_no::integer, g.level, g.message, g.logged_at
  from jobforge.run_logs g
  where g.tenant_id = p_tenant_id and g.job_id = p_job_id and g.line_no > p_after
  order by g.line_no limit least(greatest(p_limit, 1), 1000);
end $$;
comment on function jobforge.list_logs(text, uuid, integer, integer) is 'Log lines of a run after a line number, oldest first.';

create or replace function jobforge.queue_stats(p_tenant_id text)
returns table (job_type text, queued bigint, due bigint, running bigint, waiting bigint, oldest_due_at timestamptz)
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
begin
  perform jobforge.require_tenant(p_tenant_id);
  if jobforge.confined_projects() is not null then
    raise exception 'counts of queues cover the whole tenant, and the caller is confined to projects' using errcode = 'JF403',
      hint = 'List runs instead.';
  end if;
  return query
  select s.job_type::text, count(*) filter (where s.place = 'ready'), count(*) filter (where s.place = 'ready' and s.run_at <= v_now),
    count(*) filter (where s.place = 'lease'), count(*) filter (where s.place = 'waiting'),
    min(s.run_at) filter (where s.place = 'ready' and s.run_at <= v_now)
  from (
    select coalesce(r.own_type, r.job_type) as job_type, r.run_at, 'ready' as place
    from jobforge.ready r where r.tenant_id = p_tenant_id
    union all
    select j.job_type, j.run_at, 'lease' from jobforge.leases l cross join lateral unnest(l.job_ids) h(job_id)
    join jobforge.jobs j on j.tenant_id = l.tenant_id and j.id = h.job_id where l.tenant_id = p_tenant_id
    union all
    select j.job_type, j.run_at, case when w.waiting_for = 'limit' then 'ready' else 'waiting' end from jobforge.waiting w
    join jobforge.jobs j on j.tenant_id = w.tenant_id and j.id = w.job_id where w.tenant_id = p_tenant_id
  ) s
  group by s.job_type order by s.job_type;
end $$;
comment on function jobforge.queue_stats(text) is 'Open jobs of the tenant by type and place.';

reset role;
