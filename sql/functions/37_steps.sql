-- What running jobs enqueue: children of handlers and steps of compositions, and how a composition waits for its steps.
--
-- Called by workers, for the living claim of a run; every function belongs to jobforge_sys. A step is enqueued once however
-- often it is asked for. What its end sets off is in 35_dependencies.sql.
-- Locks: the lease of the run, then what enqueueing takes. Who begins to wait takes its own lease and then the jobs it waits
-- for, without waiting for those.

set local role jobforge_sys;

-- The claim that speaks, or a refusal: locked until commit against whoever would take the run over.
create or replace function jobforge.require_lease(p_tenant_id text, p_lease_id uuid, p_job_id uuid, p_epoch integer) returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
begin
  perform from jobforge.leases l
  where l.tenant_id = p_tenant_id and l.lease_id = p_lease_id and l.lease_until > jobforge.now()
    and l.epochs[array_position(l.job_ids, p_job_id)] = p_epoch
  for key share;  -- the weakest that a settle or a reaper waits for: heartbeats and cancels go on meanwhile
  if not found then
    raise exception 'this attempt no longer holds the lease of run %', p_job_id using errcode = 'JF410';
  end if;
end $$;
comment on function jobforge.require_lease(text, uuid, uuid, integer) is 'Refuse whoever speaks for a claim that is not the living one.';

-- The parent's lease is locked until commit: a child enqueued by an attempt that was replaced meanwhile would be a ghost.
drop function if exists jobforge.enqueue_child(text, uuid, uuid, integer, text, text, text, text, text, integer, timestamptz, text,
  text, integer, integer, float8, integer, integer);
create or replace function jobforge.enqueue_child(
  p_tenant_id text, p_lease_id uuid, p_job_id uuid, p_epoch integer, p_job_type text, p_payload text, p_received text,
  p_idempotency_key text, p_ordering_key text, p_priority integer, p_run_at timestamptz, p_labels text, p_job_version text,
  p_max_attempts integer, p_backoff_ms integer, p_backoff_multiplier float8, p_max_backoff_ms integer, p_timeout_ms integer,
  p_cost integer default null, p_lane_type text default null, p_claim_limits text default null)
returns table (job_id uuid, outcome text, status text, version bigint, run_at timestamptz, created_at timestamptz)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_parent jobforge.jobs;
begin
  perform from jobforge.leases l
  where l.tenant_id = p_tenant_id and l.lease_id = p_lease_id and l.lease_until > jobforge.now()
    and l.epochs[array_position(l.job_ids, p_job_id)] = p_epoch
  for key share;  -- the weakest that a settle or a reaper waits for: heartbeats and cancels go on meanwhile
  if not found then
    raise exception 'this attempt no longer holds the lease of run %', p_job_id using errcode = 'JF410';
  end if;
  select * into v_parent from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = p_job_id;
  perform jobforge.enter_trusted_scope(p_tenant_id, 'job:' || p_job_id, v_parent.job_type, v_parent.trace_id);
  return query
  select e.job_id, e.outcome, e.status, e.version, e.run_at, e.created_at
  from jobforge.enqueue_jobs(p_tenant_id, array[p_job_type], array[p_payload], array[p_received], array[p_idempotency_key],
    array[p_ordering_key], array[p_priority], array[p_run_at], array[v_parent.project_id::text], array[p_labels],
    array[v_parent.trace_id], array[p_job_version], array[p_max_attempts], array[p_backoff_ms], array[p_backoff_multiplier],
    array[p_max_backoff_ms], array[p_timeout_ms], array[v_parent.is_dry_run], null, 30000, false, p_job_id,
    array[p_cost], case when p_lane_type is not null then array[p_lane_type] end, array[p_claim_limits]) e;
  -- a scope outlasts its function; the worker's next statement must not find a tenant set
  perform jobforge.leave_scope();
end $$;
comment on function jobforge.enqueue_child(text, uuid, uuid, integer, text, text, text, text, text, integer, timestamptz, text, text,
  integer, integer, float8, integer, integer, integer, text, text) is 'Enqueue a job on behalf of a running one; refused for a claim that is not the living one.';

create or replace function jobforge.list_steps(
  p_tenant_id text, p_lease_id uuid, p_job_id uuid, p_epoch integer, p_result_steps text[] default null)
