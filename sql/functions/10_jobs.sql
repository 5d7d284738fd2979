-- Enqueue jobs.
--
-- Called by jobforge_api, by applications inside their own transactions, by children, steps, bundles and triggers. Every
-- function belongs to jobforge_rpc, whose row policy admits the scope's tenant alone, and refuses a tenant that is not the
-- scope's. Locks: where limits apply check_policy takes its counters first; then idempotency_keys, then ordering_keys (both
-- in key order). Nothing here waits for a worker.

set local role jobforge_rpc;

-- One look-up by key for each: a join of an array with the view would read whole tables where statistics are missing.
create or replace function jobforge.states_of(p_tenant_id text, p_job_ids uuid[])
returns table (job_id uuid, status text, version bigint, run_at timestamptz, created_at timestamptz)
language plpgsql stable
set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_id uuid;
begin
  foreach v_id in array p_job_ids loop
    return query
    select r.job_id, r.status, r.version, r.run_at, r.created_at
    from jobforge.runs r where r.tenant_id = p_tenant_id and r.job_id = v_id;
  end loop;
end $$;
comment on function jobforge.states_of(text, uuid[]) is 'Status, version and times of runs by id.';

-- What every client can write down: drivers and calendars end elsewhere. Without a search_path of its own it is inlined.
create or replace function jobforge.is_due_time(p_run_at timestamptz) returns boolean
language sql immutable
as $$ select p_run_at >= '1970-01-01 00:00:00+00' and p_run_at < '10000-01-01 00:00:00+00' $$;
comment on function jobforge.is_due_time(timestamptz) is 'Whether a run may be due at a time: from 1970 to 9999, in UTC.';

-- How long past its timeout a job may keep a lease: the time its worker has to stop it.
-- Stable, as the sum of a time and an interval is: declared immutable it could not be inlined, and a claim of 200 jobs
-- would spend 2 ms in calls.
create or replace function jobforge.deadline_of(p_claimed_at timestamptz, p_timeout_ms integer) returns timestamptz
language sql stable
as $$ select p_claimed_at + (p_timeout_ms + 15000) * interval '1 millisecond' $$;
comment on function jobforge.deadline_of(timestamptz, integer) is 'Claim time plus timeout plus 15 s of grace.';

-- Hand one new job to a free slot of the caller's own pool instead of queueing it, when nothing of its lane waits.
drop function if exists jobforge.lease_new_job(text, uuid, text, integer);
create or replace function jobforge.lease_new_job(
  p_tenant_id text, p_job_id uuid, p_worker_id text, p_lease_ms integer, p_timeout_ms integer, p_now timestamptz)
returns uuid
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_lease_id uuid := pg_catalog.gen_random_uuid();
  v_deadline timestamptz := jobforge.deadline_of(p_now, p_timeout_ms);
begin
  insert into jobforge.leases
    (tenant_id, lease_id, worker_id, is_suspect, claimed_at, lease_until, overdue_at, job_ids, epochs, attempt_nos, deadlines)
  values (p_tenant_id, v_lease_id, p_worker_id, false, p_now, p_now + p_lease_ms * interval '1 millisecond', v_deadline,
    array[p_job_id], array[1], array[1::smallint], array[v_deadline]);
  return v_lease_id;
end $$;
comment on function jobforge.lease_new_job(text, uuid, text, integer, integer, timestamptz) is 'Insert a new job''s first lease directly.';

-- What a call may do is looked up once, in one statement; then one job takes the short way, several go in one statement per
-- step, whatever their number. Null arrays and null elements mean the default. A lane type says that the job is one of a
-- registered definition, of the version given with it. Plans are kept: knowing that an array has one element makes a plan
-- look so much better that the planner would run at every call, for a third of its time. Traces of calls say that each job
-- is a call of its own, which came together with the others: each is audited by itself.
drop function if exists jobforge.enqueue_jobs(text, text[], text[], text[], text[], text[], integer[], timestamptz[], text[], text[],
  text[], text[], integer[], integer[], float8[], integer[], integer[], boolean[], text, integer, boolean, uuid, integer[], text[]);
