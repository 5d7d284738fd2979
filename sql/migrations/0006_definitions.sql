-- Definitions registered as data: immutable versions, and one row for each name that says which of them runs.
--
-- A job of a registered definition keeps the registered name in job_type, which is what everybody sees, counts and limits.
-- Its lane is that of the handler which runs it (or of compositions), so that every worker that has the handler takes it:
-- `lane_type` in jobs, and `own_type` beside the lane in ready. Both are null for all other jobs, and cost them nothing.

set local role jobforge_owner;

alter table jobforge.jobs add column lane_type text collate "C";
comment on column jobforge.jobs.lane_type is
  'Lane of a job of a registered definition: its handler''s type. Null when the lane is the job type itself, also while its definition is removed.';

alter table jobforge.ready add column own_type text collate "C";
comment on column jobforge.ready.job_type is 'The lane: coalesce(lane_type, job_type) of the job.';
comment on column jobforge.ready.own_type is 'Job type of a job whose lane is another; else null.';
create index ready_registered on jobforge.ready (tenant_id, job_type, priority, run_at, job_id) where own_type is not null;
comment on index jobforge.ready_registered is 'take_limited and remove_definition: jobs of registered definitions in the lane of their handler.';

alter table jobforge.job_definitions
  drop column removed_at,
  add column lane_type text collate "C",
  add column approved_at timestamptz,
  add column approved_by text,
  add constraint job_definitions_version_fits check (octet_length(job_version) between 1 and 100);
comment on table jobforge.job_definitions is
  'Versions of definitions that a tenant registered as data; a row''s content never changes. Those that ship as code have no row.';
comment on column jobforge.job_definitions.lane_type is 'Lane of the runs of this version: its handler''s type, or jobforge.composition.';
comment on column jobforge.job_definitions.definition_hash is 'SHA-256 of the definition as jsonb text, without its version.';
comment on column jobforge.job_definitions.approved_at is 'Null while the version is quarantined and may not be run.';
comment on column jobforge.job_definitions.approved_by is 'Who approved it; null when the tenant asks for no approval.';

create table jobforge.registered_jobs (
  tenant_id text collate "C" not null,
  job_type text collate "C" not null,
  name_key text collate "C" not null,
  job_version text collate "C",
  latest_version text collate "C" not null,
  version_no integer not null,
  title text,
  description text,
  tags text[] not null default '{}',
  labels jsonb not null default '{}',
  search_text text not null,
  is_hidden boolean not null default false,
  registered_by text,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  removed_at timestamptz,
  constraint registered_jobs_pkey primary key (tenant_id, job_type),
  constraint registered_jobs_names_are_distinct unique (tenant_id, name_key),
  constraint registered_jobs_name_is_well_formed check (job_type ~ '^[a-z0-9][a-z0-9.-]{0,63}$'),
  constraint registered_jobs_labels_are_an_object check (jsonb_typeof(labels) = 'object')
);
comment on index jobforge.registered_jobs_names_are_distinct is 'register_definition: no two names that look alike.';
comment on table jobforge.registered_jobs is 'Names of definitions registered as data: which version new runs get, and what a list shows.';
comment on column jobforge.registered_jobs.name_key is 'The name with look-alike characters and separators folded: no two names of a tenant share one.';
comment on column jobforge.registered_jobs.job_version is 'Version that new runs get; null while none is approved.';
comment on column jobforge.registered_jobs.latest_version is 'Version registered last; another than job_version while it is quarantined.';
comment on column jobforge.registered_jobs.version_no is 'Versions so far: the next one without a version of its own gets the number after it.';
comment on column jobforge.registered_jobs.search_text is 'Name, title, description and tags in lower case: what a search for words reads.';
comment on column jobforge.registered_jobs.registered_by is 'Who registered the latest version: somebody else has to approve it where that is asked for.';
comment on column jobforge.registered_jobs.removed_at is 'Set while the job is removed: runs that had not started stay queued, new ones are refused.';

alter table jobforge.tenants add column requires_approval boolean not null default false;
comment on column jobforge.tenants.requires_approval is
  'Whether a registered definition runs only after somebody other than its author approved it.';

reset role;
