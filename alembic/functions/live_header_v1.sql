-- Returns the fields of header_v1 and the running turns, for the statements whose header is cached with a page.
create or replace function exai.live_header_v1(v public.conversations) returns json
language sql stable
set search_path = pg_catalog, pg_temp
as $$
select pg_catalog.json_build_object(
  'id', v.id, 'continuation_id', v.continuation_id, 'owner', v.owner, 'title', v.title, 'metadata', v.metadata,
  'tags', v.tags, 'parent_id', v.parent_id, 'parent_seq', v.parent_seq, 'former_name', v.former_name,
  'cut_from', v.cut_from, 'last_seq', v.next_seq - 1,
  'revision', v.revision,
  'expires_at', case when v.expires_at between '0001-01-02 00:00:00+00' and '9999-12-31 00:00:00+00' then v.expires_at end,
  'created_at', v.created_at, 'updated_at', v.updated_at,
  'pending', exai.pending_turns_v1(v.id))
$$
