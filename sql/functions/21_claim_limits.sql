-- Limits of job definitions, obeyed by claims: concurrency (slots of a key) and rate (starts of a key within a time).
--
-- Called by claim_jobs for what it took out of `ready`, by settles for what left a lease, and by tend_lanes. A job over a
-- limit is parked under the counter that refused it and comes back when that counter has room: a backlog over its limit is
-- looked at once, not by every claim. A tenant without a row in limited_tenants or pauses pays two probes a claim.
--
-- Whoever parks a job holds the lock of its counter, and so does whoever frees a slot: a parked job is seen by the settle
-- that makes room for it. What can still be missed (a job that was brought back and then canceled) is found by
-- tend_limits.
-- Locks: after ordering_keys; claim_counters by (tenant_id, counter). A claim waits for counters once, before it
-- holds any; afterwards it passes over those that others hold.

set local role jobforge_rpc;

create or replace function jobforge.require_claim_limits(p_claim_limits text[]) returns void
language plpgsql immutable
set search_path = jobforge, pg_temp
as $$
begin
  if exists (
    select from unnest(p_claim_limits) u(limits)
    cross join lateral (select u.limits::jsonb -> 'concurrency' as slot, u.limits::jsonb -> 'rateLimit' as rate,
      u.limits::jsonb -> 'debounce' as debounce) l
    where u.limits is not null and (
      coalesce(octet_length(l.slot ->> 'key'), 0) > 255 or coalesce(octet_length(l.rate ->> 'key'), 0) > 255
      or (l.slot is not null and coalesce((l.slot ->> 'limit')::integer, 0) not between 1 and 1000000)
      or (l.rate is not null and (coalesce((l.rate ->> 'count')::integer, 0) not between 1 and 1000000
        or coalesce((l.rate ->> 'periodMs')::integer, 0) not between 100 and 604800000))
      or (l.debounce is not null and (coalesce((l.debounce ->> 'windowMs')::integer, 0) not between 1 and 604800000
        or (l.debounce ->> 'maxWaitMs')::integer not between 1 and 604800000
        or coalesce(octet_length(l.debounce ->> 'key'), 0) > 255))))
  then
    raise exception 'a limit of a job does not fit' using errcode = 'JF400',
      hint = 'concurrency: limit 1 to 1,000,000; rateLimit: count 1 to 1,000,000 and periodMs 100 to 604,800,000; debounce: windowMs and maxWaitMs 1 to 604,800,000; keys have at most 255 bytes.';
  end if;
end $$;
comment on function jobforge.require_claim_limits(text[]) is 'Refuse limits of jobs that are out of range.';

-- Bring parked jobs back to ready, the most urgent and oldest of each counter first, as far as the counter has room. More
-- than one settle may bring back the same number twice: what then finds no room is parked again.
create or replace function jobforge.unpark_jobs(p_tenant_ids text[], p_counters text[], p_counts integer[]) returns integer
language plpgsql volatile
set search_path = jobforge, pg_temp
set enable_seqscan = off
as $$
declare
  v_moved record;
begin
  with chosen as materialized (
    select w.row_id
    from unnest(p_tenant_ids, p_counters, p_counts) u(tenant_id, counter, count)
    cross join lateral (
      select x.ctid as row_id from jobforge.waiting x
      where x.tenant_id = u.tenant_id and x.counter = u.counter and x.waiting_for = 'limit'
      order by x.priority, x.job_id limit u.count for update skip locked) w
  ), moved as (
    delete from jobforge.waiting w where w.ctid = any (array(select c.row_id from chosen c))
    returning w.tenant_id, w.job_id, w.epoch, w.attempt_no, w.is_suspect
  ), due as (
    -- not before now: workers pass over what lies behind the jobs they claimed, until their next full look
    update jobforge.jobs j set run_at = greatest(j.run_at, jobforge.now())
    from moved m
    where j.tenant_id = any (p_tenant_ids) and j.id = any (array(select i.job_id from moved i))
      and j.id between (select i.job_id from moved i order by 1 limit 1) and (select i.job_id from moved i order by 1 desc limit 1)
      and j.tenant_id = m.tenant_id and j.id = m.job_id
    returning j.tenant_id, j.id, j.job_type, j.lane_type, j.priority, j.run_at, m.epoch, m.attempt_no, m.is_suspect
  ), new_ready as (
    insert into jobforge.ready (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no, is_suspect, own_type)
    select d.tenant_id, coalesce(d.lane_type, d.job_type), d.priority, d.run_at, d.id, d.epoch, d.attempt_no, d.is_suspect,
      case when d.lane_type is not null then d.job_type end
    from due d
    returning tenant_id, job_type
  )
  select array_agg(l.tenant_id::text) as tenant_ids, array_agg(l.job_type::text) as job_types, sum(l.count)::integer as count
  into v_moved
  from (select r.tenant_id, r.job_type, count(*) from new_ready r group by 1, 2) l;
  if v_moved.count > 0 then
    perform jobforge.touch_lanes(v_moved.tenant_ids, v_moved.job_types);
    perform jobforge.wake('ready');
  end if;
  return coalesce(v_moved.count, 0);
