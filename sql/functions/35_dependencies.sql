-- Runs that wait for other runs: steps of compositions and items of bundles, and what happens when those end.
--
-- after_final is called by every function that ends runs, in its own transaction and before promote_next. Steps are enqueued
-- and waited for in 37_steps.sql; tend_dependencies is called with every look for expired leases.
--
-- The waiting row of a dependent is the lock of its dependencies: they are written together with it, and deleted only by
-- whoever holds it. A dependent therefore never waits for something that has ended: whoever begins to wait holds its
-- dependencies' rows in jobs until it commits, so that one that ends meanwhile ends after that and finds it waiting; and
-- one whose row somebody else holds at this moment is not waited for at all, the dependent looks again.
-- Locks: after leases and jobs of the runs that end, the waiting rows of all that depend on them, by tenant_id and job_id,
-- then ordering_keys (by tenant_id, ordering_key) of these and of the runs that end. Orphans are canceled with skip locked
-- throughout.

set local role jobforge_rpc;

-- What leaves `waiting` for `ready`; the caller holds the waiting rows. Those that joined a line before they began to wait
-- are its head; items of a bundle join theirs now.
create or replace function jobforge.requeue_waiting(p_tenant_ids text[], p_job_ids uuid[]) returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_moved record;
  v_tenant text;
begin
  with gone as (
    delete from jobforge.waiting w using unnest(p_tenant_ids, p_job_ids) u(tenant_id, job_id)
    where w.tenant_id = any (p_tenant_ids) and w.job_id = any (p_job_ids) and w.tenant_id = u.tenant_id and w.job_id = u.job_id
    returning w.*
  ), moved as (
    -- not before now: workers pass over what lies behind the jobs they claimed, until their next full look
    update jobforge.jobs j set run_at = greatest(j.run_at, jobforge.now())
    from gone g
    where j.tenant_id = any (p_tenant_ids) and j.id = any (p_job_ids) and j.tenant_id = g.tenant_id and j.id = g.job_id
    returning j.tenant_id, j.id, coalesce(j.lane_type, j.job_type) as lane,
      case when j.lane_type is not null then j.job_type end as own_type, j.priority, j.run_at, g.epoch, g.attempt_no,
      g.waiting_for = 'dependency' and j.ordering_key is not null as is_in_line
  ), queued as (
    insert into jobforge.ready (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no, own_type)
    select m.tenant_id, m.lane, m.priority, m.run_at, m.id, m.epoch, m.attempt_no, m.own_type from moved m where not m.is_in_line
  )
  select array_agg(m.tenant_id::text) as tenants, array_agg(m.lane::text) as lanes, array_agg(m.id) filter (where m.is_in_line) as in_line,
    array_agg(m.tenant_id::text) filter (where m.is_in_line) as in_line_tenants
  into v_moved
  from moved m;
  if v_moved.tenants is null then
    return;
  end if;
  for v_tenant in select distinct u.tenant_id from unnest(v_moved.in_line_tenants) u(tenant_id) order by 1 loop
    perform jobforge.join_ordering_keys(v_tenant, array(
      select u.id from unnest(v_moved.in_line_tenants, v_moved.in_line) u(tenant_id, id) where u.tenant_id = v_tenant order by u.id));
  end loop;
  perform jobforge.touch_lanes(v_moved.tenants, v_moved.lanes);
  perform jobforge.wake('ready'), jobforge.wake('runs');
end $$;
comment on function jobforge.requeue_waiting(text[], uuid[]) is 'Queue waiting runs whose wait is over.';

-- The keys of items that are about to join a line, together with those of the runs that end, which promote_next takes next:
-- all in one order.
create or replace function jobforge.lock_ordering_keys(
  p_tenant_ids text[], p_job_ids uuid[], p_ended_tenants text[], p_ended_ids uuid[])
returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_key record;
begin
  for v_key in
    select j.tenant_id, j.ordering_key, bool_or(u.is_joining) as is_joining, min(j.id::text) filter (where u.is_joining) as job_id
    from (
      select n.tenant_id, n.job_id, true as is_joining from unnest(p_tenant_ids, p_job_ids) n(tenant_id, job_id)
      union all
      select e.tenant_id, e.job_id, false from unnest(p_ended_tenants, p_ended_ids) e(tenant_id, job_id)) u
    join jobforge.jobs j on j.tenant_id = u.tenant_id and j.id = u.job_id
    where j.ordering_key is not null
    group by 1, 2 order by 1, 2
  loop
    if v_key.is_joining then
      insert into jobforge.ordering_keys as k (tenant_id, ordering_key, head_job_id, next_turn)
      values (v_key.tenant_id, v_key.ordering_key, v_key.job_id::uuid, 0)
      on conflict (tenant_id, ordering_key) do update set next_turn = k.next_turn;
    else
      perform from jobforge.ordering_keys k
      where k.tenant_id = v_key.tenant_id and k.ordering_key = v_key.ordering_key for update;
    end if;
  end loop;
