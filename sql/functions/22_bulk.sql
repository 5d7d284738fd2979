-- Cancel and retry by filter: as many runs as a filter finds, with the count first, in batches of one transaction each.
--
-- Called by callers with the right to cancel or retry. A call is one batch with one audit row; whoever wants all calls again
-- with the id that the answer ends with. Runs are taken in the order of their ids and each as the single function would; one
-- that moved on meanwhile is skipped and named. Locks: those of cancel_job and retry_job, for one run after the other: where
-- that meets a settle in a circle, the statement is repeated by whoever lost.

set local role jobforge_rpc;

-- What list_runs, cancel_runs and retry_runs ask of a run alike. Without a search_path of its own it is inlined, and costs
-- what its conditions cost.
create or replace function jobforge.is_wanted(
  p_job jobforge.jobs, p_job_type text, p_project_ids text[], p_claims jsonb, p_trace_id text, p_since timestamptz)
returns boolean
language sql immutable
as $$
  select (p_job_type is null or (p_job).job_type = p_job_type)
    and (p_project_ids is null or (p_job).project_id = any (p_project_ids))
    and (p_claims is null or jobforge.allows_type(p_claims, (p_job).job_type))
    and (p_trace_id is null or (p_job).trace_id = p_trace_id)
    and (p_since is null or (p_job).created_at >= p_since)
$$;
comment on function jobforge.is_wanted(jobforge.jobs, text, text[], jsonb, text, timestamptz) is
  'Whether a run is what a filter asks for, and of a project and type that the caller may name.';

create or replace function jobforge.matching_runs(
  p_tenant_id text, p_is_open boolean, p_job_type text, p_statuses text[], p_project_ids text[], p_trace_id text, p_labels jsonb,
  p_error_code text, p_since timestamptz, p_before timestamptz, p_without_types text[], p_after_id uuid, p_limit integer)
returns setof uuid
language plpgsql stable
set search_path = jobforge, pg_temp
as $$
declare
  v_allowed text[] := case when p_is_open then array['queued', 'waiting', 'running'] else array['failed', 'dead', 'canceled'] end;
  v_projects text[] := jobforge.confined_projects();
  v_claims jsonb := jobforge.confining_claims();
  v_after uuid := p_after_id;
begin
  if not p_statuses <@ v_allowed then
    raise exception 'runs that are % cannot be %', array_to_string(p_statuses, ', '),
        case when p_is_open then 'canceled' else 'retried by a filter' end
      using errcode = 'JF400', hint = 'Of these they can: ' || array_to_string(v_allowed, ', ') || '.';
  end if;
  if p_is_open and v_after is null then  -- what ended is older, mostly: begin at the first that has not
    select min(x.id::text)::uuid into v_after
    from (
      select r.job_id from jobforge.ready r where r.tenant_id = p_tenant_id
      union all
      select w.job_id from jobforge.waiting w where w.tenant_id = p_tenant_id
      union all
      select u.job_id from jobforge.leases l cross join lateral unnest(l.job_ids) u(job_id) where l.tenant_id = p_tenant_id) x(id);
    if v_after is null then
      return;
    end if;
  end if;
  return query
  select j.id from jobforge.jobs j
  where j.tenant_id = p_tenant_id
    and (v_after is null or j.id > v_after or (p_after_id is null and j.id = v_after))
    and (j.final_status is null) = p_is_open
    and (p_is_open or j.final_status = any (coalesce(p_statuses, v_allowed)))
    and jobforge.is_wanted(j, p_job_type, v_projects, v_claims, p_trace_id, p_since)
    and (p_without_types is null or j.job_type <> all (p_without_types))
    and (p_project_ids is null or j.project_id = any (p_project_ids))
    and (p_labels is null or j.labels @> p_labels)
    and (p_error_code is null or j.error ->> 'code' = p_error_code)
    and (p_before is null or j.created_at < p_before)
    and (not p_is_open or p_statuses is null or exists (
      select from jobforge.runs r where r.tenant_id = p_tenant_id and r.job_id = j.id and r.status = any (p_statuses)))
  order by j.id limit p_limit;
end $$;
comment on function jobforge.matching_runs(text, boolean, text, text[], text[], text, jsonb, text, timestamptz, timestamptz, text[], uuid,
  integer) is 'Ids of open or ended runs that a filter finds, oldest first.';

