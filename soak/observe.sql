-- What the database itself saw, written by triggers of the soak in the transaction that did it. No part of the product.
create schema soak;
create table soak.claims (seq bigint generated always as identity, tenant_id text, job_id uuid, epoch integer, lease_id uuid,
  worker_id text, is_alone boolean, claimed_at timestamptz, at timestamptz not null default clock_timestamp());
create index on soak.claims (at);
create table soak.ends (seq bigint generated always as identity primary key, tenant_id text, job_id uuid, before text, after text, epoch integer,
  attempt_no integer, result_hash text, lsn pg_lsn, at timestamptz not null default clock_timestamp());
-- One of the runs that each statement made. A transaction that can be seen is on disk beyond what lsn says.
create table soak.arrivals (seq bigint generated always as identity primary key, job_id uuid, lsn pg_lsn);
create table soak.retries (tenant_id text, job_id uuid, epoch integer, run_at timestamptz, at timestamptz not null default clock_timestamp());
create table soak.expiries (tenant_id text, worker_id text, lease_until timestamptz, at timestamptz not null default clock_timestamp());
create table soak.progress (seq bigint generated always as identity, tenant_id text, job_id uuid, epoch integer, done float8);
create table soak.orders (nonce text primary key, at timestamptz not null default clock_timestamp());
-- Schedules see a clock of their own, sixty times as fast and two days slow, so that what they start is due at once.
create table soak.clock (began timestamptz not null);
insert into soak.clock values (clock_timestamp());
create function soak.fast_now() returns timestamptz language sql stable security definer set search_path = soak, pg_temp as
  $$ select c.began - interval '2 days' + 60 * (clock_timestamp() - c.began) from soak.clock c $$;
grant usage on schema soak to public;
grant insert, select on soak.orders to jobforge_api;
create function soak.note_claim() returns trigger language plpgsql security definer set search_path = soak, pg_temp as $$
begin
  insert into soak.claims (tenant_id, job_id, epoch, lease_id, worker_id, is_alone, claimed_at)
  select new.tenant_id, u.job_id, u.epoch, new.lease_id, new.worker_id, new.is_suspect and cardinality(new.job_ids) = 1, new.claimed_at from unnest(new.job_ids, new.epochs) u(job_id, epoch);
  return null;
end $$;
create trigger soak_claims after insert on jobforge.leases for each row execute function soak.note_claim();
create function soak.note_expiry() returns trigger language plpgsql security definer set search_path = soak, pg_temp as $$
begin
  insert into soak.expiries (tenant_id, worker_id, lease_until) values (old.tenant_id, old.worker_id, old.lease_until);
  return null;
end $$;
create trigger soak_expiries after delete on jobforge.leases for each row
  when (old.lease_until < clock_timestamp()) execute function soak.note_expiry();
create function soak.note_end() returns trigger language plpgsql security definer set search_path = soak, pg_temp as $$
begin
  insert into soak.ends (tenant_id, job_id, before, after, epoch, attempt_no, result_hash, lsn)
  values (new.tenant_id, new.id, old.final_status, new.final_status, new.epoch, new.attempt_no, md5(new.result::text), pg_current_wal_insert_lsn());
  return null;
end $$;
create trigger soak_ends after update on jobforge.jobs for each row
  when (old.final_status is distinct from new.final_status or old.result is distinct from new.result)
  execute function soak.note_end();
create function soak.note_arrival() returns trigger language plpgsql security definer set search_path = soak, pg_temp as $$
begin
  insert into soak.arrivals (job_id, lsn) select n.id, pg_current_wal_insert_lsn() from made n limit 1;
  return null;
end $$;
create trigger soak_arrivals after insert on jobforge.jobs referencing new table as made
  for each statement execute function soak.note_arrival();
create function soak.note_retry() returns trigger language plpgsql security definer set search_path = soak, pg_temp as $$
begin
  insert into soak.retries (tenant_id, job_id, epoch, run_at) values (new.tenant_id, new.id, new.epoch, new.run_at);
  return null;
end $$;
create trigger soak_retries after update on jobforge.jobs for each row
  when (old.run_at is distinct from new.run_at and old.final_status is null and new.final_status is null)
  execute function soak.note_retry();
create function soak.note_progress() returns trigger language plpgsql security definer set search_path = soak, pg_temp as $$
begin
  insert into soak.progress (tenant_id, job_id, epoch, done) values (new.tenant_id, new.job_id, new.epoch, new.done);
  return null;
end $$;
create trigger soak_progress after insert or update on jobforge.run_progress for each row
  when (new.done is not null) execute function soak.note_progress();