end $$;
comment on function jobforge.lock_ordering_keys(text[], uuid[], text[], uuid[]) is 'Lock the ordering keys of runs that join a line and of those that leave one.';

-- Every run named has just become final, in this transaction: all succeeded, or none did. A tenant in which nothing waits
-- and nobody is to be told pays two probes. A dependent that goes with a failed dependency is itself a run that ended, and so on: all that could be
-- reached are locked first, in order.
drop function if exists jobforge.after_final(text[], uuid[]);
create or replace function jobforge.after_final(p_tenant_ids text[], p_job_ids uuid[], p_has_failed boolean default true)
returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
set enable_seqscan = off
as $$
declare
  v_now timestamptz := jobforge.now();
  v_held_ids uuid[];
  v_ended_tenants text[] := p_tenant_ids; v_ended_ids uuid[] := p_job_ids;
  v_has_failed boolean := p_has_failed;
  v_touched_tenants text[] := '{}'; v_touched_ids uuid[] := '{}';
  v_round record;
begin
  if p_has_failed then
    perform jobforge.leave_orphans(p_tenant_ids, p_job_ids);
  end if;
  if exists (
    select from jobforge.connector_configs c where c.tenant_id = any (p_tenant_ids) and c.kind = 'webhook.completion')
  then
    perform jobforge.notify_ended(p_tenant_ids, p_job_ids);
  end if;
  if not exists (select from jobforge.job_dependencies d where d.tenant_id = any (p_tenant_ids)) then
    return;
  end if;

  with recursive affected (tenant_id, job_id, is_canceled) as (
    select d.tenant_id, d.job_id, p_has_failed and d.on_failure = 'cancel'
    from unnest(p_tenant_ids, p_job_ids) u(tenant_id, job_id)
    cross join lateral (
      select * from jobforge.job_dependencies x
      where x.tenant_id = u.tenant_id and x.depends_on_id = u.job_id and not x.is_orphan offset 0) d
    union
    select d.tenant_id, d.job_id, d.on_failure = 'cancel'
    from affected a
    cross join lateral (
      select * from jobforge.job_dependencies x
      where x.tenant_id = a.tenant_id and x.depends_on_id = a.job_id and not x.is_orphan offset 0) d
    where a.is_canceled
  )
  select array_agg(w.job_id) into v_held_ids
  from (select distinct a.tenant_id, a.job_id from affected a order by 1, 2) a
  -- locked one by one, in that order
  cross join lateral (
    select x.job_id from jobforge.waiting x where x.tenant_id = a.tenant_id and x.job_id = a.job_id offset 0 for update) w;
  if v_held_ids is null then
    return;
  end if;

  loop
    with gone as (
      delete from jobforge.job_dependencies d using unnest(v_ended_tenants, v_ended_ids) u(tenant_id, job_id)
      where d.tenant_id = any (v_ended_tenants) and d.depends_on_id = any (v_ended_ids)
        and d.tenant_id = u.tenant_id and d.depends_on_id = u.job_id and d.job_id = any (v_held_ids) and not d.is_orphan
      returning d.tenant_id, d.job_id, d.depends_on_id, d.on_failure
    )
    select array_agg(g.tenant_id::text) as tenants, array_agg(g.job_id) as job_ids,
      array_agg(g.tenant_id::text) filter (where v_has_failed and g.on_failure = 'cancel') as cancel_tenants,
      array_agg(g.job_id) filter (where v_has_failed and g.on_failure = 'cancel') as cancel_ids,
      array_agg(g.depends_on_id) filter (where v_has_failed and g.on_failure = 'cancel') as cause_ids
    into v_round
    from gone g;
    exit when v_round.job_ids is null;
    v_touched_tenants := v_touched_tenants || v_round.tenants;
    v_touched_ids := v_touched_ids || v_round.job_ids;
    exit when v_round.cancel_ids is null;

    with causes as (
      select distinct on (u.tenant_id, u.job_id) u.* from unnest(v_round.cancel_tenants, v_round.cancel_ids, v_round.cause_ids)
        u(tenant_id, job_id, cause_id) order by u.tenant_id, u.job_id, u.cause_id
    ), gone as (
      delete from jobforge.waiting w using causes c
      where w.tenant_id = any (v_round.cancel_tenants) and w.job_id = any (v_round.cancel_ids)
        and w.tenant_id = c.tenant_id and w.job_id = c.job_id
      returning w.tenant_id, w.job_id, w.epoch, w.attempt_no, c.cause_id
    ), forgotten as (
      delete from jobforge.job_dependencies d using gone g
      where d.tenant_id = any (v_round.cancel_tenants) and d.job_id = any (v_round.cancel_ids)
        and d.tenant_id = g.tenant_id and d.job_id = g.job_id
    ), ended as (
      update jobforge.jobs j
      set final_status = 'canceled', finished_at = v_now, epoch = g.epoch, attempt_no = g.attempt_no,
        error = jsonb_build_object('code', 'DEPENDENCY_FAILED', 'retryable', false,
          'message', 'run ' || g.cause_id || ', which this one depends on, did not succeed')
      from gone g
      where j.tenant_id = any (v_round.cancel_tenants) and j.id = any (v_round.cancel_ids)
        and j.tenant_id = g.tenant_id and j.id = g.job_id
      returning j.tenant_id, j.id
    )
    select array_agg(e.tenant_id::text), array_agg(e.id) into v_ended_tenants, v_ended_ids from ended e;
    v_has_failed := true;
    exit when v_ended_ids is null;
    perform jobforge.notify_ended(v_ended_tenants, v_ended_ids);
  end loop;

  -- those that still wait, and for no more than they may
  select array_agg(w.tenant_id::text) as tenants, array_agg(w.job_id) as job_ids,
    bool_or(w.waiting_for = 'dependency') as is_new
  into v_round
  from jobforge.waiting w
  where w.tenant_id = any (v_touched_tenants) and w.job_id = any (v_touched_ids)
    and (w.tenant_id, w.job_id) in (select u.t, u.j from unnest(v_touched_tenants, v_touched_ids) u(t, j))
    and (select count(*) from jobforge.job_dependencies d where d.tenant_id = w.tenant_id and d.job_id = w.job_id) <= w.may_remain;
  if v_round.job_ids is not null then
    delete from jobforge.job_dependencies d using unnest(v_round.tenants, v_round.job_ids) u(tenant_id, job_id)
    where d.tenant_id = any (v_round.tenants) and d.job_id = any (v_round.job_ids) and d.tenant_id = u.tenant_id and d.job_id = u.job_id;
    if v_round.is_new then
      perform jobforge.lock_ordering_keys(v_round.tenants, v_round.job_ids, p_tenant_ids, p_job_ids);
    end if;
    perform jobforge.requeue_waiting(v_round.tenants, v_round.job_ids);
  end if;
  perform jobforge.wake('runs');