returns table (step text, child_id uuid, job_type text, status text, result text, error text, made_at timestamptz)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
begin
  perform jobforge.require_lease(p_tenant_id, p_lease_id, p_job_id, p_epoch);
  return query
  select s.step::text, s.child_id, j.job_type::text,
    case when j.id is null then 'purged' else coalesce(j.final_status::text, 'open') end,
    case when s.step = any (p_result_steps) then j.result::text end, j.error::text, s.made_at
  from jobforge.composition_steps s
  left join jobforge.jobs j on j.tenant_id = s.tenant_id and j.id = s.child_id
  where s.tenant_id = p_tenant_id and s.job_id = p_job_id and (p_result_steps is null or s.step = any (p_result_steps));
end $$;
comment on function jobforge.list_steps(text, uuid, uuid, integer, text[]) is
  'Steps of a running composition that were enqueued, and how they stand; with the results of those that are named.';

create or replace function jobforge.list_step_definitions(
  p_tenant_id text, p_lease_id uuid, p_job_id uuid, p_epoch integer, p_names text[])
returns table (job_type text, job_version text, lane_type text, definition text)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
begin
  perform jobforge.require_lease(p_tenant_id, p_lease_id, p_job_id, p_epoch);
  return query
  select d.job_type::text, d.job_version, d.lane_type::text, d.definition::text
  from jobforge.jobs j
  join jobforge.job_definitions c on c.tenant_id = j.tenant_id and c.job_type = j.job_type and c.job_version = j.job_version
  cross join lateral jsonb_each_text(c.definition #> '{pinned,jobs}') p(job_type, job_version)
  join jobforge.registered_jobs r on r.tenant_id = j.tenant_id and r.job_type = p.job_type and r.removed_at is null
  join jobforge.job_definitions d on d.tenant_id = j.tenant_id and d.job_type = p.job_type and d.job_version = p.job_version
    and d.approved_at is not null
  where j.tenant_id = p_tenant_id and j.id = p_job_id and p.job_type = any (p_names);
end $$;
comment on function jobforge.list_step_definitions(text, uuid, uuid, integer, text[]) is
  'Registered definitions that a running composition pins for its steps; refused for a claim that is not the living one.';

-- A step that has a run already is left alone, so that a replay may ask for it again. What the root's token denies, and its
-- limits, hold for steps as for any child: one that they refuse refuses the call, and the worker asks for each by itself.
create or replace function jobforge.enqueue_steps(
  p_tenant_id text, p_lease_id uuid, p_job_id uuid, p_epoch integer, p_steps text[], p_job_types text[], p_payloads text[],
  p_received text[], p_priorities integer[], p_job_versions text[], p_max_attempts integer[], p_backoff_ms integer[],
  p_backoff_multipliers float8[], p_max_backoff_ms integer[], p_timeout_ms integer[], p_costs integer[], p_lane_types text[],
  p_claim_limits text[] default null)
returns table (step text, child_id uuid)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
  v_parent jobforge.jobs;
  v_depth integer;
  v_new record;
  v_keys text[];
  v_enqueued record;
begin
  perform jobforge.require_parallel(array_fill(p_job_id, array[cardinality(p_steps)]), cardinality(p_job_types), cardinality(p_payloads));
  -- one call after the other: a repeated one must see the steps of the first, and not only the keys that they took
  perform from jobforge.leases l where l.tenant_id = p_tenant_id and l.lease_id = p_lease_id for no key update;
  perform jobforge.require_lease(p_tenant_id, p_lease_id, p_job_id, p_epoch);
  select * into v_parent from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = p_job_id;
  with recursive line (id, depth) as (
    select p_job_id, 1
    union all
    select j.parent_id, line.depth + 1
    from line join jobforge.jobs j on j.tenant_id = p_tenant_id and j.id = line.id
    where j.parent_id is not null and line.depth <= 10
  )
  select max(line.depth) into v_depth from line;
  if v_depth > 10 then
    raise exception 'compositions run inside each other at most 10 deep' using errcode = 'JF429',
      hint = 'A composition that runs itself never ends: correct its definition.', detail = '{"code": "TOO_DEEP", "limit": "depth", "value": 10}';
  end if;

  select array_agg(u.ord::integer order by u.ord) as places, array_agg(u.step order by u.ord) as steps,
    array_agg(u.job_type order by u.ord) as job_types, array_agg(u.payload order by u.ord) as payloads,
    array_agg(u.received order by u.ord) as received, array_agg(coalesce(u.priority, v_parent.priority)::integer order by u.ord) as priorities,
    array_agg(u.version order by u.ord) as versions, array_agg(u.max_attempts order by u.ord) as max_attempts,
    array_agg(u.backoff_ms order by u.ord) as backoff_ms, array_agg(u.multiplier order by u.ord) as multipliers,
    array_agg(u.max_backoff_ms order by u.ord) as max_backoff_ms, array_agg(u.timeout_ms order by u.ord) as timeout_ms,
    array_agg(u.cost order by u.ord) as costs, array_agg(u.lane_type order by u.ord) as lane_types,
    array_agg(u.claim_limits order by u.ord) as claim_limits
  into v_new
  from unnest(p_steps, p_job_types, p_payloads, p_received, p_priorities, p_job_versions, p_max_attempts, p_backoff_ms,
      p_backoff_multipliers, p_max_backoff_ms, p_timeout_ms, p_costs, p_lane_types, p_claim_limits) with ordinality
    u(step, job_type, payload, received, priority, version, max_attempts, backoff_ms, multiplier, max_backoff_ms, timeout_ms,
      cost, lane_type, claim_limits, ord)
  where not exists (
    select from jobforge.composition_steps s where s.tenant_id = p_tenant_id and s.job_id = p_job_id and s.step = u.step);
  if v_new.steps is not null then
    -- a step that failed and is done again after a retry of the whole needs another key than its first run
    v_keys := array(
      select p_job_id || '/' || u.step || case when exists (
        select from jobforge.idempotency_keys k
        where k.tenant_id = p_tenant_id and k.project_id = case when v_parent.project_id is null then '' else v_parent.project_id end and k.job_type = u.job_type
          and k.idempotency_key = p_job_id || '/' || u.step) then '@' || p_epoch else '' end
      from unnest(v_new.steps, v_new.job_types) with ordinality u(step, job_type, ord) order by u.ord);
    perform jobforge.enter_trusted_scope(p_tenant_id, 'job:' || p_job_id, v_parent.job_type, v_parent.trace_id);
    select array_agg(e.job_id order by e.ord) as job_ids, bool_or(e.outcome = 'conflict') as is_conflict into v_enqueued
    from jobforge.enqueue_jobs(p_tenant_id, v_new.job_types, v_new.payloads, v_new.received, v_keys, null, v_new.priorities, null,
      array_fill(v_parent.project_id::text, array[cardinality(v_new.steps)]), null,
      array_fill(v_parent.trace_id, array[cardinality(v_new.steps)]), v_new.versions, v_new.max_attempts, v_new.backoff_ms,
      v_new.multipliers, v_new.max_backoff_ms, v_new.timeout_ms,
      array_fill(v_parent.is_dry_run, array[cardinality(v_new.steps)]), null, 30000, false, p_job_id, v_new.costs,
      case when exists (select from unnest(v_new.lane_types) u(lane_type) where u.lane_type is not null) then v_new.lane_types end,
      v_new.claim_limits) e;
    -- a scope outlasts its function; the worker's next statement must not find a tenant set
    perform jobforge.leave_scope();
    if v_enqueued.is_conflict then
      raise exception 'a key of a step of run % is taken', p_job_id using errcode = 'JF409';
    end if;
    insert into jobforge.composition_steps (tenant_id, job_id, step, child_id, made_at)
    select p_tenant_id, p_job_id, u.step, u.child_id, v_now from unnest(v_new.steps, v_enqueued.job_ids) u(step, child_id);
  end if;
  return query
  select s.step::text, s.child_id from jobforge.composition_steps s
  where s.tenant_id = p_tenant_id and s.job_id = p_job_id and s.step = any (p_steps);
end $$;
comment on function jobforge.enqueue_steps(text, uuid, uuid, integer, text[], text[], text[], text[], integer[], text[], integer[],
  integer[], float8[], integer[], integer[], integer[], text[], text[]) is
  'Enqueue steps of a running composition, each once however often it is asked for; refused for a claim that is not the living one.';

-- The composition leaves its worker, uncharged, until no more than p_may_remain of the steps named are open. One that has
-- ended meanwhile, or whose end somebody is writing, is no reason to wait: then it is queued at once.
create or replace function jobforge.wait_for_steps(
  p_tenant_id text, p_lease_id uuid, p_job_id uuid, p_epoch integer, p_child_ids uuid[], p_may_remain integer default 0,
  p_until_at timestamptz default null)
returns table (job_id uuid, epoch integer, outcome text, status text)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
  v_lease jobforge.leases;
  v_job jobforge.jobs;
  v_gone record;
  v_open uuid[];
  v_is_busy boolean;
begin
  if coalesce(cardinality(p_child_ids), 0) not between 1 and 1000 or coalesce(p_may_remain, -1) not between 0 and 999 then
    raise exception 'a composition waits for 1 to 1,000 steps' using errcode = 'JF400';
  end if;
  select * into v_lease from jobforge.leases l
  where l.tenant_id = p_tenant_id and l.lease_id = p_lease_id and l.lease_until > v_now
    and l.epochs[array_position(l.job_ids, p_job_id)] = p_epoch
  for update;
  if not found then
    return query select p_job_id, p_epoch, 'stale'::text, 'queued'::text;
    return;
  end if;
  if p_job_id = any (v_lease.cancel_ids) then
    return query select * from jobforge.close_jobs(array[p_tenant_id], array[p_lease_id], array[p_job_id], array[p_epoch],
      array['canceled'], array[true],
      array['{"code": "CANCELED", "message": "it was stopped on request between two steps", "retryable": false}'], null, null);
    return;
  end if;

  with held as materialized (
    select j.id, j.final_status from jobforge.jobs j
    where j.tenant_id = p_tenant_id and j.id = any (p_child_ids) and exists (
      select from jobforge.composition_steps s where s.tenant_id = p_tenant_id and s.job_id = p_job_id and s.child_id = j.id)
    order by j.id for share of j skip locked
  )
  select array_agg(h.id) filter (where h.final_status is null), count(*) < cardinality(p_child_ids)
  into v_open, v_is_busy
  from held h;

  select * into v_gone from jobforge.leave_leases(array[p_tenant_id], array[p_lease_id], array[p_job_id], array[p_epoch]);
  select * into v_job from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = p_job_id;
  if v_job.slot_key is not null then
    perform jobforge.free_slots(array[p_tenant_id], array[v_job.slot_key::text]);
  end if;
  if v_is_busy or coalesce(cardinality(v_open), 0) <= p_may_remain or p_until_at <= v_now then
    v_job.run_at := v_now + case when v_is_busy then interval '20 milliseconds' else interval '0' end;
    update jobforge.jobs j set run_at = v_job.run_at where j.tenant_id = p_tenant_id and j.id = p_job_id;
    insert into jobforge.ready (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no, own_type)
    values (p_tenant_id, coalesce(v_job.lane_type, v_job.job_type), v_job.priority, v_job.run_at, p_job_id, p_epoch,
      v_gone.attempt_no - 1, case when v_job.lane_type is not null then v_job.job_type end);
    perform jobforge.touch_lanes(array[p_tenant_id], array[coalesce(v_job.lane_type, v_job.job_type)::text]);
    perform jobforge.wake('ready'), jobforge.wake('runs');
    return query select p_job_id, p_epoch, 'accepted'::text, 'queued'::text;
    return;
  end if;
  insert into jobforge.waiting (tenant_id, job_id, waiting_for, epoch, attempt_no, may_remain, until_at)
  values (p_tenant_id, p_job_id, 'child', p_epoch, v_gone.attempt_no - 1, p_may_remain, p_until_at);
  insert into jobforge.job_dependencies (tenant_id, job_id, depends_on_id, on_failure, is_child)
  select p_tenant_id, p_job_id, u.id, 'continue', true from unnest(v_open) u(id);
  perform jobforge.wake('runs');
  return query select p_job_id, p_epoch, 'accepted'::text, 'waiting'::text;
end $$;
comment on function jobforge.wait_for_steps(text, uuid, uuid, integer, uuid[], integer, timestamptz) is
  'Let a running composition wait for its steps without a worker; refused for a claim that is not the living one.';

reset role;
