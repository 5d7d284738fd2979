-- Claim and keep leases: what workers may take, and how they hold it.
--
-- Every function belongs to jobforge_sys, which sees all tenants, and is granted to jobforge_worker alone. A worker names
-- the claim it speaks for by tenant, lease id, job and epoch; what is not in that living lease row is refused. Locks:
-- leases in the order of (tenant_id, lease_id), then ready, jobs, claim_counters. Arrays are parallel: one element a job.

set local role jobforge_sys;

create or replace function jobforge.register_worker(
  p_worker_id text, p_host text, p_pid integer, p_version text, p_job_types text[], p_concurrency integer)
returns void
language sql volatile
security definer set search_path = jobforge, pg_temp
as $$
  insert into jobforge.workers (worker_id, host, pid, version, job_types, concurrency, started_at, seen_at)
  values (p_worker_id, p_host, p_pid, p_version, p_job_types, p_concurrency, jobforge.now(), jobforge.now())
  on conflict (worker_id) do update
    set job_types = excluded.job_types, concurrency = excluded.concurrency, seen_at = excluded.seen_at;
  delete from jobforge.workers w where w.seen_at < jobforge.now() - interval '1 day';
$$;
comment on function jobforge.register_worker(text, text, integer, text, text[], integer) is 'Say that a worker lives and what it can run.';

create or replace function jobforge.forget_worker(p_worker_id text) returns void
language sql volatile
security definer set search_path = jobforge, pg_temp
as $$
  delete from jobforge.workers w where w.worker_id = p_worker_id;
  delete from jobforge.listeners l where l.listener_id = p_worker_id;
$$;
comment on function jobforge.forget_worker(text) is 'Say that a worker has ended.';

-- Turn jobs just taken out of ready into lease rows, one for each tenant. A job of a registered definition brings the
-- definition with it, of the version that the run began with: its worker need not ask for anything.
drop function if exists jobforge.claim_jobs(text, text[], integer, text, text[], integer, boolean);
drop function if exists jobforge.claim_jobs(text, text[], integer, text, text[], integer, boolean, text[], text[], integer[],
  timestamptz[], uuid[]);
drop function if exists jobforge.lease_jobs(text, text[], uuid[], integer[], smallint[], integer, boolean);
drop function if exists jobforge.lease_jobs(text, text[], uuid[], integer[], smallint[], integer, boolean, text);
create or replace function jobforge.lease_jobs(
  p_worker_id text, p_tenant_ids text[], p_job_ids uuid[], p_epochs integer[], p_attempt_nos smallint[], p_lease_ms integer,
  p_is_suspect boolean, p_after_tenant text, p_now timestamptz)
returns table (tenant_id text, lease_id uuid, job_id uuid, epoch integer, attempt_no integer, max_attempts integer,
  job_type text, job_version text, payload text, project_id text, trace_id text, timeout_ms integer, is_dry_run boolean,
  is_suspect boolean, created_at timestamptz, claimed_at timestamptz, lease_until timestamptz, lane_type text,
  definition text, priority integer, run_at timestamptz, after_tenant text)
language plpgsql volatile
set search_path = jobforge, pg_temp
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  v_lease_until timestamptz := p_now + p_lease_ms * interval '1 millisecond';
  v_lease_id uuid := pg_catalog.gen_random_uuid();
begin
  return query
  with held as materialized (
    select k.ord, k.epoch, k.attempt_no, jobforge.deadline_of(p_now, j.timeout_ms) as deadline, j.tenant_id, j.id, j.job_type,
      j.job_version, j.payload, j.project_id, j.trace_id, j.timeout_ms, j.is_dry_run, j.max_attempts, j.created_at, j.lane_type,
      j.priority, j.run_at
    from unnest(p_tenant_ids, p_job_ids, p_epochs, p_attempt_nos) with ordinality k(tenant_id, job_id, epoch, attempt_no, ord)
    cross join lateral (select * from jobforge.jobs x where x.tenant_id = k.tenant_id and x.id = k.job_id offset 0) j
  ), new_leases as (
    insert into jobforge.leases (tenant_id, lease_id, worker_id, is_suspect, claimed_at, lease_until, overdue_at, job_ids,
      epochs, attempt_nos, deadlines)
    select h.tenant_id, v_lease_id, p_worker_id, p_is_suspect, p_now, v_lease_until, min(h.deadline), array_agg(h.id order by h.ord),
      array_agg(h.epoch order by h.ord), array_agg(h.attempt_no order by h.ord), array_agg(h.deadline order by h.ord)
    from held h group by h.tenant_id order by h.tenant_id
  )
  select h.tenant_id::text, v_lease_id, h.id, h.epoch, h.attempt_no::integer, h.max_attempts::integer, h.job_type::text,
    h.job_version, h.payload::text, h.project_id::text, h.trace_id, h.timeout_ms, h.is_dry_run, p_is_suspect, h.created_at,
    p_now, v_lease_until, h.lane_type::text,
    case when h.lane_type is not null then (
      select d.definition::text from jobforge.job_definitions d
      where d.tenant_id = h.tenant_id and d.job_type = h.job_type and d.job_version = h.job_version) end,
    h.priority::integer, h.run_at, p_after_tenant
  from held h order by h.ord;
