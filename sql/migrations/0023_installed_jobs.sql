-- What workers know of the jobs they have, for callers who come without a process that knows them: plain SQL.

do $$
begin
  begin create role jobforge_action_execute nologin; exception when duplicate_object or unique_violation then null; end;
end $$;

set local role jobforge_owner;

create table jobforge.installed_jobs (
  job_type text collate "C" not null,
  cost integer not null,
  asks_for text,
  told_at timestamptz not null,
  constraint installed_jobs_pkey primary key (job_type),
  constraint installed_jobs_cost_in_range check (cost between 1 and 1000000),
  constraint installed_jobs_asks_for_is_known check (asks_for in ('action', 'permission'))
);
comment on table jobforge.installed_jobs is
  'Jobs that a worker of this installation has, as it told when it started. Belongs to no tenant; a job that no worker ever had is not in it.';
comment on column jobforge.installed_jobs.cost is 'Units of a budget that a run uses, as the definition declares.';
comment on column jobforge.installed_jobs.asks_for is
  'What whoever starts it must have besides jobs:execute: action is the scope action:execute and an idempotency key, permission is what only a token can carry; null is nothing.';
comment on column jobforge.installed_jobs.told_at is 'When a worker last told something new of it.';

reset role;
