-- The audit log after it was written: refusals, reading, sealing, and the guard that nothing of it is ever changed.
-- Called by the api for its own tenant, and by the auditor, who seals and exports, for all. Takes no row locks; one
-- advisory lock keeps two sealers apart.

set local role jobforge_owner;

-- No login has the right to change a row, and no row policy would let the functions' owners do it. This also stops the
-- owner of the table and a superuser who did not mean it; whoever takes the trigger away is found by the chain.
create or replace function jobforge.refuse_audit_change() returns trigger
language plpgsql
set search_path = jobforge, pg_temp
as $$
begin
  raise exception 'rows of % are only ever added', tg_table_name using errcode = 'JF403',
    hint = 'What was written down stays: a correction is a row of its own.';
end $$;
comment on function jobforge.refuse_audit_change() is 'Refuse to change or remove rows of the audit log and its seals.';

create or replace trigger audit_log_is_append_only before update or delete or truncate on jobforge.audit_log
  for each statement execute function jobforge.refuse_audit_change();
create or replace trigger audit_seals_are_append_only before update or delete or truncate on jobforge.audit_seals
  for each statement execute function jobforge.refuse_audit_change();

reset role;

set local role jobforge_rpc;

-- Whoever is refused must not be able to fill the log: 100 rows a minute for one login and tenant, then they are counted.
-- Servers never wait here: who finds another one counting writes its row. A bound login waits, and for nobody but itself,
-- or it could hold the count in one session and fill the log from another.
create or replace function jobforge.admit_denial(p_tenant_id text, p_count integer) returns integer
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_now timestamptz := jobforge.now();
  v_window jobforge.denial_windows;
begin
  if session_user in ('jobforge_api', 'jobforge_worker') then
    if not pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended(p_tenant_id || ' ' || session_user, 5751)) then
      return p_count;
    end if;
  else
    perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(p_tenant_id || ' ' || session_user, 5751));
  end if;
  insert into jobforge.denial_windows (tenant_id, login_name, started_at, written, unwritten)
  values (p_tenant_id, session_user, v_now, 0, 0)
  on conflict (tenant_id, login_name) do nothing;
  select * into v_window from jobforge.denial_windows w
  where w.tenant_id = p_tenant_id and w.login_name = session_user for update;
  if v_window.started_at <= v_now - interval '1 minute' then
    if v_window.unwritten > 0 then
      perform jobforge.record_audit(p_tenant_id, 'refusals', 'refused', null, null,
        jsonb_build_object('reason', 'TOO_MANY_TO_WRITE', 'count', v_window.unwritten, 'since', v_window.started_at));
    end if;
    v_window.started_at := v_now;
    v_window.written := 0;
    v_window.unwritten := 0;
  end if;
  if v_window.written >= 100 then
    v_window.unwritten := v_window.unwritten + p_count;
    p_count := 0;
  else
    v_window.written := v_window.written + 1;
  end if;
  update jobforge.denial_windows w
  set started_at = v_window.started_at, written = v_window.written, unwritten = v_window.unwritten
  where w.tenant_id = p_tenant_id and w.login_name = session_user;
  return p_count;
end $$;
comment on function jobforge.admit_denial(text, integer) is 'Say for how many refusals a row may be written now; 0 when they were only counted.';

-- A refusal rolls back whatever its transaction wrote, its own audit row included, so it is written down by a call of its own.
create or replace function jobforge.record_denial(
  p_tenant_id text, p_action text, p_reason text, p_job_type text default null, p_job_id uuid default null,
  p_count integer default 1)
returns void
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
begin
  perform jobforge.require_tenant(p_tenant_id);
  if p_action is null or p_action !~ '^[a-z][a-z0-9_-]{0,62}$' or p_reason is null or p_reason !~ '^[A-Za-z][A-Za-z0-9_.:-]{0,99}$'
    or coalesce(p_count, 0) not between 1 and 1000000
  then
    raise exception 'a refusal has an action and a reason, each a word, and a count from 1' using errcode = 'JF400';
  end if;
  p_count := jobforge.admit_denial(p_tenant_id, p_count);
  if p_count > 0 then
    perform jobforge.record_audit(p_tenant_id, p_action, 'refused', p_job_id, left(p_job_type, 100),
      jsonb_build_object('reason', p_reason) || case when p_count > 1 then jsonb_build_object('count', p_count) else '{}'::jsonb end);
  end if;
end $$;
comment on function jobforge.record_denial(text, text, text, text, uuid, integer) is
  'Write down that a call was refused, and why; the count says how many like it this row stands for.';

