-- Schedules: which are due, and one job for each time, however many schedulers there are.
--
-- Python computes when a schedule is due next, because only it knows calendars and time zones, and nothing else: whether a
-- time was taken already, whether it is due at all by this database's clock, what the run before does, and the rights of the
-- registrar are decided here. Called by maintenance, as jobforge_worker or jobforge_scheduler.
-- Locks: triggers (one after the other by tenant_id and name; one that another scheduler holds is passed over), then what
-- enqueueing and canceling take.

set local role jobforge_rpc;

-- The row of the trigger is locked. A time that has a row was decided; what is handed in twice changes nothing.
create or replace function jobforge.decide_schedule_fires(p_tenant_id text, p_trigger_name text, p_times jsonb)
returns table (scheduled_at timestamptz, decision text, reason text, job_id uuid)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := jobforge.now();
  v_trigger jobforge.triggers;
  v_given record;
  v_key text;
  v_previous uuid;
  v_is_previous_open boolean;
  v_decision text;
  v_reason text;
  v_job_id uuid;
begin
  select * into v_trigger from jobforge.triggers t where t.tenant_id = p_tenant_id and t.name = p_trigger_name;
  -- what this very call makes is no run before: of several times that are caught up each gets its run
  select f.job_id into v_previous from jobforge.trigger_fires f
  where f.tenant_id = p_tenant_id and f.trigger_name = p_trigger_name and f.job_id is not null
  order by f.decided_at desc limit 1;
  v_is_previous_open := exists (
    select from jobforge.jobs j where j.tenant_id = p_tenant_id and j.id = v_previous and j.final_status is null);
  for v_given in
    select x.fire, (x.fire ->> 'at')::timestamptz as due_at from jsonb_array_elements(p_times) x(fire) order by 2
  loop
    v_key := 'at:' || to_char(v_given.due_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"');
    continue when v_given.due_at > v_now or exists (
      select from jobforge.trigger_fires f
      where f.tenant_id = p_tenant_id and f.trigger_name = p_trigger_name and f.fire_key = v_key);
    v_decision := nullif(v_given.fire ->> 'decision', 'fire');
    v_reason := left(v_given.fire ->> 'reason', 1000);
    v_job_id := null;
    if v_decision is null then
      select o.decision, o.reason into v_decision, v_reason
      from jobforge.find_obstacle(v_trigger, 'cron', v_key, 0, 1) o;
    end if;
    if v_decision is null and v_trigger.overlap = 'skip' and v_is_previous_open then
      v_decision := 'overlap';
      v_reason := format('run %s of the time before is still open', v_previous);
    end if;
    if v_decision is null then
      select s.decision, s.reason, s.job_id into v_decision, v_reason, v_job_id
      from jobforge.start_fire(v_trigger, v_given.fire, v_key, null, null,
        case when v_trigger.overlap = 'queue' or (v_trigger.overlap = 'skip' and jsonb_array_length(p_times) > 1)
          then 'trigger:' || v_trigger.name end,
        (v_given.fire ->> 'runAt')::timestamptz, v_trigger.is_dry_run) s;
      if v_decision = 'planned' then
        v_reason := 'it is on trial and starts nothing';
      elsif v_decision = 'fired' and (v_given.fire ->> 'isLate')::boolean then
        v_decision := 'caught_up';
      end if;
      if v_job_id is not null and v_trigger.overlap = 'cancel-previous' and v_is_previous_open then
        begin
          perform jobforge.cancel_job(p_tenant_id, v_previous, 'the next time of its trigger came');
        exception when others then
          if sqlstate <> 'JF409' then  -- it ended by itself meanwhile
            raise;
          end if;
        end;
      end if;
      if v_job_id is not null and v_trigger.overlap = 'cancel-previous' then
        v_previous := v_job_id;
        v_is_previous_open := true;
      end if;
    end if;
    insert into jobforge.trigger_fires (tenant_id, trigger_name, fire_key, kind, trigger_version, scheduled_at, decision, reason,
      job_id, decided_at)
    values (p_tenant_id, p_trigger_name, v_key, 'cron', v_trigger.version, v_given.due_at, v_decision, v_reason, v_job_id,
      jobforge.now());
    return query select v_given.due_at, v_decision, v_reason, v_job_id;
  end loop;
end $$;
comment on function jobforge.decide_schedule_fires(text, text, jsonb) is 'Let a schedule decide about times that are due, each once.';

reset role;
set local role jobforge_sys;

drop function if exists jobforge.due_triggers(integer);
create or replace function jobforge.due_triggers(p_limit integer default 100)
returns table (tenant_id text, trigger_name text, version integer, job_name text, project_id text, cron text, timezone text,
  catch_up text, catch_up_most integer, jitter_ms integer, match text, input_mapping text, input text, dedupe_key text,
  created_by text, token_id text, claims text, scopes text[], roles text[], next_fire_at timestamptz, observed_at timestamptz,
  job_version text, lane_type text, definition text, is_removed boolean)
language sql volatile
security definer set search_path = jobforge, pg_temp
as $$
  with recursive clock as materialized (
    select jobforge.now() as observed_at
  ), tenant (tenant_id) as (
    (select t.tenant_id from jobforge.triggers t where t.next_fire_at is not null order by t.tenant_id limit 1)
    union all
    select n.tenant_id from tenant cross join lateral (
      select t.tenant_id from jobforge.triggers t
      where t.next_fire_at is not null and t.tenant_id > tenant.tenant_id order by t.tenant_id limit 1) n
  )
  select w.tenant_id::text, w.name::text, w.version, w.job_name::text, w.project_id::text, w.cron, w.timezone, w.catch_up::text,
    w.catch_up_most, w.jitter_ms, null::text, null::text, w.input::text, null::text, w.created_by, w.token_id, w.claims::text,
    w.scopes, w.roles, w.next_fire_at, clock.observed_at,
    d.job_version, d.lane_type::text, d.definition::text,
    r.removed_at is not null
  from clock cross join tenant cross join lateral (
    select t.* from jobforge.triggers t
    where t.tenant_id = tenant.tenant_id and t.next_fire_at <= clock.observed_at
    order by t.next_fire_at limit greatest(p_limit / 4, 1)) w
  left join jobforge.registered_jobs r on r.tenant_id = w.tenant_id and r.job_type = w.job_name
  left join jobforge.job_definitions d on d.tenant_id = r.tenant_id and d.job_type = r.job_type
    and d.job_version = r.job_version and d.approved_at is not null and r.removed_at is null
  order by w.next_fire_at limit p_limit
$$;
comment on function jobforge.due_triggers(integer) is 'Schedules that are due, and what it takes to work out their runs; tenants in turn.';

create or replace function jobforge.next_due_at() returns timestamptz
language sql stable
security definer set search_path = jobforge, pg_temp
as $$
  with recursive soonest (tenant_id, due_at) as (
    (select t.tenant_id, t.next_fire_at from jobforge.triggers t where t.next_fire_at is not null
      order by t.tenant_id, t.next_fire_at limit 1)
    union all
    select n.tenant_id, n.next_fire_at from soonest cross join lateral (
      select t.tenant_id, t.next_fire_at from jobforge.triggers t
      where t.next_fire_at is not null and t.tenant_id > soonest.tenant_id
      order by t.tenant_id, t.next_fire_at limit 1) n
  )
  select min(s.due_at) from soonest s
$$;
comment on function jobforge.next_due_at() is 'When the next schedule is due, of all tenants; null if none is.';

-- An element: {tenant, trigger, version, due, next, disabledReason, times: [{at, decision, reason, isLate, runAt, payload, …}]}.
-- `due` is the time the trigger was found due for: who comes second finds another one there and does nothing.
create or replace function jobforge.fire_due_triggers(p_due jsonb)
returns table (tenant_id text, trigger_name text, scheduled_at timestamptz, decision text, reason text, job_id uuid)
language plpgsql volatile
security definer set search_path = jobforge, pg_temp
as $$
#variable_conflict use_column
declare
  v_due record;
  v_next timestamptz;
begin
  for v_due in
    select d.element, d.element ->> 'tenant' as tenant_id, d.element ->> 'trigger' as name
    from jsonb_array_elements(p_due) d(element) order by 2, 3
  loop
    perform from jobforge.triggers t
    where t.tenant_id = v_due.tenant_id and t.name = v_due.name and t.version = (v_due.element ->> 'version')::integer
      and t.next_fire_at = (v_due.element ->> 'due')::timestamptz and t.next_fire_at <= jobforge.now()
    for no key update skip locked;
    continue when not found;
    perform jobforge.enter_trusted_scope(v_due.tenant_id, 'jobforge', 'trigger', null);
    return query
    select v_due.tenant_id, v_due.name, f.scheduled_at, f.decision, f.reason, f.job_id
    from jobforge.decide_schedule_fires(v_due.tenant_id, v_due.name, v_due.element -> 'times') f;
    perform jobforge.leave_scope();
    v_next := (v_due.element ->> 'next')::timestamptz;
    update jobforge.triggers t
    set next_fire_at = case when t.is_enabled then v_next end,
      is_enabled = t.is_enabled and v_next is not null,
      disabled_reason = case when v_next is null then coalesce(t.disabled_reason, left(v_due.element ->> 'disabledReason', 1000))
        else t.disabled_reason end
    where t.tenant_id = v_due.tenant_id and t.name = v_due.name;
  end loop;
end $$;
comment on function jobforge.fire_due_triggers(jsonb) is
  'Let schedules decide about the times that are due, once whoever asks, and set their next time.';

reset role;
