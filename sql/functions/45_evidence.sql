-- What runs leave behind: artifacts, manifests, and what a report needs beside them.
--
-- Workers announce and record artifacts under the fence of their claim, as jobforge_sys; callers list, read and describe
-- them as jobforge_rpc, for the scope's tenant alone. Locks: the lease (key share, so that neither a settle nor a reaper
-- can pass a record by), then artifact_objects, then artifacts.

set local role jobforge_sys;

create or replace function jobforge.require_claim(p_tenant_id text, p_lease_id uuid, p_job_id uuid, p_epoch integer) returns smallint
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_attempt_no smallint;
begin
  select l.attempt_nos[array_position(l.job_ids, p_job_id)] into v_attempt_no
  from jobforge.leases l
  where l.tenant_id = p_tenant_id and l.lease_id = p_lease_id and l.lease_until > jobforge.now()
    and l.epochs[array_position(l.job_ids, p_job_id)] = p_epoch
  for key share;  -- the weakest that a settle or a reaper waits for: heartbeats and cancels go on meanwhile
  if not found then
    raise exception 'this attempt no longer holds the lease of run %', p_job_id using errcode = 'JF410';
  end if;
  return v_attempt_no;
end $$;
comment on function jobforge.require_claim(text, uuid, uuid, integer) is
  'Refuse a claim that is not the living one, keep it until commit, and return the number of its attempt.';

-- Committed before the content is written: an object that nobody knows of could never be swept. A purge that is just
-- sweeping the same content holds its row, so that this waits for it and the content is then written anew.
create or replace function jobforge.announce_artifact(
  p_tenant_id text, p_lease_id uuid, p_job_id uuid, p_epoch integer, p_sha256 text, p_size bigint, p_store text)
returns void
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
begin
  perform jobforge.require_claim(p_tenant_id, p_lease_id, p_job_id, p_epoch);
  insert into jobforge.artifact_objects as o (tenant_id, store, sha256, size, announced_at)
  values (p_tenant_id, p_store, decode(p_sha256, 'hex'), p_size, jobforge.now())
  on conflict (tenant_id, store, sha256) do update set announced_at = excluded.announced_at;
end $$;
comment on function jobforge.announce_artifact(text, uuid, uuid, integer, text, bigint, text) is
  'Say that a running attempt is about to write content outside; refused for a claim that is not the living one.';

-- The last word of an attempt on a name counts: repeating a call whose answer was lost changes nothing. What an earlier
-- attempt left that was lost goes away here, since nobody may see it.
create or replace function jobforge.record_artifact(
  p_tenant_id text, p_lease_id uuid, p_job_id uuid, p_epoch integer, p_name text, p_mime_type text, p_size bigint,
  p_sha256 text, p_store text default 'table', p_content bytea default null, p_keep_ms bigint default null)
returns table (attempt_no integer, created_at timestamptz)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
  v_attempt_no smallint;
  v_sha256 bytea := decode(p_sha256, 'hex');
begin
  v_attempt_no := jobforge.require_claim(p_tenant_id, p_lease_id, p_job_id, p_epoch);
  if p_content is not null and sha256(p_content) <> v_sha256 then
    raise exception 'the content of the artifact is not what its hash says' using errcode = 'JF400';
  end if;
  if p_store <> 'table' then
    perform from jobforge.artifact_objects o
    where o.tenant_id = p_tenant_id and o.store = p_store and o.sha256 = v_sha256 and o.size = p_size
    for key share;  -- so that no purge takes it before this is committed
    if not found then
      raise exception 'the content of the artifact was never announced, or was swept since' using errcode = 'JF409',
        hint = 'Announce it, write it, and record it again.';
    end if;
  end if;
  if (select count(*) from jobforge.artifacts a
    where a.tenant_id = p_tenant_id and a.job_id = p_job_id and a.epoch = p_epoch and a.name <> p_name) >= 1000
  then
    raise exception 'an attempt may make at most 1,000 artifacts' using errcode = 'JF413';
  end if;
  if p_epoch > 1 then
    delete from jobforge.artifacts a using jobforge.job_attempts t
    where a.tenant_id = p_tenant_id and a.job_id = p_job_id and a.epoch < p_epoch
      and t.tenant_id = a.tenant_id and t.job_id = a.job_id and t.epoch = a.epoch and t.outcome in ('lost', 'released');
  end if;
  return query
  insert into jobforge.artifacts as a
    (tenant_id, job_id, epoch, name, attempt_no, mime_type, size, sha256, store, content, created_at, expires_at)
  values (p_tenant_id, p_job_id, p_epoch, p_name, v_attempt_no, p_mime_type, p_size, v_sha256, p_store, p_content, v_now,
    v_now + p_keep_ms * interval '1 millisecond')
  on conflict (tenant_id, job_id, epoch, name) do update
    set mime_type = excluded.mime_type, size = excluded.size, sha256 = excluded.sha256, store = excluded.store,
      content = excluded.content, created_at = excluded.created_at, expires_at = excluded.expires_at
  returning a.attempt_no::integer, a.created_at;