end $$;
comment on function jobforge.lease_jobs(text, text[], uuid[], integer[], smallint[], integer, boolean, text, timestamptz) is 'Write the lease rows of one claim and return its jobs.';

-- A batch, fair between tenants: they take turns after p_after_tenant, a share each, and what is left over goes to those
-- with more. A tenant that woke within the last half second has its turn first. Inside a tenant the lowest priority number
-- comes first, then the oldest run_at. The turn goes on, next time, after the tenant that the answer names.
--
-- First look, then lock: the look reads a tenant's lanes in order without locks and settles how many each lane and priority
-- give; the lock takes exactly so many with skip locked. Two workers that looked at the same rows lock different ones, and
-- no row is locked that is not taken. A priority is one probe of its own, because rows of the future sort between those of
-- two priorities. Tenants are looked at a window at a time, each twice as large as the one before: sixteen fill a batch, and
-- a thousand that have nothing are passed in six steps. The settings keep the plan on the indexes whatever the statistics
-- say: these tables fill and empty in seconds.
--
-- While a transaction stays open anywhere, no dead row can be cleared away, and a look from the left edge of the index
-- would read every one that was ever claimed. So a worker says for lanes that it took much from how far it got (p_from_*,
-- exclusive): only what lies behind is read. It looks from the left edge again once in a while; who comes late waits for
-- that. Rows that are put back are therefore never put before now.
create or replace function jobforge.take_ready(
  p_job_types text[], p_limit integer, p_after_tenant text, p_tenant_ids text[], p_now timestamptz, p_from_tenants text[],
  p_from_types text[], p_from_priorities integer[], p_from_run_ats timestamptz[], p_from_ids uuid[])
returns table (tenant_ids text[], job_ids uuid[], epochs integer[], attempt_nos smallint[], after_tenant text)
language plpgsql volatile
set search_path = jobforge, pg_temp
set enable_mergejoin = off
set enable_hashjoin = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  v_tenants text[];
  v_left integer := p_limit;
  v_share integer;
  v_limited text[];
  v_late text[];
  v_tenant text;
  v_taken_tenants text[] := '{}'; v_taken_ids uuid[] := '{}'; v_taken_epochs integer[] := '{}'; v_taken_attempts smallint[] := '{}';
  v_batch record;
  v_after text;
  v_new integer;
  v_next integer := 1;
  v_window integer := 16;
  v_more text[] := '{}';
  v_is_first_turn boolean := true;
  v_is_pausing boolean := exists (select from jobforge.pauses);
