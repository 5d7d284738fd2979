-- What the audit log needs to be sealed: an order that can no longer change, and the checkpoints themselves.
--
-- A row's id is made when it is written, and it becomes visible when its transaction commits, which may be much later. The
-- order of the chain is therefore (era, xact_no, id): once every transaction below a number has ended, no row below it can
-- still appear, so what is below that horizon may be sealed without locking anything or anybody. Numbers of transactions
-- begin anew when a dump is restored into another cluster; the era, which is a constant default, is then raised by hand.

set local role jobforge_owner;

alter table jobforge.audit_log
  add column era integer not null default 0,
  add column xact_no bigint not null default (pg_catalog.pg_current_xact_id()::text::bigint);
alter table jobforge.audit_log drop constraint audit_log_pkey;
alter table jobforge.audit_log add constraint audit_log_pkey primary key (tenant_id, era, xact_no, id);
comment on column jobforge.audit_log.era is
  'Counts the clusters this log has lived in: transactions are numbered anew in each, so the operator raises the default after a restore.';
comment on column jobforge.audit_log.xact_no is
  'Transaction that wrote the row; era, xact_no and id are the order in which rows are sealed.';
comment on column jobforge.audit_log.outcome is 'What became of the call; refused when it was not allowed, with the reason in detail.';

create table jobforge.audit_seals (
  tenant_id text collate "C" not null,
  seal_no bigint not null,
  first_row bigint not null,
  last_row bigint not null,
  last_era integer not null,
  last_xact_no bigint not null,
  last_id uuid not null,
  hashes bytea not null,
  sealed_at timestamptz not null,
  key_id text not null,
  signature bytea not null,
  constraint audit_seals_pkey primary key (tenant_id, seal_no),
  constraint audit_seals_count_from_one check (seal_no >= 1 and first_row >= 1),
  constraint audit_seals_hold_a_hash_for_each_row check (octet_length(hashes) = 32 * (last_row - first_row + 1) and last_row >= first_row),
  constraint audit_seals_are_signed check (octet_length(signature) = 64 and char_length(key_id) between 1 and 100)
);
comment on table jobforge.audit_seals is
  'Signed checkpoints of the audit log, counted per tenant: what was written up to here can no longer change unnoticed.';
comment on column jobforge.audit_seals.seal_no is 'Counts the seals of a tenant from 1, without a gap.';
comment on column jobforge.audit_seals.first_row is 'Place of its first row in the tenant''s whole log, counted from 1.';
comment on column jobforge.audit_seals.last_row is 'Place of its last row, so the number of rows that are sealed up to here.';
comment on column jobforge.audit_seals.hashes is
  'One SHA-256 for each row, 32 bytes: of the hash before it and the row''s canonical form. Only the last is signed; the others name the first row that was changed.';
comment on column jobforge.audit_seals.signature is 'Ed25519 over the checkpoint''s canonical form; the key is with the sealing process, not here.';

reset role;

-- Where connecting is not everybody's right, the embedded server for one, the sealer's login needs it.
do $$
begin
  execute pg_catalog.format('grant connect on database %I to jobforge_auditor', pg_catalog.current_database());
exception when insufficient_privilege then
  raise notice 'the owner of the database must let jobforge_auditor connect, or the audit log is not sealed';
end $$;
