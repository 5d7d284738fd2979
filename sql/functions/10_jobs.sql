-- Enqueue, read, cancel, retry and explain jobs: what callers may do.
--
-- Called by jobforge_api, by applications inside their own transactions, and by enqueue_child. Every function belongs to
-- jobforge_rpc, whose row policy admits the scope's tenant alone, and refuses a tenant that is not the scope's.
-- Locks: where limits apply check_policy takes its counters first; enqueue takes idempotency_keys, then ordering_keys (both in key order); cancel and retry take the job's place,
-- then jobs, then ordering_keys. Nothing here waits for a worker.

set local role jobforge_rpc;

-- Put new or revived jobs of an ordering key in line. The row of the key is locked until commit, so turns follow commit
-- order; without that lock a job enqueued later but committed first would start first.
create or replace function jobforge.join_ordering_keys(p_tenant_id text, p_job_ids uuid[]) returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_key record;
begin
  for v_key in
    select j.ordering_key, array_agg(j.id order by a.place) as job_ids
    from unnest(p_job_ids) with ordinality a(job_id, place)
    join jobforge.jobs j on j.tenant_id = p_tenant_id and j.id = a.job_id
    where j.ordering_key is not null
    group by j.ordering_key
    order by j.ordering_key
  loop
    insert into jobforge.ordering_keys as k (tenant_id, ordering_key, head_job_id, next_turn)
    values (p_tenant_id, v_key.ordering_key, v_key.job_ids[1], 0)
    on conflict (tenant_id, ordering_key) do update set next_turn = k.next_turn;

    -- the head goes to ready, the others take the next turns
    with key_row as (
      select k.head_job_id, k.next_turn from jobforge.ordering_keys k
      where k.tenant_id = p_tenant_id and k.ordering_key = v_key.ordering_key
    ), placed as (
      select j.*, k.head_job_id, k.next_turn + a.place - 1 as turn
      from unnest(v_key.job_ids) with ordinality a(job_id, place)
      join jobforge.jobs j on j.tenant_id = p_tenant_id and j.id = a.job_id
      cross join key_row k
    ), heads as (
      insert into jobforge.ready (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no, own_type)
      select p.tenant_id, coalesce(p.lane_type, p.job_type), p.priority, p.run_at, p.id, p.epoch, p.attempt_no,
        case when p.lane_type is not null then p.job_type end
      from placed p where p.id = p.head_job_id
    )
    insert into jobforge.waiting (tenant_id, job_id, waiting_for, ordering_key, turn, epoch, attempt_no)
    select p.tenant_id, p.id, 'turn', p.ordering_key, p.turn, p.epoch, p.attempt_no
    from placed p where p.id <> p.head_job_id;

    update jobforge.ordering_keys k set next_turn = k.next_turn + cardinality(v_key.job_ids)
    where k.tenant_id = p_tenant_id and k.ordering_key = v_key.ordering_key;
  end loop;
end $$;
comment on function jobforge.join_ordering_keys(text, uuid[]) is 'Put jobs in line behind the head of their ordering keys.';

-- Give each idempotency key to the first job that asks for it. Two callers with one key meet on the row: the second waits
-- for the first's commit and then finds it. Keys are taken in one order, so that two bulk calls cannot deadlock.
create or replace function jobforge.claim_idempotency_keys(
  p_tenant_id text, p_job_ids uuid[], p_project_ids text[], p_job_types text[], p_keys text[], p_hashes bytea[])
returns table (ord integer, job_id uuid, outcome text)
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
begin
  insert into jobforge.idempotency_keys as k
    (tenant_id, project_id, job_type, idempotency_key, job_id, input_hash, created_at, expires_at)
  select distinct on (2, 3, 4) p_tenant_id, coalesce(u.project_id, ''), u.job_type, u.idempotency_key, u.job_id, u.input_hash,
    v_now, v_now + interval '30 days'
  from unnest(p_job_ids, p_project_ids, p_job_types, p_keys, p_hashes) with ordinality
    u(job_id, project_id, job_type, idempotency_key, input_hash, ord)
  where u.idempotency_key is not null
  order by 2, 3, 4, u.ord
  on conflict (tenant_id, project_id, job_type, idempotency_key) do update
    set job_id = excluded.job_id, input_hash = excluded.input_hash, created_at = excluded.created_at,
      expires_at = excluded.expires_at
    where k.expires_at <= v_now;

  -- a statement of its own, so that it sees what others committed while the insert waited for them
  return query
  select u.ord::integer, k.job_id,
    case when k.job_id = u.job_id then 'created' when k.input_hash = u.input_hash then 'replayed' else 'conflict' end
  from unnest(p_job_ids, p_project_ids, p_job_types, p_keys, p_hashes) with ordinality
    u(job_id, project_id, job_type, idempotency_key, input_hash, ord)
  join jobforge.idempotency_keys k on k.tenant_id = p_tenant_id and k.project_id = coalesce(u.project_id, '')
    and k.job_type = u.job_type and k.idempotency_key = u.idempotency_key;
end $$;
comment on function jobforge.claim_idempotency_keys(text, uuid[], text[], text[], text[], bytea[]) is
  'Take idempotency keys for new jobs, and tell which were taken before and by which job.';

-- The same for one job. Who comes second waits for the first at the row, and then reads it in a statement of its own.
create or replace function jobforge.claim_idempotency_key(
  p_tenant_id text, p_job_id uuid, p_project_id text, p_job_type text, p_key text, p_hash bytea,
  out job_id uuid, out outcome text)
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
begin
  loop
    insert into jobforge.idempotency_keys as k
      (tenant_id, project_id, job_type, idempotency_key, job_id, input_hash, created_at, expires_at)
    values (p_tenant_id, coalesce(p_project_id, ''), p_job_type, p_key, p_job_id, p_hash, v_now, v_now + interval '30 days')
    on conflict (tenant_id, project_id, job_type, idempotency_key) do update
      set job_id = excluded.job_id, input_hash = excluded.input_hash, created_at = excluded.created_at,
        expires_at = excluded.expires_at
      where k.expires_at <= v_now;
    if found then
      job_id := p_job_id;
      outcome := 'created';
      return;
    end if;
    select k.job_id, case when k.input_hash = p_hash then 'replayed' else 'conflict' end into job_id, outcome
    from jobforge.idempotency_keys k
    where k.tenant_id = p_tenant_id and k.project_id = coalesce(p_project_id, '') and k.job_type = p_job_type
      and k.idempotency_key = p_key;
    exit when found;  -- not found: it was forgotten in between, and is free
  end loop;
