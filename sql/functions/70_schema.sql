-- What was applied to this database, for processes that serve and may not read the migrator's table.
-- Called by readiness checks and `jobforge migrate --check`; takes no locks.

set local role jobforge_owner;

-- Owned by the owner of schema_migrations, the only role its row policy lets pass.
create or replace function jobforge.applied_files() returns table (name text, sha256 text)
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
begin
  return query select m.name::text, m.sha256 from jobforge.schema_migrations m;
end $$;
comment on function jobforge.applied_files() is 'Files of sql/ that were applied, with the hashes they had.';

reset role;
