-- Servers keep in memory what lists of registered definitions are searched by; they ask for what changed since they last did.

set local role jobforge_owner;

alter table jobforge.registered_jobs add column changed_in bigint not null default 0;
comment on column jobforge.registered_jobs.changed_in is
  'Number of the transaction that changed the row last; 0 from before these were kept.';
create index registered_jobs_changes on jobforge.registered_jobs (tenant_id, changed_in);
comment on index jobforge.registered_jobs_changes is 'changed_definitions: what changed since a server last asked.';

reset role;
