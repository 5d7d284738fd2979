-- Enqueue what most calls bring: jobs of one type without keys, limits or dependencies, for a caller who is held by no limit.
--
-- Called as 10_jobs.sql is, which takes over where there is more to ask. Of a short call nearly everything that Postgres does
-- is to make statements and expressions ready, anew in every transaction, and most of that is to look up rights and row
-- policies: so one statement looks and one writes, in the role that row policies admit to all rows. It names the tenant that
-- the signature is of wherever it reads or writes. Takes no locks but those of the rows it inserts.

set local role jobforge_sys;

-- The scope comes with the call and is signed; without a signature it is the one that was entered. Null arrays and null
-- elements mean the default. Traces of calls say that each job is a call of its own, which came together with the others: each is
-- audited by itself. Plans are kept: knowing that an array has one element makes a plan look so much better that the planner
-- would run at every call. What cannot be answered here (no signature or a wrong one, a token with limits or restrictions, a
-- tenant with limits) enqueue_jobs answers. A row of the answer stands for neighbours that differ in their ids alone.
create or replace function jobforge.enqueue_plain_jobs(
  p_tenant_id text, p_actor text, p_token_id text, p_tool text, p_trace_id text, p_token_claims text, p_key_id text,
  p_signed_until bigint, p_mac bytea, p_job_type text, p_payloads text[], p_call_traces text[] default null, p_priorities integer[] default null,
  p_trace_ids text[] default null, p_job_versions text[] default null, p_max_attempts integer[] default null,
  p_backoff_ms integer[] default null, p_backoff_multipliers float8[] default null, p_max_backoff_ms integer[] default null,
  p_timeout_ms integer[] default null, p_dry_runs boolean[] default null)
returns table (job_ids uuid[], outcome text, status text, version bigint, run_at timestamptz, created_at timestamptz)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
  -- first of all: every call of a caller comes upon the tables in the order in which the migrator locks them
  v_is_signed boolean := jobforge.is_signed_with(p_tenant_id, p_actor, p_token_id, p_tool, p_trace_id, p_token_claims, p_key_id,
    p_signed_until, p_mac, v_now);
  v_claims jsonb;
  v_count integer := cardinality(p_payloads);
  v_id uuid;
  v_is_awake boolean;
  v_is_heard boolean;
  v_is_chosen boolean;
