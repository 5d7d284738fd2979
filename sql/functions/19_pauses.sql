-- Pause and resume: a tenant, one of its job types or one of its projects.
--
-- Called by callers with the right to write queues. A paused tenant or lane is skipped whole by claims; jobs of a paused
-- project, or of a registered type that shares its lane with others, are parked by the claim that meets them. What runs
-- goes on. A claim that was under way when the pause was committed may still start what it has taken.
-- Locks: pauses, then waiting and ready. A claim that parks holds the pause's row shared, so that resume_queue finds it.

set local role jobforge_rpc;

create or replace function jobforge.require_pausable(p_tenant_id text, p_kind text, p_name text) returns void
language plpgsql stable
set search_path = jobforge, pg_temp
as $$
declare
  v_projects text[] := jobforge.confined_projects();
  v_claims jsonb := jobforge.confining_claims();
begin
  if coalesce(p_kind, '') not in ('tenant', 'type', 'project') or (p_kind = 'tenant') <> (coalesce(p_name, '') = '')
    or octet_length(p_name) > 200
  then
    raise exception 'what can be paused is the tenant, without a name, or a type or project by its name' using errcode = 'JF400';
  end if;
  if p_kind = 'type' and p_name ~ '[*?]' then
    raise exception 'a job type is paused by its whole name, and % is a pattern', left(p_name, 100) using errcode = 'JF400',
      hint = 'Pause each type by itself, or a project, or the tenant.';
  end if;
  if v_projects is not null and not (p_kind = 'project' and p_name = any (v_projects)) then
    raise exception 'the caller is confined to projects and can pause and resume those alone' using errcode = 'JF403',
      hint = 'Name a project of the caller.';
  end if;
  if v_claims is not null and not (p_kind = 'type' and jobforge.allows_type(v_claims, p_name)) then
    raise exception 'the caller is confined to job types and can pause and resume those alone' using errcode = 'JF403',
      hint = 'Name a job type of the caller.';
  end if;
end $$;
comment on function jobforge.require_pausable(text, text, text) is 'Refuse what cannot be paused, or not by this caller.';

create or replace function jobforge.pause_queue(p_tenant_id text, p_kind text, p_name text default null, p_reason text default null)
returns table (kind text, name text, reason text, paused_by text, paused_at timestamptz, outcome text)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_outcome text;
begin
  perform jobforge.require_tenant(p_tenant_id);
  perform jobforge.require_pausable(p_tenant_id, p_kind, p_name);
  insert into jobforge.pauses as p (tenant_id, kind, name, reason, paused_by, paused_at)
  values (p_tenant_id, p_kind, coalesce(p_name, ''), left(p_reason, 1000),
    nullif(pg_catalog.current_setting('jobforge.actor', true), ''), jobforge.now())
  on conflict (tenant_id, kind, name) do nothing;
  v_outcome := case when found then 'paused' else 'unchanged' end;
  perform jobforge.record_audit(p_tenant_id, 'pause', v_outcome, null, case when p_kind = 'type' then p_name end,
    jsonb_strip_nulls(jsonb_build_object('kind', p_kind, 'name', p_name, 'reason', left(p_reason, 1000))));
  return query
  select p.kind::text, p.name::text, p.reason, p.paused_by, p.paused_at, v_outcome
  from jobforge.pauses p where p.tenant_id = p_tenant_id and p.kind = p_kind and p.name = coalesce(p_name, '');
end $$;
comment on function jobforge.pause_queue(text, text, text, text) is
  'Let nothing of a tenant, type or project start until it is resumed; what runs goes on.';

create or replace function jobforge.resume_queue(p_tenant_id text, p_kind text, p_name text default null)
returns text
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_outcome text;
begin
  perform jobforge.require_tenant(p_tenant_id);
  perform jobforge.require_pausable(p_tenant_id, p_kind, p_name);
  delete from jobforge.pauses p where p.tenant_id = p_tenant_id and p.kind = p_kind and p.name = coalesce(p_name, '');
  v_outcome := case when found then 'resumed' else 'unchanged' end;
  if v_outcome = 'resumed' then
    -- more than these come back by tend_limits, a few seconds later
    perform jobforge.unpark_jobs(array[p_tenant_id], array['pause:' || p_kind || ':' || coalesce(p_name, '')], array[10000]);
    perform jobforge.wake('ready');
  end if;
  perform jobforge.record_audit(p_tenant_id, 'resume', v_outcome, null, case when p_kind = 'type' then p_name end,
    jsonb_strip_nulls(jsonb_build_object('kind', p_kind, 'name', p_name)));
  return v_outcome;
end $$;
comment on function jobforge.resume_queue(text, text, text) is 'Let a paused tenant, type or project start jobs again; tells resumed or unchanged.';

create or replace function jobforge.list_pauses(p_tenant_id text)
returns table (kind text, name text, reason text, paused_by text, paused_at timestamptz)
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_projects text[];
begin
  perform jobforge.require_tenant(p_tenant_id);
  v_projects := jobforge.confined_projects();
  return query
  select p.kind::text, p.name::text, p.reason, p.paused_by, p.paused_at
  from jobforge.pauses p
  where p.tenant_id = p_tenant_id and (v_projects is null or (p.kind = 'project' and p.name = any (v_projects)))
  order by p.kind, p.name;
end $$;
comment on function jobforge.list_pauses(text) is 'What is paused, by whom and why.';

reset role;
set local role jobforge_sys;

create or replace function jobforge.is_lane_paused(p_tenant_id text, p_job_type text) returns boolean
language sql stable
as $$
  select exists (
    select from jobforge.pauses p
    where p.tenant_id = p_tenant_id and (p.kind = 'tenant' or (p.kind = 'type' and p.name = p_job_type)))
$$;
comment on function jobforge.is_lane_paused(text, text) is 'Whether claims pass over a whole lane.';

reset role;
