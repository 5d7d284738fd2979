-- What is remembered of policy tokens: which were revoked, which were used up, and since when all of a tenant are void.
--
-- A token has no row before something happens to it. Lock order: `policy_tokens` before everything else.

set local role jobforge_owner;

create table jobforge.policy_tokens (
  tenant_id text collate "C" not null,
  token_id text collate "C" not null,
  revoked_at timestamptz,
  revoked_reason text,
  revoked_by text,
  used_at timestamptz,
  expires_at timestamptz not null,
  constraint policy_tokens_pkey primary key (tenant_id, token_id),
  constraint policy_tokens_id_fits check (octet_length(token_id) between 1 and 512),
  constraint policy_tokens_have_a_story check (num_nonnulls(revoked_at, used_at) > 0)
);
comment on table jobforge.policy_tokens is 'Tokens that were revoked, and those good for one write that were used.';
comment on column jobforge.policy_tokens.token_id is 'The claim jti of the token, or of a child that narrowed it.';
comment on column jobforge.policy_tokens.expires_at is 'When the token ends by itself at the latest: its row may be forgotten an hour later.';
create index policy_tokens_by_end on jobforge.policy_tokens (tenant_id, expires_at);
comment on index jobforge.policy_tokens_by_end is 'revoke_token: rows that may be forgotten.';

alter table jobforge.tenants add column token_epoch bigint not null default 0;
comment on column jobforge.tenants.token_epoch is 'Tokens whose claim epoch is smaller are revoked; milliseconds since 1970 unless an issuer counts otherwise.';

reset role;