begin
  if p_token_claims <> '' then
    v_claims := p_token_claims::jsonb;
  end if;
  select exists (select from jobforge.lanes n
      where n.tenant_id = p_tenant_id and n.job_type = p_job_type and n.seen_at > v_now - interval '10 seconds'),
    exists (select from jobforge.listeners l where l.topic = 'ready' and l.expires_at > v_now)
  into v_is_awake, v_is_heard
  where v_is_signed
    and (v_claims ?| '{projects,jobTypes,denyTypes,events,limits,once}') is not true
    and not exists (select from jobforge.rate_limits r where r.tenant_id = p_tenant_id)
    and not exists (select from jobforge.revocations(p_tenant_id, v_claims));

  if v_is_awake is null or (v_count between 1 and 10000) is not true or array_position(p_payloads, null) is not null then
    return query
    select array[e.job_id], e.outcome, e.status, e.version, e.run_at, e.created_at
    from jobforge.enqueue_jobs(p_tenant_id, array_fill(p_job_type, array[coalesce(v_count, 0)]), p_payloads,
      p_priorities => p_priorities, p_trace_ids => p_trace_ids, p_job_versions => p_job_versions,
      p_max_attempts => p_max_attempts, p_backoff_ms => p_backoff_ms, p_backoff_multipliers => p_backoff_multipliers,
      p_max_backoff_ms => p_max_backoff_ms, p_timeout_ms => p_timeout_ms, p_dry_runs => p_dry_runs,
      p_call_traces => p_call_traces, p_actor => p_actor, p_token_id => p_token_id, p_tool => p_tool, p_trace_id => p_trace_id,
      p_token_claims => p_token_claims, p_signature => nullif(concat_ws('.', p_key_id, p_signed_until, encode(p_mac, 'hex')), '')) e;
    return;
  end if;
  v_is_chosen := num_nonnulls(p_priorities, p_trace_ids, p_job_versions, p_max_attempts, p_backoff_ms, p_backoff_multipliers,
    p_max_backoff_ms, p_timeout_ms, p_dry_runs) > 0;
  if v_is_chosen then  -- a trace, which every call of a tool has, is no choice
    v_is_chosen := (v_count > 1 or octet_length(p_trace_ids[1]) > 255 or num_nonnulls(p_priorities, p_job_versions, p_max_attempts,
      p_backoff_ms, p_backoff_multipliers, p_max_backoff_ms, p_timeout_ms, p_dry_runs) > 0) is true;
  end if;
  -- a lane that is awake says that its type is well-formed
  if v_is_chosen or not v_is_awake then
    perform jobforge.require_fitting_jobs(array[p_job_type], null, null, p_trace_ids, p_job_versions, null, p_priorities,
      p_max_attempts, p_timeout_ms, p_backoff_ms, p_max_backoff_ms, p_backoff_multipliers, null, null);
  end if;
  -- what is short when it is written out holds no number that is long
  if v_count > 1 or octet_length(p_payloads[1]) >= 200 or octet_length(p_payloads[1]::jsonb::text) >= 200 then
    perform jobforge.require_small_json(p_payloads, 1048576, 'an input');
  end if;
  run_at := v_now;
  created_at := v_now;
  outcome := 'created';
  status := 'queued';
  version := 2;
  if v_count = 1 and not v_is_chosen then
    v_id := jobforge.new_id();
    job_ids := array[v_id];
    with audited as (
      insert into jobforge.audit_log (tenant_id, id, occurred_at, action, outcome, actor, token_id, tool, trace_id, job_id, job_type)
      values (p_tenant_id, v_id, v_now, 'enqueue', 'created', p_actor, p_token_id, p_tool, p_trace_id,
        v_id, p_job_type)
    ), queued as (
      insert into jobforge.ready (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no)
      values (p_tenant_id, p_job_type, 2, v_now, v_id, 0, 0)
    )
    insert into jobforge.jobs (tenant_id, id, job_type, job_version, trace_id, created_by, payload, is_dry_run, priority,
      max_attempts, timeout_ms, backoff_ms, max_backoff_ms, backoff_multiplier, run_at, created_at)
    values (p_tenant_id, v_id, p_job_type, '1', p_trace_ids[1], p_actor, p_payloads[1]::jsonb, false, 2,
      3, 300000, 1000, 60000, 2, v_now, v_now);
  else
    job_ids := jobforge.new_ids(v_count);
    if v_count = 1 and p_call_traces is null then
      p_call_traces := array[p_trace_id];
    end if;
    -- elements are asked for by their place, which costs nothing where an array is null
    with audited as (
      insert into jobforge.audit_log (tenant_id, id, occurred_at, action, outcome, actor, token_id, tool, trace_id, job_id, job_type)
      select p_tenant_id, job_ids[g.ord], v_now, 'enqueue', 'created', p_actor, p_token_id, p_tool, nullif(p_call_traces[g.ord], ''),
        job_ids[g.ord], p_job_type
      from generate_series(1, case when p_call_traces is not null then v_count else 0 end) g(ord)
    ), queued as (
      insert into jobforge.ready (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no)
      select p_tenant_id, p_job_type, coalesce(p_priorities[g.ord], 2), v_now, job_ids[g.ord], 0, 0
      from generate_series(1, v_count) g(ord)
    )
    insert into jobforge.jobs (tenant_id, id, job_type, job_version, trace_id, created_by, payload, is_dry_run, priority,
      max_attempts, timeout_ms, backoff_ms, max_backoff_ms, backoff_multiplier, run_at, created_at)
    select p_tenant_id, job_ids[g.ord], p_job_type, coalesce(p_job_versions[g.ord], '1'), p_trace_ids[g.ord],
      p_actor, p_payloads[g.ord]::jsonb,
      coalesce(p_dry_runs[g.ord], false), coalesce(p_priorities[g.ord], 2), coalesce(p_max_attempts[g.ord], 3),
      coalesce(p_timeout_ms[g.ord], 300000), coalesce(p_backoff_ms[g.ord], 1000), coalesce(p_max_backoff_ms[g.ord], 60000),
      coalesce(p_backoff_multipliers[g.ord], 2), v_now, v_now
    from generate_series(1, v_count) g(ord);
    if p_call_traces is null then
      insert into jobforge.audit_log (tenant_id, id, occurred_at, action, outcome, actor, token_id, tool, trace_id, detail)
      values (p_tenant_id, jobforge.new_id(), v_now, 'enqueue', 'created', p_actor, p_token_id, p_tool, p_trace_id,
        jsonb_build_object('count', v_count, 'created', v_count));
    end if;
  end if;
  return next;
  if not v_is_awake then
    perform jobforge.touch_lanes(array[p_tenant_id], array[p_job_type]);
  end if;
  if v_is_heard then
    perform jobforge.wake('ready');
  end if;
