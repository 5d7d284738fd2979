-- Events, the triggers that turn events and times into jobs, and what each trigger decided.
--
-- An event is written once and never changed but for the mark that its triggers were asked. A fire is one decision of one
-- trigger; its key, which is the event, the deduplication key or the scheduled time, is unique, so that however many
-- processes look at the same time or event, one of them makes the job.
-- Lock order: after `policy_tokens` and before `rate_buckets` stand `events`, then `triggers` (by tenant_id, name).

-- Roles are shared by all databases of a cluster, so another database may have made them, also at this moment.
do $$
begin
  begin create role jobforge_events_submit nologin; exception when duplicate_object or unique_violation then null; end;
  begin create role jobforge_events_read nologin; exception when duplicate_object or unique_violation then null; end;
end $$;

set local role jobforge_owner;

create domain jobforge.fire_decision as text collate "C"
  constraint fire_decision_is_known check (value in ('fired', 'planned', 'skipped', 'rate_limited', 'cooldown', 'disabled',
    'overlap', 'no_match', 'error', 'late', 'caught_up'));
comment on domain jobforge.fire_decision is
  'What a trigger decided: fired and caught_up made a job, planned would have; the others did not, and the reason says why.';

create table jobforge.events (
  tenant_id text collate "C" not null,
  id uuid not null,
  event_type text collate "C" not null,
  source text collate "C",
  subject text,
  project_id text collate "C",
  trace_id text not null,
  actor text,
  occurred_at timestamptz not null,
  received_at timestamptz not null,
  payload jsonb not null,
  attributes jsonb,
  contains_pii boolean not null default false,
  redaction_hints jsonb,
  idempotency_key text collate "C",
  input_hash bytea not null,
  depth smallint not null default 0,
  claimed_until timestamptz,
  processed_at timestamptz,
  expires_at timestamptz not null,
  constraint events_pkey primary key (tenant_id, id),
  constraint events_tenant_is_well_formed check (tenant_id ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$'),
  constraint events_project_is_well_formed check (project_id ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$'),
  constraint events_type_is_well_formed
    check (event_type ~ '^[A-Za-z0-9_-]+([.][A-Za-z0-9_-]+)*$' and octet_length(event_type) <= 100),
  constraint events_source_fits check (octet_length(source) between 1 and 255),
  constraint events_subject_fits check (octet_length(subject) between 1 and 500),
  constraint events_trace_id_fits check (octet_length(trace_id) between 1 and 255),
  constraint events_key_fits check (octet_length(idempotency_key) between 1 and 255),
  constraint events_payload_is_an_object check (jsonb_typeof(payload) = 'object'),
  constraint events_attributes_are_an_object check (jsonb_typeof(attributes) = 'object'),
  constraint events_hints_are_an_object check (jsonb_typeof(redaction_hints) = 'object'),
  constraint events_occurred_at_is_representable
    check (occurred_at >= '1970-01-01 00:00:00+00' and occurred_at < '10000-01-01 00:00:00+00'),
  constraint events_depth_in_range check (depth between 0 and 1000)
) with (autovacuum_vacuum_insert_scale_factor = 0.05);
comment on table jobforge.events is 'What was told to have happened: written once, and kept until it expires.';
comment on column jobforge.events.id is 'UUIDv7, made when the event was received.';
comment on column jobforge.events.source is 'Where it happened, in free text such as a URI of CloudEvents.';
comment on column jobforge.events.subject is 'What it happened to, such as order/17.';
comment on column jobforge.events.trace_id is 'The chain of causes it belongs to; its own id if none was given. Jobs that it starts carry it on.';
comment on column jobforge.events.attributes is 'Further members of its envelope, such as extension attributes of CloudEvents; nothing here is matched.';
comment on column jobforge.events.contains_pii is 'Whether it holds personal data: without hints nothing of the payload is shown to anybody.';
comment on column jobforge.events.redaction_hints is
  '{redactFields, encryptFields, retentionDays}: fields that are struck out wherever the event leaves this table.';
comment on column jobforge.events.input_hash is 'SHA-256 of the envelope as received: tells a repeated call from another one with the same key.';
comment on column jobforge.events.depth is 'How many events of the same trace that started jobs stand before it: what the loop guard looks at.';
comment on column jobforge.events.claimed_until is 'Until then one process is asking its triggers; only events that came without that have it.';
comment on column jobforge.events.processed_at is 'When its triggers were asked; null until then.';
comment on column jobforge.events.expires_at is 'After 90 days, or as many as the hints say, it may be purged.';
create unique index events_by_key on jobforge.events (tenant_id, idempotency_key) where idempotency_key is not null;
comment on index jobforge.events_by_key is 'submit_event: an event is stored once for each key.';
create index events_by_type on jobforge.events (tenant_id, event_type, id);
comment on index jobforge.events_by_type is 'list_events of one type.';
create index events_by_trace on jobforge.events (tenant_id, trace_id, depth);
comment on index jobforge.events_by_trace is 'next_event_depth: the deepest event of a trace.';
create index events_unprocessed on jobforge.events (tenant_id, id) where processed_at is null;
comment on index jobforge.events_unprocessed is 'claim_events; empty on most days.';
create index events_by_expiry on jobforge.events (tenant_id, expires_at);
comment on index jobforge.events_by_expiry is 'purge_events.';

create table jobforge.triggers (
  tenant_id text collate "C" not null,
  name text collate "C" not null,
  kind text collate "C" not null,
  version integer not null default 1,
  job_name text collate "C" not null,
  project_id text collate "C",
  is_enabled boolean not null,
  is_dry_run boolean not null,
  cron text,
  timezone text,
  catch_up text collate "C",
  catch_up_most integer,
  overlap text collate "C",
  jitter_ms integer,
  event_type text collate "C",
  event_prefix text collate "C",
  event_source text collate "C",
  match jsonb,
  input_mapping jsonb,
  input jsonb,
  dedupe_key jsonb,
  cooldown_ms integer,
  max_per_hour integer,
  next_fire_at timestamptz,
  paused_at timestamptz,
  disabled_reason text,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  created_by text,
  token_id text,
  claims jsonb not null default '{}',
  scopes text[] not null default '{}',
  roles text[] not null default '{}',
  constraint triggers_pkey primary key (tenant_id, name),
  constraint triggers_tenant_is_well_formed check (tenant_id ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$'),
  constraint triggers_project_is_well_formed check (project_id ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$'),
  constraint triggers_name_is_well_formed check (name ~ '^[a-z0-9][a-z0-9._-]{0,63}$'),
  constraint triggers_job_name_is_well_formed check (job_name ~ '^[a-z0-9][a-z0-9._-]{0,99}$'),
  constraint triggers_kind_is_known check (kind in ('cron', 'event')),
  constraint triggers_cron_has_a_schedule check (kind <> 'cron'
    or (cron is not null and timezone is not null and catch_up is not null and overlap is not null and event_type is null)),
  constraint triggers_event_has_a_type check (kind <> 'event'
    or (event_type is not null and event_prefix is not null and cron is null and next_fire_at is null)),
  constraint triggers_cron_fits check (octet_length(cron) <= 200 and octet_length(timezone) <= 100),
  constraint triggers_catch_up_is_known check (catch_up in ('none', 'one', 'all') and catch_up_most between 1 and 1000),
  constraint triggers_overlap_is_known check (overlap in ('skip', 'queue', 'cancel-previous')),
  constraint triggers_jitter_in_range check (jitter_ms between 0 and 3600000),
  constraint triggers_event_type_fits check (octet_length(event_type) between 1 and 100),
  constraint triggers_event_source_fits check (octet_length(event_source) between 1 and 255),
  constraint triggers_templates_fit check (octet_length(match::text) <= 16384 and octet_length(input_mapping::text) <= 65536
    and octet_length(dedupe_key::text) <= 4096 and octet_length(input::text) <= 1048576),
  constraint triggers_cooldown_in_range check (cooldown_ms between 0 and 604800000),
  constraint triggers_max_per_hour_in_range check (max_per_hour between 1 and 1000000)
) with (fillfactor = 70);
comment on table jobforge.triggers is 'Rules that turn a time or an event into a job, with the rights of whoever registered them.';
comment on column jobforge.triggers.version is 'Grows with every change; a decision that was made on an older one is refused.';
comment on column jobforge.triggers.project_id is 'Its jobs belong to it, and only events of it are looked at; null: the event''s, and all.';
comment on column jobforge.triggers.is_dry_run is 'Decisions are recorded as planned and start nothing.';
comment on column jobforge.triggers.catch_up is 'What becomes of times that passed while nobody looked: none, the last one, or all up to catch_up_most.';
comment on column jobforge.triggers.overlap is 'What happens while the run of the time before is open.';
comment on column jobforge.triggers.jitter_ms is 'A run starts up to this much after its time, always by the same amount for the same time.';
comment on column jobforge.triggers.event_type is 'Pattern of event types: * is one segment, a last ** the rest.';
comment on column jobforge.triggers.event_prefix is 'Its segments before the first wildcard: by these the triggers of an event are found.';
comment on column jobforge.triggers.event_source is 'Pattern of sources: * is any run of characters; null is every source and none.';
comment on column jobforge.triggers.match is 'Condition over {event}; null holds always.';
comment on column jobforge.triggers.input is 'Members of the run''s input that never change; the mapping''s come over them.';
comment on column jobforge.triggers.dedupe_key is 'Template of a key: of all events with the same one only the first fires.';
comment on column jobforge.triggers.next_fire_at is 'When a schedule is due next; null while it is not enabled or paused.';
comment on column jobforge.triggers.disabled_reason is 'Why it was switched off by the database itself, such as a revoked token.';
comment on column jobforge.triggers.created_by is 'Who registered this version: its jobs are enqueued with their rights and no others.';
comment on column jobforge.triggers.claims is 'What the registrar''s token carried besides scopes and roles.';
create index triggers_by_event on jobforge.triggers (tenant_id, event_prefix) where kind = 'event';
comment on index jobforge.triggers_by_event is 'match_triggers: those that could want an event of this type.';
create index triggers_due on jobforge.triggers (tenant_id, next_fire_at) where next_fire_at is not null;
comment on index jobforge.triggers_due is 'due_triggers and next_due_at.';
create index triggers_by_token on jobforge.triggers (tenant_id, token_id) where token_id is not null;
comment on index jobforge.triggers_by_token is 'revoke_token: the triggers that a token registered.';

create table jobforge.trigger_fires (
  tenant_id text collate "C" not null,
  trigger_name text collate "C" not null,
  fire_key text collate "C" not null,
  kind text collate "C" not null,
  trigger_version integer not null,
  scheduled_at timestamptz,
  event_id uuid,
  decision jobforge.fire_decision not null,
  reason text,
  job_id uuid,
  decided_at timestamptz not null,
  constraint trigger_fires_pkey primary key (tenant_id, trigger_name, fire_key),
  constraint trigger_fires_key_fits check (octet_length(fire_key) between 1 and 180),
  constraint trigger_fires_kind_is_known check (kind in ('cron', 'event', 'manual')),
  constraint trigger_fires_reason_fits check (char_length(reason) <= 1000),
  constraint trigger_fires_make_a_job check ((decision in ('fired', 'caught_up')) = (job_id is not null))
) with (autovacuum_vacuum_insert_scale_factor = 0.05);
comment on table jobforge.trigger_fires is 'Every decision of every trigger, one for each time or event: the history, and by its key the guard.';
comment on column jobforge.trigger_fires.fire_key is 'at:<scheduled time>, event:<event id>, key:<deduplication key> or manual:<id>.';
comment on column jobforge.trigger_fires.kind is 'What made the trigger decide: its schedule, an event, or somebody who ran it now.';
comment on column jobforge.trigger_fires.reason is 'Why it did not fire, in a sentence.';
create index trigger_fires_by_event on jobforge.trigger_fires (tenant_id, event_id) where event_id is not null;
comment on index jobforge.trigger_fires_by_event is 'submit_event, when it is repeated; next_event_depth.';
create index trigger_fires_by_time on jobforge.trigger_fires (tenant_id, trigger_name, decided_at);
comment on index jobforge.trigger_fires_by_time is 'list_trigger_fires and purge_events.';
create index trigger_fires_that_fired on jobforge.trigger_fires (tenant_id, trigger_name, decided_at) where job_id is not null;
comment on index jobforge.trigger_fires_that_fired is 'Cooldown, most per hour and overlap: the last jobs of a trigger.';

reset role;