-- The first half of both bulk calls. A plan counts to 100,000 and names the first ten. An act refuses when more runs match
-- than were expected: what was counted before is what may be touched.
drop function if exists jobforge.refuse_more_runs(integer, integer);
create or replace function jobforge.choose_runs(
  p_tenant_id text, p_is_open boolean, p_job_type text, p_statuses text[], p_project_ids text[], p_trace_id text, p_labels jsonb,
  p_error_code text, p_since timestamptz, p_before timestamptz, p_without_types text[], p_expected integer, p_after_id uuid,
  p_limit integer, p_is_plan boolean, out matched integer, out job_ids uuid[])
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
begin
  if coalesce(p_limit, 0) not between 1 and 1000 then
    raise exception 'a batch has 1 to 1,000 runs, not %', p_limit using errcode = 'JF400';
  end if;
  if p_is_plan or p_expected is not null then
    job_ids := array(select m.id from jobforge.matching_runs(p_tenant_id, p_is_open, p_job_type, p_statuses, p_project_ids, p_trace_id,
      p_labels, p_error_code, p_since, p_before, p_without_types, p_after_id,
      case when p_is_plan then 100000 else p_expected + 1 end) m(id));
    matched := cardinality(job_ids);
  end if;
  if p_is_plan then
    perform jobforge.record_audit(p_tenant_id, case when p_is_open then 'cancel_runs' else 'retry_runs' end, 'planned', null,
      p_job_type, jsonb_build_object('count', matched));
    job_ids := job_ids[1:10];
    return;
  end if;
  if matched > p_expected then
    raise exception 'more runs match than the % that were expected', p_expected using errcode = 'JF409',
      hint = 'Nothing was changed: count again, or narrow the filter.', detail = 'COUNT_CHANGED';
  end if;
  job_ids := array(select m.id from jobforge.matching_runs(p_tenant_id, p_is_open, p_job_type, p_statuses, p_project_ids, p_trace_id,
    p_labels, p_error_code, p_since, p_before, p_without_types, p_after_id, p_limit) m(id));
  if current_setting('jobforge.token_id', true) <> '' then
    perform jobforge.use_token();
  end if;
end $$;
comment on function jobforge.choose_runs(text, boolean, text, text[], text[], text, jsonb, text, timestamptz, timestamptz, text[],
  integer, uuid, integer, boolean) is 'Count the runs that a filter finds, and take a batch of them unless it is a plan.';

-- The id in the answer is null when nothing is left.
create or replace function jobforge.cancel_runs(
  p_tenant_id text, p_job_type text default null, p_statuses text[] default null, p_project_ids text[] default null,
  p_trace_id text default null, p_labels jsonb default null, p_since timestamptz default null, p_before timestamptz default null,
  p_without_types text[] default null, p_reason text default null, p_expected integer default null, p_after_id uuid default null,
  p_limit integer default 100, p_is_plan boolean default false)
returns table (matched integer, job_ids uuid[], skipped_ids uuid[], after_id uuid)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_ids uuid[];
  v_types text[];
  v_matched integer;
  v_done uuid[] := '{}';
  v_skipped uuid[] := '{}';
  v_id uuid;
begin
  perform jobforge.require_tenant(p_tenant_id);
  select c.matched, c.job_ids into v_matched, v_ids
  from jobforge.choose_runs(p_tenant_id, true, p_job_type, p_statuses, p_project_ids, p_trace_id, p_labels, null, p_since, p_before,
    p_without_types, p_expected, p_after_id, p_limit, p_is_plan) c;
  if p_is_plan then
    return query select v_matched, v_ids, '{}'::uuid[], null::uuid;
    return;
  end if;
  if cardinality(v_ids) > 0 and (jobforge.current_claims() ? 'limits'
    or exists (select from jobforge.rate_limits l where l.tenant_id = p_tenant_id))
  then
    -- before the counters, as cancel_job does
    perform from jobforge.leases l where l.tenant_id = p_tenant_id and l.job_ids && v_ids order by l.lease_id for update;
    v_types := array(select j.job_type::text from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = any (v_ids));
    perform jobforge.check_policy(p_tenant_id, 'cancel', v_types);
  end if;
  foreach v_id in array v_ids loop
    begin
      perform jobforge.cancel_open_job(p_tenant_id, v_id, p_reason, false);
      v_done := v_done || v_id;
    exception when sqlstate 'JF409' then
      v_skipped := v_skipped || v_id;
    end;
  end loop;
  perform jobforge.record_audit(p_tenant_id, 'cancel_runs', 'done', null, p_job_type, jsonb_strip_nulls(jsonb_build_object(
    'count', cardinality(v_done), 'skipped', cardinality(v_skipped), 'statuses', p_statuses, 'traceId', p_trace_id, 'labels', p_labels,
    'since', p_since, 'before', p_before, 'first', v_ids[1], 'reason', left(p_reason, 1000))));
  return query select v_matched, v_done, v_skipped, case when cardinality(v_ids) = p_limit then v_ids[p_limit] end;
