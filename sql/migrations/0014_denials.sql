-- Refusals in the audit log: how many a minute, and those of logins whose refused statement leaves nothing behind.

set local role jobforge_owner;

create table jobforge.denial_windows (
  tenant_id text collate "C" not null,
  login_name text collate "C" not null,
  started_at timestamptz not null,
  written integer not null,
  unwritten bigint not null,
  constraint denial_windows_pkey primary key (tenant_id, login_name),
  constraint denial_windows_counts_are_not_negative check (written >= 0 and unwritten >= 0)
);
comment on table jobforge.denial_windows is
  'Refusals that one login wrote down for a tenant within a minute: past some, they are only counted.';
comment on column jobforge.denial_windows.unwritten is 'Refusals that were counted and not written; the first row of the next minute says how many.';

-- A sequence is the one thing that a transaction which is rolled back has counted all the same.
alter table jobforge.tenant_logins
  add column refusals_name text collate "C",
  add column refusals_seen bigint not null default 0,
  add constraint tenant_logins_count_with_a_sequence_of_ours check (refusals_name ~ '^refusals_[0-9a-f]{32}$');
comment on column jobforge.tenant_logins.refusals_name is
  'Sequence that counts what this login was refused; null for logins of before there was one.';
comment on column jobforge.tenant_logins.refusals_seen is 'How many of them are in the audit log.';

reset role;
