-- How an idle worker rests: what it asks now and then, in one statement, and how long it need not ask again.
--
-- Called by workers that found nothing to claim. Locks what await_wakeup and tend_lanes do: the worker's own row of `listeners`,
-- lanes that nobody else holds. Jobs and leases are only looked at; what is due or expired is left to claim_jobs.

set local role jobforge_sys;

-- Nothing comes unannounced but what can be seen here beforehand: a job whose time comes, a lease that ends, a wait or a period
-- that is over. While leases are held any of them may fail and be due again soon after, so the next look is the usual
-- one; else it is when the first thing is due, or after p_rest_ms. A job that is enqueued for so near a time that a rest could
-- miss it is announced like one that is due. Zero says: claim now.
create or replace function jobforge.look_for_work(
  p_worker_id text, p_job_types text[], p_tenant_ids text[], p_listen_ms integer, p_poll_ms integer, p_rest_ms integer,
  p_tend boolean)
returns integer
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
  v_now timestamptz;
  v_is_pausing boolean := exists (select from jobforge.pauses);
begin
  if coalesce(p_poll_ms, 0) not between 1 and 3600000 or coalesce(p_rest_ms, 0) not between 1 and 3600000 then
    raise exception 'a worker rests for 1 ms to 1 h' using errcode = 'JF400';
  end if;
  perform jobforge.await_wakeup(p_worker_id, 'ready', p_listen_ms);
  if p_tend then
    perform jobforge.tend_lanes();
  end if;
  v_now := jobforge.now();
  return (
    with known (due_at) as (
      select min(least(l.lease_until, l.overdue_at)) from jobforge.leases l
      union all
      select v_now + p_poll_ms * interval '1 millisecond' where exists (select from jobforge.leases)
      union all
      select min(w.until_at) from jobforge.waiting w where w.until_at is not null
      union all
      select min(c.next_at) from jobforge.claim_counters c where c.next_at is not null
      union all
      select v_now where exists (select from jobforge.job_dependencies d where d.is_orphan)
      union all
      select min(r.run_at)
      from jobforge.lanes n
      cross join (values (0::smallint), (1::smallint), (2::smallint), (3::smallint)) p(priority)
      cross join lateral (
        select x.run_at from jobforge.ready x
        where x.tenant_id = n.tenant_id and x.job_type = n.job_type and x.priority = p.priority
        order by x.run_at, x.job_id limit 1) r
      where n.job_type = any (p_job_types) and (p_tenant_ids is null or n.tenant_id = any (p_tenant_ids))
        and not (v_is_pausing and jobforge.is_lane_paused(n.tenant_id, n.job_type))
        -- one probe for a lane that has nothing, which most may be
        and (select true from jobforge.ready e where e.tenant_id = n.tenant_id and e.job_type = n.job_type limit 1)
    )
    select ceil(1000 * greatest(0, least(p_rest_ms / 1000.0, extract(epoch from min(k.due_at) - v_now))))::integer from known k);
end $$;
comment on function jobforge.look_for_work(text, text[], text[], integer, integer, integer, boolean) is
  'Whether an idle worker should claim now: for how many milliseconds nothing is due that would not be announced.';

reset role;