end $$;
comment on function jobforge.record_artifact(text, uuid, uuid, integer, text, text, bigint, text, text, bytea, bigint) is
  'Store an artifact of a running attempt; refused for a claim that is not the living one.';

-- Called by settles for those of their attempts that were accepted, and only when one of them has something to say.
create or replace function jobforge.keep_manifests(
  p_tenant_ids text[], p_job_ids uuid[], p_epochs integer[], p_manifests text[], p_accepted integer[])
returns void
language sql volatile
set search_path = jobforge, pg_temp
as $$
  insert into jobforge.artifact_manifests (tenant_id, job_id, epoch, facts, recorded_at)
  select u.tenant_id, u.job_id, u.epoch, u.facts::jsonb, jobforge.now()
  from unnest(p_tenant_ids, p_job_ids, p_epochs, p_manifests) with ordinality u(tenant_id, job_id, epoch, facts, ord)
  where u.facts is not null and u.ord = any (p_accepted)
  order by 1, 2
  on conflict (tenant_id, job_id, epoch) do nothing
$$;
comment on function jobforge.keep_manifests(text[], uuid[], integer[], text[], integer[]) is
  'Write what settled attempts say of themselves.';

create or replace function jobforge.keep_environment(p_worker_id text, p_environment text) returns void
language sql volatile
security definer set search_path = jobforge, pg_temp
as $$
  insert into jobforge.worker_environments as e (worker_id, environment_hash, environment, registered_at)
  values (p_worker_id, sha256(convert_to((p_environment::jsonb)::text, 'UTF8')), p_environment::jsonb, jobforge.now())
  on conflict (worker_id) do nothing
$$;
comment on function jobforge.keep_environment(text, text) is 'Remember the system and the versions that a worker runs with.';

create or replace function jobforge.environment_of(p_worker_id text)
returns table (environment_hash text, environment jsonb)
language sql stable
security definer set search_path = jobforge, pg_temp
as $$
  select encode(e.environment_hash, 'hex'), e.environment from jobforge.worker_environments e where e.worker_id = p_worker_id
$$;
comment on function jobforge.environment_of(text) is 'The system and the versions that a worker ran with.';

-- Rows that ended, and objects nobody needs. Whoever calls deletes the content of the returned objects before it commits:
-- if it dies in between they are returned again, and deleting twice is harmless. An attempt that announces the same
-- content meanwhile waits for that commit. Objects are looked through as a whole: a narrow table, and a rare call.
create or replace function jobforge.purge_artifacts(p_limit integer default 100, p_store text default null)
returns table (tenant_id text, store text, sha256 text)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
begin
  if coalesce(p_limit, 0) not between 1 and 10000 then
    raise exception 'a purge takes 1 to 10,000 at a time, not %', p_limit using errcode = 'JF400';
  end if;
  delete from jobforge.artifacts a
  where (a.tenant_id, a.job_id, a.epoch, a.name) in (
    select x.tenant_id, x.job_id, x.epoch, x.name from jobforge.artifacts x
    where x.expires_at <= v_now
    order by 1, 2, 3, 4 limit p_limit for update skip locked);
  return query
  delete from jobforge.artifact_objects o
  where (o.tenant_id, o.store, o.sha256) in (
    select x.tenant_id, x.store, x.sha256 from jobforge.artifact_objects x
    where x.announced_at < v_now - interval '1 hour' and (p_store is null or x.store = p_store) and not exists (
      select from jobforge.artifacts a where a.tenant_id = x.tenant_id and a.store = x.store and a.sha256 = x.sha256)
    order by 1, 2, 3 limit p_limit for update skip locked)
  returning o.tenant_id::text, o.store::text, encode(o.sha256, 'hex');
