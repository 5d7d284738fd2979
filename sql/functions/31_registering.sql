-- Register, approve and remove definitions as data.
--
-- Called by jobforge_api for callers with the scopes for it; require_approval by operators. What callers call belongs to
-- jobforge_rpc, whose row policy admits the scope's tenant alone. What a definition may say is checked in Python before it
-- comes here; here is decided which version runs, who may approve it, and what becomes of its runs. Versions never change
-- and are never deleted: a run keeps the one it began with.
-- Locks: an advisory lock for each tenant, so that of two names that look alike only one is registered; then
-- registered_jobs, ready, waiting, jobs. Enqueues, claims and settles take none of the first two.

set local role jobforge_rpc;

-- Names have no capitals and no letters outside ASCII: what is left of look-alikes is digits, pairs of letters and
-- separators.
create or replace function jobforge.name_key(p_name text) returns text
language sql immutable
set search_path = jobforge, pg_temp
as $$ select replace(replace(replace(translate(lower(p_name), '01-_', 'ol..'), 'rn', 'm'), 'vv', 'w'), 'cl', 'd') $$;
comment on function jobforge.name_key(text) is 'A name with look-alike characters and separators folded into one.';

-- At most one character added, left out or replaced, or two neighbours exchanged. Names that differ in nothing but their
-- digits are a series and not a disguise. The halves come first: of two such names one half is the same.
create or replace function jobforge.is_near_name(p_name text, p_other text) returns boolean
language plpgsql immutable
set search_path = jobforge, pg_temp
as $$
declare
  v_start integer := 0;
  v_end integer := 0;
  v_least integer := least(length(p_name), length(p_other));
  v_most integer := greatest(length(p_name), length(p_other));
begin
  if v_most - v_least > 1 or v_most < 5 or p_name = p_other
    or (left(p_name, v_least / 2 - 1) <> left(p_other, v_least / 2 - 1)
      and right(p_name, v_least / 2 - 1) <> right(p_other, v_least / 2 - 1))
    or regexp_replace(p_name, '[0-9]', '', 'g') = regexp_replace(p_other, '[0-9]', '', 'g')
  then
    return false;
  end if;
  while v_start < v_least and substr(p_name, v_start + 1, 1) = substr(p_other, v_start + 1, 1) loop
    v_start := v_start + 1;
  end loop;
  while v_end < v_least - v_start
    and substr(p_name, length(p_name) - v_end, 1) = substr(p_other, length(p_other) - v_end, 1)
  loop
    v_end := v_end + 1;
  end loop;
  return v_start + v_end >= v_most - 1
    or (v_most = v_least and v_start + v_end = v_most - 2
      and substr(p_name, v_start + 1, 1) = substr(p_other, v_start + 2, 1)
      and substr(p_name, v_start + 2, 1) = substr(p_other, v_start + 1, 1));
end $$;
comment on function jobforge.is_near_name(text, text) is 'Whether two names differ so little that one is taken for the other.';

-- Definitions are the whole tenant's, so whoever is confined to projects does not change them.
create or replace function jobforge.require_definition_writer(p_tenant_id text, p_job_type text, p_is_plan boolean) returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
begin
  if jobforge.confined_projects() is not null then
    raise exception 'definitions belong to the whole tenant, and the caller is confined to projects' using errcode = 'JF403',
      hint = 'Ask somebody whose token names no projects.';
  end if;
  perform jobforge.require_types(p_tenant_id, array[p_job_type]);
  if p_is_plan is not true and current_setting('jobforge.token_id', true) <> '' then
    perform jobforge.use_token();
  end if;
  if jobforge.current_claims() ? 'limits' or exists (select from jobforge.rate_limits l where l.tenant_id = p_tenant_id) then
    perform jobforge.check_policy(p_tenant_id, 'cancel', array[p_job_type]);  -- takes from the rates alone
  end if;
  if p_is_plan is not true then
    perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(p_tenant_id, 5751));
  end if;
end $$;
comment on function jobforge.require_definition_writer(text, text, boolean) is
  'Refuse whoever may not change this definition now; changes of one tenant go one after another.';

