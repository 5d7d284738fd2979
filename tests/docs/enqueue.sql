begin;
insert into orders (id) values (42);
select run.job_id, run.outcome
from jobforge.enter_scope('acme') as scope(tenant_id),
  lateral jobforge.enqueue_job(scope.tenant_id, 'shop.receipt', '{"order": 42}',
    p_idempotency_key => 'receipt-42', p_max_attempts => 5) as run;
commit;
