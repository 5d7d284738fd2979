-- Events and triggers: callers submit, read and register within their tenant; what nobody has looked at yet is handed to
-- maintenance, which runs in workers and, where there is one, in a scheduler of its own.
set local role jobforge_owner;

revoke all on jobforge.events, jobforge.triggers, jobforge.trigger_fires
  from public, jobforge_rpc, jobforge_sys, jobforge_api, jobforge_worker, jobforge_scheduler, jobforge_readonly, jobforge_auditor;
grant select, insert, update on jobforge.events to jobforge_rpc;
grant select, insert on jobforge.trigger_fires to jobforge_rpc;
grant select, insert, update, delete on jobforge.triggers to jobforge_rpc;
grant select, insert, update, delete on jobforge.events, jobforge.triggers, jobforge.trigger_fires to jobforge_sys;

alter table jobforge.events enable row level security;
alter table jobforge.events force row level security;
drop policy if exists tenant_rows on jobforge.events;
create policy tenant_rows on jobforge.events to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.events;
create policy every_row on jobforge.events to jobforge_sys using (true) with check (true);

alter table jobforge.triggers enable row level security;
alter table jobforge.triggers force row level security;
drop policy if exists tenant_rows on jobforge.triggers;
create policy tenant_rows on jobforge.triggers to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.triggers;
create policy every_row on jobforge.triggers to jobforge_sys using (true) with check (true);

alter table jobforge.trigger_fires enable row level security;
alter table jobforge.trigger_fires force row level security;
drop policy if exists tenant_rows on jobforge.trigger_fires;
create policy tenant_rows on jobforge.trigger_fires to jobforge_rpc
  using (tenant_id = (select jobforge.current_tenant())) with check (tenant_id = (select jobforge.current_tenant()));
drop policy if exists every_row on jobforge.trigger_fires;
create policy every_row on jobforge.trigger_fires to jobforge_sys using (true) with check (true);

reset role;
set local role jobforge_rpc;

grant execute on function
  jobforge.submit_event(text, text, jsonb, text, text, timestamptz, text, text, text, boolean, jsonb, jsonb, jsonb, integer, boolean),
  jobforge.list_events(text, text, text, timestamptz, text, text, boolean, uuid, integer),
  jobforge.match_triggers(text, text, text, text, text, boolean, jsonb),
  jobforge.register_trigger(text, text, text, text, text, text, text, text, integer, text, integer, text, text, jsonb, jsonb,
    jsonb, jsonb, integer, integer, boolean, boolean, timestamptz, text[], text[], boolean),
  jobforge.list_triggers(text, text, text, text, text, text, integer),
  jobforge.remove_trigger(text, text, boolean),
  jobforge.pause_trigger(text, text),
  jobforge.resume_trigger(text, text, timestamptz, integer),
  jobforge.run_trigger(text, text, jsonb, text, boolean),
  jobforge.list_trigger_fires(text, text, text, uuid, timestamptz, integer)
  to jobforge_api;
grant execute on function
  jobforge.submit_event(text, text, jsonb, text, text, timestamptz, text, text, text, boolean, jsonb, jsonb, jsonb, integer, boolean)
  to jobforge_events_submit;
grant execute on function
  jobforge.list_events(text, text, text, timestamptz, text, text, boolean, uuid, integer),
  jobforge.list_trigger_fires(text, text, text, uuid, timestamptz, integer)
  to jobforge_events_read;
grant execute on function
  jobforge.submit_event(text, text, jsonb, text, text, timestamptz, text, text, text, boolean, jsonb, jsonb, jsonb, integer, boolean)
  to jobforge_sys;
grant execute on function jobforge.shown_payload(jsonb, boolean, jsonb), jobforge.hidden_fields(jsonb),
  jobforge.strike_out(jsonb, text[], text), jobforge.allows_event(jsonb, text, text), jobforge.matches_pattern(text, text),
  jobforge.matches_source(text, text), jobforge.find_triggers(text, text, text, text),
  jobforge.decide_event_fires(jobforge.events, jsonb, integer, boolean),
  jobforge.decide_schedule_fires(text, text, jsonb) to jobforge_sys;

reset role;
set local role jobforge_sys;

grant execute on function
  jobforge.submit_run_event(text, uuid, uuid, integer, text, jsonb, text, text, text, timestamptz, boolean, jsonb, jsonb)
  to jobforge_worker;
grant execute on function jobforge.claim_events(integer), jobforge.match_events(text[], uuid[]),
  jobforge.process_event(text, uuid, jsonb, integer), jobforge.due_triggers(integer), jobforge.next_due_at(),
  jobforge.fire_due_triggers(jsonb)
  to jobforge_worker, jobforge_scheduler;

reset role;
