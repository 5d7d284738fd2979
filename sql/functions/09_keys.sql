-- Keys of jobs: those that make an enqueue happen once, and those whose jobs run one after another.
--
-- Called by whatever enqueues, ends or revives jobs; every function belongs to jobforge_rpc. Who comes second to a key
-- waits for the first's commit at the row. Locks: idempotency_keys, then ordering_keys, both in key order.

set local role jobforge_rpc;

-- Put new or revived jobs of an ordering key in line. The row of the key is locked until commit, so turns follow commit
-- order; without that lock a job enqueued later but committed first would start first.
create or replace function jobforge.join_ordering_keys(p_tenant_id text, p_job_ids uuid[]) returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_key record;
begin
  for v_key in
    select j.ordering_key, array_agg(j.id order by a.place) as job_ids
    from unnest(p_job_ids) with ordinality a(job_id, place)
    cross join lateral (select x.id, x.ordering_key from jobforge.jobs x where x.tenant_id = p_tenant_id and x.id = a.job_id offset 0) j
    where j.ordering_key is not null
    group by j.ordering_key
    order by j.ordering_key
  loop
    insert into jobforge.ordering_keys as k (tenant_id, ordering_key, head_job_id, next_turn)
    values (p_tenant_id, v_key.ordering_key, v_key.job_ids[1], 0)
    on conflict (tenant_id, ordering_key) do update set next_turn = k.next_turn;

    -- the head goes to ready, the others take the next turns
    with key_row as (
      select k.head_job_id, k.next_turn from jobforge.ordering_keys k
      where k.tenant_id = p_tenant_id and k.ordering_key = v_key.ordering_key
    ), placed as (
      select j.*, k.head_job_id, k.next_turn + a.place - 1 as turn
      from unnest(v_key.job_ids) with ordinality a(job_id, place)
      cross join lateral (select * from jobforge.jobs x where x.tenant_id = p_tenant_id and x.id = a.job_id offset 0) j
      cross join key_row k
    ), heads as (
      insert into jobforge.ready (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no, own_type)
      select p.tenant_id, coalesce(p.lane_type, p.job_type), p.priority, p.run_at, p.id, p.epoch, p.attempt_no,
        case when p.lane_type is not null then p.job_type end
      from placed p where p.id = p.head_job_id
    )
    insert into jobforge.waiting (tenant_id, job_id, waiting_for, ordering_key, turn, epoch, attempt_no)
    select p.tenant_id, p.id, 'turn', p.ordering_key, p.turn, p.epoch, p.attempt_no
    from placed p where p.id <> p.head_job_id;

    update jobforge.ordering_keys k set next_turn = k.next_turn + cardinality(v_key.job_ids)
    where k.tenant_id = p_tenant_id and k.ordering_key = v_key.ordering_key;
  end loop;
end $$;
comment on function jobforge.join_ordering_keys(text, uuid[]) is 'Put jobs in line behind the head of their ordering keys.';

-- Give each idempotency key to the first job that asks for it. Two callers with one key meet on the row: the second waits
-- for the first's commit and then finds it. Keys are taken in one order, so that two bulk calls cannot deadlock.
create or replace function jobforge.claim_idempotency_keys(
  p_tenant_id text, p_job_ids uuid[], p_project_ids text[], p_job_types text[], p_keys text[], p_hashes bytea[])
returns table (ord integer, job_id uuid, outcome text)
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
begin
  insert into jobforge.idempotency_keys as k
    (tenant_id, project_id, job_type, idempotency_key, job_id, input_hash, created_at, expires_at)
  select distinct on (2, 3, 4) p_tenant_id, coalesce(u.project_id, ''), u.job_type, u.idempotency_key, u.job_id, u.input_hash,
    v_now, v_now + interval '30 days'
  from unnest(p_job_ids, p_project_ids, p_job_types, p_keys, p_hashes) with ordinality
    u(job_id, project_id, job_type, idempotency_key, input_hash, ord)
  where u.idempotency_key is not null
  order by 2, 3, 4, u.ord
  on conflict (tenant_id, project_id, job_type, idempotency_key) do update
    set job_id = excluded.job_id, input_hash = excluded.input_hash, created_at = excluded.created_at,
      expires_at = excluded.expires_at
    where k.expires_at <= v_now;

  -- a statement of its own, so that it sees what others committed while the insert waited for them
  return query
  select u.ord::integer, k.job_id,
    case when k.job_id = u.job_id then 'created' when k.input_hash = u.input_hash then 'replayed' else 'conflict' end
  from unnest(p_job_ids, p_project_ids, p_job_types, p_keys, p_hashes) with ordinality
    u(job_id, project_id, job_type, idempotency_key, input_hash, ord)
  cross join lateral (
    select x.job_id, x.input_hash from jobforge.idempotency_keys x
    -- a case and not a coalesce, which counts as leaky: row level security would keep it from being looked up in the index
    where x.tenant_id = p_tenant_id and x.project_id = case when u.project_id is null then '' else u.project_id end
      and x.job_type = u.job_type and x.idempotency_key = u.idempotency_key offset 0) k;
