-- Who asks triggers sleeps on a topic of its own: workers hear of jobs only, and it hears of stored events only.

set local role jobforge_owner;

alter table jobforge.listeners drop constraint listeners_topic_is_known;
alter table jobforge.listeners add constraint listeners_topic_is_known check (topic in ('ready', 'runs', 'events'));

reset role;