begin
  select array_agg(t.tenant_id order by not t.is_new, t.tenant_id <= p_after_tenant collate "C", t.tenant_id),
    count(*) filter (where t.is_new)
  into v_tenants, v_new
  from (
    select l.tenant_id, bool_or(l.woken_at > p_now - interval '500 milliseconds') as is_new from jobforge.lanes l
    where l.job_type = any (p_job_types) and (p_tenant_ids is null or l.tenant_id = any (p_tenant_ids))
      and not (v_is_pausing and jobforge.is_lane_paused(l.tenant_id, l.job_type))
    group by l.tenant_id) t;
  if v_tenants is not null and exists (select from jobforge.running_limits) then
    -- tenants with limits of running at once go by themselves: a share of this batch for those whose turn it is
    v_share := ceil(v_left::numeric / cardinality(v_tenants));
    select array_agg(u.tenant_id order by u.turn) filter (where u.is_limited and u.turn <= v_left),
      array_agg(u.tenant_id order by u.turn) filter (where u.is_limited and u.turn > v_left),
      array_agg(u.tenant_id order by u.turn) filter (where not u.is_limited)
    into v_limited, v_late, v_tenants
    from (select n.tenant_id, n.turn, exists (select from jobforge.running_limits r where r.tenant_id = n.tenant_id) as is_limited
      from unnest(v_tenants) with ordinality n(tenant_id, turn)) u;
    foreach v_tenant in array coalesce(v_limited, '{}') loop
      exit when v_left <= 0;
      select array_agg(t.job_id) as job_ids, array_agg(t.epoch) as epochs, array_agg(t.attempt_no) as attempt_nos into v_batch
      from jobforge.take_limited(v_tenant, p_job_types, least(v_share, v_left), p_now) t;
      v_taken_tenants := v_taken_tenants || array_fill(v_tenant, array[coalesce(cardinality(v_batch.job_ids), 0)]);
      v_taken_ids := v_taken_ids || v_batch.job_ids;
      v_taken_epochs := v_taken_epochs || v_batch.epochs;
      v_taken_attempts := v_taken_attempts || v_batch.attempt_nos;
      v_left := v_left - coalesce(cardinality(v_batch.job_ids), 0);
    end loop;
  end if;

  v_share := ceil(v_left::numeric / least(16, cardinality(v_tenants)));
  while v_left > 0 and v_next <= cardinality(v_tenants) loop
    with turns as materialized (
      select u.tenant_id collate "C" as tenant_id, v_next + u.place - 1 as turn
      from unnest(v_tenants[v_next:v_next + v_window - 1]) with ordinality u(tenant_id, place)
    ), fronts as materialized (
      select x.tenant_id collate "C" as tenant_id, x.job_type collate "C" as job_type, x.priority, x.run_at, x.job_id
      from unnest(p_from_tenants, p_from_types, p_from_priorities, p_from_run_ats, p_from_ids)
        x(tenant_id, job_type, priority, run_at, job_id)
      where x.tenant_id = any (v_tenants[v_next:v_next + v_window - 1])
    ), awake as materialized (
      -- one probe for a lane that has nothing, which most may be
      select distinct t.tenant_id, t.turn, n.job_type
      from turns t join jobforge.lanes n on n.tenant_id = t.tenant_id and n.job_type = any (p_job_types)
      where not (v_is_pausing and jobforge.is_lane_paused(n.tenant_id, n.job_type)) and case
        when exists (select from fronts f where f.tenant_id = n.tenant_id and f.job_type = n.job_type) then true
        else (select true from jobforge.ready r where r.tenant_id = n.tenant_id and r.job_type = n.job_type limit 1) end
    ), looks as materialized (
      select a.tenant_id, a.turn, a.job_type, p.priority, coalesce(f.run_at, '-infinity') as from_at,
        coalesce(f.job_id, '00000000-0000-0000-0000-000000000000') as from_id
      from awake a
      cross join (values (0::smallint), (1::smallint), (2::smallint), (3::smallint)) p(priority)
      left join fronts f on f.tenant_id = a.tenant_id and f.job_type = a.job_type and f.priority = p.priority
    ), seen as materialized (
      select t.tenant_id, t.turn, x.job_type, x.priority, x.from_at, x.from_id, x.place
      from turns t
      cross join lateral (
        select h.job_type, h.priority, l.from_at, l.from_id,
          row_number() over (order by h.priority, h.run_at, h.job_id) as place
        from looks l
        cross join lateral (
          select r.job_type, r.priority, r.run_at, r.job_id
          from jobforge.ready r
          where r.tenant_id = l.tenant_id and r.job_type = l.job_type and r.priority = l.priority and r.run_at <= p_now
            and (r.run_at, r.job_id) > (l.from_at, l.from_id) and not r.is_suspect
          order by r.run_at, r.job_id limit v_share) h
        where l.tenant_id = t.tenant_id
        order by 5 limit v_share) x
    ), chosen as (
      select s.* from seen s order by s.place, s.turn limit v_left
    ), quotas as materialized (
      select c.tenant_id, c.turn, c.job_type, c.priority, c.from_at, c.from_id, count(*) as quota
      from chosen c group by 1, 2, 3, 4, 5, 6
    ), locked as materialized (
      select k.row_id
      from quotas q
      cross join lateral (
        select r.ctid as row_id
        from jobforge.ready r
        where r.tenant_id = q.tenant_id and r.job_type = q.job_type and r.priority = q.priority and r.run_at <= p_now
          and (r.run_at, r.job_id) > (q.from_at, q.from_id) and not r.is_suspect
        order by r.run_at, r.job_id limit q.quota for update skip locked) k
    ), taken as (
      delete from jobforge.ready r where r.ctid = any (array(select k.row_id from locked k))
      returning r.tenant_id, r.job_id, r.epoch, r.attempt_no, r.priority, r.run_at
    )
    select array_agg(t.tenant_id order by t.priority, t.run_at, t.job_id) as tenant_ids,
      array_agg(t.job_id order by t.priority, t.run_at, t.job_id) as job_ids,
      array_agg(t.epoch + 1 order by t.priority, t.run_at, t.job_id) as epochs,
      array_agg((t.attempt_no + 1)::smallint order by t.priority, t.run_at, t.job_id) as attempt_nos,
      (select array_agg(m.tenant_id order by m.turn) from (
        select s.tenant_id, s.turn from seen s group by 1, 2 having count(*) >= v_share) m) as more,
      (select q.tenant_id from quotas q where q.turn > v_new order by q.turn desc limit 1) as last_in_turn
    into v_batch
    from taken t;
    v_more := v_more || v_batch.more;
    if v_is_first_turn then
      v_after := coalesce(v_batch.last_in_turn, v_after);
    end if;
    v_taken_tenants := v_taken_tenants || v_batch.tenant_ids;
    v_taken_ids := v_taken_ids || v_batch.job_ids;
    v_taken_epochs := v_taken_epochs || v_batch.epochs;
    v_taken_attempts := v_taken_attempts || v_batch.attempt_nos;
    v_left := v_left - coalesce(cardinality(v_batch.job_ids), 0);
    v_next := v_next + v_window;
    v_window := 2 * v_window;
    -- everybody had a turn: what is left goes to those with more, unless others hold it
    if v_next > cardinality(v_tenants) and v_left > 0 and cardinality(v_more) > 0 and (v_is_first_turn or v_batch.job_ids is not null) then
      v_tenants := v_more;
      v_more := '{}';
      v_next := 1;
      v_window := 16;
      v_is_first_turn := false;
      v_share := ceil(v_left::numeric / least(16, cardinality(v_tenants)));
    end if;
  end loop;
  foreach v_tenant in array coalesce(v_late, '{}') loop
    exit when v_left <= 0;
    select array_agg(t.job_id) as job_ids, array_agg(t.epoch) as epochs, array_agg(t.attempt_no) as attempt_nos into v_batch
    from jobforge.take_limited(v_tenant, p_job_types, v_left, p_now) t;
    v_taken_tenants := v_taken_tenants || array_fill(v_tenant, array[coalesce(cardinality(v_batch.job_ids), 0)]);
    v_taken_ids := v_taken_ids || v_batch.job_ids;
    v_taken_epochs := v_taken_epochs || v_batch.epochs;
    v_taken_attempts := v_taken_attempts || v_batch.attempt_nos;
    v_left := v_left - coalesce(cardinality(v_batch.job_ids), 0);
  end loop;

  if cardinality(v_taken_ids) > 0 then
    return query select v_taken_tenants, v_taken_ids, v_taken_epochs, v_taken_attempts, v_after;
  end if;
