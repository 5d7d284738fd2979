-- Who of the bound logins may select the views: those that are confined to no project, since a view knows tenants alone.

do $$
begin
  begin create role jobforge_tenant_views nologin; exception when duplicate_object or unique_violation then null; end;
end $$;

set local role jobforge_owner;

grant usage on schema jobforge to jobforge_tenant_views;

reset role;
