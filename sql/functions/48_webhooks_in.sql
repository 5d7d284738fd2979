-- Webhooks in: deliveries whose signature a server has checked become events, once each.
--
-- The server reads the webhook's configuration, checks the signature with secrets that only it has, and calls receive_webhook in the
-- scope of the tenant; it answers after that is committed. The triggers are asked after that, as for every event that came
-- without what they decided. Locks: webhook_receipts, then events.

set local role jobforge_rpc;

create or replace function jobforge.get_webhook(p_tenant_id text, p_webhook_name text) returns jsonb
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
begin
  perform jobforge.require_tenant(p_tenant_id);
  return (select c.config from jobforge.connector_configs c
    where c.tenant_id = p_tenant_id and c.kind = 'webhook.in' and c.name = p_webhook_name);
end $$;
comment on function jobforge.get_webhook(text, text) is 'How deliveries of a webhook are signed, with which secrets by name; null if there is none.';

-- Two at once wait for each other at the receipt: the second finds what the first committed, or does it itself.
create or replace function jobforge.receive_webhook(
  p_tenant_id text, p_webhook_name text, p_delivery_id text, p_event_type text, p_payload jsonb)
returns table (event_id uuid, outcome text)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
  v_project_id text;
  v_config jsonb;
begin
  perform jobforge.require_tenant(p_tenant_id);
  perform jobforge.require_event(p_event_type, null);
  select c.project_id, c.config into v_project_id, v_config from jobforge.connector_configs c
  where c.tenant_id = p_tenant_id and c.kind = 'webhook.in' and c.name = p_webhook_name;
  if not found then
    raise exception 'there is no such webhook' using errcode = 'JF404';
  end if;
  if p_delivery_id is null or octet_length(p_delivery_id) not between 1 and 255 then
    raise exception 'the id of a delivery has 1 to 255 bytes' using errcode = 'JF400';
  end if;
  delete from jobforge.webhook_receipts r
  where r.ctid = any (array(
    select x.ctid from jobforge.webhook_receipts x
    where x.tenant_id = p_tenant_id and x.name = p_webhook_name and x.expires_at <= v_now and x.delivery_id <> p_delivery_id
    order by x.expires_at limit 10 for update skip locked));
  insert into jobforge.webhook_receipts as r (tenant_id, name, delivery_id, event_id, received_at, expires_at)
  values (p_tenant_id, p_webhook_name, p_delivery_id, jobforge.new_id(), v_now, v_now + interval '24 hours')
  on conflict (tenant_id, name, delivery_id) do update set received_at = excluded.received_at, expires_at = excluded.expires_at
    where r.expires_at <= v_now;
  if not found then
    return query select r.event_id, 'replayed'::text from jobforge.webhook_receipts r
    where r.tenant_id = p_tenant_id and r.name = p_webhook_name and r.delivery_id = p_delivery_id;
    return;
  end if;
  select e.event_id into event_id
  from jobforge.submit_event(p_tenant_id, p_event_type, p_payload, 'webhook:' || p_webhook_name, null, null, null, null, v_project_id,
    coalesce((v_config ->> 'containsPii')::boolean, false),
    case when v_config ? 'redactFields' then jsonb_build_object('redactFields', v_config -> 'redactFields') end) e
  limit 1;
  update jobforge.webhook_receipts r set event_id = receive_webhook.event_id
  where r.tenant_id = p_tenant_id and r.name = p_webhook_name and r.delivery_id = p_delivery_id;
  outcome := 'created';
  return next;
end $$;
comment on function jobforge.receive_webhook(text, text, text, text, jsonb) is
  'Store a delivery as an event, once within 24 hours for its id; says which event, and whether it was created or replayed.';

reset role;
set local role jobforge_sys;

create or replace function jobforge.set_incoming_webhook(p_tenant_id text, p_name text, p_config jsonb, p_project_id text default null)
returns boolean
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_is_new boolean;
  v_problem text;
begin
  v_problem := case
    when p_tenant_id is null or p_tenant_id !~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$' then 'a tenant id has 1 to 63 letters, digits or . _ : -'
    when p_project_id !~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$' then 'a project id has 1 to 63 letters, digits or . _ : -'
    when p_name is null or p_name !~ '^[a-z0-9][a-z0-9_-]{0,63}$' then 'a webhook has a name of 1 to 64 small letters, digits, _ or -'
    when p_config is null or jsonb_typeof(p_config) <> 'object' or p_config - '{scheme,secrets,containsPii,redactFields}'::text[] <> '{}'
      then 'it needs a scheme and secrets, knows containsPii and redactFields, and nothing else'
    when coalesce(p_config ->> 'scheme', '') not in ('standard', 'github', 'stripe', 'shopify')
      then 'its scheme is standard, github, stripe or shopify'
    when jsonb_typeof(p_config -> 'secrets') is distinct from 'array' then 'its secrets are a list of names'
    when jsonb_typeof(coalesce(p_config -> 'containsPii', 'false')) <> 'boolean' then 'containsPii is true or false'
    when jsonb_typeof(coalesce(p_config -> 'redactFields', '[]')) <> 'array' then 'redactFields is a list'
  end;
  if v_problem is null and (jsonb_array_length(p_config -> 'secrets') not between 1 and 4 or exists (
    select from jsonb_array_elements(p_config -> 'secrets') s(item)
    where jsonb_typeof(s.item) <> 'string' or s.item #>> '{}' !~ '^[A-Za-z0-9][A-Za-z0-9_-]*([.][A-Za-z0-9_-]+)*$'
      or octet_length(s.item #>> '{}') > 100))
  then
    v_problem := 'it needs the names of one to four secrets';
  end if;
  if v_problem is null and p_config ? 'redactFields' and (
    jsonb_array_length(p_config -> 'redactFields') not between 1 and 100 or exists (
      select from jsonb_array_elements(p_config -> 'redactFields') f(field)
      where jsonb_typeof(f.field) <> 'string' or octet_length(f.field #>> '{}') not between 1 and 500))
  then
    v_problem := 'its fields to redact are 1 to 100 names or JSON pointers';
  end if;
  if v_problem is not null then
    raise exception 'the webhook cannot be set: %', v_problem using errcode = 'JF400';
  end if;
  v_is_new := not exists (select from jobforge.connector_configs c
    where c.tenant_id = p_tenant_id and c.kind = 'webhook.in' and c.name = p_name);
  insert into jobforge.connector_configs as c (tenant_id, kind, name, project_id, config, set_at)
  values (p_tenant_id, 'webhook.in', p_name, p_project_id, p_config, jobforge.now())
  on conflict (tenant_id, kind, name) do update
    set project_id = excluded.project_id, config = excluded.config, set_at = excluded.set_at;
  perform jobforge.record_audit(p_tenant_id, 'set_incoming_webhook', 'done', null, null, jsonb_build_object('name', p_name));
  return v_is_new;
end $$;
comment on function jobforge.set_incoming_webhook(text, text, jsonb, text) is
  'Set up who is heard at /hooks, or change the webhook of this name; true if it is new.';

reset role;
