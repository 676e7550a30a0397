-- Returns messages of the caller's conversation, newest first: those before p_before_seq (null: the newest), at most
-- p_limit, and at most 4 MiB beyond the first. A fork continues into the conversations it was forked from. For clients
-- that read over PostgREST: what the policies hide from them has no page.
create or replace function public.exai_page(
  p_continuation_id text, p_before_seq bigint default null, p_limit integer default 50)
returns table (seq bigint, role text, kind text, content text, metadata jsonb, turn_id uuid, created_at timestamptz)
language sql stable security invoker rows 50
set search_path = pg_catalog, pg_temp
as $$
select m.seq, m.role, m.kind, m.content, m.metadata, m.turn_id, m.created_at
  from public.conversations c
 cross join lateral exai.shared_page_v1(
   c.id, coalesce(p_before_seq, 9223372036854775807), least(greatest(coalesce(p_limit, 50), 1), 200)) m
 where c.continuation_id = p_continuation_id and c.deleted_at is null
   and c.owner = (select nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')
 order by m.seq desc
$$
