-- Register, list, pause, resume and remove triggers, fire one by hand, and read what they decided.
--
-- Called by jobforge_api for callers with the scopes for it; every function belongs to jobforge_rpc, whose row policy admits
-- the scope's tenant alone. How a trigger decides about an event is in 41_triggers.sql, about its schedule in 42_cron.sql.
-- Locks: the trigger's row (by tenant_id, name), then what enqueueing takes.

set local role jobforge_rpc;

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
  if p_is_plan is not true and v_outcome = 'created' then
    insert into jobforge.triggers select v_new.* on conflict (tenant_id, name) do nothing;
    if not found then
      raise exception 'the trigger was registered by somebody else at this moment' using errcode = '40001';
    end if;
  elsif p_is_plan is not true and v_outcome = 'updated' then
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
  if p_is_plan is not true and v_new.next_fire_at is not null then
    perform jobforge.wake('events');
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
  if p_is_plan is not true and current_setting('jobforge.token_id', true) <> '' then
    perform jobforge.use_token();
  end if;
  v_trigger := jobforge.lock_trigger(p_tenant_id, p_trigger_name);
  if p_is_plan is not true then
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
    perform jobforge.wake('events');
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
  if p_is_plan is not true and current_setting('jobforge.token_id', true) <> '' then
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
    if p_is_plan is not true then
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
