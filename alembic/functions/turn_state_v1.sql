-- Returns the state of the turn with this request key; rows 'reply' hold its reply once it is finished, no row if unknown.
create or replace function exai.turn_state_v1(p_owner text, p_key text)
returns table (part text, seq bigint, role text, content text, created_at timestamptz, kind text, turn_id text, data text)
language plpgsql stable rows 2
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  t public.turns;
  v public.conversations;
begin
  select x.* into t from public.turns x where x.owner = p_owner and x.request_key = p_key;
  if not found then
    return;
  end if;
  select c.* into v from public.conversations c where c.id = t.conversation_id;
  return query select 'head', null::bigint, null, null, null::timestamptz, null, null, json_build_object(
    'turn', exai.turn_v1(t), 'conversation', exai.header_v1(v), 'server_epoch', exai.server_epoch_v1())::text;
  return query
    select 'reply', x.seq, x.role, x.content, x.created_at, x.kind, x.turn_id::text, nullif(x.metadata, '{}')::text
      from public.messages x
     where x.conversation_id = t.conversation_id and x.seq between t.reply_first_seq and t.reply_last_seq
     order by x.seq;
end
$$
