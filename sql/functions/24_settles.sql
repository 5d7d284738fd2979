-- Settle attempts: what becomes of a job that left its lease, by success, failure, release or loss.
--
-- Every function belongs to jobforge_sys, which sees all tenants; what workers call is granted to jobforge_worker alone. A
-- worker names the claim it speaks for by tenant, lease id, job and epoch; what is not in that living lease row is refused.
-- Locks: leases in the order of (tenant_id, lease_id), then ready, jobs, ordering_keys. Arrays are parallel: one element a job.

set local role jobforge_sys;

-- A job taken out of its lease without the element that says what becomes of it would be nowhere.
create or replace function jobforge.require_parallel(p_job_ids uuid[], variadic p_counts integer[]) returns void
language plpgsql immutable
set search_path = jobforge, pg_temp
as $$
begin
  if exists (select from unnest(p_counts) u(count) where u.count is distinct from cardinality(p_job_ids)) then
    raise exception 'the arrays of a batch must all have one element for each job' using errcode = 'JF400';
  end if;
end $$;
comment on function jobforge.require_parallel(uuid[], integer[]) is 'Refuse a batch whose arrays differ in length.';

-- The one way out of a lease. Jobs that are not in the lease they name, with the epoch they name, are not in the answer.
create or replace function jobforge.leave_leases(p_tenant_ids text[], p_lease_ids uuid[], p_job_ids uuid[], p_epochs integer[])
returns table (ord integer, tenant_id text, job_id uuid, epoch integer, attempt_no smallint, worker_id text,
  claimed_at timestamptz, is_cancel_requested boolean)
language plpgsql volatile
set search_path = jobforge, pg_temp
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
  return query
  with held_leases as materialized (
    select l.* from jobforge.leases l
    where (l.tenant_id, l.lease_id) in (select distinct u.t, u.l from unnest(p_tenant_ids, p_lease_ids) u(t, l))
    order by l.tenant_id, l.lease_id for update
  ), held as materialized (
    select l.tenant_id, l.lease_id, l.worker_id, l.claimed_at, h.job_id, h.epoch, h.attempt_no, h.deadline, g.ord,
      h.job_id = any (l.cancel_ids) as is_cancel_requested
    from held_leases l
    cross join lateral unnest(l.job_ids, l.epochs, l.attempt_nos, l.deadlines) h(job_id, epoch, attempt_no, deadline)
    left join unnest(p_tenant_ids, p_lease_ids, p_job_ids, p_epochs) with ordinality g(tenant_id, lease_id, job_id, epoch, ord)
      on g.tenant_id = l.tenant_id and g.lease_id = l.lease_id and g.job_id = h.job_id and g.epoch = h.epoch
  ), remaining as materialized (
    select h.tenant_id, h.lease_id, array_agg(h.job_id) filter (where h.ord is null) as job_ids,
      array_agg(h.epoch) filter (where h.ord is null) as epochs, array_agg(h.attempt_no) filter (where h.ord is null) as attempt_nos,
      array_agg(h.deadline) filter (where h.ord is null) as deadlines, min(h.deadline) filter (where h.ord is null) as overdue_at
    from held h group by 1, 2
  ), emptied as (
    delete from jobforge.leases l using remaining r
    where r.job_ids is null and l.tenant_id = r.tenant_id and l.lease_id = r.lease_id
  ), kept as (
    update jobforge.leases l
    set job_ids = r.job_ids, epochs = r.epochs, attempt_nos = r.attempt_nos, deadlines = r.deadlines, overdue_at = r.overdue_at
    from remaining r
    where r.job_ids is not null and l.tenant_id = r.tenant_id and l.lease_id = r.lease_id
  )
  select h.ord::integer, h.tenant_id::text, h.job_id, h.epoch, h.attempt_no, h.worker_id, h.claimed_at, h.is_cancel_requested
  from held h where h.ord is not null;
end $$;
comment on function jobforge.leave_leases(text[], uuid[], uuid[], integer[]) is 'Take jobs out of the leases that hold them and say which were held.';