end $$;
comment on function jobforge.claim_idempotency_keys(text, uuid[], text[], text[], text[], bytea[]) is
  'Take idempotency keys for new jobs, and tell which were taken before and by which job.';

-- The same for one job. Who comes second waits for the first at the row, and then reads it in a statement of its own.
create or replace function jobforge.claim_idempotency_key(
  p_tenant_id text, p_job_id uuid, p_project_id text, p_job_type text, p_key text, p_hash bytea,
  out job_id uuid, out outcome text)
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
  v_project_id text := coalesce(p_project_id, '');
begin
  loop
    insert into jobforge.idempotency_keys as k
      (tenant_id, project_id, job_type, idempotency_key, job_id, input_hash, created_at, expires_at)
    values (p_tenant_id, v_project_id, p_job_type, p_key, p_job_id, p_hash, v_now, v_now + interval '30 days')
    on conflict (tenant_id, project_id, job_type, idempotency_key) do update
      set job_id = excluded.job_id, input_hash = excluded.input_hash, created_at = excluded.created_at,
        expires_at = excluded.expires_at
      where k.expires_at <= v_now;
    if found then
      job_id := p_job_id;
      outcome := 'created';
      return;
    end if;
    select k.job_id, case when k.input_hash = p_hash then 'replayed' else 'conflict' end into job_id, outcome
    from jobforge.idempotency_keys k
    where k.tenant_id = p_tenant_id and k.project_id = v_project_id and k.job_type = p_job_type
      and k.idempotency_key = p_key;
    exit when found;  -- not found: it was forgotten in between, and is free
  end loop;
end $$;
comment on function jobforge.claim_idempotency_key(text, uuid, text, text, text, bytea) is
  'Take an idempotency key for a new job, or tell which job took it before.';

-- After a head ended: the next of each key takes its place, or the key is forgotten. Used by settles and cancels; keys in
-- one order, so that two batches cannot deadlock.
create or replace function jobforge.promote_next(p_tenant_ids text[], p_ordering_keys text[], p_ended_ids uuid[]) returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_key record;
  v_next record;
  v_has_next boolean;
begin
  for v_key in
    select k.tenant_id, k.ordering_key
    from unnest(p_tenant_ids, p_ordering_keys, p_ended_ids) u(tenant_id, ordering_key, job_id)
    join jobforge.ordering_keys k on k.tenant_id = u.tenant_id and k.ordering_key = u.ordering_key and k.head_job_id = u.job_id
    order by 1, 2
    for update of k
  loop
    -- the one we chose may be canceled while we wait for its row: then choose again, or its followers would be stranded
    loop
      delete from jobforge.waiting w
      where w.tenant_id = v_key.tenant_id and w.job_id = (
        select x.job_id from jobforge.waiting x
        where x.tenant_id = v_key.tenant_id and x.ordering_key = v_key.ordering_key and x.waiting_for = 'turn'
        order by x.turn limit 1)
      returning w.* into v_next;
      v_has_next := found;
      exit when v_has_next or not exists (
        select from jobforge.waiting x
        where x.tenant_id = v_key.tenant_id and x.ordering_key = v_key.ordering_key and x.waiting_for = 'turn');
    end loop;
    if not v_has_next then
      delete from jobforge.ordering_keys k where k.tenant_id = v_key.tenant_id and k.ordering_key = v_key.ordering_key;
    else
      update jobforge.ordering_keys k set head_job_id = v_next.job_id
      where k.tenant_id = v_key.tenant_id and k.ordering_key = v_key.ordering_key;
      -- not before now: workers pass over what lies behind the jobs they claimed, until their next full look
      update jobforge.jobs j set run_at = greatest(j.run_at, jobforge.now())
      where j.tenant_id = v_next.tenant_id and j.id = v_next.job_id and j.run_at < jobforge.now();
      insert into jobforge.ready (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no, own_type)
      select j.tenant_id, coalesce(j.lane_type, j.job_type), j.priority, j.run_at, j.id, v_next.epoch, v_next.attempt_no,
        case when j.lane_type is not null then j.job_type end
      from jobforge.jobs j where j.tenant_id = v_next.tenant_id and j.id = v_next.job_id;
      perform jobforge.touch_lanes(array[j.tenant_id], array[coalesce(j.lane_type, j.job_type)])
      from jobforge.jobs j where j.tenant_id = v_next.tenant_id and j.id = v_next.job_id;
      perform jobforge.wake('ready');
    end if;
  end loop;
end $$;
comment on function jobforge.promote_next(text[], text[], uuid[]) is 'Let the next job of each ordering key take the place of a head that ended.';

reset role;
