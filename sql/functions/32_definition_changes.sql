-- What lists of registered definitions are searched by, for servers that keep it in memory.
--
-- Called by jobforge_api for each list. A transaction that was under way when a server asked may commit later with an older
-- number than others; so what the server remembers is the oldest number that was under way, and all changes since that
-- come back, some of them twice. Nothing here takes a lock.

set local role jobforge_rpc;

-- settled is what to pass as p_since next time: where it is less than the last one, this is another database than before, and
-- the server has to ask for all. Numbers that this database has not reached yet come from a dump of another, and do not count
-- as changes. One row without a name comes back where nothing changed.
create or replace function jobforge.changed_definitions(
  p_tenant_id text, p_since bigint default 0, p_after text default null, p_limit integer default 1000)
returns table (settled bigint, job_type text, job_version text, search_text text, tags text[], labels text, is_listed boolean)
language plpgsql stable
security definer set search_path = jobforge, pg_temp
set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
  v_claims jsonb := jobforge.confining_claims();
  v_settled bigint := pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text::bigint;
  v_next bigint := pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::bigint;
begin
  perform jobforge.require_tenant(p_tenant_id);
  if coalesce(p_limit, 0) not between 1 and 1000 then
    raise exception 'a page holds 1 to 1,000 definitions, not %', p_limit using errcode = 'JF400';
  end if;
  return query
  select v_settled, r.job_type::text, r.job_version::text, r.search_text, r.tags, r.labels::text,
    r.job_version is not null and r.removed_at is null and not r.is_hidden
  from jobforge.registered_jobs r
  where r.tenant_id = p_tenant_id and (p_after is null or r.job_type > p_after collate "C")
    and (p_since = 0 or (r.changed_in >= p_since and r.changed_in < v_next))
    and (v_claims is null or jobforge.allows_type(v_claims, r.job_type))
  order by r.job_type limit p_limit;
  if not found then
    return query select v_settled, null::text, null::text, null::text, null::text[], null::text, null::boolean;
  end if;
end $$;
comment on function jobforge.changed_definitions(text, bigint, text, integer) is
  'What registered definitions are searched by, of those that changed since a number of this function; 0 for all.';

reset role;
