-- What the operator's jobs read: facts about this Postgres, about the work of all tenants, and one tenant's runs for reports.
--
-- Called by handlers (ops.database.scan, report.generate) inside a read-only transaction of a worker. They return facts;
-- what is healthy is judged in Python, where the advice is written. No locks beyond those of reading. The scan functions
-- belong to jobforge_sys and never return an input, a result or a query text; read_runs belongs to jobforge_rpc and sees
-- the tenant of a living claim alone.

set local role jobforge_sys;

create or replace function jobforge.scan_settings() returns table (name text, setting text, is_restart_pending boolean)
language sql stable
security definer set search_path = jobforge, pg_temp
as $$
  select s.name, s.setting, s.pending_restart
  from pg_catalog.pg_settings s
  where s.name in ('server_version_num', 'fsync', 'synchronous_commit', 'full_page_writes', 'autovacuum', 'track_counts',
    'track_activities', 'max_connections', 'shared_buffers', 'data_checksums', 'idle_in_transaction_session_timeout',
    'max_prepared_transactions', 'autovacuum_freeze_max_age', 'row_security', 'default_transaction_isolation')
  order by s.name
$$;
comment on function jobforge.scan_settings() is 'Settings of the server that decide over durability, upkeep and limits.';

create or replace function jobforge.scan_database()
returns table (bytes bigint, sessions integer, max_sessions integer, cache_hits bigint, cache_reads bigint, deadlocks bigint,
  temp_bytes bigint, rollbacks bigint, commits bigint, xid_age bigint, horizon_age bigint, stats_reset_at timestamptz,
  sees_all_sessions boolean)
language sql stable
security definer set search_path = jobforge, pg_temp
as $$
  -- not pg_database_size, which needs a right to connect that the owner of this function may not have
  select (select sum(pg_catalog.pg_total_relation_size(r.oid))::bigint from pg_catalog.pg_class r where r.relkind in ('r', 'm')),
    (select sum(x.numbackends)::integer from pg_catalog.pg_stat_database x),
    pg_catalog.current_setting('max_connections')::integer, d.hits, d.reads, d.deadlocks, d.temp_bytes, d.rollbacks,
    d.commits, d.xid_age,
    -- how many transactions ago the oldest one began that has written: until it ends no dead row after it can be removed
    pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::bigint
      - pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text::bigint,
    d.stats_reset, pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'usage')
  from (
    select s.blks_hit as hits, s.blks_read as reads, s.deadlocks, s.temp_bytes, s.xact_rollback as rollbacks,
      s.xact_commit as commits, s.stats_reset, pg_catalog.age(c.datfrozenxid)::bigint as xid_age
    from pg_catalog.pg_stat_database s
    join pg_catalog.pg_database c on c.oid = s.datid
    where s.datname = pg_catalog.current_database()) d
$$;
comment on function jobforge.scan_database() is 'Size, sessions and counters of this database.';

create or replace function jobforge.scan_tables()
returns table (table_name text, is_ours boolean, total_bytes bigint, table_bytes bigint, index_bytes bigint, live_rows bigint,
  dead_rows bigint, seq_scans bigint, seq_rows bigint, index_scans bigint, last_vacuum_at timestamptz,
  last_analyze_at timestamptz, is_rls_enabled boolean, is_rls_forced boolean, policies integer)
language sql stable
security definer set search_path = jobforge, pg_temp
as $$
  select format('%I.%I', s.schemaname, s.relname), s.schemaname = 'jobforge', pg_catalog.pg_total_relation_size(s.relid),
    pg_catalog.pg_table_size(s.relid), pg_catalog.pg_indexes_size(s.relid), s.n_live_tup, s.n_dead_tup, s.seq_scan,
    s.seq_tup_read, coalesce(s.idx_scan, 0), greatest(s.last_vacuum, s.last_autovacuum),
    greatest(s.last_analyze, s.last_autoanalyze), c.relrowsecurity, c.relforcerowsecurity,
    (select count(*)::integer from pg_catalog.pg_policy p where p.polrelid = s.relid)
  from pg_catalog.pg_stat_user_tables s
  join pg_catalog.pg_class c on c.oid = s.relid
  order by 3 desc, 1
$$;
comment on function jobforge.scan_tables() is 'Size, rows, scans, upkeep and row security of each table of this database.';

create or replace function jobforge.scan_indexes()
returns table (index_name text, table_name text, is_ours boolean, bytes bigint, scans bigint, is_valid boolean,
  is_needed boolean)