end $$;
comment on function jobforge.claim_idempotency_key(text, uuid, text, text, text, bytea) is
  'Take an idempotency key for a new job, or tell which job took it before.';

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
create or replace function jobforge.enqueue_jobs(
  p_tenant_id text, p_job_types text[], p_payloads text[], p_received text[] default null,
  p_idempotency_keys text[] default null, p_ordering_keys text[] default null, p_priorities integer[] default null,
  p_run_ats timestamptz[] default null, p_project_ids text[] default null, p_labels text[] default null,
  p_trace_ids text[] default null, p_job_versions text[] default null, p_max_attempts integer[] default null,
  p_backoff_ms integer[] default null, p_backoff_multipliers float8[] default null, p_max_backoff_ms integer[] default null,
  p_timeout_ms integer[] default null, p_dry_runs boolean[] default null, p_worker_id text default null,
  p_lease_ms integer default 30000, p_is_plan boolean default false, p_parent_id uuid default null,
  p_costs integer[] default null, p_lane_types text[] default null, p_claim_limits text[] default null,
  p_call_traces text[] default null)
returns table (ord integer, job_id uuid, outcome text, status text, version bigint, run_at timestamptz,
  created_at timestamptz, lease_id uuid, lease_until timestamptz)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
  v_count integer := cardinality(p_job_types);
  v_claims jsonb;
  v_confinement jsonb;
  v_is_limited boolean;
  v_may_lease boolean;
  v_is_awake boolean;
  v_counters text[];
  v_ids uuid[];
  v_new_ids uuid[];
  v_ordered_ids uuid[];
  v_outcomes text[];
  v_found_ids uuid[];
  v_is_due boolean;
  v_lanes text[] := p_job_types;
