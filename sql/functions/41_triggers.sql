-- Triggers: register, list, pause and remove them, find those that could want an event, and decide whether one fires.
--
-- A trigger acts with the claims of whoever registered it, whoever submits the event. What needs the mapping language or a
-- definition is worked out by a server (or by maintenance) and handed in as `p_fires`, one object for each trigger:
-- {trigger, version, decision, reason, key, payload, received, jobVersion, maxAttempts, backoffMs, backoffMultiplier,
-- maxBackoffMs, timeoutMs, cost, laneType}, where decision is `fire` or why not. Everything that depends on what others do at the same
-- time is decided here: switched off, deduplicated, cooling down, too many in an hour, overlap, rights and limits.
-- Locks: triggers (by tenant_id, name) of those with a cooldown, a most per hour or a deduplication key, and of schedules;
-- then what enqueueing takes.

set local role jobforge_owner;

-- As enter_trusted_scope, with the claims that the row of a trigger keeps: they were verified when it was registered.
create or replace function jobforge.enter_registrar_scope(
  p_tenant_id text, p_actor text, p_token_id text, p_trace_id text, p_claims text) returns void
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_key jobforge.context_keys;
  v_expires_at text := extract(epoch from jobforge.now())::bigint + 30;
begin
  select * into v_key from jobforge.context_keys k order by k.is_enforced desc, k.slot limit 1;
  perform pg_catalog.set_config('jobforge.tenant_id', p_tenant_id, true),
    pg_catalog.set_config('jobforge.actor', coalesce(p_actor, ''), true),
    pg_catalog.set_config('jobforge.token_id', coalesce(p_token_id, ''), true),
    pg_catalog.set_config('jobforge.tool', 'trigger', true),
    pg_catalog.set_config('jobforge.trace_id', coalesce(p_trace_id, ''), true),
    pg_catalog.set_config('jobforge.claims', coalesce(p_claims, ''), true),
    pg_catalog.set_config('jobforge.signature', case when v_key.key_id is null then '' else
      v_key.key_id || '.' || v_expires_at || '.' || jobforge.scope_mac(v_key.inner_pad, v_key.outer_pad, p_tenant_id,
        coalesce(p_actor, ''), coalesce(p_token_id, ''), 'trigger', coalesce(p_trace_id, ''), coalesce(p_claims, ''), v_expires_at)
      end, true);
end $$;
comment on function jobforge.enter_registrar_scope(text, text, text, text, text) is
  'Enter the scope of whoever registered a trigger, signed by the database.';

grant execute on function jobforge.enter_registrar_scope(text, text, text, text, text) to jobforge_rpc;

reset role;
set local role jobforge_rpc;

