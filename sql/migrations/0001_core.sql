-- The router's tables: where a job is, is its state.
--
-- An open job is in exactly one place: `ready` (may be claimed at run_at), one row of `leases` (claimed), or `waiting`
-- (blocked on something named). Its epoch and attempt number travel with it from place to place, so the wide row in
-- `jobs` is written at enqueue and once more, in place, at the end. A claim deletes ready rows and writes one lease row
-- per tenant; a settle takes ids out of that lease row and is refused what is not in it: the lease row is the fence.
--
-- tenant_id leads every key, so that the schema can be partitioned or distributed by tenant. Rights are in policies/.
-- Lock order, everywhere: idempotency_keys, leases (by tenant_id, lease_id), ready, waiting, jobs, ordering_keys (by
-- tenant_id, ordering_key), run_progress, job_attempts, lanes.

create schema if not exists jobforge;
comment on schema jobforge is 'Durable jobs for agents: tables nobody but the functions here may touch.';

-- Roles are shared by all databases of a cluster, so another database may have made them, also at this moment.
do $$
begin
  begin create role jobforge_owner nologin; exception when duplicate_object or unique_violation then null; end;
  begin create role jobforge_rpc nologin; exception when duplicate_object or unique_violation then null; end;
  begin create role jobforge_sys nologin; exception when duplicate_object or unique_violation then null; end;
  begin create role jobforge_api login; exception when duplicate_object or unique_violation then null; end;
  begin create role jobforge_worker login; exception when duplicate_object or unique_violation then null; end;
  begin create role jobforge_scheduler login; exception when duplicate_object or unique_violation then null; end;
  begin create role jobforge_readonly login; exception when duplicate_object or unique_violation then null; end;
  begin create role jobforge_auditor login; exception when duplicate_object or unique_violation then null; end;
  -- whoever migrates acts as these three while it does; a superuser may anyway
  if not (select r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user) then
    begin
      grant jobforge_owner, jobforge_rpc, jobforge_sys to current_user;
    exception when insufficient_privilege then
      raise notice 'role % cannot grant itself the jobforge roles and must be a member of them', current_user;
    end;
  end if;
end $$;

alter schema jobforge owner to jobforge_owner;
grant usage on schema jobforge to jobforge_rpc, jobforge_sys, jobforge_api, jobforge_worker, jobforge_scheduler,
  jobforge_readonly, jobforge_auditor;

-- without this everybody may execute every new function; per schema it could not be taken away
alter default privileges for role jobforge_owner revoke execute on functions from public;
alter default privileges for role jobforge_rpc revoke execute on functions from public;
alter default privileges for role jobforge_sys revoke execute on functions from public;

set local role jobforge_owner;

create domain jobforge.final_status as text collate "C"
  constraint final_status_is_known check (value in ('succeeded', 'failed', 'dead', 'canceled'));
comment on domain jobforge.final_status is 'The statuses a run leaves only by an explicit retry; an open run''s status is the place it is in.';

create domain jobforge.wait_reason as text collate "C"
  constraint wait_reason_is_known check (value in ('event', 'input', 'child', 'sleep', 'turn'));
comment on domain jobforge.wait_reason is 'What a waiting job is blocked on; turn is its place in an ordering key.';

create domain jobforge.attempt_outcome as text collate "C"
  constraint attempt_outcome_is_known
    check (value in ('failed', 'permanent', 'timed_out', 'canceled', 'deferred', 'released', 'lost'));
comment on domain jobforge.attempt_outcome is 'How an attempt ended that did not succeed.';