begin
  perform jobforge.require_tenant(p_tenant_id);
  v_claims := coalesce(nullif(pg_catalog.current_setting('jobforge.claims', true), ''), '{}')::jsonb;  -- as current_claims, without its call
  if v_claims ? 'projects' then
    perform jobforge.require_projects(p_project_ids, v_count);
  end if;
  if v_count is distinct from cardinality(p_payloads) or v_count not between 1 and 10000 or array_position(p_payloads, null) is not null then
    raise exception 'enqueue needs as many payloads as job types, 1 to 10,000 of each, and none may be missing' using errcode = 'JF400';
  end if;
  -- one expression less is a microsecond less: each is made ready anew in every transaction
  if v_count > 1 or p_received is not null or octet_length(p_payloads[1]) > 1048576 or octet_length(p_labels[1]) > 16384
    or p_payloads[1] || coalesce(p_labels[1], '') ~ '[0-9][eE][+-]?0*[1-9][0-9]|[0-9]{200}'
  then
    perform jobforge.require_small_json(p_payloads, 1048576, 'an input'),
      jobforge.require_small_json(p_received, 1048576, 'an input'),
      jobforge.require_small_json(p_labels, 16384, 'a set of labels');
  end if;
  if p_parent_id is not null or p_lane_types is not null or p_claim_limits is not null
    or v_claims ?| array['jobTypes', 'denyTypes', 'once']
  then
    if p_parent_id is not null or v_claims ?| array['jobTypes', 'denyTypes'] then
      v_confinement := jobforge.require_types(p_tenant_id, p_job_types, p_parent_id);
    end if;
    if p_lane_types is not null then
      v_lanes := jobforge.require_definitions(p_tenant_id, p_job_types, p_job_versions, p_lane_types);
    end if;
    if not p_is_plan and v_claims ? 'once' and current_setting('jobforge.token_id', true) <> '' then
      perform jobforge.use_token();
    end if;
    if array_remove(p_claim_limits, null) = '{}' then
      p_claim_limits := null;
    end if;
  end if;
  -- all that a plain call asks of the tables
  select v_claims ? 'limits' or exists (select from jobforge.rate_limits l where l.tenant_id = p_tenant_id),
    exists (
      select from jobforge.lanes n
      where v_count = 1 and n.tenant_id = p_tenant_id and n.job_type = v_lanes[1]
        and n.seen_at > v_now - interval '10 seconds')
  into v_is_limited, v_is_awake;
  if p_parent_id is not null and not v_is_limited then
    v_is_limited := exists (select from jobforge.limited_jobs t where t.tenant_id = p_tenant_id and t.job_id = p_parent_id);
  end if;
  if v_is_limited then
    v_counters := jobforge.check_policy(p_tenant_id, 'enqueue', p_job_types, p_payloads, p_priorities, p_project_ids,
      p_idempotency_keys, p_parent_id, p_is_plan, p_costs);
  end if;
  if p_claim_limits is not null then
    perform jobforge.require_claim_limits(p_claim_limits);
  end if;
  -- Not leased but queued where a claim has to say whether it may run now, and where something of its lane is due.
  v_may_lease := p_worker_id is not null and v_count = 1 and not p_is_plan and p_ordering_keys[1] is null and p_claim_limits is null
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

  if v_count = 1 and not p_is_plan and p_ordering_keys[1] is null and p_claim_limits is null then
    job_id := jobforge.new_id();
    if p_idempotency_keys[1] is not null then
      select k.job_id, k.outcome into job_id, outcome
      from jobforge.claim_idempotency_key(p_tenant_id, enqueue_jobs.job_id, p_project_ids[1], p_job_types[1], p_idempotency_keys[1],
        sha256(convert_to((coalesce(p_received[1], p_payloads[1])::jsonb)::text, 'UTF8'))) k;
      if outcome <> 'created' then
        perform jobforge.record_audit(p_tenant_id, 'enqueue', outcome, job_id, p_job_types[1]);
        ord := 1;
        select r.status, r.version, r.run_at, r.created_at into status, version, run_at, created_at
        from jobforge.states_of(p_tenant_id, array[enqueue_jobs.job_id]) r;
        return next;
        return;
      end if;
    end if;
    run_at := coalesce(p_run_ats[1], v_now);
    with audited as (
      insert into jobforge.audit_log (tenant_id, id, occurred_at, action, outcome, actor, token_id, tool, trace_id, job_id, job_type)
      values (p_tenant_id, enqueue_jobs.job_id, v_now, 'enqueue', 'created',
        nullif(pg_catalog.current_setting('jobforge.actor', true), ''),
        nullif(pg_catalog.current_setting('jobforge.token_id', true), ''),
        nullif(pg_catalog.current_setting('jobforge.tool', true), ''),
        nullif(pg_catalog.current_setting('jobforge.trace_id', true), ''), enqueue_jobs.job_id, p_job_types[1])
    ), queued as (
      insert into jobforge.ready (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no, own_type)
      select p_tenant_id, v_lanes[1], coalesce(p_priorities[1], 2), enqueue_jobs.run_at, enqueue_jobs.job_id, 0, 0,
        case when p_lane_types[1] is not null then p_job_types[1] end
      where not v_may_lease
    )
    insert into jobforge.jobs (tenant_id, id, job_type, job_version, project_id, parent_id, trace_id, created_by, labels, payload,
      is_dry_run, priority, max_attempts, timeout_ms, backoff_ms, max_backoff_ms, backoff_multiplier, run_at, created_at, cost,
      confinement, lane_type)
    values (p_tenant_id, enqueue_jobs.job_id, p_job_types[1], coalesce(p_job_versions[1], '1'), p_project_ids[1], p_parent_id,
      p_trace_ids[1], nullif(pg_catalog.current_setting('jobforge.actor', true), ''), p_labels[1]::jsonb, p_payloads[1]::jsonb,
      coalesce(p_dry_runs[1], false), coalesce(p_priorities[1], 2), coalesce(p_max_attempts[1], 3),
      coalesce(p_timeout_ms[1], 300000), coalesce(p_backoff_ms[1], 1000), coalesce(p_max_backoff_ms[1], 60000),
      coalesce(p_backoff_multipliers[1], 2), enqueue_jobs.run_at, v_now, p_costs[1], v_confinement, p_lane_types[1]);
    if v_counters is not null then
      perform jobforge.track_jobs(p_tenant_id, array[job_id], p_job_types, array[job_id], v_counters, p_parent_id);
    end if;
    if v_may_lease then
      lease_id := jobforge.lease_new_job(p_tenant_id, job_id, p_worker_id, p_lease_ms, coalesce(p_timeout_ms[1], 300000), v_now);
      lease_until := v_now + p_lease_ms * interval '1 millisecond';
    else
      if not v_is_awake then
        perform jobforge.touch_lanes(array[p_tenant_id], v_lanes);
      end if;
      if run_at <= v_now then
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
  v_ids := array(select i.id from (select jobforge.new_id() as id from generate_series(1, v_count)) i order by i.id);
  if exists (select from unnest(p_idempotency_keys) u(key) where u.key is not null) then
    if p_is_plan then  -- read what is there, take nothing
      select array_agg(case when k.job_id is null then 'created' when k.input_hash = h.hash then 'replayed' else 'conflict' end order by u.ord),
        array_agg(coalesce(k.job_id, u.id) order by u.ord)
      into v_outcomes, v_found_ids
      from unnest(v_ids, p_project_ids, p_job_types, p_idempotency_keys, p_payloads, p_received) with ordinality
        u(id, project_id, job_type, idempotency_key, payload, received, ord)
      cross join lateral (select sha256(convert_to((coalesce(u.received, u.payload)::jsonb)::text, 'UTF8')) as hash) h
      left join jobforge.idempotency_keys k on k.tenant_id = p_tenant_id and k.project_id = coalesce(u.project_id, '')
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
  with given as (
    select * from unnest(v_ids, p_job_types, p_payloads, p_ordering_keys, p_priorities, p_run_ats, p_project_ids, p_labels,
        p_trace_ids, p_job_versions, p_max_attempts, p_backoff_ms, p_backoff_multipliers, p_max_backoff_ms, p_timeout_ms,
        p_dry_runs, p_costs, p_lane_types, p_claim_limits) with ordinality
      u(id, job_type, payload, ordering_key, priority, run_at, project_id, labels, trace_id, job_version, max_attempts,
        backoff_ms, backoff_multiplier, max_backoff_ms, timeout_ms, is_dry_run, cost, lane_type, claim_limits, ord)
    where v_outcomes is null or v_outcomes[u.ord] = 'created'
  ), new_jobs as (
    insert into jobforge.jobs as j (tenant_id, id, job_type, job_version, project_id, parent_id, ordering_key, trace_id,
      created_by, labels, payload, is_dry_run, priority, max_attempts, timeout_ms, backoff_ms, max_backoff_ms,
      backoff_multiplier, run_at, created_at, cost, confinement, lane_type, slot_key, slot_limit, rate_key, rate_limit, rate_period_ms)
    select p_tenant_id, g.id, g.job_type, coalesce(g.job_version, '1'), g.project_id, p_parent_id, g.ordering_key, g.trace_id,
      nullif(pg_catalog.current_setting('jobforge.actor', true), ''), g.labels::jsonb, g.payload::jsonb,
      coalesce(g.is_dry_run, false), coalesce(g.priority, 2), coalesce(g.max_attempts, 3), coalesce(g.timeout_ms, 300000),
      coalesce(g.backoff_ms, 1000), coalesce(g.max_backoff_ms, 60000), coalesce(g.backoff_multiplier, 2),
      coalesce(g.run_at, v_now), v_now, g.cost, v_confinement, g.lane_type,
      c.slot_key, c.slot_limit, c.rate_key, c.rate_limit, c.rate_period_ms
    from given g
    cross join lateral jobforge.read_claim_limits(g.job_type, g.claim_limits::jsonb) c
    returning j.id, j.job_type, j.lane_type, j.priority, j.run_at, j.ordering_key
  ), new_ready as (
    insert into jobforge.ready (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no, own_type)
    select p_tenant_id, coalesce(n.lane_type, n.job_type), n.priority, n.run_at, n.id, 0, 0,
      case when n.lane_type is not null then n.job_type end
    from new_jobs n
    where n.ordering_key is null
  )
  select array_agg(n.id), array_agg(n.id order by n.id) filter (where n.ordering_key is not null), bool_or(n.run_at <= v_now)
  into v_new_ids, v_ordered_ids, v_is_due
  from new_jobs n;

  if v_counters is not null and v_new_ids is not null then
    perform jobforge.track_jobs(p_tenant_id, v_ids, p_job_types, v_new_ids, v_counters, p_parent_id);
  end if;
  if p_claim_limits is not null and v_new_ids is not null
    and not exists (select from jobforge.limited_tenants t where t.tenant_id = p_tenant_id)
  then
    insert into jobforge.limited_tenants (tenant_id, job_id) values (p_tenant_id, v_new_ids[1]);
  end if;
  if v_ordered_ids is not null then
    perform jobforge.join_ordering_keys(p_tenant_id, array(select u.id from unnest(v_ids) with ordinality u(id, ord)
      where u.id = any (v_ordered_ids) order by u.ord));
  end if;
  if p_claim_limits is not null then
    v_ordered_ids := v_ordered_ids || jobforge.debounce_within(p_tenant_id, v_ids, p_job_types, p_claim_limits, v_outcomes);
  end if;

  if v_new_ids is not null then
    if not v_is_awake then
      perform jobforge.touch_lanes(array_fill(p_tenant_id, array[v_count]), v_lanes);
    end if;
    if v_is_due then
      perform jobforge.wake('ready');
    end if;
  end if;
  if p_call_traces is null then
    perform jobforge.record_audit(p_tenant_id, 'enqueue', case when v_new_ids is null then v_outcomes[1] else 'created' end,
      case when v_count = 1 then coalesce(v_found_ids[1], v_ids[1]) end, case when v_count = 1 then p_job_types[1] end,
      case when v_count > 1 then jsonb_build_object('count', v_count, 'created', coalesce(cardinality(v_new_ids), 0)) end);
  else
    insert into jobforge.audit_log (tenant_id, id, occurred_at, action, outcome, actor, token_id, tool, trace_id, job_id, job_type)
    select p_tenant_id, jobforge.new_id(), v_now, 'enqueue', coalesce(v_outcomes[u.ord], 'created'),
      nullif(pg_catalog.current_setting('jobforge.actor', true), ''),
      nullif(pg_catalog.current_setting('jobforge.token_id', true), ''),
      nullif(pg_catalog.current_setting('jobforge.tool', true), ''), nullif(u.trace_id, ''), coalesce(v_found_ids[u.ord], u.id), u.job_type
    from unnest(v_ids, p_job_types, p_call_traces) with ordinality u(id, job_type, trace_id, ord);
  end if;

  -- what was made just now is known; only what was there before is read
  if v_outcomes is null and v_ordered_ids is null then
    return query
    select u.ord::integer, u.id, 'created', 'queued', 2::bigint, coalesce(u.run_at, v_now), v_now, null::uuid, null::timestamptz
    from unnest(v_ids, p_run_ats) with ordinality u(id, run_at, ord);
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
comment on function jobforge.enqueue_jobs(text, text[], text[], text[], text[], text[], integer[], timestamptz[], text[], text[],
  text[], text[], integer[], integer[], float8[], integer[], integer[], boolean[], text, integer, boolean, uuid, integer[], text[],
  text[], text[]) is
  'Commit jobs to be run, one row of answer for each: created, replayed or conflict.';