end $$;
comment on function jobforge.cancel_runs(text, text, text[], text[], text, jsonb, timestamptz, timestamptz, text[], text, integer, uuid,
  integer, boolean) is 'Count the open runs that a filter finds, or cancel a batch of them.';

create or replace function jobforge.retry_runs(
  p_tenant_id text, p_job_type text default null, p_statuses text[] default null, p_project_ids text[] default null,
  p_trace_id text default null, p_labels jsonb default null, p_error_code text default null, p_since timestamptz default null,
  p_before timestamptz default null, p_without_types text[] default null, p_run_at timestamptz default null,
  p_reset_attempts boolean default false, p_expected integer default null, p_after_id uuid default null,
  p_limit integer default 100, p_is_plan boolean default false)
returns table (matched integer, job_ids uuid[], skipped_ids uuid[], after_id uuid)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_ids uuid[];
  v_facts record;
  v_matched integer;
  v_done uuid[] := '{}';
  v_skipped uuid[] := '{}';
  v_lanes text[] := '{}';
  v_counters text[];
  v_job jobforge.jobs;
  v_id uuid;
begin
  perform jobforge.require_tenant(p_tenant_id);
  if not jobforge.is_due_time(p_run_at) then
    raise exception 'a run is due from 1970 to 9999, in UTC' using errcode = 'JF400', hint = 'Nothing was retried: correct the value.';
  end if;
  select c.matched, c.job_ids into v_matched, v_ids
  from jobforge.choose_runs(p_tenant_id, false, p_job_type, p_statuses, p_project_ids, p_trace_id, p_labels, p_error_code, p_since,
    p_before, p_without_types, p_expected, p_after_id, p_limit, p_is_plan) c;
  if p_is_plan then
    return query select v_matched, v_ids, '{}'::uuid[], null::uuid;
    return;
  end if;
  if cardinality(v_ids) > 0 and (jobforge.current_claims() ? 'limits'
    or exists (select from jobforge.rate_limits l where l.tenant_id = p_tenant_id))
  then
    select array_agg(j.job_type::text) as types, array_agg(j.priority::integer) as priorities, array_agg(j.cost) as costs into v_facts
    from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = any (v_ids);
    v_counters := jobforge.check_policy(p_tenant_id, 'retry', v_facts.types, p_priorities => v_facts.priorities,
      p_costs => v_facts.costs);
  end if;
  foreach v_id in array v_ids loop
    begin
      v_job := jobforge.requeue_final_job(p_tenant_id, v_id, null, p_run_at, p_reset_attempts, false, v_counters, false);
      v_done := v_done || v_id;
      v_lanes := v_lanes || coalesce(v_job.lane_type, v_job.job_type)::text;
    exception when sqlstate 'JF409' then
      v_skipped := v_skipped || v_id;
    end;
  end loop;
  if cardinality(v_done) > 0 then
    perform jobforge.touch_lanes(array_fill(p_tenant_id, array[cardinality(v_lanes)]), v_lanes);
    perform jobforge.wake('ready'), jobforge.wake('runs');
  end if;
  perform jobforge.record_audit(p_tenant_id, 'retry_runs', 'done', null, p_job_type, jsonb_strip_nulls(jsonb_build_object(
    'count', cardinality(v_done), 'skipped', cardinality(v_skipped), 'statuses', p_statuses, 'traceId', p_trace_id, 'labels', p_labels,
    'errorCode', p_error_code, 'since', p_since, 'before', p_before, 'first', v_ids[1], 'resetAttempts', p_reset_attempts)));
  return query select v_matched, v_done, v_skipped, case when cardinality(v_ids) = p_limit then v_ids[p_limit] end;
end $$;
comment on function jobforge.retry_runs(text, text, text[], text[], text, jsonb, text, timestamptz, timestamptz, text[], timestamptz,
  boolean, integer, uuid, integer, boolean) is 'Count the ended runs that a filter finds, or queue a batch of them again.';

reset role;