-- Whoever is confined to projects or job types sees what was done to runs of those, and what its own token did.
create or replace function jobforge.list_audit(
  p_tenant_id text, p_action text default null, p_outcome text default null, p_token_id text default null,
  p_job_id uuid default null, p_since timestamptz default null, p_before text default null, p_limit integer default 50)
returns table (place text, occurred_at timestamptz, action text, outcome text, actor text, token_id text, tool text,
  trace_id text, job_id uuid, job_type text, detail jsonb)
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_projects text[];
  v_claims jsonb;
  v_own_token text := nullif(current_setting('jobforge.token_id', true), '');
begin
  perform jobforge.require_tenant(p_tenant_id);
  v_projects := jobforge.confined_projects();
  v_claims := jobforge.confining_claims();
  if coalesce(p_limit, 0) not between 1 and 1000 then
    raise exception 'a page has 1 to 1,000 rows' using errcode = 'JF400';
  end if;
  if p_before !~ '^[0-9]{1,9}[.][0-9]{1,18}[.][0-9a-f-]{36}$' then
    raise exception 'this is no place in the audit log' using errcode = 'JF400', hint = 'Pass the place of the last row that was read.';
  end if;
  return query
  select a.era || '.' || a.xact_no || '.' || a.id, a.occurred_at, a.action, a.outcome, a.actor, a.token_id, a.tool,
    a.trace_id, a.job_id, a.job_type, a.detail
  from jobforge.audit_log a
  where a.tenant_id = p_tenant_id
    and (p_action is null or a.action = p_action)
    and (p_outcome is null or a.outcome = p_outcome)
    and (p_token_id is null or a.token_id = p_token_id)
    and (p_job_id is null or a.job_id = p_job_id)
    and (p_since is null or a.occurred_at >= p_since)
    and (p_before is null or (a.era, a.xact_no, a.id)
      < (split_part(p_before, '.', 1)::integer, split_part(p_before, '.', 2)::bigint, split_part(p_before, '.', 3)::uuid))
    and (a.token_id = v_own_token
      or ((v_claims is null or (a.job_type is not null and jobforge.allows_type(v_claims, a.job_type)))
        and (v_projects is null or exists (
          select from jobforge.jobs j
          where j.tenant_id = p_tenant_id and j.id = a.job_id and j.project_id = any (v_projects)))))
  order by a.era desc, a.xact_no desc, a.id desc
  limit p_limit;
end $$;
comment on function jobforge.list_audit(text, text, text, text, uuid, timestamptz, text, integer) is
  'A page of the tenant''s audit log, newest first; place is where the next page goes on.';

reset role;
set local role jobforge_sys;

create or replace function jobforge.lock_sealing() returns boolean
language sql volatile
security definer set search_path = jobforge, pg_temp
as $$ select pg_catalog.pg_try_advisory_xact_lock(5750, 1) $$;
comment on function jobforge.lock_sealing() is 'Take the right to seal until the end of this transaction; false while another has it.';

-- A loose walk over the tenants of the log: its cost follows the number of tenants, not of rows.
create or replace function jobforge.list_unsealed(p_after_tenant text default '', p_limit integer default 100)
returns table (tenant_id text)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_horizon bigint := pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text::bigint;
begin
  if exists (
    with recursive tenant (tenant_id) as (
      (select s.tenant_id from jobforge.audit_seals s order by s.tenant_id limit 1)
      union all
      select n.tenant_id from tenant cross join lateral (
        select s.tenant_id from jobforge.audit_seals s where s.tenant_id > tenant.tenant_id order by s.tenant_id limit 1) n
    )
    select from tenant cross join lateral (
      select s.last_era, s.last_xact_no from jobforge.audit_seals s
      where s.tenant_id = tenant.tenant_id order by s.seal_no desc limit 1) l
    where l.last_era = jobforge.audit_era() and l.last_xact_no >= v_horizon)
  then
    raise exception 'transactions of this cluster are numbered below those that were sealed: it was restored from another'
      using errcode = 'JF409', hint = 'As the owner: alter table jobforge.audit_log alter column era set default <one more>.';
  end if;
  return query
  with recursive tenant (tenant_id) as (
    (select a.tenant_id from jobforge.audit_log a where a.tenant_id > p_after_tenant order by a.tenant_id limit 1)
    union all
    select n.tenant_id from tenant cross join lateral (
      select a.tenant_id from jobforge.audit_log a where a.tenant_id > tenant.tenant_id order by a.tenant_id limit 1) n
  )
  select tenant.tenant_id from tenant
  left join lateral (
    select s.last_era, s.last_xact_no, s.last_id from jobforge.audit_seals s
    where s.tenant_id = tenant.tenant_id order by s.seal_no desc limit 1) l on true
  where exists (
    select from jobforge.audit_log a
    where a.tenant_id = tenant.tenant_id and (a.era < jobforge.audit_era() or a.xact_no < v_horizon)
      and (a.era, a.xact_no, a.id) > (coalesce(l.last_era, -1), coalesce(l.last_xact_no, 0), coalesce(l.last_id, '00000000-0000-0000-0000-000000000000')))
  limit p_limit;
