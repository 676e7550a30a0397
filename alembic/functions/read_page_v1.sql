-- The newest p_limit messages before p_before_seq (null: the newest of all), newest first, after one row 'head'.
-- A fork goes on into its parents. Stable, so that all of it is read from the caller's one snapshot.
create or replace function exai.read_page_v1(p_owner text, p_continuation_id text, p_before_seq bigint, p_limit integer)
returns table (part text, seq bigint, role text, content text, created_at timestamptz, kind text, turn_id text, data text)
language plpgsql stable rows 50
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  c_max_depth constant integer := 64;
  v public.conversations;
  v_id uuid;
  v_before bigint := coalesce(p_before_seq, 9223372036854775807);
  v_left bigint := p_limit;
  v_found bigint;
begin
  select c.* into v from public.conversations c
   where c.owner = p_owner and c.continuation_id = p_continuation_id and c.deleted_at is null;
  if not found then
    return;
  end if;
  return query select 'head', null::bigint, null, null, null::timestamptz, null, null,
    json_build_object('conversation', exai.header_v1(v), 'inc', exai.incarnation_v1())::text;
  v_id := v.id;
  for v_depth in 0 .. c_max_depth loop
    return query
      select 'message', m.seq, m.role, m.content, m.created_at, m.kind, m.turn_id::text, nullif(m.metadata, '{}')::text
        from public.messages m
       where m.conversation_id = v_id and m.seq < v_before
       order by m.seq desc
       limit v_left;
    get diagnostics v_found = row_count;
    v_left := v_left - v_found;
    exit when v_left <= 0 or v.parent_id is null;
    v_before := least(v_before, v.parent_seq + 1);
    select c.* into v from public.conversations c where c.id = v.parent_id;
    v_id := v.id;
  end loop;
end
$$
