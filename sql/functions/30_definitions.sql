-- Definitions registered as data: list and read them, and check them when a job is enqueued.
--
-- Called by jobforge_api for callers with the scopes for it, and by enqueue_jobs. Every function belongs to jobforge_rpc,
-- whose row policy admits the scope's tenant alone. How definitions come to be and go is in 31_registering.sql. Nothing
-- here takes a lock.

set local role jobforge_rpc;

create or replace function jobforge.this_change() returns bigint
language sql volatile
set search_path = jobforge, pg_temp
as $$ select pg_catalog.pg_current_xact_id()::pg_catalog.text::bigint $$;
comment on function jobforge.this_change() is 'Number of this transaction, by which changed_definitions finds what it changed.';

-- Where jobs of a type may be: its own lane and those of the versions registered under its name.
create or replace function jobforge.lanes_of(p_tenant_id text, p_job_type text) returns text[]
language sql stable
set search_path = jobforge, pg_temp
as $$
  select array(
    select p_job_type
    union
    select d.lane_type::text from jobforge.job_definitions d
    where d.tenant_id = p_tenant_id and d.job_type = p_job_type and d.lane_type is not null)
$$;
comment on function jobforge.lanes_of(text, text) is 'The lanes in which jobs of a type may be.';

create or replace function jobforge.refuse_unknown_job(p_job_type text) returns void
language plpgsql stable
set search_path = jobforge, pg_temp
as $$
begin
  raise exception 'there is no registered job of this name, or not in this version' using errcode = 'JF404', detail = 'JOB_NOT_FOUND',
    hint = 'list-jobs shows every job that you may run.';
end $$;
comment on function jobforge.refuse_unknown_job(text) is 'The one answer for a definition that does not exist, or not for this caller.';

-- A page in the order of names. The search reads the tenant's rows of this narrow table, no definition; `like` is the
-- quickest way to look for words in them that every Postgres has. Planned for what is asked each time: a page in the middle
-- goes by the index, a search that finds little by the whole table.
create or replace function jobforge.list_definitions(
  p_tenant_id text, p_words text[] default null, p_tags text[] default null, p_labels text default null,
  p_after text default null, p_limit integer default 20, p_is_listed boolean default true)
returns table (job_type text, job_version text, latest_version text, title text, description text, tags text[],
  is_hidden boolean, registered_by text, updated_at timestamptz, removed_at timestamptz)
language plpgsql stable
security definer set search_path = jobforge, pg_temp
set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
  v_claims jsonb := jobforge.confining_claims();
  v_patterns text[] := case when p_words is not null then array(
    select '%' || regexp_replace(u.word, '([\\%_])', '\\\1', 'g') || '%' from unnest(p_words) u(word)) end;
begin
  perform jobforge.require_tenant(p_tenant_id);
  if coalesce(p_limit, 0) not between 1 and 1000 then
    raise exception 'a page holds 1 to 1,000 definitions, not %', p_limit using errcode = 'JF400';
  end if;
  return query
  select r.job_type::text, r.job_version::text, r.latest_version::text, r.title, r.description, r.tags, r.is_hidden,
    r.registered_by, r.updated_at, r.removed_at
  from jobforge.registered_jobs r
  where r.tenant_id = p_tenant_id and (p_after is null or r.job_type > p_after collate "C")
    and (not p_is_listed or (r.job_version is not null and r.removed_at is null and not r.is_hidden))
    and (v_patterns is null or r.search_text like all (v_patterns))
    and (p_tags is null or r.tags @> p_tags) and (p_labels is null or r.labels @> p_labels::jsonb)
    and (v_claims is null or jobforge.allows_type(v_claims, r.job_type))
  order by r.job_type limit p_limit;
end $$;
comment on function jobforge.list_definitions(text, text[], text[], text, text, integer, boolean) is
  'A page of the tenant''s registered definitions by name; with p_is_listed only those that can be run and are not hidden.';

create or replace function jobforge.find_definitions(
  p_tenant_id text, p_words text[] default null, p_tags text[] default null, p_labels text default null,
  p_after text default null, p_limit integer default 20)
returns table (job_type text, job_version text, current_version text, latest_version text, lane_type text, definition text,
  definition_hash text, created_at timestamptz, created_by text, approved_at timestamptz, approved_by text,
  removed_at timestamptz)
