-- Fills in what somebody else left empty in a conversation: older clients did, and nothing stopped them.
create or replace function exai.fill_conversation_v1() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  new.continuation_id := coalesce(new.continuation_id, new.id::text);
  new.metadata := coalesce(new.metadata, '{}');
  new.created_at := coalesce(new.created_at, now());
  new.updated_at := coalesce(new.updated_at, new.created_at);
  return new;
end
$$
