-- Returns the messages after p_after_seq up to p_up_to_seq (null: to the end), oldest first, after one row 'head': at
-- most p_limit, and at most p_budget bytes beyond the first one. A fork's messages are read from the ancestors that
-- hold them. Those of a deleted conversation are returned only with p_deleted.
create or replace function exai.read_forward_v1(
  p_owner text, p_continuation_id text, p_after_seq bigint, p_up_to_seq bigint, p_limit integer, p_budget bigint,
  p_deleted boolean)
returns table (part text, seq bigint, role text, content text, created_at timestamptz, kind text, turn_id text, data text, key text)
language plpgsql stable rows 100
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  c_max_depth constant integer := 64;
  c_batch constant integer := 50;
  v public.conversations;
  v_ids uuid[];
  v_ends bigint[];
  v_after bigint := p_after_seq;
  v_end bigint;
  v_left integer := p_limit;
  v_bytes bigint := p_budget;
  v_found integer;
  m record;
begin
  select c.* into v from public.conversations c
   where c.owner = p_owner and c.continuation_id = p_continuation_id and (c.deleted_at is null or p_deleted);
  if not found then
    return;
  end if;
  return query select 'head', null::bigint, null, null, null::timestamptz, null, null,
    json_build_object('conversation', exai.header_v1(v), 'server_epoch', exai.server_epoch_v1())::text, null;
  -- From the root down: each conversation and the last number that it holds.
  v_end := least(coalesce(p_up_to_seq, v.next_seq - 1), v.next_seq - 1);
  for v_depth in 0 .. c_max_depth loop
    v_ids := v.id || v_ids;
    v_ends := v_end || v_ends;
    exit when v.parent_id is null or v.parent_seq <= v_after;
    v_end := least(v_end, v.parent_seq);
    select c.* into v from public.conversations c where c.id = v.parent_id;
  end loop;
  for v_at in 1 .. cardinality(v_ids) loop
    loop
      v_found := 0;
      for m in
        select x.seq, x.role, x.content, x.created_at, x.kind, x.turn_id, x.metadata, x.message_key
          from public.messages x
         where x.conversation_id = v_ids[v_at] and x.seq > v_after and x.seq <= v_ends[v_at]
         order by x.seq
         limit least(c_batch, v_left)
      loop
        v_bytes := v_bytes - octet_length(m.content) - coalesce(octet_length(m.metadata::text), 0);
        if v_bytes < 0 and v_left < p_limit then
          return;
        end if;
        part := 'message'; seq := m.seq; role := m.role; content := m.content; created_at := m.created_at;
        kind := m.kind; turn_id := m.turn_id; data := nullif(m.metadata, '{}'); key := m.message_key;
        return next;
        v_after := m.seq;
        v_left := v_left - 1;
        v_found := v_found + 1;
      end loop;
      exit when v_found < c_batch or v_left = 0;
    end loop;
    exit when v_left = 0;
  end loop;
end
$$
