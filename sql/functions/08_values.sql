-- What the values of new jobs must be, asked once for each call.
--
-- Called by what enqueues, registers and settles; every function belongs to jobforge_rpc and takes no lock. CHECK constraints
-- of the table would be read and compiled anew by every statement and asked of every row, also by the update at a run's end:
-- half of what a single enqueue cost.

set local role jobforge_rpc;

-- JSON text of at most so many bytes, and not much more once stored: `1e131071` is 8 bytes that become 131,072 digits
-- wherever the number is written out again. A double ends at 308 digits, and so do we. What could be such a number is
-- looked at again without the strings around it, and the size of the whole once more with the numbers written out.
create or replace function jobforge.require_small_json(p_texts text[], p_bytes integer, p_what text) returns void
language plpgsql immutable
set search_path = jobforge, pg_temp
as $$
declare
  v_text text := array_to_string(p_texts, ' ');
begin
  -- what is small in all is so in each: one look at thousands of short texts takes a tenth of one at each of them
  if p_texts is null or (octet_length(v_text) <= p_bytes and v_text !~ '[0-9][eE]'
    and (octet_length(v_text) < 200 or v_text !~ '[0-9]{200}'))
  then
    return;
  end if;
  if exists (select from unnest(p_texts) u(text) where octet_length(u.text) > p_bytes) then
    raise exception '% is larger than % bytes', p_what, p_bytes using errcode = 'JF413',
      hint = 'Store large data elsewhere and pass a reference.';
  end if;
  for v_text in
    select u.text from unnest(p_texts) u(text)
    where (octet_length(u.text) >= 200 or u.text ~ '[0-9][eE]')  -- most are short and plain, and the next is dear
      and u.text ~ '[0-9][eE][+-]?0*[1-9][0-9]|[0-9]{200}'
  loop
    if regexp_replace(v_text, '"([^"\\]|\\.)*"', '""', 'g')
      ~ '[eE][+-]?0*([1-9][0-9]{3}|[4-9][0-9]{2}|3[1-9][0-9]|309)|([0-9]{103}){3}'
    then
      raise exception '% holds a number of more than 308 digits', p_what using errcode = 'JF400',
        hint = 'Numbers must fit a double; send larger ones as text.';
    end if;
    if octet_length((v_text::jsonb)::text) > 2 * p_bytes then
      raise exception '% is larger than % bytes with its numbers written out', p_what, 2 * p_bytes using errcode = 'JF413',
        hint = 'Store large data elsewhere and pass a reference.';
    end if;
  end loop;
end $$;
comment on function jobforge.require_small_json(text[], integer, text) is 'Refuse JSON text that is too large, or would be once its numbers are written out.';

create or replace function jobforge.require_fitting_jobs(
  p_job_types text[], p_project_ids text[], p_ordering_keys text[], p_trace_ids text[], p_job_versions text[], p_labels text[],
  p_priorities integer[], p_max_attempts integer[], p_timeout_ms integer[], p_backoff_ms integer[], p_max_backoff_ms integer[],
  p_backoff_multipliers float8[], p_run_ats timestamptz[], p_costs integer[])
returns void
language plpgsql immutable
set search_path = jobforge, pg_temp
as $$
declare
  v_problem text;
begin
  -- null elements mean the default: a comparison with all of them is then unknown, never false
  v_problem := case
    when (p_job_types[1] ~ '^[a-z0-9][a-z0-9._-]{0,99}$') is not true then 'the job type must be 1 to 100 lower-case letters, digits, dots, hyphens or underscores'
    when p_priorities is not null and (0 <= all (p_priorities) and 3 >= all (p_priorities)) is false then 'a priority is 0 to 3, and 0 is first'
    when p_run_ats is not null
      and ('1970-01-01 00:00:00+00' <= all (p_run_ats) and '10000-01-01 00:00:00+00' > all (p_run_ats)) is false
      then 'a run is due from 1970 to 9999, in UTC'
    when p_max_attempts is not null and (1 <= all (p_max_attempts) and 1000 >= all (p_max_attempts)) is false
      then 'a job has 1 to 1,000 attempts'
    when p_timeout_ms is not null and (1 <= all (p_timeout_ms) and 604800000 >= all (p_timeout_ms)) is false
      then 'a timeout is 1 ms to 7 days'
    when (p_backoff_ms is not null or p_max_backoff_ms is not null or p_backoff_multipliers is not null)
      and (0 <= all (p_backoff_ms) and 0 <= all (p_max_backoff_ms)
        and 1 <= all (p_backoff_multipliers) and 100 >= all (p_backoff_multipliers)) is false
      then 'a backoff is 0 ms or more, and becomes 1 to 100 times as long'
    when p_costs is not null and (1 <= all (p_costs) and 1000000 >= all (p_costs)) is false then 'a cost is 1 to 1,000,000'
  end;
  if v_problem is null and (p_job_types[1] = all (p_job_types)) is not true
    and exists (select from (select distinct t.job_type from unnest(p_job_types) t(job_type)) d
      where (d.job_type ~ '^[a-z0-9][a-z0-9._-]{0,99}$') is not true)
  then
    v_problem := 'the job type must be 1 to 100 lower-case letters, digits, dots, hyphens or underscores';
  end if;
  if v_problem is null and num_nonnulls(p_project_ids, p_ordering_keys, p_trace_ids, p_job_versions, p_labels) > 0 then
    select case
      when u.project_id !~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$' then 'a project id has 1 to 63 letters, digits, dots, colons, hyphens or underscores'
      when octet_length(u.ordering_key) not between 1 and 255 then 'an ordering key has 1 to 255 bytes'
      -- an index row holds 2,704 bytes at most: without the cap a long trace id fails as a storage error
      when octet_length(u.trace_id) > 255 then 'a trace id has at most 255 bytes'
      when octet_length(u.job_version) not between 1 and 100 then 'a job version has 1 to 100 bytes'
      when jsonb_typeof(u.labels::jsonb) <> 'object' then 'labels are one object' end as problem
    into v_problem
    from unnest(p_project_ids, p_ordering_keys, p_trace_ids, p_job_versions, p_labels)
      u(project_id, ordering_key, trace_id, job_version, labels)
    where u.project_id !~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$' or octet_length(u.ordering_key) not between 1 and 255
      or octet_length(u.trace_id) > 255 or octet_length(u.job_version) not between 1 and 100
      or jsonb_typeof(u.labels::jsonb) <> 'object'
    limit 1;
  end if;
  if v_problem is not null then
    raise exception '%', v_problem using errcode = 'JF400', hint = 'Nothing was enqueued: correct the value.';
  end if;
end $$;
comment on function jobforge.require_fitting_jobs(text[], text[], text[], text[], text[], text[], integer[], integer[], integer[],
  integer[], integer[], float8[], timestamptz[], integer[]) is 'Refuse new jobs of which a value does not fit.';

reset role;
