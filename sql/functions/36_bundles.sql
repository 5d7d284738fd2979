-- Bundles: jobs enqueued in one call, some of which wait for others of the same call.
--
-- Called by jobforge_api. Belongs to jobforge_rpc, whose row policy admits the scope's tenant alone.
-- Locks: as enqueue_jobs; then the jobs of earlier calls that new items depend on, shared and without waiting for any.

set local role jobforge_rpc;

-- An item names what it depends on by place, and only items before it: a circle cannot be written down. Whatever is new is
-- enqueued as in any other call, so policy is asked once, and the audit log gets one row; what depends on something is then
-- taken out of the way again, in the same transaction, before anybody could see it there.
create or replace function jobforge.enqueue_bundle(
  p_tenant_id text, p_job_types text[], p_payloads text[], p_received text[], p_idempotency_keys text[], p_ordering_keys text[],
  p_priorities integer[], p_run_ats timestamptz[], p_project_ids text[], p_labels text[], p_trace_ids text[], p_job_versions text[],
  p_max_attempts integer[], p_backoff_ms integer[], p_backoff_multipliers float8[], p_max_backoff_ms integer[],
  p_timeout_ms integer[], p_dry_runs boolean[], p_costs integer[], p_lane_types text[], p_depends_on text[], p_on_failures text[],
  p_is_plan boolean default false, p_claim_limits text[] default null)
returns table (ord integer, job_id uuid, outcome text, status text, version bigint, run_at timestamptz, created_at timestamptz)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_count integer := cardinality(p_job_types);
  v_ids uuid[];
  v_outcomes text[];
  v_bad integer;
  v_items integer[]; v_needed integer[]; v_policies text[];
  v_waiting uuid[];
  v_link record;
begin
  perform jobforge.require_tenant(p_tenant_id);
  if v_count not between 1 and 100 or cardinality(p_depends_on) is distinct from v_count or cardinality(p_on_failures) is distinct from v_count then
    raise exception 'a bundle has 1 to 100 items, and says of each what it depends on' using errcode = 'JF400';
  end if;
  select array_agg(u.ord::integer), array_agg(d.place::integer), array_agg(coalesce(u.policy, 'cancel'))
  into v_items, v_needed, v_policies
  from unnest(p_depends_on, p_on_failures) with ordinality u(depends_on, policy, ord)
  cross join lateral (select distinct e.place from jsonb_array_elements_text(coalesce(u.depends_on, '[]')::jsonb) e(place)) d;
  select u.item into v_bad from unnest(v_items, v_needed, v_policies) u(item, needed, policy)
  where u.needed is null or u.needed < 1 or u.needed >= u.item or u.policy not in ('cancel', 'continue') limit 1;
  if v_bad is not null then
    raise exception 'item % of the bundle does not depend on items before it, or has an unknown failure policy', v_bad using errcode = 'JF400',
      hint = 'List items after all that they depend on; onFailure is cancel or continue.';
  end if;

  -- an item that waits joins the line of its ordering key when it no longer does
  select array_agg(e.job_id order by e.ord), array_agg(e.outcome order by e.ord) into v_ids, v_outcomes
  from jobforge.enqueue_jobs(p_tenant_id, p_job_types, p_payloads, p_received, p_idempotency_keys,
    array(select case when not coalesce(u.ord = any (v_items), false) then p_ordering_keys[u.ord] end from generate_series(1, v_count) u(ord) order by u.ord),
    p_priorities, p_run_ats, p_project_ids, p_labels, p_trace_ids, p_job_versions, p_max_attempts, p_backoff_ms,
    p_backoff_multipliers, p_max_backoff_ms, p_timeout_ms, p_dry_runs, null, 30000, p_is_plan, null, p_costs, p_lane_types,
    p_claim_limits) e;

  for v_link in
    select u.item, u.needed, u.policy from unnest(v_items, v_needed, v_policies) u(item, needed, policy)
    where v_outcomes[u.item] = 'created' and v_outcomes[u.needed] <> 'created' order by 1, 2
  loop
    if v_outcomes[v_link.needed] = 'conflict' then
      raise exception 'item % of the bundle depends on item %, whose idempotency key was used with another input', v_link.item, v_link.needed
        using errcode = 'JF409', hint = 'Nothing was enqueued: use a new key for new work.';
    end if;
    if p_is_plan then
      continue;
    end if;
    -- a run of an earlier call: it must not end between this look and our commit
    perform from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = v_ids[v_link.needed] for share skip locked;
    if not found then
      raise exception 'run % is just ending', v_ids[v_link.needed] using errcode = '40001', hint = 'Try again.';
    end if;
    if v_link.policy = 'cancel' and exists (
      select from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = v_ids[v_link.needed] and j.final_status <> 'succeeded')
    then
      raise exception 'item % of the bundle depends on run %, which did not succeed', v_link.item, v_ids[v_link.needed]
        using errcode = 'JF409', hint = 'Nothing was enqueued: retry that run first, or let the item continue on failure.';
    end if;
  end loop;

  if p_is_plan is not true and v_items is not null then
    with links as (
      select v_ids[u.item] as job_id, v_ids[u.needed] as depends_on_id, u.policy
      from unnest(v_items, v_needed, v_policies) u(item, needed, policy)
      join jobforge.jobs j on j.tenant_id = p_tenant_id and j.id = v_ids[u.needed] and j.final_status is null
      where v_outcomes[u.item] = 'created' and v_ids[u.item] <> v_ids[u.needed]
    ), written as (
      insert into jobforge.job_dependencies (tenant_id, job_id, depends_on_id, on_failure, is_child)
      select distinct on (l.job_id, l.depends_on_id) p_tenant_id, l.job_id, l.depends_on_id, l.policy, false from links l
      order by l.job_id, l.depends_on_id
    )
    select array_agg(distinct l.job_id) into v_waiting from links l;
    with moved as (
      delete from jobforge.ready r using jobforge.jobs j
      where j.tenant_id = p_tenant_id and j.id = any (v_waiting) and r.tenant_id = j.tenant_id
        and r.job_type = case when j.lane_type is null then j.job_type else j.lane_type end
        and r.priority = j.priority and r.run_at = j.run_at and r.job_id = j.id
      returning r.job_id, r.epoch, r.attempt_no
    )
    insert into jobforge.waiting (tenant_id, job_id, waiting_for, epoch, attempt_no)
    select p_tenant_id, m.job_id, 'dependency', m.epoch, m.attempt_no from moved m;
    perform jobforge.take_in_line(p_tenant_id, v_ids, v_outcomes, v_items, v_waiting, p_ordering_keys);
  end if;

  return query
  select u.ord::integer, u.id, u.outcome, r.status, r.version, coalesce(r.run_at, p_run_ats[u.ord]), r.created_at
  from unnest(v_ids, v_outcomes) with ordinality u(id, outcome, ord)
  left join (select x.* from jobforge.runs x where x.tenant_id = p_tenant_id and x.job_id = any (v_ids)) r on r.job_id = u.id
  order by u.ord;
