-- The newest p_limit messages before p_before_seq (null: the newest of all), as JSON. A fork goes on into its parents.
-- Stable, so that all of it is read from the caller's one snapshot.
-- Mostly one row: the conversation in `head`, and in `messages` one line for each, oldest first, joined as
-- exai/pages.py has it, which is half the work for the caller. For a fork, where one message is long, and where others
-- removed some, `messages` is null there and each has a row of its own, newest first, so that no page can become longer
-- than a value may be.
create or replace function exai.read_page_v2(p_owner text, p_continuation_id text, p_before_seq bigint, p_limit integer)
returns table (head text, messages bytea)
language plpgsql stable rows 1
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  c_max_depth constant integer := 64;
  c_short_bytes constant integer := 65536;
  v public.conversations;
  v_head text;
  v_before bigint;
  v_first bigint;
  v_left bigint := p_limit;
  v_found bigint;
begin
  select c.* into v from public.conversations c
   where c.owner = p_owner and c.continuation_id = p_continuation_id and c.deleted_at is null;
  if not found then
    return;
  end if;
  v_head := json_build_object('conversation', exai.header_v1(v), 'inc', exai.incarnation_v1())::text;
  v_before := least(p_before_seq, v.next_seq);
  if v.parent_id is null then
    v_first := greatest(v_before - p_limit, 1);
    return query
      select v_head, convert_to(string_agg(x.line, E',\n') filter (where octet_length(x.line) <= c_short_bytes), 'UTF8')
        from (select exai.message_line_v1(m) as line
                from public.messages m
               where m.conversation_id = v.id and m.seq >= v_first and m.seq < v_before
               order by m.seq) x
      having count(*) = v_before - v_first and coalesce(max(octet_length(x.line)), 0) <= c_short_bytes;
    if found then
      return;
    end if;
  end if;
  return query select v_head, null::bytea;
  for v_depth in 0 .. c_max_depth loop
    return query
      select null::text, convert_to(exai.message_line_v1(m), 'UTF8')
        from public.messages m
       where m.conversation_id = v.id and m.seq < v_before
       order by m.seq desc
       limit v_left;
    get diagnostics v_found = row_count;
    v_left := v_left - v_found;
    exit when v_left <= 0 or v.parent_id is null;
    v_before := least(v_before, v.parent_seq + 1);
    select c.* into v from public.conversations c where c.id = v.parent_id;
  end loop;
end
$$