end $$;
comment on function jobforge.unpark_jobs(text[], text[], integer[]) is 'Bring parked jobs of these counters back to ready, so many of each.';

-- A slot comes back for each element; the next jobs of its key follow in the same transaction. The row of a key that
-- nothing holds and nobody waits for is removed: keys are as many as customers.
create or replace function jobforge.free_slots(p_tenant_ids text[], p_counters text[]) returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
set enable_seqscan = off
as $$
declare
  v_next record;
begin
  with locked as materialized (
    select c.tenant_id, c.counter, c.running - f.count as running, f.count
    from (
      select u.tenant_id collate "C" as tenant_id, u.counter collate "C" as counter, count(*)::integer
      from unnest(p_tenant_ids, p_counters) u(tenant_id, counter) group by 1, 2) f
    join jobforge.claim_counters c on c.tenant_id = f.tenant_id and c.counter = f.counter
    where c.tenant_id = any (p_tenant_ids) and c.counter = any (p_counters)
    order by 1, 2 for update of c
  )
  select array_agg(l.tenant_id::text) as tenant_ids, array_agg(l.counter::text) as counters, array_agg(l.running) as running,
    array_agg(l.count) as counts into v_next
  from locked l;
  -- a statement of its own, so that it sees what was parked while we waited for the locks
  with left_over as materialized (
    select u.*, coalesce((
      select true from jobforge.waiting w
      where w.tenant_id = u.tenant_id and w.counter = u.counter and w.waiting_for = 'limit' limit 1), false) as is_wanted
    from unnest(v_next.tenant_ids, v_next.counters, v_next.running, v_next.counts) u(tenant_id, counter, running, count)
  ), gone as (
    delete from jobforge.claim_counters c using left_over l
    where c.tenant_id = any (v_next.tenant_ids) and c.counter = any (v_next.counters) and c.tenant_id = l.tenant_id and c.counter = l.counter and l.running <= 0 and not l.is_wanted
  ), kept as (
    update jobforge.claim_counters c set running = greatest(l.running, 0) from left_over l
    where c.tenant_id = any (v_next.tenant_ids) and c.counter = any (v_next.counters) and c.tenant_id = l.tenant_id and c.counter = l.counter and (l.running > 0 or l.is_wanted)
  )
  select array_agg(l.tenant_id) as tenant_ids, array_agg(l.counter) as counters, array_agg(l.count) as counts into v_next
  from left_over l where l.is_wanted;
  if v_next.counters is not null then
    perform jobforge.unpark_jobs(v_next.tenant_ids, v_next.counters, v_next.counts);
  end if;
end $$;
comment on function jobforge.free_slots(text[], text[]) is 'Give slots of concurrency keys back and let the next jobs of the keys follow.';