create or replace function jobforge.enqueue_job(
  p_tenant_id text, p_job_type text, p_payload jsonb default '{}', p_idempotency_key text default null,
  p_ordering_key text default null, p_priority integer default 2, p_run_at timestamptz default null,
  p_project_id text default null, p_labels jsonb default null, p_trace_id text default null,
  p_job_version text default '1', p_max_attempts integer default 3, p_backoff_ms integer default 1000,
  p_backoff_multiplier float8 default 2, p_max_backoff_ms integer default 60000, p_timeout_ms integer default 300000)
returns table (job_id uuid, outcome text, status text, version bigint, run_at timestamptz, created_at timestamptz)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_problem text;
  v_payload text := p_payload::text;
begin
  perform jobforge.require_tenant(p_tenant_id);
  -- The table's own constraints refuse these as well; here, where people and applications call, they are told in words.
  v_problem := case
    when p_job_type is null or p_job_type !~ '^[a-z0-9][a-z0-9._-]{0,99}$'
      then 'the job type must be 1 to 100 lower-case letters, digits, dots, hyphens or underscores'
    when octet_length(p_idempotency_key) not between 1 and 255 then 'an idempotency key has 1 to 255 bytes'
    when octet_length(p_ordering_key) not between 1 and 255 then 'an ordering key has 1 to 255 bytes'
    when p_priority not between 0 and 3 then 'a priority is 0 to 3, and 0 is first'
    when not (p_run_at >= '1970-01-01 00:00:00+00' and p_run_at < '10000-01-01 00:00:00+00')
      then 'a run is due from 1970 to 9999, in UTC'
    when p_project_id !~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$'
      then 'a project id has 1 to 63 letters, digits, dots, colons, hyphens or underscores'
    when octet_length(p_trace_id) > 255 then 'a trace id has at most 255 bytes'
    when pg_catalog.jsonb_typeof(p_labels) <> 'object' then 'labels are one object'
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
  return query
  select e.job_id, e.outcome, e.status, e.version, e.run_at, e.created_at
  from jobforge.enqueue_jobs(p_tenant_id, array[p_job_type], array[v_payload], null, array[p_idempotency_key],
    array[p_ordering_key], array[p_priority], array[p_run_at], array[p_project_id], array[p_labels::text],
    array[p_trace_id], array[p_job_version], array[p_max_attempts], array[p_backoff_ms], array[p_backoff_multiplier],
    array[p_max_backoff_ms], array[p_timeout_ms]) e;
