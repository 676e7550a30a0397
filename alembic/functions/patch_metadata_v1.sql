-- Returns metadata with a shallow patch: without the fields in `remove`, and with those of `values`; or, if the patch has
-- it, `whole` instead, which was made of the metadata at revision `base`.
create or replace function exai.patch_metadata_v1(p_metadata jsonb, p_patch jsonb) returns jsonb
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
select case when p_patch ? 'whole' then p_patch -> 'whole'
            else (case when jsonb_typeof(p_metadata) = 'object' then p_metadata else '{}' end
                  - array(select jsonb_array_elements_text(coalesce(p_patch -> 'remove', '[]'))))
                 || coalesce(p_patch -> 'values', '{}') end
$$
