-- What an event's triggers do: the jobs of those that fire, and a row for what each of them decided.
--
-- Called by submit_event and process_event in the transaction that stores the event or marks it as processed. Triggers that
-- ask for nothing but a job, which are most, go together in one statement; those that count, cool down, deduplicate, or
-- stand under limits take the long way of 41_triggers.sql, one after the other.
-- Locks: those of 41_triggers.sql; the short way locks nothing.

set local role jobforge_rpc;

-- The jobs of several triggers of one registrar in one call; null where any of them stands in the way of the others: then
-- each is asked by itself.
create or replace function jobforge.start_fires(
  p_trigger jobforge.triggers, p_fires jsonb, p_trace_id text, out outcomes text[], out job_ids uuid[])
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_saved text[] := array(select coalesce(current_setting('jobforge.' || n.name, true), '')
    from unnest(array['actor', 'token_id', 'tool', 'trace_id', 'claims', 'signature']) with ordinality n(name, place) order by n.place);
  v_state text;
begin
  begin
    perform jobforge.enter_registrar_scope(p_trigger.tenant_id, coalesce(p_trigger.created_by, 'trigger'), p_trigger.token_id,
      p_trace_id, case when p_trigger.claims <> '{}' then p_trigger.claims::text end);
    select array_agg(e.outcome order by e.ord), array_agg(e.job_id order by e.ord) into outcomes, job_ids
    from (
      select array_agg(f.fire ->> 'jobName' order by f.place) as job_types,
        array_agg(f.fire ->> 'payload' order by f.place) as payloads,
        array_agg(f.fire ->> 'received' order by f.place) as received,
        array_agg('trigger:' || (f.fire ->> 'trigger') || ':' || (f.fire ->> 'fireKey') order by f.place) as keys,
        array_agg(f.fire ->> 'projectId' order by f.place) as project_ids,
        array_agg(p_trace_id order by f.place) as trace_ids,
        array_agg(f.fire ->> 'jobVersion' order by f.place) as job_versions,
        array_agg((f.fire ->> 'maxAttempts')::integer order by f.place) as max_attempts,
        array_agg((f.fire ->> 'backoffMs')::integer order by f.place) as backoff_ms,
        array_agg((f.fire ->> 'backoffMultiplier')::float8 order by f.place) as backoff_multipliers,
        array_agg((f.fire ->> 'maxBackoffMs')::integer order by f.place) as max_backoff_ms,
        array_agg((f.fire ->> 'timeoutMs')::integer order by f.place) as timeout_ms,
        array_agg((f.fire ->> 'cost')::integer order by f.place) as costs,
        array_agg(f.fire ->> 'laneType' order by f.place) as lane_types,
        array_agg(f.fire ->> 'claimLimits' order by f.place) as claim_limits
      from jsonb_array_elements(p_fires) with ordinality f(fire, place)) a
    cross join lateral jobforge.enqueue_jobs(p_trigger.tenant_id, a.job_types, a.payloads, p_received => a.received,
      p_idempotency_keys => a.keys, p_project_ids => a.project_ids, p_trace_ids => a.trace_ids,
      p_job_versions => a.job_versions, p_max_attempts => a.max_attempts, p_backoff_ms => a.backoff_ms,
      p_backoff_multipliers => a.backoff_multipliers, p_max_backoff_ms => a.max_backoff_ms, p_timeout_ms => a.timeout_ms,
      p_costs => a.costs, p_lane_types => a.lane_types, p_claim_limits => a.claim_limits) e;
  exception when others then
    get stacked diagnostics v_state = returned_sqlstate;
    if v_state ~ '^(40|53|55|57|58|XX)' then
      raise;
    end if;
    outcomes := null;
  end;
  perform pg_catalog.set_config('jobforge.' || n.name, v_saved[n.place], true)
  from unnest(array['actor', 'token_id', 'tool', 'trace_id', 'claims', 'signature']) with ordinality n(name, place);
end $$;
comment on function jobforge.start_fires(jobforge.triggers, jsonb, text) is
  'Enqueue the jobs of several triggers of one registrar at once; null if one of them cannot be.';

