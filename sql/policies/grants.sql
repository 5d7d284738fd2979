-- Who may do what, by name. Logins hold no right on any table: they execute the functions of their own part, which run as
-- jobforge_rpc (one tenant) or jobforge_sys (all tenants). What is not named here nobody may call: 0001_core.sql takes the
-- usual right of everybody to execute a new function away. A right that is withdrawn needs a revoke by name.

set local role jobforge_owner;

revoke all on jobforge.tenants, jobforge.jobs, jobforge.idempotency_keys, jobforge.lanes, jobforge.ready, jobforge.leases,
  jobforge.waiting, jobforge.ordering_keys, jobforge.run_progress, jobforge.run_logs, jobforge.job_attempts,
  jobforge.job_definitions, jobforge.audit_log, jobforge.audit_seals, jobforge.workers, jobforge.listeners
  from public, jobforge_rpc, jobforge_sys, jobforge_api, jobforge_worker, jobforge_scheduler, jobforge_readonly, jobforge_auditor;
revoke create on schema jobforge from jobforge_rpc, jobforge_sys;

grant select, insert, update, delete on jobforge.jobs, jobforge.idempotency_keys, jobforge.ready, jobforge.leases,
  jobforge.waiting, jobforge.ordering_keys, jobforge.run_progress to jobforge_rpc;
grant select on jobforge.tenants, jobforge.run_logs, jobforge.job_attempts, jobforge.job_definitions, jobforge.lanes to jobforge_rpc;
grant select, insert on jobforge.audit_log to jobforge_rpc;

grant select, insert, update, delete on jobforge.jobs, jobforge.ready, jobforge.leases, jobforge.waiting, jobforge.ordering_keys,
  jobforge.run_progress, jobforge.lanes, jobforge.workers, jobforge.listeners to jobforge_sys;
grant select, insert on jobforge.tenants, jobforge.run_logs, jobforge.job_attempts to jobforge_sys;
grant select on jobforge.job_definitions to jobforge_sys;
revoke all on jobforge.installed_jobs
  from public, jobforge_rpc, jobforge_sys, jobforge_api, jobforge_worker, jobforge_scheduler, jobforge_readonly, jobforge_auditor;
grant select, insert, update on jobforge.installed_jobs to jobforge_sys;

grant execute on function jobforge.applied_files() to jobforge_rpc, jobforge_sys, jobforge_api, jobforge_worker, jobforge_readonly;

reset role;
set local role jobforge_rpc;

grant execute on function jobforge.now(), jobforge.current_tenant(), jobforge.current_claims() to jobforge_owner, jobforge_sys, jobforge_api, jobforge_worker,
  jobforge_scheduler, jobforge_readonly, jobforge_auditor;
grant execute on function jobforge.enter_scope(text, text, text, text, text, text, text) to jobforge_sys, jobforge_api, jobforge_readonly;
grant execute on function jobforge.new_id(), jobforge.new_ids(integer), jobforge.deadline_of(timestamptz, integer), jobforge.require_small_json(text[], integer, text),
  jobforge.promote_next(text[], text[], uuid[]), jobforge.revocations(text, jsonb), jobforge.token_ids(jsonb),
  jobforge.require_fitting_jobs(text[], text[], text[], text[], text[], text[], integer[], integer[], integer[], integer[], integer[],
    float8[], timestamptz[], integer[]) to jobforge_sys;
grant execute on function
  jobforge.enqueue_jobs(text, text[], text[], text[], text[], text[], integer[], timestamptz[], text[], text[], text[], text[],
    integer[], integer[], float8[], integer[], integer[], boolean[], text, integer, boolean, uuid, integer[], text[], text[],
    text[], text, text, text, text, text, text)
  to jobforge_api, jobforge_sys;
grant execute on function
  jobforge.enqueue_job(text, text, jsonb, text, text, integer, timestamptz, text, jsonb, text, text, integer, integer, float8,
    integer, integer),
  jobforge.get_run(text, uuid),
  jobforge.get_runs(text, uuid[]),
  jobforge.get_payload(text, uuid),
  jobforge.list_runs(text, text, text, text[], text, timestamptz, uuid, integer),
  jobforge.list_attempts(text, uuid),
  jobforge.list_logs(text, uuid, integer, integer),
  jobforge.queue_stats(text),
  jobforge.cancel_job(text, uuid, text, boolean),
  jobforge.retry_job(text, uuid, bigint, timestamptz, boolean, boolean, boolean),
  jobforge.explain_run(text, uuid)
  to jobforge_api;
grant execute on function jobforge.read_runs(text, uuid, integer, text, text, timestamptz, integer) to jobforge_worker;
grant select on jobforge.runs, jobforge.job_results to jobforge_readonly;