end $$;
comment on function jobforge.enqueue_job(text, text, jsonb, text, text, integer, timestamptz, text, jsonb, text, text, integer,
  integer, float8, integer, integer) is
  'Commit one job to be run; inside an application''s own transaction it exists if and only if that commits.';

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

-- Newest first by id. Open runs are looked for in the place their status names, which holds few rows; the others by
-- walking the jobs of the tenant backwards.
create or replace function jobforge.list_runs(
  p_tenant_id text, p_job_type text default null, p_status text default null, p_project_ids text[] default null,
  p_trace_id text default null, p_since timestamptz default null, p_before_id uuid default null,
  p_limit integer default 20)
returns setof jobforge.runs
language plpgsql stable
security definer set search_path = jobforge, pg_temp
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
  if p_status is null or p_status in ('succeeded', 'failed', 'dead', 'canceled') then
    select array_agg(x.id) into v_ids from (
      select j.id from jobforge.jobs j
      where j.tenant_id = p_tenant_id
        and (p_before_id is null or j.id < p_before_id)
        and (p_status is null or j.final_status = p_status)
        and (p_job_type is null or j.job_type = p_job_type)
        and (v_projects is null or j.project_id = any (v_projects))
        and (v_claims is null or jobforge.allows_type(v_claims, j.job_type))
        and (p_trace_id is null or j.trace_id = p_trace_id)
        and (p_since is null or j.created_at >= p_since)
      order by j.id desc limit p_limit) x;
  elsif p_status in ('queued', 'running', 'waiting') then
    v_lanes := jobforge.lanes_of(p_tenant_id, p_job_type);
    select array_agg(x.id) into v_ids from (
      select j.id from (
        select r.job_id from jobforge.ready r
        where p_status = 'queued' and r.tenant_id = p_tenant_id and (p_job_type is null or r.job_type = any (v_lanes))
        union all
        select w.job_id from jobforge.waiting w
        where w.tenant_id = p_tenant_id and p_status = case when w.waiting_for = 'limit' then 'queued' else 'waiting' end
        union all
        select h.job_id from jobforge.leases l cross join lateral unnest(l.job_ids) h(job_id)
        where l.tenant_id = p_tenant_id and p_status = case when l.lease_until > v_now then 'running' else 'queued' end
      ) s
      join jobforge.jobs j on j.tenant_id = p_tenant_id and j.id = s.job_id
      where (p_before_id is null or j.id < p_before_id)
        and (p_job_type is null or j.job_type = p_job_type)
        and (v_projects is null or j.project_id = any (v_projects))
        and (v_claims is null or jobforge.allows_type(v_claims, j.job_type))
        and (p_trace_id is null or j.trace_id = p_trace_id)
        and (p_since is null or j.created_at >= p_since)
      order by j.id desc limit p_limit) x;
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

-- After a head ended: the next of each key takes its place, or the key is forgotten. Used by settles and cancels; keys in
-- one order, so that two batches cannot deadlock.
create or replace function jobforge.promote_next(p_tenant_ids text[], p_ordering_keys text[], p_ended_ids uuid[]) returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_key record;
  v_next record;
  v_has_next boolean;
begin
  for v_key in
    select k.tenant_id, k.ordering_key
    from unnest(p_tenant_ids, p_ordering_keys, p_ended_ids) u(tenant_id, ordering_key, job_id)
    join jobforge.ordering_keys k on k.tenant_id = u.tenant_id and k.ordering_key = u.ordering_key and k.head_job_id = u.job_id
    order by 1, 2
    for update of k
  loop
    -- the one we chose may be canceled while we wait for its row: then choose again, or its followers would be stranded
    loop
      delete from jobforge.waiting w
      where w.tenant_id = v_key.tenant_id and w.job_id = (
        select x.job_id from jobforge.waiting x
        where x.tenant_id = v_key.tenant_id and x.ordering_key = v_key.ordering_key and x.waiting_for = 'turn'
        order by x.turn limit 1)
      returning w.* into v_next;
      v_has_next := found;
      exit when v_has_next or not exists (
        select from jobforge.waiting x
        where x.tenant_id = v_key.tenant_id and x.ordering_key = v_key.ordering_key and x.waiting_for = 'turn');
    end loop;
    if not v_has_next then
      delete from jobforge.ordering_keys k where k.tenant_id = v_key.tenant_id and k.ordering_key = v_key.ordering_key;
    else
      update jobforge.ordering_keys k set head_job_id = v_next.job_id
      where k.tenant_id = v_key.tenant_id and k.ordering_key = v_key.ordering_key;
      -- not before now: workers pass over what lies behind the jobs they claimed, until their next full look
      update jobforge.jobs j set run_at = greatest(j.run_at, jobforge.now())
      where j.tenant_id = v_next.tenant_id and j.id = v_next.job_id and j.run_at < jobforge.now();
      insert into jobforge.ready (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no, own_type)
      select j.tenant_id, coalesce(j.lane_type, j.job_type), j.priority, j.run_at, j.id, v_next.epoch, v_next.attempt_no,
        case when j.lane_type is not null then j.job_type end
      from jobforge.jobs j where j.tenant_id = v_next.tenant_id and j.id = v_next.job_id;
      perform jobforge.touch_lanes(array[j.tenant_id], array[coalesce(j.lane_type, j.job_type)])
      from jobforge.jobs j where j.tenant_id = v_next.tenant_id and j.id = v_next.job_id;
      perform jobforge.wake('ready');
    end if;
  end loop;
