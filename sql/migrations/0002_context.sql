-- What makes a tenant's scope trustworthy: keys that sign it, and logins that are bound to one tenant.
--
-- A scope is set by `set_config`, which the role that serves callers may do as well as any other. With a key the server
-- signs what it sets, and the functions verify it; without one a scope is what it says. A bound login needs neither: its
-- tenant follows from who logged in. Both tables are read by functions of jobforge_owner alone.

-- Roles are shared by all databases of a cluster, so another database may have made them, also at this moment. One for
-- each scope of a token that has functions in SQL; a bound login is a member of those that it was given.
do $$
begin
  begin create role jobforge_tenant nologin; exception when duplicate_object or unique_violation then null; end;
  begin create role jobforge_jobs_read nologin; exception when duplicate_object or unique_violation then null; end;
  begin create role jobforge_jobs_execute nologin; exception when duplicate_object or unique_violation then null; end;
  begin create role jobforge_jobs_cancel nologin; exception when duplicate_object or unique_violation then null; end;
  begin create role jobforge_jobs_retry nologin; exception when duplicate_object or unique_violation then null; end;
end $$;

set local role jobforge_owner;

grant usage on schema jobforge to jobforge_tenant;

create table jobforge.context_keys (
  key_id text collate "C" not null,
  slot smallint not null,
  inner_pad bytea not null,
  outer_pad bytea not null,
  is_enforced boolean not null default false,
  created_at timestamptz not null,
  constraint context_keys_pkey primary key (key_id),
  -- one in use and one that replaces it
  constraint context_keys_are_two_at_most unique (slot),
  constraint context_keys_slot_is_known check (slot in (1, 2)),
  constraint context_keys_id_is_well_formed check (key_id ~ '^[a-z0-9]{1,16}$'),
  constraint context_keys_pads_are_blocks check (octet_length(inner_pad) = 64 and octet_length(outer_pad) = 64)
);
comment on table jobforge.context_keys is 'Keys that servers sign a scope with. Nobody reads them but the functions that verify.';
comment on column jobforge.context_keys.inner_pad is 'The key, filled to 64 bytes, xor 0x36: what HMAC-SHA256 hashes first.';
comment on column jobforge.context_keys.outer_pad is 'The same xor 0x5c.';
comment on column jobforge.context_keys.is_enforced is 'Whether scopes without a good signature are refused; one such key is enough.';
comment on index jobforge.context_keys_are_two_at_most is 'Two keys at most: one in use and one that replaces it.';

create table jobforge.tenant_logins (
  login_name text collate "C" not null,
  tenant_id text collate "C" not null,
  claims jsonb not null default '{}',
  created_at timestamptz not null,
  constraint tenant_logins_pkey primary key (login_name),
  constraint tenant_logins_tenant_is_well_formed check (tenant_id ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$'),
  constraint tenant_logins_claims_are_an_object check (jsonb_typeof(claims) = 'object'),
  constraint tenant_logins_are_not_of_the_product check (login_name not like 'jobforge\_%')
);
comment on table jobforge.tenant_logins is 'Logins of applications that call the functions by plain SQL, each bound to one tenant.';
comment on column jobforge.tenant_logins.claims is 'What a token of the same rights would carry, such as {"projects": ["p1"]}.';

reset role;
