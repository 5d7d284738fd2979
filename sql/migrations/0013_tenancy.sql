-- What a job brings with it from whoever asked for it: what it costs, and which job types its children may be of.

set local role jobforge_owner;

alter table jobforge.jobs
  add column cost integer,
  add column confinement jsonb,
  -- checked for new rows; the old ones have none
  add constraint jobs_cost_in_range check (cost between 1 and 1000000) not valid,
  add constraint jobs_confinement_is_an_object check (jsonb_typeof(confinement) = 'object') not valid;
comment on column jobforge.jobs.cost is 'Units of a budget that a run uses, as its definition declares; null is 1.';
comment on column jobforge.jobs.confinement is
  'Job types that the token which enqueued the root of this job allowed and denied, for what its handlers enqueue; null if it confined nothing.';

reset role;