end $$;
comment on function jobforge.take_ready(text[], integer, text, text[], timestamptz, text[], text[], integer[], timestamptz[],
  uuid[]) is 'Take due jobs out of ready, fairly between tenants.';

create or replace function jobforge.claim_jobs(
  p_worker_id text, p_job_types text[], p_limit integer, p_after_tenant text default '', p_tenant_ids text[] default null,
  p_lease_ms integer default 30000, p_reap boolean default false, p_from_tenants text[] default null,
  p_from_types text[] default null, p_from_priorities integer[] default null, p_from_run_ats timestamptz[] default null,
  p_from_ids uuid[] default null)
returns table (tenant_id text, lease_id uuid, job_id uuid, epoch integer, attempt_no integer, max_attempts integer,
  job_type text, job_version text, payload text, project_id text, trace_id text, timeout_ms integer, is_dry_run boolean,
  is_suspect boolean, created_at timestamptz, claimed_at timestamptz, lease_until timestamptz, lane_type text,
  definition text, priority integer, run_at timestamptz, after_tenant text)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
set enable_mergejoin = off
set enable_hashjoin = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  v_now timestamptz;
  v_left integer := p_limit;
  v_suspects record;
  v_taken record;
  v_may_wait boolean := true;
  v_round integer := 0;
  v_is_more boolean := false;
  v_look record;
  v_busy record;
  v_tenant_ids text[] := p_tenant_ids;
  v_lease_id uuid;
