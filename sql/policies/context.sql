-- Who may read keys and bound logins (the functions of jobforge_owner, nobody else), and what each scope of a bound login
-- may call: the roles jobforge_jobs_* are to plain SQL what the scopes of a token are to the server.

set local role jobforge_owner;

revoke all on jobforge.context_keys, jobforge.tenant_logins
  from public, jobforge_rpc, jobforge_sys, jobforge_api, jobforge_worker, jobforge_scheduler, jobforge_readonly, jobforge_auditor;

alter table jobforge.context_keys enable row level security;
alter table jobforge.context_keys force row level security;
drop policy if exists owner_rows on jobforge.context_keys;
create policy owner_rows on jobforge.context_keys to jobforge_owner using (true) with check (true);

alter table jobforge.tenant_logins enable row level security;
alter table jobforge.tenant_logins force row level security;
drop policy if exists owner_rows on jobforge.tenant_logins;
create policy owner_rows on jobforge.tenant_logins to jobforge_owner using (true) with check (true);

grant execute on function jobforge.verified_scope(), jobforge.is_context_signed() to jobforge_rpc, jobforge_sys, jobforge_api,
  jobforge_worker, jobforge_scheduler, jobforge_readonly, jobforge_auditor, jobforge_tenant, jobforge_tenant_views;
grant execute on function jobforge.is_signed(text, text, text, text, text, text, text, timestamptz) to jobforge_rpc;
grant execute on function jobforge.is_signed_with(text, text, text, text, text, text, text, bigint, bytea, timestamptz) to jobforge_sys;
grant execute on function jobforge.enter_own_scope() to jobforge_rpc, jobforge_tenant;
grant execute on function jobforge.enter_trusted_scope(text, text, text, text), jobforge.leave_scope() to jobforge_rpc, jobforge_sys;

reset role;
set local role jobforge_rpc;

grant execute on function jobforge.now(), jobforge.current_tenant(), jobforge.current_claims() to jobforge_tenant, jobforge_tenant_views;
-- So that the same script serves every login: what a bound one enters, its own tenant takes the place of.
grant execute on function jobforge.enter_scope(text, text, text, text, text, text, text) to jobforge_tenant, jobforge_tenant_views;
-- Members are confined to no project: the row policies behind the views compare tenants alone.
grant select on jobforge.runs, jobforge.job_results to jobforge_tenant_views;
grant execute on function
  jobforge.list_runs(text, text, text, text[], text, timestamptz, uuid, integer),
  jobforge.get_run(text, uuid),
  jobforge.get_runs(text, uuid[]),
  jobforge.get_payload(text, uuid),
  jobforge.list_attempts(text, uuid),
  jobforge.list_logs(text, uuid, integer, integer),
  jobforge.list_artifacts(text, uuid),
  jobforge.read_artifact(text, uuid, text, integer),
  jobforge.get_manifest(text, uuid, integer),
  jobforge.list_child_runs(text, uuid, integer),
  jobforge.queue_stats(text),
  jobforge.explain_run(text, uuid)
  to jobforge_jobs_read;
-- not enqueue_jobs: it can name a worker and a parent, which is not for applications to choose
grant execute on function
  jobforge.enqueue_job(text, text, jsonb, text, text, integer, timestamptz, text, jsonb, text, text, integer, integer, float8,
    integer, integer)
  to jobforge_jobs_execute;
grant execute on function jobforge.cancel_job(text, uuid, text, boolean) to jobforge_jobs_cancel;
grant execute on function jobforge.retry_job(text, uuid, bigint, timestamptz, boolean, boolean, boolean) to jobforge_jobs_retry;

reset role;
