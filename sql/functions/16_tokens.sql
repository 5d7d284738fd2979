-- Policy tokens: which are still good, and which job types they let their holder name.
--
-- The server verifies a token; whether it was revoked or used up is asked here, in the transaction of the call itself:
-- require_tenant, or what is called instead of it, asks for every call, use_token for every write. Nothing is asked where the scope names no token.
-- Locks: policy_tokens, before everything else that a write locks; revoke_tenant_tokens locks the tenant's row.

set local role jobforge_rpc;

-- Segments are literal, * for one, or at the end ** for one or more: the same as router/patterns.py.
create or replace function jobforge.matches_pattern(p_pattern text, p_name text) returns boolean
language sql immutable
set search_path = jobforge, pg_temp
as $$
  select case when p.segments[cardinality(p.segments)] = '**' then cardinality(n.segments) >= cardinality(p.segments)
      else cardinality(n.segments) = cardinality(p.segments) end
    and not exists (
      select from unnest(p.segments) with ordinality s(segment, place)
      where s.segment not in ('*', '**') and s.segment is distinct from n.segments[s.place])
  from (select string_to_array(p_pattern, '.') as segments) p
  cross join (select string_to_array(p_name, '.') as segments) n
$$;
comment on function jobforge.matches_pattern(text, text) is 'Whether a pattern of dotted names admits a name.';

create or replace function jobforge.allows_type(p_claims jsonb, p_job_type text) returns boolean
language sql immutable
set search_path = jobforge, pg_temp
as $$
  select not exists (
      select from jsonb_array_elements_text(coalesce(p_claims -> 'denyTypes', '[]')) d(pattern)
      where jobforge.matches_pattern(d.pattern, p_job_type))
    and (not p_claims ? 'jobTypes' or exists (
      select from jsonb_array_elements_text(p_claims -> 'jobTypes') a(pattern)
      where jobforge.matches_pattern(a.pattern, p_job_type)))
$$;
comment on function jobforge.allows_type(jsonb, text) is 'Whether claims let their holder name a job type; deny beats allow.';

-- Null without a restriction, which is what most callers have.
create or replace function jobforge.confining_claims() returns jsonb
language sql stable
set search_path = jobforge, pg_temp
as $$
  select c.claims from (select jobforge.current_claims() as claims) c where c.claims ?| array['jobTypes', 'denyTypes']
$$;
comment on function jobforge.confining_claims() is 'The claims of the scope if they confine their holder to some job types; null if they do not.';

-- What a child may be is what the token said that enqueued the first of its line, whoever holds the worker.
create or replace function jobforge.inherited_confinement(p_tenant_id text, p_parent_id uuid) returns jsonb
language sql stable
set search_path = jobforge, pg_temp
as $$ select j.confinement from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = p_parent_id $$;
comment on function jobforge.inherited_confinement(text, uuid) is 'Job types that the children of a run are confined to, and types of events; null if to none.';

-- What is refused for the scope's own token, or for the one under which the parent was enqueued. Returns what the new jobs
-- pass on to their own children. Steps of compositions are no exception: who registered a composition may have been allowed
-- more than who runs it. A registered job that is one handler under another name runs in that handler's lane: what a token
-- denies it denies under every name, while what it allows it allows by the name of the run.
drop function if exists jobforge.require_types(text[]);
drop function if exists jobforge.require_types(text, text[], uuid);
create or replace function jobforge.require_types(
  p_tenant_id text, p_job_types text[], p_parent_id uuid default null, p_lane_types text[] default null) returns jsonb
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_claims jsonb;
  v_refused text;
  v_claim text;
begin
  if p_parent_id is not null then
    v_claims := jobforge.inherited_confinement(p_tenant_id, p_parent_id);
  elsif current_setting('jobforge.claims', true) <> '' then
    v_claims := jobforge.current_claims();
  end if;
  if v_claims ?| array['jobTypes', 'denyTypes', 'events'] is not true then
    return null;
  end if;
  select u.job_type, case when jobforge.allows_type(v_claims - 'jobTypes', u.job_type) is true
      and (u.lane_type is null or jobforge.allows_type(v_claims - 'jobTypes', u.lane_type)) then 'jobTypes' else 'denyTypes' end
  into v_refused, v_claim
  from unnest(p_job_types, p_lane_types) with ordinality u(job_type, lane_type, ord)
  where jobforge.allows_type(v_claims, u.job_type) is not true
    or (u.lane_type is not null and jobforge.allows_type(v_claims - 'jobTypes', u.lane_type) is not true)
  order by u.ord limit 1;
  if found then
    perform jobforge.note_refusal();
    if p_parent_id is null then
      raise exception 'the policy token does not allow jobs of this type' using errcode = 'JF403',
        hint = 'list-jobs shows those it allows.';
    end if;
    raise exception 'the policy token that started the run does not allow jobs of type %: its claim %', v_refused,
      case when v_claim = 'denyTypes' then 'deny_types names it' else 'job_types does not' end
      using errcode = 'JF403', hint = 'What a run starts is held to the token that started the run.';
  end if;
  return jsonb_strip_nulls(jsonb_build_object('jobTypes', v_claims -> 'jobTypes', 'denyTypes', v_claims -> 'denyTypes',
    'events', v_claims -> 'events'));