drop function if exists jobforge.enqueue_jobs(text, text[], text[], text[], text[], text[], integer[], timestamptz[], text[], text[],
  text[], text[], integer[], integer[], float8[], integer[], integer[], boolean[], text, integer, boolean, uuid, integer[], text[],
  text[]);
drop function if exists jobforge.enqueue_jobs(text, text[], text[], text[], text[], text[], integer[], timestamptz[], text[], text[],
  text[], text[], integer[], integer[], float8[], integer[], integer[], boolean[], text, integer, boolean, uuid);
create or replace function jobforge.enqueue_any_jobs(
  p_tenant_id text, p_job_types text[], p_payloads text[], p_received text[] default null,
  p_idempotency_keys text[] default null, p_ordering_keys text[] default null, p_priorities integer[] default null,
  p_run_ats timestamptz[] default null, p_project_ids text[] default null, p_labels text[] default null,
  p_trace_ids text[] default null, p_job_versions text[] default null, p_max_attempts integer[] default null,
  p_backoff_ms integer[] default null, p_backoff_multipliers float8[] default null, p_max_backoff_ms integer[] default null,
  p_timeout_ms integer[] default null, p_dry_runs boolean[] default null, p_worker_id text default null,
  p_lease_ms integer default 30000, p_is_plan boolean default false, p_parent_id uuid default null,
  p_costs integer[] default null, p_lane_types text[] default null, p_claim_limits text[] default null,
  p_call_traces text[] default null, p_claims jsonb default null)
returns table (ord integer, job_id uuid, outcome text, status text, version bigint, run_at timestamptz,
  created_at timestamptz, lease_id uuid, lease_until timestamptz)
language plpgsql volatile
set search_path = jobforge, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
  v_count integer := cardinality(p_job_types);
  v_claims jsonb;
  v_confinement jsonb;
  v_is_revoked boolean;
  v_is_limited boolean;
  v_may_lease boolean;
  v_is_awake boolean;
  v_use record;
  v_counters text[];
  v_ids uuid[];
  v_new_ids uuid[];
  v_ordered_ids uuid[];
  v_outcomes text[];
  v_found_ids uuid[];
  v_is_due boolean;
  v_lanes text[] := p_job_types;