end $$;
comment on function jobforge.promote_next(text[], text[], uuid[]) is 'Let the next job of each ordering key take the place of a head that ended.';

-- A job can move from place to place while we look for it; each place is tried under its row's lock, and if it moved past
-- us we look again.
create or replace function jobforge.cancel_open_job(p_tenant_id text, p_job_id uuid, p_reason text, p_is_plan boolean)
returns table (outcome text, job_type text)
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
  v_reason text := left(p_reason, 1000);
  v_job jobforge.jobs;
  v_place record;
  v_outcome text;
begin
  for v_try in 1..20 loop
    select * into v_job from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = p_job_id;
    if not found then
      perform jobforge.refuse_unknown_run(p_job_id);
    end if;
    if v_job.final_status = 'canceled' then
      v_outcome := 'unchanged';
      exit;
    end if;
    if v_job.final_status is not null then
      raise exception 'run % is % and cannot be canceled', p_job_id, v_job.final_status using errcode = 'JF409',
        hint = 'Only queued, waiting or running runs can be canceled.';
    end if;
    if p_is_plan then
      v_outcome := 'planned';
      exit;
    end if;

    update jobforge.leases l set cancel_ids = array_append(array_remove(l.cancel_ids, p_job_id), p_job_id)
    where l.tenant_id = p_tenant_id and p_job_id = any (l.job_ids) and l.lease_until > v_now;
    if found then
      v_outcome := 'requested';
      exit;
    end if;
    -- expired: nobody holds it any more. The lock waits for whoever is at it, since a reaper passes over what is locked
    perform from jobforge.leases l where l.tenant_id = p_tenant_id and p_job_id = any (l.job_ids) for update;
    if found then
      perform jobforge.reap_tenant(p_tenant_id);
      continue;
    end if;

    delete from jobforge.ready r
    where r.tenant_id = p_tenant_id and r.job_type = coalesce(v_job.lane_type, v_job.job_type)
      and r.priority = v_job.priority and r.run_at = v_job.run_at and r.job_id = p_job_id
    returning r.epoch, r.attempt_no into v_place;
    if found and v_job.slot_key is not null then  -- it may have been brought back for a slot: then that is the next one's
      perform jobforge.unpark_jobs(array[p_tenant_id], array[v_job.slot_key::text], array[1]);
    end if;
    if v_place.epoch is null then
      perform jobforge.lock_dependents(p_tenant_id, p_job_id);
      delete from jobforge.waiting w where w.tenant_id = p_tenant_id and w.job_id = p_job_id
      returning w.epoch, w.attempt_no into v_place;
    end if;
    if v_place.epoch is not null then
      update jobforge.jobs j
      set final_status = 'canceled', finished_at = v_now, epoch = v_place.epoch, attempt_no = v_place.attempt_no,
        error = jsonb_build_object('code', 'CANCELED', 'message', coalesce(v_reason, 'canceled before it ran'), 'retryable', false)
      where j.tenant_id = p_tenant_id and j.id = p_job_id;
      perform jobforge.after_final(array[p_tenant_id], array[p_job_id]);
      perform jobforge.cancel_orphans(p_tenant_id, 1000);
      if v_job.ordering_key is not null then
        perform jobforge.promote_next(array[p_tenant_id], array[v_job.ordering_key], array[p_job_id]);
      end if;
      v_outcome := 'canceled';
      exit;
    end if;
  end loop;
  if v_outcome is null then
    raise exception 'run % kept moving while it was to be canceled', p_job_id using errcode = '40001';
  end if;

  if v_outcome not in ('unchanged', 'planned') then
    insert into jobforge.run_progress as p (tenant_id, job_id, changes, cancel_requested_at, cancel_reason)
    values (p_tenant_id, p_job_id, 1, v_now, v_reason)
    on conflict (tenant_id, job_id) do update
      set changes = p.changes + 1, cancel_requested_at = coalesce(p.cancel_requested_at, excluded.cancel_requested_at),
        cancel_reason = coalesce(p.cancel_reason, excluded.cancel_reason);
    perform jobforge.wake('runs');
  end if;
  return query select v_outcome, v_job.job_type::text;
end $$;
comment on function jobforge.cancel_open_job(text, uuid, text, boolean) is
  'Cancel one run, for cancel_job and cancel_runs: canceled, requested, unchanged or planned.';

drop function if exists jobforge.cancel_job(text, uuid, text);
create or replace function jobforge.cancel_job(p_tenant_id text, p_job_id uuid, p_reason text default null, p_is_plan boolean default false)
returns setof jobforge.runs
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_outcome text;
  v_type text;
begin
  perform jobforge.require_tenant(p_tenant_id);
  perform jobforge.require_run(p_tenant_id, p_job_id);
  if not p_is_plan and current_setting('jobforge.token_id', true) <> '' then
    perform jobforge.use_token();
  end if;
  if jobforge.current_claims() ? 'limits' or exists (select from jobforge.rate_limits l where l.tenant_id = p_tenant_id) then
    -- before the counters, as an attempt does that makes a child
    perform from jobforge.leases l where l.tenant_id = p_tenant_id and p_job_id = any (l.job_ids) for update;
    perform jobforge.check_policy(p_tenant_id, 'cancel', array[j.job_type::text], p_is_plan => p_is_plan)
    from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = p_job_id;
  end if;
  select c.* into v_outcome, v_type from jobforge.cancel_open_job(p_tenant_id, p_job_id, p_reason, p_is_plan) c;
  perform jobforge.record_audit(p_tenant_id, 'cancel', v_outcome, p_job_id, v_type);
  return query select r.* from jobforge.runs r where r.tenant_id = p_tenant_id and r.job_id = p_job_id;
end $$;
comment on function jobforge.cancel_job(text, uuid, text, boolean) is
  'Cancel a run: at once while it is queued or waiting, by request to its worker while it runs.';

