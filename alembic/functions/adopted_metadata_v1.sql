-- Returns the metadata of an older system's message; original values that had to be changed are kept under `adopted`.
create or replace function exai.adopted_metadata_v1(p_metadata jsonb, p_role text, p_content text, p_time text)
returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
select case when x.original = '{}' then x.metadata
            else x.metadata || pg_catalog.jsonb_build_object('adopted', x.original
              || case when pg_catalog.jsonb_typeof(x.metadata -> 'adopted'::text) = 'object'
                      then x.metadata -> 'adopted'::text
                      else pg_catalog.jsonb_strip_nulls(
                        pg_catalog.jsonb_build_object('adopted', x.metadata -> 'adopted'::text)) end) end
  from (
    select case when pg_catalog.jsonb_typeof(p_metadata) = 'object' then p_metadata else '{}' end as metadata,
           case when p_role in ('system', 'user', 'assistant', 'tool') then '{}'::jsonb
                else pg_catalog.jsonb_build_object('role', p_role) end
           || case when p_content is null then pg_catalog.jsonb_build_object('content', null) else '{}' end
           || case when p_time is null then '{}' else pg_catalog.jsonb_build_object('created_at', p_time) end
           || case when pg_catalog.jsonb_typeof(p_metadata) not in ('object', 'null')
                   then pg_catalog.jsonb_build_object('metadata', p_metadata) else '{}' end as original) x
$$