language plpgsql stable
security definer set search_path = jobforge, pg_temp
set plan_cache_mode = force_generic_plan
as $$
begin
  perform jobforge.require_tenant(p_tenant_id);
  return query
  select l.job_type, d.job_version, l.job_version, l.latest_version, d.lane_type::text, d.definition::text,
    encode(d.definition_hash, 'hex'), d.created_at, d.created_by, d.approved_at, d.approved_by, l.removed_at
  from jobforge.list_definitions(p_tenant_id, p_words, p_tags, p_labels, p_after, p_limit) l
  cross join lateral (
    select x.* from jobforge.job_definitions x
    where x.tenant_id = p_tenant_id and x.job_type = l.job_type and x.job_version = l.job_version limit 1) d
  order by l.job_type collate "C";
end $$;
comment on function jobforge.find_definitions(text, text[], text[], text, text, integer) is
  'The same page of those that can be run, with the definitions themselves.';

create or replace function jobforge.get_definitions(p_tenant_id text, p_job_types text[], p_versions text[] default null)
returns table (job_type text, job_version text, current_version text, latest_version text, lane_type text, definition text,
  definition_hash text, created_at timestamptz, created_by text, approved_at timestamptz, approved_by text,
  removed_at timestamptz)
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_claims jsonb := jobforge.confining_claims();
begin
  perform jobforge.require_tenant(p_tenant_id);
  if cardinality(p_job_types) > 1000 then
    raise exception 'at most 1,000 definitions can be read in one call' using errcode = 'JF413';
  end if;
  return query
  select r.job_type::text, d.job_version, r.job_version::text, r.latest_version::text, d.lane_type::text, d.definition::text,
    encode(d.definition_hash, 'hex'), d.created_at, d.created_by, d.approved_at, d.approved_by, r.removed_at
  from unnest(p_job_types, p_versions) with ordinality u(job_type, version, ord)
  join jobforge.registered_jobs r on r.tenant_id = p_tenant_id and r.job_type = u.job_type
  join jobforge.job_definitions d on d.tenant_id = p_tenant_id and d.job_type = u.job_type
    and d.job_version = case when u.version is not null then u.version when r.job_version is not null then r.job_version
      else r.latest_version end
  where v_claims is null or jobforge.allows_type(v_claims, r.job_type)
  order by u.ord;
end $$;
comment on function jobforge.get_definitions(text, text[], text[]) is
  'Definitions by name and version, or in the version that new runs get; what is unknown is left out.';

-- For those who act on many runs by a filter: of whose runs some may be kept from them. All versions, since runs keep theirs.
create or replace function jobforge.list_guarded_definitions(p_tenant_id text, p_handlers text[])
returns table (job_type text, job_version text, current_version text, latest_version text, lane_type text, definition text,
  definition_hash text, created_at timestamptz, created_by text, approved_at timestamptz, approved_by text,
  removed_at timestamptz)
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
begin
  perform jobforge.require_tenant(p_tenant_id);
  return query
  select r.job_type::text, d.job_version, r.job_version::text, r.latest_version::text, d.lane_type::text, d.definition::text,
    encode(d.definition_hash, 'hex'), d.created_at, d.created_by, d.approved_at, d.approved_by, r.removed_at
  from jobforge.job_definitions d
  join jobforge.registered_jobs r on r.tenant_id = d.tenant_id and r.job_type = d.job_type
  where d.tenant_id = p_tenant_id
    and (d.lane_type = any (p_handlers) or d.definition ?| array['permissions', 'pinned']
      or (d.lane_type = 'jobforge.composition' and cardinality(p_handlers) > 0))
  order by d.job_type, d.job_version;
end $$;
comment on function jobforge.list_guarded_definitions(text, text[]) is
  'Versions of registered definitions that ask something of callers, or may by running one of some handlers.';

create or replace function jobforge.get_definition(p_tenant_id text, p_job_type text, p_version text default null)
returns table (job_type text, job_version text, current_version text, latest_version text, lane_type text, definition text,
  definition_hash text, created_at timestamptz, created_by text, approved_at timestamptz, approved_by text,
  removed_at timestamptz)
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
begin
  perform jobforge.require_tenant(p_tenant_id);
  return query select g.* from jobforge.get_definitions(p_tenant_id, array[p_job_type], array[p_version]) g;
  if not found then
    perform jobforge.refuse_unknown_job(p_job_type);
  end if;
