-- Lanes with work, and wake-ups: how claims and sleepers hear of what was committed.
-- Called by whatever queues or ends a run; takes row locks only on `lanes`, `tenants` and `listeners`, and never waits for one there.

set local role jobforge_sys;

-- Tell claims that a lane has work. Skipped while the lane was seen within ten seconds, so it is rare; and it never waits
-- for another transaction: an application may hold one open after enqueueing, and its neighbours must not queue behind
-- it. Whoever does not get the lock leaves the lane to tend_lanes.
create or replace function jobforge.touch_lanes(p_tenant_ids text[], p_job_types text[]) returns void
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_now timestamptz := jobforge.now();
  v_lane record;
begin
  if cardinality(p_job_types) = 1 and exists (
    select from jobforge.lanes l
    where l.tenant_id = p_tenant_ids[1] and l.job_type = p_job_types[1] and l.seen_at > v_now - interval '10 seconds')
  then
    return;
  end if;
  for v_lane in
    select distinct u.tenant_id, u.job_type
    from unnest(p_tenant_ids, p_job_types) u(tenant_id, job_type)
    where not exists (
      select from jobforge.lanes l
      where l.tenant_id = u.tenant_id and l.job_type = u.job_type and l.seen_at > v_now - interval '10 seconds')
    order by 1, 2
  loop
    if pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended(v_lane.tenant_id || ' ' || v_lane.job_type, 5746)) then
      insert into jobforge.lanes as l (tenant_id, job_type, seen_at, woken_at)
      values (v_lane.tenant_id, v_lane.job_type, v_now, v_now)
      on conflict (tenant_id, job_type, is_found) do update set seen_at = greatest(l.seen_at, excluded.seen_at);
      if not exists (select from jobforge.tenants t where t.tenant_id = v_lane.tenant_id)
        and pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended(v_lane.tenant_id, 5747))
      then
        insert into jobforge.tenants (tenant_id, created_at) values (v_lane.tenant_id, v_now) on conflict do nothing;
      end if;
    end if;
  end loop;
end $$;
comment on function jobforge.touch_lanes(text[], text[]) is 'Tell claims that these lanes have work.';

-- NOTIFY is a hint: it is sent only while somebody sleeps, and everybody polls as well.
create or replace function jobforge.wake(p_topic text) returns void
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
begin
  if exists (select from jobforge.listeners l where l.topic = p_topic and l.expires_at > jobforge.now()) then
    perform pg_catalog.pg_notify('jobforge_' || p_topic, '');
  end if;
end $$;
comment on function jobforge.wake(text) is 'Notify those who listen for a topic, if anybody does.';

drop function if exists jobforge.plain_call(text, jsonb, text, timestamptz);

create or replace function jobforge.await_wakeup(p_listener_id text, p_topic text, p_for_ms integer) returns void
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_now timestamptz := jobforge.now();
begin
  if p_listener_id is null or char_length(p_listener_id) not between 1 and 200
    or coalesce(p_for_ms, 0) not between 1 and 3600000
  then
    raise exception 'a listener needs a name of at most 200 characters and a time of 1 ms to 1 h' using errcode = 'JF400';
  end if;
  -- only a hint: no need to wait for the disk
  perform pg_catalog.set_config('synchronous_commit', 'off', true)
    where pg_catalog.pg_current_xact_id_if_assigned() is null;
  insert into jobforge.listeners (listener_id, topic, expires_at)
  values (p_listener_id, p_topic, v_now + p_for_ms * interval '1 millisecond')
  on conflict (listener_id, topic) do update set expires_at = excluded.expires_at;
  delete from jobforge.listeners l
  where (l.listener_id, l.topic) in (
    select x.listener_id, x.topic from jobforge.listeners x
    where x.expires_at < v_now - interval '1 minute' limit 10 for update skip locked);
end $$;
comment on function jobforge.await_wakeup(text, text, integer) is
  'Ask to be notified on channel jobforge_<topic> (ready, runs or events) for so many milliseconds.';

-- Forget lanes that had no ready row for a minute, and find those whose waking was rolled back, skipped or overtaken by
-- the forgetting: they get a row of their own, which no application's open transaction can hold back. A loose walk over the distinct lanes of `ready`: its cost follows the number of lanes, not of rows.
create or replace function jobforge.tend_lanes() returns void
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  v_now timestamptz := jobforge.now();
begin
  perform pg_catalog.set_config('synchronous_commit', 'off', true)
    where pg_catalog.pg_current_xact_id_if_assigned() is null;
  delete from jobforge.lanes l
  where (l.tenant_id, l.job_type) in (
    select x.tenant_id, x.job_type from jobforge.lanes x
    where x.seen_at < v_now - interval '1 minute'
      and (select true from jobforge.ready r where r.tenant_id = x.tenant_id and r.job_type = x.job_type limit 1) is null
    for update skip locked);
  insert into jobforge.lanes (tenant_id, job_type, is_found, seen_at)
  with recursive lane (tenant_id, job_type) as (
    (select r.tenant_id, r.job_type from jobforge.ready r order by r.tenant_id, r.job_type limit 1)
    union all
    select n.tenant_id, n.job_type
    from lane cross join lateral (
      select r.tenant_id, r.job_type from jobforge.ready r
      where (r.tenant_id, r.job_type) > (lane.tenant_id, lane.job_type)
      order by r.tenant_id, r.job_type limit 1) n
  )
  select lane.tenant_id, lane.job_type, true, v_now from lane
  where not exists (select from jobforge.lanes l where l.tenant_id = lane.tenant_id and l.job_type = lane.job_type)
    and pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended(lane.tenant_id || ' ' || lane.job_type, 5748))
  on conflict do nothing;
  perform jobforge.record_refusals();
  perform jobforge.tend_limits(pg_catalog.random() < 0.01);
  perform jobforge.forget_debounces() where pg_catalog.random() < 0.01;
  perform jobforge.forget_usage() where pg_catalog.random() < 0.002;  -- every few minutes of some workers
end $$;
comment on function jobforge.tend_lanes() is 'Forget lanes without work and find forgotten ones; any worker calls it every few seconds.';

create or replace function jobforge.has_worker(p_job_type text) returns boolean
language sql stable
security definer set search_path = jobforge, pg_temp
as $$
  select exists (
    select from jobforge.workers w
    where p_job_type = any (w.job_types) and w.seen_at > jobforge.now() - interval '1 minute')
$$;
comment on function jobforge.has_worker(text) is 'Whether a living worker can run this type.';

reset role;