-- The short way: one statement that asks whether the triggers are those that were evaluated, and starts the jobs of the plain
-- ones. Nobody else can decide about this event at the same time, so an event's own fire needs no idempotency key: the key of
-- its row in trigger_fires is one. The rights of a registrar are those a trigger without restrictions has: to start its job
-- for as long as the token lives. is_whole is false where triggers came, went or changed since they were evaluated, or another
-- version of a registered job is the one that runs: then nothing is written. rest holds the fires of all that are not plain.
create or replace function jobforge.start_plain_fires(
  p_event jobforge.events, p_fires jsonb, p_most_depth integer, p_is_plan boolean,
  out is_whole boolean, out trigger_names text[], out job_names text[], out decisions text[], out reasons text[], out job_ids uuid[],
  out rest jsonb, out new_lanes text[])
language plpgsql volatile
set search_path = jobforge, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
  v_now timestamptz := jobforge.now();
begin
  with given as materialized (
    select f.place, f.fire, g.*
    from jsonb_array_elements(p_fires) with ordinality f(fire, place)
    cross join lateral jsonb_to_record(f.fire) g(trigger text, version integer, decision text, reason text, key text, definition text,
      payload text, "jobVersion" text, "maxAttempts" integer, "backoffMs" integer, "backoffMultiplier" float8, "maxBackoffMs" integer,
      "timeoutMs" integer, cost integer, "laneType" text, "claimLimits" text)
  ), asked as materialized (
    select g.*, t.name, t.job_name, t.version as found_version, t.token_id, coalesce(t.created_by, 'trigger') as created_by,
      coalesce(t.project_id, p_event.project_id) as project_id,
      g.version is not distinct from t.version and (g.definition is not distinct from r.job_version) as is_known,
      p_is_plan is not true and (g.decision <> 'fire' or p_event.depth < p_most_depth and t.is_enabled and t.paused_at is null and not t.is_dry_run
        and coalesce(t.cooldown_ms, 0) = 0 and t.max_per_hour is null and t.dedupe_key is null
        and not t.claims ?| array['limits', 'jobTypes', 'denyTypes', 'projects', 'once', 'links']
        and g."claimLimits" is null and (g."laneType" is null or g."jobVersion" = g.definition)
        and octet_length(g.payload) < 65536 and g.payload !~ '[0-9][eE][+-]?0*[1-9][0-9]|[0-9]{200}'
        and (not t.claims ? 'jti' or not exists (
            select from jobforge.tenants n
            where n.tenant_id = p_event.tenant_id and n.token_epoch > coalesce((t.claims ->> 'epoch')::bigint, 0))
          and not exists (
            select from jobforge.policy_tokens k
            where k.tenant_id = p_event.tenant_id and k.token_id = t.claims ->> 'jti' and k.revoked_at is not null))
        and not exists (select from jobforge.rate_limits l where l.tenant_id = p_event.tenant_id)) as is_short
    from given g
    full join jobforge.find_triggers(p_event.tenant_id, p_event.event_type, p_event.source, p_event.project_id) t on t.name = g.trigger
    left join jobforge.registered_jobs r on r.tenant_id = p_event.tenant_id and r.job_type = t.job_name and r.removed_at is null
  ), known as materialized (
    select coalesce(bool_and(a.is_known), true) as is_whole from asked a
  ), plain as materialized (
    select a.*, case when a.decision = 'fire' then jobforge.new_id() end as job_id
    from asked a cross join known k
    where k.is_whole and a.is_short
  ), jobs as (
    insert into jobforge.jobs (tenant_id, id, job_type, job_version, project_id, trace_id, created_by, payload, is_dry_run, priority,
      max_attempts, timeout_ms, backoff_ms, max_backoff_ms, backoff_multiplier, run_at, created_at, cost, lane_type)
    select p_event.tenant_id, p.job_id, p.job_name, coalesce(p."jobVersion", '1'), p.project_id, p_event.trace_id, p.created_by,
      p.payload::jsonb, false, 2, coalesce(p."maxAttempts", 3), coalesce(p."timeoutMs", 300000), coalesce(p."backoffMs", 1000),
      coalesce(p."maxBackoffMs", 60000), coalesce(p."backoffMultiplier", 2), v_now, v_now, p.cost, p."laneType"
    from plain p where p.job_id is not null
  ), queued as (
    insert into jobforge.ready (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no, own_type)
    select p_event.tenant_id, coalesce(p."laneType", p.job_name), 2, v_now, p.job_id, 0, 0,
      case when p."laneType" is not null then p.job_name end
    from plain p where p.job_id is not null
  ), remembered as (
    insert into jobforge.trigger_fires (tenant_id, trigger_name, fire_key, kind, trigger_version, event_id, decision, reason, job_id,
      decided_at)
    select p_event.tenant_id, p.name, 'event:' || p_event.id, 'event', p.version, p_event.id,
      case when p.job_id is null then p.decision else 'fired' end, left(p.reason, 1000), p.job_id, v_now
    from plain p
  ), audited as (
    insert into jobforge.audit_log (tenant_id, id, occurred_at, action, outcome, actor, token_id, tool, trace_id, job_id, job_type, detail)
    select p_event.tenant_id, jobforge.new_id(), v_now, 'enqueue', 'created', p.created_by, p.token_id, 'trigger', p_event.trace_id,
      case when count(*) = 1 then (array_agg(p.job_id))[1] end, case when count(*) = 1 then min(p.job_name) end,
      case when count(*) > 1 then jsonb_build_object('count', count(*), 'created', count(*)) end
    from plain p where p.job_id is not null
    group by p.created_by, p.token_id
  )
  select k.is_whole, p.trigger_names, p.job_names, p.decisions, p.reasons, p.job_ids, p.lanes,
    (select jsonb_agg(a.fire order by a.name) from asked a where k.is_whole and not a.is_short)
  into is_whole, trigger_names, job_names, decisions, reasons, job_ids, new_lanes, rest
  from known k
  cross join (
    select array_agg(p.name::text) as trigger_names, array_agg(p.job_name::text) as job_names,
      array_agg(case when p.job_id is null then p.decision else 'fired' end) as decisions,
      array_agg(left(p.reason, 1000)) as reasons, array_agg(p.job_id) as job_ids,
      array_agg(distinct coalesce(p."laneType", p.job_name)) filter (where p.job_id is not null and not exists (
        select from jobforge.lanes n where n.tenant_id = p_event.tenant_id and n.job_type = coalesce(p."laneType", p.job_name)
          and n.seen_at > v_now - interval '10 seconds')) as lanes
    from plain p) p;
