-- Events that running jobs submit.
--
-- Called by workers, for the living claim of a run. The event belongs to the tenant, the project and the trace of the run, so
-- the loop guard counts it, and is held to the event patterns of the token that enqueued the run. Its triggers are asked when
-- it is committed, by maintenance, which is woken for that. Locks: the lease of the run, then what submit_event takes.

set local role jobforge_sys;

create or replace function jobforge.submit_run_event(
  p_tenant_id text, p_lease_id uuid, p_job_id uuid, p_epoch integer, p_event_type text, p_payload jsonb, p_idempotency_key text,
  p_source text default null, p_subject text default null, p_occurred_at timestamptz default null,
  p_contains_pii boolean default false, p_redaction_hints jsonb default null, p_attributes jsonb default null)
returns table (event_id uuid, outcome text)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_run jobforge.jobs;
begin
  perform jobforge.require_lease(p_tenant_id, p_lease_id, p_job_id, p_epoch);
  select * into v_run from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = p_job_id;
  if v_run.confinement ? 'events' and jobforge.allows_event(v_run.confinement, p_event_type, null) is not true then
    raise exception 'the policy token does not allow events of this type' using errcode = 'JF403',
      hint = 'What a handler submits is held to the token that enqueued its run.';
  end if;
  perform jobforge.enter_trusted_scope(p_tenant_id, 'job:' || p_job_id, v_run.job_type, v_run.trace_id);
  return query
  select e.event_id, case when v_run.is_dry_run and e.outcome = 'created' then 'planned' else e.outcome end
  from jobforge.submit_event(p_tenant_id, p_event_type, p_payload, p_source, p_subject, p_occurred_at, p_idempotency_key,
    coalesce(v_run.trace_id, p_job_id::text), v_run.project_id, p_contains_pii, p_redaction_hints, p_attributes,
    p_is_plan => v_run.is_dry_run) e
  limit 1;
  -- a scope outlasts its function; the worker's next statement must not find a tenant set
  perform jobforge.leave_scope();
end $$;
comment on function jobforge.submit_run_event(text, uuid, uuid, integer, text, jsonb, text, text, text, timestamptz, boolean, jsonb, jsonb) is
  'Store an event on behalf of a running job, or plan it where that is a dry run; refused for a claim that is not the living one.';

reset role;
