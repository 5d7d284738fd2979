-- Definitions registered as data: register, approve, list, read and remove them, and check them when a job is enqueued.
--
-- Called by jobforge_api for callers with the scopes for it, and by enqueue_jobs. Every function belongs to jobforge_rpc,
-- whose row policy admits the scope's tenant alone. What a definition may say is checked in Python before it comes here;
-- here is decided which version runs, who may approve it, and what becomes of its runs. Versions never change and are
-- never deleted: a run keeps the one it began with.

set local role jobforge_rpc;

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

-- Asked inside the enqueue, so that neither a stale replica nor a caller who makes lanes up gets past a removal or a
-- quarantine. Returns the lane of each job.
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
  select u.job_type, u.job_version, d.approved_at, r.job_type as name, r.removed_at into v_job
  from unnest(p_job_types, p_job_versions, p_lane_types) with ordinality u(job_type, job_version, lane_type, ord)
  left join jobforge.job_definitions d on d.tenant_id = p_tenant_id and d.job_type = u.job_type
    and d.job_version = u.job_version and d.lane_type = u.lane_type
  left join jobforge.registered_jobs r on r.tenant_id = p_tenant_id and r.job_type = d.job_type
  where u.lane_type is not null and (r.job_type is null or r.removed_at is not null or d.approved_at is null)
  order by u.ord limit 1;
  if v_job.job_type is not null then
    raise exception '%', case
        when v_job.name is null then format('there is no version %s of a registered job %s', v_job.job_version, v_job.job_type)
        when v_job.removed_at is not null then format('the job %s was removed', v_job.job_type)
        else format('version %s of the job %s is quarantined until it is approved', v_job.job_version, v_job.job_type) end
      using errcode = 'JF404', hint = 'Nothing was enqueued: list the jobs that can be run.';
  end if;
  return array(select coalesce(u.lane_type, u.job_type)
    from unnest(p_job_types, p_lane_types) with ordinality u(job_type, lane_type, ord) order by u.ord);
end $$;
comment on function jobforge.require_definitions(text, text[], text[], text[]) is
  'Refuse jobs of registered definitions that may not be run, and tell the lane of each job.';

reset role;
