-- Creates a conversation that shares the messages of another one up to p_at_seq (null: all of them); once per request
-- key. o_status: forked | duplicate (the key was used before with the same hash: its fork) | not_found | out_of_range
-- | too_deep | conflict_key | exists (p_name belongs to another conversation).
--
-- With p_name the fork has this name. A conversation of that name that is the same fork is the result, once more.
--
-- The conversation that becomes the parent is locked, so that no rewind moves its messages meanwhile; if one has, the
-- chain is walked again.
--
-- A fork at a message that the source itself reads from its parent becomes a fork of that parent, so that chains stay
-- short. It shows what the source shows, so it expires with it.
create or replace function exai.fork_v1(
  p_owner text, p_continuation_id text, p_new_id uuid, p_turn_id uuid, p_key text, p_hash text, p_at_seq bigint,
  p_title text, p_name text)
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
  v_base bigint := 0;
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
        n := w;
        select c.* into w from public.conversations c where c.id = n.parent_id for key share;
        if not exists (select from public.conversations c
                        where c.id = n.id and c.parent_id = n.parent_id and c.parent_seq = n.parent_seq) then
          select c.* into w from public.conversations c where c.id = v.id;
        end if;
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
    if v_status = 'forked' and p_name is not null then
      n := exai.claim_name_v1(p_owner, p_name, p_new_id, '{}');
      v_base := n.revision;
      if n.id <> p_new_id then
        v_status := case when n.parent_id = w.id and n.parent_seq = v_at then 'known' else 'exists' end;
      end if;
    end if;
    if v_status = 'forked' then
      with k as (
        insert into public.turns (id, conversation_id, owner, request_key, request_hash, tool, state, claimed_by,
                                  lease_until, revision, finished_at)
        values (p_turn_id, p_new_id, p_owner, p_key, p_hash, 'conversation_fork', 'finished', p_turn_id,
                pg_catalog.clock_timestamp(), v_base + 1, pg_catalog.clock_timestamp())
        on conflict do nothing
        returning 1),
      c as (
        insert into public.conversations (id, owner, continuation_id, title, metadata, tags, expires_at, parent_id,
                                          parent_seq, next_seq, revision)
        select p_new_id, p_owner, p_new_id::text, coalesce(p_title, v.title), v.metadata, v.tags, v.expires_at, w.id, v_at,
               v_at + 1, 1
          from k
         where p_name is null
        returning 1),
      named as (
        update public.conversations c
           set title = coalesce(p_title, v.title), metadata = v.metadata, tags = v.tags, expires_at = v.expires_at,
               parent_id = w.id, parent_seq = v_at, next_seq = v_at + 1, revision = v_base + 1,
               edited_revision = v_base + 1, changed_xid = pg_catalog.pg_current_xact_id()
          from k
         where c.id = p_new_id and p_name is not null
        returning 1)
      insert into public.conversation_files (conversation_id, file_id, source)
      select p_new_id, f.file_id, f.source
        from (select from c union all select from named) g cross join public.conversation_files f
       where f.conversation_id = v.id order by f.file_id;
      -- Finds this request's fork, or that of a concurrent request with the same key.
      select x.* into t from public.turns x where x.owner = p_owner and x.request_key = p_key;
      if p_name is not null and t.id <> p_turn_id then
        raise exception 'the request key was used for another conversation meanwhile' using errcode = '40001';
      end if;
    end if;
  end if;
  if t.id is not null then
    select c.* into n from public.conversations c where c.id = t.conversation_id;
    v_status := case
      when t.id = p_turn_id then 'forked'
      when t.request_hash <> p_hash then 'conflict_key'
      when n.deleted_at is not null then 'not_found'
      else 'duplicate' end;
  elsif v_status = 'known' then
    v_status := 'duplicate';
  end if;
  return query select 'head', pg_catalog.json_build_object(
    'status', v_status, 'last_seq', v.next_seq - 1, 'base_revision', v_base, 'server_epoch', exai.server_epoch_v1(),
    'conversation', case when v_status in ('forked', 'duplicate') then exai.header_v1(n) end)::text;
end
$$
