-- Stores messages as one block and links files, once per request key, and patches metadata; see store_turn_v1. Returns
-- one row 'head'; for a repeated request, rows 'stored' hold the messages of the first one that are still there. A
-- repetition with the same turn id comes from a caller that lost the reply, and is not reported as a duplicate.
create or replace function exai.append_v1(
  p_owner text, p_continuation_id text, p_new_id uuid, p_turn_id uuid, p_key text, p_hash text, p_tool text,
  p_title text, p_roles text[], p_contents text[], p_kinds text[], p_metadata text[], p_files text[],
  p_expected bigint, p_keys text[], p_times text[], p_header jsonb)
returns table (part text, seq bigint, role text, content text, created_at timestamptz, kind text, turn_id text, data text)
language plpgsql rows 1
set search_path = "$user", public, extensions, pg_temp
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
  v_also constant jsonb := p_header -> 'also'::text;
  s record;
  v public.conversations;
  t public.turns;
begin
  s := exai.store_turn_v1(p_owner, p_continuation_id, p_new_id, p_turn_id, p_key, p_hash, p_tool, p_title, 'finished',
                          0, null, null, p_roles, p_contents, p_kinds, p_metadata, p_files, p_expected,
                          p_keys, p_times, p_header);
  if s.o_conversation_id is not null then
    select c.* into v from public.conversations c where c.id = s.o_conversation_id;
  end if;
  if s.o_status = 'old' then
    select x.* into t from public.turns x where x.id = s.o_turn_id;
    return query select 'head', null::bigint, null, null, null::timestamptz, null, null, pg_catalog.json_build_object(
      'status', case when v.deleted_at is not null then 'deleted' when t.id = p_turn_id then 'appended'
                     else 'duplicate' end, 'turn_id', t.id,
      'base_revision', t.revision - case when t.first_seq is null then 0 else 1 end, 'revision', t.revision,
      'seqs', t.metadata -> 'seqs'::text, 'first_seq', t.first_seq, 'last_seq', t.last_seq,
      'records', case when v_also is not null then exai.patch_records_v1(p_owner, v_also, false) end,
      'server_epoch', exai.server_epoch_v1(), 'conversation', exai.live_header_v1(v))::text;
    return query
      select 'stored', m.seq, m.role, m.content, m.created_at, m.kind, m.turn_id::text, nullif(m.metadata, '{}')::text
        from public.messages m
       where m.conversation_id = t.conversation_id and m.seq between t.first_seq and t.last_seq and m.turn_id = t.id
       order by m.seq;
    return;
  end if;
  return query select 'head', null::bigint, null, null, s.o_now, null, null, pg_catalog.json_build_object(
    'status', case s.o_status when 'new' then 'appended' else s.o_status end, 'turn_id', s.o_turn_id,
    'base_revision', s.o_base, 'revision', s.o_revision, 'first_seq', s.o_first, 'last_seq', s.o_last,
    'server_epoch', exai.server_epoch_v1(), 'detail', s.o_detail, 'seqs', s.o_seqs, 'made', s.o_made,
    'records', case when v_also is not null and s.o_status = 'new' then exai.patch_records_v1(p_owner, v_also, true) end,
    'conversation', case when v.id is not null then exai.live_header_v1(v) end)::text;
end
$$