begin
  if coalesce(p_limit, 0) not between 1 and 1000 or coalesce(p_lease_ms, 0) not between 100 and 3600000 then
    raise exception 'a claim takes 1 to 1,000 jobs for 100 ms to 1 h' using errcode = 'JF400';
  end if;
  if p_reap then
    v_may_wait := jobforge.reap_expired(100) = 0;  -- after that it holds locks already
  end if;
  v_now := jobforge.now();
  -- All that a claim asks before it takes anything, in one statement: to make one ready costs more than what it reads.
  -- Alone in its transaction a claim need not wait for the disk: one lost in a crash took its lease id with it.
  for v_round in 1..3 loop
    select case when pg_catalog.pg_current_xact_id_if_assigned() is null then pg_catalog.set_config('synchronous_commit', 'off', true) end,
      exists (select from jobforge.claim_counters c where c.next_at <= v_now) as has_parked,
      exists (select from jobforge.ready r where r.is_suspect and r.run_at <= v_now and r.job_type = any (p_job_types)) as has_suspect,
      n.tenant_id, n.job_type, n.tenant_id <> n.last_tenant as has_many,
      n.tenant_id = n.last_tenant and n.job_type = n.last_type
        and not exists (select from jobforge.limited_tenants t where t.tenant_id = n.tenant_id)
        and not exists (select from jobforge.pauses p where p.tenant_id = n.tenant_id)
        and not exists (select from jobforge.running_limits u where u.tenant_id = n.tenant_id) as is_one_lane
    into v_look
    from (
      select min(l.tenant_id) as tenant_id, max(l.tenant_id) as last_tenant, min(l.job_type) as job_type, max(l.job_type) as last_type
      from jobforge.lanes l
      where l.job_type = any (p_job_types) and (v_tenant_ids is null or l.tenant_id = any (v_tenant_ids))) n;
    if v_look.has_parked and v_round = 1 then
      perform jobforge.unpark_rates(v_now);
      v_may_wait := false;
      v_now := jobforge.now();  -- what came back is due from then on
    else
      exit when v_look.has_many is not true;
      -- Of many lanes that are awake most may have nothing: where no more have than one window holds, the claim goes on with
      -- the tenants of those. A probe each, and no probe where the claim has a frontier: it would read what is dead before it.
      select array_agg(b.tenant_id) as tenant_ids, min(b.tenant_id) < max(b.tenant_id) as are_many into v_busy
      from (
        select l.tenant_id from jobforge.lanes l
        where l.job_type = any (p_job_types) and (p_tenant_ids is null or l.tenant_id = any (p_tenant_ids)) and case
          when l.tenant_id = any (p_from_tenants) then true
          else (select true from jobforge.ready r where r.tenant_id = l.tenant_id and r.job_type = l.job_type limit 1) end
        limit 17) b;
      exit when cardinality(v_busy.tenant_ids) > 16;
      v_tenant_ids := coalesce(v_busy.tenant_ids, '{}');
      exit when v_busy.are_many;
    end if;
  end loop;

  if v_look.has_suspect then
    select array_agg(s.tenant_id) as tenant_ids, array_agg(s.job_id) as job_ids, array_agg(s.epoch) as epochs,
      array_agg(s.attempt_no) as attempt_nos, v_now as decided_at
    into v_suspects
    from jobforge.take_suspects(p_worker_id, p_job_types, v_left, p_tenant_ids, v_now) s;
    if v_suspects.job_ids is not null and jobforge.is_holding_back(v_suspects.tenant_ids) then
      select a.tenant_ids, a.job_ids, a.epochs, a.attempt_nos, a.decided_at into v_suspects
      from jobforge.admit_jobs(v_suspects.tenant_ids, v_suspects.job_ids, v_suspects.epochs, v_suspects.attempt_nos, v_left, true,
        v_may_wait) a;
      v_may_wait := false;
    end if;
    if v_suspects.job_ids is not null then
      v_left := v_left - cardinality(v_suspects.job_ids);
      return query select * from jobforge.lease_jobs(p_worker_id, v_suspects.tenant_ids, v_suspects.job_ids, v_suspects.epochs,
        v_suspects.attempt_nos, p_lease_ms, true, null, v_suspects.decided_at);
    end if;
  end if;

  -- One lane has nobody to be fair to: what is due of it is taken and leased in one statement, without a look before.
  if v_left > 0 and v_look.is_one_lane then
    v_lease_id := pg_catalog.gen_random_uuid();
    return query
    with looks as materialized (
      select p.priority, coalesce(f.run_at, '-infinity') as from_at, coalesce(f.job_id, '00000000-0000-0000-0000-000000000000') as from_id
      from (values (0::smallint), (1::smallint), (2::smallint), (3::smallint)) p(priority)
      left join unnest(p_from_tenants, p_from_types, p_from_priorities, p_from_run_ats, p_from_ids)
        f(tenant_id, job_type, priority, run_at, job_id)
        on f.tenant_id = v_look.tenant_id and f.job_type = v_look.job_type and f.priority = p.priority
      order by p.priority
    ), locked as materialized (
      -- rows come, and are locked, one by one until there are enough
      select k.row_id
      from looks l
      cross join lateral (
        select r.ctid as row_id
        from jobforge.ready r
        where r.tenant_id = v_look.tenant_id and r.job_type = v_look.job_type and r.priority = l.priority
          and r.run_at <= v_now and (r.run_at, r.job_id) > (l.from_at, l.from_id) and not r.is_suspect
        order by r.run_at, r.job_id limit v_left for update skip locked) k
      limit v_left
    ), taken as (
      delete from jobforge.ready r where r.ctid = any (array(select k.row_id from locked k))
      returning r.tenant_id as ready_tenant, r.job_id, r.epoch + 1 as epoch, (r.attempt_no + 1)::smallint as attempt_no,
        r.priority as ready_priority, r.run_at as ready_at
    ), held as materialized (
      select k.*, jobforge.deadline_of(v_now, j.timeout_ms) as deadline, j.tenant_id, j.job_type, j.job_version, j.payload, j.project_id,
        j.trace_id, j.timeout_ms, j.is_dry_run, j.max_attempts, j.created_at, j.lane_type, j.priority, j.run_at
      from taken k
      cross join lateral (select * from jobforge.jobs x where x.tenant_id = k.ready_tenant and x.id = k.job_id offset 0) j
      order by k.ready_priority, k.ready_at, k.job_id
    ), new_leases as (
      insert into jobforge.leases (tenant_id, lease_id, worker_id, is_suspect, claimed_at, lease_until, overdue_at, job_ids,
        epochs, attempt_nos, deadlines)
      select v_look.tenant_id, v_lease_id, p_worker_id, false, v_now, v_now + p_lease_ms * interval '1 millisecond', min(h.deadline),
        array_agg(h.job_id), array_agg(h.epoch), array_agg(h.attempt_no), array_agg(h.deadline)
      from held h having count(*) > 0
    )
    select h.tenant_id::text, v_lease_id, h.job_id, h.epoch, h.attempt_no::integer, h.max_attempts::integer, h.job_type::text,
      h.job_version, h.payload::text, h.project_id::text, h.trace_id, h.timeout_ms, h.is_dry_run, false, h.created_at,
      v_now, v_now + p_lease_ms * interval '1 millisecond', h.lane_type::text,
      case when h.lane_type is not null then (
        select d.definition::text from jobforge.job_definitions d
        where d.tenant_id = h.tenant_id and d.job_type = h.job_type and d.job_version = h.job_version) end,
      h.priority::integer, h.run_at, v_look.tenant_id::text
    from held h;
    return;
  end if;

  -- Jobs over a limit are parked, and others take their place: a few times, so that a claim stays short; who comes next
  -- goes on. Where no limit or pause is, this is one round.
  while v_left > 0 and v_round < 8 loop
    v_round := v_round + 1;
    select t.*, cardinality(t.job_ids) as given into v_taken
    from jobforge.take_ready(p_job_types, case when v_round = 1 then v_left else greatest(v_left, 200) end, p_after_tenant, v_tenant_ids,
      v_now, p_from_tenants, p_from_types, p_from_priorities, p_from_run_ats, p_from_ids) t;
    exit when v_taken.job_ids is null;
    if v_round = 1 and not jobforge.is_holding_back(v_taken.tenant_ids) then
      return query select * from jobforge.lease_jobs(p_worker_id, v_taken.tenant_ids, v_taken.job_ids, v_taken.epochs,
        v_taken.attempt_nos, p_lease_ms, false, v_taken.after_tenant, v_now);
      return;
    end if;
    select a.*, v_taken.given as given, v_taken.after_tenant as after_tenant into v_taken
    from jobforge.admit_jobs(v_taken.tenant_ids, v_taken.job_ids, v_taken.epochs, v_taken.attempt_nos, v_left, false, v_may_wait) a;
    v_may_wait := false;
    v_left := v_left - coalesce(cardinality(v_taken.job_ids), 0);
    -- with room left, what was put back stands under a counter that somebody is at
    v_is_more := v_round = 8 or v_taken.given > v_taken.parked + coalesce(cardinality(v_taken.job_ids), 0);
    if v_taken.job_ids is not null then
      return query select * from jobforge.lease_jobs(p_worker_id, v_taken.tenant_ids, v_taken.job_ids, v_taken.epochs,
        v_taken.attempt_nos, p_lease_ms, false, v_taken.after_tenant, v_taken.decided_at);
    end if;
    exit when v_taken.parked = 0;
  end loop;
  if v_is_more and v_left > 0 then
    perform jobforge.wake('ready');
  end if;
