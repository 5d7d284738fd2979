-- Debounce: a newer run of a key takes the place of the one that has not started.

set local role jobforge_owner;

create table jobforge.debounces (
  tenant_id text collate "C" not null,
  debounce_key text collate "C" not null,
  job_id uuid not null,
  first_at timestamptz not null,
  due_at timestamptz not null,
  constraint debounces_pkey primary key (tenant_id, debounce_key),
  constraint debounces_key_fits check (octet_length(debounce_key) <= 400)
) with (fillfactor = 50);
comment on table jobforge.debounces is
  'The last run that was enqueued under each debounce key. Its row lock is the key''s lock: of two at once the one that commits last stays.';
comment on column jobforge.debounces.debounce_key is 'Job type and key of the input.';
comment on column jobforge.debounces.first_at is 'When the first of those was enqueued that were replaced one by the other; it bounds the wait of all.';
comment on column jobforge.debounces.due_at is 'When the run may start; long after it the row is forgotten.';

reset role;
