-- What the database itself saw, written by triggers of the soak in the transaction that did it. No part of the product.
create schema soak;
create table soak.claims (seq bigint generated always as identity, tenant_id text, job_id uuid, epoch integer, lease_id uuid,
  worker_id text, at timestamptz not null default clock_timestamp());
create table soak.ends (seq bigint generated always as identity, tenant_id text, job_id uuid, before text, after text, epoch integer,
  attempt_no integer, result_hash text, at timestamptz not null default clock_timestamp());
create table soak.orders (nonce text primary key, at timestamptz not null default clock_timestamp());
grant usage on schema soak to jobforge_api;
grant insert, select on soak.orders to jobforge_api;
create function soak.note_claim() returns trigger language plpgsql security definer set search_path = soak, pg_temp as $$
begin
  insert into soak.claims (tenant_id, job_id, epoch, lease_id, worker_id)
  select new.tenant_id, u.job_id, u.epoch, new.lease_id, new.worker_id from unnest(new.job_ids, new.epochs) u(job_id, epoch);
  return null;
end $$;
create trigger soak_claims after insert on jobforge.leases for each row execute function soak.note_claim();
create function soak.note_end() returns trigger language plpgsql security definer set search_path = soak, pg_temp as $$
begin
  insert into soak.ends (tenant_id, job_id, before, after, epoch, attempt_no, result_hash)
  values (new.tenant_id, new.id, old.final_status, new.final_status, new.epoch, new.attempt_no, md5(new.result::text));
  return null;
end $$;
create trigger soak_ends after update on jobforge.jobs for each row
  when (old.final_status is distinct from new.final_status or old.result is distinct from new.result)
  execute function soak.note_end();