begin
  v_claims := coalesce(p_claims, jobforge.require_claims(p_tenant_id));
  if v_claims ? 'projects' then
    perform jobforge.require_projects(p_project_ids, v_count);
  end if;
  if v_count is distinct from cardinality(p_payloads) or v_count not between 1 and 10000 or array_position(p_payloads, null) is not null then
    raise exception 'enqueue needs as many payloads as job types, 1 to 10,000 of each, and none may be missing' using errcode = 'JF400';
  end if;
  if v_count > 1 or (p_job_types[1] ~ '^[a-z0-9][a-z0-9._-]{0,99}$') is not true
    or num_nonnulls(p_project_ids, p_ordering_keys, p_trace_ids, p_job_versions, p_labels, p_priorities, p_max_attempts, p_timeout_ms,
      p_backoff_ms, p_max_backoff_ms, p_backoff_multipliers, p_run_ats, p_costs) > 0
  then
    perform jobforge.require_fitting_jobs(p_job_types, p_project_ids, p_ordering_keys, p_trace_ids, p_job_versions, p_labels,
      p_priorities, p_max_attempts, p_timeout_ms, p_backoff_ms, p_max_backoff_ms, p_backoff_multipliers, p_run_ats, p_costs);
  end if;
  -- one expression less is a microsecond less: each is made ready anew in every transaction
  if v_count > 1 or p_received is not null or octet_length(p_payloads[1]) > 1048576 or octet_length(p_labels[1]) > 16384
    or p_payloads[1] || coalesce(p_labels[1], '') ~ '[0-9][eE][+-]?0*[1-9][0-9]'
    or (octet_length(p_payloads[1]) + coalesce(octet_length(p_labels[1]), 0) >= 200
      and p_payloads[1] || coalesce(p_labels[1], '') ~ '[0-9]{200}')
  then
    perform jobforge.require_small_json(p_payloads, 1048576, 'an input'),
      jobforge.require_small_json(p_received, 1048576, 'an input'),
      jobforge.require_small_json(p_labels, 16384, 'a set of labels');
  end if;
  if p_parent_id is not null or p_lane_types is not null or p_claim_limits is not null
    or v_claims ?| array['jobTypes', 'denyTypes', 'events', 'once']
  then
    if p_parent_id is not null and (v_claims <> '{}' or pg_catalog.current_setting('jobforge.actor', true) <> 'job:' || p_parent_id) then
      perform jobforge.note_refusal();
      raise exception 'only a run itself enqueues its children' using errcode = 'JF403',
        hint = 'Enqueue from the handler of the run; what a child may be and use is what its run may.';
    end if;
    if p_parent_id is not null or v_claims ?| array['jobTypes', 'denyTypes', 'events'] then
      v_confinement := jobforge.require_types(p_tenant_id, p_job_types, p_parent_id, p_lane_types);
    end if;
    if p_lane_types is not null then
      v_lanes := jobforge.require_definitions(p_tenant_id, p_job_types, p_job_versions, p_lane_types);
    end if;
    if p_is_plan is not true and v_claims ? 'once' and current_setting('jobforge.token_id', true) <> '' then
      perform jobforge.use_token();
    end if;
    if array_remove(p_claim_limits, null) = '{}' then
      p_claim_limits := null;
    end if;
  end if;
  -- all that a plain call asks of the tables
  select v_claims ? 'jti' and exists (select from jobforge.revocations(p_tenant_id, v_claims)),
    v_claims ? 'limits' or exists (select from jobforge.rate_limits l where l.tenant_id = p_tenant_id)
  into v_is_revoked, v_is_limited;
  if v_is_revoked then
    perform jobforge.require_living_token(p_tenant_id, v_claims);
  end if;
  if p_parent_id is not null and not v_is_limited then
    v_is_limited := exists (select from jobforge.limited_jobs t where t.tenant_id = p_tenant_id and t.job_id = p_parent_id);
  end if;
  if v_is_limited then
    if p_parent_id is null and p_is_plan is not true and (v_count = 1
      or (p_costs is null and p_idempotency_keys is null and p_job_types[1] = all (p_job_types)))
    then
      v_use := jobforge.count_jobs(p_tenant_id, v_claims, v_now, p_job_types, p_payloads, p_priorities, p_costs);
      if v_use.is_in_doubt or (v_use.counted is not null and p_idempotency_keys[1] is not null) then
        v_counters := jobforge.check_policy(p_tenant_id, 'enqueue', p_job_types, p_payloads, p_priorities, p_project_ids,
          p_idempotency_keys, null, false, p_costs, v_use.counted, v_use.tracked, v_use.is_in_doubt);
      else
        v_counters := v_use.tracked;
      end if;
    else
      v_counters := jobforge.check_policy(p_tenant_id, 'enqueue', p_job_types, p_payloads, p_priorities, p_project_ids,
        p_idempotency_keys, p_parent_id, p_is_plan, p_costs);
    end if;
  end if;
  if p_claim_limits is not null then
    perform jobforge.require_claim_limits(p_claim_limits);
  end if;
  -- Not leased but queued where a claim has to say whether it may run now, and where something of its lane is due.
  v_may_lease := p_worker_id is not null and v_count = 1 and p_is_plan is not true and p_ordering_keys[1] is null and p_claim_limits is null
    and coalesce(p_run_ats[1], v_now) <= v_now;
  if v_may_lease then
    v_may_lease := not exists (select from jobforge.running_limits r where r.tenant_id = p_tenant_id)
      and not exists (select from jobforge.pauses p where p.tenant_id = p_tenant_id)
      and not exists (
        select from (values (0::smallint), (1::smallint), (2::smallint), (3::smallint)) p(priority)
        cross join lateral (
          select from jobforge.ready r
          where r.tenant_id = p_tenant_id and r.job_type = v_lanes[1] and r.priority = p.priority and r.run_at <= v_now
          limit 1) d);
  end if;

  if v_count = 1 and p_is_plan is not true and p_ordering_keys[1] is null and p_claim_limits is null then
    job_id := jobforge.new_id();
    if p_idempotency_keys[1] is not null then
      select k.job_id, k.outcome into job_id, outcome
      from jobforge.claim_idempotency_key(p_tenant_id, enqueue_any_jobs.job_id, p_project_ids[1], p_job_types[1], p_idempotency_keys[1],
        sha256(convert_to((coalesce(p_received[1], p_payloads[1])::jsonb)::text, 'UTF8'))) k;
      if outcome <> 'created' then
        perform jobforge.record_audit(p_tenant_id, 'enqueue', outcome, job_id, p_job_types[1]);
        ord := 1;
        select r.status, r.version, r.run_at, r.created_at into status, version, run_at, created_at
        from jobforge.states_of(p_tenant_id, array[enqueue_any_jobs.job_id]) r;
        return next;
        return;
      end if;
    end if;
    run_at := coalesce(p_run_ats[1], v_now);
    with audited as (
      insert into jobforge.audit_log (tenant_id, id, occurred_at, action, outcome, actor, token_id, tool, trace_id, job_id, job_type)
      values (p_tenant_id, enqueue_any_jobs.job_id, v_now, 'enqueue', 'created',
        nullif(pg_catalog.current_setting('jobforge.actor', true), ''),
        nullif(pg_catalog.current_setting('jobforge.token_id', true), ''),
        nullif(pg_catalog.current_setting('jobforge.tool', true), ''),
        nullif(pg_catalog.current_setting('jobforge.trace_id', true), ''), enqueue_any_jobs.job_id, p_job_types[1])
    ), queued as (
      insert into jobforge.ready (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no, own_type)
      select p_tenant_id, v_lanes[1], coalesce(p_priorities[1], 2), enqueue_any_jobs.run_at, enqueue_any_jobs.job_id, 0, 0,
        case when p_lane_types[1] is not null then p_job_types[1] end
      where not v_may_lease
    ), made as (
      insert into jobforge.jobs (tenant_id, id, job_type, job_version, project_id, parent_id, trace_id, created_by, labels, payload,
        is_dry_run, priority, max_attempts, timeout_ms, backoff_ms, max_backoff_ms, backoff_multiplier, run_at, created_at, cost,
        confinement, lane_type)
      values (p_tenant_id, enqueue_any_jobs.job_id, p_job_types[1], coalesce(p_job_versions[1], '1'), p_project_ids[1], p_parent_id,
        p_trace_ids[1], nullif(pg_catalog.current_setting('jobforge.actor', true), ''), p_labels[1]::jsonb, p_payloads[1]::jsonb,
        coalesce(p_dry_runs[1], false), coalesce(p_priorities[1], 2), coalesce(p_max_attempts[1], 3),
        coalesce(p_timeout_ms[1], 300000), coalesce(p_backoff_ms[1], 1000), coalesce(p_max_backoff_ms[1], 60000),
        coalesce(p_backoff_multipliers[1], 2), enqueue_any_jobs.run_at, v_now, p_costs[1], v_confinement, p_lane_types[1])
    )
    select exists (select from jobforge.lanes n
      where n.tenant_id = p_tenant_id and n.job_type = v_lanes[1] and n.seen_at > v_now - interval '10 seconds')
    into v_is_awake;
    if cardinality(v_counters) = 1 and p_parent_id is null then
      insert into jobforge.limited_jobs (tenant_id, job_id, counter, tracked_at, token_limits)
      values (p_tenant_id, enqueue_any_jobs.job_id, v_counters[1], v_now,
        case when v_counters[1] like 'token:%' then v_claims -> 'limits' end);
    elsif v_counters is not null then
      perform jobforge.track_jobs(p_tenant_id, array[job_id], p_job_types, array[job_id], v_counters, p_parent_id);
    end if;
    if v_may_lease then
      lease_id := jobforge.lease_new_job(p_tenant_id, job_id, p_worker_id, p_lease_ms, coalesce(p_timeout_ms[1], 300000), v_now);
      lease_until := v_now + p_lease_ms * interval '1 millisecond';
      if p_lease_ms < 6000 then
        perform jobforge.wake('ready');  -- else who rests does not know when it ends
      end if;
    else
      if not v_is_awake then
        perform jobforge.touch_lanes(array[p_tenant_id], v_lanes);
      end if;
      if run_at <= v_now + interval '6 seconds' then  -- longer than workers rest who know of nothing
        perform jobforge.wake('ready');
      end if;
    end if;
    ord := 1;
    outcome := 'created';
    status := case when lease_id is null then 'queued' else 'running' end;
    version := case when lease_id is null then 2 else 4 end;
    created_at := v_now;
    return next;
    return;
  end if;

  -- in order of their places, on every version of Postgres: runs that depend on others are locked in that order
  v_ids := jobforge.new_ids(v_count);
  if exists (select from unnest(p_idempotency_keys) u(key) where u.key is not null) then
    if p_is_plan then  -- read what is there, take nothing
      select array_agg(case when k.job_id is null then 'created' when k.input_hash = h.hash then 'replayed' else 'conflict' end order by u.ord),
        array_agg(coalesce(k.job_id, u.id) order by u.ord)
      into v_outcomes, v_found_ids
      from unnest(v_ids, p_project_ids, p_job_types, p_idempotency_keys, p_payloads, p_received) with ordinality
        u(id, project_id, job_type, idempotency_key, payload, received, ord)
      cross join lateral (select sha256(convert_to((coalesce(u.received, u.payload)::jsonb)::text, 'UTF8')) as hash) h
      left join jobforge.idempotency_keys k on k.tenant_id = p_tenant_id and k.project_id = case when u.project_id is null then '' else u.project_id end
        and k.job_type = u.job_type and k.idempotency_key = u.idempotency_key and k.expires_at > v_now;
    else
      select array_agg(coalesce(k.outcome, 'created') order by u.ord), array_agg(coalesce(k.job_id, u.id) order by u.ord)
      into v_outcomes, v_found_ids
      from unnest(v_ids) with ordinality u(id, ord)
      left join jobforge.claim_idempotency_keys(p_tenant_id, v_ids, p_project_ids, p_job_types, p_idempotency_keys,
        array(select case when u.key is not null
                  then sha256(convert_to((coalesce(u.received, u.payload)::jsonb)::text, 'UTF8')) end
              from unnest(p_idempotency_keys, p_payloads, p_received) with ordinality u(key, payload, received, ord)
              order by u.ord)) k on k.ord = u.ord;
    end if;
  end if;

  if p_is_plan then
    perform jobforge.record_audit(p_tenant_id, 'enqueue', 'planned', null, p_job_types[1], jsonb_build_object('count', v_count));
    return query
    select u.ord::integer, case when u.outcome <> 'created' then u.id end, coalesce(u.outcome, 'created'), r.status, r.version,
      coalesce(r.run_at, u.run_at, v_now), r.created_at, null::uuid, null::timestamptz
    from unnest(p_job_types, v_outcomes, v_found_ids, p_run_ats) with ordinality u(job_type, outcome, id, run_at, ord)
    left join jobforge.states_of(p_tenant_id, array(
      select distinct x.id from unnest(v_found_ids, v_outcomes) x(id, outcome) where x.outcome <> 'created')) r on r.job_id = u.id
    order by u.ord;
    return;
  end if;

  if p_claim_limits is not null then
    p_run_ats := jobforge.debounce_jobs(p_tenant_id, v_ids, p_job_types, p_claim_limits, v_outcomes, p_run_ats);
  end if;
  -- Elements are asked for by their place, which costs nothing where an array is null; unnesting twenty would.
  with made as (
    insert into jobforge.jobs (tenant_id, id, job_type, job_version, project_id, parent_id, ordering_key, trace_id,
      created_by, labels, payload, is_dry_run, priority, max_attempts, timeout_ms, backoff_ms, max_backoff_ms,
      backoff_multiplier, run_at, created_at, cost, confinement, lane_type, slot_key, slot_limit, rate_key, rate_limit, rate_period_ms)
    select p_tenant_id, v_ids[g.ord], p_job_types[g.ord], coalesce(p_job_versions[g.ord], '1'), p_project_ids[g.ord], p_parent_id,
      p_ordering_keys[g.ord], p_trace_ids[g.ord], nullif(pg_catalog.current_setting('jobforge.actor', true), ''),
      p_labels[g.ord]::jsonb, p_payloads[g.ord]::jsonb, coalesce(p_dry_runs[g.ord], false), coalesce(p_priorities[g.ord], 2),
      coalesce(p_max_attempts[g.ord], 3), coalesce(p_timeout_ms[g.ord], 300000), coalesce(p_backoff_ms[g.ord], 1000),
      coalesce(p_max_backoff_ms[g.ord], 60000), coalesce(p_backoff_multipliers[g.ord], 2), coalesce(p_run_ats[g.ord], v_now), v_now,
      p_costs[g.ord], v_confinement, p_lane_types[g.ord], c.slot_key, c.slot_limit, c.rate_key, c.rate_limit, c.rate_period_ms
    from generate_series(1, v_count) g(ord)
    cross join lateral jobforge.read_claim_limits(p_job_types[g.ord], p_claim_limits[g.ord]::jsonb) c
    where v_outcomes is null or v_outcomes[g.ord] = 'created'
  ), queued as (
    insert into jobforge.ready (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no, own_type)
    select p_tenant_id, v_lanes[g.ord], coalesce(p_priorities[g.ord], 2), coalesce(p_run_ats[g.ord], v_now), v_ids[g.ord], 0, 0,
      case when p_lane_types[g.ord] is not null then p_job_types[g.ord] end
    from generate_series(1, v_count) g(ord)
    where (v_outcomes is null or v_outcomes[g.ord] = 'created') and p_ordering_keys[g.ord] is null
  ), audited as (
    insert into jobforge.audit_log (tenant_id, id, occurred_at, action, outcome, actor, token_id, tool, trace_id, job_id, job_type)
    select p_tenant_id, v_ids[g.ord], v_now, 'enqueue', coalesce(v_outcomes[g.ord], 'created'),
      -- in sub-selects, which are worked out once and not for each row
      (select nullif(pg_catalog.current_setting('jobforge.actor', true), '')),
      (select nullif(pg_catalog.current_setting('jobforge.token_id', true), '')),
      (select nullif(pg_catalog.current_setting('jobforge.tool', true), '')), nullif(p_call_traces[g.ord], ''),
      coalesce(v_found_ids[g.ord], v_ids[g.ord]), p_job_types[g.ord]
    from generate_series(1, case when p_call_traces is not null then v_count else 0 end) g(ord)
  )
  select exists (select from jobforge.lanes n
    where n.tenant_id = p_tenant_id and n.job_type = v_lanes[1] and n.seen_at > v_now - interval '10 seconds')
  into v_is_awake;
  v_new_ids := v_ids;
  v_is_due := p_run_ats is null;
  if v_outcomes is not null or p_ordering_keys is not null or not v_is_due then
    select array_agg(v_ids[g.ord] order by g.ord),
      array_agg(v_ids[g.ord] order by g.ord) filter (where p_ordering_keys[g.ord] is not null),
      bool_or(coalesce(p_run_ats[g.ord], v_now) <= v_now + interval '6 seconds')
    into v_new_ids, v_ordered_ids, v_is_due
    from generate_series(1, v_count) g(ord)
    where v_outcomes is null or v_outcomes[g.ord] = 'created';
  end if;

  if v_new_ids is not null and cardinality(v_counters) = 1 and p_parent_id is null and v_counters[1] not like 'type:%' then
    insert into jobforge.limited_jobs (tenant_id, job_id, counter, tracked_at, token_limits)
    select p_tenant_id, u.id, v_counters[1], v_now, (select case when v_counters[1] like 'token:%' then v_claims -> 'limits' end)
    from unnest(v_new_ids) u(id);
  elsif v_counters is not null and v_new_ids is not null then
    perform jobforge.track_jobs(p_tenant_id, v_ids, p_job_types, v_new_ids, v_counters, p_parent_id);
  end if;
  if p_claim_limits is not null and v_new_ids is not null
    and not exists (select from jobforge.limited_tenants t where t.tenant_id = p_tenant_id)
  then
    insert into jobforge.limited_tenants (tenant_id, job_id) values (p_tenant_id, v_new_ids[1]);
  end if;
  if v_ordered_ids is not null then
    perform jobforge.join_ordering_keys(p_tenant_id, v_ordered_ids);
  end if;
  if p_claim_limits is not null then
    v_ordered_ids := v_ordered_ids || jobforge.debounce_within(p_tenant_id, v_ids, p_job_types, p_claim_limits, v_outcomes);
  end if;

  if v_new_ids is not null then
    -- jobs of one bulk are mostly of one lane
    if v_lanes[1] = all (v_lanes) then
      v_lanes := v_lanes[1:1];
    else
      v_lanes := array(select distinct l.lane from unnest(v_lanes) l(lane));
    end if;
    if not v_is_awake or cardinality(v_lanes) > 1 then
      perform jobforge.touch_lanes(array_fill(p_tenant_id, array[cardinality(v_lanes)]), v_lanes);
    end if;
    if v_is_due then
      perform jobforge.wake('ready');
    end if;
  end if;
  if p_call_traces is null then
    perform jobforge.record_audit(p_tenant_id, 'enqueue', case when v_new_ids is null then v_outcomes[1] else 'created' end,
      case when v_count = 1 then coalesce(v_found_ids[1], v_ids[1]) end, case when v_count = 1 then p_job_types[1] end,
      case when v_count > 1 then jsonb_build_object('count', v_count, 'created', coalesce(cardinality(v_new_ids), 0)) end);
  end if;

  -- what was made just now is known; only what was there before is read
  if v_outcomes is null and v_ordered_ids is null then
    return query
    select g.ord, v_ids[g.ord], 'created', 'queued', 2::bigint, coalesce(p_run_ats[g.ord], v_now), v_now, null::uuid, null::timestamptz
    from generate_series(1, v_count) g(ord);
    return;
  end if;
  return query
  select u.ord::integer, u.id, coalesce(u.outcome, 'created'), coalesce(r.status, 'queued'), coalesce(r.version, 2),
    coalesce(r.run_at, u.run_at, v_now), coalesce(r.created_at, v_now), null::uuid, null::timestamptz
  from unnest(coalesce(v_found_ids, v_ids), v_outcomes, p_run_ats) with ordinality u(id, outcome, run_at, ord)
  left join jobforge.states_of(p_tenant_id, array(
    select x.id from unnest(v_found_ids, v_outcomes) x(id, outcome) where x.outcome <> 'created'
    union
    select x.id from unnest(v_ordered_ids) x(id))) r on r.job_id = u.id
  order by u.ord;
