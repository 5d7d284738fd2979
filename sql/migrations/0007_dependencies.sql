-- Runs that wait for other runs: items of a bundle, and compositions for their steps.
--
-- A dependent is in `waiting` (dependency or child) while rows of `job_dependencies` name what it waits for. They are
-- written and deleted only by whoever holds the lock of that waiting row, so the last one to end finds none left.

set local role jobforge_owner;

alter domain jobforge.wait_reason drop constraint wait_reason_is_known;
alter domain jobforge.wait_reason
  add constraint wait_reason_is_known check (value in ('event', 'input', 'child', 'sleep', 'turn', 'dependency'));

alter table jobforge.waiting
  add column until_at timestamptz,
  add column may_remain smallint not null default 0;
comment on column jobforge.waiting.may_remain is 'The job is queued again once no more than so many of its dependencies are open.';
comment on column jobforge.waiting.until_at is 'When the job is queued again although what it waits for has not come; null is never.';
create index waiting_until on jobforge.waiting (tenant_id, until_at) where until_at is not null;
comment on index jobforge.waiting_until is 'tend_dependencies: waits that are over.';

create table jobforge.job_dependencies (
  tenant_id text collate "C" not null,
  job_id uuid not null,
  depends_on_id uuid not null,
  on_failure text collate "C" not null,
  is_child boolean not null,
  is_orphan boolean not null default false,
  constraint job_dependencies_pkey primary key (tenant_id, job_id, depends_on_id),
  constraint job_dependencies_are_of_others check (job_id <> depends_on_id),
  constraint job_dependencies_on_failure_is_known check (on_failure in ('cancel', 'continue')),
  constraint job_dependencies_orphans_are_children check (not is_orphan or is_child)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
comment on table jobforge.job_dependencies is 'What waiting runs wait for: one row for each open run that must end first.';
comment on column jobforge.job_dependencies.on_failure is 'What becomes of the dependent when this one ends without success: canceled, or it continues.';
comment on column jobforge.job_dependencies.is_child is 'A step of the composition that waits for it; it is canceled with the composition.';
comment on column jobforge.job_dependencies.is_orphan is 'The composition has ended and this step is still to be canceled.';
create index job_dependencies_by_dependency on jobforge.job_dependencies (tenant_id, depends_on_id, job_id);
comment on index jobforge.job_dependencies_by_dependency is 'after_final: who waits for runs that ended.';
create index job_dependencies_orphans on jobforge.job_dependencies (tenant_id, depends_on_id) where is_orphan;
comment on index jobforge.job_dependencies_orphans is 'tend_dependencies: steps to cancel; empty on most days.';

create table jobforge.composition_steps (
  tenant_id text collate "C" not null,
  job_id uuid not null,
  step text collate "C" not null,
  child_id uuid not null,
  made_at timestamptz not null,
  constraint composition_steps_pkey primary key (tenant_id, job_id, step),
  constraint composition_steps_step_fits check (octet_length(step) between 1 and 200),
  constraint composition_steps_job_exists foreign key (tenant_id, job_id) references jobforge.jobs (tenant_id, id) on delete cascade
);
comment on table jobforge.composition_steps is
  'Which run does which step of a composition: however often the composition is replayed, a step is enqueued once.';
comment on column jobforge.composition_steps.step is 'Path of the step in the definition, such as steps/fetch or steps/each/3.';
comment on column jobforge.composition_steps.child_id is 'The run of the step; may be purged before the composition''s own row.';

reset role;
