-- Checks the patches of p_header (see store_turn_v1) before anything is stored: `patch` of a conversation with this
-- metadata and revision, and those of `also`, whose conversations it locks, in the order of their names. One that does not
-- exist, or is deleted, has the revision 0. o_status is null if all patches can be made, else conflict_revision | moved
-- (only `base` is not the revision) | too_large; o_name and o_revision are those of the conversation of `also`, if it is one.
create or replace function exai.check_patches_v1(
  p_owner text, p_metadata jsonb, p_revision bigint, p_header jsonb,
  out o_status text, out o_name text, out o_revision bigint)
language plpgsql
set search_path = "$user", public, extensions, pg_temp
as $$
declare
  v_patch constant jsonb := p_header -> 'patch'::text;
  v_most constant bigint := (p_header ->> 'most'::text)::bigint;
  a record;
  v public.conversations;
begin
  if v_patch is not null then
    o_status := case
      when (v_patch ->> 'base'::text)::bigint <> p_revision then 'moved'
      when pg_catalog.octet_length(exai.patch_metadata_v1(p_metadata, v_patch)::text) > v_most then 'too_large' end;
  end if;
  if o_status is not null or p_header -> 'also'::text is null then
    return;
  end if;
  for a in
    select x.value ->> 'name'::text as name, (x.value ->> 'expected'::text)::bigint as expected,
           (x.value ->> 'base'::text)::bigint as base, x.value as patch
      from pg_catalog.jsonb_array_elements(p_header -> 'also'::text) x(value)
     order by 1
  loop
    select c.* into v from public.conversations c
     where c.owner = p_owner and c.continuation_id = a.name and c.deleted_at is null
       for no key update;
    o_name := a.name;
    o_revision := coalesce(v.revision, 0);
    o_status := case
      when a.expected <> o_revision then 'conflict_revision'
      when a.base <> o_revision then 'moved'
      when pg_catalog.octet_length(exai.patch_metadata_v1(coalesce(v.metadata, '{}'), a.patch)::text) > v_most then 'too_large' end;
    if o_status is not null then
      return;
    end if;
  end loop;
  o_name := null;
  o_revision := null;
end
$$
