-- What callers may use: limits that operators set, and the counters of those and of the tokens' own.
--
-- A counter is named by what it counts for: `tenant:`, `type:<job type>`, `tool:<tool>`, `token:<jti>`. Rates have a table
-- of their own because a call takes them earlier than the others: lock order `rate_buckets`, leases, `limit_usage`,
-- idempotency_keys, and on as before; inside both by kind and name.

set local role jobforge_owner;

create table jobforge.rate_limits (
  tenant_id text collate "C" not null,
  kind text collate "C" not null,
  name text collate "C" not null,
  rps double precision,
  burst integer,
  max_running integer,
  max_queued integer,
  max_payload_bytes integer,
  max_priority smallint,
  max_children integer,
  max_depth integer,
  budget_jobs bigint,
  budget_units bigint,
  budget_run_seconds bigint,
  period_seconds integer,
  unit_cost integer,
  set_at timestamptz not null,
  constraint rate_limits_pkey primary key (tenant_id, kind, name),
  constraint rate_limits_tenant_is_well_formed check (tenant_id ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$'),
  constraint rate_limits_kind_is_known check (kind in ('tenant', 'type', 'tool')),
  constraint rate_limits_name_fits check ((kind = 'tenant') = (name = '') and octet_length(name) <= 200),
  constraint rate_limits_rate_in_range check (rps > 0 and rps <= 1000000 and rps <> 'NaN'),
  constraint rate_limits_burst_in_range check (burst between 1 and 1000000 and (burst is null or rps is not null)),
  constraint rate_limits_counts_in_range check (max_running >= 0 and max_queued between 0 and 1000000 and max_children >= 0
    and max_depth between 0 and 1000 and max_payload_bytes >= 0),
  constraint rate_limits_priority_in_range check (max_priority between 0 and 3),
  constraint rate_limits_budgets_in_range
    check (budget_jobs >= 0 and budget_units >= 0 and budget_run_seconds >= 0 and period_seconds between 1 and 31622400),
  constraint rate_limits_cost_in_range check (unit_cost between 0 and 1000000 and (unit_cost is null or kind = 'type'))
);
comment on table jobforge.rate_limits is 'Limits that an operator set for a tenant, or for one of its job types or tools.';
comment on column jobforge.rate_limits.name is 'Job type or tool; empty for the tenant as a whole.';
comment on column jobforge.rate_limits.rps is 'Jobs, cancels and retries a second, refilled steadily.';
comment on column jobforge.rate_limits.max_queued is 'Runs that may be open and not running.';
comment on column jobforge.rate_limits.max_priority is 'The most urgent priority that may be asked for.';
comment on column jobforge.rate_limits.max_depth is 'Generations of children below a run that has no parent.';
comment on column jobforge.rate_limits.budget_units is 'Sum of the unit_cost of the jobs'' types, 1 where none is set.';
comment on column jobforge.rate_limits.period_seconds is 'After this the budgets are whole again; null is never.';

create table jobforge.rate_buckets (
  tenant_id text collate "C" not null,
  counter text collate "C" not null,
  permits double precision not null,
  refilled_at timestamptz not null,
  constraint rate_buckets_pkey primary key (tenant_id, counter)
) with (fillfactor = 50);
comment on table jobforge.rate_buckets is 'Token buckets of rates: what was left when it was last looked at.';

create table jobforge.limit_usage (
  tenant_id text collate "C" not null,
  counter text collate "C" not null,
  jobs bigint not null,
  units bigint not null,
  run_ms bigint not null default 0,
  period_started_at timestamptz not null,
  open_ceiling integer,
  counted_at timestamptz,
  swept_at timestamptz,
  touched_at timestamptz not null,
  constraint limit_usage_pkey primary key (tenant_id, counter)
) with (fillfactor = 50);
comment on table jobforge.limit_usage is
  'What was used of the budgets, one row for each counter. Its row lock is held until commit, so two callers never count at once.';
comment on column jobforge.limit_usage.run_ms is 'Time that ended attempts ran; counted when the budget is next looked at.';
comment on column jobforge.limit_usage.open_ceiling is
  'No more runs than these are open under the counter: those of the last count and all enqueued since. While it is within the limit nothing need be counted.';

create table jobforge.limited_jobs (
  tenant_id text collate "C" not null,
  job_id uuid not null,
  counter text collate "C" not null,
  tracked_at timestamptz not null,
  token_limits jsonb,
  constraint limited_jobs_pkey primary key (tenant_id, job_id, counter),
  constraint limited_jobs_job_exists foreign key (tenant_id, job_id) references jobforge.jobs (tenant_id, id) on delete cascade
);
comment on table jobforge.limited_jobs is
  'Under which counters an open job stands beyond its tenant and type; written only for those with such a limit, deleted when next counted after its end.';
comment on column jobforge.limited_jobs.token_limits is
  'Limits of the token as it was presented, for its claim and its children; tokens narrowed from one share its counter. Null for what is no token.';
create index limited_jobs_by_counter on jobforge.limited_jobs (tenant_id, counter, job_id);
comment on index jobforge.limited_jobs_by_counter is 'check_policy: the open jobs of a token or a tool.';

create table jobforge.running_limits (
  tenant_id text collate "C" not null,
  counter text collate "C" not null,
  max_running integer not null,
  constraint running_limits_pkey primary key (tenant_id, counter)
);
comment on table jobforge.running_limits is
  'Limits that a claim obeys: a tenant without a row here is claimed from without a look at limits.';
comment on column jobforge.running_limits.max_running is 'Of a token the most that one narrowed from it may have: each of its jobs carries its own.';

reset role;