end $$;
comment on function jobforge.require_types(text, text[], uuid, text[]) is
  'Refuse job types that the token, or that of the parent''s first ancestor, does not allow; returns what children inherit.';

-- The token as it was issued, and each that narrowed it.
create or replace function jobforge.token_ids(p_claims jsonb) returns text[]
language sql immutable
set search_path = jobforge, pg_temp
as $$
  select array[p_claims ->> 'jti']
    || array(select l.id from jsonb_array_elements_text(coalesce(p_claims -> 'links', '[]')) l(id))
$$;
comment on function jobforge.token_ids(jsonb) is 'Ids of a token and of its links.';

-- Without a row the token is good. Put in the place of its call where a statement asks other things as well: every call asks.
create or replace function jobforge.revocations(p_tenant_id text, p_claims jsonb) returns table (reason text)
language sql stable rows 1
as $$
  select 'all policy tokens of this tenant were revoked after this one was issued'
  from jobforge.tenants t
  where t.tenant_id = p_tenant_id and t.token_epoch > coalesce((p_claims ->> 'epoch')::bigint, 0)
  union all
  select 'the policy token was revoked'
  from jobforge.policy_tokens p
  where p.tenant_id = p_tenant_id and p.revoked_at is not null
    and p.token_id = any (case when p_claims ? 'links' then jobforge.token_ids(p_claims) else array[p_claims ->> 'jti'] end)
$$;
comment on function jobforge.revocations(text, jsonb) is
  'Why a token is no longer good: revoked by itself, by what it was narrowed from, or with all of its tenant.';

drop function if exists jobforge.require_living_token();
create or replace function jobforge.require_living_token(p_tenant_id text, p_claims jsonb) returns void
language plpgsql stable
set search_path = jobforge, pg_temp
as $$
declare
  v_reason text;
begin
  select r.reason into v_reason from jobforge.revocations(p_tenant_id, p_claims) r limit 1;
  if found then
    raise exception '%', v_reason using errcode = 'JF403',
      hint = 'Ask whoever issues tokens for a new one.', detail = 'TOKEN_REVOKED';
  end if;
end $$;
comment on function jobforge.require_living_token(text, jsonb) is 'Refuse a token that was revoked.';

-- The row of a token that is good for one write is written with it: a second write waits for the first to commit, and is
-- refused then; when the first is rolled back, it was not used.
create or replace function jobforge.use_token() returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_claims jsonb := coalesce(nullif(pg_catalog.current_setting('jobforge.claims', true), ''), '{}')::jsonb;
  v_now timestamptz := jobforge.now();
  v_ids text[];
  v_used integer;
begin
  if (v_claims ->> 'once')::boolean is not true or v_claims ->> 'jti' is null then
    return;
  end if;
  v_ids := array(select distinct i.id
    from jsonb_array_elements_text(coalesce(v_claims -> 'singleUse', jsonb_build_array(v_claims -> 'jti'))) i(id)
    order by i.id);
  insert into jobforge.policy_tokens as p (tenant_id, token_id, used_at, expires_at)
  select jobforge.current_tenant(), i.id, v_now, coalesce(to_timestamp((v_claims ->> 'expiresAt')::bigint), v_now + interval '1 day')
  from unnest(v_ids) i(id)
  on conflict (tenant_id, token_id) do update set used_at = excluded.used_at where p.used_at is null;
  get diagnostics v_used = row_count;
  if v_used <> cardinality(v_ids) then
    raise exception 'the policy token is good for one write, and was used' using errcode = 'JF403',
      hint = 'list-runs shows what it was used for; ask whoever issues tokens for another.', detail = 'TOKEN_USED';
  end if;
end $$;
comment on function jobforge.use_token() is 'Use up a token that is good for one write, or refuse it.';

create or replace function jobforge.revoke_token(
  p_tenant_id text, p_token_id text, p_reason text default null, p_expires_at timestamptz default null)
returns text
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_now timestamptz := jobforge.now();
  v_outcome text := 'unchanged';