-- The settings, and ids that are asked for beside the join, keep the plan on the key of jobs: one made while the table or the
-- tenant was small, or had just been emptied, is kept, and would read all that the tenant has by now. So are the others here.
create or replace function jobforge.end_lease(p_lease jobforge.leases, p_results text[], p_now timestamptz)
returns table (accepted integer[], key_ords integer[], keys text[], slots text[])
language plpgsql volatile
set search_path = jobforge, pg_temp
set enable_mergejoin = off
set enable_nestloop = off
set jit = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
  return query
  with ended as (
    update jobforge.jobs j
    set final_status = 'succeeded', attempt_no = g.attempt_no, epoch = g.epoch, worker_id = p_lease.worker_id,
      started_at = p_lease.claimed_at, finished_at = p_now, result = coalesce(g.result, 'null')::jsonb
    from unnest(p_lease.job_ids, p_lease.epochs, p_lease.attempt_nos, p_results) with ordinality g(job_id, epoch, attempt_no, result, ord)
    where j.tenant_id = p_lease.tenant_id and j.id = any (p_lease.job_ids)
      and j.id between (select u from unnest(p_lease.job_ids) u order by u limit 1)
        and (select u from unnest(p_lease.job_ids) u order by u desc limit 1)
      and j.id = g.job_id and j.final_status is null
    returning g.ord::integer, j.ordering_key, j.slot_key
  )
  select array_agg(e.ord), array_agg(e.ord) filter (where e.ordering_key is not null),
    array_agg(e.ordering_key::text) filter (where e.ordering_key is not null),
    array_agg(e.slot_key::text) filter (where e.slot_key is not null)
  from ended e;
end $$;
comment on function jobforge.end_lease(jobforge.leases, text[], timestamptz) is 'End all jobs of a lease that is gone, which succeeded, and say which were open.';

-- All that a lease holds, in its order, takes a short way, without arrays to join: that is how a busy worker settles, and how
-- a call which waits for a short job ends it. finished_at is set where all else of the run is what its worker knows, so that
-- it need not be read again: the attempt was settled alone, and nobody reported or asked for anything meanwhile.
drop function if exists jobforge.complete_jobs(text[], uuid[], uuid[], integer[], text[]);
drop function if exists jobforge.complete_jobs(text[], uuid[], uuid[], integer[], text[], text[]);
create or replace function jobforge.complete_jobs(
  p_tenant_ids text[], p_lease_ids uuid[], p_job_ids uuid[], p_epochs integer[], p_results text[], p_manifests text[] default null)
returns table (job_id uuid, epoch integer, outcome text, status text, finished_at timestamptz)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
set enable_mergejoin = off
set enable_nestloop = off
set jit = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
  v_lease jobforge.leases;
  v_is_told boolean;
  v_accepted integer[];
  v_tenants text[]; v_ids uuid[];
  v_key_tenants text[]; v_keys text[]; v_key_ids uuid[];
  v_slot_tenants text[]; v_slots text[]; v_key_ords integer[];
