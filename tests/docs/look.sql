begin;
select jobforge.enter_scope('acme');
select job_id, job_type, status, attempt_no, worker_id, lease_until, run_at
from jobforge.runs
where status in ('queued', 'running', 'waiting')
order by created_at;
commit;
