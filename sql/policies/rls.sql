-- Row level security: enabled and forced on every table, so that not even the owner of a table passes.
--
-- Two roles that cannot log in have policies: jobforge_rpc sees the scope's tenant (nothing without a scope), and
-- jobforge_sys, which owns what workers call, sees every row. Nobody else has one, the owner included. The tenant is read
-- in a sub-select, which Postgres evaluates once per statement instead of once per row.

set local role jobforge_owner;

do $$
declare
  v_table text;
begin
  -- idempotent: this file is applied again whenever a function or policy changed
  for v_table in select c.relname from pg_catalog.pg_class c where c.relnamespace = 'jobforge'::regnamespace and c.relkind = 'r' loop
    if v_table not in ('tenants', 'jobs', 'idempotency_keys', 'lanes', 'ready', 'leases', 'waiting', 'ordering_keys', 'run_progress',
      'run_logs', 'job_attempts', 'job_definitions', 'registered_jobs', 'audit_log', 'audit_seals', 'workers', 'listeners', 'schema_migrations',
      'context_keys', 'tenant_logins', 'rate_limits', 'limit_usage', 'limited_jobs', 'running_limits',
      'policy_tokens', 'denial_windows', 'job_dependencies', 'composition_steps',
      'artifact_objects', 'artifacts', 'artifact_manifests', 'worker_environments',
      'events', 'triggers', 'trigger_fires',
      'claim_counters', 'limited_tenants', 'pauses', 'connector_configs', 'debounces',
      'webhook_receipts', 'installed_jobs')
    then
      raise exception 'table % has no row policy', v_table using errcode = 'JF400', hint = 'Add it to sql/policies/rls.sql.';
    end if;
  end loop;
end $$;

alter table jobforge.tenants enable row level security;
alter table jobforge.tenants force row level security;
drop policy if exists tenant_rows on jobforge.tenants;
create policy tenant_rows on jobforge.tenants to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.tenants;
create policy every_row on jobforge.tenants to jobforge_sys using (true) with check (true);

alter table jobforge.jobs enable row level security;
alter table jobforge.jobs force row level security;
drop policy if exists tenant_rows on jobforge.jobs;
create policy tenant_rows on jobforge.jobs to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.jobs;
create policy every_row on jobforge.jobs to jobforge_sys using (true) with check (true);

alter table jobforge.idempotency_keys enable row level security;
alter table jobforge.idempotency_keys force row level security;
drop policy if exists tenant_rows on jobforge.idempotency_keys;
create policy tenant_rows on jobforge.idempotency_keys to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.idempotency_keys;
create policy every_row on jobforge.idempotency_keys to jobforge_sys using (true) with check (true);

alter table jobforge.lanes enable row level security;
alter table jobforge.lanes force row level security;
drop policy if exists tenant_rows on jobforge.lanes;
create policy tenant_rows on jobforge.lanes to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.lanes;
create policy every_row on jobforge.lanes to jobforge_sys using (true) with check (true);

alter table jobforge.ready enable row level security;
alter table jobforge.ready force row level security;
drop policy if exists tenant_rows on jobforge.ready;
create policy tenant_rows on jobforge.ready to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.ready;
create policy every_row on jobforge.ready to jobforge_sys using (true) with check (true);

alter table jobforge.leases enable row level security;
alter table jobforge.leases force row level security;
drop policy if exists tenant_rows on jobforge.leases;
create policy tenant_rows on jobforge.leases to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.leases;
create policy every_row on jobforge.leases to jobforge_sys using (true) with check (true);

alter table jobforge.waiting enable row level security;
alter table jobforge.waiting force row level security;
drop policy if exists tenant_rows on jobforge.waiting;
create policy tenant_rows on jobforge.waiting to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.waiting;
create policy every_row on jobforge.waiting to jobforge_sys using (true) with check (true);

alter table jobforge.ordering_keys enable row level security;
alter table jobforge.ordering_keys force row level security;
drop policy if exists tenant_rows on jobforge.ordering_keys;
create policy tenant_rows on jobforge.ordering_keys to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.ordering_keys;
create policy every_row on jobforge.ordering_keys to jobforge_sys using (true) with check (true);

