alter role jobforge_api password 'change-me-2';
alter role jobforge_worker password 'change-me-3';
