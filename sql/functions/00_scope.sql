-- Clock, ids, the caller's scope and its signature, and audit: what every other function stands on.
-- Called by all of them; takes no locks but those of the rows it inserts.

set local role jobforge_owner;
grant create on schema jobforge to jobforge_rpc, jobforge_sys;
reset role;

set local role jobforge_rpc;

-- The one clock. Statements of one call should agree, so each function reads it once.
create or replace function jobforge.now() returns timestamptz
language sql stable
as $$ select pg_catalog.clock_timestamp() $$;
comment on function jobforge.now() is 'The clock that every time in this schema comes from.';

-- UUIDv7 (RFC 9562): sorts by time, so a key that leads with the tenant grows at its right edge. Before Postgres 18 it
-- is built from a random uuid: 48 bits of milliseconds, 12 bits of the fraction below, the rest random.
do $do$
begin
  if pg_catalog.current_setting('server_version_num')::integer >= 180000 then
    create or replace function jobforge.new_id() returns uuid
    language sql volatile
    as $$ select pg_catalog.uuidv7() $$;
  else
    create or replace function jobforge.new_id() returns uuid
    language sql volatile
    set search_path = pg_catalog, pg_temp
    as $$
      select encode(
        overlay(
          overlay(uuid_send(gen_random_uuid()) placing substring(int8send(t.micros / 1000) from 3) from 1 for 6)
          placing substring(int8send(28672 + (t.micros % 1000) * 4096 / 1000) from 7) from 7 for 2),
        'hex')::uuid
      from (select floor(extract(epoch from clock_timestamp()) * 1000000)::bigint as micros) t
    $$;
  end if;
end $do$;
comment on function jobforge.new_id() is 'A new id: UUIDv7, sorted by time of making.';