-- The checks and the moves of a retry; who calls wakes lanes and workers.
create or replace function jobforge.requeue_final_job(
  p_tenant_id text, p_job_id uuid, p_if_version bigint, p_run_at timestamptz, p_reset_attempts boolean, p_force boolean,
  p_counters text[], p_is_plan boolean)
returns jobforge.jobs
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_now timestamptz := jobforge.now();
  v_job jobforge.jobs;
  v_version bigint;
begin
  select * into v_job from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = p_job_id for update;
  if not found then
    perform jobforge.refuse_unknown_run(p_job_id);
  end if;
  select r.version into v_version from jobforge.runs r where r.tenant_id = p_tenant_id and r.job_id = p_job_id;
  if v_job.final_status is null then
    raise exception 'run % has not ended and cannot be retried', p_job_id using errcode = 'JF409',
      hint = 'Wait for it, or cancel it first.';
  end if;
  if p_if_version <> v_version then
    raise exception 'run % is at version %, not %', p_job_id, v_version, p_if_version using errcode = 'JF409',
      hint = 'Read its status again and decide with that.';
  end if;
  if v_job.final_status = 'succeeded' and p_force is not true then
    raise exception 'run % succeeded; a retry would run its effects again', p_job_id using errcode = 'JF409',
      hint = 'Pass force if that is wanted.';
  end if;

  if coalesce(v_job.lane_type, v_job.job_type) = v_job.job_type and exists (
    select from jobforge.registered_jobs d
    where d.tenant_id = p_tenant_id and d.job_type = v_job.job_type and d.removed_at is not null)
  then
    raise exception 'the definition of % was removed, and nothing could run it again', v_job.job_type using errcode = 'JF409',
      hint = 'Register the definition again, or enqueue a job of another type.';
  end if;

  if p_is_plan then
    return v_job;
  end if;
  if v_job.lane_type is not null then
    perform jobforge.forget_steps(p_tenant_id, p_job_id, v_job.final_status = 'succeeded');
  end if;
  update jobforge.jobs j
  set final_status = null, finished_at = null, started_at = null, worker_id = null, result = null, error = null,
    run_at = coalesce(p_run_at, v_now), attempt_no = case when p_reset_attempts then 0 else j.attempt_no end,
    -- without fresh attempts the run gets the one more it was asked for
    max_attempts = case when p_reset_attempts then j.max_attempts else greatest(j.max_attempts, least(j.attempt_no + 1, 1000)) end
  where j.tenant_id = p_tenant_id and j.id = p_job_id
  returning * into v_job;
  -- Back from step 3 (final) to 2 or 1 within one epoch: four changes keep the version growing.
  insert into jobforge.run_progress as p (tenant_id, job_id, changes) values (p_tenant_id, p_job_id, 4)
  on conflict (tenant_id, job_id) do update
    set changes = p.changes + 4, cancel_requested_at = null, cancel_reason = null, epoch = null;

  if p_counters is not null then
    perform jobforge.track_jobs(p_tenant_id, array[p_job_id], array[v_job.job_type::text], array[p_job_id], p_counters, null);
  end if;
  if v_job.ordering_key is not null then
    perform jobforge.join_ordering_keys(p_tenant_id, array[p_job_id]);
  else
    insert into jobforge.ready (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no, own_type)
    values (p_tenant_id, coalesce(v_job.lane_type, v_job.job_type), v_job.priority, v_job.run_at, p_job_id, v_job.epoch,
      v_job.attempt_no, case when v_job.lane_type is not null then v_job.job_type end);
  end if;
  return v_job;
end $$;
comment on function jobforge.requeue_final_job(text, uuid, bigint, timestamptz, boolean, boolean, text[], boolean) is
  'Queue one ended run again, for retry_job and retry_runs.';

drop function if exists jobforge.retry_job(text, uuid, bigint, timestamptz, boolean, boolean);
create or replace function jobforge.retry_job(
  p_tenant_id text, p_job_id uuid, p_if_version bigint default null, p_run_at timestamptz default null,
  p_reset_attempts boolean default false, p_force boolean default false, p_is_plan boolean default false)
returns setof jobforge.runs
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_job jobforge.jobs;
  v_counters text[];
begin
  perform jobforge.require_tenant(p_tenant_id);
  perform jobforge.require_run(p_tenant_id, p_job_id);
  if not (p_run_at >= '1970-01-01 00:00:00+00' and p_run_at < '10000-01-01 00:00:00+00') then
    raise exception 'a run is due from 1970 to 9999, in UTC' using errcode = 'JF400', hint = 'Nothing was retried: correct the value.';
  end if;
  if not p_is_plan and current_setting('jobforge.token_id', true) <> '' then
    perform jobforge.use_token();
  end if;
  if jobforge.current_claims() ? 'limits' or exists (select from jobforge.rate_limits l where l.tenant_id = p_tenant_id) then
    select jobforge.check_policy(p_tenant_id, 'retry', array[j.job_type::text], p_priorities => array[j.priority::integer],
      p_costs => array[j.cost], p_is_plan => p_is_plan) into v_counters
    from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = p_job_id;
  end if;
  v_job := jobforge.requeue_final_job(p_tenant_id, p_job_id, p_if_version, p_run_at, p_reset_attempts, p_force, v_counters,
    p_is_plan);
  if p_is_plan then
    perform jobforge.record_audit(p_tenant_id, 'retry', 'planned', p_job_id, v_job.job_type);
    return query select r.* from jobforge.runs r where r.tenant_id = p_tenant_id and r.job_id = p_job_id;
    return;
  end if;
  perform jobforge.touch_lanes(array[p_tenant_id], array[coalesce(v_job.lane_type, v_job.job_type)]);
  perform jobforge.wake('ready'), jobforge.wake('runs');
  perform jobforge.record_audit(p_tenant_id, 'retry', 'queued', p_job_id, v_job.job_type,
    jsonb_build_object('resetAttempts', p_reset_attempts, 'force', p_force));
  return query select r.* from jobforge.runs r where r.tenant_id = p_tenant_id and r.job_id = p_job_id;