end $$;
comment on function jobforge.list_unsealed(text, integer) is 'Tenants that have audit rows which can be sealed.';

-- The era is a constant in the catalogue, so that writing a row costs nothing more.
create or replace function jobforge.audit_era() returns integer
language sql stable
security definer set search_path = jobforge, pg_temp
as $$
  select pg_catalog.pg_get_expr(d.adbin, d.adrelid)::integer
  from pg_catalog.pg_attrdef d
  join pg_catalog.pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
  where d.adrelid = 'jobforge.audit_log'::pg_catalog.regclass and a.attname = 'era'
$$;
comment on function jobforge.audit_era() is 'The era that rows are written in now.';

-- The snapshot that tells the horizon is the one that reads the rows: all below it that will ever be there are seen.
create or replace function jobforge.read_unsealed(p_tenant_id text, p_limit integer default 1000)
returns table (tenant_id text, era integer, xact_no bigint, id uuid, occurred_at timestamptz, action text, outcome text,
  actor text, token_id text, tool text, trace_id text, job_id uuid, job_type text, detail text)
language sql volatile
security definer set search_path = jobforge, pg_temp
as $$
  select a.tenant_id, a.era, a.xact_no, a.id, a.occurred_at, a.action, a.outcome, a.actor, a.token_id, a.tool, a.trace_id,
    a.job_id, a.job_type, a.detail::text
  from jobforge.audit_log a
  left join lateral (
    select s.last_era, s.last_xact_no, s.last_id from jobforge.audit_seals s
    where s.tenant_id = p_tenant_id order by s.seal_no desc limit 1) l on true
  where a.tenant_id = p_tenant_id
    and (a.era < jobforge.audit_era()
      or a.xact_no < pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text::bigint)
    and (a.era, a.xact_no, a.id) > (coalesce(l.last_era, -1), coalesce(l.last_xact_no, 0), coalesce(l.last_id, '00000000-0000-0000-0000-000000000000'))
  order by a.era, a.xact_no, a.id
  limit least(p_limit, 10000)
$$;
comment on function jobforge.read_unsealed(text, integer) is 'The next audit rows of a tenant that can be sealed, in the order of the chain.';

create or replace function jobforge.append_seal(
  p_tenant_id text, p_seal_no bigint, p_first_row bigint, p_last_row bigint, p_last_era integer, p_last_xact_no bigint,
  p_last_id uuid, p_hashes bytea, p_sealed_at timestamptz, p_key_id text, p_signature bytea)
returns void
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_last record;
begin
  select s.seal_no, s.last_row into v_last
  from jobforge.audit_seals s where s.tenant_id = p_tenant_id order by s.seal_no desc limit 1;
  if p_seal_no is distinct from coalesce(v_last.seal_no, 0) + 1 or p_first_row is distinct from coalesce(v_last.last_row, 0) + 1 then
    raise exception 'this seal does not follow the last one' using errcode = 'JF409';
  end if;
  insert into jobforge.audit_seals (tenant_id, seal_no, first_row, last_row, last_era, last_xact_no, last_id, hashes, sealed_at,
    key_id, signature)
  values (p_tenant_id, p_seal_no, p_first_row, p_last_row, p_last_era, p_last_xact_no, p_last_id, p_hashes, p_sealed_at,
    p_key_id, p_signature);
end $$;
comment on function jobforge.append_seal(text, bigint, bigint, bigint, integer, bigint, uuid, bytea, timestamptz, text, bytea) is
  'Add the next checkpoint of a tenant.';

create or replace function jobforge.list_audit_tenants() returns table (tenant_id text)
language sql stable
security definer set search_path = jobforge, pg_temp
as $$
  select a.tenant_id from jobforge.audit_log a
  union
  select s.tenant_id from jobforge.audit_seals s
  order by 1
$$;
comment on function jobforge.list_audit_tenants() is 'Tenants that have audit rows or seals.';

create or replace function jobforge.read_seals(p_tenant_id text, p_after_seal bigint default 0, p_limit integer default 100)
returns table (tenant_id text, seal_no bigint, first_row bigint, last_row bigint, last_era integer, last_xact_no bigint,
  last_id uuid, hashes bytea, sealed_at timestamptz, key_id text, signature bytea)
