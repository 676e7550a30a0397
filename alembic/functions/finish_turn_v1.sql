-- Stores the outcome of one attempt: state, usage, cause, and the messages of the reply, if any. Locks the
-- conversation before the turn, as every writer does. A repeated call for the same attempt returns the same result;
-- for an attempt that another one has taken over it returns 'superseded' and writes nothing, and 'stale' if the answer
-- comes from the answer cache and p_origin, as JSON its conversation, number and turn, is no longer there. p_files are the
-- ids of files that hold parts of the reply, which are linked to the conversation with it; without one of them the status
-- is 'file_not_found', and nothing is written. The conversation's
-- reply_seq and reply_kind are the number and the kind of the last message of its newest outcome, for lists.
create or replace function exai.finish_turn_v1(
  p_owner text, p_turn_id uuid, p_attempt integer, p_state text,
  p_roles text[], p_contents text[], p_kinds text[], p_metadata text[],
  p_model text, p_input_tokens bigint, p_output_tokens bigint, p_cached_tokens bigint, p_reasoning_tokens bigint,
  p_cost numeric, p_error text, p_turn_metadata text, p_is_estimated boolean, p_origin text,
  p_files text[])
returns table (part text, seq bigint, role text, content text, created_at timestamptz, kind text, turn_id text, data text)
language plpgsql rows 1
set search_path = "$user", public, extensions, pg_temp
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
  v_count constant bigint := pg_catalog.cardinality(p_roles);
  v public.conversations;
  t public.turns;
  v_now timestamptz;
  v_base bigint;
  v_revision bigint;
  v_status text;
begin
  select c.* into v from public.conversations c
   where c.id = (select x.conversation_id from public.turns x where x.id = p_turn_id and x.owner = p_owner)
     for no key update;
  select x.* into t from public.turns x where x.id = p_turn_id and x.owner = p_owner for update;
  if t.id is null or t.attempt <> p_attempt or t.state not in ('pending', p_state) then
    v_status := 'superseded';
  elsif t.state = 'pending' and p_origin is not null and not exists (
      select from public.conversations c join public.messages m on m.conversation_id = c.id
       where c.id = (p_origin::jsonb ->> 0)::uuid and c.owner = p_owner and c.deleted_at is null
         and m.seq = (p_origin::jsonb ->> 1)::bigint and m.turn_id = (p_origin::jsonb ->> 2)::uuid) then
    v_status := 'stale';
  elsif t.state = p_state then
    v_status := 'duplicate';
  elsif exists (select from pg_catalog.unnest(p_files) g(id)
                 where not exists (select from public.files f where f.id = g.id::uuid and f.owner = p_owner)) then
    v_status := 'file_not_found';
  else
    v_status := 'finished';
    v_now := pg_catalog.clock_timestamp();
    v_base := v.revision;
    if v_count > 0 then
      v.next_seq := v.next_seq + v_count;
      v.revision := v.revision + 1;
      v.updated_at := v_now;
      with c as (
        update public.conversations c
           set next_seq = v.next_seq, revision = v.revision, changed_xid = pg_catalog.pg_current_xact_id(),
               updated_at = v_now, reply_seq = v.next_seq - 1, reply_kind = p_kinds[v_count]
         where c.id = v.id),
      f as (
        insert into public.conversation_files (conversation_id, file_id)
        select v.id, f.id from public.files f where f.owner = p_owner and f.id = any(p_files::uuid[]) order by 2
        on conflict do nothing)
      insert into public.messages (conversation_id, seq, turn_id, role, kind, content, metadata, created_at)
      select v.id, v.next_seq - v_count + u.ord - 1, p_turn_id, u.role, u.kind,
             case when pg_catalog.starts_with(u.content, E'\x01$exai1$')
               then exai.place_v1(u.content, v.id, v.next_seq - v_count + u.ord - 1) else u.content end,
             coalesce(u.metadata::jsonb, '{}'), v_now
        from unnest(p_roles, p_kinds, p_contents, p_metadata) with ordinality u(role, kind, content, metadata, ord);
      t.reply_first_seq := v.next_seq - v_count;
      t.reply_last_seq := v.next_seq - 1;
    else
      t.reply_first_seq := null;
      t.reply_last_seq := null;
    end if;
    update public.turns x
       set state = p_state, finished_at = v_now, model = coalesce(p_model, x.model), input_tokens = p_input_tokens,
           output_tokens = p_output_tokens, cached_tokens = p_cached_tokens, reasoning_tokens = p_reasoning_tokens,
           cost = p_cost, is_estimated = x.is_estimated or p_is_estimated, reserved = null, reserved_prompt = null, error = p_error::jsonb,
           metadata = coalesce(p_turn_metadata::jsonb, '{}'),
           reply_first_seq = t.reply_first_seq, reply_last_seq = t.reply_last_seq, reply_revision = v.revision
     where x.id = p_turn_id;
  end if;
  if v_status <> 'finished' and t.attempt = p_attempt and t.state = 'failed' and t.input_tokens is null then
    -- Another client cancelled the turn, so that only its cost remains to be stored.
    update public.turns x
       set input_tokens = p_input_tokens, output_tokens = p_output_tokens, cached_tokens = p_cached_tokens,
           reasoning_tokens = p_reasoning_tokens, cost = p_cost, reserved = null, reserved_prompt = null,
           is_estimated = x.is_estimated or p_is_estimated
     where x.id = p_turn_id;
  end if;
  if v_status = 'duplicate' then
    return query
      select 'stored', x.seq, x.role, x.content, x.created_at, x.kind, x.turn_id::text, nullif(x.metadata, '{}')::text
        from public.messages x
       where x.conversation_id = t.conversation_id and x.seq between t.reply_first_seq and t.reply_last_seq
       order by x.seq;
    v_base := t.reply_revision - case when t.reply_first_seq is null then 0 else 1 end;
    v_revision := t.reply_revision;
  end if;
  return query select 'head', null::bigint, null, null, v_now, null, null, pg_catalog.json_build_object(
    'status', v_status, 'first_seq', case when v_status in ('finished', 'duplicate') then t.reply_first_seq end,
    'seq', case when v_status in ('finished', 'duplicate') then t.reply_last_seq end,
    'base_revision', coalesce(v_base, v.revision), 'revision', coalesce(v_revision, v.revision), 'server_epoch', exai.server_epoch_v1(),
    'conversation', case when v.id is not null then exai.live_header_v1(v) end)::text;
end
$$