-- The random bits of the first are the counter of the others (RFC 9562, 6.2, method 2), without its highest bit, so that it
-- never overflows. A server that was built without OpenSSL opens /dev/urandom for each random id: a third of a large enqueue.
create or replace function jobforge.new_ids(p_count integer) returns uuid[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_first text := jobforge.new_id()::text;
  v_head text := left(v_first, 24);
  v_counter bigint := ('x0000' || right(v_first, 12))::bit(64)::bigint & 140737488355327;
begin
  return array(select (v_head || lpad(to_hex(v_counter + g.step), 12, '0'))::uuid from generate_series(0, p_count - 1) g(step));
end $$;
comment on function jobforge.new_ids(integer) is 'So many new ids, in their order.';

reset role;
set local role jobforge_owner;

-- HMAC-SHA256 out of what every Postgres has. Each part is preceded by its length, so that no two lists of parts make one
-- message; what is null is empty. Every part is what the scope says, and the last is when the signature ends, in seconds. Called immutable it would
-- not be put in the place of its call, because convert_to is only stable.
create or replace function jobforge.scope_digest(
  p_inner_pad bytea, p_outer_pad bytea, p_tenant_id text, p_actor text, p_token_id text, p_tool text, p_trace_id text,
  p_claims text, p_expires_at text)
returns bytea
language sql stable
as $$
  select pg_catalog.sha256(p_outer_pad || pg_catalog.sha256(p_inner_pad || pg_catalog.convert_to(pg_catalog.concat(
    'jobforge-scope-1 ', pg_catalog.length(p_tenant_id), ':', p_tenant_id, coalesce(pg_catalog.length(p_actor), 0), ':', p_actor,
    coalesce(pg_catalog.length(p_token_id), 0), ':', p_token_id, coalesce(pg_catalog.length(p_tool), 0), ':', p_tool,
    coalesce(pg_catalog.length(p_trace_id), 0), ':', p_trace_id, coalesce(pg_catalog.length(p_claims), 0), ':', p_claims,
    pg_catalog.length(p_expires_at), ':', p_expires_at), 'UTF8')))
$$;
comment on function jobforge.scope_digest(bytea, bytea, text, text, text, text, text, text, text) is
  'The signature of a scope under a key.';

create or replace function jobforge.scope_mac(
  p_inner_pad bytea, p_outer_pad bytea, p_tenant_id text, p_actor text, p_token_id text, p_tool text, p_trace_id text,
  p_claims text, p_expires_at text)
returns text
language sql stable
as $$
  select pg_catalog.encode(jobforge.scope_digest(p_inner_pad, p_outer_pad, p_tenant_id, p_actor, p_token_id, p_tool, p_trace_id,
    p_claims, p_expires_at), 'hex')
$$;
comment on function jobforge.scope_mac(bytea, bytea, text, text, text, text, text, text, text) is
  'The signature of a scope under a key, in hexadecimal.';

-- Who a call acts for, and why that is to be believed: because the login is bound to a tenant, because a server signed it,
-- or because this database asks for no signature. The logins of the product are never bound, so for them nothing is looked
-- up. A signature lasts a minute at most and is bound to no connection: behind a pooler the next statement has another one.
create or replace function jobforge.verified_scope(out tenant_id text, out claims text)
language plpgsql stable parallel safe
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_variable
declare
  v_signature text;
  v_is_timely boolean;
  v_is_signed boolean;
begin
  if session_user not in ('jobforge_api', 'jobforge_worker', 'jobforge_readonly') then
    select l.tenant_id, l.claims::text into tenant_id, claims from jobforge.tenant_logins l where l.login_name = session_user;
    if found then
      return;
    end if;
  end if;
  tenant_id := nullif(current_setting('jobforge.tenant_id', true), '');
  claims := coalesce(current_setting('jobforge.claims', true), '');
  if tenant_id is null then
    return;
  end if;
  v_signature := coalesce(current_setting('jobforge.signature', true), '');
  -- one statement for all there is to find out; what is compared are hashes, so that the time it takes tells nothing
  select case when split_part(v_signature, '.', 2) ~ '^[0-9]{1,12}$' then split_part(v_signature, '.', 2)::bigint
      between extract(epoch from jobforge.now())::bigint and extract(epoch from jobforge.now())::bigint + 60 else false end,
    sha256(convert_to(split_part(v_signature, '.', 3), 'UTF8')) = sha256(convert_to(jobforge.scope_mac(
      k.inner_pad, k.outer_pad, tenant_id, coalesce(current_setting('jobforge.actor', true), ''),
      coalesce(current_setting('jobforge.token_id', true), ''), coalesce(current_setting('jobforge.tool', true), ''),
      coalesce(current_setting('jobforge.trace_id', true), ''), claims, split_part(v_signature, '.', 2)), 'UTF8'))
  into v_is_timely, v_is_signed
  from jobforge.context_keys k where k.key_id = split_part(v_signature, '.', 1);
  if v_is_timely and v_is_signed then
    return;
  end if;
  if v_is_timely is null then
    if exists (select from jobforge.context_keys k where k.is_enforced) then
      raise exception 'the scope is not signed by a server' using errcode = 'JF403',
        hint = 'Set JOBFORGE_CONTEXT_KEY for the process that serves; jobforge context-key makes one.';
    end if;
    -- without keys a login that was bound in another database of this cluster must not choose its tenant in this one
    if session_user not in ('jobforge_api', 'jobforge_worker', 'jobforge_readonly') and exists (
      select from pg_catalog.pg_auth_members m
      join pg_catalog.pg_roles g on g.oid = m.roleid
      join pg_catalog.pg_roles r on r.oid = m.member
      where g.rolname = 'jobforge_tenant' and r.rolname = session_user and not m.admin_option)
    then
      raise exception 'the login % is bound to no tenant of this database', session_user using errcode = 'JF403',
        hint = 'Bind it with: jobforge login create';
    end if;
  elsif not v_is_timely then
    raise exception 'the signature of the scope has expired' using errcode = 'JF403',
      hint = 'Synchronise the clocks of this server and of the database.';
  else
    raise exception 'the scope is not what was signed' using errcode = 'JF403',
      hint = 'Enter a scope with jobforge.enter_scope, and change nothing in it.';
  end if;
end $$;
comment on function jobforge.verified_scope() is 'Tenant and claims of the scope, after its signature was checked where this database asks for one.';

-- What nearly every call is: signed, in time, by a login that is bound to no tenant. One statement, and not true for all
-- else, of which verified_scope says what it is. The time is handed over, because asking for it costs as much as a table.
create or replace function jobforge.is_signed(
  p_tenant_id text, p_actor text, p_token_id text, p_tool text, p_trace_id text, p_claims text, p_signature text, p_now timestamptz)
returns boolean
language plpgsql stable parallel safe
security definer set search_path = jobforge, pg_temp
set plan_cache_mode = force_generic_plan
as $$
begin
  if session_user not in ('jobforge_api', 'jobforge_worker', 'jobforge_readonly') then
    if exists (select from jobforge.tenant_logins l where l.login_name = session_user) then
      return false;
    end if;
  end if;
  return (
    -- what is compared are hashes, so that the time it takes tells nothing; what is signed ends with a number, and a plan for
    -- every signature reads none that is not
    select case when sha256(convert_to(split_part(p_signature, '.', 3), 'UTF8')) = sha256(convert_to(jobforge.scope_mac(
        k.inner_pad, k.outer_pad, p_tenant_id, p_actor, p_token_id, p_tool, p_trace_id, p_claims, split_part(p_signature, '.', 2)), 'UTF8'))
      then to_timestamp(split_part(p_signature, '.', 2)::float8) - p_now between interval '0' and interval '1 minute' end
    from jobforge.context_keys k where k.key_id = split_part(p_signature, '.', 1));
end $$;
comment on function jobforge.is_signed(text, text, text, text, text, text, text, timestamptz) is
  'Whether a scope has this signature, at this time, and the login is bound to no tenant.';

-- The same of a scope that comes with a call, its signature in parts: for functions that have to ask nothing else of it.
create or replace function jobforge.is_signed_with(
  p_tenant_id text, p_actor text, p_token_id text, p_tool text, p_trace_id text, p_claims text, p_key_id text, p_signed_until bigint,
  p_mac bytea, p_now timestamptz)
returns boolean
language plpgsql stable parallel safe
security definer set search_path = jobforge, pg_temp
set plan_cache_mode = force_generic_plan
as $$
begin
  return exists (
    select from jobforge.context_keys k
    where k.key_id = p_key_id
      and sha256(p_mac) = sha256(jobforge.scope_digest(k.inner_pad, k.outer_pad, p_tenant_id, p_actor, p_token_id, p_tool, p_trace_id,
        p_claims, p_signed_until::text))
      and p_signed_until - date_part('epoch', p_now) between 0 and 60
      and not exists (select from jobforge.tenant_logins l where l.login_name = session_user));
end $$;
comment on function jobforge.is_signed_with(text, text, text, text, text, text, text, bigint, bytea, timestamptz) is
  'Whether a scope has a signature that is given in its parts, at this time, and the login is bound to no tenant.';

-- A login that is bound is in its scope by itself; what it may have set beforehand is overwritten. For others: null.
create or replace function jobforge.enter_own_scope() returns text
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_login jobforge.tenant_logins;
begin
  select * into v_login from jobforge.tenant_logins l where l.login_name = session_user;
  if found then
    perform pg_catalog.set_config('jobforge.tenant_id', v_login.tenant_id, true),
      pg_catalog.set_config('jobforge.actor', 'login:' || v_login.login_name, true),
      pg_catalog.set_config('jobforge.token_id', '', true),
      pg_catalog.set_config('jobforge.tool', 'sql', true),
      pg_catalog.set_config('jobforge.claims', case when v_login.claims = '{}' then '' else v_login.claims::text end, true),
      pg_catalog.set_config('jobforge.signature', '', true);
  end if;
  return v_login.tenant_id;
end $$;
comment on function jobforge.enter_own_scope() is 'Enter the scope of the tenant that the login is bound to; null for a login that is bound to none.';

-- For functions that have their tenant from the database itself, such as the lease of the job that calls.
create or replace function jobforge.enter_trusted_scope(p_tenant_id text, p_actor text, p_tool text, p_trace_id text) returns void
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
declare
  v_key jobforge.context_keys;
  v_expires_at text := extract(epoch from jobforge.now())::bigint + 30;
begin
  select * into v_key from jobforge.context_keys k order by k.is_enforced desc, k.slot limit 1;
  perform pg_catalog.set_config('jobforge.tenant_id', p_tenant_id, true),
    pg_catalog.set_config('jobforge.actor', coalesce(p_actor, ''), true),
    pg_catalog.set_config('jobforge.token_id', '', true),
    pg_catalog.set_config('jobforge.tool', coalesce(p_tool, ''), true),
    pg_catalog.set_config('jobforge.trace_id', coalesce(p_trace_id, ''), true),
    pg_catalog.set_config('jobforge.claims', '', true),
    pg_catalog.set_config('jobforge.signature', case when v_key.key_id is null then '' else
      v_key.key_id || '.' || v_expires_at || '.' || jobforge.scope_mac(v_key.inner_pad, v_key.outer_pad, p_tenant_id,
        coalesce(p_actor, ''), '', coalesce(p_tool, ''), coalesce(p_trace_id, ''), '', v_expires_at) end, true);
end $$;
comment on function jobforge.enter_trusted_scope(text, text, text, text) is 'Enter a scope on behalf of the database itself, signed by it.';

-- A setting lasts to the end of the transaction: what follows in it must not find a tenant set.
create or replace function jobforge.leave_scope() returns void
language sql volatile
set search_path = jobforge, pg_temp
as $$
  select pg_catalog.set_config(s.name, '', true)
  from unnest(array['jobforge.tenant_id', 'jobforge.actor', 'jobforge.token_id', 'jobforge.tool', 'jobforge.trace_id',
    'jobforge.claims', 'jobforge.signature']) s(name)
$$;
comment on function jobforge.leave_scope() is 'End the scope before the transaction does.';

create or replace function jobforge.is_context_signed() returns boolean
language sql stable
security definer set search_path = jobforge, pg_temp
as $$ select exists (select from jobforge.context_keys k where k.is_enforced) $$;
comment on function jobforge.is_context_signed() is 'Whether this database refuses scopes that no server signed.';

grant execute on function jobforge.verified_scope(), jobforge.is_signed(text, text, text, text, text, text, text, timestamptz) to jobforge_rpc;

reset role;
set local role jobforge_rpc;

-- Within our functions the scope was verified when they began (`require_tenant`), and nothing that runs in them can change
-- it; policies there read the setting as it is. Whoever reads from outside, through a view, has it verified once for each
-- statement, because a policy asks in a sub-select. These two keep the caller's search_path, so that policies stay inlined:
-- every name and operator in them is qualified, or a reader could bring an operator of their own.
create or replace function jobforge.current_tenant() returns text
language sql stable parallel safe
as $$
  select case when current_user operator(pg_catalog.=) any (array['jobforge_rpc', 'jobforge_sys']::pg_catalog.name[])
    then case when pg_catalog.current_setting('jobforge.tenant_id', true) operator(pg_catalog.<>) ''
      then pg_catalog.current_setting('jobforge.tenant_id', true) end
    else (jobforge.verified_scope()).tenant_id end
$$;
comment on function jobforge.current_tenant() is 'Tenant of the current transaction''s scope, or null: what the row policies compare with.';

create or replace function jobforge.current_claims() returns jsonb
language sql stable parallel safe
as $$
  select case when s.claims operator(pg_catalog.<>) '' then s.claims else '{}' end::pg_catalog.jsonb
  from (select case when current_user operator(pg_catalog.=) any (array['jobforge_rpc', 'jobforge_sys']::pg_catalog.name[])
    then pg_catalog.current_setting('jobforge.claims', true) else (jobforge.verified_scope()).claims end as claims) s
$$;
comment on function jobforge.current_claims() is 'What the token of the current transaction''s scope carries; {} without one.';

-- Everything set here ends with the transaction. The tenant comes back so that a caller can feed it to the next function
-- of the same statement (`from enter_scope(…) s, lateral get_run(s, …)`), which fixes the order of the two.
drop function if exists jobforge.enter_scope(text, text, text, text, text);
create or replace function jobforge.enter_scope(
  p_tenant_id text, p_actor text default null, p_token_id text default null, p_tool text default null,
  p_trace_id text default null, p_claims text default null, p_signature text default null)
returns text
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
begin
  if p_tenant_id !~ '^[A-Za-z0-9][A-Za-z0-9._:-]*$' is not false or octet_length(p_tenant_id) > 63 then
    raise exception 'the tenant is missing or malformed' using errcode = 'JF403',
      hint = 'A tenant id has 1 to 63 letters, digits, dots, colons, hyphens or underscores.';
  end if;
  perform pg_catalog.set_config('jobforge.tenant_id', p_tenant_id, true),
    pg_catalog.set_config('jobforge.actor', coalesce(p_actor, ''), true),
    pg_catalog.set_config('jobforge.token_id', coalesce(p_token_id, ''), true),
    pg_catalog.set_config('jobforge.tool', coalesce(p_tool, ''), true),
    pg_catalog.set_config('jobforge.trace_id', coalesce(p_trace_id, ''), true),
    pg_catalog.set_config('jobforge.claims', coalesce(p_claims, ''), true),
    pg_catalog.set_config('jobforge.signature', coalesce(p_signature, ''), true);
  return p_tenant_id;
end $$;
comment on function jobforge.enter_scope(text, text, text, text, text, text, text) is
  'Set tenant and author of the calls that follow in this transaction.';

-- The scope is verified once for each call. Whether its token was revoked is left to whoever calls this.
create or replace function jobforge.require_claims(p_tenant_id text) returns jsonb
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_tenant text := pg_catalog.current_setting('jobforge.tenant_id', true);
begin
  if jobforge.is_signed(v_tenant, pg_catalog.current_setting('jobforge.actor', true), pg_catalog.current_setting('jobforge.token_id', true),
    pg_catalog.current_setting('jobforge.tool', true), pg_catalog.current_setting('jobforge.trace_id', true),
    pg_catalog.current_setting('jobforge.claims', true), pg_catalog.current_setting('jobforge.signature', true), jobforge.now()) is not true
  then
    v_tenant := null;
    if session_user not in ('jobforge_api', 'jobforge_worker', 'jobforge_readonly') then
      v_tenant := jobforge.enter_own_scope();
    end if;
    if v_tenant is null then
      v_tenant := (jobforge.verified_scope()).tenant_id;
    end if;
  end if;
  if p_tenant_id is null or p_tenant_id is distinct from v_tenant then
    perform jobforge.note_refusal();
    raise exception 'the tenant asked for is not the tenant of this scope' using errcode = 'JF403',
      hint = 'Call jobforge.enter_scope with the tenant first, in the same transaction.';
  end if;
  return coalesce(nullif(pg_catalog.current_setting('jobforge.claims', true), ''), '{}')::jsonb;
end $$;
comment on function jobforge.require_claims(text) is
  'Refuse a tenant that is not the scope''s, and a scope that was not signed where it must be; returns the claims.';

-- Each function that callers may call begins with this.
create or replace function jobforge.require_tenant(p_tenant_id text) returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_claims jsonb := jobforge.require_claims(p_tenant_id);
begin
  if v_claims ? 'jti' then
    perform jobforge.require_living_token(p_tenant_id, v_claims);
  end if;
end $$;
comment on function jobforge.require_tenant(text) is 'Refuse a tenant that is not the scope''s, a scope that was not signed where it must be, and a token that was revoked.';

-- Null without a restriction, which is what most callers have.
create or replace function jobforge.confined_projects() returns text[]
language sql stable
set search_path = jobforge, pg_temp
as $$
  select array(select p.id from jsonb_array_elements_text(c.claims -> 'projects') p(id))
  from (select jobforge.current_claims() as claims) c
  where c.claims ? 'projects'
$$;
comment on function jobforge.confined_projects() is 'Projects that the caller''s token or login is confined to; null if to none.';

create or replace function jobforge.require_projects(p_project_ids text[], p_count integer) returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_projects text[];
begin
  if current_setting('jobforge.claims', true) <> '' then
    v_projects := jobforge.confined_projects();
    if v_projects is not null and (cardinality(p_project_ids) is distinct from p_count
      or exists (select from unnest(p_project_ids) u(id) where u.id is null or u.id <> all (v_projects)))
    then
      perform jobforge.note_refusal();
      raise exception 'the caller is confined to projects and may not enqueue outside of them' using errcode = 'JF403',
        hint = left('Name one of its projects: ' || array_to_string(v_projects, ', '), 1000);
    end if;
  end if;
end $$;
comment on function jobforge.require_projects(text[], integer) is 'Refuse jobs outside the projects that the caller is confined to.';

-- A run of another project does not exist for whoever is confined to some, as one of another tenant does not.
create or replace function jobforge.require_run(p_tenant_id text, p_job_id uuid) returns void
language plpgsql stable
set search_path = jobforge, pg_temp
as $$
declare
  v_projects text[];
  v_claims jsonb;
begin
  if current_setting('jobforge.claims', true) <> '' then
    v_projects := jobforge.confined_projects();
    v_claims := jobforge.confining_claims();
    if (v_projects is not null or v_claims is not null) and not exists (
      select from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = p_job_id
        and (v_projects is null or j.project_id = any (v_projects))
        and (v_claims is null or jobforge.allows_type(v_claims, j.job_type)))
    then
      perform jobforge.refuse_unknown_run(p_job_id);
    end if;
  end if;
end $$;
comment on function jobforge.require_run(text, uuid) is 'Refuse a run outside the projects and job types that the caller is confined to, as if it did not exist.';

create or replace function jobforge.record_audit(
  p_tenant_id text, p_action text, p_outcome text, p_job_id uuid default null, p_job_type text default null,
  p_detail jsonb default null)
returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
begin
  insert into jobforge.audit_log
    (tenant_id, id, occurred_at, action, outcome, actor, token_id, tool, trace_id, job_id, job_type, detail)
  values (p_tenant_id, jobforge.new_id(), jobforge.now(), p_action, p_outcome,
    nullif(pg_catalog.current_setting('jobforge.actor', true), ''),
    nullif(pg_catalog.current_setting('jobforge.token_id', true), ''),
    nullif(pg_catalog.current_setting('jobforge.tool', true), ''),
    nullif(pg_catalog.current_setting('jobforge.trace_id', true), ''), p_job_id, p_job_type, p_detail);
end $$;
comment on function jobforge.record_audit(text, text, text, uuid, text, jsonb) is 'Write the audit row of one call.';

reset role;
