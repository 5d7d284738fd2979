-- What runs leave behind: artifacts, and what a manifest says that cannot be derived from a job and its attempts.
--
-- An artifact belongs to one claim (run and epoch), because only what a claim that was living when it ended, or still is,
-- made may be shown. Small content lies in the row; large content lies in a store outside, under its hash, and its row in
-- `artifact_objects` is written before the content is: whatever process dies in between, the object is known and can be
-- swept. Lock order: leases, artifact_objects, artifacts; artifact_manifests after jobs and job_attempts.

set local role jobforge_owner;

create table jobforge.artifact_objects (
  tenant_id text collate "C" not null,
  store text collate "C" not null,
  sha256 bytea not null,
  size bigint not null,
  announced_at timestamptz not null,
  constraint artifact_objects_pkey primary key (tenant_id, store, sha256),
  constraint artifact_objects_store_is_known check (store in ('directory', 's3')),
  constraint artifact_objects_have_a_hash check (octet_length(sha256) = 32),
  constraint artifact_objects_size_is_one check (size >= 0)
);
comment on table jobforge.artifact_objects is
  'Content outside this database, by tenant and hash: the row is there before the content is, and goes with it.';
comment on column jobforge.artifact_objects.store is 'Where the content lies: a directory of the workers, or an S3-compatible store.';
comment on column jobforge.artifact_objects.announced_at is 'When an attempt last said that it writes this content; within the hour after that it is never swept.';

create table jobforge.artifacts (
  tenant_id text collate "C" not null,
  job_id uuid not null,
  epoch integer not null,
  name text collate "C" not null,
  attempt_no smallint not null,
  mime_type text not null,
  size bigint not null,
  sha256 bytea not null,
  store text collate "C" not null,
  content bytea,
  created_at timestamptz not null,
  expires_at timestamptz,
  constraint artifacts_pkey primary key (tenant_id, job_id, epoch, name),
  constraint artifacts_job_exists foreign key (tenant_id, job_id) references jobforge.jobs (tenant_id, id) on delete cascade,
  constraint artifacts_name_is_well_formed check (name ~ '^([A-Za-z0-9][A-Za-z0-9._-]{0,99}|\$result)$'),
  constraint artifacts_mime_type_is_well_formed
    check (mime_type ~ '^[a-z0-9][a-z0-9!#$&^_.+-]{0,60}/[a-z0-9][a-z0-9!#$&^_.+-]{0,60}$'),
  constraint artifacts_store_is_known check (store in ('table', 'directory', 's3')),
  constraint artifacts_have_a_hash check (octet_length(sha256) = 32),
  constraint artifacts_content_is_here_or_there check ((store = 'table') = (content is not null)),
  constraint artifacts_size_is_true check (size >= 0 and (content is null or octet_length(content) = size)),
  constraint artifacts_row_stays_small check (octet_length(content) <= 1048576)
);
comment on table jobforge.artifacts is 'Files and texts that attempts made, with their hash; shown unless the attempt was lost.';
comment on column jobforge.artifacts.name is 'Chosen by the handler; $result holds a result that was too large for its run.';
comment on column jobforge.artifacts.store is 'Where the content lies: here (table), or outside under its hash.';
comment on column jobforge.artifacts.expires_at is 'After this it is deleted; without it, with its run.';
create index artifacts_by_object on jobforge.artifacts (tenant_id, store, sha256) where store <> 'table';
comment on index jobforge.artifacts_by_object is 'purge_artifacts: whether anything still needs an object.';
create index artifacts_by_end on jobforge.artifacts (tenant_id, expires_at) where expires_at is not null;
comment on index jobforge.artifacts_by_end is 'purge_artifacts: what may be deleted.';

create table jobforge.artifact_manifests (
  tenant_id text collate "C" not null,
  job_id uuid not null,
  epoch integer not null,
  facts jsonb not null,
  recorded_at timestamptz not null,
  constraint artifact_manifests_pkey primary key (tenant_id, job_id, epoch),
  constraint artifact_manifests_job_exists foreign key (tenant_id, job_id) references jobforge.jobs (tenant_id, id) on delete cascade,
  constraint artifact_manifests_facts_are_an_object check (jsonb_typeof(facts) = 'object')
);
comment on table jobforge.artifact_manifests is
  'What an attempt said of itself that is nowhere else: decisions, readings, measures. An attempt without any has no row.';
comment on column jobforge.artifact_manifests.facts is '{decisions, readings, seed, metrics}; the rest of a manifest is derived when it is read.';

create table jobforge.worker_environments (
  worker_id text not null,
  environment_hash bytea not null,
  environment jsonb not null,
  registered_at timestamptz not null,
  constraint worker_environments_pkey primary key (worker_id),
  constraint worker_environments_have_a_hash check (octet_length(environment_hash) = 32)
);
comment on table jobforge.worker_environments is
  'System, interpreter and versions of each worker process, for the manifests of what it ran. Belongs to no tenant.';
comment on column jobforge.worker_environments.environment_hash is 'SHA-256 of the environment: equal where two workers ran the same.';

reset role;