end $$;
comment on function jobforge.enqueue_any_jobs(text, text[], text[], text[], text[], text[], integer[], timestamptz[], text[], text[],
  text[], text[], integer[], integer[], float8[], integer[], integer[], boolean[], text, integer, boolean, uuid, integer[], text[],
  text[], text[], jsonb) is
  'What enqueue_jobs does with jobs of which there is more to ask.';

-- A registered job runs in the version that new runs get, or in the one that is named, and with what its definition says
-- where the caller says nothing.
create or replace function jobforge.enqueue_job(
  p_tenant_id text, p_job_type text, p_payload jsonb default '{}', p_idempotency_key text default null,
  p_ordering_key text default null, p_priority integer default 2, p_run_at timestamptz default null,
  p_project_id text default null, p_labels jsonb default null, p_trace_id text default null,
  p_job_version text default null, p_max_attempts integer default null, p_backoff_ms integer default null,
  p_backoff_multiplier float8 default null, p_max_backoff_ms integer default null, p_timeout_ms integer default null)
returns table (job_id uuid, outcome text, status text, version bigint, run_at timestamptz, created_at timestamptz)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_problem text;
  v_job record;
  v_payload text := p_payload::text;
begin
  perform jobforge.require_tenant(p_tenant_id);
  v_problem := case
    when p_job_type like 'jobforge.%' then 'jobforge is the beginning of names that nobody enqueues'
    when octet_length(p_idempotency_key) not between 1 and 255 then 'an idempotency key has 1 to 255 bytes'
    -- what a worker could not read, or not as it was written; few inputs get past the first half of either question
    when octet_length(v_payload) - octet_length(translate(v_payload, '[{', '')) > 64
      and jsonb_path_exists(p_payload, 'strict $.**{64} ? (@.type() == "array" || @.type() == "object")')
      then 'an input is nested at most 64 deep'
    when v_payload ~ '[0-9]{16}' and jsonb_path_exists(p_payload, 'strict $.** ? (@.type() == "number" && @ == @.floor()
        && (@ > 9007199254740992 || @ < -9007199254740992))')
      then 'an integer in an input is from -2^53 to 2^53: send larger ones as text'
  end;
  if v_problem is not null then
    raise exception '%', v_problem using errcode = 'JF400', hint = 'Nothing was enqueued: correct the value.';
  end if;
  perform jobforge.refuse_keys('the input', v_payload),
    jobforge.refuse_keys('a label or key', concat_ws(' ', p_labels::text, p_idempotency_key, p_ordering_key, p_trace_id));
  if exists (select from jobforge.registered_jobs r where r.tenant_id = p_tenant_id and r.job_type = p_job_type) then
    perform jobforge.require_types(p_tenant_id, array[p_job_type]);  -- before anything is told of it
    select * into v_job from jobforge.resolve_job(p_tenant_id, p_job_type, p_job_version, p_payload, p_idempotency_key);
    perform jobforge.require_startable(v_job.lane_type, p_idempotency_key);  -- what its handler asks for
    return query
    select e.job_id, e.outcome, e.status, e.version, e.run_at, e.created_at
    from jobforge.enqueue_jobs(p_tenant_id, array[p_job_type], array[v_payload], null, array[p_idempotency_key],
      array[p_ordering_key], array[p_priority], array[p_run_at], array[p_project_id], array[p_labels::text],
      array[p_trace_id], array[v_job.job_version], array[coalesce(p_max_attempts, v_job.max_attempts)],
      array[coalesce(p_backoff_ms, v_job.backoff_ms)], array[coalesce(p_backoff_multiplier, v_job.backoff_multiplier)],
      array[coalesce(p_max_backoff_ms, v_job.max_backoff_ms)], array[coalesce(p_timeout_ms, v_job.timeout_ms)],
      p_costs => array[v_job.unit_cost], p_lane_types => array[v_job.lane_type], p_claim_limits => array[v_job.claim_limits]) e;
    return;
  end if;
  return query
  select e.job_id, e.outcome, e.status, e.version, e.run_at, e.created_at
  from jobforge.enqueue_jobs(p_tenant_id, array[p_job_type], array[v_payload], null, array[p_idempotency_key],
    array[p_ordering_key], array[p_priority], array[p_run_at], array[p_project_id], array[p_labels::text],
    array[p_trace_id], array[p_job_version], array[p_max_attempts], array[p_backoff_ms], array[p_backoff_multiplier],
    array[p_max_backoff_ms], array[p_timeout_ms],
    p_costs => array[jobforge.require_startable(p_job_type, p_idempotency_key)]) e;
end $$;
comment on function jobforge.enqueue_job(text, text, jsonb, text, text, integer, timestamptz, text, jsonb, text, text, integer,
  integer, float8, integer, integer) is
  'Commit one job to be run; inside an application''s own transaction it exists if and only if that commits.';

reset role;