begin
  perform jobforge.require_parallel(p_job_ids, cardinality(p_tenant_ids), cardinality(p_lease_ids), cardinality(p_epochs),
    cardinality(p_results), coalesce(cardinality(p_manifests), cardinality(p_job_ids)));
  perform jobforge.require_small_json(p_results, 1048576, 'a result');
  delete from jobforge.leases l
  where l.tenant_id = p_tenant_ids[1] and l.lease_id = p_lease_ids[1] and l.job_ids = p_job_ids and l.epochs = p_epochs
    and p_tenant_ids[1] = all (p_tenant_ids) and p_lease_ids[1] = all (p_lease_ids)
  returning l.* into v_lease;
  if found then
    select e.accepted, e.key_ords, e.keys, e.slots into v_accepted, v_key_ords, v_keys, v_slots
    from jobforge.end_lease(v_lease, p_results, v_now) e;
    if cardinality(v_accepted) = cardinality(p_job_ids) then
      v_tenants := p_tenant_ids;
      v_ids := p_job_ids;
    else
      select array_agg(p_tenant_ids[1]), array_agg(p_job_ids[a.ord]) into v_tenants, v_ids from unnest(v_accepted) a(ord);
    end if;
    if v_keys is not null then
      select array_agg(p_tenant_ids[1]), array_agg(p_job_ids[k.ord]) into v_key_tenants, v_key_ids from unnest(v_key_ords) k(ord);
    end if;
    v_slot_tenants := array_fill(p_tenant_ids[1], array[coalesce(cardinality(v_slots), 0)]);
    if cardinality(p_job_ids) = 1 then
      v_is_told := not exists (
        select from jobforge.run_progress p where p.tenant_id = p_tenant_ids[1] and p.job_id = p_job_ids[1]);
    end if;
  else
    with gone as materialized (
      select * from jobforge.leave_leases(p_tenant_ids, p_lease_ids, p_job_ids, p_epochs)
    ), ended as (
      update jobforge.jobs j
      set final_status = 'succeeded', attempt_no = g.attempt_no, epoch = g.epoch, worker_id = g.worker_id,
        started_at = g.claimed_at, finished_at = v_now, result = coalesce(r.result, 'null')::jsonb
      from gone g
      join unnest(p_results) with ordinality r(result, ord) on r.ord = g.ord
      where j.tenant_id = any (p_tenant_ids) and j.id = any (p_job_ids)
        and j.id between (select u from unnest(p_job_ids) u order by u limit 1)
          and (select u from unnest(p_job_ids) u order by u desc limit 1)
        and j.tenant_id = g.tenant_id and j.id = g.job_id and j.final_status is null
      returning g.ord, j.tenant_id, j.ordering_key, j.id, j.slot_key
    )
    select array_agg(e.ord), array_agg(e.tenant_id::text), array_agg(e.id), array_agg(e.tenant_id::text) filter (where e.ordering_key is not null),
      array_agg(e.ordering_key::text) filter (where e.ordering_key is not null), array_agg(e.id) filter (where e.ordering_key is not null),
      array_agg(e.tenant_id::text) filter (where e.slot_key is not null), array_agg(e.slot_key::text) filter (where e.slot_key is not null)
    into v_accepted, v_tenants, v_ids, v_key_tenants, v_keys, v_key_ids, v_slot_tenants, v_slots
    from ended e;
  end if;
  if p_manifests is not null then
    perform jobforge.keep_manifests(p_tenant_ids, p_job_ids, p_epochs, p_manifests, v_accepted);
  end if;
  if v_accepted is not null then
    perform jobforge.after_final(v_tenants, v_ids, false);
  end if;
  if v_keys is not null then
    perform jobforge.promote_next(v_key_tenants, v_keys, v_key_ids);
  end if;
  if v_slots is not null then
    perform jobforge.free_slots(v_slot_tenants, v_slots);
  end if;
  if v_accepted is not null then
    perform jobforge.wake('runs');
  end if;
  if cardinality(v_accepted) = cardinality(p_job_ids) then
    return query select u.job_id, u.epoch, 'accepted'::text, 'succeeded'::text, case when v_is_told then v_now end
    from unnest(p_job_ids, p_epochs) u(job_id, epoch);
    return;
  end if;
  return query  -- a repeated call finds its own work done; a stale one finds another's, or none
  select u.job_id, u.epoch,
    case when u.ord = any (v_accepted) then 'accepted'
      when j.final_status = 'succeeded' and j.epoch = u.epoch then 'repeated' else 'stale' end,
    coalesce(j.final_status::text, 'queued'), null::timestamptz
  from unnest(p_tenant_ids, p_job_ids, p_epochs) with ordinality u(tenant_id, job_id, epoch, ord)
  left join lateral (
    select x.final_status, x.epoch from jobforge.jobs x where x.tenant_id = u.tenant_id and x.id = u.job_id offset 0) j on true
  order by u.ord;
end $$;
comment on function jobforge.complete_jobs(text[], uuid[], uuid[], integer[], text[], text[]) is
  'Settle a batch of attempts that succeeded; each is accepted, repeated or stale.';

-- How long to wait before the next attempt: backoff times multiplier per attempt, capped. Jitter only adds, and a delay
-- the receiver asked for is never undercut.
create or replace function jobforge.retry_delay(
  p_attempt_no integer, p_backoff_ms integer, p_multiplier real, p_max_backoff_ms integer, p_delay_ms integer)
returns interval
language sql volatile
as $$
  select greatest(
    least(p_max_backoff_ms, p_backoff_ms * power(p_multiplier::float8, least(greatest(p_attempt_no, 1) - 1, 40)))
      * (1 + pg_catalog.random() * 0.25),
    coalesce(p_delay_ms, 0)) * interval '1 millisecond'
$$;
comment on function jobforge.retry_delay(integer, integer, real, integer, integer) is 'Time until the attempt after this one may start.';