reset role;
set local role jobforge_sys;

grant execute on function jobforge.touch_lanes(text[], text[]), jobforge.wake(text), jobforge.has_worker(text),
  jobforge.reap_tenant(text) to jobforge_rpc;
grant execute on function
  jobforge.enqueue_plain_jobs(text, text, text, text, text, text, text, bigint, bytea, text, text[], text[], integer[], text[], text[], integer[],
    integer[], float8[], integer[], integer[], boolean[]),
  jobforge.enqueue_leased_job(text, text, text, text, text, text, text, bigint, bytea, text, text, text, integer, integer, text, text,
    integer, integer, float8, integer, integer, boolean)
  to jobforge_api;
grant execute on function jobforge.await_wakeup(text, text, integer) to jobforge_api, jobforge_worker, jobforge_scheduler;
grant execute on function
  jobforge.register_worker(text, text, integer, text, text[], integer),
  jobforge.forget_worker(text),
  jobforge.tell_installed_jobs(text[], integer[], text[]),
  jobforge.claim_jobs(text, text[], integer, text, text[], integer, boolean, text[], text[], integer[], timestamptz[], uuid[]),
  jobforge.heartbeat(text, text[], uuid[], integer),
  jobforge.report_progress(text[], uuid[], uuid[], integer[], float8[], float8[], text[], text[]),
  jobforge.complete_jobs(text[], uuid[], uuid[], integer[], text[], text[]),
  jobforge.fail_jobs(text[], uuid[], uuid[], integer[], text[], text[], text[], integer[], text[]),
  jobforge.release_jobs(text[], uuid[], uuid[], integer[]),
  jobforge.reap_expired(integer),
  jobforge.has_work(text[], integer),
  jobforge.tend_lanes(),
  jobforge.look_for_work(text, text[], text[], integer, integer, integer, boolean),
  jobforge.enqueue_child(text, uuid, uuid, integer, text, text, text, text, text, integer, timestamptz, text, text, integer, integer,
    float8, integer, integer, integer, text, text)
  to jobforge_worker;

grant execute on function jobforge.scan_settings(), jobforge.scan_database(), jobforge.scan_tables(), jobforge.scan_indexes(),
  jobforge.scan_foreign_keys(), jobforge.scan_sessions(), jobforge.scan_rights(), jobforge.scan_work()
  to jobforge_worker;

reset role;

-- Audit: callers write refusals and read their own tenant's log; the auditor reads and seals all of it, and changes nothing.
set local role jobforge_owner;

grant select on jobforge.audit_log to jobforge_sys;
grant select, insert on jobforge.audit_seals to jobforge_sys;

reset role;
set local role jobforge_rpc;

grant execute on function
  jobforge.record_denial(text, text, text, text, uuid, integer),
  jobforge.list_audit(text, text, text, text, uuid, timestamptz, text, integer)
  to jobforge_api;

reset role;
set local role jobforge_sys;

grant execute on function
  jobforge.lock_sealing(),
  jobforge.list_unsealed(text, integer),
  jobforge.read_unsealed(text, integer),
  jobforge.last_seal(text),
  jobforge.append_seal(text, bigint, bigint, bigint, integer, bigint, uuid, bytea, timestamptz, text, bytea),
  jobforge.list_audit_tenants(),
  jobforge.read_seals(text, bigint, integer),
  jobforge.read_audit(text, integer, bigint, uuid, integer)
  to jobforge_auditor;

reset role;

-- Limits: counted by what makes work, obeyed by claims, set by whoever may act as the schema's owner.
set local role jobforge_owner;

revoke all on jobforge.rate_limits, jobforge.limit_usage, jobforge.limited_jobs, jobforge.running_limits
  from public, jobforge_rpc, jobforge_sys, jobforge_api, jobforge_worker, jobforge_scheduler, jobforge_readonly, jobforge_auditor;
grant select on jobforge.rate_limits to jobforge_rpc;
grant select, insert, update on jobforge.limit_usage, jobforge.running_limits to jobforge_rpc;
grant select, insert, update, delete on jobforge.limited_jobs to jobforge_rpc;
grant select, insert, update, delete on jobforge.rate_limits, jobforge.limit_usage, jobforge.limited_jobs,
  jobforge.running_limits to jobforge_sys;
grant insert on jobforge.audit_log to jobforge_sys;

reset role;
set local role jobforge_rpc;

grant execute on function jobforge.running_counts(text), jobforge.counters_of(text, text, uuid),
  jobforge.record_audit(text, text, text, uuid, text, jsonb), jobforge.is_tracked(jobforge.rate_limits),
  jobforge.keep_limit(text, jobforge.rate_limits, jsonb) to jobforge_sys;

reset role;
set local role jobforge_sys;

