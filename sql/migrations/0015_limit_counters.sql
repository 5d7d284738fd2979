-- One row for each counter: what is left of a rate stands beside what is used of a queue and a budget, so that a call
-- writes one row for each limit that applies to it. Lock order: `limit_usage` alone, where `rate_buckets` came first.

set local role jobforge_owner;

alter table jobforge.limit_usage
  add column permits double precision,
  add column refilled_at timestamptz;
comment on column jobforge.limit_usage.permits is 'Token bucket of the rate: what was left when it was last looked at; null without a rate.';
comment on column jobforge.limit_usage.refilled_at is 'When it was last looked at.';
comment on table jobforge.limit_usage is
  'What was used of rates and budgets, one row for each counter. Its row lock is held until commit, so two callers never count at once.';

insert into jobforge.limit_usage as u (tenant_id, counter, jobs, units, period_started_at, touched_at, permits, refilled_at)
select b.tenant_id, b.counter, 0, 0, b.refilled_at, b.refilled_at, b.permits, b.refilled_at from jobforge.rate_buckets b
on conflict (tenant_id, counter) do update set permits = excluded.permits, refilled_at = excluded.refilled_at;
drop table jobforge.rate_buckets;

-- a look-up and a lock of the job that the same transaction has just written, for each row; what is left of jobs that were
-- purged is swept with those that ended
alter table jobforge.limited_jobs drop constraint limited_jobs_job_exists;

reset role;