language sql stable
security definer set search_path = jobforge, pg_temp
as $$
  select format('%I.%I', s.schemaname, s.indexrelname), format('%I.%I', s.schemaname, s.relname), s.schemaname = 'jobforge',
    pg_catalog.pg_relation_size(s.indexrelid), s.idx_scan, i.indisvalid and i.indisready,
    i.indisunique or i.indisexclusion or i.indisreplident
  from pg_catalog.pg_stat_user_indexes s
  join pg_catalog.pg_index i on i.indexrelid = s.indexrelid
  order by 4 desc, 1
$$;
comment on function jobforge.scan_indexes() is 'Size, use and validity of each index of this database; a needed one holds a rule.';

create or replace function jobforge.scan_foreign_keys() returns table (constraint_name text, table_name text, is_indexed boolean)
language sql stable
security definer set search_path = jobforge, pg_temp
as $$
  select k.conname::text, format('%I.%I', n.nspname, c.relname),
    exists (
      select from pg_catalog.pg_index i
      where i.indrelid = k.conrelid and i.indisvalid and i.indpred is null
        and (i.indkey::smallint[])[0:cardinality(k.conkey) - 1] @> k.conkey)
  from pg_catalog.pg_constraint k
  join pg_catalog.pg_class c on c.oid = k.conrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where k.contype = 'f' and k.conparentid = 0
  order by 2, 1
$$;
comment on function jobforge.scan_foreign_keys() is 'Foreign keys, and whether an index leads with their columns.';

create or replace function jobforge.scan_sessions()
returns table (kind text, subject text, role_name text, age_ms bigint, is_idle boolean)
language sql stable
security definer set search_path = jobforge, pg_temp
as $$
  select 'transaction', 'process ' || a.pid, a.usename::text,
    (extract(epoch from pg_catalog.clock_timestamp() - a.xact_start) * 1000)::bigint, a.state like 'idle in transaction%'
  from pg_catalog.pg_stat_activity a
  where a.xact_start is not null and a.pid <> pg_catalog.pg_backend_pid() and a.backend_type = 'client backend'
  union all
  select 'prepared', p.gid, p.owner::text,
    (extract(epoch from pg_catalog.clock_timestamp() - p.prepared) * 1000)::bigint, true
  from pg_catalog.pg_prepared_xacts p
  union all
  select 'slot', s.slot_name::text, null, null, not s.active
  from pg_catalog.pg_replication_slots s
  where s.xmin is not null or s.catalog_xmin is not null or s.restart_lsn is not null
  order by 4 desc nulls last
$$;
comment on function jobforge.scan_sessions() is 'What can hold back the removal of dead rows: transactions, prepared transactions, replication slots.';

create or replace function jobforge.scan_rights() returns table (kind text, subject text, detail text)
language sql stable
security definer set search_path = jobforge, pg_temp
as $$
  select 'role_bypasses_rls', r.rolname::text, case when r.rolsuper then 'superuser' else 'bypassrls' end
  from pg_catalog.pg_roles r
  where (r.rolsuper or r.rolbypassrls) and (r.rolname = session_user or r.rolname in ('jobforge_owner', 'jobforge_rpc',
    'jobforge_sys', 'jobforge_admin', 'jobforge_api', 'jobforge_worker', 'jobforge_scheduler', 'jobforge_readonly', 'jobforge_auditor'))
  union all
  select 'public_can_execute', 'jobforge.' || f.oid::pg_catalog.regprocedure::text, null
  from pg_catalog.pg_proc f
  cross join lateral pg_catalog.aclexplode(coalesce(f.proacl, pg_catalog.acldefault('f', f.proowner))) a
  where f.pronamespace = 'jobforge'::pg_catalog.regnamespace and a.grantee = 0 and a.privilege_type = 'EXECUTE'
  union all
  select 'login_has_table_rights', 'jobforge.' || c.relname, coalesce(r.rolname, 'public') || ' ' || lower(a.privilege_type)
  from pg_catalog.pg_class c
  cross join lateral pg_catalog.aclexplode(c.relacl) a
  left join pg_catalog.pg_roles r on r.oid = a.grantee
  where c.relnamespace = 'jobforge'::pg_catalog.regnamespace and c.relkind in ('r', 'p') and (a.grantee = 0 or r.rolcanlogin)
  union all
  select 'unsafe_search_path', 'jobforge.' || f.oid::pg_catalog.regprocedure::text, null
  from pg_catalog.pg_proc f
  where f.pronamespace = 'jobforge'::pg_catalog.regnamespace and f.prosecdef
    and not exists (select from unnest(f.proconfig) o(option) where o.option like 'search\_path=%')
  union all
  select 'definer_bypasses_rls', 'jobforge.' || f.oid::pg_catalog.regprocedure::text, r.rolname::text
  from pg_catalog.pg_proc f
  join pg_catalog.pg_roles r on r.oid = f.proowner
  where f.pronamespace = 'jobforge'::pg_catalog.regnamespace and f.prosecdef and (r.rolsuper or r.rolbypassrls)
  union all
  select 'public_can_create', n.nspname::text, null
  from pg_catalog.pg_namespace n
  cross join lateral pg_catalog.aclexplode(n.nspacl) a
  where n.nspname in ('jobforge', 'public') and a.grantee = 0 and a.privilege_type = 'CREATE'
  order by 1, 2, 3