-- Settle attempts that did not succeed. p_kinds says what happened; what follows is decided here. An attempt is charged
-- unless the handler asked for later, the worker gave the job back, or it was lost together with others.
drop function if exists jobforge.close_jobs(text[], uuid[], uuid[], integer[], text[], boolean[], text[], text[], integer[]);
drop function if exists jobforge.close_jobs(text[], uuid[], uuid[], integer[], text[], boolean[], text[], text[], integer[], text[]);
create or replace function jobforge.close_jobs(
  p_tenant_ids text[], p_lease_ids uuid[], p_job_ids uuid[], p_epochs integer[], p_kinds text[], p_charged boolean[],
  p_errors text[], p_tracebacks text[], p_delays_ms integer[], p_manifests text[] default null, p_most_together smallint[] default null)
returns table (job_id uuid, epoch integer, outcome text, status text)
language plpgsql volatile
set search_path = jobforge, pg_temp
set enable_mergejoin = off
set enable_nestloop = off
set jit = off
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
  v_closed record;
begin
  perform jobforge.require_parallel(p_job_ids, cardinality(p_tenant_ids), cardinality(p_lease_ids), cardinality(p_epochs),
    cardinality(p_kinds), cardinality(p_charged), coalesce(cardinality(p_manifests), cardinality(p_job_ids)));
  with gone as materialized (
    select * from jobforge.leave_leases(p_tenant_ids, p_lease_ids, p_job_ids, p_epochs)
  ), decided as materialized (
    select g.*, d.kind, d.error::jsonb as error, d.traceback, d.most_together, g.attempt_no - (not d.is_charged)::integer as charged_no,
      case
        when d.kind = 'permanent' then 'failed'
        when g.is_cancel_requested then 'canceled'
        when d.is_charged and g.attempt_no >= j.max_attempts then 'dead'
      end as final_status,
      case d.kind
        when 'deferred' then v_now + greatest(d.delay_ms, 0) * interval '1 millisecond'
        when 'released' then v_now
        when 'lost' then v_now
        else v_now + jobforge.retry_delay(g.attempt_no, j.backoff_ms, j.backoff_multiplier, j.max_backoff_ms, d.delay_ms)
      end as next_run_at
    from gone g
    join unnest(p_kinds, p_charged, p_errors, p_tracebacks, p_delays_ms, p_most_together) with ordinality
      d(kind, is_charged, error, traceback, delay_ms, most_together, ord) on d.ord = g.ord
    cross join lateral (select * from jobforge.jobs x where x.tenant_id = g.tenant_id and x.id = g.job_id offset 0) j
  ), ended as (
    update jobforge.jobs j
    set final_status = d.final_status, attempt_no = d.charged_no, epoch = d.epoch,
      worker_id = case when d.final_status is not null then d.worker_id end,
      started_at = case when d.final_status is not null then d.claimed_at end,
      finished_at = case when d.final_status is not null then v_now end,
      error = case when d.final_status is not null then coalesce(d.error, '{}') end,
      run_at = case when d.final_status is null then d.next_run_at else j.run_at end
    from decided d
    where j.tenant_id = any (p_tenant_ids) and j.id = any (p_job_ids)
      and j.id between (select u from unnest(p_job_ids) u order by u limit 1)
        and (select u from unnest(p_job_ids) u order by u desc limit 1)
      and j.tenant_id = d.tenant_id and j.id = d.job_id and j.final_status is null
    returning d.ord, j.tenant_id, j.id, j.job_type, j.lane_type, j.priority, j.run_at, j.ordering_key, j.slot_key, d.final_status, d.epoch, d.charged_no,
      d.kind, d.most_together
  ), requeued as (
    insert into jobforge.ready (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no, is_suspect, own_type, most_together)
    select e.tenant_id, coalesce(e.lane_type, e.job_type), e.priority, e.run_at, e.id, e.epoch, e.charged_no, e.kind = 'lost',
      case when e.lane_type is not null then e.job_type end, e.most_together
    from ended e where e.final_status is null
  ), tried as (
    insert into jobforge.job_attempts (tenant_id, job_id, epoch, attempt_no, outcome, worker_id, started_at, finished_at, error, traceback)
    select d.tenant_id, d.job_id, d.epoch, d.attempt_no, d.kind, d.worker_id, d.claimed_at, v_now, d.error, left(d.traceback, 65536)
    from decided d join ended e on e.ord = d.ord
  )
  select array_agg(e.ord) as accepted,
    array_agg(e.tenant_id::text) filter (where e.final_status is null) as lane_tenants,
    array_agg(coalesce(e.lane_type, e.job_type)::text) filter (where e.final_status is null) as lane_types,
    bool_or(e.final_status is null and e.run_at <= v_now) as is_due,
    array_agg(e.tenant_id::text) filter (where e.final_status is not null) as final_tenants,
    array_agg(e.id) filter (where e.final_status is not null) as final_ids,
    array_agg(e.tenant_id::text) filter (where e.final_status is not null and e.ordering_key is not null) as key_tenants,
    array_agg(e.ordering_key::text) filter (where e.final_status is not null and e.ordering_key is not null) as keys,
    array_agg(e.id) filter (where e.final_status is not null and e.ordering_key is not null) as key_ids,
    array_agg(e.tenant_id::text) filter (where e.slot_key is not null) as slot_tenants,
    array_agg(e.slot_key::text) filter (where e.slot_key is not null) as slots
  into v_closed
  from ended e;
  if p_manifests is not null then
    perform jobforge.keep_manifests(p_tenant_ids, p_job_ids, p_epochs, p_manifests, v_closed.accepted);
  end if;

  if v_closed.final_ids is not null then
    perform jobforge.after_final(v_closed.final_tenants, v_closed.final_ids);
  end if;
  if v_closed.keys is not null then
    perform jobforge.promote_next(v_closed.key_tenants, v_closed.keys, v_closed.key_ids);
  end if;
  if v_closed.slots is not null then
    perform jobforge.free_slots(v_closed.slot_tenants, v_closed.slots);
  end if;
  if v_closed.lane_tenants is not null then
    perform jobforge.touch_lanes(v_closed.lane_tenants, v_closed.lane_types);
  end if;
  if v_closed.is_due then
    perform jobforge.wake('ready');
  end if;
  if v_closed.accepted is not null then
    perform jobforge.wake('runs');
  end if;
  return query
  select u.job_id, u.epoch,
    case when u.ord = any (v_closed.accepted) then 'accepted'
      when exists (
        select from jobforge.job_attempts a
        where a.tenant_id = u.tenant_id and a.job_id = u.job_id and a.epoch = u.epoch and a.outcome <> 'lost') then 'repeated'
      else 'stale' end,
    coalesce(j.final_status::text, 'queued')
  from unnest(p_tenant_ids, p_job_ids, p_epochs) with ordinality u(tenant_id, job_id, epoch, ord)
  left join lateral (
    select x.final_status, x.epoch from jobforge.jobs x where x.tenant_id = u.tenant_id and x.id = u.job_id offset 0) j on true
  order by u.ord;