end $$;
comment on function jobforge.claim_jobs(text, text[], integer, text, text[], integer, boolean, text[], text[], integer[],
  timestamptz[], uuid[]) is
  'Take a batch of due jobs for a worker, fairly between tenants, under leases.';

-- Suspects in a lease of their own, and a worker holds one such lease at a time: if it dies again, it was one of these or none.
-- How many depends on how many were lost together; those that were lost as suspects go alone. A worker may have lost
-- thousands, so none of them is read but the oldest of each lane that has some.
drop function if exists jobforge.take_suspect(text, text[], text[], timestamptz);
create or replace function jobforge.take_suspects(
  p_worker_id text, p_job_types text[], p_limit integer, p_tenant_ids text[], p_now timestamptz)
returns table (tenant_id text, job_id uuid, epoch integer, attempt_no smallint)
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_lane record;
begin
  if exists (select from jobforge.leases l where l.worker_id = p_worker_id and l.is_suspect) then
    return;
  end if;
  for v_lane in
    with recursive lanes as (
      (select r.tenant_id, r.job_type from jobforge.ready r
      where r.is_suspect order by r.tenant_id, r.job_type, r.run_at limit 1)
      union all
      select n.tenant_id, n.job_type from lanes l
      cross join lateral (
        select r.tenant_id, r.job_type from jobforge.ready r
        where r.is_suspect and (r.tenant_id, r.job_type) > (l.tenant_id, l.job_type)
        order by r.tenant_id, r.job_type, r.run_at limit 1) n
    )
    select l.tenant_id, l.job_type, h.most_together,
      exists (select from jobforge.running_limits u where u.tenant_id = l.tenant_id) as is_limited
    from lanes l
    cross join lateral (
      select r.run_at, r.most_together from jobforge.ready r
      where r.is_suspect and r.tenant_id = l.tenant_id and r.job_type = l.job_type and r.run_at <= p_now
      order by r.run_at limit 1) h
    where l.job_type = any (p_job_types) and (p_tenant_ids is null or l.tenant_id = any (p_tenant_ids))
      and not jobforge.is_lane_paused(l.tenant_id, l.job_type)
    order by h.run_at
  loop
    return query
    delete from jobforge.ready d
    where d.ctid = any (array(
      select r.ctid from jobforge.ready r
      where r.is_suspect and r.tenant_id = v_lane.tenant_id and r.job_type = v_lane.job_type and r.run_at <= p_now
        and (v_lane.is_limited or r.most_together is not distinct from v_lane.most_together)
        and (not v_lane.is_limited or jobforge.has_room(r.tenant_id, coalesce(r.own_type, r.job_type), r.job_id))
      order by r.run_at limit case when v_lane.is_limited then 1 else least(coalesce(v_lane.most_together, 1), p_limit) end
      for update skip locked))
    returning d.tenant_id::text, d.job_id, d.epoch + 1, (d.attempt_no + 1)::smallint;
    exit when found;
  end loop;
