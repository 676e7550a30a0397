-- Gives a conversation whose name is taken another name while an older system's tables are adopted, because its
-- clients could use a name twice until then. The lock makes two concurrent uses of a name see each other.
create or replace function exai.name_conversation_v1() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_advisory_xact_lock(1702388073, hashtext(new.continuation_id));
  if exists (select from public.conversations c
              where c.owner = new.owner and c.continuation_id = new.continuation_id and c.id <> new.id) then
    new.metadata := case when jsonb_typeof(new.metadata) = 'object' then new.metadata else '{}' end
                    || jsonb_build_object('duplicate_of', new.continuation_id);
    new.continuation_id := new.continuation_id || '~' || new.id;
  end if;
  return new;
end
$$
