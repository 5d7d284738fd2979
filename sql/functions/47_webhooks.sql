-- Completion webhooks: whoever wants to know of runs that ended is told by a job of its own.
--
-- after_final calls notify_ended in the transaction in which runs end, so nothing is missed if a process dies, and takes no
-- lock on what is there: the delivery is a new job. It is told once for each time that a run ends, because a run ends once in
-- each epoch; the message id, made of both, tells that to receivers as well. No idempotency key is taken: a caller could hold it,
-- and make workers wait. Limits are not asked, because a run must be able to end.
-- The other functions are the operators', called by the command line as the schema's owner.

set local role jobforge_sys;

-- Deliveries are not told of, or they would never end; plans and dry runs neither.
create or replace function jobforge.notify_ended(p_tenant_ids text[], p_job_ids uuid[]) returns void
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
set enable_seqscan = off
as $$
declare
  v_now timestamptz := jobforge.now();
  v_tenants text[];
begin
  with told as materialized (
    select jobforge.new_id() as id, j.tenant_id, j.project_id, j.trace_id, c.name, j.id as run_id,
      jsonb_build_object('url', c.config -> 'url', 'timeoutSeconds', 20,
        'messageId', 'completion_' || c.name || '_' || j.id || '_' || j.epoch,
        'secrets', (select jsonb_agg('secret://' || s.name) from jsonb_array_elements_text(c.config -> 'secrets') s(name)),
        'payload', jsonb_build_object('type', 'run.' || j.final_status::text, 'timestamp', j.finished_at,
          'data', jsonb_strip_nulls(jsonb_build_object('runId', j.id, 'jobName', j.job_type, 'jobVersion', j.job_version,
              'projectId', j.project_id, 'parentId', j.parent_id, 'traceId', j.trace_id, 'status', j.final_status,
              'attempt', j.attempt_no, 'errorCode', j.error ->> 'code', 'createdAt', j.created_at, 'startedAt', j.started_at,
              'finishedAt', j.finished_at))
            || case when c.config -> 'includeResult' = 'true' and octet_length(j.result::text) <= 32768
                 then jsonb_build_object('result', j.result) else '{}' end)) as payload
    from unnest(p_tenant_ids, p_job_ids) u(tenant_id, job_id)
    join jobforge.jobs j on j.tenant_id = u.tenant_id and j.id = u.job_id
    join jobforge.connector_configs c on c.tenant_id = j.tenant_id and c.kind = 'webhook.completion'
    where j.final_status is not null and not j.is_dry_run
      and coalesce(j.lane_type, j.job_type) <> 'connector.webhook.deliver'
      and (c.project_id is null or c.project_id = j.project_id)
      and (c.config ->> 'scope' = 'tenant' or j.labels ->> 'webhook' = c.name)
      and (not c.config ? 'statuses' or c.config -> 'statuses' ? j.final_status::text)
      and (not c.config ? 'jobs' or exists (
        select from jsonb_array_elements_text(c.config -> 'jobs') p(pattern) where jobforge.matches_pattern(p.pattern, j.job_type)))
  ), made as (
    insert into jobforge.jobs (tenant_id, id, job_type, job_version, project_id, trace_id, created_by, labels, payload, priority,
      max_attempts, timeout_ms, backoff_ms, max_backoff_ms, backoff_multiplier, run_at, created_at)
    select t.tenant_id, t.id, 'connector.webhook.deliver', '1', t.project_id, t.trace_id, 'webhook:' || t.name,
      jsonb_build_object('completionOf', t.run_id), t.payload, 2, 8, 120000, 5000, 3600000, 5, v_now, v_now
    from told t
  ), queued as (
    insert into jobforge.ready (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no)
    select t.tenant_id, 'connector.webhook.deliver', 2, v_now, t.id, 0, 0 from told t
  ), audited as (
    insert into jobforge.audit_log (tenant_id, id, occurred_at, action, outcome, actor, trace_id, job_id, job_type)
    select t.tenant_id, t.id, v_now, 'enqueue', 'created', 'webhook:' || t.name, t.trace_id, t.id, 'connector.webhook.deliver'
    from told t
  )
  select array_agg(t.tenant_id::text) into v_tenants from told t;
  if v_tenants is not null then
    perform jobforge.touch_lanes(v_tenants, array_fill('connector.webhook.deliver'::text, array[cardinality(v_tenants)]));
    perform jobforge.wake('ready');
  end if;
end $$;
comment on function jobforge.notify_ended(text[], uuid[]) is 'Enqueue the deliveries that tell completion webhooks of runs that just ended.';

create or replace function jobforge.set_completion_webhook(p_tenant_id text, p_name text, p_config jsonb, p_project_id text default null)
returns boolean
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_is_new boolean;
begin
  perform jobforge.check_completion_webhook(p_tenant_id, p_name, p_config, p_project_id);
  perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(p_tenant_id, 5751));
  v_is_new := not exists (select from jobforge.connector_configs c
    where c.tenant_id = p_tenant_id and c.kind = 'webhook.completion' and c.name = p_name);
  if v_is_new and (select count(*) from jobforge.connector_configs c
    where c.tenant_id = p_tenant_id and c.kind = 'webhook.completion') >= 20
  then
    raise exception 'a tenant has at most 20 completion webhooks' using errcode = 'JF400', hint = 'Remove one that nobody needs.';
  end if;
  insert into jobforge.connector_configs as c (tenant_id, kind, name, project_id, config, set_at)
  values (p_tenant_id, 'webhook.completion', p_name, p_project_id, p_config, jobforge.now())
  on conflict (tenant_id, kind, name) do update
    set project_id = excluded.project_id, config = excluded.config, set_at = excluded.set_at;
  perform jobforge.record_audit(p_tenant_id, 'set_completion_webhook', 'done', null, null, jsonb_build_object('name', p_name));
  return v_is_new;