end $$;
comment on function jobforge.take_suspects(text, text[], integer, text[], timestamptz) is
  'Take jobs out of ready that were lost before together with others.';

create or replace function jobforge.heartbeat(p_worker_id text, p_tenant_ids text[], p_lease_ids uuid[], p_lease_ms integer default 30000)
returns table (tenant_id text, lease_id uuid, lease_until timestamptz, cancel_ids uuid[])
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
begin
  perform pg_catalog.set_config('synchronous_commit', 'off', true)
    where pg_catalog.pg_current_xact_id_if_assigned() is null;
  update jobforge.workers w set seen_at = v_now where w.worker_id = p_worker_id;
  return query
  with held as materialized (
    select l.tenant_id, l.lease_id from jobforge.leases l
    where (l.tenant_id, l.lease_id) in (select u.t, u.l from unnest(p_tenant_ids, p_lease_ids) u(t, l))
      and l.worker_id = p_worker_id and l.lease_until > v_now
    order by 1, 2 for no key update)
  update jobforge.leases l
  -- never past the deadline of the last job in it; jobs that pass their own are taken out by reap_expired
  set lease_until = least(v_now + p_lease_ms * interval '1 millisecond', (select max(d) from unnest(l.deadlines) d))
  from held h
  where l.tenant_id = h.tenant_id and l.lease_id = h.lease_id
  returning l.tenant_id::text, l.lease_id, l.lease_until, l.cancel_ids;
end $$;
comment on function jobforge.heartbeat(text, text[], uuid[], integer) is
  'Extend a worker''s leases; a lease that is not in the answer is gone. Tells which of their jobs are to be canceled.';

create or replace function jobforge.report_progress(
  p_tenant_ids text[], p_lease_ids uuid[], p_job_ids uuid[], p_epochs integer[], p_dones float8[], p_totals float8[],
  p_messages text[], p_logs text[])
returns table (job_id uuid, is_accepted boolean, is_cancel_requested boolean)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
  v_held integer[];
  v_canceled integer[];