begin
  perform jobforge.require_tenant(p_tenant_id);
  if p_token_id is null or octet_length(p_token_id) not between 1 and 512 then
    raise exception 'a token is named by its jti of 1 to 512 bytes' using errcode = 'JF400',
      hint = 'jobforge token inspect shows it.';
  end if;
  insert into jobforge.policy_tokens as p (tenant_id, token_id, revoked_at, revoked_reason, revoked_by, expires_at)
  values (p_tenant_id, p_token_id, v_now, left(p_reason, 1000), nullif(current_setting('jobforge.actor', true), ''),
    coalesce(p_expires_at, v_now + interval '1 day'))
  on conflict (tenant_id, token_id) do update
    set revoked_at = excluded.revoked_at, revoked_reason = excluded.revoked_reason, revoked_by = excluded.revoked_by
    where p.revoked_at is null;
  if found then
    v_outcome := 'revoked';
  end if;
  perform jobforge.disable_triggers_of(p_tenant_id, p_token_id);
  delete from jobforge.policy_tokens p
  where p.tenant_id = p_tenant_id and p.token_id in (
    select x.token_id from jobforge.policy_tokens x
    where x.tenant_id = p_tenant_id and x.expires_at < v_now - interval '1 hour' limit 100 for update skip locked);
  perform jobforge.record_audit(p_tenant_id, 'revoke_token', v_outcome, null, null, jsonb_build_object('tokenId', p_token_id));
  return v_outcome;
end $$;
comment on function jobforge.revoke_token(text, text, text, timestamptz) is 'Revoke one policy token by its jti, and with it all that were narrowed from it.';

create or replace function jobforge.revoke_tenant_tokens(p_tenant_id text, p_reason text default null) returns bigint
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_now timestamptz := jobforge.now();
  v_epoch bigint := floor(extract(epoch from v_now) * 1000)::bigint + 1;
begin
  perform jobforge.require_tenant(p_tenant_id);
  insert into jobforge.tenants as t (tenant_id, created_at, token_epoch) values (p_tenant_id, v_now, v_epoch)
  on conflict (tenant_id) do update set token_epoch = greatest(t.token_epoch + 1, excluded.token_epoch)
  returning t.token_epoch into v_epoch;
  perform jobforge.record_audit(p_tenant_id, 'revoke_tenant_tokens', 'revoked', null, null,
    jsonb_strip_nulls(jsonb_build_object('epoch', v_epoch, 'reason', left(p_reason, 1000))));
  return v_epoch;
end $$;
comment on function jobforge.revoke_tenant_tokens(text, text) is 'Revoke every policy token of a tenant that was issued until now.';

create or replace function jobforge.check_token(p_tenant_id text, p_token_ids text[])
returns table (token_epoch bigint, revoked_id text, revoked_at timestamptz, revoked_reason text, used_id text,
  used_at timestamptz, used_jobs bigint, used_units bigint, used_run_ms bigint)
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
begin
  perform jobforge.require_tenant(p_tenant_id);
  return query
  select coalesce((select t.token_epoch from jobforge.tenants t where t.tenant_id = p_tenant_id), 0),
    r.token_id::text, r.revoked_at, r.revoked_reason, u.token_id::text, u.used_at,
    coalesce(l.jobs, 0)::bigint, coalesce(l.units, 0)::bigint, coalesce(l.run_ms, 0)::bigint
  from (select) one
  left join lateral (select p.* from jobforge.policy_tokens p where p.tenant_id = p_tenant_id
    and p.token_id = any (p_token_ids) and p.revoked_at is not null order by p.revoked_at limit 1) r on true
  left join lateral (select p.* from jobforge.policy_tokens p where p.tenant_id = p_tenant_id
    and p.token_id = any (p_token_ids) and p.used_at is not null order by p.used_at limit 1) u on true
  left join jobforge.limit_usage l on l.tenant_id = p_tenant_id and l.counter = 'token:' || p_token_ids[1];
end $$;
comment on function jobforge.check_token(text, text[]) is 'What happened to a token and its links, the outermost first, and what of its budget is used.';

reset role;

set local role jobforge_rpc;

