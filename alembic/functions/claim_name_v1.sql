-- Returns the conversation of this name, locked; makes it, without messages, if there is none or only a deleted one. A
-- deleted one is renamed to its name and its id (or, if a conversation has that name, p_new_id), and remembers its name as
-- former_name. The new conversation's id is
-- p_new_id, by which the caller recognizes that it was made.
--
-- Revisions do not decrease for a name: the new conversation begins at the revision that the renamed one has then, or
-- above that of the one that was purged, as long as that is recorded, so that a cache, which compares revisions, never
-- takes a page of the former conversation for one of the new one. For the same reason that is its edited_revision.
--
-- A name that does not exist cannot be locked; concurrent callers wait for each other by an advisory lock.
create or replace function exai.claim_name_v1(p_owner text, p_name text, p_new_id uuid, p_header jsonb)
returns public.conversations
language plpgsql
set search_path = "$user", public, extensions, pg_temp
as $$
declare
  c_lock constant bigint := 1702388074;
  c_kept_chars constant integer := 460;
  v public.conversations;
  v_base bigint := 0;
  v_kept text;
  v_now timestamptz;
begin
  select c.* into v from public.conversations c
   where c.owner = p_owner and c.continuation_id = p_name and c.deleted_at is null
     for no key update;
  if found then
    return v;
  end if;
  perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(p_owner || E'\n' || p_name, c_lock));
  select c.* into v from public.conversations c
   where c.owner = p_owner and c.continuation_id = p_name
     for no key update;
  if found and v.deleted_at is null then
    return v;
  end if;
  v_now := pg_catalog.clock_timestamp();
  if found then
    v_kept := pg_catalog.left(p_name, c_kept_chars) || '~' || v.id;
    if exists (select from public.conversations c where c.owner = p_owner and c.continuation_id = v_kept) then
      v_kept := pg_catalog.left(p_name, c_kept_chars) || '~' || p_new_id;
    end if;
    update public.conversations c
       set continuation_id = v_kept, former_name = p_name,
           revision = v.revision + 1, edited_revision = v.revision + 1, changed_xid = pg_catalog.pg_current_xact_id()
     where c.id = v.id;
    v_base := v.revision + 1;
  else
    select coalesce(pg_catalog.max(r.revision) + 1, 0) into v_base
      from exai.removed_conversations r
     where r.owner = p_owner and r.continuation_id = p_name;
  end if;
  insert into public.conversations as c (id, owner, continuation_id, title, metadata, tags, revision, edited_revision,
                                         created_at, updated_at)
  values (p_new_id, p_owner, p_name, p_header ->> 'title'::text, coalesce(p_header -> 'metadata'::text, '{}'),
          array(select pg_catalog.jsonb_array_elements_text(coalesce(p_header -> 'tags'::text, '[]'))), v_base, v_base,
          coalesce((p_header ->> 'created_at'::text)::timestamptz, v_now),
          least((p_header ->> 'updated_at'::text)::timestamptz, v_now))
  returning c.* into v;
  return v;
end
$$
