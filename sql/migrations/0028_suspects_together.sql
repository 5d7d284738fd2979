-- Suspects are claimed a few at a time at first, and alone only when they were lost a second time.

set local role jobforge_owner;

comment on column jobforge.ready.is_suspect is
  'Lost before together with others: claimed apart from what was not, so that a job that kills its worker is found out.';
alter table jobforge.ready add column most_together smallint;
comment on column jobforge.ready.most_together is
  'As many suspects as this may be claimed in one lease: the root of how many their worker held. Null: a suspect is claimed alone.';
alter table jobforge.leases drop constraint leases_suspects_are_alone;

reset role;