create or replace function jobforge.refuse_alike(p_tenant_id text, p_job_type text) returns void
language plpgsql stable
set search_path = jobforge, pg_temp
as $$
declare
  v_other text;
  v_actor text := nullif(current_setting('jobforge.actor', true), '');
  v_key text := jobforge.name_key(p_job_type);  -- not anew for each of ten thousand rows
begin
  select r.job_type into v_other from jobforge.registered_jobs r
  where r.tenant_id = p_tenant_id and r.job_type <> p_job_type
    and (r.name_key = v_key
      or (r.registered_by is distinct from v_actor and abs(length(r.job_type) - length(p_job_type)) <= 1
        and jobforge.is_near_name(r.job_type, p_job_type)))
  order by r.job_type limit 1;
  if v_other is not null then
    raise exception 'the name % looks like that of another registered job, %', p_job_type, v_other using errcode = 'JF409',
      detail = 'NAME_CONFUSABLE', hint = 'Choose a name that nobody could take for it.';
  end if;
end $$;
comment on function jobforge.refuse_alike(text, text) is 'Refuse a name that could be taken for another one of the tenant.';

-- Jobs of a removed definition stay where nobody claims them: in a lane of their own name. When it is registered again they
-- go back to the lanes of the versions they began with.
create or replace function jobforge.wake_definition(p_tenant_id text, p_job_type text) returns bigint
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_lanes text[];
begin
  with parked as (
    delete from jobforge.ready r using jobforge.jobs j, jobforge.job_definitions d
    where r.tenant_id = p_tenant_id and r.job_type = p_job_type and r.own_type is null
      and j.tenant_id = r.tenant_id and j.id = r.job_id
      and d.tenant_id = r.tenant_id and d.job_type = p_job_type and d.job_version = j.job_version
      and d.approved_at is not null and d.lane_type is not null
    returning r.*, d.lane_type
  ), waiting as (
    select w.job_id, d.lane_type from jobforge.waiting w
    join jobforge.jobs j on j.tenant_id = w.tenant_id and j.id = w.job_id and j.job_type = p_job_type and j.lane_type is null
    join jobforge.job_definitions d on d.tenant_id = p_tenant_id and d.job_type = p_job_type and d.job_version = j.job_version
      and d.approved_at is not null and d.lane_type is not null
    where w.tenant_id = p_tenant_id
  ), changed as (
    -- not before now: workers pass over what lies behind the jobs they claimed, until their next full look
    update jobforge.jobs j set lane_type = c.lane_type, run_at = coalesce(c.run_at, j.run_at)
    from (select p.job_id, p.lane_type, greatest(p.run_at, jobforge.now()) as run_at from parked p
      union all select w.job_id, w.lane_type, null from waiting w) c
    where j.tenant_id = p_tenant_id and j.id = c.job_id
  ), woken as (
    insert into jobforge.ready (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no, is_suspect, own_type)
    select p.tenant_id, p.lane_type, p.priority, greatest(p.run_at, jobforge.now()), p.job_id, p.epoch, p.attempt_no,
      p.is_suspect, p_job_type
    from parked p
    returning job_type
  )
  select array_agg(w.job_type::text) into v_lanes from woken w;
  if v_lanes is not null then
    perform jobforge.touch_lanes(array_fill(p_tenant_id, array[cardinality(v_lanes)]), v_lanes);
    perform jobforge.wake('ready');
  end if;
  return coalesce(cardinality(v_lanes), 0);
end $$;
comment on function jobforge.wake_definition(text, text) is 'Let the queued runs of a definition that is registered again be claimed.';

-- What a composition pins must be there and stay: it is looked at and removed under the same lock of the tenant.
create or replace function jobforge.require_pinned(p_tenant_id text, p_job_type text, p_pinned jsonb) returns void
language plpgsql stable
set search_path = jobforge, pg_temp
as $$
declare
  v_missing text;
