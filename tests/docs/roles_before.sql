create role jobforge_migrator login createrole password 'change-me-1';
create database jobs owner jobforge_migrator;