end $$;
comment on function jobforge.enqueue_plain_jobs(text, text, text, text, text, text, text, bigint, bytea, text, text[], text[], integer[], text[], text[],
  integer[], integer[], float8[], integer[], integer[], boolean[]) is
  'Commit jobs of one type that ask for nothing else, as enqueue_jobs does, for a scope that comes with the call.';

reset role;
set local role jobforge_rpc;

-- Whose call it is, and then what there is to ask. A signature says that the scope comes with the call, as enter_scope would
-- take it, an empty one where scopes are not signed; without one it was entered before.
drop function if exists jobforge.enqueue_jobs(text, text[], text[], text[], text[], text[], integer[], timestamptz[], text[], text[],
  text[], text[], integer[], integer[], float8[], integer[], integer[], boolean[], text, integer, boolean, uuid, integer[], text[],
  text[], text[]);
create or replace function jobforge.enqueue_jobs(
  p_tenant_id text, p_job_types text[], p_payloads text[], p_received text[] default null,
  p_idempotency_keys text[] default null, p_ordering_keys text[] default null, p_priorities integer[] default null,
  p_run_ats timestamptz[] default null, p_project_ids text[] default null, p_labels text[] default null,
  p_trace_ids text[] default null, p_job_versions text[] default null, p_max_attempts integer[] default null,
  p_backoff_ms integer[] default null, p_backoff_multipliers float8[] default null, p_max_backoff_ms integer[] default null,
  p_timeout_ms integer[] default null, p_dry_runs boolean[] default null, p_worker_id text default null,
  p_lease_ms integer default 30000, p_is_plan boolean default false, p_parent_id uuid default null,
  p_costs integer[] default null, p_lane_types text[] default null, p_claim_limits text[] default null,
  p_call_traces text[] default null, p_actor text default null, p_token_id text default null, p_tool text default null,
  p_trace_id text default null, p_token_claims text default null, p_signature text default null)
returns table (ord integer, job_id uuid, outcome text, status text, version bigint, run_at timestamptz,
  created_at timestamptz, lease_id uuid, lease_until timestamptz)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_claims jsonb;
begin
  if p_signature is not null then
    perform jobforge.enter_scope(p_tenant_id, p_actor, p_token_id, p_tool, p_trace_id, p_token_claims, p_signature);
  end if;
  v_claims := jobforge.require_claims(p_tenant_id);
  return query
  select e.* from jobforge.enqueue_any_jobs(p_tenant_id, p_job_types, p_payloads, p_received, p_idempotency_keys, p_ordering_keys,
    p_priorities, p_run_ats, p_project_ids, p_labels, p_trace_ids, p_job_versions, p_max_attempts, p_backoff_ms,
    p_backoff_multipliers, p_max_backoff_ms, p_timeout_ms, p_dry_runs, p_worker_id, p_lease_ms, p_is_plan, p_parent_id, p_costs,
    p_lane_types, p_claim_limits, p_call_traces, v_claims) e;
end $$;
comment on function jobforge.enqueue_jobs(text, text[], text[], text[], text[], text[], integer[], timestamptz[], text[], text[],
  text[], text[], integer[], integer[], float8[], integer[], integer[], boolean[], text, integer, boolean, uuid, integer[], text[],
  text[], text[], text, text, text, text, text, text) is
  'Commit jobs to be run, one row of answer for each: created, replayed or conflict.';

reset role;