alter table jobforge.run_progress enable row level security;
alter table jobforge.run_progress force row level security;
drop policy if exists tenant_rows on jobforge.run_progress;
create policy tenant_rows on jobforge.run_progress to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.run_progress;
create policy every_row on jobforge.run_progress to jobforge_sys using (true) with check (true);

alter table jobforge.run_logs enable row level security;
alter table jobforge.run_logs force row level security;
drop policy if exists tenant_rows on jobforge.run_logs;
create policy tenant_rows on jobforge.run_logs to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.run_logs;
create policy every_row on jobforge.run_logs to jobforge_sys using (true) with check (true);

alter table jobforge.job_attempts enable row level security;
alter table jobforge.job_attempts force row level security;
drop policy if exists tenant_rows on jobforge.job_attempts;
create policy tenant_rows on jobforge.job_attempts to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.job_attempts;
create policy every_row on jobforge.job_attempts to jobforge_sys using (true) with check (true);

alter table jobforge.job_definitions enable row level security;
alter table jobforge.job_definitions force row level security;
drop policy if exists tenant_rows on jobforge.job_definitions;
create policy tenant_rows on jobforge.job_definitions to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.job_definitions;
create policy every_row on jobforge.job_definitions to jobforge_sys using (true) with check (true);

alter table jobforge.registered_jobs enable row level security;
alter table jobforge.registered_jobs force row level security;
drop policy if exists tenant_rows on jobforge.registered_jobs;
create policy tenant_rows on jobforge.registered_jobs to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.registered_jobs;
create policy every_row on jobforge.registered_jobs to jobforge_sys using (true) with check (true);

alter table jobforge.audit_log enable row level security;
alter table jobforge.audit_log force row level security;
drop policy if exists tenant_rows on jobforge.audit_log;
create policy tenant_rows on jobforge.audit_log to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.audit_log;
create policy every_row on jobforge.audit_log to jobforge_sys using (true) with check (true);

alter table jobforge.audit_seals enable row level security;
alter table jobforge.audit_seals force row level security;
drop policy if exists tenant_rows on jobforge.audit_seals;
create policy tenant_rows on jobforge.audit_seals to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.audit_seals;
create policy every_row on jobforge.audit_seals to jobforge_sys using (true) with check (true);

alter table jobforge.policy_tokens enable row level security;
alter table jobforge.policy_tokens force row level security;
drop policy if exists tenant_rows on jobforge.policy_tokens;
create policy tenant_rows on jobforge.policy_tokens to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.policy_tokens;
create policy every_row on jobforge.policy_tokens to jobforge_sys using (true) with check (true);

alter table jobforge.rate_limits enable row level security;
alter table jobforge.rate_limits force row level security;
drop policy if exists tenant_rows on jobforge.rate_limits;
create policy tenant_rows on jobforge.rate_limits to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.rate_limits;
create policy every_row on jobforge.rate_limits to jobforge_sys using (true) with check (true);

alter table jobforge.limit_usage enable row level security;
alter table jobforge.limit_usage force row level security;
drop policy if exists tenant_rows on jobforge.limit_usage;
create policy tenant_rows on jobforge.limit_usage to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.limit_usage;
create policy every_row on jobforge.limit_usage to jobforge_sys using (true) with check (true);

alter table jobforge.limited_jobs enable row level security;
alter table jobforge.limited_jobs force row level security;
drop policy if exists tenant_rows on jobforge.limited_jobs;
create policy tenant_rows on jobforge.limited_jobs to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.limited_jobs;
create policy every_row on jobforge.limited_jobs to jobforge_sys using (true) with check (true);

alter table jobforge.running_limits enable row level security;
alter table jobforge.running_limits force row level security;
drop policy if exists tenant_rows on jobforge.running_limits;
create policy tenant_rows on jobforge.running_limits to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.running_limits;
create policy every_row on jobforge.running_limits to jobforge_sys using (true) with check (true);