end $$;
comment on function jobforge.purge_artifacts(integer, text) is
  'Delete artifacts that ended, forget objects of a store that nothing needs, and return those: their content is deleted before the commit.';

grant execute on function jobforge.environment_of(text) to jobforge_rpc;

reset role;
set local role jobforge_rpc;

-- What an attempt made is shown while its claim lives, and once it was settled by itself. What a lost claim made never is,
-- nor what one made that was given back, nor the artifacts of a success that was retried: its result is gone as well.
create or replace function jobforge.visible_epochs(p_tenant_id text, p_job_id uuid) returns integer[]
language sql stable
set search_path = jobforge, pg_temp
as $$
  select array(
    select j.epoch from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = p_job_id and j.final_status = 'succeeded'
    union all
    select t.epoch from jobforge.job_attempts t
    where t.tenant_id = p_tenant_id and t.job_id = p_job_id and t.outcome not in ('lost', 'released')
    union all
    select l.epochs[array_position(l.job_ids, p_job_id)] from jobforge.leases l
    where l.tenant_id = p_tenant_id and p_job_id = any (l.job_ids) and l.lease_until > jobforge.now())
$$;
comment on function jobforge.visible_epochs(text, uuid) is 'The claims of a run whose artifacts may be shown.';

create or replace function jobforge.list_artifacts(p_tenant_id text, p_job_id uuid)
returns table (name text, attempt_no integer, epoch integer, mime_type text, size bigint, sha256 text, store text,
  created_at timestamptz, expires_at timestamptz)
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
begin
  perform jobforge.require_tenant(p_tenant_id);
  perform jobforge.require_run(p_tenant_id, p_job_id);
  return query
  select a.name::text, a.attempt_no::integer, a.epoch, a.mime_type, a.size, encode(a.sha256, 'hex'), a.store::text,
    a.created_at, a.expires_at
  from jobforge.artifacts a
  where a.tenant_id = p_tenant_id and a.job_id = p_job_id
    and (a.expires_at is null or a.expires_at > jobforge.now())
    and a.epoch = any (jobforge.visible_epochs(p_tenant_id, p_job_id))
  order by a.epoch, a.created_at, a.name;
end $$;
comment on function jobforge.list_artifacts(text, uuid) is 'Artifacts of a run, oldest first, without their content.';

create or replace function jobforge.read_artifact(
  p_tenant_id text, p_job_id uuid, p_name text, p_attempt_no integer default null)
returns table (name text, attempt_no integer, epoch integer, mime_type text, size bigint, sha256 text, store text,
  created_at timestamptz, expires_at timestamptz, content bytea)
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
begin
  perform jobforge.require_tenant(p_tenant_id);
  perform jobforge.require_run(p_tenant_id, p_job_id);
  return query
  select a.name::text, a.attempt_no::integer, a.epoch, a.mime_type, a.size, encode(a.sha256, 'hex'), a.store::text,
    a.created_at, a.expires_at, a.content
  from jobforge.artifacts a
  where a.tenant_id = p_tenant_id and a.job_id = p_job_id and a.name = p_name
    and (p_attempt_no is null or a.attempt_no = p_attempt_no)
    and (a.expires_at is null or a.expires_at > jobforge.now())
    and a.epoch = any (jobforge.visible_epochs(p_tenant_id, p_job_id))
  order by a.epoch desc limit 1;
end $$;
comment on function jobforge.read_artifact(text, uuid, text, integer) is
  'One artifact of a run, of its newest attempt that made it, with its content if that lies here.';