end $$;
comment on function jobforge.close_jobs(text[], uuid[], uuid[], integer[], text[], boolean[], text[], text[], integer[], text[],
  smallint[]) is
  'Settle attempts that did not succeed: retry, failed, dead or canceled.';

drop function if exists jobforge.fail_jobs(text[], uuid[], uuid[], integer[], text[], text[], text[], integer[]);
create or replace function jobforge.fail_jobs(
  p_tenant_ids text[], p_lease_ids uuid[], p_job_ids uuid[], p_epochs integer[], p_kinds text[], p_errors text[],
  p_tracebacks text[], p_delays_ms integer[], p_manifests text[] default null)
returns table (job_id uuid, epoch integer, outcome text, status text)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
begin
  if exists (select from unnest(p_kinds) u(kind)
    where coalesce(u.kind, '') not in ('failed', 'permanent', 'timed_out', 'canceled', 'deferred'))
  then
    raise exception 'an attempt fails as failed, permanent, timed_out, canceled or deferred' using errcode = 'JF400';
  end if;
  return query
  select c.* from jobforge.close_jobs(p_tenant_ids, p_lease_ids, p_job_ids, p_epochs, p_kinds,
    array(select u.kind <> 'deferred' from unnest(p_kinds) with ordinality u(kind, ord) order by u.ord),
    p_errors, p_tracebacks, p_delays_ms, p_manifests) c;
end $$;
comment on function jobforge.fail_jobs(text[], uuid[], uuid[], integer[], text[], text[], text[], integer[], text[]) is
  'Settle a batch of attempts that failed; each is accepted, repeated or stale.';

