-- Patches the metadata of the conversations of p_also, which lock_records_v1 has locked, and makes those that do not exist.
-- Returns for each, in the given order, its header and the revisions before and after; unchanged if p_apply is false,
-- and null for one that does not exist then.
create or replace function exai.patch_records_v1(p_owner text, p_also jsonb, p_apply boolean) returns json
language plpgsql
set search_path = "$user", public, extensions, pg_temp
as $$
declare
  a record;
  v public.conversations;
  v_found json[] := pg_catalog.array_fill(null::json, array[pg_catalog.jsonb_array_length(p_also)]);
  v_base bigint;
begin
  for a in
    select x.value ->> 'name'::text as name, (x.value ->> 'id'::text)::uuid as id, x.value as patch, x.place::integer as place,
           coalesce(x.value ->> 'expected'::text, x.value ->> 'base'::text)::bigint as expected
      from pg_catalog.jsonb_array_elements(p_also) with ordinality x(value, place)
     order by 1
  loop
    if p_apply then
      v := exai.claim_name_v1(p_owner, a.name, a.id, '{}');
      v_base := v.revision;
      if a.expected = 0 and v.id <> a.id then
        raise exception 'the conversation was made meanwhile' using errcode = '40001';
      end if;
      update public.conversations c
         set metadata = exai.patch_metadata_v1(c.metadata, a.patch), revision = v_base + 1, edited_revision = v_base + 1,
             changed_xid = pg_catalog.pg_current_xact_id(), updated_at = pg_catalog.clock_timestamp()
       where c.id = v.id
      returning c.* into v;
    else
      select c.* into v from public.conversations c
       where c.owner = p_owner and c.continuation_id = a.name and c.deleted_at is null;
      v_base := v.revision;
    end if;
    if v.id is not null then
      v_found[a.place] := pg_catalog.json_build_object(
        'base_revision', v_base, 'revision', v.revision, 'conversation', exai.live_header_v1(v));
    end if;
  end loop;
  return pg_catalog.to_json(v_found);
end
$$