create or replace function jobforge.matches_source(p_pattern text, p_source text) returns boolean
language sql immutable
set search_path = jobforge, pg_temp
as $$
  select p_pattern is null or coalesce(p_source like
    replace(replace(replace(replace(p_pattern, '\', '\\'), '%', '\%'), '_', '\_'), '*', '%'), false)
$$;
comment on function jobforge.matches_source(text, text) is 'Whether a pattern of sources, in which * is any run of characters, admits a source.';

create or replace function jobforge.literal_prefix(p_pattern text) returns text
language sql immutable
set search_path = jobforge, pg_temp
as $$
  select array_to_string(p.segments[1:least(array_position(p.segments, '*'), array_position(p.segments, '**'),
    cardinality(p.segments) + 1) - 1], '.')
  from (select string_to_array(p_pattern, '.') as segments) p
$$;
comment on function jobforge.literal_prefix(text) is 'The segments of a pattern before its first wildcard.';

create or replace function jobforge.sees_trigger(p_claims jsonb, p_project_id text, p_job_name text) returns boolean
language sql immutable
set search_path = jobforge, pg_temp
as $$
  select p_claims = '{}' or ((not p_claims ? 'projects' or coalesce((p_claims -> 'projects') ? p_project_id, false))
    and jobforge.allows_type(p_claims, p_job_name))
$$;
comment on function jobforge.sees_trigger(jsonb, text, text) is 'Whether a trigger exists for the holder of claims: its project and its job must be theirs.';

create or replace function jobforge.refuse_unknown_trigger() returns void
language plpgsql stable
set search_path = jobforge, pg_temp
as $$
begin
  raise exception 'no trigger of this name is known' using errcode = 'JF404', detail = 'TRIGGER_NOT_FOUND',
    hint = 'list-triggers shows those this token may see.';
end $$;
comment on function jobforge.refuse_unknown_trigger() is 'The one answer for a trigger that does not exist or is somebody else''s.';

-- The row of a trigger that the caller may see, locked until commit.
create or replace function jobforge.lock_trigger(p_tenant_id text, p_trigger_name text) returns jobforge.triggers
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_trigger jobforge.triggers;
begin
  select * into v_trigger from jobforge.triggers t
  where t.tenant_id = p_tenant_id and t.name = p_trigger_name
    and jobforge.sees_trigger(jobforge.current_claims(), t.project_id, t.job_name)
  for update;
  if not found then
    perform jobforge.refuse_unknown_trigger();
  end if;
  return v_trigger;
end $$;
comment on function jobforge.lock_trigger(text, text) is 'Lock the row of a trigger, or refuse it as unknown.';

-- By the literal beginning of its pattern a trigger is found, however many there are; its registrar must be allowed to
-- see the event.
create or replace function jobforge.find_triggers(p_tenant_id text, p_event_type text, p_source text, p_project_id text)
returns setof jobforge.triggers
language sql stable
set search_path = jobforge, pg_temp
as $$
  select t.* from jobforge.triggers t
  where t.tenant_id = p_tenant_id and t.kind = 'event'
    and t.event_prefix = any (array(
      select array_to_string(s.segments[1:n.length], '.')
      from (select string_to_array(p_event_type, '.') as segments) s
      cross join lateral generate_series(0, cardinality(s.segments)) n(length)))
    and (t.event_type = p_event_type or jobforge.matches_pattern(t.event_type, p_event_type))
    and (t.event_source is null or jobforge.matches_source(t.event_source, p_source))
    and (t.project_id is null or t.project_id = p_project_id)
    and (t.claims = '{}' or jobforge.allows_event(t.claims, p_event_type, p_project_id))
  order by t.name
$$;
comment on function jobforge.find_triggers(text, text, text, text) is 'Triggers that could want an event.';

drop function if exists jobforge.match_triggers(text, text, text, text, text, boolean, jsonb);
create or replace function jobforge.match_triggers(
  p_tenant_id text, p_event_type text, p_source text default null, p_project_id text default null, p_payload text default null,
  p_contains_pii boolean default false, p_redaction_hints jsonb default null)
returns table (trigger_name text, version integer, job_name text, project_id text, match text, input_mapping text, input text,
  dedupe_key text, created_by text, token_id text, claims text, scopes text[], roles text[], payload text,
  job_version text, lane_type text, definition text)
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
begin
  perform jobforge.require_tenant(p_tenant_id);
  return query
  select t.name::text, t.version, t.job_name::text, t.project_id::text, t.match::text, t.input_mapping::text, t.input::text,
    t.dedupe_key::text, t.created_by, t.token_id, t.claims::text, t.scopes, t.roles,
    case when p_contains_pii or p_redaction_hints is not null
      then jobforge.shown_payload(p_payload::jsonb, p_contains_pii, p_redaction_hints)::text end,
    d.job_version, d.lane_type::text, d.definition::text
  from jobforge.find_triggers(p_tenant_id, p_event_type, p_source, p_project_id) t
  left join jobforge.registered_jobs r on r.tenant_id = t.tenant_id and r.job_type = t.job_name and r.removed_at is null
  left join jobforge.job_definitions d on d.tenant_id = r.tenant_id and d.job_type = r.job_type
    and d.job_version = r.job_version and d.approved_at is not null;
end $$;
comment on function jobforge.match_triggers(text, text, text, text, text, boolean, jsonb) is
  'Triggers that could want an event, for the server to evaluate; with the payload as they may see it, where that differs.';

-- Enqueue the job of a trigger with the rights of its registrar. Whatever stands in the way is an answer and no error of the
-- call: the event must not be lost because of one rule. What a repetition would mend is raised.
create or replace function jobforge.start_fire(
  p_trigger jobforge.triggers, p_fire jsonb, p_fire_key text, p_project_id text, p_trace_id text, p_ordering_key text,
  p_run_at timestamptz, p_is_plan boolean, out decision text, out reason text, out job_id uuid)
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_tenant_id text := p_trigger.tenant_id;
  v_saved text[] := array(select coalesce(current_setting('jobforge.' || n.name, true), '')
    from unnest(array['actor', 'token_id', 'tool', 'trace_id', 'claims', 'signature']) with ordinality n(name, place) order by n.place);
  v_outcome text;
  v_state text;
  v_detail text;
begin
  begin
    perform jobforge.enter_registrar_scope(v_tenant_id, coalesce(p_trigger.created_by, 'trigger'), p_trigger.token_id, p_trace_id,
      case when p_trigger.claims <> '{}' then p_trigger.claims::text end);
    select e.outcome, e.job_id into v_outcome, job_id
    from jobforge.enqueue_jobs(v_tenant_id, array[p_trigger.job_name::text], array[p_fire ->> 'payload'],
      p_received => array[p_fire ->> 'received'],
      p_idempotency_keys => array['trigger:' || p_trigger.name || ':' || p_fire_key],
      p_ordering_keys => array[p_ordering_key],
      p_run_ats => array[p_run_at],
      p_project_ids => array[coalesce(p_trigger.project_id, p_project_id)],
      p_trace_ids => array[p_trace_id],
      p_job_versions => array[p_fire ->> 'jobVersion'],
      p_max_attempts => array[(p_fire ->> 'maxAttempts')::integer],
      p_backoff_ms => array[(p_fire ->> 'backoffMs')::integer],
      p_backoff_multipliers => array[(p_fire ->> 'backoffMultiplier')::float8],
      p_max_backoff_ms => array[(p_fire ->> 'maxBackoffMs')::integer],
      p_timeout_ms => array[(p_fire ->> 'timeoutMs')::integer],
      p_costs => array[(p_fire ->> 'cost')::integer],
      p_claim_limits => array[p_fire ->> 'claimLimits'],
      p_lane_types => array[p_fire ->> 'laneType'],
      p_is_plan => p_is_plan) e;
    decision := case when v_outcome = 'created' and p_is_plan then 'planned' when v_outcome = 'created' then 'fired' else 'skipped' end;
    reason := case when v_outcome <> 'created' then 'a run was made for this before' end;
  exception when others then
    get stacked diagnostics v_state = returned_sqlstate, reason = message_text, v_detail = pg_exception_detail;
    if v_state ~ '^(40|53|55|57|58|XX)' then
      raise;
    end if;
    decision := case when v_state = 'JF429' then 'rate_limited' when v_detail = 'TOKEN_REVOKED' then 'disabled' else 'error' end;
    if v_state !~ '^JF' then
      -- the server's words may quote a value
      reason := 'the database refused the run: ' || v_state;
    end if;
  end;
  perform pg_catalog.set_config('jobforge.' || n.name, v_saved[n.place], true)
  from unnest(array['actor', 'token_id', 'tool', 'trace_id', 'claims', 'signature']) with ordinality n(name, place);
  reason := left(reason, 1000);
  if decision <> 'fired' then
    job_id := null;
  end if;
  if v_detail = 'TOKEN_REVOKED' and not p_is_plan then
    update jobforge.triggers t
    set is_enabled = false, disabled_reason = 'the token that registered it was revoked', next_fire_at = null
    where t.tenant_id = v_tenant_id and t.name = p_trigger.name;
  end if;
end $$;
comment on function jobforge.start_fire(jobforge.triggers, jsonb, text, text, text, text, timestamptz, boolean) is
  'Enqueue the job of a trigger, or say why that cannot be.';

-- Why a trigger may not fire now, or nothing. Counts what it did before, so its row is locked where that matters.
create or replace function jobforge.find_obstacle(
  p_trigger jobforge.triggers, p_kind text, p_fire_key text, p_depth integer, p_most_depth integer, out decision text, out reason text)
language plpgsql stable
set search_path = jobforge, pg_temp
as $$
declare
  v_now timestamptz := jobforge.now();
  v_last timestamptz;
  v_fires bigint;
begin
  if not p_trigger.is_enabled then
    decision := 'disabled';
    reason := coalesce(p_trigger.disabled_reason, 'it is switched off');
  elsif p_kind = 'manual' then
    return;
  elsif p_trigger.paused_at is not null then
    decision := 'disabled';
    reason := 'it is paused';
  elsif p_depth >= p_most_depth then
    decision := 'skipped';
    reason := format('loop guard: %s events of this trace started jobs before it, and %s are allowed', p_depth, p_most_depth);
  elsif p_fire_key like 'key:%' and exists (
    select from jobforge.trigger_fires f
    where f.tenant_id = p_trigger.tenant_id and f.trigger_name = p_trigger.name and f.fire_key = p_fire_key)
  then
    decision := 'skipped';
    reason := 'an event with the same deduplication key came before';
  else
    if p_trigger.cooldown_ms > 0 then
      select max(f.decided_at) into v_last from jobforge.trigger_fires f
      where f.tenant_id = p_trigger.tenant_id and f.trigger_name = p_trigger.name and f.job_id is not null;
      if v_last > v_now - p_trigger.cooldown_ms * interval '1 millisecond' then
        decision := 'cooldown';
        reason := format('it fired %s s ago and rests for %s s', round(extract(epoch from v_now - v_last)::numeric, 1),
          p_trigger.cooldown_ms / 1000.0::numeric(20, 3));
        return;
      end if;
    end if;
    if p_trigger.max_per_hour is not null then
      select count(*) into v_fires from (
        select from jobforge.trigger_fires f
        where f.tenant_id = p_trigger.tenant_id and f.trigger_name = p_trigger.name and f.job_id is not null
          and f.decided_at > v_now - interval '1 hour'
        limit p_trigger.max_per_hour) l;
      if v_fires >= p_trigger.max_per_hour then
        decision := 'rate_limited';
        reason := format('it fired %s times within an hour, and no more are allowed', v_fires);
      end if;
    end if;
  end if;
end $$;
comment on function jobforge.find_obstacle(jobforge.triggers, text, text, integer, integer) is 'Why a trigger may not fire now; null if it may.';

-- The jobs of several triggers of one registrar in one call, which is most of what an event costs; null where any of them
-- stands in the way of the others: then each is asked by itself.
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
        array_agg(f.fire ->> 'laneType' order by f.place) as lane_types
      from jsonb_array_elements(p_fires) with ordinality f(fire, place)) a
    cross join lateral jobforge.enqueue_jobs(p_trigger.tenant_id, a.job_types, a.payloads, p_received => a.received,
      p_idempotency_keys => a.keys, p_project_ids => a.project_ids, p_trace_ids => a.trace_ids,
      p_job_versions => a.job_versions, p_max_attempts => a.max_attempts, p_backoff_ms => a.backoff_ms,
      p_backoff_multipliers => a.backoff_multipliers, p_max_backoff_ms => a.max_backoff_ms, p_timeout_ms => a.timeout_ms,
      p_costs => a.costs, p_lane_types => a.lane_types) e;
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

-- Once for each event: whoever calls has stored it in this transaction, or holds its row.
create or replace function jobforge.decide_event_fires(p_event jobforge.events, p_fires jsonb, p_most_depth integer, p_is_plan boolean)
returns table (trigger_name text, job_name text, decision text, reason text, job_id uuid)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
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
  for v_fire in
    select f.fire from jsonb_array_elements(p_fires) f(fire) order by f.fire ->> 'trigger'
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

  if not p_is_plan then
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
      v_reasons[i] := case when v_decision = 'planned' and not p_is_plan then 'it is on trial and starts nothing' else v_reason end;
      v_job_ids[i] := v_job_id;
    end if;
  end loop;
  if not p_is_plan then
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

-- A change keeps the time that is due unless the schedule changed or was asleep, and never fires by itself: the next time
-- lies in the future. What it may do is what its registrar may now.
create or replace function jobforge.register_trigger(
  p_tenant_id text, p_trigger_name text, p_kind text, p_job_name text, p_project_id text default null, p_cron text default null,
  p_timezone text default null, p_catch_up text default null, p_catch_up_most integer default null, p_overlap text default null,
  p_jitter_ms integer default null, p_event_type text default null, p_event_source text default null, p_match jsonb default null,
  p_input_mapping jsonb default null, p_input jsonb default null, p_dedupe_key jsonb default null,
  p_cooldown_ms integer default null, p_max_per_hour integer default null, p_is_enabled boolean default true,
  p_is_dry_run boolean default false, p_next_fire_at timestamptz default null, p_scopes text[] default '{}',
  p_roles text[] default '{}', p_is_plan boolean default false)
returns table (trigger_name text, outcome text, version integer, next_fire_at timestamptz)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
  v_claims jsonb;
  v_new jobforge.triggers;
  v_old jobforge.triggers;
  v_outcome text := 'created';
begin
  perform jobforge.require_tenant(p_tenant_id);
  perform jobforge.require_types(p_tenant_id, array[p_job_name]);
  v_claims := jobforge.current_claims();
  if (v_claims ->> 'once')::boolean then
    raise exception 'a token that is good for one write cannot register what acts again and again' using errcode = 'JF403',
      hint = 'Ask whoever issues tokens for one that is not.';
  end if;
  if v_claims ? 'limits' or exists (select from jobforge.rate_limits l where l.tenant_id = p_tenant_id) then
    perform jobforge.check_policy(p_tenant_id, 'cancel', array['jobforge.trigger']);
  end if;
  if v_claims ? 'projects' then
    perform jobforge.require_projects(array[p_project_id], 1);
  end if;
  select p_tenant_id, p_trigger_name, p_kind, 1, p_job_name, p_project_id, p_is_enabled, p_is_dry_run, p_cron, p_timezone, p_catch_up,
    p_catch_up_most, p_overlap, p_jitter_ms, p_event_type, jobforge.literal_prefix(p_event_type), p_event_source, p_match,
    p_input_mapping, p_input, p_dedupe_key, p_cooldown_ms, p_max_per_hour,
    case when p_kind = 'cron' and p_is_enabled then p_next_fire_at end, null, null, v_now, v_now,
    nullif(current_setting('jobforge.actor', true), ''), nullif(current_setting('jobforge.token_id', true), ''), v_claims,
    p_scopes, p_roles
  into v_new;
  if p_kind = 'cron' and p_is_enabled and (p_next_fire_at is null or p_next_fire_at <= v_now) then
    raise exception 'the next time of a schedule lies in the future' using errcode = 'JF409', detail = 'TRIGGERS_CHANGED',
      hint = 'Work it out again.';
  end if;
  select * into v_old from jobforge.triggers t where t.tenant_id = p_tenant_id and t.name = p_trigger_name for update;
  if found then
    if not jobforge.sees_trigger(v_claims, v_old.project_id, v_old.job_name) then
      raise exception 'the name of the trigger is taken' using errcode = 'JF409', hint = 'Choose another name.';
    end if;
    v_new.version := v_old.version + 1;
    v_new.created_at := v_old.created_at;
    v_new.paused_at := v_old.paused_at;
    if v_old.paused_at is not null then
      v_new.next_fire_at := null;
    elsif v_new.next_fire_at is not null and v_old.next_fire_at is not null
      and (v_old.cron, v_old.timezone) is not distinct from (v_new.cron, v_new.timezone)
    then
      v_new.next_fire_at := v_old.next_fire_at;
    end if;
    v_outcome := case when (to_jsonb(v_old) - array['version', 'updated_at', 'next_fire_at'])
      = (to_jsonb(v_new) - array['version', 'updated_at', 'next_fire_at']) then 'unchanged' else 'updated' end;
  end if;
  if not p_is_plan and v_outcome = 'created' then
    insert into jobforge.triggers select v_new.* on conflict (tenant_id, name) do nothing;
    if not found then
      raise exception 'the trigger was registered by somebody else at this moment' using errcode = '40001';
    end if;
  elsif not p_is_plan and v_outcome = 'updated' then
    -- in place: whoever waits for the row must find it, changed, and not take it for removed
    update jobforge.triggers t
    set kind = v_new.kind, version = v_new.version, job_name = v_new.job_name, project_id = v_new.project_id,
      is_enabled = v_new.is_enabled, is_dry_run = v_new.is_dry_run, cron = v_new.cron, timezone = v_new.timezone,
      catch_up = v_new.catch_up, catch_up_most = v_new.catch_up_most, overlap = v_new.overlap, jitter_ms = v_new.jitter_ms,
      event_type = v_new.event_type, event_prefix = v_new.event_prefix, event_source = v_new.event_source, match = v_new.match,
      input_mapping = v_new.input_mapping, input = v_new.input, dedupe_key = v_new.dedupe_key, cooldown_ms = v_new.cooldown_ms,
      max_per_hour = v_new.max_per_hour, next_fire_at = v_new.next_fire_at, disabled_reason = null, updated_at = v_now,
      created_by = v_new.created_by, token_id = v_new.token_id, claims = v_new.claims, scopes = v_new.scopes, roles = v_new.roles
    where t.tenant_id = p_tenant_id and t.name = p_trigger_name;
  elsif v_outcome = 'unchanged' then
    v_new := v_old;
  end if;
  if not p_is_plan and v_new.next_fire_at is not null then
    perform jobforge.wake('ready');
  end if;
  perform jobforge.record_audit(p_tenant_id, 'register_trigger', case when p_is_plan then 'planned' else v_outcome end, null,
    p_job_name, jsonb_build_object('trigger', p_trigger_name, 'kind', p_kind, 'version', v_new.version));
  return query select v_new.name::text, v_outcome, v_new.version, v_new.next_fire_at;
end $$;
comment on function jobforge.register_trigger(text, text, text, text, text, text, text, text, integer, text, integer, text, text,
  jsonb, jsonb, jsonb, jsonb, integer, integer, boolean, boolean, timestamptz, text[], text[], boolean) is
  'Register a trigger or change one; its jobs run with the rights of the caller, and nothing fires by this.';

create or replace function jobforge.list_triggers(
  p_tenant_id text, p_trigger_name text default null, p_kind text default null, p_job_name text default null,
  p_project_id text default null, p_after text default null, p_limit integer default 20)
returns table (trigger_name text, kind text, version integer, job_name text, project_id text, is_enabled boolean, is_dry_run boolean,
  cron text, timezone text, catch_up text, catch_up_most integer, overlap text, jitter_ms integer, event_type text,
  event_source text, match text, input_mapping text, input text, dedupe_key text, cooldown_ms integer, max_per_hour integer,
  next_fire_at timestamptz, paused_at timestamptz, disabled_reason text, created_at timestamptz, updated_at timestamptz,
  created_by text, token_id text, claims text, scopes text[], roles text[], last_fired_at timestamptz, last_job_id uuid,
  last_decision text, last_reason text, fires bigint)
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_claims jsonb;
begin
  perform jobforge.require_tenant(p_tenant_id);
  if coalesce(p_limit, 0) not between 1 and 1000 then
    raise exception 'a page holds 1 to 1,000 triggers, not %', p_limit using errcode = 'JF400';
  end if;
  v_claims := jobforge.current_claims();
  return query
  select t.name::text, t.kind::text, t.version, t.job_name::text, t.project_id::text, t.is_enabled, t.is_dry_run, t.cron, t.timezone,
    t.catch_up::text, t.catch_up_most, t.overlap::text, t.jitter_ms, t.event_type::text, t.event_source::text, t.match::text,
    t.input_mapping::text, t.input::text, t.dedupe_key::text, t.cooldown_ms, t.max_per_hour, t.next_fire_at, t.paused_at,
    t.disabled_reason, t.created_at, t.updated_at, t.created_by, t.token_id, t.claims::text, t.scopes, t.roles,
    l.decided_at, l.job_id, d.decision::text, d.reason, c.fires
  from (
    select x.* from jobforge.triggers x
    where x.tenant_id = p_tenant_id
      and (p_trigger_name is null or x.name = p_trigger_name)
      and (p_after is null or x.name > p_after)
      and (p_kind is null or x.kind = p_kind)
      and (p_job_name is null or x.job_name = p_job_name)
      and (p_project_id is null or x.project_id = p_project_id)
      and jobforge.sees_trigger(v_claims, x.project_id, x.job_name)
    order by x.name limit p_limit) t
  left join lateral (
    select f.decided_at, f.job_id from jobforge.trigger_fires f
    where f.tenant_id = p_tenant_id and f.trigger_name = t.name and f.job_id is not null
    order by f.decided_at desc limit 1) l on true
  left join lateral (
    select f.decision, f.reason from jobforge.trigger_fires f
    where f.tenant_id = p_tenant_id and f.trigger_name = t.name
    order by f.decided_at desc limit 1) d on true
  -- exact up to ten thousand: nobody waits for a count
  cross join lateral (
    select count(*) as fires from (
      select from jobforge.trigger_fires f
      where f.tenant_id = p_tenant_id and f.trigger_name = t.name and f.job_id is not null limit 10000) n) c
  order by t.name;
end $$;
comment on function jobforge.list_triggers(text, text, text, text, text, text, integer) is
  'A page of the tenant''s triggers by name, each with what it did last.';

create or replace function jobforge.remove_trigger(p_tenant_id text, p_trigger_name text, p_is_plan boolean default false)
returns table (trigger_name text, outcome text)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_trigger jobforge.triggers;
begin
  perform jobforge.require_tenant(p_tenant_id);
  if not p_is_plan and current_setting('jobforge.token_id', true) <> '' then
    perform jobforge.use_token();
  end if;
  v_trigger := jobforge.lock_trigger(p_tenant_id, p_trigger_name);
  if not p_is_plan then
    delete from jobforge.triggers t where t.tenant_id = p_tenant_id and t.name = p_trigger_name;
  end if;
  perform jobforge.record_audit(p_tenant_id, 'remove_trigger', case when p_is_plan then 'planned' else 'removed' end, null,
    v_trigger.job_name, jsonb_build_object('trigger', p_trigger_name));
  return query select v_trigger.name::text, 'removed'::text;
end $$;
comment on function jobforge.remove_trigger(text, text, boolean) is 'Remove a trigger; what it decided stays in its history.';

create or replace function jobforge.pause_trigger(p_tenant_id text, p_trigger_name text) returns text
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_trigger jobforge.triggers;
begin
  perform jobforge.require_tenant(p_tenant_id);
  if current_setting('jobforge.token_id', true) <> '' then
    perform jobforge.use_token();
  end if;
  v_trigger := jobforge.lock_trigger(p_tenant_id, p_trigger_name);
  update jobforge.triggers t set paused_at = coalesce(t.paused_at, jobforge.now()), next_fire_at = null
  where t.tenant_id = p_tenant_id and t.name = p_trigger_name;
  perform jobforge.record_audit(p_tenant_id, 'pause_trigger', case when v_trigger.paused_at is null then 'paused' else 'unchanged' end,
    null, v_trigger.job_name, jsonb_build_object('trigger', p_trigger_name));
  return case when v_trigger.paused_at is null then 'paused' else 'unchanged' end;
end $$;
comment on function jobforge.pause_trigger(text, text) is 'Let a trigger decide nothing until it is resumed; what is due meanwhile is not caught up.';

create or replace function jobforge.resume_trigger(
  p_tenant_id text, p_trigger_name text, p_next_fire_at timestamptz default null, p_if_version integer default null) returns text
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_trigger jobforge.triggers;
begin
  perform jobforge.require_tenant(p_tenant_id);
  if current_setting('jobforge.token_id', true) <> '' then
    perform jobforge.use_token();
  end if;
  v_trigger := jobforge.lock_trigger(p_tenant_id, p_trigger_name);
  if p_if_version <> v_trigger.version or (v_trigger.kind = 'cron' and v_trigger.is_enabled and v_trigger.paused_at is not null
    and (p_next_fire_at is null or p_next_fire_at <= jobforge.now()))
  then
    raise exception 'the trigger changed while it was to be resumed' using errcode = 'JF409', detail = 'TRIGGERS_CHANGED',
      hint = 'Look at it and try again.';
  end if;
  if v_trigger.paused_at is not null then
    update jobforge.triggers t set paused_at = null,
      next_fire_at = case when t.kind = 'cron' and t.is_enabled then p_next_fire_at end
    where t.tenant_id = p_tenant_id and t.name = p_trigger_name;
    perform jobforge.wake('ready');
  end if;
  perform jobforge.record_audit(p_tenant_id, 'resume_trigger', case when v_trigger.paused_at is null then 'unchanged' else 'resumed' end,
    null, v_trigger.job_name, jsonb_build_object('trigger', p_trigger_name));
  return case when v_trigger.paused_at is null then 'unchanged' else 'resumed' end;
end $$;
comment on function jobforge.resume_trigger(text, text, timestamptz, integer) is
  'Let a paused trigger decide again, a schedule from its next time on.';

-- Somebody fires it by hand: with the registrar's rights, also while it is paused, and outside of cooldown and counts.
create or replace function jobforge.run_trigger(
  p_tenant_id text, p_trigger_name text, p_fire jsonb, p_idempotency_key text default null, p_is_plan boolean default false)
returns table (trigger_name text, decision text, reason text, job_id uuid)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_trigger jobforge.triggers;
  v_key text := 'manual:' || coalesce(encode(sha256(convert_to(p_idempotency_key, 'UTF8')), 'hex'), jobforge.new_id()::text);
  v_decision text;
  v_reason text;
  v_job_id uuid;
begin
  perform jobforge.require_tenant(p_tenant_id);
  if not p_is_plan and current_setting('jobforge.token_id', true) <> '' then
    perform jobforge.use_token();
  end if;
  v_trigger := jobforge.lock_trigger(p_tenant_id, p_trigger_name);
  if v_trigger.version <> (p_fire ->> 'version')::integer then
    raise exception 'the trigger changed while it was to be run' using errcode = 'JF409', detail = 'TRIGGERS_CHANGED',
      hint = 'Look at it and try again.';
  end if;
  select f.decision, f.reason, f.job_id into v_decision, v_reason, v_job_id from jobforge.trigger_fires f
  where f.tenant_id = p_tenant_id and f.trigger_name = p_trigger_name and f.fire_key = v_key;
  if not found then
    v_decision := nullif(p_fire ->> 'decision', 'fire');
    v_reason := left(p_fire ->> 'reason', 1000);
    if v_decision is null then
      select o.decision, o.reason into v_decision, v_reason from jobforge.find_obstacle(v_trigger, 'manual', v_key, 0, 1) o;
    end if;
    if v_decision is null then
      select s.decision, s.reason, s.job_id into v_decision, v_reason, v_job_id
      from jobforge.start_fire(v_trigger, p_fire, v_key, null, nullif(current_setting('jobforge.trace_id', true), ''),
        case when v_trigger.overlap = 'queue' then 'trigger:' || v_trigger.name end, null, p_is_plan or v_trigger.is_dry_run) s;
    end if;
    if not p_is_plan then
      insert into jobforge.trigger_fires (tenant_id, trigger_name, fire_key, kind, trigger_version, decision, reason, job_id, decided_at)
      values (p_tenant_id, p_trigger_name, v_key, 'manual', v_trigger.version, v_decision, v_reason, v_job_id, jobforge.now());
    end if;
  end if;
  perform jobforge.record_audit(p_tenant_id, 'run_trigger', v_decision, v_job_id, v_trigger.job_name,
    jsonb_build_object('trigger', p_trigger_name));
  return query select v_trigger.name::text, v_decision, v_reason, v_job_id;
end $$;
comment on function jobforge.run_trigger(text, text, jsonb, text, boolean) is 'Fire a trigger now, by hand, with the rights of its registrar.';

create or replace function jobforge.list_trigger_fires(
  p_tenant_id text, p_trigger_name text default null, p_decision text default null, p_event_id uuid default null,
  p_before timestamptz default null, p_limit integer default 20)
returns table (trigger_name text, fire_key text, kind text, trigger_version integer, scheduled_at timestamptz, event_id uuid,
  decision text, reason text, job_id uuid, decided_at timestamptz)
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_claims jsonb;
begin
  perform jobforge.require_tenant(p_tenant_id);
  if coalesce(p_limit, 0) not between 1 and 1000 then
    raise exception 'a page holds 1 to 1,000 decisions, not %', p_limit using errcode = 'JF400';
  end if;
  v_claims := jobforge.current_claims();
  return query
  select f.trigger_name::text, f.fire_key::text, f.kind::text, f.trigger_version, f.scheduled_at, f.event_id, f.decision::text,
    f.reason, f.job_id, f.decided_at
  from jobforge.trigger_fires f
  where f.tenant_id = p_tenant_id
    and (p_trigger_name is null or f.trigger_name = p_trigger_name)
    and (p_decision is null or f.decision = p_decision)
    and (p_event_id is null or f.event_id = p_event_id)
    and (p_before is null or f.decided_at < p_before)
    and (not v_claims ?| array['projects', 'jobTypes', 'denyTypes'] or exists (
      select from jobforge.triggers t where t.tenant_id = p_tenant_id and t.name = f.trigger_name
        and jobforge.sees_trigger(v_claims, t.project_id, t.job_name)))
  order by f.decided_at desc, f.trigger_name, f.fire_key
  limit p_limit;
end $$;
comment on function jobforge.list_trigger_fires(text, text, text, uuid, timestamptz, integer) is
  'What triggers decided and why, the newest first.';

-- A revoked token must not live on in what it registered, also after its revocation was forgotten.
create or replace function jobforge.disable_triggers_of(p_tenant_id text, p_token_id text) returns void
language sql volatile
set search_path = jobforge, pg_temp
as $$
  update jobforge.triggers t
  set is_enabled = false, next_fire_at = null, disabled_reason = 'the token that registered it was revoked'
  where t.tenant_id = p_tenant_id and t.token_id is not null and p_token_id = any (jobforge.token_ids(t.claims))
$$;
comment on function jobforge.disable_triggers_of(text, text) is 'Switch off what a revoked token registered.';

reset role;
set local role jobforge_sys;

drop function if exists jobforge.match_events(text[], uuid[]);
create or replace function jobforge.match_events(p_tenant_ids text[], p_event_ids uuid[])
returns table (event_id uuid, trigger_name text, version integer, job_name text, project_id text, match text, input_mapping text,
  input text, dedupe_key text, created_by text, token_id text, claims text, scopes text[], roles text[],
  job_version text, lane_type text, definition text)
language sql stable
security definer set search_path = jobforge, pg_temp
as $$
  select e.id, t.name::text, t.version, t.job_name::text, t.project_id::text, t.match::text, t.input_mapping::text, t.input::text,
    t.dedupe_key::text, t.created_by, t.token_id, t.claims::text, t.scopes, t.roles,
    d.job_version, d.lane_type::text, d.definition::text
  from unnest(p_tenant_ids, p_event_ids) u(tenant_id, event_id)
  join jobforge.events e on e.tenant_id = u.tenant_id and e.id = u.event_id
  cross join lateral jobforge.find_triggers(e.tenant_id, e.event_type, e.source, e.project_id) t
  left join jobforge.registered_jobs r on r.tenant_id = t.tenant_id and r.job_type = t.job_name and r.removed_at is null
  left join jobforge.job_definitions d on d.tenant_id = r.tenant_id and d.job_type = r.job_type
    and d.job_version = r.job_version and d.approved_at is not null
$$;
comment on function jobforge.match_events(text[], uuid[]) is 'Triggers that could want stored events, for maintenance to evaluate.';

reset role;