end $$;
comment on function jobforge.enqueue_bundle(text, text[], text[], text[], text[], text[], integer[], timestamptz[], text[], text[],
  text[], text[], integer[], integer[], float8[], integer[], integer[], boolean[], integer[], text[], text[], text[], boolean,
  text[]) is
  'Commit up to 100 jobs in one call, of which some wait until others of them have ended.';

-- Items with an ordering key that depend on others got their key only now. One whose dependencies had all ended before the
-- call does not wait, and joins the line at once.
create or replace function jobforge.take_in_line(
  p_tenant_id text, p_job_ids uuid[], p_outcomes text[], p_items integer[], p_waiting uuid[], p_ordering_keys text[])
returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_free uuid[];
begin
  if not exists (select from unnest(p_items) u(item) where p_ordering_keys[u.item] is not null) then
    return;
  end if;
  update jobforge.jobs j set ordering_key = p_ordering_keys[u.item]
  from (select distinct n.item from unnest(p_items) n(item)) u
  where p_ordering_keys[u.item] is not null and p_outcomes[u.item] = 'created' and j.tenant_id = p_tenant_id and j.id = p_job_ids[u.item];
  v_free := array(
    select j.id from jobforge.jobs j
    where j.tenant_id = p_tenant_id and j.ordering_key is not null and not coalesce(j.id = any (p_waiting), false)
      and j.id = any (array(select p_job_ids[u.item] from unnest(p_items) u(item) where p_outcomes[u.item] = 'created'))
    order by j.id);
  if cardinality(v_free) > 0 then
    delete from jobforge.ready r using jobforge.jobs j
    where j.tenant_id = p_tenant_id and j.id = any (v_free) and r.tenant_id = j.tenant_id
      and r.job_type = case when j.lane_type is null then j.job_type else j.lane_type end
      and r.priority = j.priority and r.run_at = j.run_at and r.job_id = j.id;
    perform jobforge.join_ordering_keys(p_tenant_id, v_free);
  end if;
end $$;
comment on function jobforge.take_in_line(text, uuid[], text[], integer[], uuid[], text[]) is
  'Give items of a bundle that depend on others their ordering keys.';

reset role;
