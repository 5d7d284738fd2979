-- Limits that job definitions set and claims obey: how many runs of a key at once, how many starts in a time. And pauses.
--
-- A job over such a limit is parked: it is moved from `ready` to `waiting` (reason limit) under the counter that refused
-- it, and back when that counter has room again. To callers it is queued all the while. A counter is named by what it
-- counts: `slot:<job type>:<key>`, `rate:<job type>:<milliseconds>:<key>`; jobs of a paused project or type stand under
-- `pause:<kind>:<name>`. Lock order: claim_counters after ordering_keys, by (tenant_id, counter).

set local role jobforge_owner;

alter domain jobforge.wait_reason drop constraint wait_reason_is_known;
alter domain jobforge.wait_reason
  add constraint wait_reason_is_known check (value in ('event', 'input', 'child', 'sleep', 'turn', 'dependency', 'limit'));

alter table jobforge.jobs
  add column slot_key text collate "C",
  add column slot_limit integer,
  add column rate_key text collate "C",
  add column rate_limit integer,
  add column rate_period_ms integer,
  add constraint jobs_slot_is_whole check ((slot_key is null) = (slot_limit is null) and slot_limit between 1 and 1000000),
  add constraint jobs_rate_is_whole check (num_nulls(rate_key, rate_limit, rate_period_ms) in (0, 3)
    and rate_limit between 1 and 1000000 and rate_period_ms between 100 and 604800000),
  add constraint jobs_limit_keys_fit check (octet_length(slot_key) <= 400 and octet_length(rate_key) <= 400);
comment on column jobforge.jobs.slot_key is 'Counter of runs at once that the job stands under; null for most jobs.';
comment on column jobforge.jobs.slot_limit is 'Runs of its key at once, as its version of the definition says.';
comment on column jobforge.jobs.rate_key is 'Counter of starts that the job stands under; null for most jobs.';
comment on column jobforge.jobs.rate_limit is 'Starts of its key within any rate_period_ms.';

alter table jobforge.waiting
  add column counter text collate "C",
  add column priority smallint,
  add column is_suspect boolean not null default false,
  add constraint waiting_limit_has_a_counter
    check (waiting_for <> 'limit' or num_nulls(counter, priority) = 0);
comment on column jobforge.waiting.counter is 'Of a job that waits for a limit: the counter that had no room.';
comment on column jobforge.waiting.is_suspect is 'As it was in ready, where the job goes back to.';
create index waiting_limits on jobforge.waiting (tenant_id, counter, priority, job_id) where waiting_for = 'limit';
comment on index jobforge.waiting_limits is 'unpark_jobs: the next jobs of a counter.';

create table jobforge.claim_counters (
  tenant_id text collate "C" not null,
  counter text collate "C" not null,
  most integer,
  most_of uuid,
  running integer not null default 0,
  starts_at timestamptz[] not null default '{}',
  starts integer[] not null default '{}',
  next_at timestamptz,
  constraint claim_counters_pkey primary key (tenant_id, counter),
  constraint claim_counters_running_is_a_count check (running >= 0),
  constraint claim_counters_starts_match check (cardinality(starts_at) = cardinality(starts))
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
comment on table jobforge.claim_counters is
  'What runs or started under each key of the limits that definitions set. Its row lock is held by claims and settles until they commit, so no two see the same room.';
comment on column jobforge.claim_counters.most is 'The limit: that of the newest job of the key that a claim has met, so that a new version''s limit holds for older jobs, too.';
comment on column jobforge.claim_counters.most_of is 'That job.';
comment on column jobforge.claim_counters.running is 'Runs that hold a slot: those of the key that are in leases.';
comment on column jobforge.claim_counters.starts_at is 'Ends of the slices of time in which runs started, a twentieth of the period each.';
comment on column jobforge.claim_counters.starts is 'Runs that started in each slice.';
comment on column jobforge.claim_counters.next_at is 'When parked jobs of a rate may go on; null when none is parked.';
create index claim_counters_due on jobforge.claim_counters (tenant_id, next_at) where next_at is not null;
comment on index jobforge.claim_counters_due is 'unpark_rates: rates that have room again.';

create table jobforge.limited_tenants (
  tenant_id text collate "C" not null,
  job_id uuid not null,
  constraint limited_tenants_pkey primary key (tenant_id, job_id)
);
comment on table jobforge.limited_tenants is
  'Tenants that have had jobs with a concurrency or rate limit: claims for others look no further.';
comment on column jobforge.limited_tenants.job_id is 'The job that was the first; of several at once each writes its row, so that nobody waits.';

create table jobforge.pauses (
  tenant_id text collate "C" not null,
  kind text collate "C" not null,
  name text collate "C" not null,
  reason text,
  paused_by text,
  paused_at timestamptz not null,
  constraint pauses_pkey primary key (tenant_id, kind, name),
  constraint pauses_kind_is_known check (kind in ('tenant', 'type', 'project')),
  constraint pauses_name_fits check ((kind = 'tenant') = (name = '') and octet_length(name) <= 200),
  constraint pauses_reason_fits check (char_length(reason) <= 1000)
);
comment on table jobforge.pauses is 'What claims pass over until it is resumed: a tenant, one of its job types, or one of its projects.';
comment on column jobforge.pauses.name is 'Job type or project; empty for the tenant as a whole.';
comment on column jobforge.pauses.paused_by is 'Actor of the call that paused it.';

reset role;