end $$;
comment on function jobforge.after_final(text[], uuid[], boolean) is
  'Do what is due because runs ended: tell completion webhooks, queue those that waited for them, or cancel them as well.';

-- cancel_job holds the waiting row of its run before after_final takes those of its dependents: all of them in one order.
create or replace function jobforge.lock_dependents(p_tenant_id text, p_job_id uuid) returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
set enable_seqscan = off
as $$
declare
  v_ids uuid[];
begin
  with recursive affected (job_id) as (
    select p_job_id
    union
    select d.job_id from affected a
    cross join lateral (
      select x.job_id from jobforge.job_dependencies x
      where x.tenant_id = p_tenant_id and x.depends_on_id = a.job_id and not x.is_orphan offset 0) d
  )
  select array_agg(a.job_id) into v_ids from affected a;
  -- also where this run is the only one: whoever ends what it waits for takes its row before its ordering key
  perform from jobforge.waiting w
  where w.tenant_id = p_tenant_id and w.job_id = any (v_ids)
    -- who waits for its turn is locked after ordering keys, by promote_next as well
    and w.waiting_for <> 'turn'
  order by w.job_id for update;
  -- so is this run, and those that depend on it may join a line because it ends
  perform from jobforge.ordering_keys k
  where k.tenant_id = p_tenant_id and k.ordering_key in (
    select j.ordering_key
    from unnest(v_ids) u(job_id)
    cross join lateral (
      select x.ordering_key from jobforge.jobs x
      where x.tenant_id = p_tenant_id and x.id = u.job_id and x.ordering_key is not null offset 0) j)
  order by k.ordering_key for update;