-- Of the newest attempt, or of one that is named. A plain success has no row of its own: what its manifest says follows from
-- the job, and from the worker that ran it. A run that never began has a manifest, too: it says so.
create or replace function jobforge.get_manifest(p_tenant_id text, p_job_id uuid, p_attempt_no integer default null)
returns table (attempt_no integer, epoch integer, outcome text, worker_id text, started_at timestamptz,
  finished_at timestamptz, error jsonb, input_hash text, input_bytes integer, result_hash text, result_bytes integer,
  log_lines integer, facts jsonb, environment_hash text, environment jsonb)
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_job jobforge.jobs;
begin
  perform jobforge.require_tenant(p_tenant_id);
  perform jobforge.require_run(p_tenant_id, p_job_id);
  select * into v_job from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = p_job_id;
  if not found then
    perform jobforge.refuse_unknown_run(p_job_id);
  end if;
  return query
  with attempts as (
    select v_job.attempt_no::integer as attempt_no, v_job.epoch, 'succeeded'::text as outcome, v_job.worker_id, v_job.started_at,
      v_job.finished_at, null::jsonb as error
    where v_job.final_status = 'succeeded'
    union all
    select t.attempt_no::integer, t.epoch, t.outcome::text, t.worker_id, t.started_at, t.finished_at, t.error
    from jobforge.job_attempts t where t.tenant_id = p_tenant_id and t.job_id = p_job_id
    union all
    select h.attempt_no::integer, h.epoch, 'running', l.worker_id, l.claimed_at, null, null
    from jobforge.leases l cross join lateral unnest(l.job_ids, l.epochs, l.attempt_nos) h(job_id, epoch, attempt_no)
    where l.tenant_id = p_tenant_id and p_job_id = any (l.job_ids) and h.job_id = p_job_id and l.lease_until > jobforge.now()
    union all
    select 0, 0, coalesce(v_job.final_status, 'queued')::text, null, null, v_job.finished_at, v_job.error
  ), chosen as (
    select t.* from attempts t where p_attempt_no is null or t.attempt_no = p_attempt_no order by t.epoch desc limit 1
  )
  select c.attempt_no, c.epoch, c.outcome, c.worker_id, c.started_at, c.finished_at, c.error,
    encode(sha256(convert_to(v_job.payload::text, 'UTF8')), 'hex'), octet_length(v_job.payload::text),
    case when c.outcome = 'succeeded' then encode(sha256(convert_to(v_job.result::text, 'UTF8')), 'hex') end,
    case when c.outcome = 'succeeded' then octet_length(v_job.result::text) end,
    (select count(*)::integer from jobforge.run_logs g
      where g.tenant_id = p_tenant_id and g.job_id = p_job_id and g.attempt_no = c.attempt_no),
    m.facts, e.environment_hash, e.environment
  from chosen c
  left join jobforge.artifact_manifests m on m.tenant_id = p_tenant_id and m.job_id = p_job_id and m.epoch = c.epoch
  left join lateral jobforge.environment_of(c.worker_id) e on true;
end $$;
comment on function jobforge.get_manifest(text, uuid, integer) is
  'What the newest attempt of a run, or one that is named, did, with what and where.';

-- There is no index by parent. A child carries the trace of its parent and is younger, and the trace has one; a run without a
-- trace is rare, and so are traces of more than 1,000 runs: then fewer are told.
create or replace function jobforge.list_child_runs(p_tenant_id text, p_job_id uuid, p_limit integer default 20)
returns table (job_id uuid, job_type text, status text)
language plpgsql stable
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_trace_id text;
  v_ids uuid[];
  v_projects text[];
  v_claims jsonb;
begin
  perform jobforge.require_tenant(p_tenant_id);
  perform jobforge.require_run(p_tenant_id, p_job_id);
  v_projects := jobforge.confined_projects();
  v_claims := jobforge.confining_claims();
  select j.trace_id into v_trace_id from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = p_job_id;
  v_ids := array(
    select x.id from (
      select j.id, j.parent_id, j.project_id, j.job_type from jobforge.jobs j
      where j.tenant_id = p_tenant_id and j.trace_id = v_trace_id and j.id > p_job_id
      order by j.id limit 1000) x
    where x.parent_id = p_job_id and (v_projects is null or x.project_id = any (v_projects))
      and (v_claims is null or jobforge.allows_type(v_claims, x.job_type))
    order by x.id limit least(greatest(p_limit, 1), 100));
  return query
  select r.job_id, r.job_type::text, r.status from jobforge.runs r
  where r.tenant_id = p_tenant_id and r.job_id = any (v_ids)
  order by r.job_id;
end $$;
comment on function jobforge.list_child_runs(text, uuid, integer) is 'Runs that the handler of a run enqueued, oldest first.';

reset role;
