-- Triggers that could want an event: find them, and decide whether each fires. They are registered in 43_trigger_settings.sql.
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
    and (not t.claims ?| array['events', 'projects'] or jobforge.allows_event(t.claims, p_event_type, p_project_id))
  order by t.name
$$;
comment on function jobforge.find_triggers(text, text, text, text) is 'Triggers that could want an event.';

drop function if exists jobforge.match_triggers(text, text, text, text, text, boolean, jsonb);
create or replace function jobforge.match_triggers(
  p_tenant_id text, p_event_type text, p_source text default null, p_project_id text default null, p_payload text default null,
  p_contains_pii boolean default false, p_redaction_hints jsonb default null)
returns table (trigger_name text, version integer, job_name text, project_id text, match text, input_mapping text, input text,
  dedupe_key text, created_by text, token_id text, claims text, scopes text[], roles text[], payload text,
  job_version text, lane_type text, definition text, is_removed boolean)
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
    d.job_version, d.lane_type::text, d.definition::text,
    r.removed_at is not null
  from jobforge.find_triggers(p_tenant_id, p_event_type, p_source, p_project_id) t
  left join jobforge.registered_jobs r on r.tenant_id = t.tenant_id and r.job_type = t.job_name
  left join jobforge.job_definitions d on d.tenant_id = r.tenant_id and d.job_type = r.job_type
    and d.job_version = r.job_version and d.approved_at is not null and r.removed_at is null;
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
  if v_detail = 'TOKEN_REVOKED' and p_is_plan is not true then
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

reset role;
set local role jobforge_sys;

drop function if exists jobforge.match_events(text[], uuid[]);
create or replace function jobforge.match_events(p_tenant_ids text[], p_event_ids uuid[])
returns table (event_id uuid, trigger_name text, version integer, job_name text, project_id text, match text, input_mapping text,
  input text, dedupe_key text, created_by text, token_id text, claims text, scopes text[], roles text[],
  job_version text, lane_type text, definition text, is_removed boolean)
language sql stable
security definer set search_path = jobforge, pg_temp
as $$
  select e.id, t.name::text, t.version, t.job_name::text, t.project_id::text, t.match::text, t.input_mapping::text, t.input::text,
    t.dedupe_key::text, t.created_by, t.token_id, t.claims::text, t.scopes, t.roles,
    d.job_version, d.lane_type::text, d.definition::text,
    r.removed_at is not null
  from unnest(p_tenant_ids, p_event_ids) u(tenant_id, event_id)
  join jobforge.events e on e.tenant_id = u.tenant_id and e.id = u.event_id
  cross join lateral jobforge.find_triggers(e.tenant_id, e.event_type, e.source, e.project_id) t
  left join jobforge.registered_jobs r on r.tenant_id = t.tenant_id and r.job_type = t.job_name
  left join jobforge.job_definitions d on d.tenant_id = r.tenant_id and d.job_type = r.job_type
    and d.job_version = r.job_version and d.approved_at is not null and r.removed_at is null
$$;
comment on function jobforge.match_events(text[], uuid[]) is 'Triggers that could want stored events, for maintenance to evaluate.';

reset role;
