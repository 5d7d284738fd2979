-- Connections to other systems that operators set up for a tenant: so far completion webhooks, told of runs that ended.

set local role jobforge_owner;

create table jobforge.connector_configs (
  tenant_id text collate "C" not null,
  kind text collate "C" not null,
  name text collate "C" not null,
  project_id text collate "C",
  config jsonb not null,
  set_at timestamptz not null,
  constraint connector_configs_pkey primary key (tenant_id, kind, name),
  constraint connector_configs_tenant_is_well_formed check (tenant_id ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$'),
  constraint connector_configs_project_is_well_formed check (project_id ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$'),
  constraint connector_configs_kind_is_known check (kind in ('webhook.completion')),
  constraint connector_configs_name_is_well_formed check (name ~ '^[a-z0-9][a-z0-9_-]{0,63}$'),
  constraint connector_configs_config_is_a_small_object
    check (jsonb_typeof(config) = 'object' and octet_length(config::text) <= 16384)
);
comment on table jobforge.connector_configs is 'Connections of a tenant to other systems, as an operator set them up; secrets are named here and never held.';
comment on column jobforge.connector_configs.kind is 'webhook.completion: told of runs that ended.';
comment on column jobforge.connector_configs.project_id is 'Only runs of this project; null: of all.';
comment on column jobforge.connector_configs.config is
  '{url, secrets, scope, jobs, statuses, includeResult}: where to, signed with which secrets by name, for which runs.';

reset role;