end $$;
comment on function jobforge.start_plain_fires(jobforge.events, jsonb, integer, boolean) is
  'Enqueue the jobs of all triggers of an event that ask for nothing else, in one statement.';

-- Once for each event: whoever calls has stored it in this transaction, or holds its row.
create or replace function jobforge.decide_event_fires(p_event jobforge.events, p_fires jsonb, p_most_depth integer, p_is_plan boolean)
returns table (trigger_name text, job_name text, decision text, reason text, job_id uuid)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_is_whole boolean;
  v_names text[];
  v_job_names text[];
  v_new_lanes text[];
  v_state text;
  v_rest jsonb := p_fires;
  v_fire jsonb;
  v_trigger jobforge.triggers;
  v_key text;
  v_decision text;
  v_reason text;
  v_job_id uuid;
  v_group record;
  v_started record;
  v_triggers jobforge.triggers[];
  v_given jsonb[];
  v_keys text[];
  v_decisions text[];
  v_reasons text[];
  v_job_ids uuid[];
begin
  begin
    select s.is_whole, s.trigger_names, s.job_names, s.decisions, s.reasons, s.job_ids, s.rest, s.new_lanes
    into v_is_whole, v_names, v_job_names, v_decisions, v_reasons, v_job_ids, v_rest, v_new_lanes
    from jobforge.start_plain_fires(p_event, p_fires, p_most_depth, p_is_plan) s;
  exception when others then
    get stacked diagnostics v_state = returned_sqlstate;
    if v_state ~ '^(40|53|55|57|58|XX)' then
      raise;
    end if;
    -- one of them cannot be: each is asked by itself, and says why
  end;
  if not v_is_whole then
    raise exception 'a trigger changed while the event came in' using errcode = 'JF409', detail = 'TRIGGERS_CHANGED',
      hint = 'Nothing was stored: submit the event again.';
  end if;
  if v_names is not null then
    if v_new_lanes is not null then
      perform jobforge.touch_lanes(array_fill(p_event.tenant_id, array[cardinality(v_new_lanes)]), v_new_lanes);
    end if;
    if 'fired' = any (v_decisions) then
      perform jobforge.wake('ready');
    end if;
    return query
    select u.* from unnest(v_names, v_job_names, v_decisions, v_reasons, v_job_ids) u;
    v_decisions := null;
    v_reasons := null;
    v_job_ids := null;
  end if;
  if v_rest is null then
    return;
  end if;

  for v_fire in
    select f.fire from jsonb_array_elements(v_rest) f(fire) order by f.fire ->> 'trigger'
  loop
    select * into v_trigger from jobforge.triggers t where t.tenant_id = p_event.tenant_id and t.name = v_fire ->> 'trigger';
    -- a lock only where it must count what others do at the same time
    if found and (v_trigger.cooldown_ms > 0 or v_trigger.max_per_hour is not null or v_trigger.dedupe_key is not null) then
      select * into v_trigger from jobforge.triggers t
      where t.tenant_id = p_event.tenant_id and t.name = v_fire ->> 'trigger' for no key update;
    end if;
    continue when not found;
    if v_trigger.version <> (v_fire ->> 'version')::integer then
      raise exception 'a trigger changed while the event came in' using errcode = 'JF409', detail = 'TRIGGERS_CHANGED',
        hint = 'Nothing was stored: submit the event again.';
    end if;
    v_key := coalesce('key:' || (v_fire ->> 'key'), 'event:' || p_event.id);
    v_decision := nullif(v_fire ->> 'decision', 'fire');
    v_reason := left(v_fire ->> 'reason', 1000);
    if v_decision is null then
      select o.decision, o.reason into v_decision, v_reason
      from jobforge.find_obstacle(v_trigger, 'event', v_key, p_event.depth, p_most_depth) o;
    end if;
    v_triggers := v_triggers || v_trigger;
    v_given := v_given || (v_fire || jsonb_build_object('jobName', v_trigger.job_name, 'fireKey', v_key,
      'projectId', coalesce(v_trigger.project_id, p_event.project_id)));
    v_keys := v_keys || v_key;
    v_decisions := v_decisions || v_decision;
    v_reasons := v_reasons || v_reason;
    v_job_ids := v_job_ids || null::uuid;
  end loop;
  if v_triggers is null then
    return;
  end if;

  if p_is_plan is not true then
    for v_group in
      select array_agg(u.place::integer order by u.place) as places, jsonb_agg(v_given[u.place] order by u.place) as fires
      from unnest(v_decisions) with ordinality u(decision, place)
      where u.decision is null and not v_triggers[u.place].is_dry_run
      group by v_triggers[u.place].token_id, v_triggers[u.place].claims
      having count(*) > 1
    loop
      select * into v_started from jobforge.start_fires(v_triggers[v_group.places[1]], v_group.fires, p_event.trace_id);
      if v_started.outcomes is not null then
        for i in 1 .. cardinality(v_group.places) loop
          if v_started.outcomes[i] = 'created' then
            v_decisions[v_group.places[i]] := 'fired';
            v_job_ids[v_group.places[i]] := v_started.job_ids[i];
          else
            v_decisions[v_group.places[i]] := 'skipped';
            v_reasons[v_group.places[i]] := 'a run was made for this before';
          end if;
        end loop;
      end if;
    end loop;
  end if;
  for i in 1 .. cardinality(v_keys) loop
    if v_decisions[i] is null then
      select s.decision, s.reason, s.job_id into v_decision, v_reason, v_job_id
      from jobforge.start_fire(v_triggers[i], v_given[i], v_keys[i], p_event.project_id, p_event.trace_id, null, null,
        p_is_plan or v_triggers[i].is_dry_run) s;
      v_decisions[i] := v_decision;
      v_reasons[i] := case when v_decision = 'planned' and p_is_plan is not true then 'it is on trial and starts nothing' else v_reason end;
      v_job_ids[i] := v_job_id;
    end if;
  end loop;
  if p_is_plan is not true then
    -- only what fired takes the deduplication key: an event that was turned away must not hide the next one
    insert into jobforge.trigger_fires (tenant_id, trigger_name, fire_key, kind, trigger_version, event_id, decision, reason,
      job_id, decided_at)
    select p_event.tenant_id, v_triggers[u.place].name, case when u.decision = 'fired' then v_keys[u.place] else 'event:' || p_event.id end,
      'event', v_triggers[u.place].version, p_event.id, u.decision, v_reasons[u.place], v_job_ids[u.place], jobforge.now()
    from unnest(v_decisions) with ordinality u(decision, place);
  end if;
  return query
  select v_triggers[u.place].name::text, v_triggers[u.place].job_name::text, u.decision, v_reasons[u.place], v_job_ids[u.place]
  from unnest(v_decisions) with ordinality u(decision, place) order by u.place;
end $$;
comment on function jobforge.decide_event_fires(jobforge.events, jsonb, integer, boolean) is
  'Let triggers decide about an event, and remember what each decided and why.';

reset role;
