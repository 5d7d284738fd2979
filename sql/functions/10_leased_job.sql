-- Enqueue one job that a free slot of the caller's own pool is kept for: already leased, as the first claim would have it.
--
-- The sibling of enqueue_plain_jobs, called and made in the same way: one statement looks, one writes, in the role that row
-- policies admit to all rows, and names the tenant that the signature is of wherever it reads or writes. What may not be
-- leased or cannot be answered here (no good signature, a token with restrictions, a tenant with limits or pauses, a lane in
-- which something is due) enqueue_jobs answers. Takes no locks but those of the rows it inserts.

set local role jobforge_sys;

-- Null means the default.
create or replace function jobforge.enqueue_leased_job(
  p_tenant_id text, p_actor text, p_token_id text, p_tool text, p_trace_id text, p_token_claims text, p_key_id text,
  p_signed_until bigint, p_mac bytea, p_job_type text, p_payload text, p_worker_id text, p_lease_ms integer,
  p_priority integer default null, p_job_trace_id text default null, p_job_version text default null, p_max_attempts integer default null,
  p_backoff_ms integer default null, p_backoff_multiplier float8 default null, p_max_backoff_ms integer default null,
  p_timeout_ms integer default null, p_is_dry_run boolean default null)
returns table (ord integer, job_id uuid, outcome text, status text, version bigint, run_at timestamptz,
  created_at timestamptz, lease_id uuid, lease_until timestamptz)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
  -- first of all: every call of a caller comes upon the tables in the order in which the migrator locks them
  v_is_signed boolean := jobforge.is_signed_with(p_tenant_id, p_actor, p_token_id, p_tool, p_trace_id, p_token_claims, p_key_id,
    p_signed_until, p_mac, v_now);
  v_claims jsonb;
  v_deadline timestamptz;
begin
  if p_token_claims <> '' then
    v_claims := p_token_claims::jsonb;
  end if;
  -- no deadline where this job may not be leased, or may not be answered here
  select jobforge.deadline_of(v_now, coalesce(p_timeout_ms, 300000))
  into v_deadline
  where v_is_signed
    and p_worker_id is not null and p_payload is not null
    and (v_claims ?| '{projects,jobTypes,denyTypes,events,limits,once}') is not true
    and not exists (select from jobforge.rate_limits r where r.tenant_id = p_tenant_id)
    and not exists (select from jobforge.running_limits r where r.tenant_id = p_tenant_id)
    and not exists (select from jobforge.pauses p where p.tenant_id = p_tenant_id)
    and not exists (select from jobforge.revocations(p_tenant_id, v_claims))
    and not exists (
      select from (values (0::smallint), (1::smallint), (2::smallint), (3::smallint)) p(priority)
      cross join lateral (
        select from jobforge.ready r
        where r.tenant_id = p_tenant_id and r.job_type = p_job_type and r.priority = p.priority and r.run_at <= v_now
        limit 1) d);

  if v_deadline is null then
    return query
    select e.* from jobforge.enqueue_jobs(p_tenant_id, array[p_job_type], array[p_payload], p_priorities => array[p_priority],
      p_trace_ids => array[p_job_trace_id], p_job_versions => array[p_job_version], p_max_attempts => array[p_max_attempts],
      p_backoff_ms => array[p_backoff_ms], p_backoff_multipliers => array[p_backoff_multiplier],
      p_max_backoff_ms => array[p_max_backoff_ms], p_timeout_ms => array[p_timeout_ms], p_dry_runs => array[p_is_dry_run],
      p_worker_id => p_worker_id, p_lease_ms => p_lease_ms, p_actor => p_actor, p_token_id => p_token_id, p_tool => p_tool,
      p_trace_id => p_trace_id, p_token_claims => p_token_claims,
      p_signature => nullif(concat_ws('.', p_key_id, p_signed_until, encode(p_mac, 'hex')), '')) e;
    return;
  end if;
  if num_nonnulls(p_priority, p_job_version, p_max_attempts, p_backoff_ms, p_backoff_multiplier, p_max_backoff_ms, p_timeout_ms) > 0
    or octet_length(p_job_trace_id) > 255 or length(p_job_type) > 100 or (p_job_type ~ '^[a-z0-9][a-z0-9._-]*$') is not true
  then
    perform jobforge.require_fitting_jobs(array[p_job_type], null, null, array[p_job_trace_id], array[p_job_version], null,
      array[p_priority], array[p_max_attempts], array[p_timeout_ms], array[p_backoff_ms], array[p_max_backoff_ms],
      array[p_backoff_multiplier], null, null);
  end if;
  -- what is short when it is written out holds no number that is long
  if octet_length(p_payload) >= 200 or octet_length(p_payload::jsonb::text) >= 200 then
    perform jobforge.require_small_json(array[p_payload], 1048576, 'an input');
  end if;
  ord := 1;
  job_id := jobforge.new_id();
  lease_id := pg_catalog.gen_random_uuid();
  lease_until := v_now + p_lease_ms * interval '1 millisecond';
  run_at := v_now;
  created_at := v_now;
  outcome := 'created';
  status := 'running';
  version := 4;
  with audited as (
    insert into jobforge.audit_log (tenant_id, id, occurred_at, action, outcome, actor, token_id, tool, trace_id, job_id, job_type)
    values (p_tenant_id, enqueue_leased_job.job_id, v_now, 'enqueue', 'created', p_actor, p_token_id, p_tool, p_trace_id,
      enqueue_leased_job.job_id, p_job_type)
  ), leased as (
    insert into jobforge.leases (tenant_id, lease_id, worker_id, is_suspect, claimed_at, lease_until, overdue_at, job_ids, epochs,
      attempt_nos, deadlines)
    values (p_tenant_id, enqueue_leased_job.lease_id, p_worker_id, false, v_now, enqueue_leased_job.lease_until, v_deadline,
      array[enqueue_leased_job.job_id], array[1], array[1::smallint], array[v_deadline])
  )
  insert into jobforge.jobs (tenant_id, id, job_type, job_version, trace_id, created_by, payload, is_dry_run, priority,
    max_attempts, timeout_ms, backoff_ms, max_backoff_ms, backoff_multiplier, run_at, created_at)
  values (p_tenant_id, enqueue_leased_job.job_id, p_job_type, coalesce(p_job_version, '1'), p_job_trace_id, p_actor,
    p_payload::jsonb, coalesce(p_is_dry_run, false), coalesce(p_priority, 2), coalesce(p_max_attempts, 3),
    coalesce(p_timeout_ms, 300000), coalesce(p_backoff_ms, 1000), coalesce(p_max_backoff_ms, 60000),
    coalesce(p_backoff_multiplier, 2), v_now, v_now);
  if p_lease_ms < 6000 then
    perform jobforge.wake('ready');  -- else who rests does not know when it ends
  end if;
  return next;
end $$;
comment on function jobforge.enqueue_leased_job(text, text, text, text, text, text, text, bigint, bytea, text, text, text, integer, integer,
  text, text, integer, integer, float8, integer, integer, boolean) is
  'Commit one job that asks for nothing else, already leased to a worker of the caller where its lane allows, as enqueue_jobs does.';

reset role;
