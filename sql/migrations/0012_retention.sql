-- How long ended runs are kept, and what finds expired idempotency keys.

set local role jobforge_owner;

alter table jobforge.tenants add column retain_days integer not null default 90;
-- A key answers for thirty days after its first use, and must not name a run that is gone.
alter table jobforge.tenants add constraint tenants_runs_outlive_their_keys check (retain_days between 30 and 36500);
comment on column jobforge.tenants.retain_days is 'Days that a run is kept after its end.';

-- keys are written in the order of time, so a block range says enough, and an enqueue hardly pays for it
create index idempotency_keys_by_end on jobforge.idempotency_keys using brin (tenant_id, expires_at) with (pages_per_range = 32);
comment on index jobforge.idempotency_keys_by_end is 'purge_finished: keys that expired.';

reset role;
