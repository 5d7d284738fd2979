-- What enqueue_jobs now asks once for each call (08_values.sql) is no longer asked of each row by each statement, the update
-- at a run's end included: Postgres reads and compiles the checks of a table anew in every statement, for half of what a
-- single enqueue cost and a third of what it costs in bulk. What an end must be stays with the table.

set local role jobforge_owner;

alter table jobforge.jobs
  drop constraint jobs_tenant_is_well_formed,
  drop constraint jobs_project_is_well_formed,
  drop constraint jobs_type_is_well_formed,
  drop constraint jobs_ordering_key_fits,
  drop constraint jobs_trace_id_fits,
  drop constraint jobs_version_fits,
  drop constraint jobs_priority_in_range,
  drop constraint jobs_max_attempts_in_range,
  drop constraint jobs_timeout_in_range,
  drop constraint jobs_backoff_in_range,
  drop constraint jobs_run_at_is_representable,
  drop constraint jobs_labels_are_an_object,
  drop constraint jobs_slot_is_whole,
  drop constraint jobs_rate_is_whole,
  drop constraint jobs_limit_keys_fit,
  drop constraint jobs_cost_in_range,
  drop constraint jobs_confinement_is_an_object;

reset role;