end $$;
comment on function jobforge.get_definition(text, text, text) is 'One definition; JF404 when the tenant has none of this name and version.';

create or replace function jobforge.list_definition_versions(p_tenant_id text, p_job_type text)
returns table (job_version text, definition_hash text, created_at timestamptz, created_by text, approved_at timestamptz,
  approved_by text)
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_claims jsonb := jobforge.confining_claims();
begin
  perform jobforge.require_tenant(p_tenant_id);
  return query
  select d.job_version, encode(d.definition_hash, 'hex'), d.created_at, d.created_by, d.approved_at, d.approved_by
  from jobforge.job_definitions d
  where d.tenant_id = p_tenant_id and d.job_type = p_job_type
    and (v_claims is null or jobforge.allows_type(v_claims, d.job_type))
  order by d.created_at desc, d.job_version desc limit 1000;
end $$;
comment on function jobforge.list_definition_versions(text, text) is 'Versions of a definition, newest first.';

-- Asked inside the enqueue, so that neither a stale replica nor a caller who makes lanes up gets past a removal or a
-- quarantine. Returns the lane of each job. A version that is left out is 1, as in the enqueue.
create or replace function jobforge.require_definitions(
  p_tenant_id text, p_job_types text[], p_job_versions text[], p_lane_types text[])
returns text[]
language plpgsql stable
set search_path = jobforge, pg_temp
as $$
declare
  v_job record;
begin
  if cardinality(p_lane_types) is distinct from cardinality(p_job_types) then
    raise exception 'the arrays of a batch must all have one element for each job' using errcode = 'JF400';
  end if;
  select u.job_type, coalesce(u.job_version, '1') as job_version, d.approved_at, r.job_type as name, r.removed_at into v_job
  from unnest(p_job_types, p_job_versions, p_lane_types) with ordinality u(job_type, job_version, lane_type, ord)
  left join jobforge.job_definitions d on d.tenant_id = p_tenant_id and d.job_type = u.job_type
    and d.job_version = coalesce(u.job_version, '1') and d.lane_type = u.lane_type
  left join jobforge.registered_jobs r on r.tenant_id = p_tenant_id and r.job_type = d.job_type
  where u.lane_type is not null and (r.job_type is null or r.removed_at is not null or d.approved_at is null)
  order by u.ord limit 1;
  if v_job.job_type is not null then
    raise exception '%', case
        when v_job.name is null then format('there is no version %s of a registered job %s', v_job.job_version, v_job.job_type)
        when v_job.removed_at is not null then format('the job %s was removed', v_job.job_type)
        else format('version %s of the job %s is quarantined until it is approved', v_job.job_version, v_job.job_type) end
      using errcode = 'JF404', hint = 'Nothing was enqueued; list-jobs shows what can be run.',
        detail = case when v_job.name is null then 'JOB_NOT_FOUND' when v_job.removed_at is not null then 'JOB_REMOVED'
          else 'JOB_QUARANTINED' end;
  end if;
  return array(select coalesce(u.lane_type, u.job_type)
    from unnest(p_job_types, p_lane_types) with ordinality u(job_type, lane_type, ord) order by u.ord);
end $$;
comment on function jobforge.require_definitions(text, text[], text[], text[]) is
  'Refuse jobs of registered definitions that may not be run, and tell the lane of each job.';

-- A key of a limit as definitions/claim_limits.py works it out: a word, or a JSON Pointer into the input. Objects are
-- written out in another order there, so a limit by an object is left to the clients.
create or replace function jobforge.limit_key(p_template text, p_payload jsonb) returns text
language plpgsql immutable
set search_path = jobforge, pg_temp
as $$
declare
  v_found jsonb;
  v_text text;
begin
  if p_template is null or p_template not like '/%' then
    return coalesce(p_template, '');
  end if;
  v_found := p_payload #> array(
    select replace(replace(s.part, '~1', '/'), '~0', '~')
    from unnest((string_to_array(p_template, '/'))[2:]) with ordinality s(part, place) order by s.place);
  if jsonb_path_exists(v_found, 'strict $.** ? (@.type() == "object")') then
    raise exception 'the limits of this job are counted by %, which is an object here', p_template using errcode = 'JF400',
      hint = 'Enqueue it through a server or client.';
  end if;
  v_text := case jsonb_typeof(v_found)
    when 'null' then ''
    when 'string' then v_found #>> '{}'
    when 'number' then case when v_found::text ~ '\.' then regexp_replace((v_found::float8)::text, '^(-?[0-9]+)$', '\1.0')
      else v_found::text end
    else coalesce(v_found::text, '') end;
  return case when octet_length(v_text) > 200 then 'sha256:' || encode(sha256(convert_to(v_text, 'UTF8')), 'hex') else v_text end;
