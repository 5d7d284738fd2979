-- Count the new jobs of a call against every limit there is, in one statement.
--
-- Called by enqueue_jobs for jobs of one type. Belongs to jobforge_sys, because a statement of a role that row policies bind
-- is made ready for a third more; like plain_call it keeps to the tenant it is given, which its caller has asked for.
-- Locks: limit_usage, by counter.

set local role jobforge_sys;

-- One update of all counters that counts and judges, because every expression and every statement of a function is made
-- ready anew in every transaction. What a limit allows stands in the row of its counter, where that of a token is written when
-- it is first used. Nothing is refused here: what is found to be too much, or has to be counted anew, is in doubt. Counters are
-- locked in the order of their index, so the plan must use it; nothing is locked where the row of a token says other limits,
-- because that row would then be locked after those behind it.
create or replace function jobforge.count_jobs(
  p_tenant_id text, p_claims jsonb, p_now timestamptz, p_job_types text[], p_payloads text[], p_priorities integer[],
  p_costs integer[], out counted text[], out tracked text[], out is_in_doubt boolean)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  v_count integer := cardinality(p_job_types);
  v_limits jsonb := p_claims -> 'limits';
  v_bytes integer := octet_length(p_payloads[1]);
  v_priority integer := coalesce(p_priorities[1], 2);
begin
  if v_count > 1 then
    select max(octet_length(u.payload)), min(coalesce(u.priority, 2)) into v_bytes, v_priority
    from unnest(p_payloads, p_priorities) u(payload, priority);
  end if;
  with used as (
    update jobforge.limit_usage u
    set permits = least(u.burst, u.permits + u.rps * greatest(0, date_part('epoch', p_now - u.refilled_at)))
        - case when p_claims @> '{"rates": false}' then 0 else v_count end,
      refilled_at = greatest(u.refilled_at, p_now),
      jobs = u.jobs + v_count,
      units = case when u.budget_units is null then u.units else u.units + v_count * coalesce(p_costs[1], 1) end,
      open_ceiling = u.open_ceiling + v_count,
      touched_at = p_now
    where u.tenant_id = p_tenant_id and u.counter = any (array['tenant:', 'type:' || p_job_types[1],
        'tool:' || pg_catalog.current_setting('jobforge.tool', true),
        case when v_limits is not null then 'token:' || (p_claims ->> 'jti') end])
      and (u.is_counted or v_bytes > u.max_payload_bytes or v_priority < u.max_priority)
      and (u.limits is null or u.limits = v_limits)
      and (v_limits is null or exists (select from jobforge.limit_usage t
        where t.tenant_id = p_tenant_id and t.counter = 'token:' || (p_claims ->> 'jti') and t.limits = v_limits))
    returning u.counter, u.is_tracked, u.limits is not null as is_token,
      coalesce(v_bytes > u.max_payload_bytes or v_priority < u.max_priority, false)
      or u.budget_run_seconds is not null or u.unit_cost is not null
      or coalesce(u.permits < -0.000001 or u.jobs > u.budget_jobs or u.units > u.budget_units
        or u.period_started_at <= p_now - u.period_seconds * interval '1 second', false)
      or coalesce(u.open_ceiling > u.max_queued or u.counted_at <= p_now - interval '10 seconds', u.max_queued is not null)
      as is_in_doubt
  )
  select array_agg(u.counter), array_agg(u.counter) filter (where u.is_tracked),
    bool_or(u.is_in_doubt) or (v_limits is not null and bool_or(u.is_token) is not true)
  into counted, tracked, is_in_doubt
  from used u;
end $$;
comment on function jobforge.count_jobs(text, jsonb, timestamptz, text[], text[], integer[], integer[]) is
  'Count new jobs of one type under every limit of a tenant and its token; says what was counted, and what is in doubt.';

grant execute on function jobforge.count_jobs(text, jsonb, timestamptz, text[], text[], integer[], integer[]) to jobforge_rpc;

reset role;
