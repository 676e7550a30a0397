-- Creates the missing conversation that messages refer to, with the times of the first and last of them; returns 1 if
-- it was created. Messages without a conversation id share one. If its name is taken, it gets another one.
create or replace function exai.recover_conversation_v1(p_id uuid, p_first timestamptz, p_last timestamptz)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  c_nameless constant uuid := 'e8a10000-0000-4000-8000-000000000000';
  v_name text := case p_id when c_nameless then 'recovered' else p_id::text end;
  v_made integer;
begin
  if exists (select from public.conversations c where c.continuation_id = v_name) then
    v_name := v_name || '~' || p_id;
  end if;
  -- Not numbered yet if messages refer to it.
  insert into public.conversations (id, continuation_id, title, metadata, created_at, updated_at, next_seq)
  values (p_id, v_name, case p_id when c_nameless then 'Messages without a conversation' else 'Recovered' end,
          '{"adopted": {"conversation": "missing"}}', coalesce(p_first, now()), coalesce(p_last, now()),
          case when not exists (select from public.messages m where m.seq is null
                                   and (m.conversation_id = p_id or (m.conversation_id is null and p_id = c_nameless)))
               then coalesce((select max(m.seq) from public.messages m where m.conversation_id = p_id), 0) + 1 end)
  on conflict (id) do nothing;
  get diagnostics v_made = row_count;
  return v_made;
end
$$