end $$;
comment on function jobforge.lock_dependents(text, uuid) is 'Lock the waiting rows of a run and of all that wait for it, and their ordering keys.';

-- Runs that ended without success wait for nothing any more; steps of theirs that are open are to be canceled. That needs
-- locks which may not be taken here: it is left to cancel_orphans.
create or replace function jobforge.leave_orphans(p_tenant_ids text[], p_job_ids uuid[]) returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
set enable_seqscan = off
as $$
begin
  delete from jobforge.job_dependencies d using unnest(p_tenant_ids, p_job_ids) u(tenant_id, job_id)
  where d.tenant_id = any (p_tenant_ids) and d.job_id = any (p_job_ids)
    and d.job_id between (select i from unnest(p_job_ids) i order by i limit 1)
      and (select i from unnest(p_job_ids) i order by i desc limit 1)
    and d.tenant_id = u.tenant_id and d.job_id = u.job_id and not d.is_child;
  insert into jobforge.job_dependencies as d (tenant_id, job_id, depends_on_id, on_failure, is_child, is_orphan)
  select s.tenant_id, s.job_id, s.child_id, 'continue', true, true
  from unnest(p_tenant_ids, p_job_ids) u(tenant_id, job_id)
  cross join lateral (
    select * from jobforge.composition_steps x where x.tenant_id = u.tenant_id and x.job_id = u.job_id offset 0) s
  where exists (select from jobforge.jobs c where c.tenant_id = s.tenant_id and c.id = s.child_id and c.final_status is null offset 0)
  order by s.tenant_id, s.job_id, s.child_id
  on conflict (tenant_id, job_id, depends_on_id) do update set is_orphan = true;
end $$;
comment on function jobforge.leave_orphans(text[], uuid[]) is 'Forget what ended runs waited for, and mark the open steps of compositions among them.';

-- Cancel open steps of compositions that have ended. Whatever somebody else holds is left to the next call.
create or replace function jobforge.cancel_orphans(p_tenant_id text, p_limit integer) returns integer
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_now timestamptz := jobforge.now();
  v_orphan record;
  v_job jobforge.jobs;
  v_place record;
  v_is_done boolean;
  v_count integer := 0;
begin
  for v_orphan in
    select d.tenant_id, d.job_id, d.depends_on_id from jobforge.job_dependencies d
    where d.is_orphan and (p_tenant_id is null or d.tenant_id = p_tenant_id)
    order by d.tenant_id, d.depends_on_id limit p_limit for update skip locked
  loop
    select * into v_job from jobforge.jobs j where j.tenant_id = v_orphan.tenant_id and j.id = v_orphan.depends_on_id;
    v_is_done := not found or v_job.final_status is not null;
    if not v_is_done then
      update jobforge.leases l set cancel_ids = array_append(array_remove(l.cancel_ids, v_job.id), v_job.id)
      where l.ctid = (
        select x.ctid from jobforge.leases x
        where x.tenant_id = v_job.tenant_id and v_job.id = any (x.job_ids) and x.lease_until > v_now
        for no key update skip locked);
      v_is_done := found;
      if found then
        insert into jobforge.run_progress as p (tenant_id, job_id, changes, cancel_requested_at, cancel_reason)
        values (v_job.tenant_id, v_job.id, 1, v_now, 'its composition has ended')
        on conflict (tenant_id, job_id) do update
          set changes = p.changes + 1, cancel_requested_at = coalesce(p.cancel_requested_at, excluded.cancel_requested_at),
            cancel_reason = coalesce(p.cancel_reason, excluded.cancel_reason);
      else
        delete from jobforge.ready r where r.ctid = (
          select x.ctid from jobforge.ready x
          where x.tenant_id = v_job.tenant_id and x.job_type = case when v_job.lane_type is null then v_job.job_type else v_job.lane_type end and x.priority = v_job.priority
            and x.run_at = v_job.run_at and x.job_id = v_job.id
          for update skip locked)
        returning r.epoch, r.attempt_no into v_place;
        if not found then
          delete from jobforge.waiting w where w.ctid = (
            select x.ctid from jobforge.waiting x where x.tenant_id = v_job.tenant_id and x.job_id = v_job.id for update skip locked)
          returning w.epoch, w.attempt_no into v_place;
        end if;
        if found then
          update jobforge.jobs j
          set final_status = 'canceled', finished_at = v_now, epoch = v_place.epoch, attempt_no = v_place.attempt_no,
            error = jsonb_build_object('code', 'CANCELED', 'message', 'its composition ended before it did', 'retryable', false)
          where j.tenant_id = v_job.tenant_id and j.id = v_job.id;
          perform jobforge.after_final(array[v_job.tenant_id::text], array[v_job.id]);
          v_is_done := true;
        end if;
      end if;
    end if;
    if v_is_done then
      delete from jobforge.job_dependencies d
      where d.tenant_id = v_orphan.tenant_id and d.job_id = v_orphan.job_id and d.depends_on_id = v_orphan.depends_on_id;
      v_count := v_count + 1;
    end if;
  end loop;
  if v_count > 0 then
    perform jobforge.wake('runs');
  end if;
  return v_count;
