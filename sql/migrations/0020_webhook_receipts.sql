-- Webhooks in: which senders a tenant hears, and which deliveries have come already.

set local role jobforge_owner;

alter table jobforge.connector_configs drop constraint connector_configs_kind_is_known;
alter table jobforge.connector_configs add constraint connector_configs_kind_is_known
  check (kind in ('webhook.completion', 'webhook.in'));
comment on column jobforge.connector_configs.kind is 'webhook.completion: told of runs that ended; webhook.in: heard, and made events of.';
comment on column jobforge.connector_configs.project_id is 'Only runs of this project, or the project of the events; null: of all, or of none.';
comment on column jobforge.connector_configs.config is
  'Completion: {url, secrets, scope, jobs, statuses, includeResult}. In: {scheme, secrets, containsPii, redactFields}: how deliveries are signed, with which secrets by name, and what they hide.';

create table jobforge.webhook_receipts (
  tenant_id text collate "C" not null,
  name text collate "C" not null,
  delivery_id text collate "C" not null,
  event_id uuid not null,
  received_at timestamptz not null,
  expires_at timestamptz not null,
  constraint webhook_receipts_pkey primary key (tenant_id, name, delivery_id),
  constraint webhook_receipts_delivery_id_fits check (octet_length(delivery_id) between 1 and 255)
);
comment on table jobforge.webhook_receipts is 'Deliveries of webhooks that became events: one that comes again within 24 hours is known by its id.';
comment on column jobforge.webhook_receipts.name is 'The webhook of connector_configs that it came to.';
comment on column jobforge.webhook_receipts.delivery_id is 'What the sender calls this delivery, the same each time it is sent.';
create index webhook_receipts_by_expiry on jobforge.webhook_receipts (tenant_id, name, expires_at);
comment on index jobforge.webhook_receipts_by_expiry is 'receive_webhook: receipts that it may forget.';

reset role;