create or replace function jobforge.release_jobs(p_tenant_ids text[], p_lease_ids uuid[], p_job_ids uuid[], p_epochs integer[])
returns table (job_id uuid, epoch integer, outcome text, status text)
language sql volatile
security definer set search_path = jobforge, pg_temp
as $$
  select c.* from jobforge.close_jobs(p_tenant_ids, p_lease_ids, p_job_ids, p_epochs,
    array_fill('released'::text, array[cardinality(p_job_ids)]), array_fill(false, array[cardinality(p_job_ids)]),
    array_fill('{"code": "RELEASED", "message": "the worker gave the job back", "retryable": true}'::text, array[cardinality(p_job_ids)]),
    null, null) c
$$;
comment on function jobforge.release_jobs(text[], uuid[], uuid[], integer[]) is 'Give running jobs back at once, without using an attempt.';

-- Jobs of expired leases, and jobs past their own deadline in living ones. A job lost alone, or as the only suspect of its
-- worker, pays with its attempt; jobs lost together are requeued uncharged and marked suspect, since one of them may have
-- killed the worker and the others must not pay for it. "Together" is all that the worker held, in whatever leases. Of n
-- lost together the root of n are tried in one lease next, and those of such a lease that is lost each alone: the one
-- that kills is found among the root of n leases and then among the root of n jobs, and most need not wait for each other.
create or replace function jobforge.reap_leases(p_limit integer, p_tenant_id text) returns integer
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_now timestamptz := jobforge.now();
  v_lost record;
begin
  with expired as materialized (
    select l.tenant_id, l.lease_id, l.worker_id, l.is_suspect, l.lease_until, l.job_ids, l.epochs, l.deadlines
    from jobforge.leases l
    where (l.lease_until <= v_now or l.overdue_at <= v_now) and (p_tenant_id is null or l.tenant_id = p_tenant_id)
    order by l.tenant_id, l.lease_id limit p_limit for update skip locked
  ), lost as (
    select e.tenant_id, e.lease_id, h.job_id, h.epoch, e.lease_until <= v_now as is_lost,
      t.count = 1 or (e.is_suspect and cardinality(e.job_ids) = 1) as is_alone,
      case when not e.is_suspect then nullif(trunc(sqrt(t.count)), 1)::smallint end as most_together
    from expired e
    cross join lateral (
      select sum(cardinality(w.job_ids)) as count from jobforge.leases w where w.worker_id = e.worker_id offset 0) t
    cross join lateral unnest(e.job_ids, e.epochs, e.deadlines) h(job_id, epoch, deadline)
    where e.lease_until <= v_now or h.deadline <= v_now
  )
  select count(*)::integer as total, array_agg(o.tenant_id::text) as tenant_ids, array_agg(o.lease_id) as lease_ids,
    array_agg(o.job_id) as job_ids, array_agg(o.epoch) as epochs,
    array_agg(case when o.is_lost then 'lost' else 'timed_out' end) as kinds,
    array_agg(not o.is_lost or o.is_alone) as charged,
    array_agg(case when o.is_lost
      then '{"code": "WORKER_LOST", "message": "the worker was lost while it ran the job", "retryable": true}'
      else '{"code": "TIMED_OUT", "message": "the job passed its timeout and its worker did not stop it", "retryable": true}'
      end) as errors,
    array_agg(o.most_together) as most_together
  into v_lost
  from lost o;
  if v_lost.total > 0 then
    perform jobforge.close_jobs(v_lost.tenant_ids, v_lost.lease_ids, v_lost.job_ids, v_lost.epochs, v_lost.kinds,
      v_lost.charged, v_lost.errors, null, null, p_most_together => v_lost.most_together);
  end if;
  return v_lost.total;
end $$;
comment on function jobforge.reap_leases(integer, text) is 'Take jobs out of expired leases, of one tenant or of all.';

create or replace function jobforge.reap_expired(p_limit integer default 100) returns integer
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
begin
  perform jobforge.tend_dependencies(p_limit);
  return jobforge.reap_leases(p_limit, null);
end $$;
comment on function jobforge.reap_expired(integer) is 'Requeue or end the jobs of expired leases, and look after runs that wait for others; anybody may, and every worker does within a second.';

create or replace function jobforge.reap_tenant(p_tenant_id text) returns integer
language sql volatile
security definer set search_path = jobforge, pg_temp
as $$ select jobforge.reap_leases(100, p_tenant_id) $$;
comment on function jobforge.reap_tenant(text) is 'The same for one tenant, for cancel_job.';

reset role;