begin
  select p.job_type || ' ' || p.job_version into v_missing
  from jsonb_each_text(p_pinned) p(job_type, job_version)
  where p.job_type = p_job_type or not exists (
    select from jobforge.registered_jobs r
    join jobforge.job_definitions d on d.tenant_id = r.tenant_id and d.job_type = r.job_type
    where r.tenant_id = p_tenant_id and r.job_type = p.job_type and r.removed_at is null
      and d.job_version = p.job_version and d.approved_at is not null)
  order by 1 limit 1;
  if v_missing is not null then
    raise exception 'the step % is no registered job that may be run', v_missing using errcode = 'JF404', detail = 'JOB_NOT_FOUND',
      hint = 'list-jobs shows every job that you may run.';
  end if;
end $$;
comment on function jobforge.require_pinned(text, text, jsonb) is 'Refuse a composition whose steps pin what may not be run, or itself.';

-- Those whose next run, or next approved one, would run it. Older versions may pin it as well: steps of runs that began with
-- them are refused then, by name.
create or replace function jobforge.refuse_used(p_tenant_id text, p_job_type text) returns void
language plpgsql stable
set search_path = jobforge, pg_temp
as $$
declare
  v_users text[];
  v_claims jsonb := jobforge.confining_claims();
begin
  select array_agg(distinct case when v_claims is null or jobforge.allows_type(v_claims, r.job_type) then r.job_type::text
    else 'a job of another name' end) into v_users
  from jobforge.registered_jobs r
  join jobforge.job_definitions d on d.tenant_id = r.tenant_id and d.job_type = r.job_type
    and d.job_version in (r.job_version, r.latest_version) and d.lane_type = 'jobforge.composition'
  where r.tenant_id = p_tenant_id and r.removed_at is null and d.definition #> '{pinned,jobs}' ? p_job_type;
  if v_users is not null then
    raise exception 'the job % is a step of %', p_job_type,
        array_to_string(v_users[1:5], ', ') || case when cardinality(v_users) > 5 then ' and others' else '' end
      using errcode = 'JF409', detail = 'JOB_IN_USE', hint = 'Remove those first, or register them without it.';
  end if;
end $$;
comment on function jobforge.refuse_used(text, text) is 'Refuse to remove a job that compositions run, and name them.';

drop function if exists jobforge.register_definition(text, text, text, text, boolean);
create or replace function jobforge.register_definition(
  p_tenant_id text, p_definition text, p_lane_type text, p_version text default null, p_is_plan boolean default false)
returns table (job_type text, job_version text, outcome text, definition_hash text, woken_runs bigint, needs_approval boolean)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
  v_actor text := nullif(current_setting('jobforge.actor', true), '');
  v_definition jsonb;
  v_name text;
  v_hash bytea;
  v_job jobforge.registered_jobs;
  v_known jobforge.job_definitions;
  v_version text;
  v_outcome text;
  v_needs_approval boolean;
  v_woken bigint := 0;