grant execute on function jobforge.set_limit(text, text, text, jsonb), jobforge.remove_limit(text, text, text),
  jobforge.list_limits(text) to jobforge_owner;

reset role;

-- Tokens: every call asks whether its own was revoked; revoking is for callers with the scope for it, asked by the server.
set local role jobforge_owner;

revoke all on jobforge.policy_tokens
  from public, jobforge_rpc, jobforge_sys, jobforge_api, jobforge_worker, jobforge_scheduler, jobforge_readonly, jobforge_auditor;
grant select, insert, update, delete on jobforge.policy_tokens to jobforge_rpc;
grant select on jobforge.policy_tokens to jobforge_sys;
grant insert (tenant_id, created_at, token_epoch), update (token_epoch) on jobforge.tenants to jobforge_rpc;

reset role;
set local role jobforge_rpc;

grant execute on function
  jobforge.revoke_token(text, text, text, timestamptz),
  jobforge.revoke_tenant_tokens(text, text),
  jobforge.check_token(text, text[])
  to jobforge_api;

reset role;

-- Runs that wait for others: written by those who enqueue bundles and by workers' compositions.
set local role jobforge_owner;

revoke all on jobforge.job_dependencies, jobforge.composition_steps
  from public, jobforge_rpc, jobforge_sys, jobforge_api, jobforge_worker, jobforge_scheduler, jobforge_readonly, jobforge_auditor;
grant select, insert, update, delete on jobforge.job_dependencies to jobforge_rpc, jobforge_sys;
grant select, delete on jobforge.composition_steps to jobforge_rpc;
grant select, insert on jobforge.composition_steps to jobforge_sys;
grant select on jobforge.idempotency_keys to jobforge_sys;

reset role;
set local role jobforge_rpc;

grant execute on function
  jobforge.after_final(text[], uuid[], boolean),
  jobforge.requeue_waiting(text[], uuid[]),
  jobforge.lock_ordering_keys(text[], uuid[], text[], uuid[]),
  jobforge.join_ordering_keys(text, uuid[]),
  jobforge.leave_orphans(text[], uuid[]),
  jobforge.cancel_orphans(text, integer)
  to jobforge_sys;

reset role;
set local role jobforge_sys;

grant execute on function
  jobforge.list_steps(text, uuid, uuid, integer, text[]),
  jobforge.list_step_definitions(text, uuid, uuid, integer, text[]),
  jobforge.enqueue_steps(text, uuid, uuid, integer, text[], text[], text[], text[], integer[], text[], integer[], integer[], float8[],
    integer[], integer[], integer[], text[], text[]),
  jobforge.wait_for_steps(text, uuid, uuid, integer, uuid[], integer, timestamptz)
  to jobforge_worker;

reset role;

-- Evidence: workers write artifacts and manifests under the fence of their claim, callers read them; a purge is any worker's.
set local role jobforge_owner;

revoke all on jobforge.artifact_objects, jobforge.artifacts, jobforge.artifact_manifests, jobforge.worker_environments
  from public, jobforge_rpc, jobforge_sys, jobforge_api, jobforge_worker, jobforge_scheduler, jobforge_readonly, jobforge_auditor;
grant select on jobforge.artifacts, jobforge.artifact_manifests to jobforge_rpc;
grant select, insert, update, delete on jobforge.artifact_objects, jobforge.artifacts to jobforge_sys;
grant select, insert on jobforge.artifact_manifests, jobforge.worker_environments to jobforge_sys;

reset role;
set local role jobforge_rpc;

grant execute on function
  jobforge.list_artifacts(text, uuid),
  jobforge.read_artifact(text, uuid, text, integer),
  jobforge.get_manifest(text, uuid, integer),
  jobforge.list_child_runs(text, uuid, integer)
  to jobforge_api;

reset role;
set local role jobforge_sys;

grant execute on function
  jobforge.announce_artifact(text, uuid, uuid, integer, text, bigint, text),
  jobforge.record_artifact(text, uuid, uuid, integer, text, text, bigint, text, text, bytea, bigint),
  jobforge.keep_environment(text, text),
  jobforge.purge_artifacts(integer, text)
  to jobforge_worker;

reset role;

-- Definitions registered as data: what may be registered is for callers with the scope for it, asked by the server.
set local role jobforge_owner;

revoke all on jobforge.registered_jobs
  from public, jobforge_rpc, jobforge_sys, jobforge_api, jobforge_worker, jobforge_scheduler, jobforge_readonly, jobforge_auditor;
grant select, insert, update on jobforge.registered_jobs to jobforge_rpc;
grant select on jobforge.registered_jobs to jobforge_sys;
grant insert, update on jobforge.job_definitions to jobforge_rpc;
grant insert (tenant_id, created_at, requires_approval), update (requires_approval) on jobforge.tenants to jobforge_sys;

