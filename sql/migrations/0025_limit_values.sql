-- What a limit allows stands in the row of its counter as well, so that an enqueue counts and judges in one statement and
-- looks nothing up first. Every limit has its counter from the moment it is set: a limit that were not counted would be none.

set local role jobforge_owner;

-- what is forced on the owner hides every row from it
alter table jobforge.rate_limits no force row level security;
alter table jobforge.limit_usage no force row level security;
alter table jobforge.limit_usage
  add column rps double precision,
  add column burst double precision,
  add column max_queued integer,
  add column max_payload_bytes integer,
  add column max_priority smallint,
  add column budget_jobs bigint,
  add column budget_units bigint,
  add column budget_run_seconds bigint,
  add column period_seconds integer,
  add column unit_cost integer,
  add column is_counted boolean not null default false,
  add column is_tracked boolean not null default false,
  add column limits jsonb;
comment on column jobforge.limit_usage.rps is 'This and what follows to unit_cost: the limit whose counter this is, as rate_limits or the token says it.';
comment on column jobforge.limit_usage.burst is 'The most permits there are; never null where there is a rate.';
comment on column jobforge.limit_usage.is_counted is 'The limit has to do with how many jobs there are: without, an enqueue reads this row and does not write it.';
comment on column jobforge.limit_usage.is_tracked is 'Jobs under this counter are kept in limited_jobs.';
comment on column jobforge.limit_usage.limits is 'Of a token: the limits it said when the values here were written. Tokens narrowed from one share its counter.';

alter table jobforge.rate_limits add column counter text collate "C";
update jobforge.rate_limits set counter = kind || ':' || name;
insert into jobforge.limit_usage as u (tenant_id, counter, jobs, units, period_started_at, touched_at, rps, burst, max_queued,
  max_payload_bytes, max_priority, budget_jobs, budget_units, budget_run_seconds, period_seconds, unit_cost, is_counted, is_tracked)
select l.tenant_id, l.counter, 0, 0, '-infinity', l.set_at, l.rps, coalesce(l.burst, greatest(1, ceil(l.rps))), l.max_queued,
  l.max_payload_bytes, l.max_priority, l.budget_jobs, l.budget_units, l.budget_run_seconds, l.period_seconds, l.unit_cost,
  num_nonnulls(l.rps, l.max_queued, l.budget_jobs, l.budget_units, l.budget_run_seconds, l.unit_cost) > 0
    or (l.kind = 'tool' and l.max_running is not null),
  l.budget_run_seconds is not null or (l.kind = 'tool' and num_nonnulls(l.max_queued, l.max_running) > 0)
from jobforge.rate_limits l
on conflict (tenant_id, counter) do update set rps = excluded.rps, burst = excluded.burst, max_queued = excluded.max_queued,
  max_payload_bytes = excluded.max_payload_bytes, max_priority = excluded.max_priority, budget_jobs = excluded.budget_jobs,
  budget_units = excluded.budget_units, budget_run_seconds = excluded.budget_run_seconds, period_seconds = excluded.period_seconds,
  unit_cost = excluded.unit_cost, is_counted = excluded.is_counted, is_tracked = excluded.is_tracked;
alter table jobforge.rate_limits
  add constraint rate_limits_counter_is_its_own check (counter is not distinct from kind || ':' || name),
  add constraint rate_limits_has_a_counter foreign key (tenant_id, counter) references jobforge.limit_usage (tenant_id, counter)
    deferrable initially deferred;
comment on column jobforge.rate_limits.counter is 'Its row in limit_usage.';
alter table jobforge.rate_limits force row level security;
alter table jobforge.limit_usage force row level security;

reset role;
