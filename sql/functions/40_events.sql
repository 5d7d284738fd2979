-- Events: store them once for each key, show them without what they hide, and hand those on whose triggers were not asked.
--
-- Called by jobforge_api, by applications in their own transactions (their triggers are asked a moment later), and by
-- workers and schedulers for what is unprocessed. What a trigger decides is in 41_triggers.sql.
-- Locks: events, then what deciding takes.

set local role jobforge_rpc;

-- A name strikes out every member of that name; what begins with / is a pointer to one place. Nothing of an event leaves
-- this database but through here: lists, inputs of runs and conditions of triggers see what comes out.
create or replace function jobforge.strike_out(p_value jsonb, p_fields text[], p_path text default '') returns jsonb
language plpgsql immutable
set search_path = jobforge, pg_temp
as $$
begin
  if jsonb_typeof(p_value) = 'object' then
    return coalesce((
      select jsonb_object_agg(m.name, case
        when m.name = any (p_fields) or p.path = any (p_fields) then '"[redacted]"'::jsonb
        else jobforge.strike_out(m.value, p_fields, p.path) end)
      from jsonb_each(p_value) m(name, value)
      cross join lateral (select p_path || '/' || replace(replace(m.name, '~', '~0'), '/', '~1') as path) p), '{}');
  elsif jsonb_typeof(p_value) = 'array' then
    return coalesce((
      select jsonb_agg(case when p.path = any (p_fields) then '"[redacted]"'::jsonb
        else jobforge.strike_out(e.value, p_fields, p.path) end order by e.place)
      from jsonb_array_elements(p_value) with ordinality e(value, place)
      cross join lateral (select p_path || '/' || (e.place - 1) as path) p), '[]');
  end if;
  return p_value;
end $$;
comment on function jobforge.strike_out(jsonb, text[], text) is 'A JSON value with the named members and places struck out.';

create or replace function jobforge.hidden_fields(p_hints jsonb) returns text[]
language sql immutable
set search_path = jobforge, pg_temp
as $$
  select array(select f.field from jsonb_array_elements_text(coalesce(p_hints -> 'redactFields', '[]')) f(field)
    union select f.field from jsonb_array_elements_text(coalesce(p_hints -> 'encryptFields', '[]')) f(field))
$$;
comment on function jobforge.hidden_fields(jsonb) is 'Fields that the hints of an event name, whatever for: none of them is shown.';

create or replace function jobforge.shown_payload(p_payload jsonb, p_contains_pii boolean, p_hints jsonb) returns jsonb
language sql immutable
set search_path = jobforge, pg_temp
as $$
  select case
    when cardinality(f.fields) > 0 then jobforge.strike_out(p_payload, f.fields)
    when p_contains_pii then '{}'::jsonb
    else p_payload end
  from (select jobforge.hidden_fields(p_hints) as fields) f
$$;
comment on function jobforge.shown_payload(jsonb, boolean, jsonb) is
  'What anybody may see of an event''s payload: nothing of one with personal data that does not say where.';

-- Null without a restriction, which is what most callers have.
create or replace function jobforge.allows_event(p_claims jsonb, p_event_type text, p_project_id text) returns boolean
language sql immutable
set search_path = jobforge, pg_temp
as $$
  select (not p_claims ? 'events' or exists (
      select from jsonb_array_elements_text(p_claims -> 'events') e(pattern)
      where jobforge.matches_pattern(e.pattern, p_event_type)))
    and (not p_claims ? 'projects' or coalesce((p_claims -> 'projects') ? p_project_id, false))
$$;
comment on function jobforge.allows_event(jsonb, text, text) is 'Whether claims let their holder submit or see events of a type in a project.';

create or replace function jobforge.require_event(p_event_type text, p_project_id text) returns void
language plpgsql stable
set search_path = jobforge, pg_temp
as $$
begin
  if current_setting('jobforge.claims', true) <> '' then
    if not jobforge.allows_event(jobforge.current_claims() - 'projects', p_event_type, null) then
      raise exception 'the policy token does not allow events of this type' using errcode = 'JF403',
        hint = 'Ask whoever issues tokens for one with a pattern that admits it.';
    end if;
    perform jobforge.require_projects(array[p_project_id], 1);
  end if;
end $$;
comment on function jobforge.require_event(text, text) is 'Refuse an event that the caller''s token does not let its holder submit.';

