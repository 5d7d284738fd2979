begin;
select jobforge.enter_scope('acme');
select why.*
from jobforge.list_runs('acme', null, 'queued', null, null, null, null, 10) as run,
  lateral jobforge.explain_run('acme', run.job_id) as why;
select * from jobforge.queue_stats('acme');
commit;