end $$;
comment on function jobforge.cancel_orphans(text, integer) is 'Cancel open steps of compositions that have ended, of one tenant or of all.';

-- A composition that is retried keeps what succeeded and does again what did not; a succeeded one does everything again.
create or replace function jobforge.forget_steps(p_tenant_id text, p_job_id uuid, p_is_whole boolean) returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
set enable_seqscan = off
as $$
begin
  delete from jobforge.composition_steps s
  where s.tenant_id = p_tenant_id and s.job_id = p_job_id
    and (p_is_whole or exists (
      select from jobforge.jobs c
      left join jobforge.run_progress p on p.tenant_id = c.tenant_id and p.job_id = c.id
      where c.tenant_id = s.tenant_id and c.id = s.child_id
        and (c.final_status <> 'succeeded' or (c.final_status is null and p.cancel_requested_at is not null))));
  delete from jobforge.job_dependencies d where d.tenant_id = p_tenant_id and d.job_id = p_job_id;
end $$;
comment on function jobforge.forget_steps(text, uuid, boolean) is 'Let a composition that is retried do its failed steps, or all, again.';

-- For explain_run: the open runs that a waiting one waits for, the oldest by name.
create or replace function jobforge.blocking_runs(p_tenant_id text, p_job_id uuid, p_projects text[])
returns table (message text, until_at timestamptz, blocked_by uuid)
language sql stable
set search_path = jobforge, pg_temp
as $$
  select case
      when w.waiting_for = 'child' and count(d.depends_on_id) = 1 then 'It waits for one of its steps to end.'
      when w.waiting_for = 'child' then format('It waits for steps of its own: %s are open.', count(d.depends_on_id))
      when count(d.depends_on_id) = 1 then 'It waits for a run that it depends on.'
      else format('It waits for %s runs that it depends on.', count(d.depends_on_id)) end,
    w.until_at,
    min(d.depends_on_id::text) filter (where p_projects is null or j.project_id = any (p_projects))::uuid
  from jobforge.waiting w
  left join jobforge.job_dependencies d on d.tenant_id = w.tenant_id and d.job_id = w.job_id
  left join jobforge.jobs j on j.tenant_id = d.tenant_id and j.id = d.depends_on_id
  where w.tenant_id = p_tenant_id and w.job_id = p_job_id
  group by w.waiting_for, w.until_at
$$;
comment on function jobforge.blocking_runs(text, uuid, text[]) is 'What a run waits for that waits for others.';

reset role;
set local role jobforge_sys;

create or replace function jobforge.tend_dependencies(p_limit integer default 100) returns integer
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_over record;
begin
  select array_agg(x.tenant_id::text) as tenants, array_agg(x.job_id) as job_ids into v_over
  from (
    select w.tenant_id, w.job_id from jobforge.waiting w
    where w.until_at <= jobforge.now()
    order by w.tenant_id, w.job_id limit p_limit for update skip locked) x;
  if v_over.job_ids is not null then
    delete from jobforge.job_dependencies d using unnest(v_over.tenants, v_over.job_ids) u(tenant_id, job_id)
    where d.tenant_id = u.tenant_id and d.job_id = u.job_id;
    perform jobforge.requeue_waiting(v_over.tenants, v_over.job_ids);
  end if;
  return coalesce(cardinality(v_over.job_ids), 0) + jobforge.cancel_orphans(null, p_limit);
end $$;
comment on function jobforge.tend_dependencies(integer) is
  'Queue runs whose wait is over by time, and cancel steps of compositions that have ended; every worker does within a second.';

reset role;