end $$;
comment on function jobforge.retry_job(text, uuid, bigint, timestamptz, boolean, boolean, boolean) is
  'Queue a run again that had ended, with one more attempt or with fresh ones.';

-- One named cause. A future worker sees the same facts, so the order of the questions is the order in which they matter.
create or replace function jobforge.explain_run(p_tenant_id text, p_job_id uuid)
returns table (cause text, message text, until_at timestamptz, blocked_by uuid)
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
  v_run jobforge.runs;
  v_key jobforge.ordering_keys;
  v_before bigint;
  v_projects text[];
  v_lane text;
begin
  perform jobforge.require_tenant(p_tenant_id);
  perform jobforge.require_run(p_tenant_id, p_job_id);
  v_projects := jobforge.confined_projects();
  select * into v_run from jobforge.runs r where r.tenant_id = p_tenant_id and r.job_id = p_job_id;
  if not found then
    perform jobforge.refuse_unknown_run(p_job_id);
  end if;
  select coalesce(j.lane_type, j.job_type) into v_lane from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = p_job_id;

  if v_run.error ->> 'code' = 'DEBOUNCED' then
    return query select 'debounced', 'A newer run of its debounce key took its place.', v_run.finished_at, (
      select j.id from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id::text = v_run.error ->> 'replacedBy'
        and (v_projects is null or j.project_id = any (v_projects)));
  elsif v_run.finished_at is not null then
    return query select 'final', format('It ended %s.', v_run.status), v_run.finished_at, null::uuid;
  elsif v_run.status = 'running' and v_run.cancel_requested_at is not null then
    return query select 'canceling', 'It runs, and its worker has been asked to stop it.', v_run.lease_until, null::uuid;
  elsif v_run.status = 'running' then
    return query select 'running', format('Worker %s runs it under a lease.', v_run.worker_id), v_run.lease_until, null::uuid;
  elsif v_run.status = 'waiting' and v_run.waiting_for = 'turn' then
    select * into v_key from jobforge.ordering_keys k where k.tenant_id = p_tenant_id and k.ordering_key = v_run.ordering_key;
    return query select 'waiting_turn', 'Another run of its ordering key comes first and blocks the key until it ends.',
      null::timestamptz, (select j.id from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = v_key.head_job_id
        and (v_projects is null or j.project_id = any (v_projects)));
  elsif v_run.status = 'waiting' and v_run.waiting_for in ('child', 'dependency') then
    return query select 'waiting_' || v_run.waiting_for, b.message, b.until_at, b.blocked_by
    from jobforge.blocking_runs(p_tenant_id, p_job_id, v_projects) b;
  elsif v_run.status = 'waiting' then
    return query select 'waiting_' || v_run.waiting_for, format('It waits for: %s.', v_run.waiting_for), null::timestamptz, null::uuid;
  elsif exists (
    select from jobforge.registered_jobs d
    where d.tenant_id = p_tenant_id and d.job_type = v_run.job_type and d.removed_at is not null)
    and v_lane = v_run.job_type
  then
    return query select 'definition_removed', format('The definition of %s was removed.', v_run.job_type), null::timestamptz, null::uuid;
  elsif exists (select from jobforge.pause_of(p_tenant_id, p_job_id)) then
    return query select 'paused', p.message, null::timestamptz, null::uuid from jobforge.pause_of(p_tenant_id, p_job_id) p;
  elsif not jobforge.has_worker(v_lane) then
    return query select 'no_worker', format('No living worker can run %s; it stays queued and spends no attempt.', v_run.job_type),
      null::timestamptz, null::uuid;
  elsif v_run.run_at > v_now and v_run.attempt_no > 0 then
    return query select 'retrying', format('Attempt %s of %s failed; the next is due later.', v_run.attempt_no, v_run.max_attempts),
      v_run.run_at, null::uuid;
  elsif v_run.run_at > v_now and exists (
    select from jobforge.debounces d where d.tenant_id = p_tenant_id and d.job_id = p_job_id)
  then
    return query select 'debouncing', 'It starts when no newer run of its debounce key has come for a while.', v_run.run_at, null::uuid;
  elsif v_run.run_at > v_now then
    return query select 'not_due', 'It was asked to run later.', v_run.run_at, null::uuid;
  elsif v_run.lease_until is not null then
    return query select 'lease_expired', 'Its worker was lost; any worker takes it over within a second.', null::timestamptz, null::uuid;
  elsif exists (select from jobforge.full_limits(p_tenant_id, v_run.job_type, p_job_id)) then
    return query select 'limit_reached', format('At most %s runs of %s may run at once, and as many do.', f.max_running, f.scope),
      null::timestamptz, null::uuid from jobforge.full_limits(p_tenant_id, v_run.job_type, p_job_id) f limit 1;
  elsif exists (select from jobforge.full_counter(p_tenant_id, p_job_id)) then
    return query select f.cause, f.message, f.until_at, (select j.id from jobforge.jobs j where j.tenant_id = p_tenant_id
        and j.id = f.blocked_by and (v_projects is null or j.project_id = any (v_projects)))
      from jobforge.full_counter(p_tenant_id, p_job_id) f;
  else
    select count(*) into v_before from (
      select from jobforge.ready r
      where r.tenant_id = p_tenant_id and r.job_type = v_lane and r.run_at <= v_now
        and (r.priority, r.run_at, r.job_id) < (v_run.priority, v_run.run_at, v_run.job_id)
      limit 10000) b;
    return query select 'queued_behind', case v_before
        when 0 then 'It is due and the next of its type.'
        when 1 then 'One due run of its type comes before it.'
        else format('%s due runs of its type come before it.', v_before) end,
      null::timestamptz, null::uuid;
  end if;
end $$;
comment on function jobforge.explain_run(text, uuid) is 'Why a run is not running: one named cause.';

reset role;