begin
  perform pg_catalog.set_config('synchronous_commit', 'off', true)
    where pg_catalog.pg_current_xact_id_if_assigned() is null;
  -- The lock keeps the lease while we write: a reaper waits, and then finds what we wrote; so does another report of the
  -- same lease, whose log lines come after ours. It admits enqueue_child, which may hold its own for long. A statement of
  -- its own, since one that waited would not see the lines that were written meanwhile.
  perform from jobforge.leases l
  where (l.tenant_id, l.lease_id) in (select u.t, u.l from unnest(p_tenant_ids, p_lease_ids) u(t, l)) and l.lease_until > v_now
  order by l.tenant_id, l.lease_id for no key update;
  with held_leases as materialized (
    select l.tenant_id, l.lease_id, l.job_ids, l.epochs, l.attempt_nos, l.cancel_ids from jobforge.leases l
    where (l.tenant_id, l.lease_id) in (select u.t, u.l from unnest(p_tenant_ids, p_lease_ids) u(t, l)) and l.lease_until > v_now
  ), held as materialized (
    select g.*, h.attempt_no, g.job_id = any (l.cancel_ids) as is_cancel_requested
    from unnest(p_tenant_ids, p_lease_ids, p_job_ids, p_epochs, p_dones, p_totals, p_messages, p_logs) with ordinality
      g(tenant_id, lease_id, job_id, epoch, done, total, message, logs, ord)
    join held_leases l on l.tenant_id = g.tenant_id and l.lease_id = g.lease_id
    cross join lateral unnest(l.job_ids, l.epochs, l.attempt_nos) h(job_id, epoch, attempt_no)
    where h.job_id = g.job_id and h.epoch = g.epoch
  ), progressed as (
    insert into jobforge.run_progress as p (tenant_id, job_id, changes, epoch, done, total, message)
    select h.tenant_id, h.job_id, 1, h.epoch, h.done, h.total, left(h.message, 1000)
    from held h
    where h.done is not null or h.total is not null or h.message is not null
    order by h.tenant_id, h.job_id
    on conflict (tenant_id, job_id) do update
      set changes = p.changes + 1, epoch = excluded.epoch,
        done = case when p.epoch = excluded.epoch then greatest(p.done, excluded.done) else excluded.done end,
        total = case when p.epoch = excluded.epoch then coalesce(excluded.total, p.total) else excluded.total end,
        message = case when p.epoch = excluded.epoch then coalesce(excluded.message, p.message) else excluded.message end
  ), logged as (
    insert into jobforge.run_logs (tenant_id, job_id, line_no, attempt_no, level, message, logged_at)
    select h.tenant_id, h.job_id, n.last_no + e.line_no, h.attempt_no, e.line ->> 0, e.line ->> 1, v_now
    from held h
    cross join lateral (
      select coalesce(max(g.line_no), 0) as last_no from jobforge.run_logs g
      where g.tenant_id = h.tenant_id and g.job_id = h.job_id) n
    cross join lateral jsonb_array_elements(h.logs::jsonb) with ordinality e(line, line_no)
    where h.logs is not null and n.last_no + e.line_no <= 10000
  )
  select array_agg(h.ord::integer), array_agg(h.ord::integer) filter (where h.is_cancel_requested) into v_held, v_canceled
  from held h;
  if v_held is not null then
    perform jobforge.wake('runs');
  end if;
  return query
  select u.job_id, coalesce(u.ord = any (v_held), false), coalesce(u.ord = any (v_canceled), false)
  from unnest(p_job_ids) with ordinality u(job_id, ord)
  order by u.ord;
end $$;
comment on function jobforge.report_progress(text[], uuid[], uuid[], integer[], float8[], float8[], text[], text[]) is
  'Store progress and log lines of running jobs; refused for a claim that is not the living one.';

-- Asked by a local node before it ends: whatever tenant the work is of, nobody else may be there to do it.
create or replace function jobforge.has_work(p_job_types text[], p_within_ms integer) returns boolean
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
begin
  return exists (select from jobforge.leases)
    or exists (
      select from jobforge.ready r
      where r.job_type = any (p_job_types) and r.run_at <= jobforge.now() + p_within_ms * interval '1 millisecond')
    or exists (
      select from jobforge.waiting w where w.until_at <= jobforge.now() + p_within_ms * interval '1 millisecond')
    or exists (select from jobforge.job_dependencies d where d.is_orphan)
    or exists (select from jobforge.events e where e.processed_at is null)
    or coalesce(jobforge.next_due_at() <= jobforge.now() + p_within_ms * interval '1 millisecond', false);
end $$;
comment on function jobforge.has_work(text[], integer) is 'Whether anything is held by a worker, or due within this time and of one of these types.';

reset role;
