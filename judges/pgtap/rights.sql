-- Who may do what, asked in another tool's words: pgTAP reads the same catalogue with code that is not ours.

begin;
create role nobody_in_particular nologin;
set search_path = judge, public;
select no_plan();

select has_schema('jobforge');
select schema_owner_is('jobforge', 'jobforge_owner');
select is_empty(
  $$ select c.relname from pg_class c where c.relnamespace = 'jobforge'::regnamespace and c.relkind = 'r'
     and not (c.relrowsecurity and c.relforcerowsecurity) $$,
  'row level security is enabled and forced on every table');
select table_privs_are('jobforge', t.tablename, r.name, array[]::text[], r.name || ' has no right on ' || t.tablename)
from pg_tables t
cross join unnest(array['jobforge_api', 'jobforge_worker', 'jobforge_scheduler', 'jobforge_readonly', 'jobforge_auditor']) r(name)
where t.schemaname = 'jobforge';
select function_privs_are('jobforge', p.proname, string_to_array(nullif(oidvectortypes(p.proargtypes), ''), ', '), 'nobody_in_particular',
  array[]::text[], 'a role without a grant may not execute ' || p.proname)
from pg_proc p where p.pronamespace = 'jobforge'::regnamespace and p.prokind = 'f';
select is_definer('jobforge', n.name, n.name || ' runs as its owner')
from unnest(array['enqueue_jobs', 'get_run', 'cancel_job', 'retry_job', 'claim_jobs', 'complete_jobs', 'fail_jobs']) n(name);
select isnt_superuser(r.rolname, r.rolname || ' is no superuser') from pg_roles r where r.rolname in
  ('jobforge_owner', 'jobforge_rpc', 'jobforge_sys', 'jobforge_api', 'jobforge_worker', 'jobforge_readonly', 'jobforge_auditor');

select * from finish();
rollback;