create table jobforge.tenants (
  tenant_id text collate "C" not null,
  created_at timestamptz not null,
  constraint tenants_pkey primary key (tenant_id),
  constraint tenants_id_is_well_formed check (tenant_id ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$')
);
comment on table jobforge.tenants is 'Owners of rows, written when a tenant''s first job arrives.';

create table jobforge.jobs (
  tenant_id text collate "C" not null,
  id uuid not null,
  job_type text collate "C" not null,
  job_version text not null,
  project_id text collate "C",
  parent_id uuid,
  ordering_key text collate "C",
  trace_id text,
  created_by text,
  labels jsonb,
  payload jsonb not null,
  is_dry_run boolean not null default false,
  priority smallint not null,
  max_attempts smallint not null,
  timeout_ms integer not null,
  backoff_ms integer not null,
  max_backoff_ms integer not null,
  backoff_multiplier real not null,
  run_at timestamptz not null,
  created_at timestamptz not null,
  final_status jobforge.final_status,
  attempt_no smallint not null default 0,
  epoch integer not null default 0,
  worker_id text,
  started_at timestamptz,
  finished_at timestamptz,
  result jsonb,
  error jsonb,
  constraint jobs_pkey primary key (tenant_id, id),
  constraint jobs_tenant_is_well_formed check (tenant_id ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$'),
  constraint jobs_project_is_well_formed check (project_id ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$'),
  constraint jobs_type_is_well_formed check (job_type ~ '^[a-z0-9][a-z0-9._-]{0,99}$'),
  constraint jobs_ordering_key_fits check (octet_length(ordering_key) between 1 and 255),
  -- an index row holds 2,704 bytes at most: without the cap a long trace id fails as a storage error
  constraint jobs_trace_id_fits check (octet_length(trace_id) <= 255),
  constraint jobs_version_fits check (octet_length(job_version) between 1 and 100),
  constraint jobs_priority_in_range check (priority between 0 and 3),
  constraint jobs_max_attempts_in_range check (max_attempts between 1 and 1000),
  constraint jobs_timeout_in_range check (timeout_ms between 1 and 604800000),
  constraint jobs_backoff_in_range check (backoff_ms >= 0 and max_backoff_ms >= 0 and backoff_multiplier between 1 and 100),
  constraint jobs_run_at_is_representable
    check (run_at >= '1970-01-01 00:00:00+00' and run_at < '10000-01-01 00:00:00+00'),
  constraint jobs_labels_are_an_object check (jsonb_typeof(labels) = 'object'),
  constraint jobs_finished_iff_final check ((finished_at is null) = (final_status is null)),
  constraint jobs_result_only_if_succeeded check (result is null or final_status = 'succeeded')
)
-- Half of each page stays free so that the one update at the end finds room beside the row (a HOT update).
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000);
comment on table jobforge.jobs is 'The facts of every job: written at enqueue, updated once, in place, when it ends.';
comment on column jobforge.jobs.id is 'UUIDv7; the runId an agent sees.';
comment on column jobforge.jobs.parent_id is 'The job whose handler enqueued this one.';
comment on column jobforge.jobs.payload is 'Input with the definition''s defaults filled in.';
comment on column jobforge.jobs.priority is '0 is the most urgent, 3 the least.';
comment on column jobforge.jobs.run_at is 'Not before this time; a retry moves it. Equal to that of the ready row, which is found by it.';
comment on column jobforge.jobs.final_status is 'Null while the job is open: then the place it is in is its status.';
comment on column jobforge.jobs.attempt_no is 'Attempts counted, once final; while open the number is where the job is.';
comment on column jobforge.jobs.epoch is 'Claims so far, once final; while open the number is where the job is.';
comment on column jobforge.jobs.error is 'Why it ended without a result: {code, message, retryable, type}.';

-- list_runs by trace. No index here may hold a column that a settle changes: the update at the end must stay in place.
create index jobs_by_trace on jobforge.jobs (tenant_id, trace_id, id) where trace_id is not null;
comment on index jobforge.jobs_by_trace is 'list_runs with a trace id.';

create table jobforge.idempotency_keys (
  tenant_id text collate "C" not null,
  project_id text collate "C" not null,
  job_type text collate "C" not null,
  idempotency_key text collate "C" not null,
  job_id uuid not null,
  input_hash bytea not null,
  created_at timestamptz not null,
  expires_at timestamptz not null,
  constraint idempotency_keys_pkey primary key (tenant_id, project_id, job_type, idempotency_key),
  -- an index row holds 2,704 bytes at most: without the cap a long key fails as a storage error
  constraint idempotency_keys_key_fits check (octet_length(idempotency_key) between 1 and 255)
);
comment on table jobforge.idempotency_keys is 'Which job a key made, and a hash of the input it came with.';
comment on column jobforge.idempotency_keys.project_id is 'Empty for a job without a project.';
comment on column jobforge.idempotency_keys.input_hash is 'SHA-256 of the input as received, keys sorted, before defaults.';
comment on column jobforge.idempotency_keys.expires_at is 'After this the key may make a new job: 30 days after it was first used.';

create table jobforge.lanes (
  tenant_id text collate "C" not null,
  job_type text collate "C" not null,
  is_found boolean not null default false,
  seen_at timestamptz not null,
  constraint lanes_pkey primary key (tenant_id, job_type, is_found)
);
comment on table jobforge.lanes is
  'Tenants and types that have ready rows: what a claim walks. Written when a lane wakes and then once in ten seconds, never at a claim.';

comment on column jobforge.lanes.is_found is
  'Written by tend_lanes instead of an enqueue. A row of its own, since one with the same key would have to wait for a transaction that wrote the other and stays open.';

create table jobforge.ready (
  tenant_id text collate "C" not null,
  job_type text collate "C" not null,
  priority smallint not null,
  run_at timestamptz not null,
  job_id uuid not null,
  epoch integer not null,
  attempt_no smallint not null,
  is_suspect boolean not null default false,
  constraint ready_pkey primary key (tenant_id, job_type, priority, run_at, job_id)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
comment on table jobforge.ready is 'Jobs that may be claimed at run_at; rows are inserted and deleted, never updated.';
comment on column jobforge.ready.attempt_no is 'Attempts already counted.';
comment on column jobforge.ready.is_suspect is 'Lost once together with others: claimed alone, so that a job that kills its worker is found out.';
create index ready_suspects on jobforge.ready (tenant_id, job_type, run_at) where is_suspect;
comment on index jobforge.ready_suspects is 'claim_jobs, for suspects; empty on most days.';

create table jobforge.leases (
  tenant_id text collate "C" not null,
  lease_id uuid not null,
  worker_id text not null,
  is_suspect boolean not null,
  claimed_at timestamptz not null,
  lease_until timestamptz not null,
  overdue_at timestamptz not null,
  job_ids uuid[] not null,
  epochs integer[] not null,
  attempt_nos smallint[] not null,
  deadlines timestamptz[] not null,
  cancel_ids uuid[] not null default '{}',
  constraint leases_pkey primary key (tenant_id, lease_id),
  constraint leases_hold_something check (cardinality(job_ids) > 0),
  constraint leases_arrays_match
    check (cardinality(job_ids) = cardinality(epochs) and cardinality(job_ids) = cardinality(attempt_nos)
      and cardinality(job_ids) = cardinality(deadlines)),
  constraint leases_suspects_are_alone check (not is_suspect or cardinality(job_ids) = 1)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
comment on table jobforge.leases is 'One row for each claim and tenant: which jobs a worker holds and until when. A job is running while its id is in a row that has not expired.';
comment on column jobforge.leases.attempt_nos is 'Attempts counted, this one included.';
comment on column jobforge.leases.deadlines is 'Claim time plus timeout plus grace of each job: past it the job is taken out, however alive the worker is.';
comment on column jobforge.leases.overdue_at is 'The earliest of the deadlines.';
comment on column jobforge.leases.cancel_ids is 'Jobs whose cancellation was asked for; the heartbeat tells the worker.';

create table jobforge.waiting (
  tenant_id text collate "C" not null,
  job_id uuid not null,
  waiting_for jobforge.wait_reason not null,
  ordering_key text collate "C",
  turn bigint,
  epoch integer not null,
  attempt_no smallint not null,
  constraint waiting_pkey primary key (tenant_id, job_id),
  constraint waiting_turn_has_a_key check (waiting_for <> 'turn' or (ordering_key is not null and turn is not null))
);
comment on table jobforge.waiting is 'Jobs blocked on something named; they hold no worker.';
create index waiting_turns on jobforge.waiting (tenant_id, ordering_key, turn) where waiting_for = 'turn';
comment on index jobforge.waiting_turns is 'promote_next: the next job of an ordering key.';

create table jobforge.ordering_keys (
  tenant_id text collate "C" not null,
  ordering_key text collate "C" not null,
  head_job_id uuid not null,
  next_turn bigint not null,
  constraint ordering_keys_pkey primary key (tenant_id, ordering_key)
);
comment on table jobforge.ordering_keys is
  'One row for each ordering key with an open job. Its row lock is the key''s lock: held until commit, it makes turns follow commit order.';
comment on column jobforge.ordering_keys.head_job_id is 'The one job of the key that may run; it blocks the key until it is final.';

create table jobforge.run_progress (
  tenant_id text collate "C" not null,
  job_id uuid not null,
  changes bigint not null,
  epoch integer,
  done double precision,
  total double precision,
  message text,
  cancel_requested_at timestamptz,
  cancel_reason text,
  constraint run_progress_pkey primary key (tenant_id, job_id),
  constraint run_progress_job_exists foreign key (tenant_id, job_id) references jobforge.jobs (tenant_id, id) on delete cascade,
  constraint run_progress_message_fits check (char_length(message) <= 1000),
  constraint run_progress_reason_fits check (char_length(cancel_reason) <= 1000)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);
comment on table jobforge.run_progress is 'What changes while a job runs; the row exists once there is something to say.';
comment on column jobforge.run_progress.changes is 'Visible changes that neither the epoch nor the status shows; part of a run''s version.';
comment on column jobforge.run_progress.epoch is 'The claim that reported the progress; progress of an older claim is not shown.';

create table jobforge.run_logs (
  tenant_id text collate "C" not null,
  job_id uuid not null,
  line_no integer not null,
  attempt_no smallint not null,
  level text not null,
  message text not null,
  logged_at timestamptz not null,
  constraint run_logs_pkey primary key (tenant_id, job_id, line_no),
  constraint run_logs_job_exists foreign key (tenant_id, job_id) references jobforge.jobs (tenant_id, id) on delete cascade,
  constraint run_logs_level_is_known check (level in ('debug', 'info', 'warning', 'error')),
  constraint run_logs_message_fits check (octet_length(message) <= 8192)
);
comment on table jobforge.run_logs is 'Lines that handlers logged, oldest first by line_no.';

create table jobforge.job_attempts (
  tenant_id text collate "C" not null,
  job_id uuid not null,
  epoch integer not null,
  attempt_no smallint not null,
  outcome jobforge.attempt_outcome not null,
  worker_id text not null,
  started_at timestamptz not null,
  finished_at timestamptz not null,
  error jsonb,
  traceback text,
  constraint job_attempts_pkey primary key (tenant_id, job_id, epoch),
  constraint job_attempts_job_exists foreign key (tenant_id, job_id) references jobforge.jobs (tenant_id, id) on delete cascade
);
comment on table jobforge.job_attempts is 'Attempts that did not succeed; a success is read from the job itself.';
comment on column jobforge.job_attempts.attempt_no is 'Number of the try, counted from 1; a try that was not charged shares its number with the next.';
comment on column jobforge.job_attempts.traceback is 'For people with access to the database; never leaves over the wire.';

create table jobforge.job_definitions (
  tenant_id text collate "C" not null,
  job_type text collate "C" not null,
  job_version text not null,
  definition jsonb not null,
  definition_hash bytea not null,
  created_at timestamptz not null,
  created_by text,
  removed_at timestamptz,
  constraint job_definitions_pkey primary key (tenant_id, job_type, job_version),
  constraint job_definitions_type_is_well_formed check (job_type ~ '^[a-z0-9][a-z0-9._-]{0,99}$'),
  constraint job_definitions_are_objects check (jsonb_typeof(definition) = 'object')
);
comment on table jobforge.job_definitions is
  'Definitions a tenant registered as data. Those that ship as code are known to the processes that load them and have no row.';
comment on column jobforge.job_definitions.removed_at is 'Set when the definition was removed: runs of it stay queued and explain_run says so.';

create table jobforge.audit_log (
  tenant_id text collate "C" not null,
  id uuid not null,
  occurred_at timestamptz not null,
  action text not null,
  outcome text not null,
  actor text,
  token_id text,
  tool text,
  trace_id text,
  job_id uuid,
  job_type text,
  detail jsonb,
  constraint audit_log_pkey primary key (tenant_id, id)
);
comment on table jobforge.audit_log is 'Who did what: one row for each write call of a caller, by the function that acted, in its transaction.';
comment on column jobforge.audit_log.detail is 'Counts and reasons; never inputs, results or credentials.';

create table jobforge.workers (
  worker_id text not null,
  host text not null,
  pid integer not null,
  version text not null,
  job_types text[] not null,
  concurrency integer not null,
  started_at timestamptz not null,
  seen_at timestamptz not null,
  constraint workers_pkey primary key (worker_id)
) with (fillfactor = 70);
comment on table jobforge.workers is 'Worker processes and what they can run. Belongs to no tenant; correctness never depends on it.';
comment on column jobforge.workers.seen_at is 'Last heartbeat; a worker unseen for a minute counts as gone.';

create unlogged table jobforge.listeners (
  listener_id text not null,
  topic text not null,
  expires_at timestamptz not null,
  constraint listeners_pkey primary key (listener_id, topic),
  constraint listeners_topic_is_known check (topic in ('ready', 'runs'))
) with (fillfactor = 50);
comment on table jobforge.listeners is
  'Who sleeps and wants to be woken. A NOTIFY in every commit would make commits queue up behind one lock, so nobody notifies while this is empty. Unlogged: after a crash everybody polls once.';

reset role;