-- Counted as it is now: check_policy may know a ceiling only.
create or replace function jobforge.open_under(p_tenant_id text, p_kind text, p_name text, out queued bigint, out running bigint)
language sql stable
set search_path = jobforge, pg_temp
as $$
  with open_runs as (
    select j.id from jobforge.jobs j
    where p_kind in ('tenant', 'type') and j.tenant_id = p_tenant_id and (p_kind = 'tenant' or j.job_type = p_name)
      and j.id in (
        select r.job_id from jobforge.ready r where r.tenant_id = p_tenant_id
        union all select w.job_id from jobforge.waiting w where w.tenant_id = p_tenant_id
        union all select h.job_id from jobforge.leases l cross join lateral unnest(l.job_ids) h(job_id) where l.tenant_id = p_tenant_id)
    union all
    select j.id from jobforge.limited_jobs t join jobforge.jobs j on j.tenant_id = t.tenant_id and j.id = t.job_id
    where p_kind in ('token', 'tool') and t.tenant_id = p_tenant_id and t.counter = p_kind || ':' || p_name and j.final_status is null
  ), held as (
    select h.job_id from jobforge.leases l cross join lateral unnest(l.job_ids) h(job_id) where l.tenant_id = p_tenant_id
  )
  select count(*) filter (where h.job_id is null), count(*) filter (where h.job_id is not null)
  from open_runs o left join held h on h.job_id = o.id
$$;
comment on function jobforge.open_under(text, text, text) is 'How many runs of a tenant, type, token or tool are queued or waiting, and how many running.';

-- What would be counted now, without counting: a limit that has no counter, such as a size, has no use and nothing left.
-- Run-seconds of runs that ended a moment ago are counted when the next call looks.
create or replace function jobforge.limits_left(
  p_tenant_id text, p_token_id text default null, p_token_limits jsonb default null, p_job_types text[] default null,
  p_tool text default null)
returns table (kind text, name text, limit_name text, value numeric, used numeric, remaining numeric, resets_at timestamptz)
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
begin
  perform jobforge.require_tenant(p_tenant_id);
  return query
  with applying as (
    select l.* from jobforge.rate_limits l
    where l.tenant_id = p_tenant_id and (l.kind = 'tenant' or (l.kind = 'type' and l.name = any (p_job_types))
      or (l.kind = 'tool' and l.name = p_tool))
    union all
    select t.* from pg_catalog.jsonb_populate_record(null::jobforge.rate_limits, p_token_limits
      || jsonb_build_object('tenant_id', p_tenant_id, 'kind', 'token', 'name', p_token_id)) t
    where p_token_id is not null and p_token_limits is not null
  ), counted as (
    select l.*, u.is_current, case when u.is_current then u.jobs else 0 end as used_jobs,
      case when u.is_current then u.units else 0 end as used_units,
      case when u.is_current then u.run_ms else 0 end as used_run_ms,
      case when u.is_current then u.period_started_at + l.period_seconds * interval '1 second' end as resets_at,
      coalesce(l.burst, greatest(1, ceil(l.rps)))::numeric as most_permits,
      least(coalesce(l.burst, greatest(1, ceil(l.rps))), u.permits
        + l.rps * greatest(0, extract(epoch from v_now - u.refilled_at)::float8))::numeric as permits,
      o.queued as queued_runs, o.running as running_runs
    from applying l
    left join lateral jobforge.open_under(p_tenant_id, l.kind, l.name) o on coalesce(l.max_queued, l.max_running) is not null
    left join lateral (
      select x.*, (l.period_seconds is null or x.period_started_at > v_now - l.period_seconds * interval '1 second') as is_current
      from jobforge.limit_usage x where x.tenant_id = p_tenant_id and x.counter = l.kind || ':' || l.name) u on true
  )
  select c.kind::text, c.name::text, v.limit_name, v.value, v.used, case when v.used is not null then greatest(0, coalesce(v.value_of_use, v.value) - v.used) end,
    case when v.limit_name like 'budget%' then c.resets_at end
  from counted c
  cross join lateral (values
    ('rps', c.rps::numeric, round(c.most_permits - coalesce(c.permits, c.most_permits), 3), c.most_permits),
    ('max_running', c.max_running::numeric, c.running_runs::numeric, null),
    ('max_queued', c.max_queued::numeric, c.queued_runs::numeric, null),
    ('max_payload_bytes', c.max_payload_bytes::numeric, null, null),
    ('max_priority', c.max_priority::numeric, null, null),
    ('max_children', c.max_children::numeric, null, null),
    ('max_depth', c.max_depth::numeric, null, null),
    ('budget_jobs', c.budget_jobs::numeric, c.used_jobs::numeric, null),
    ('budget_units', c.budget_units::numeric, c.used_units::numeric, null),
    ('budget_run_seconds', c.budget_run_seconds::numeric, round(c.used_run_ms / 1000.0, 3), null)
  ) v(limit_name, value, used, value_of_use)
  where v.value is not null
  order by 1, 2, 3;
end $$;
comment on function jobforge.limits_left(text, text, jsonb, text[], text) is
  'Each limit that a call would be held to, what is used of it and what is left.';

reset role;
