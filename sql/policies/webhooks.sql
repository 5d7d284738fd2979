-- Connections to other systems: operators set them up as the schema's owner, and runs that end look at them.
set local role jobforge_owner;

revoke all on jobforge.connector_configs, jobforge.webhook_receipts
  from public, jobforge_rpc, jobforge_sys, jobforge_api, jobforge_worker, jobforge_scheduler, jobforge_readonly, jobforge_auditor;
grant select on jobforge.connector_configs to jobforge_rpc;
grant select, insert, update, delete on jobforge.connector_configs to jobforge_sys;
grant select, insert, update, delete on jobforge.webhook_receipts to jobforge_rpc;
grant select, delete on jobforge.webhook_receipts to jobforge_sys;

alter table jobforge.connector_configs enable row level security;
alter table jobforge.connector_configs force row level security;
drop policy if exists tenant_rows on jobforge.connector_configs;
create policy tenant_rows on jobforge.connector_configs to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.connector_configs;
create policy every_row on jobforge.connector_configs to jobforge_sys using (true) with check (true);

alter table jobforge.webhook_receipts enable row level security;
alter table jobforge.webhook_receipts force row level security;
drop policy if exists tenant_rows on jobforge.webhook_receipts;
create policy tenant_rows on jobforge.webhook_receipts to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.webhook_receipts;
create policy every_row on jobforge.webhook_receipts to jobforge_sys using (true) with check (true);

reset role;
set local role jobforge_rpc;

grant execute on function jobforge.get_webhook(text, text), jobforge.receive_webhook(text, text, text, text, jsonb)
  to jobforge_api;

reset role;
set local role jobforge_sys;

grant execute on function jobforge.notify_ended(text[], uuid[]) to jobforge_rpc;
grant execute on function jobforge.set_completion_webhook(text, text, jsonb, text), jobforge.set_incoming_webhook(text, text, jsonb, text),
  jobforge.list_webhooks(text), jobforge.remove_webhook(text, text) to jobforge_owner;

reset role;
