-- When a lane woke: a tenant that just came has its first turn at once, however many others are in line.

set local role jobforge_owner;

alter table jobforge.lanes add column woken_at timestamptz not null default '-infinity';
comment on column jobforge.lanes.woken_at is 'When the row was made by an enqueue: for half a second after it the tenant goes first in claims.';

reset role;
