-- What callers by plain SQL are asked that servers ask in their own process: obvious keys in what is stored, what a job
-- declares to cost, and what it asks of whoever starts it. Servers have asked before they call, and call what pays for
-- none of this.
--
-- Called by enqueue_job, cancel_job and submit_event, and by workers when they start. Locks: rows of installed_jobs, in order.

set local role jobforge_sys;

create or replace function jobforge.tell_installed_jobs(p_job_types text[], p_costs integer[], p_asks text[]) returns void
language sql volatile
security definer set search_path = jobforge, pg_temp
as $$
  insert into jobforge.installed_jobs as i (job_type, cost, asks_for, told_at)
  select u.job_type, u.cost, u.asks_for, jobforge.now()
  from unnest(p_job_types, p_costs, p_asks) u(job_type, cost, asks_for)
  order by u.job_type
  on conflict (job_type) do update set cost = excluded.cost, asks_for = excluded.asks_for, told_at = excluded.told_at
    where (i.cost, i.asks_for) is distinct from (excluded.cost, excluded.asks_for)
$$;
comment on function jobforge.tell_installed_jobs(text[], integer[], text[]) is
  'Say what the jobs of a worker cost, and what they ask of whoever starts them.';

create or replace function jobforge.installed_job(p_job_type text, out cost integer, out asks_for text)
language sql stable
security definer set search_path = jobforge, pg_temp
as $$ select i.cost, i.asks_for from jobforge.installed_jobs i where i.job_type = p_job_type $$;
comment on function jobforge.installed_job(text) is 'What a job costs and asks for, as far as a worker told; nulls for one that nobody knows.';

grant execute on function jobforge.installed_job(text) to jobforge_rpc;

reset role;
set local role jobforge_rpc;

-- The shapes of src/jobforge_mcp/redaction.py, on the text that is stored: one pass for all of them, and a second to name
-- the kind where there is one. Before a shape stands no letter or digit, or the escape of a control character, which ends in
-- a letter. What repeats is counted only as far as it has to be.
create or replace function jobforge.refuse_keys(p_what text, p_text text) returns void
language plpgsql immutable
set search_path = jobforge, pg_temp
as $$
declare
  v_kind text;
begin
  if p_text is null or p_text !~ '-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----|(^|[^A-Za-z0-9_]|\\[bfnrt])((AKIA|ASIA)[A-Z2-7]{16}([^A-Za-z0-9_]|$)|gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{50}|glpat-[A-Za-z0-9_-]{20}|xox[abeprs]-[A-Za-z0-9-]{10}|hooks\.slack\.com/services/T[A-Z0-9]{6,}/B[A-Z0-9]{6,}/[A-Za-z0-9]{16}|AIza[A-Za-z0-9_-]{35}|[rs]k_live_[A-Za-z0-9]{16}|SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}|sk-(proj|ant)-[A-Za-z0-9_-]{20}|npm_[A-Za-z0-9]{36}([^A-Za-z0-9_]|$)|pypi-[A-Za-z0-9_-]{50}|eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16})' then
    return;
  end if;
  v_kind := case
    when p_text ~ 'PRIVATE KEY-----' then 'private key'
    when p_text ~ '(AKIA|ASIA)[A-Z2-7]{16}' then 'AWS access key'
    when p_text ~ 'gh[pousr]_|github_pat_' then 'GitHub token'
    when p_text ~ 'glpat-' then 'GitLab token'
    when p_text ~ 'xox[abeprs]-|hooks\.slack\.com' then 'Slack token or webhook'
    when p_text ~ 'eyJ[A-Za-z0-9_-]{8,}\.eyJ' then 'JSON web token'
    else 'well-known key'
  end;
  raise exception '% holds what looks like a %; it is stored and can be read', p_what, v_kind using errcode = 'JF400',
    detail = 'SECRET_IN_INPUT', hint = 'Let the operator keep it as a secret of the workers, and pass secret://NAME instead.';
end $$;
comment on function jobforge.refuse_keys(text, text) is 'Refuse a text that is to be stored and holds an obvious key or token.';

create or replace function jobforge.require_action(p_job_type text) returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
begin
  if not pg_catalog.pg_has_role(session_user, 'jobforge_action_execute', 'member') then
    perform jobforge.note_refusal();
    raise exception '% acts outside this database, and the login may not start such jobs', p_job_type using errcode = 'JF403',
      hint = 'Make the login with: jobforge login create --scope action:execute';
  end if;
end $$;
comment on function jobforge.require_action(text) is 'Refuse a login that may not start what acts outside.';

-- Only a login that is bound to a tenant is asked what it may start: whoever acts as jobforge_api has asked its caller.
create or replace function jobforge.require_startable(p_job_type text, p_idempotency_key text) returns integer
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
declare
  v_job record;
begin
  select i.cost, i.asks_for into v_job from jobforge.installed_job(p_job_type) i;
  if v_job.asks_for is not null and jobforge.enter_own_scope() is not null then
    if v_job.asks_for = 'permission' then
      perform jobforge.note_refusal();
      raise exception '% asks whoever starts it for more than a login can have', p_job_type using errcode = 'JF403',
        hint = 'Start it with a policy token, through a server or a client.';
    end if;
    perform jobforge.require_action(p_job_type);
    if p_idempotency_key is null then
      raise exception '% acts outside this database, so it must not be started twice by accident', p_job_type using errcode = 'JF400',
        detail = 'IDEMPOTENCY_KEY_REQUIRED', hint = 'Pass an idempotency key, the same one when the call is repeated.';
    end if;
  end if;
  return nullif(v_job.cost, 1);
end $$;
comment on function jobforge.require_startable(text, text) is
  'Refuse a bound login a job that asks for more than it has; the cost of the job, null for one unit.';

-- A registered job is as strong as what stands behind it: a login that may not start a step may not start the composition.
create or replace function jobforge.require_steps_startable(p_job_type text, p_definition jsonb, p_idempotency_key text) returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
as $$
begin
  if p_definition is null or jobforge.enter_own_scope() is null then
    return;
  end if;
  if jsonb_path_exists(p_definition, '$.permissions[*] ? (@.action == "execute")')
    or jsonb_path_exists(p_definition, '$.pinned.permissions[*] ? (@.action == "execute")')
  then
    perform jobforge.note_refusal();
    raise exception 'the job % asks its callers for scopes or roles, which plain SQL cannot show', p_job_type using errcode = 'JF403',
      hint = 'Enqueue it through a server or client, with a token.';
  end if;
  if 'external' in (p_definition ->> 'effects', p_definition #>> '{pinned,effects}') then
    perform jobforge.require_action(p_job_type);
  end if;
  perform jobforge.require_startable(h.name, p_idempotency_key)
  from (
    select x.said #>> '{}' from jsonb_path_query(p_definition, '$.**.handler') x(said)
    union
    select x.said #>> '{}' from jsonb_path_query(p_definition, '$.pinned.handlers[*]') x(said)) h(name);
end $$;
comment on function jobforge.require_steps_startable(text, jsonb, text) is
  'Refuse a bound login a registered job of which it could not start every step.';

reset role;