end $$;
comment on function jobforge.set_completion_webhook(text, text, jsonb, text) is
  'Set up a completion webhook of a tenant, or change the one of this name; true if it is new.';

create or replace function jobforge.check_completion_webhook(p_tenant_id text, p_name text, p_config jsonb, p_project_id text)
returns void
language plpgsql stable
set search_path = jobforge, pg_temp
as $$
declare
  v_problem text;
begin
  v_problem := case
    when p_tenant_id is null or p_tenant_id !~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$' then 'a tenant id has 1 to 63 letters, digits or . _ : -'
    when p_project_id !~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$' then 'a project id has 1 to 63 letters, digits or . _ : -'
    when p_name is null or p_name !~ '^[a-z0-9][a-z0-9_-]{0,63}$' then 'a webhook has a name of 1 to 64 small letters, digits, _ or -'
    when p_config is null or jsonb_typeof(p_config) <> 'object' or octet_length(p_config::text) > 16384 then 'a webhook needs a small object'
    when p_config - '{url,secrets,scope,jobs,statuses,includeResult}'::text[] <> '{}' then 'it has a member that a webhook does not know'
    when jsonb_typeof(p_config -> 'url') is distinct from 'string' or p_config ->> 'url' !~ '^https?://[!-~]+$'
      or octet_length(p_config ->> 'url') > 4096
      then 'its url is not an http or https URL in ASCII'
    when coalesce(p_config ->> 'scope', '') not in ('tenant', 'label') then 'its scope is tenant or label'
    when jsonb_typeof(coalesce(p_config -> 'includeResult', 'false')) <> 'boolean' then 'includeResult is true or false'
    when jsonb_typeof(p_config -> 'secrets') is distinct from 'array'
      or jsonb_typeof(coalesce(p_config -> 'jobs', '[]')) <> 'array' or jsonb_typeof(coalesce(p_config -> 'statuses', '[]')) <> 'array'
      then 'secrets, jobs and statuses are lists'
  end;
  if v_problem is null then
    v_problem := case
      when jsonb_array_length(p_config -> 'secrets') not between 1 and 4 or exists (
        select from jsonb_array_elements(p_config -> 'secrets') s(item)
        where jsonb_typeof(s.item) <> 'string' or s.item #>> '{}' !~ '^[A-Za-z0-9][A-Za-z0-9_-]*([.][A-Za-z0-9_-]+)*$'
          or octet_length(s.item #>> '{}') > 100)
        then 'it needs the names of one to four secrets'
      when exists (select from jsonb_array_elements(p_config -> 'jobs') p(item)
        where jsonb_typeof(p.item) <> 'string' or p.item #>> '{}' !~ '^([a-z0-9_-]+|[*])([.]([a-z0-9_-]+|[*]))*([.][*][*])?$')
        then 'a pattern of job names has literal segments, * for one, and at the end ** for the rest'
      when exists (select from jsonb_array_elements(p_config -> 'statuses') s(item)
        where s.item not in ('"succeeded"', '"failed"', '"dead"', '"canceled"'))
        then 'a run ends succeeded, failed, dead or canceled'
    end;
  end if;
  if v_problem is not null then
    raise exception 'the webhook cannot be set: %', v_problem using errcode = 'JF400';
  end if;
end $$;
comment on function jobforge.check_completion_webhook(text, text, jsonb, text) is 'Refuse a completion webhook that could not be delivered.';

drop function if exists jobforge.list_completion_webhooks(text);
drop function if exists jobforge.list_incoming_webhooks(text);
create or replace function jobforge.list_webhooks(p_tenant_id text default null)
returns table (tenant_id text, name text, project_id text, config jsonb, set_at timestamptz)
language sql stable
security definer set search_path = jobforge, pg_temp
as $$
  select c.tenant_id::text, c.name::text, c.project_id::text, c.config, c.set_at from jobforge.connector_configs c
  where c.kind in ('webhook.completion', 'webhook.in') and (p_tenant_id is null or c.tenant_id = p_tenant_id)
  order by c.kind, c.tenant_id, c.name
$$;
comment on function jobforge.list_webhooks(text) is 'The webhooks of a tenant, or of all: those that are told, then those that are heard.';

drop function if exists jobforge.remove_completion_webhook(text, text);
drop function if exists jobforge.remove_incoming_webhook(text, text);
create or replace function jobforge.remove_webhook(p_tenant_id text, p_name text) returns boolean
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_is_removed boolean;
begin
  delete from jobforge.connector_configs c
  where c.tenant_id = p_tenant_id and c.kind in ('webhook.completion', 'webhook.in') and c.name = p_name;
  v_is_removed := found;
  delete from jobforge.webhook_receipts r where r.tenant_id = p_tenant_id and r.name = p_name;
  if v_is_removed then
    perform jobforge.record_audit(p_tenant_id, 'remove_webhook', 'done', null, null, jsonb_build_object('name', p_name));
  end if;
  return v_is_removed;
end $$;
comment on function jobforge.remove_webhook(text, text) is
  'Tell and hear the webhooks of this name no more; what was enqueued for one is still delivered. False if there was none.';

reset role;