create or replace function jobforge.check_event(
  p_event_type text, p_payload text, p_source text, p_subject text, p_occurred_at timestamptz, p_idempotency_key text,
  p_trace_id text, p_project_id text, p_redaction_hints jsonb, p_attributes jsonb)
returns void
language plpgsql stable
set search_path = jobforge, pg_temp
as $$
declare
  v_problem text;
begin
  perform jobforge.require_small_json(array[p_payload], 1048576, 'a payload');
  if p_redaction_hints is not null or p_attributes is not null then
    perform jobforge.require_small_json(array[p_redaction_hints::text, p_attributes::text], 16384, 'hints or attributes');
  end if;
  v_problem := case
    when p_event_type is null or octet_length(p_event_type) > 100 or p_event_type !~ '^[A-Za-z0-9_-]+([.][A-Za-z0-9_-]+)*$'
      then 'an event type has 1 to 100 letters, digits, hyphens, underscores, and dots between its segments'
    when p_payload is null or jsonb_typeof(p_payload::jsonb) <> 'object' then 'the payload of an event is one object'
    when octet_length(p_source) not between 1 and 255 then 'a source has 1 to 255 bytes'
    when octet_length(p_subject) not between 1 and 500 then 'a subject has 1 to 500 bytes'
    when octet_length(p_idempotency_key) not between 1 and 255 then 'an idempotency key has 1 to 255 bytes'
    when octet_length(p_trace_id) not between 1 and 255 then 'a trace id has 1 to 255 bytes'
    when p_project_id !~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$'
      then 'a project id has 1 to 63 letters, digits, dots, colons, hyphens or underscores'
    when not (p_occurred_at >= '1970-01-01 00:00:00+00' and p_occurred_at < '10000-01-01 00:00:00+00')
      then 'an event occurred between 1970 and 9999, in UTC'
    when jsonb_typeof(p_attributes) <> 'object' then 'the attributes of an event are one object'
    when jsonb_typeof(p_redaction_hints) <> 'object'
      or p_redaction_hints - array['redactFields', 'encryptFields', 'retentionDays'] <> '{}'
      then 'redaction hints are one object with redactFields, encryptFields and retentionDays'
    when exists (select from unnest(array['redactFields', 'encryptFields']) n(name)
        where p_redaction_hints ? n.name and (jsonb_typeof(p_redaction_hints -> n.name) <> 'array'
          or jsonb_array_length(p_redaction_hints -> n.name) > 100
          or exists (select from jsonb_array_elements(p_redaction_hints -> n.name) f(field)
            where jsonb_typeof(f.field) <> 'string' or octet_length(f.field #>> '{}') not between 1 and 500)))
      then 'fields to redact or to encrypt are a list of up to 100 names or JSON pointers'
    when p_redaction_hints ? 'retentionDays' and (jsonb_typeof(p_redaction_hints -> 'retentionDays') <> 'number'
        or (p_redaction_hints ->> 'retentionDays')::numeric not between 1 and 90
        or (p_redaction_hints ->> 'retentionDays')::numeric <> floor((p_redaction_hints ->> 'retentionDays')::numeric))
      then 'an event is kept for 1 to 90 whole days'
  end;
  if v_problem is not null then
    raise exception '%', v_problem using errcode = 'JF400', hint = 'No event was stored: correct the value.';
  end if;
end $$;
comment on function jobforge.check_event(text, text, text, text, timestamptz, text, text, text, jsonb, jsonb) is
  'Refuse an event whose envelope does not fit, in words.';

-- One more than the deepest event of the trace that started a job: a handler that submits events carries its trace on, so
-- a cycle of events and jobs grows by one with every round.
create or replace function jobforge.next_event_depth(p_tenant_id text, p_trace_id text) returns integer
language sql stable
set search_path = jobforge, pg_temp
as $$
  select coalesce((
    select e.depth + 1 from jobforge.events e
    where e.tenant_id = p_tenant_id and e.trace_id = p_trace_id and exists (
      select from jobforge.trigger_fires f
      where f.tenant_id = p_tenant_id and f.event_id = e.id and f.job_id is not null)
    order by e.depth desc limit 1), 0)
$$;
comment on function jobforge.next_event_depth(text, text) is 'How deep a further event of a trace stands in its chain of causes.';

-- With p_fires, which only a server passes, the triggers decide in this very transaction; without, the event is left to
-- claim_events unless no trigger could want it. A repeated call answers what the first did.
create or replace function jobforge.submit_event(
  p_tenant_id text, p_event_type text, p_payload jsonb default '{}', p_source text default null, p_subject text default null,
  p_occurred_at timestamptz default null, p_idempotency_key text default null, p_trace_id text default null,
  p_project_id text default null, p_contains_pii boolean default false, p_redaction_hints jsonb default null,
  p_attributes jsonb default null, p_fires jsonb default null, p_most_depth integer default 20, p_is_plan boolean default false)
returns table (event_id uuid, outcome text, received_at timestamptz, depth integer, is_processed boolean, trigger_name text,
  job_name text, decision text, reason text, job_id uuid)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
  v_id uuid := jobforge.new_id();
  v_event jobforge.events;
  v_hash bytea;
  v_outcome text := 'created';
  v_claims jsonb;
  v_keep_days integer;
  v_is_told boolean := false;
begin
  perform jobforge.require_tenant(p_tenant_id);
  perform jobforge.check_event(p_event_type, p_payload::text, p_source, p_subject, p_occurred_at, p_idempotency_key, p_trace_id,
    p_project_id, p_redaction_hints, p_attributes);
  perform jobforge.require_event(p_event_type, p_project_id);
  if current_setting('jobforge.tool', true) = 'sql' then  -- others have looked
    perform jobforge.refuse_keys('the event', concat_ws(' ', p_payload::text, p_attributes::text, p_subject, p_idempotency_key));
  end if;
  if p_fires is not null and session_user not in ('jobforge_api', 'jobforge_worker', 'jobforge_scheduler')
    and jobforge.enter_own_scope() is not null
  then
    raise exception 'what triggers decide is for servers to say' using errcode = 'JF403',
      hint = 'Leave p_fires out: the triggers are asked a moment later.';
  end if;
  if p_is_plan is not true and current_setting('jobforge.token_id', true) <> '' then
    perform jobforge.use_token();
  end if;
  v_claims := coalesce(nullif(current_setting('jobforge.claims', true), ''), '{}')::jsonb;  -- as current_claims, without its call
  if v_claims ? 'limits' or exists (select from jobforge.rate_limits l where l.tenant_id = p_tenant_id) then
    perform jobforge.check_policy(p_tenant_id, 'cancel', array['jobforge.event']);
  end if;
  v_keep_days := coalesce((p_redaction_hints ->> 'retentionDays')::integer, 90);
  v_hash := sha256(convert_to(jsonb_build_array(p_event_type, p_payload, p_source, p_subject, p_occurred_at, p_project_id,
    coalesce(p_contains_pii, false), p_redaction_hints, p_attributes)::text, 'UTF8'));

  v_event.tenant_id := p_tenant_id;
  v_event.id := v_id;
  v_event.event_type := p_event_type;
  v_event.source := p_source;
  v_event.project_id := p_project_id;
  v_event.trace_id := coalesce(p_trace_id, v_id::text);
  v_event.received_at := v_now;
  v_event.depth := case when p_trace_id is null then 0
    else least(jobforge.next_event_depth(p_tenant_id, p_trace_id), 1000) end;
  if p_is_plan then
    select * into v_event from jobforge.events e where e.tenant_id = p_tenant_id and e.idempotency_key = p_idempotency_key;
    if found then
      v_outcome := case when v_event.input_hash = v_hash then 'replayed' else 'conflict' end;
    else
      v_event.tenant_id := p_tenant_id;
      v_event.event_type := p_event_type;
      v_event.project_id := p_project_id;
      v_event.trace_id := coalesce(p_trace_id, v_id::text);
      v_event.received_at := v_now;
      v_event.depth := case when p_trace_id is null then 0
        else least(jobforge.next_event_depth(p_tenant_id, p_trace_id), 1000) end;
    end if;
  else
    -- one statement with its audit row: a function and a statement less
    with stored as (
      insert into jobforge.events as e (tenant_id, id, event_type, source, subject, project_id, trace_id, actor, occurred_at,
        received_at, payload, attributes, contains_pii, redaction_hints, idempotency_key, input_hash, depth, processed_at, expires_at)
      values (p_tenant_id, v_id, p_event_type, p_source, p_subject, p_project_id, v_event.trace_id,
        nullif(current_setting('jobforge.actor', true), ''), coalesce(p_occurred_at, v_now), v_now, p_payload, p_attributes,
        coalesce(p_contains_pii, false), p_redaction_hints, p_idempotency_key, v_hash, v_event.depth,
        case when p_fires is not null or not exists (
          select from jobforge.triggers t where t.tenant_id = p_tenant_id and t.kind = 'event') then v_now end,
        v_now + v_keep_days * interval '1 day')
      on conflict (tenant_id, idempotency_key) where idempotency_key is not null do nothing
      returning e.*
    ), audited as (
      insert into jobforge.audit_log (tenant_id, id, occurred_at, action, outcome, actor, token_id, tool, trace_id, detail)
      select p_tenant_id, jobforge.new_id(), v_now, 'submit_event', 'created', x.actor,
        nullif(current_setting('jobforge.token_id', true), ''), nullif(current_setting('jobforge.tool', true), ''),
        nullif(current_setting('jobforge.trace_id', true), ''), jsonb_build_object('eventType', p_event_type, 'eventId', v_id)
      from stored x
    )
    select x.* into v_event from stored x;
    if not found then
      select * into v_event from jobforge.events e
      where e.tenant_id = p_tenant_id and e.idempotency_key = p_idempotency_key for update;
      v_outcome := case when v_event.input_hash = v_hash then 'replayed' else 'conflict' end;
    end if;
  end if;

  if v_outcome = 'created' and p_fires is not null then
    return query
    select case when p_is_plan is not true then v_id end, v_outcome, v_event.received_at, v_event.depth::integer, true, d.trigger_name::text,
      d.job_name::text, d.decision::text, d.reason, d.job_id
    from jobforge.decide_event_fires(v_event, p_fires, p_most_depth, p_is_plan) d
    where not v_claims ?| array['jobTypes', 'denyTypes'] or jobforge.allows_type(v_claims, d.job_name)
    order by d.trigger_name;
    v_is_told := found;
  elsif v_outcome = 'replayed' and v_event.processed_at is null and p_fires is not null and p_is_plan is not true then
    update jobforge.events e set processed_at = v_now where e.tenant_id = p_tenant_id and e.id = v_event.id;
    return query
    select v_event.id, v_outcome, v_event.received_at, v_event.depth::integer, true, d.trigger_name::text, d.job_name::text,
      d.decision::text, d.reason, d.job_id
    from jobforge.decide_event_fires(v_event, p_fires, p_most_depth, false) d
    where not v_claims ?| array['jobTypes', 'denyTypes'] or jobforge.allows_type(v_claims, d.job_name)
    order by d.trigger_name;
    v_is_told := found;
  elsif v_outcome = 'replayed' then
    return query
    select v_event.id, v_outcome, v_event.received_at, v_event.depth::integer, v_event.processed_at is not null,
      f.trigger_name::text, t.job_name::text, f.decision::text, f.reason, f.job_id
    from jobforge.trigger_fires f
    left join jobforge.triggers t on t.tenant_id = f.tenant_id and t.name = f.trigger_name
    where f.tenant_id = p_tenant_id and f.event_id = v_event.id
      and (t.job_name is null or jobforge.allows_type(v_claims, t.job_name))
    order by f.trigger_name;
    v_is_told := found;
  end if;
  if not v_is_told then
    return query
    select case when p_is_plan is not true or v_outcome <> 'created' then v_event.id end, v_outcome, v_event.received_at,
      v_event.depth::integer, v_event.processed_at is not null or p_fires is not null, null::text, null::text, null::text, null::text,
      null::uuid;
  end if;
  if v_outcome = 'created' and p_fires is null and v_event.processed_at is null and p_is_plan is not true then
    perform jobforge.wake('events');
  end if;
  if p_is_plan or v_outcome <> 'created' then
    perform jobforge.record_audit(p_tenant_id, 'submit_event', case when p_is_plan then 'planned' else v_outcome end, null, null,
      jsonb_build_object('eventType', p_event_type) || case when p_is_plan then '{}'::jsonb
        else jsonb_build_object('eventId', v_event.id) end);
  end if;
end $$;
comment on function jobforge.submit_event(text, text, jsonb, text, text, timestamptz, text, text, text, boolean, jsonb, jsonb, jsonb,
  integer, boolean) is
  'Store an event once for its key and let its triggers decide: one row for each trigger that was asked, or one alone.';

-- Newest first by id. A caller confined to projects or event types sees those.
create or replace function jobforge.list_events(
  p_tenant_id text, p_event_type text default null, p_source text default null, p_since timestamptz default null,
  p_trace_id text default null, p_project_id text default null, p_is_processed boolean default null,
  p_before_id uuid default null, p_limit integer default 20)
returns table (event_id uuid, event_type text, source text, subject text, project_id text, trace_id text, actor text,
  occurred_at timestamptz, received_at timestamptz, payload text, attributes text, contains_pii boolean, is_redacted boolean,
  depth integer, processed_at timestamptz, expires_at timestamptz, fired bigint)
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_claims jsonb;
  v_is_exact boolean := p_event_type is not null and p_event_type not like '%*%';
begin
  perform jobforge.require_tenant(p_tenant_id);
  if coalesce(p_limit, 0) not between 1 and 1000 then
    raise exception 'a page holds 1 to 1,000 events, not %', p_limit using errcode = 'JF400';
  end if;
  v_claims := jobforge.current_claims();
  return query
  select e.id, e.event_type::text, e.source::text, case when 'subject' = any (h.fields) then '[redacted]' else e.subject end,
    e.project_id::text, e.trace_id, e.actor, e.occurred_at, e.received_at,
    jobforge.shown_payload(e.payload, e.contains_pii, e.redaction_hints)::text, e.attributes::text, e.contains_pii,
    cardinality(h.fields) > 0 or e.contains_pii, e.depth::integer, e.processed_at, e.expires_at,
    (select count(*) from jobforge.trigger_fires f
      where f.tenant_id = p_tenant_id and f.event_id = e.id and f.job_id is not null)
  from (
    select x.* from jobforge.events x
    where x.tenant_id = p_tenant_id
      and (p_before_id is null or x.id < p_before_id)
      and (not v_is_exact or x.event_type = p_event_type)
      and (p_event_type is null or v_is_exact or jobforge.matches_pattern(p_event_type, x.event_type))
      and (p_source is null or jobforge.matches_source(p_source, x.source))
      and (p_since is null or x.received_at >= p_since)
      and (p_trace_id is null or x.trace_id = p_trace_id)
      and (p_project_id is null or x.project_id = p_project_id)
      and (p_is_processed is null or (x.processed_at is not null) = p_is_processed)
      and (v_claims = '{}' or jobforge.allows_event(v_claims, x.event_type, x.project_id))
    order by x.id desc limit p_limit) e
  cross join lateral (select jobforge.hidden_fields(e.redaction_hints) as fields) h
  order by e.id desc;
end $$;
comment on function jobforge.list_events(text, text, text, timestamptz, text, text, boolean, uuid, integer) is
  'A page of the tenant''s events, newest first, with what they hide struck out.';

reset role;
set local role jobforge_sys;

-- Tenants in turn, so that one with a flood does not starve the others; whoever dies with what it claimed is succeeded
-- after half a minute.
drop function if exists jobforge.claim_events(integer);
create or replace function jobforge.claim_events(p_limit integer default 100)
returns table (tenant_id text, event_id uuid, event_type text, source text, subject text, project_id text, trace_id text,
  actor text, occurred_at timestamptz, received_at timestamptz, payload text, depth integer, waited_seconds float8)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
begin
  return query
  with recursive tenant (tenant_id) as (
    (select e.tenant_id from jobforge.events e where e.processed_at is null order by e.tenant_id limit 1)
    union all
    select n.tenant_id from tenant cross join lateral (
      select e.tenant_id from jobforge.events e
      where e.processed_at is null and e.tenant_id > tenant.tenant_id order by e.tenant_id limit 1) n
  ), free_events as materialized (
    select f.tenant_id, f.id from tenant cross join lateral (
      select e.tenant_id, e.id from jobforge.events e
      where e.tenant_id = tenant.tenant_id and e.processed_at is null
        and (e.claimed_until is null or e.claimed_until <= v_now)
      order by e.id limit greatest(p_limit / 4, 1) for update skip locked) f
    limit p_limit
  )
  update jobforge.events x set claimed_until = v_now + interval '30 seconds'
  from free_events f where x.tenant_id = f.tenant_id and x.id = f.id
  returning x.tenant_id::text, x.id, x.event_type::text, x.source::text,
    case when 'subject' = any (jobforge.hidden_fields(x.redaction_hints)) then '[redacted]' else x.subject end,
    x.project_id::text, x.trace_id, x.actor, x.occurred_at, x.received_at,
    jobforge.shown_payload(x.payload, x.contains_pii, x.redaction_hints)::text, x.depth::integer,
    extract(epoch from v_now - x.received_at)::float8;
end $$;
comment on function jobforge.claim_events(integer) is 'Events whose triggers nobody has asked, for half a minute of this caller alone.';

create or replace function jobforge.process_event(
  p_tenant_id text, p_event_id uuid, p_fires jsonb, p_most_depth integer default 20)
returns table (trigger_name text, decision text, reason text, job_id uuid)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_event jobforge.events;
begin
  select * into v_event from jobforge.events e
  where e.tenant_id = p_tenant_id and e.id = p_event_id and e.processed_at is null for update;
  if not found then
    return;
  end if;
  update jobforge.events e set processed_at = jobforge.now() where e.tenant_id = p_tenant_id and e.id = p_event_id;
  perform jobforge.enter_trusted_scope(p_tenant_id, 'jobforge', 'trigger', v_event.trace_id);
  return query
  select d.trigger_name::text, d.decision::text, d.reason, d.job_id
  from jobforge.decide_event_fires(v_event, p_fires, p_most_depth, false) d;
  perform jobforge.leave_scope();
end $$;
comment on function jobforge.process_event(text, uuid, jsonb, integer) is
  'Let the triggers of a stored event decide, once: nothing for an event that was processed meanwhile.';

-- Decisions of schedules have no event that they go with, and are kept as long as events are.
create or replace function jobforge.purge_events(p_limit integer default 1000) returns bigint
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_now timestamptz := jobforge.now();
  v_events bigint;
  v_fires bigint;
  v_old_fires bigint;
begin
  with recursive tenant (tenant_id) as (
    (select e.tenant_id from jobforge.events e order by e.tenant_id limit 1)
    union all
    select n.tenant_id from tenant cross join lateral (
      select e.tenant_id from jobforge.events e where e.tenant_id > tenant.tenant_id order by e.tenant_id limit 1) n
  ), expired as materialized (
    select x.tenant_id, x.id from tenant cross join lateral (
      select e.tenant_id, e.id from jobforge.events e
      where e.tenant_id = tenant.tenant_id and e.expires_at <= v_now and e.processed_at is not null
      order by e.expires_at limit p_limit for update skip locked) x
    limit p_limit
  ), gone_fires as (
    delete from jobforge.trigger_fires f using expired x where f.tenant_id = x.tenant_id and f.event_id = x.id returning 1
  ), gone as (
    delete from jobforge.events e using expired x where e.tenant_id = x.tenant_id and e.id = x.id returning 1
  )
  select (select count(*) from gone), (select count(*) from gone_fires) into v_events, v_fires;
  with recursive firing (tenant_id, trigger_name) as (
    (select f.tenant_id, f.trigger_name from jobforge.trigger_fires f order by f.tenant_id, f.trigger_name limit 1)
    union all
    select n.tenant_id, n.trigger_name from firing cross join lateral (
      select f.tenant_id, f.trigger_name from jobforge.trigger_fires f
      where (f.tenant_id, f.trigger_name) > (firing.tenant_id, firing.trigger_name)
      order by f.tenant_id, f.trigger_name limit 1) n
  ), old as materialized (
    select o.tenant_id, o.trigger_name, o.fire_key from firing cross join lateral (
      select f.tenant_id, f.trigger_name, f.fire_key from jobforge.trigger_fires f
      where f.tenant_id = firing.tenant_id and f.trigger_name = firing.trigger_name and f.event_id is null
        and f.decided_at < v_now - interval '90 days'
      order by f.decided_at limit p_limit) o
    limit p_limit
  ), gone as (
    delete from jobforge.trigger_fires f using old o
    where f.tenant_id = o.tenant_id and f.trigger_name = o.trigger_name and f.fire_key = o.fire_key returning 1
  )
  select count(*) into v_old_fires from gone;
  return v_events + v_fires + v_old_fires;
end $$;
comment on function jobforge.purge_events(integer) is 'Remove events that expired with the decisions about them, and old decisions of schedules; returns how many rows.';

reset role;