end $$;
comment on function jobforge.limit_key(text, jsonb) is 'The key under which a limit of a definition counts an input.';

-- What a server works out for a registered job before it enqueues one, for those who enqueue by plain SQL: lane, version and
-- what its definition says of attempts, times, cost and limits. Nothing comes back for a name that is not registered. Roles
-- and scopes are known to servers alone, so a definition that asks its callers for some refuses; whether the input fits its
-- schema is found by the worker.
create or replace function jobforge.resolve_job(
  p_tenant_id text, p_job_type text, p_job_version text, p_payload jsonb, p_idempotency_key text)
returns table (job_version text, lane_type text, max_attempts integer, backoff_ms integer, backoff_multiplier float8,
  max_backoff_ms integer, timeout_ms integer, unit_cost integer, claim_limits text)
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_job jobforge.registered_jobs;
  v_said jsonb;
  v_lane text;
  v_limits jsonb;
begin
  select * into v_job from jobforge.registered_jobs r where r.tenant_id = p_tenant_id and r.job_type = p_job_type;
  if not found then
    return;
  end if;
  p_job_version := coalesce(p_job_version, v_job.job_version, v_job.latest_version);
  select d.definition, d.lane_type::text into v_said, v_lane from jobforge.job_definitions d
  where d.tenant_id = p_tenant_id and d.job_type = p_job_type and d.job_version = p_job_version;
  -- a lane that no version has: refused as a version that is not there
  perform jobforge.require_definitions(p_tenant_id, array[p_job_type], array[p_job_version], array[coalesce(v_lane, '')]);
  if jsonb_path_exists(v_said, '$.permissions[*] ? (@.action == "execute")') then
    perform jobforge.note_refusal();
    raise exception 'the job % asks its callers for scopes or roles, which plain SQL cannot show', p_job_type using errcode = 'JF403',
      hint = 'Enqueue it through a server or client, with a token.';
  end if;
  if v_said ->> 'effects' = 'external' and p_idempotency_key is null then
    raise exception 'the job % acts outside this database, so it needs an idempotency key', p_job_type using errcode = 'JF400',
      hint = 'Pass one, and the same whenever this very call is repeated.';
  end if;
  perform jobforge.require_steps_startable(p_job_type, v_said, p_idempotency_key);
  v_limits := jsonb_strip_nulls(jsonb_build_object(
    'concurrency', case when v_said ? 'concurrency' then jsonb_build_object('limit', v_said #> '{concurrency,limit}',
      'key', jobforge.limit_key(v_said #>> '{concurrency,key}', p_payload)) end,
    'rateLimit', case when v_said ? 'rateLimit' then jsonb_build_object('count', v_said #> '{rateLimit,count}',
      'periodMs', v_said #> '{rateLimit,periodMs}', 'key', jobforge.limit_key(v_said #>> '{rateLimit,key}', p_payload)) end,
    'debounce', case when v_said ? 'debounce' then jsonb_build_object('windowMs', v_said #> '{debounce,windowMs}',
      'maxWaitMs', coalesce((v_said #>> '{debounce,maxWaitMs}')::bigint,
        least(10 * (v_said #>> '{debounce,windowMs}')::bigint, 7 * 86400000)),
      'key', jobforge.limit_key(v_said #>> '{debounce,key}', p_payload)) end));
  return query select p_job_version, v_lane, (v_said #>> '{retry,maxAttempts}')::integer, (v_said #>> '{retry,backoffMs}')::integer,
    (v_said #>> '{retry,backoffMultiplier}')::float8, (v_said #>> '{retry,maxBackoffMs}')::integer,
    (v_said ->> 'timeoutMs')::integer, nullif((v_said ->> 'cost')::integer, 1), nullif(v_limits, '{}')::text;
end $$;
comment on function jobforge.resolve_job(text, text, text, jsonb, text) is
  'Lane, version and settings with which a registered job is enqueued by plain SQL; nothing for a name that is not registered.';

reset role;
