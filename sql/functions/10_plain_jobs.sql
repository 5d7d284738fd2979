-- Enqueue what most calls bring: jobs of one type without keys, limits or dependencies, for a caller who is held by no limit.
--
-- Called as 10_jobs.sql is, which takes over where there is more to ask. Of a short call nearly everything that Postgres does
-- is to make statements and expressions ready, anew in every transaction: so there is one statement that looks and one that
-- writes, and what one expression can say is not said in two. Takes no locks but those of the rows it inserts.

set local role jobforge_rpc;

-- Null arrays and null elements mean the default. A lane type says that the job is one of a registered definition, of the
-- version given with it. Plans are kept: knowing that an array has one element makes a plan look so much better that the
-- planner would run at every call, for a third of its time. Traces of calls say that each job is a call of its own, which
-- came together with the others: each is audited by itself. A signature says that the scope comes with the call, as
-- enter_scope would take it, an empty one where scopes are not signed; without one it was entered before.
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
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  v_claims jsonb;
  v_count integer;
  v_facts boolean[];
  v_ids uuid[];
begin
  created_at := jobforge.now();
  if p_signature is null then
    v_claims := jobforge.require_claims(p_tenant_id);
    p_actor := nullif(pg_catalog.current_setting('jobforge.actor', true), '');
    p_token_id := nullif(pg_catalog.current_setting('jobforge.token_id', true), '');
    p_tool := nullif(pg_catalog.current_setting('jobforge.tool', true), '');
    p_trace_id := nullif(pg_catalog.current_setting('jobforge.trace_id', true), '');
  elsif jobforge.is_signed(p_tenant_id, p_actor, p_token_id, p_tool, p_trace_id, p_token_claims, p_signature, created_at) then
    v_claims := coalesce(nullif(p_token_claims, ''), '{}')::jsonb;
    perform pg_catalog.set_config('jobforge.tenant_id', p_tenant_id, true);  -- what row policies compare with
  else
    perform jobforge.enter_scope(p_tenant_id, p_actor, p_token_id, p_tool, p_trace_id, p_token_claims, p_signature);
    v_claims := jobforge.require_claims(p_tenant_id);
  end if;
  if num_nonnulls(p_received, p_idempotency_keys, p_ordering_keys, p_run_ats, p_project_ids, p_labels, p_worker_id, p_parent_id,
      p_costs, p_lane_types, p_claim_limits) = 0
    and p_is_plan is not true and p_job_types[1] = all (p_job_types) and array_position(p_payloads, null) is null
    and cardinality(p_payloads) = cardinality(p_job_types)
    and not v_claims ?| '{projects,jobTypes,denyTypes,events,limits,once}'
  then
    v_facts := jobforge.plain_call(p_tenant_id, v_claims, p_job_types[1], created_at);
    v_count := cardinality(p_job_types);
  end if;
  if v_facts is null or v_count not between 1 and 10000 then
    if p_signature <> '' then
      perform jobforge.enter_scope(p_tenant_id, p_actor, p_token_id, p_tool, p_trace_id, p_token_claims, p_signature);
    end if;
    return query
    select e.* from jobforge.enqueue_any_jobs(p_tenant_id, p_job_types, p_payloads, p_received, p_idempotency_keys, p_ordering_keys,
      p_priorities, p_run_ats, p_project_ids, p_labels, p_trace_ids, p_job_versions, p_max_attempts, p_backoff_ms,
      p_backoff_multipliers, p_max_backoff_ms, p_timeout_ms, p_dry_runs, p_worker_id, p_lease_ms, p_is_plan, p_parent_id, p_costs,
      p_lane_types, p_claim_limits, p_call_traces, v_claims) e;
    return;
  end if;

  -- a lane that is awake says that its type is well-formed
  if not v_facts[1] or num_nonnulls(p_trace_ids, p_job_versions, p_priorities, p_max_attempts, p_timeout_ms, p_backoff_ms,
    p_max_backoff_ms, p_backoff_multipliers) > 0
  then
    perform jobforge.require_fitting_jobs(p_job_types, null, null, p_trace_ids, p_job_versions, null, p_priorities, p_max_attempts,
      p_timeout_ms, p_backoff_ms, p_max_backoff_ms, p_backoff_multipliers, null, null);
  end if;
  -- what is short when it is written out holds no number that is long
  if v_count > 1 or octet_length(p_payloads[1]) >= 200 or octet_length(p_payloads[1]::jsonb::text) >= 200 then
    perform jobforge.require_small_json(p_payloads, 1048576, 'an input');
  end if;
  if v_count = 1 then
    job_id := jobforge.new_id();
    with audited as (
      insert into jobforge.audit_log (tenant_id, id, occurred_at, action, outcome, actor, token_id, tool, trace_id, job_id, job_type)
      values (p_tenant_id, enqueue_jobs.job_id, enqueue_jobs.created_at, 'enqueue', 'created',
        p_actor, p_token_id, p_tool, p_trace_id, enqueue_jobs.job_id, p_job_types[1])
    ), queued as (
      insert into jobforge.ready (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no)
      values (p_tenant_id, p_job_types[1], coalesce(p_priorities[1], 2), enqueue_jobs.created_at, enqueue_jobs.job_id, 0, 0)
    )
    insert into jobforge.jobs (tenant_id, id, job_type, job_version, trace_id, created_by, payload, is_dry_run, priority,
      max_attempts, timeout_ms, backoff_ms, max_backoff_ms, backoff_multiplier, run_at, created_at)
    values (p_tenant_id, enqueue_jobs.job_id, p_job_types[1], coalesce(p_job_versions[1], '1'), p_trace_ids[1],
      p_actor, p_payloads[1]::jsonb, coalesce(p_dry_runs[1], false),
      coalesce(p_priorities[1], 2), coalesce(p_max_attempts[1], 3), coalesce(p_timeout_ms[1], 300000),
      coalesce(p_backoff_ms[1], 1000), coalesce(p_max_backoff_ms[1], 60000), coalesce(p_backoff_multipliers[1], 2),
      enqueue_jobs.created_at, enqueue_jobs.created_at);
    ord := 1;
    outcome := 'created';
    status := 'queued';
    version := 2;
    run_at := created_at;
    return next;
  else
    v_ids := array(select i.id from (select jobforge.new_id() as id from generate_series(1, v_count)) i order by i.id);
    -- elements are asked for by their place, which costs nothing where an array is null
    with audited as (
      insert into jobforge.audit_log (tenant_id, id, occurred_at, action, outcome, actor, token_id, tool, trace_id, job_id, job_type)
      select p_tenant_id, v_ids[g.ord], enqueue_jobs.created_at, 'enqueue', 'created',
        p_actor, p_token_id, p_tool, nullif(p_call_traces[g.ord], ''),
        v_ids[g.ord], p_job_types[g.ord]
      from generate_series(1, case when p_call_traces is not null then v_count else 0 end) g(ord)
    ), queued as (
      insert into jobforge.ready (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no)
      select p_tenant_id, p_job_types[1], coalesce(p_priorities[g.ord], 2), enqueue_jobs.created_at, v_ids[g.ord], 0, 0
      from generate_series(1, v_count) g(ord)
    )
    insert into jobforge.jobs (tenant_id, id, job_type, job_version, trace_id, created_by, payload, is_dry_run, priority,
      max_attempts, timeout_ms, backoff_ms, max_backoff_ms, backoff_multiplier, run_at, created_at)
    select p_tenant_id, v_ids[g.ord], p_job_types[1], coalesce(p_job_versions[g.ord], '1'), p_trace_ids[g.ord],
      p_actor, p_payloads[g.ord]::jsonb,
      coalesce(p_dry_runs[g.ord], false), coalesce(p_priorities[g.ord], 2), coalesce(p_max_attempts[g.ord], 3),
      coalesce(p_timeout_ms[g.ord], 300000), coalesce(p_backoff_ms[g.ord], 1000), coalesce(p_max_backoff_ms[g.ord], 60000),
      coalesce(p_backoff_multipliers[g.ord], 2), enqueue_jobs.created_at, enqueue_jobs.created_at
    from generate_series(1, v_count) g(ord);
    if p_call_traces is null then
      insert into jobforge.audit_log (tenant_id, id, occurred_at, action, outcome, actor, token_id, tool, trace_id, detail)
      values (p_tenant_id, jobforge.new_id(), enqueue_jobs.created_at, 'enqueue', 'created', p_actor, p_token_id, p_tool, p_trace_id,
        jsonb_build_object('count', v_count, 'created', v_count));
    end if;
    return query
    select g.ord, v_ids[g.ord], 'created', 'queued', 2::bigint, enqueue_jobs.created_at, enqueue_jobs.created_at, null::uuid,
      null::timestamptz
    from generate_series(1, v_count) g(ord);
  end if;
  if not v_facts[1] then
    perform jobforge.touch_lanes(array[p_tenant_id], p_job_types[1:1]);
  end if;
  if v_facts[2] then
    perform jobforge.wake('ready');
  end if;
end $$;
comment on function jobforge.enqueue_jobs(text, text[], text[], text[], text[], text[], integer[], timestamptz[], text[], text[],
  text[], text[], integer[], integer[], float8[], integer[], integer[], boolean[], text, integer, boolean, uuid, integer[], text[],
  text[], text[], text, text, text, text, text, text) is
  'Commit jobs to be run, one row of answer for each: created, replayed or conflict.';

reset role;