begin
  perform jobforge.require_tenant(p_tenant_id);
  perform jobforge.require_small_json(array[p_definition], 131072, 'a definition');
  v_definition := p_definition::jsonb - 'version';
  v_name := v_definition ->> 'name';
  if jsonb_typeof(v_definition) is distinct from 'object' or v_name is null or v_name !~ '^[a-z0-9][a-z0-9.-]{0,63}$'
    or v_name like 'jobforge.%' or p_lane_type !~ '^[a-z0-9][a-z0-9._-]{0,99}$' or p_lane_type is null
    or p_version !~ '^[A-Za-z0-9][A-Za-z0-9._+-]{0,31}$'
  then
    raise exception 'a definition is an object with a name of 1 to 64 lower-case letters, digits, dots or hyphens, and has a lane'
      using errcode = 'JF400', hint = 'Names that begin with jobforge. are reserved.';
  end if;
  perform jobforge.require_definition_writer(p_tenant_id, v_name, p_is_plan);
  if v_definition ? 'pinned' then
    perform jobforge.require_pinned(p_tenant_id, v_name, v_definition #> '{pinned,jobs}');
  end if;
  v_hash := sha256(convert_to(v_definition::text, 'UTF8'));
  v_needs_approval := exists (select from jobforge.tenants t where t.tenant_id = p_tenant_id and t.requires_approval);
  select * into v_job from jobforge.registered_jobs r where r.tenant_id = p_tenant_id and r.job_type = v_name;
  if v_job.job_type is null then
    perform jobforge.refuse_alike(p_tenant_id, v_name);
  end if;
  select * into v_known from jobforge.job_definitions d
  where d.tenant_id = p_tenant_id and d.job_type = v_name and d.job_version = coalesce(p_version, v_job.latest_version);
  if p_version is not null and v_known.definition_hash <> v_hash then
    raise exception 'version % of % is registered with another content, and versions never change', p_version, v_name
      using errcode = 'JF409', detail = 'VERSION_TAKEN', hint = 'Leave version out, or give it a new one.';
  end if;

  if v_known.definition_hash = v_hash then
    v_version := v_known.job_version;
    v_outcome := case when v_known.approved_at is null then 'quarantined' when v_job.removed_at is not null then 'created'
      else 'unchanged' end;
  else
    v_version := coalesce(p_version, (
      -- in the list of what is selected a series is made as far as it is read
      select n.number::text from (
        select generate_series(coalesce(v_job.version_no, 0) + 1, coalesce(v_job.version_no, 0) + 100000) as number) n
      where not exists (select from jobforge.job_definitions d
        where d.tenant_id = p_tenant_id and d.job_type = v_name and d.job_version = n.number::text)
      limit 1));
    v_outcome := case when v_needs_approval then 'quarantined' else 'created' end;
  end if;
  if p_is_plan then
    perform jobforge.record_audit(p_tenant_id, 'register_definition', 'planned', null, v_name,
      jsonb_build_object('version', v_version, 'outcome', v_outcome));
    return query select v_name, v_version, case when v_outcome = 'unchanged' then 'unchanged' else 'planned' end, encode(v_hash, 'hex'), 0::bigint,
      v_outcome = 'quarantined';
    return;
  end if;

  if v_known.definition_hash is distinct from v_hash then
    insert into jobforge.job_definitions (tenant_id, job_type, job_version, definition, definition_hash, created_at, created_by,
      lane_type, approved_at)
    values (p_tenant_id, v_name, v_version, v_definition || jsonb_build_object('version', v_version), v_hash, v_now, v_actor,
      p_lane_type, case when not v_needs_approval then v_now end);
  end if;
  if v_known.definition_hash is distinct from v_hash or v_outcome = 'created' then
    insert into jobforge.registered_jobs as r (tenant_id, job_type, name_key, job_version, latest_version, version_no, title,
      description, tags, labels, search_text, is_hidden, registered_by, created_at, updated_at, changed_in)
    values (p_tenant_id, v_name, jobforge.name_key(v_name), case when v_outcome = 'created' then v_version end, v_version, 1,
      v_definition ->> 'title', v_definition ->> 'description',
      array(select t.tag from jsonb_array_elements_text(coalesce(v_definition -> 'tags', '[]')) t(tag)),
      coalesce(v_definition -> 'labels', '{}'), lower(concat_ws(' ', v_name, v_definition ->> 'title', v_definition ->> 'description',
        (select string_agg(t.tag, ' ') from jsonb_array_elements_text(coalesce(v_definition -> 'tags', '[]')) t(tag)))),
      coalesce((v_definition ->> 'hidden')::boolean, false), v_actor, v_now, v_now, jobforge.this_change())
    on conflict (tenant_id, job_type) do update
      -- while a new version is quarantined the list goes on to show, and runs to get, what is approved
      set job_version = coalesce(excluded.job_version, r.job_version), latest_version = excluded.latest_version,
        version_no = r.version_no + 1, registered_by = excluded.registered_by, updated_at = excluded.updated_at,
        changed_in = excluded.changed_in,
        removed_at = case when excluded.job_version is not null then null else r.removed_at end,
        title = case when excluded.job_version is not null or r.job_version is null then excluded.title else r.title end,
        description = case when excluded.job_version is not null or r.job_version is null then excluded.description else r.description end,
        tags = case when excluded.job_version is not null or r.job_version is null then excluded.tags else r.tags end,
        labels = case when excluded.job_version is not null or r.job_version is null then excluded.labels else r.labels end,
        search_text = case when excluded.job_version is not null or r.job_version is null then excluded.search_text else r.search_text end,
        is_hidden = case when excluded.job_version is not null or r.job_version is null then excluded.is_hidden else r.is_hidden end;
  end if;
  if v_outcome = 'created' and v_job.removed_at is not null then
    v_woken := jobforge.wake_definition(p_tenant_id, v_name);
  end if;
  perform jobforge.record_audit(p_tenant_id, 'register_definition', v_outcome, null, v_name,
    jsonb_build_object('version', v_version, 'hash', encode(v_hash, 'hex')));
  return query select v_name, v_version, v_outcome, encode(v_hash, 'hex'), v_woken, v_outcome = 'quarantined';
end $$;
comment on function jobforge.register_definition(text, text, text, text, boolean) is
  'Register a version of a definition: created, unchanged, quarantined until it is approved, or planned.';

create or replace function jobforge.approve_definition(
  p_tenant_id text, p_job_type text, p_version text default null, p_is_plan boolean default false)
returns table (job_type text, job_version text, outcome text, definition_hash text, woken_runs bigint)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
  v_actor text := nullif(current_setting('jobforge.actor', true), '');
  v_job jobforge.registered_jobs;
  v_known jobforge.job_definitions;
  v_outcome text := 'approved';
  v_woken bigint := 0;
begin
  perform jobforge.require_tenant(p_tenant_id);
  perform jobforge.require_definition_writer(p_tenant_id, p_job_type, p_is_plan);
  select * into v_job from jobforge.registered_jobs r where r.tenant_id = p_tenant_id and r.job_type = p_job_type;
  select * into v_known from jobforge.job_definitions d
  where d.tenant_id = p_tenant_id and d.job_type = p_job_type and d.job_version = coalesce(p_version, v_job.latest_version);
  if v_known.job_type is null then
    perform jobforge.refuse_unknown_job(p_job_type);
  end if;
  if v_known.approved_at is not null then
    v_outcome := 'unchanged';
  elsif v_known.created_by is not distinct from v_actor then
    raise exception 'version % of % was registered by %, who may not approve it', v_known.job_version, p_job_type,
      coalesce(v_actor, 'nobody by name') using errcode = 'JF403', detail = 'APPROVER_IS_AUTHOR',
      hint = 'Somebody else with the scope definitions:approve has to.';
  elsif p_is_plan then
    v_outcome := 'planned';
  else
    if v_known.definition ? 'pinned' then
      perform jobforge.require_pinned(p_tenant_id, p_job_type, v_known.definition #> '{pinned,jobs}');
    end if;
    update jobforge.job_definitions d set approved_at = v_now, approved_by = v_actor
    where d.tenant_id = p_tenant_id and d.job_type = p_job_type and d.job_version = v_known.job_version;
    if v_known.job_version = v_job.latest_version then
      update jobforge.registered_jobs r
      set job_version = v_known.job_version, removed_at = null, updated_at = v_now, changed_in = jobforge.this_change(), title = v_known.definition ->> 'title',
        description = v_known.definition ->> 'description',
        tags = array(select t.tag from jsonb_array_elements_text(coalesce(v_known.definition -> 'tags', '[]')) t(tag)),
        labels = coalesce(v_known.definition -> 'labels', '{}'),
        search_text = lower(concat_ws(' ', p_job_type, v_known.definition ->> 'title', v_known.definition ->> 'description',
          (select string_agg(t.tag, ' ') from jsonb_array_elements_text(coalesce(v_known.definition -> 'tags', '[]')) t(tag)))),
        is_hidden = coalesce((v_known.definition ->> 'hidden')::boolean, false)
      where r.tenant_id = p_tenant_id and r.job_type = p_job_type;
      if v_job.removed_at is not null then
        v_woken := jobforge.wake_definition(p_tenant_id, p_job_type);
      end if;
    end if;
  end if;
  perform jobforge.record_audit(p_tenant_id, 'approve_definition', v_outcome, null, p_job_type,
    jsonb_build_object('version', v_known.job_version, 'hash', encode(v_known.definition_hash, 'hex')));
  return query select p_job_type, v_known.job_version, v_outcome, encode(v_known.definition_hash, 'hex'), v_woken;
end $$;
comment on function jobforge.approve_definition(text, text, text, boolean) is
  'Let a quarantined version be run; refused for whoever registered it.';

create or replace function jobforge.remove_definition(p_tenant_id text, p_job_type text, p_is_plan boolean default false)
returns table (job_type text, outcome text, queued_runs bigint)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_job jobforge.registered_jobs;
  v_outcome text := 'removed';
  v_queued bigint := 0;
  v_lanes text[];
begin
  perform jobforge.require_tenant(p_tenant_id);
  perform jobforge.require_definition_writer(p_tenant_id, p_job_type, p_is_plan);
  select * into v_job from jobforge.registered_jobs r where r.tenant_id = p_tenant_id and r.job_type = p_job_type;
  if v_job.job_type is null then
    perform jobforge.refuse_unknown_job(p_job_type);
  end if;
  if v_job.removed_at is null then
    perform jobforge.refuse_used(p_tenant_id, p_job_type);
  end if;
  v_lanes := jobforge.lanes_of(p_tenant_id, p_job_type);
  if v_job.removed_at is not null then
    v_outcome := 'unchanged';
  elsif p_is_plan then
    v_outcome := 'planned';
    select count(*) into v_queued from jobforge.ready r
    where r.tenant_id = p_tenant_id and r.job_type = any (v_lanes) and r.own_type = p_job_type;
  else
    update jobforge.registered_jobs r set removed_at = jobforge.now(), updated_at = jobforge.now(),
      changed_in = jobforge.this_change()
    where r.tenant_id = p_tenant_id and r.job_type = p_job_type;
    with parked as (
      delete from jobforge.ready r
      where r.tenant_id = p_tenant_id and r.job_type = any (v_lanes) and r.own_type = p_job_type
      returning r.*
    ), changed as (
      update jobforge.jobs j set lane_type = null
      where j.tenant_id = p_tenant_id and j.id in (
        select p.job_id from parked p
        union all
        select w.job_id from jobforge.waiting w join jobforge.jobs x on x.tenant_id = w.tenant_id and x.id = w.job_id
        where w.tenant_id = p_tenant_id and x.job_type = p_job_type and x.lane_type is not null)
    ), moved as (
      insert into jobforge.ready (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no, is_suspect)
      select p.tenant_id, p_job_type, p.priority, p.run_at, p.job_id, p.epoch, p.attempt_no, p.is_suspect from parked p
    )
    select count(*) into v_queued from parked;
  end if;
  perform jobforge.record_audit(p_tenant_id, 'remove_definition', v_outcome, null, p_job_type,
    jsonb_build_object('queued', v_queued));
  return query select p_job_type, v_outcome, v_queued;
end $$;
comment on function jobforge.remove_definition(text, text, boolean) is
  'Refuse new runs of a definition and keep those that have not begun from being claimed, until it is registered again.';

reset role;
set local role jobforge_sys;

-- Operators only, as set_limit is. Versions that run already go on running.
create or replace function jobforge.require_approval(p_tenant_id text, p_is_required boolean) returns boolean
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_was boolean;
begin
  if p_tenant_id is null or p_is_required is null then
    raise exception 'say for which tenant, and whether' using errcode = 'JF400';
  end if;
  select t.requires_approval into v_was from jobforge.tenants t where t.tenant_id = p_tenant_id;
  insert into jobforge.tenants as t (tenant_id, created_at, requires_approval) values (p_tenant_id, jobforge.now(), p_is_required)
  on conflict (tenant_id) do update set requires_approval = excluded.requires_approval;
  if v_was is distinct from p_is_required then
    perform jobforge.record_audit(p_tenant_id, 'require_approval', case when p_is_required then 'required' else 'not_required' end);
  end if;
  return coalesce(v_was, false);
end $$;
comment on function jobforge.require_approval(text, boolean) is
  'Set whether a tenant''s definitions run only after somebody else approved them; returns what held before.';

reset role;