$$;
comment on function jobforge.scan_rights() is 'Rights that should not exist: what passes row security, and what everybody may do.';

create or replace function jobforge.scan_work()
returns table (kind text, subject text, quantity bigint, oldest_at timestamptz, detail text)
language sql stable
security definer set search_path = jobforge, pg_temp
as $$
  select 'due', coalesce(r.own_type, r.job_type)::text, count(*), min(r.run_at),
    case when jobforge.has_worker(r.job_type) then null else 'no_worker' end
  from jobforge.ready r where r.run_at <= jobforge.now() group by r.job_type, r.own_type
  union all
  select 'scheduled', coalesce(r.own_type, r.job_type)::text, count(*), min(r.run_at), null
  from jobforge.ready r where r.run_at > jobforge.now() group by r.job_type, r.own_type
  union all
  select 'waiting', w.waiting_for::text, count(*), null, null from jobforge.waiting w group by w.waiting_for
  union all
  select 'running', l.worker_id, sum(cardinality(l.job_ids)), min(l.claimed_at), null
  from jobforge.leases l where l.lease_until > jobforge.now() group by l.worker_id
  union all
  select 'expired', l.worker_id, sum(cardinality(l.job_ids)), min(l.lease_until), null
  from jobforge.leases l where l.lease_until <= jobforge.now() group by l.worker_id
  union all
  select 'overdue', l.worker_id, count(*), min(l.overdue_at), null
  from jobforge.leases l where l.overdue_at <= jobforge.now() group by l.worker_id
  union all
  select 'worker', w.worker_id, w.concurrency, w.seen_at,
    case when w.seen_at > jobforge.now() - interval '1 minute' then 'alive' else 'gone' end
  from jobforge.workers w
  union all
  select 'ended', j.final_status::text, count(*), null, null
  from jobforge.jobs j where j.finished_at > jobforge.now() - interval '1 day' group by j.final_status
  order by 1, 3 desc, 2
$$;
comment on function jobforge.scan_work() is 'Backlog, running and stuck work of all tenants together, by type or worker.';

reset role;
set local role jobforge_rpc;

-- The scope is left again before the function returns, because a setting lasts to the end of the transaction: what follows
-- in the worker's transaction is as scopeless as before. An error ends the transaction, and the setting with it.
create or replace function jobforge.read_runs(
  p_tenant_id text, p_job_id uuid, p_epoch integer, p_job_type text default null, p_status text default null,
  p_since timestamptz default null, p_limit integer default 100)
returns table (job_id uuid, job_type text, status text, attempt_no integer, max_attempts integer, project_id text,
  trace_id text, created_at timestamptz, started_at timestamptz, finished_at timestamptz, error jsonb)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_project text;
begin
  perform jobforge.enter_trusted_scope(p_tenant_id, 'job:' || p_job_id, 'read_runs', null);
  select j.project_id into v_project
  from jobforge.leases l
  cross join lateral unnest(l.job_ids, l.epochs) h(job_id, epoch)
  join jobforge.jobs j on j.tenant_id = l.tenant_id and j.id = h.job_id
  where l.tenant_id = p_tenant_id and l.lease_until > jobforge.now() and h.job_id = p_job_id and h.epoch = p_epoch;
  if not found then
    raise exception 'this attempt is no longer the living one' using errcode = 'JF410';
  end if;
  return query
  select r.job_id, r.job_type::text, r.status::text, r.attempt_no::integer, r.max_attempts::integer, r.project_id::text,
    r.trace_id, r.created_at, r.started_at, r.finished_at, r.error
  from jobforge.list_runs(p_tenant_id, p_job_type, p_status, case when v_project is not null then array[v_project] end, null,
    p_since, null, p_limit + 1) r
  where r.job_id <> p_job_id
  order by r.job_id desc limit p_limit;
  perform jobforge.leave_scope();
end $$;
comment on function jobforge.read_runs(text, uuid, integer, text, text, timestamptz, integer) is
  'Runs that a running job of the same tenant may report on: those of its project, or of the tenant if it has none.';

reset role;