-- What the claim will ask of a new job. The counters are those of its job type: a key means something within its definition.
create or replace function jobforge.read_claim_limits(p_job_type text, p_limits jsonb)
returns table (slot_key text, slot_limit integer, rate_key text, rate_limit integer, rate_period_ms integer)
language sql immutable
as $$
  select case when p_limits ? 'concurrency' then 'slot:' || p_job_type || ':' || coalesce(p_limits #>> '{concurrency,key}', '') end,
    (p_limits #>> '{concurrency,limit}')::integer,
    case when p_limits ? 'rateLimit'
      then 'rate:' || p_job_type || ':' || (p_limits #>> '{rateLimit,periodMs}') || ':' || coalesce(p_limits #>> '{rateLimit,key}', '') end,
    (p_limits #>> '{rateLimit,count}')::integer, (p_limits #>> '{rateLimit,periodMs}')::integer
$$;
comment on function jobforge.read_claim_limits(text, jsonb) is 'Counters and limits of a job, from what its definition says.';

-- How many starts of a rate are not yet older than its period. A slice counts until its end is.
create or replace function jobforge.count_starts(
  p_starts_at timestamptz[], p_starts integer[], p_period_ms integer, p_now timestamptz)
returns integer
language sql stable
as $$
  select coalesce(sum(u.count), 0)::integer from unnest(p_starts_at, p_starts) u(at, count)
  where u.at > p_now - p_period_ms * interval '1 millisecond'
$$;
comment on function jobforge.count_starts(timestamptz[], integer[], integer, timestamptz) is 'Starts within the last so many milliseconds.';

-- For explain_run: the counter that has no room for a job, and who holds it.
create or replace function jobforge.full_counter(p_tenant_id text, p_job_id uuid)
returns table (cause text, message text, until_at timestamptz, blocked_by uuid)
language sql stable
set search_path = jobforge, pg_temp
set enable_seqscan = off
as $$
  select 'limit_reached', format('At most %s runs of %s%s may run at once, and %s do.', c.most, j.job_type,
      case when k.key <> '' then format(' with the key %s', k.key) else '' end, c.running), null::timestamptz, h.job_id
  from jobforge.jobs j
  cross join lateral (select left(substr(j.slot_key, length('slot:' || j.job_type || ':') + 1), 100) as key) k
  join jobforge.claim_counters c on c.tenant_id = j.tenant_id and c.counter = j.slot_key and c.running >= c.most
  left join lateral (
    select u.job_id from jobforge.leases l
    cross join lateral unnest(l.job_ids) u(job_id)
    cross join lateral (
      select from jobforge.jobs x where x.tenant_id = l.tenant_id and x.id = u.job_id and x.slot_key = j.slot_key offset 0) o
    where l.tenant_id = j.tenant_id
    order by l.claimed_at, u.job_id limit 1) h on true
  where j.tenant_id = p_tenant_id and j.id = p_job_id
  union all
  select 'rate_limited', format('At most %s runs of %s%s may start within %s ms, and as many did.', c.most, j.job_type,
      case when k.key <> '' then format(' with the key %s', k.key) else '' end, j.rate_period_ms),
    coalesce(c.next_at, c.starts_at[1] + j.rate_period_ms * interval '1 millisecond'), null::uuid
  from jobforge.jobs j
  cross join lateral (
    select left(substr(j.rate_key, length('rate:' || j.job_type || ':' || j.rate_period_ms || ':') + 1), 100) as key) k
  join jobforge.claim_counters c on c.tenant_id = j.tenant_id and c.counter = j.rate_key
    and jobforge.count_starts(c.starts_at, c.starts, j.rate_period_ms, jobforge.now()) >= c.most
  where j.tenant_id = p_tenant_id and j.id = p_job_id
  limit 1
$$;
comment on function jobforge.full_counter(text, uuid) is 'The limit of its definition that has no room for a job now.';

create or replace function jobforge.pause_of(p_tenant_id text, p_job_id uuid) returns table (message text)
language sql stable
set search_path = jobforge, pg_temp
as $$
  select format('%s was paused by %s%s; nothing of it starts until it is resumed.',
    case p.kind when 'tenant' then 'The tenant' when 'type' then 'The job type ' || p.name else 'The project ' || p.name end,
    coalesce(p.paused_by, 'somebody'), coalesce(': ' || p.reason, ''))
  from jobforge.jobs j
  join jobforge.pauses p on p.tenant_id = j.tenant_id and (p.kind = 'tenant' or (p.kind = 'project' and p.name = j.project_id)
    or (p.kind = 'type' and p.name in (j.job_type, j.lane_type)))
  where j.tenant_id = p_tenant_id and j.id = p_job_id
  order by array_position(array['tenant', 'type', 'project'], p.kind::text) limit 1
$$;
comment on function jobforge.pause_of(text, uuid) is 'What is paused that keeps a job from starting.';

reset role;
set local role jobforge_sys;

create or replace function jobforge.is_holding_back(p_tenant_ids text[]) returns boolean
language sql stable
as $$
  select exists (select from jobforge.limited_tenants t where t.tenant_id = any (p_tenant_ids))
    or exists (select from jobforge.pauses p where p.tenant_id = any (p_tenant_ids))
$$;
comment on function jobforge.is_holding_back(text[]) is 'Whether a claim has to ask about jobs of these tenants one by one.';

-- Lock the counters of these jobs, those of a key that has none yet are made. Returned are the locked ones: all of them,
-- unless the caller may not wait.
create or replace function jobforge.lock_counters(p_tenant_ids text[], p_job_ids uuid[], p_may_wait boolean)
returns table (tenant_id text, counter text)
language plpgsql volatile
set search_path = jobforge, pg_temp
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  v_tenants text[];
  v_counters text[];
begin
  select array_agg(k.tenant_id), array_agg(k.counter) into v_tenants, v_counters
  from (
    select distinct j.tenant_id, n.counter
    from unnest(p_tenant_ids, p_job_ids) u(tenant_id, job_id)
    cross join lateral (
      select x.tenant_id, x.slot_key, x.rate_key from jobforge.jobs x where x.tenant_id = u.tenant_id and x.id = u.job_id offset 0) j
    cross join lateral (values (j.slot_key), (j.rate_key)) n(counter)
    where n.counter is not null) k;
  if v_counters is null then
    return;
  end if;
  if p_may_wait then
    -- where false: the row that is there is locked and not changed
    insert into jobforge.claim_counters as c (tenant_id, counter)
    select u.tenant_id, u.counter from unnest(v_tenants, v_counters) u(tenant_id, counter)
    order by u.tenant_id collate "C", u.counter collate "C"
    on conflict (tenant_id, counter) do update set running = c.running where false;
    return query select u.tenant_id, u.counter from unnest(v_tenants, v_counters) u(tenant_id, counter);
  else
    return query
    select c.tenant_id::text, c.counter::text
    from unnest(v_tenants, v_counters) u(tenant_id, counter)
    join jobforge.claim_counters c on c.tenant_id = u.tenant_id and c.counter = u.counter
    where c.tenant_id = any (v_tenants) and c.counter = any (v_counters)
    order by 1, 2 for update of c skip locked;
  end if;
end $$;
comment on function jobforge.lock_counters(text[], uuid[], boolean) is 'Lock the counters of jobs that are to be claimed.';

-- Decide over jobs that a claim took out of ready, in the order given: start, park, or put back what is too many or stands
-- under a counter that somebody else holds. Rates come first, so that a slot is never refused for the sake of a job that
-- does not start. Epochs and attempt numbers are those of the claim, one more than before it. What starts does so
-- at the time returned, which is the one that its rate counts.
create or replace function jobforge.admit_jobs(
  p_tenant_ids text[], p_job_ids uuid[], p_epochs integer[], p_attempt_nos smallint[], p_most integer, p_is_suspect boolean,
  p_may_wait boolean)
returns table (tenant_ids text[], job_ids uuid[], epochs integer[], attempt_nos smallint[], parked integer,
  decided_at timestamptz)
language plpgsql volatile
set search_path = jobforge, pg_temp
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  v_now timestamptz;
  v_held_tenants text[]; v_held_counters text[];
  v_pause_tenants text[]; v_pause_kinds text[]; v_pause_names text[];
  v_decided record;
begin
  -- resume_queue waits for these locks, and then finds what is parked here
  select array_agg(p.tenant_id::text), array_agg(p.kind::text), array_agg(p.name::text)
  into v_pause_tenants, v_pause_kinds, v_pause_names
  from (select x.* from jobforge.pauses x where x.tenant_id = any (p_tenant_ids) for share skip locked) p;
  select array_agg(l.tenant_id), array_agg(l.counter) into v_held_tenants, v_held_counters
  from jobforge.lock_counters(p_tenant_ids, p_job_ids, p_may_wait) l;
  v_now := jobforge.now();

  with held as materialized (
    select c.* from unnest(v_held_tenants, v_held_counters) h(tenant_id, counter)
    cross join lateral (
      select * from jobforge.claim_counters x where x.tenant_id = h.tenant_id and x.counter = h.counter offset 0) c
  ), asked as materialized (
    select u.ord, j.tenant_id, j.id, u.epoch, u.attempt_no, j.job_type, j.lane_type, j.priority, j.run_at, j.slot_key, j.slot_limit, j.rate_key,
      j.rate_limit, j.rate_period_ms, p.counter as pause, s.most as slot_most, s.most_of as slot_most_of, r.most as rate_most,
      r.most_of as rate_most_of,
      (p.counter is null and s.counter is not distinct from j.slot_key and r.counter is not distinct from j.rate_key) as is_open,
      s.running, jobforge.count_starts(r.starts_at, r.starts, j.rate_period_ms, v_now) as started
    from unnest(p_tenant_ids, p_job_ids, p_epochs, p_attempt_nos) with ordinality u(tenant_id, job_id, epoch, attempt_no, ord)
    cross join lateral (select * from jobforge.jobs x where x.tenant_id = u.tenant_id and x.id = u.job_id offset 0) j
    left join held s on s.tenant_id = j.tenant_id and s.counter = j.slot_key
    left join held r on r.tenant_id = j.tenant_id and r.counter = j.rate_key
    left join lateral (
      select 'pause:' || n.kind || ':' || n.name as counter
      from unnest(v_pause_tenants, v_pause_kinds, v_pause_names) n(tenant_id, kind, name)
      where n.tenant_id = j.tenant_id and ((n.kind = 'type' and n.name = j.job_type) or (n.kind = 'project' and n.name = j.project_id))
      order by 1 limit 1) p on true
  ), newest as (
    select a.*, first_value(a.slot_limit) over slots as newest_slot_limit, first_value(a.id) over slots as newest_of_slot,
      first_value(a.rate_limit) over rates as newest_rate_limit, first_value(a.id) over rates as newest_of_rate
    from asked a
    window slots as (partition by a.tenant_id, a.slot_key order by a.id desc),
      rates as (partition by a.tenant_id, a.rate_key order by a.id desc)
  ), bound as (
    select n.*, case when n.slot_most_of > n.newest_of_slot then n.slot_most else n.newest_slot_limit end as most_slots,
      case when n.rate_most_of > n.newest_of_rate then n.rate_most else n.newest_rate_limit end as most_starts
    from newest n
  ), rated as (
    select b.*, b.is_open and (b.rate_key is null
      or b.started + row_number() over (partition by b.tenant_id, b.rate_key, b.is_open order by b.ord) <= b.most_starts) as is_rated
    from bound b
  ), slotted as (
    select r.*, r.is_rated and (r.slot_key is null
      or r.running + row_number() over (partition by r.tenant_id, r.slot_key, r.is_rated order by r.ord) <= r.most_slots) as is_slotted
    from rated r
  ), decided as materialized (
    select s.*, case
        when s.pause is not null then s.pause
        when not s.is_open then null
        when not s.is_rated then s.rate_key
        when not s.is_slotted then s.slot_key
      end as park_at,
      s.is_slotted and row_number() over (partition by s.is_slotted order by s.ord) <= p_most as is_admitted
    from slotted s
  ), slots as (
    update jobforge.claim_counters c
    set running = c.running + n.count, most = n.most_slots, most_of = greatest(c.most_of, n.newest_of_slot)
    from (
      select d.tenant_id, d.slot_key, d.most_slots, d.newest_of_slot, count(*) filter (where d.is_admitted)::integer as count
      from decided d where d.slot_key is not null and d.is_open group by 1, 2, 3, 4) n
    where c.tenant_id = any (v_held_tenants) and c.counter = any (v_held_counters) and c.tenant_id = n.tenant_id and c.counter = n.slot_key
  ), rates as (
    update jobforge.claim_counters c
    set starts_at = w.starts_at, starts = w.starts, most = n.most_starts, most_of = greatest(c.most_of, n.newest_of_rate),
      next_at = case when n.is_parking then least(c.next_at, coalesce(w.starts_at[1], v_now) + n.period) else c.next_at end
    from (
      select d.tenant_id, d.rate_key, d.most_starts, d.newest_of_rate, max(d.rate_period_ms) * interval '1 millisecond' as period,
        count(*) filter (where d.is_admitted)::integer as count, bool_or(d.park_at = d.rate_key) as is_parking
      from decided d where d.rate_key is not null and d.is_open group by 1, 2, 3, 4) n
    cross join lateral (
      select k.starts_at, k.starts from jobforge.claim_counters k where k.tenant_id = n.tenant_id and k.counter = n.rate_key) k
    cross join lateral (
      select coalesce(array_agg(g.at order by g.at), '{}') as starts_at, coalesce(array_agg(g.count order by g.at), '{}') as starts
      from (
        select x.at, sum(x.count)::integer as count
        from (
          select o.at, o.count from unnest(k.starts_at, k.starts) o(at, count) where o.at > v_now - n.period
          union all
          select pg_catalog.to_timestamp(ceil(extract(epoch from v_now) / s.seconds) * s.seconds), n.count
          from (select extract(epoch from n.period) / 20 as seconds) s where n.count > 0) x
        group by x.at) g) w
    where c.tenant_id = any (v_held_tenants) and c.counter = any (v_held_counters) and c.tenant_id = n.tenant_id and c.counter = n.rate_key
  ), parked as (
    insert into jobforge.waiting (tenant_id, job_id, waiting_for, counter, priority, epoch, attempt_no, is_suspect)
    select d.tenant_id, d.id, 'limit', d.park_at, d.priority, d.epoch - 1, d.attempt_no - 1, p_is_suspect
    from decided d where d.park_at is not null
  ), delayed as (  -- behind what other claims have taken meanwhile, which they would not look at again
    update jobforge.jobs j set run_at = v_now from decided d
    where j.tenant_id = any (p_tenant_ids) and j.id = any (p_job_ids)
      and j.id between (select i from unnest(p_job_ids) i order by i limit 1) and (select i from unnest(p_job_ids) i order by i desc limit 1)
      and d.park_at is null and not d.is_open and j.tenant_id = d.tenant_id and j.id = d.id
  ), put_back as (
    insert into jobforge.ready (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no, is_suspect, own_type)
    select d.tenant_id, coalesce(d.lane_type, d.job_type), d.priority,
      case when d.is_open then d.run_at else v_now end, d.id, d.epoch - 1, d.attempt_no - 1, p_is_suspect,
      case when d.lane_type is not null then d.job_type end
    from decided d where d.park_at is null and not d.is_admitted
  )
  select array_agg(d.tenant_id::text order by d.ord) filter (where d.is_admitted) as tenant_ids,
    array_agg(d.id order by d.ord) filter (where d.is_admitted) as job_ids,
    array_agg(d.epoch order by d.ord) filter (where d.is_admitted) as epochs,
    array_agg(d.attempt_no order by d.ord) filter (where d.is_admitted) as attempt_nos,
    count(d.park_at)::integer as parked,
    -- a slot that was meant for a job that something else holds back is offered to the next of its key
    array_agg(d.tenant_id::text) filter (where d.slot_key is not null and d.park_at <> d.slot_key and d.running < d.most_slots) as spare_tenants,
    array_agg(d.slot_key::text) filter (where d.slot_key is not null and d.park_at <> d.slot_key and d.running < d.most_slots) as spare_keys
  into v_decided
  from decided d;
  if v_decided.spare_keys is not null then
    perform jobforge.unpark_jobs(v_decided.spare_tenants, v_decided.spare_keys, array_fill(1, array[cardinality(v_decided.spare_keys)]));
  end if;
  return query select v_decided.tenant_ids, v_decided.job_ids, v_decided.epochs, v_decided.attempt_nos, v_decided.parked, v_now;
end $$;
comment on function jobforge.admit_jobs(text[], uuid[], integer[], smallint[], integer, boolean, boolean) is
  'Tell which of these jobs may start now; park those over a limit and put back those that are too many.';

-- Rates that have room again. Claims call it: whoever looks first brings the next jobs back.
create or replace function jobforge.unpark_rates(p_now timestamptz) returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
set enable_seqscan = off
as $$
declare
  v_due record;
begin
  with due as materialized (
    select c.* from jobforge.claim_counters c
    where c.next_at <= p_now
    order by c.tenant_id, c.counter limit 100 for update skip locked
  ), seen as materialized (
    select d.tenant_id, d.counter, case when w.is_wanted then d.most end as most, (substring(d.counter from '^rate:[^:]*:([0-9]+):')::integer) as period_ms, d.starts_at, d.starts
    from due d
    cross join lateral (
      select coalesce((
        select true from jobforge.waiting x
        where x.tenant_id = d.tenant_id and x.counter = d.counter and x.waiting_for = 'limit' limit 1), false) as is_wanted) w
  ), looked as (
    update jobforge.claim_counters c
    -- those that were brought back may need a while to start: the next look is a twentieth of the period away
    set next_at = case when s.most is not null then p_now + greatest(s.period_ms / 20, 50) * interval '1 millisecond' end
    from seen s where c.tenant_id = s.tenant_id and c.counter = s.counter
  )
  select array_agg(s.tenant_id::text) as tenant_ids, array_agg(s.counter::text) as counters,
    array_agg(s.most - jobforge.count_starts(s.starts_at, s.starts, s.period_ms, p_now)) as counts
  into v_due
  from seen s where s.most > jobforge.count_starts(s.starts_at, s.starts, s.period_ms, p_now);
  if v_due.counters is not null then
    perform jobforge.unpark_jobs(v_due.tenant_ids, v_due.counters, v_due.counts);
  end if;
end $$;
comment on function jobforge.unpark_rates(timestamptz) is 'Bring parked jobs back whose rates have room again.';

-- What no settle may come for: slots that nobody uses although jobs are parked for them, because the one that was brought
-- back was canceled or is held back; jobs of pauses that are over; counters that nobody needs. The counters are read as they
-- lie, and the parked jobs of those alone that have room: there may be as many keys as customers. p_is_whole looks at every
-- parked key besides, whether its counter is there or not.
create or replace function jobforge.tend_limits(p_is_whole boolean) returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_now timestamptz := jobforge.now();
  v_idle record;
begin
  if not pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended('tend_limits', 5751)) then
    return;  -- another worker is at it
  end if;
  with recursive tenants (tenant_id) as (
    (select w.tenant_id from jobforge.waiting w where w.waiting_for = 'limit' order by w.tenant_id, w.counter limit 1)
    union all
    select n.tenant_id from tenants cross join lateral (
      select w.tenant_id from jobforge.waiting w
      where w.waiting_for = 'limit' and w.tenant_id > tenants.tenant_id order by w.tenant_id, w.counter limit 1) n
  ), keys (tenant_id, counter) as (
    select n.tenant_id, n.counter from tenants t cross join lateral (
      select w.tenant_id, w.counter from jobforge.waiting w
      where w.waiting_for = 'limit' and w.tenant_id = t.tenant_id and (p_is_whole or w.counter >= 'pause:')
      order by w.counter limit 1) n
    where p_is_whole or n.counter < 'pause;'
    union all
    select n.tenant_id, n.counter from keys k cross join lateral (
      select w.tenant_id, w.counter from jobforge.waiting w
      where w.waiting_for = 'limit' and w.tenant_id = k.tenant_id and w.counter > k.counter
      order by w.counter limit 1) n
    where p_is_whole or n.counter < 'pause;'
  ), parked as (
    select k.tenant_id, k.counter, case
        when k.counter >= 'pause:' and k.counter < 'pause;' then case when not exists (
          select from jobforge.pauses x where x.tenant_id = k.tenant_id and 'pause:' || x.kind || ':' || x.name = k.counter) then 10000 end
        when k.counter like 'slot:%' then coalesce(c.most - c.running, 1)
        when c.next_at is null then coalesce(c.most, 1)
      end as room
    from keys k
    left join jobforge.claim_counters c on c.tenant_id = k.tenant_id and c.counter = k.counter
    union
    select c.tenant_id, c.counter, case when c.counter like 'slot:%' then c.most - c.running else c.most end
    from jobforge.claim_counters c
    where not p_is_whole and c.running < c.most and c.next_at is null and exists (
      select from jobforge.waiting w where w.tenant_id = c.tenant_id and w.counter = c.counter and w.waiting_for = 'limit')
  )
  select array_agg(p.tenant_id::text) as tenant_ids, array_agg(p.counter::text) as counters, array_agg(p.room) as rooms into v_idle
  from parked p where p.room > 0;
  if v_idle.counters is not null then
    perform jobforge.unpark_jobs(v_idle.tenant_ids, v_idle.counters, v_idle.rooms);
  end if;
  delete from jobforge.claim_counters c
  where (c.tenant_id, c.counter) in (
    select x.tenant_id, x.counter from jobforge.claim_counters x
    where x.running = 0 and x.next_at is null
      and not exists (select from jobforge.waiting w where w.tenant_id = x.tenant_id and w.counter = x.counter and w.waiting_for = 'limit')
      and (x.counter not like 'rate:%'
        or jobforge.count_starts(x.starts_at, x.starts, substring(x.counter from '^rate:[^:]*:([0-9]+):')::integer, v_now) = 0)
    limit 10000 for update skip locked);
end $$;
comment on function jobforge.tend_limits(boolean) is 'Bring back parked jobs that nothing holds back any more, and forget counters that nobody needs.';

reset role;
