-- Adapts a message of an older client to the rules of public.messages instead of rejecting it. Exists only where an
-- older system's tables were adopted.
create or replace function exai.adopt_message_v1() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  new.metadata := exai.adopted_metadata_v1(new.metadata, new.role, new.content, null);
  new.role := exai.adopted_role_v1(new.role);
  new.content := coalesce(new.content, '');
  new.created_at := coalesce(new.created_at, now());
  return new;
end
$$
