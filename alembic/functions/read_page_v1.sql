-- Returns the newest p_limit messages before p_before_seq (null: the newest of all), without the p_skip newest ones,
-- as JSON: at least one if there is one, otherwise within p_budget bytes. A fork continues into its parents. Stable,
-- so that everything is read from the caller's snapshot.
--
-- Usually returns one row: the conversation in `head`, and in `messages` one line for each message, oldest first,
-- joined as in exai/pages.py, which halves the caller's work. For a fork, for a page with a long message, and where
-- rows were removed, `messages` is null in that row, and each message has a row of its own, newest first.
--
-- Of a message that alone exceeds the budget, and with p_char_offset of any message, only a part is returned, with
-- its number of characters in `head`. Contents that are not returned are not read.
create or replace function exai.read_page_v1(
  p_owner text, p_continuation_id text, p_before_seq bigint, p_skip bigint, p_limit integer, p_budget bigint,
  p_char_offset integer)
returns table (head text, messages bytea)
language plpgsql stable rows 1
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
  c_max_depth constant integer := 64;
  c_short_bytes constant integer := 65536;
  c_char_bytes constant integer := 4;
  v public.conversations;
  r public.messages;
  v_head text;
  v_before bigint;
  v_first bigint;
  v_left integer := p_limit;
  v_bytes bigint := p_budget;
  v_line text;
  v_chars integer;
begin
  select c.* into v from public.conversations c
   where c.owner = p_owner and c.continuation_id = p_continuation_id and c.deleted_at is null;
  if not found then
    return;
  end if;
  v_head := json_build_object('conversation', exai.live_header_v1(v), 'server_epoch', exai.server_epoch_v1())::text;
  v_before := least(p_before_seq, v.next_seq - p_skip);
  if v.parent_id is null and p_char_offset = 0 then
    v_first := greatest(v_before - p_limit, 1);
    return query
      select v_head, convert_to(p.lines, 'UTF8')
        from (select string_agg(x.line, E',\n') as lines, count(x.line) as found
                from (select case when octet_length(m.content) <= c_short_bytes then {{message_line}} end as line
                        from public.messages m
                       where m.conversation_id = v.id and m.seq >= v_first and m.seq < v_before
                       order by m.seq) x) p
       where p.found = v_before - v_first and coalesce(octet_length(p.lines), 0) <= p_budget;
    if found then
      return;
    end if;
  end if;
  return query select v_head, null::bytea;
  <<walk>>
  for v_depth in 0 .. c_max_depth loop
    for r in
      select m.* from public.messages m
       where m.conversation_id = v.id and m.seq < v_before
       order by m.seq desc
       limit v_left
    loop
      if octet_length(r.content) > v_bytes or p_char_offset > 0 then
        exit walk when v_left < p_limit;
        v_chars := char_length(r.content);
        -- A content that is not stored as it was given has no parts; the caller cuts it.
        if not starts_with(r.content, '$exai1$') and not starts_with(r.content, '$exai0$') then
          r.content := substr(r.content, p_char_offset + 1, (p_budget / c_char_bytes)::integer);
        end if;
        return query select json_build_object('chars', v_chars)::text, convert_to(exai.message_line_v1(r), 'UTF8');
        return;
      end if;
      v_line := exai.message_line_v1(r);
      v_bytes := v_bytes - octet_length(v_line);
      exit walk when v_bytes < 0 and v_left < p_limit;
      return query select null::text, convert_to(v_line, 'UTF8');
      v_left := v_left - 1;
    end loop;
    exit walk when v_left <= 0 or v.parent_id is null;
    v_before := least(v_before, v.parent_seq + 1);
    select c.* into v from public.conversations c where c.id = v.parent_id;
  end loop;
end
$$
