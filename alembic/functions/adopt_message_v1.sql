-- Fits a message that an older client wrote to what a message has to be, instead of turning the client away.
-- Only there where an older system's tables were taken over.
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