reset role;
set local role jobforge_rpc;

grant execute on function
  jobforge.register_definition(text, text, text, text, boolean),
  jobforge.approve_definition(text, text, text, boolean),
  jobforge.remove_definition(text, text, boolean),
  jobforge.list_definitions(text, text[], text[], text, text, integer, boolean),
  jobforge.find_definitions(text, text[], text[], text, text, integer),
  jobforge.get_definition(text, text, text),
  jobforge.get_definitions(text, text[], text[]),
  jobforge.changed_definitions(text, bigint, text, integer),
  jobforge.list_guarded_definitions(text, text[]),
  jobforge.list_definition_versions(text, text)
  to jobforge_api;

reset role;
set local role jobforge_sys;

grant execute on function jobforge.require_approval(text, boolean) to jobforge_owner;

reset role;

-- Refusals: counted where they are raised, written down by workers and by whoever serves.
set local role jobforge_owner;

revoke all on jobforge.denial_windows
  from public, jobforge_rpc, jobforge_sys, jobforge_api, jobforge_worker, jobforge_scheduler, jobforge_readonly, jobforge_auditor;
grant select, insert, update on jobforge.denial_windows to jobforge_rpc;
grant execute on function jobforge.note_refusal() to jobforge_rpc, jobforge_tenant;
grant execute on function jobforge.take_refusals() to jobforge_sys;

reset role;
set local role jobforge_rpc;

grant execute on function jobforge.record_denial(text, text, text, text, uuid, integer) to jobforge_tenant;
grant execute on function jobforge.limits_left(text, text, jsonb, text[], text) to jobforge_api;

reset role;

-- Bundles: for callers, as enqueue_jobs.
set local role jobforge_rpc;

grant execute on function
  jobforge.enqueue_bundle(text, text[], text[], text[], text[], text[], integer[], timestamptz[], text[], text[], text[], text[],
    integer[], integer[], float8[], integer[], integer[], boolean[], integer[], text[], text[], text[], boolean, text[])
  to jobforge_api;

reset role;

-- Limits of definitions and pauses: obeyed by claims, given back by settles; pauses are set by callers with the scope for it.
set local role jobforge_owner;

revoke all on jobforge.claim_counters, jobforge.limited_tenants, jobforge.pauses, jobforge.debounces
  from public, jobforge_rpc, jobforge_sys, jobforge_api, jobforge_worker, jobforge_scheduler, jobforge_readonly, jobforge_auditor;
grant select on jobforge.claim_counters to jobforge_rpc;
grant select, insert on jobforge.limited_tenants to jobforge_rpc;
grant select, insert, delete on jobforge.pauses to jobforge_rpc;
grant select, insert, update on jobforge.debounces to jobforge_rpc;
grant select, update, delete on jobforge.debounces to jobforge_sys;
grant select, insert, update, delete on jobforge.claim_counters to jobforge_sys;
grant select on jobforge.limited_tenants to jobforge_sys;
grant select, update on jobforge.pauses to jobforge_sys;  -- update is what locking a row takes

reset role;
set local role jobforge_rpc;

grant execute on function jobforge.unpark_jobs(text[], text[], integer[]), jobforge.free_slots(text[], text[]),
  jobforge.count_starts(timestamptz[], integer[], integer, timestamptz) to jobforge_sys;
grant execute on function jobforge.pause_queue(text, text, text, text), jobforge.resume_queue(text, text, text),
  jobforge.list_pauses(text),
  jobforge.cancel_runs(text, text, text[], text[], text, jsonb, timestamptz, timestamptz, text[], text, integer, uuid, integer, boolean),
  jobforge.retry_runs(text, text, text[], text[], text, jsonb, text, timestamptz, timestamptz, text[], timestamptz, boolean, integer,
    uuid, integer, boolean)
  to jobforge_api;

reset role;

-- Retention: small batches by whoever maintains, and what operators set; views for people with psql.
set local role jobforge_owner;

grant delete on jobforge.jobs to jobforge_sys;
grant delete, update (expires_at) on jobforge.idempotency_keys to jobforge_sys;  -- to lock a row
grant insert (retain_days), update (retain_days) on jobforge.tenants to jobforge_sys;

reset role;
set local role jobforge_sys;

grant execute on function jobforge.purge_finished(integer), jobforge.purge_events(integer) to jobforge_worker, jobforge_scheduler;
grant execute on function jobforge.set_retention(text, integer), jobforge.list_retention() to jobforge_owner;

reset role;
set local role jobforge_rpc;

grant select on jobforge.running_runs, jobforge.failed_runs, jobforge.queue_depth, jobforge.trigger_status to jobforge_readonly;

reset role;