alter table jobforge.denial_windows enable row level security;
alter table jobforge.denial_windows force row level security;
drop policy if exists tenant_rows on jobforge.denial_windows;
create policy tenant_rows on jobforge.denial_windows to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.denial_windows;
create policy every_row on jobforge.denial_windows to jobforge_sys using (true) with check (true);

alter table jobforge.job_dependencies enable row level security;
alter table jobforge.job_dependencies force row level security;
drop policy if exists tenant_rows on jobforge.job_dependencies;
create policy tenant_rows on jobforge.job_dependencies to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.job_dependencies;
create policy every_row on jobforge.job_dependencies to jobforge_sys using (true) with check (true);

alter table jobforge.composition_steps enable row level security;
alter table jobforge.composition_steps force row level security;
drop policy if exists tenant_rows on jobforge.composition_steps;
create policy tenant_rows on jobforge.composition_steps to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.composition_steps;
create policy every_row on jobforge.composition_steps to jobforge_sys using (true) with check (true);

alter table jobforge.claim_counters enable row level security;
alter table jobforge.claim_counters force row level security;
drop policy if exists tenant_rows on jobforge.claim_counters;
create policy tenant_rows on jobforge.claim_counters to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.claim_counters;
create policy every_row on jobforge.claim_counters to jobforge_sys using (true) with check (true);

alter table jobforge.limited_tenants enable row level security;
alter table jobforge.limited_tenants force row level security;
drop policy if exists tenant_rows on jobforge.limited_tenants;
create policy tenant_rows on jobforge.limited_tenants to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.limited_tenants;
create policy every_row on jobforge.limited_tenants to jobforge_sys using (true) with check (true);

alter table jobforge.pauses enable row level security;
alter table jobforge.pauses force row level security;
drop policy if exists tenant_rows on jobforge.pauses;
create policy tenant_rows on jobforge.pauses to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.pauses;
create policy every_row on jobforge.pauses to jobforge_sys using (true) with check (true);

alter table jobforge.debounces enable row level security;
alter table jobforge.debounces force row level security;
drop policy if exists tenant_rows on jobforge.debounces;
create policy tenant_rows on jobforge.debounces to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.debounces;
create policy every_row on jobforge.debounces to jobforge_sys using (true) with check (true);

alter table jobforge.workers enable row level security;
alter table jobforge.workers force row level security;
drop policy if exists every_row on jobforge.workers;
create policy every_row on jobforge.workers to jobforge_sys using (true) with check (true);

alter table jobforge.installed_jobs enable row level security;
alter table jobforge.installed_jobs force row level security;
drop policy if exists every_row on jobforge.installed_jobs;
create policy every_row on jobforge.installed_jobs to jobforge_sys using (true) with check (true);

alter table jobforge.listeners enable row level security;
alter table jobforge.listeners force row level security;
drop policy if exists every_row on jobforge.listeners;
create policy every_row on jobforge.listeners to jobforge_sys using (true) with check (true);

alter table jobforge.artifact_objects enable row level security;
alter table jobforge.artifact_objects force row level security;
drop policy if exists tenant_rows on jobforge.artifact_objects;
create policy tenant_rows on jobforge.artifact_objects to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.artifact_objects;
create policy every_row on jobforge.artifact_objects to jobforge_sys using (true) with check (true);

alter table jobforge.artifacts enable row level security;
alter table jobforge.artifacts force row level security;
drop policy if exists tenant_rows on jobforge.artifacts;
create policy tenant_rows on jobforge.artifacts to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.artifacts;
create policy every_row on jobforge.artifacts to jobforge_sys using (true) with check (true);

alter table jobforge.artifact_manifests enable row level security;
alter table jobforge.artifact_manifests force row level security;
drop policy if exists tenant_rows on jobforge.artifact_manifests;
create policy tenant_rows on jobforge.artifact_manifests to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.artifact_manifests;
create policy every_row on jobforge.artifact_manifests to jobforge_sys using (true) with check (true);

alter table jobforge.worker_environments enable row level security;
alter table jobforge.worker_environments force row level security;
drop policy if exists every_row on jobforge.worker_environments;
create policy every_row on jobforge.worker_environments to jobforge_sys using (true) with check (true);

reset role;