language sql stable
security definer set search_path = jobforge, pg_temp
as $$
  select s.tenant_id, s.seal_no, s.first_row, s.last_row, s.last_era, s.last_xact_no, s.last_id, s.hashes, s.sealed_at, s.key_id,
    s.signature
  from jobforge.audit_seals s
  where s.tenant_id = p_tenant_id and s.seal_no > p_after_seal
  order by s.seal_no
  limit least(p_limit, 1000)
$$;
comment on function jobforge.read_seals(text, bigint, integer) is 'Seals of a tenant after one of them, oldest first.';

create or replace function jobforge.last_seal(p_tenant_id text)
returns table (seal_no bigint, last_row bigint, last_hash bytea)
language sql stable
security definer set search_path = jobforge, pg_temp
as $$
  select s.seal_no, s.last_row, substring(s.hashes from octet_length(s.hashes) - 31)
  from jobforge.audit_seals s
  where s.tenant_id = p_tenant_id
  order by s.seal_no desc
  limit 1
$$;
comment on function jobforge.last_seal(text) is 'What the next seal of a tenant goes on from.';

create or replace function jobforge.read_audit(
  p_tenant_id text, p_after_era integer default -1, p_after_xact_no bigint default 0,
  p_after_id uuid default '00000000-0000-0000-0000-000000000000', p_limit integer default 1000)
returns table (tenant_id text, era integer, xact_no bigint, id uuid, occurred_at timestamptz, action text, outcome text,
  actor text, token_id text, tool text, trace_id text, job_id uuid, job_type text, detail text)
language sql stable
security definer set search_path = jobforge, pg_temp
as $$
  select a.tenant_id, a.era, a.xact_no, a.id, a.occurred_at, a.action, a.outcome, a.actor, a.token_id, a.tool, a.trace_id,
    a.job_id, a.job_type, a.detail::text
  from jobforge.audit_log a
  where a.tenant_id = p_tenant_id and (a.era, a.xact_no, a.id) > (p_after_era, p_after_xact_no, p_after_id)
  order by a.era, a.xact_no, a.id
  limit least(p_limit, 10000)
$$;
comment on function jobforge.read_audit(text, integer, bigint, uuid, integer) is 'Audit rows of a tenant in the order of the chain, sealed or not.';

reset role;
set local role jobforge_owner;

-- What a bound login is refused is rolled back with its statement; that it was refused is counted by a sequence, which is not.
create or replace function jobforge.note_refusal() returns void
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_name text;
begin
  if session_user not in ('jobforge_api', 'jobforge_worker', 'jobforge_readonly') then
    select l.refusals_name into v_name from jobforge.tenant_logins l where l.login_name = session_user;
    if v_name is not null then
      perform pg_catalog.nextval(('jobforge.' || v_name)::regclass);
    end if;
  end if;
end $$;
comment on function jobforge.note_refusal() is 'Count that a bound login was refused; others are written down by whoever serves them.';

create or replace function jobforge.take_refusals()
returns table (tenant_id text, login_name text, count bigint)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_login record;
begin
  for v_login in
    select l.tenant_id, l.login_name, l.refusals_seen, coalesce(pg_catalog.pg_sequence_last_value(('jobforge.' || l.refusals_name)::regclass), 0) as refused
    from jobforge.tenant_logins l where l.refusals_name is not null
    order by l.login_name for update of l skip locked
  loop
    continue when v_login.refused <= v_login.refusals_seen;
    update jobforge.tenant_logins l set refusals_seen = v_login.refused where l.login_name = v_login.login_name;
    return query select v_login.tenant_id::text, v_login.login_name::text, v_login.refused - v_login.refusals_seen;
  end loop;
end $$;
comment on function jobforge.take_refusals() is 'What bound logins were refused since this was last asked.';

reset role;
set local role jobforge_sys;

create or replace function jobforge.record_refusals() returns integer
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_refused record;
  v_logins integer := 0;
begin
  for v_refused in select t.* from jobforge.take_refusals() t loop
    perform jobforge.enter_trusted_scope(v_refused.tenant_id, 'login:' || v_refused.login_name, 'sql', null);
    perform jobforge.record_audit(v_refused.tenant_id, 'refusals', 'refused', null, null,
      jsonb_build_object('reason', 'REFUSED', 'count', v_refused.count));
    v_logins := v_logins + 1;
  end loop;
  if v_logins > 0 then
    perform jobforge.leave_scope();
  end if;
  return v_logins;
end $$;
comment on function jobforge.record_refusals() is 'Write down what bound logins were refused, one row for each; any worker calls it every few seconds.';

reset role;
