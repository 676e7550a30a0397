-- Creates a conversation that shares the messages of another one up to p_at_seq (null: all of them); once per request
-- key. o_status: forked | duplicate (the key was used before with the same hash: its fork) | not_found | out_of_range
-- | too_deep | conflict_key.
--
-- A fork at a message that the source itself reads from its parent becomes a fork of that parent, so that chains stay
-- short. It shows what the source shows, so it expires with it.
create or replace function exai.fork_v1(
  p_owner text, p_continuation_id text, p_new_id uuid, p_turn_id uuid, p_key text, p_hash text, p_at_seq bigint,
  p_title text)
returns table (part text, data text)
language plpgsql rows 1
set search_path = "$user", public, extensions, pg_temp
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
  c_max_depth constant integer := 64;
  v public.conversations;
  w public.conversations;
  n public.conversations;
  t public.turns;
  v_at bigint;
  v_depth integer := 0;
  v_status text := 'forked';
begin
  select x.* into t from public.turns x where x.owner = p_owner and x.request_key = p_key;
  if t.id is null then
    select c.* into v from public.conversations c
     where c.owner = p_owner and c.continuation_id = p_continuation_id and c.deleted_at is null
       for key share;
    if not found then
      v_status := 'not_found';
    else
      v_at := coalesce(p_at_seq, v.next_seq - 1);
      if v_at < 0 or v_at >= v.next_seq then
        v_status := 'out_of_range';
      end if;
    end if;
    if v_status = 'forked' then
      w := v;
      while w.parent_id is not null and v_at <= w.parent_seq loop
        select c.* into w from public.conversations c where c.id = w.parent_id;
      end loop;
      n := w;
      while n.parent_id is not null loop
        v_depth := v_depth + 1;
        select c.* into n from public.conversations c where c.id = n.parent_id;
      end loop;
      if v_depth >= c_max_depth then
        v_status := 'too_deep';
      end if;
    end if;
    if v_status = 'forked' then
      with k as (
        insert into public.turns (id, conversation_id, owner, request_key, request_hash, tool, state, claimed_by,
                                  lease_until, revision, finished_at)
        values (p_turn_id, p_new_id, p_owner, p_key, p_hash, 'conversation_fork', 'finished', p_turn_id,
                pg_catalog.clock_timestamp(), 1, pg_catalog.clock_timestamp())
        on conflict do nothing
        returning 1),
      c as (
        insert into public.conversations (id, owner, continuation_id, title, metadata, tags, expires_at, parent_id,
                                          parent_seq, next_seq, revision)
        select p_new_id, p_owner, p_new_id::text, coalesce(p_title, v.title), v.metadata, v.tags, v.expires_at, w.id, v_at,
               v_at + 1, 1
          from k
        returning 1)
      insert into public.conversation_files (conversation_id, file_id, source)
      select p_new_id, f.file_id, f.source from c cross join public.conversation_files f
       where f.conversation_id = v.id order by f.file_id;
      -- Finds this request's fork, or that of a concurrent request with the same key.
      select x.* into t from public.turns x where x.owner = p_owner and x.request_key = p_key;
    end if;
  end if;
  if t.id is not null then
    select c.* into n from public.conversations c where c.id = t.conversation_id;
    v_status := case
      when t.id = p_turn_id then 'forked'
      when t.request_hash <> p_hash then 'conflict_key'
      when n.deleted_at is not null then 'not_found'
      else 'duplicate' end;
  end if;
  return query select 'head', pg_catalog.json_build_object(
    'status', v_status, 'last_seq', v.next_seq - 1, 'server_epoch', exai.server_epoch_v1(),
    'conversation', case when v_status in ('forked', 'duplicate') then exai.header_v1(n) end)::text;
end
$$
