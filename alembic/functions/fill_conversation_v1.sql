-- Fills columns that another program left empty in a conversation, and corrects values that clients could not use: a
-- name longer than a request may name, metadata that is not an object. Original values are kept under `adopted`.
create or replace function exai.fill_conversation_v1() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c_name_chars constant integer := 500;
  v_original jsonb := '{}';
begin
  if jsonb_typeof(new.metadata) <> 'object' then
    v_original := v_original || jsonb_build_object('metadata', new.metadata);
    new.metadata := '{}';
  end if;
  if length(new.continuation_id) > c_name_chars then
    v_original := v_original || jsonb_build_object('continuation_id', new.continuation_id);
    new.continuation_id := null;
  end if;
  new.continuation_id := coalesce(nullif(new.continuation_id, ''), new.id::text);
  new.metadata := coalesce(new.metadata, '{}');
  new.created_at := coalesce(new.created_at, now());
  new.updated_at := coalesce(new.updated_at, new.created_at);
  if v_original <> '{}' then
    new.metadata := new.metadata || jsonb_build_object('adopted', v_original);
  end if;
  return new;
end
$$
