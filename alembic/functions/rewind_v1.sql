-- Makes a conversation what it was after message p_to (or without its p_drop newest messages), once per request key, and
-- returns the messages that were cut, newest first: at most p_limit, and at most p_budget bytes beyond the first. status:
-- rewound | unchanged (nothing to cut) | duplicate (the key was used before with the same hash) | not_found |
-- out_of_range | too_deep | conflict_revision | conflict_key.
--
-- The cut messages, with their turns, move to a deleted conversation, a fork that continues the rest. Its own messages
-- are those of the conversations in cut_from. If it begins where the conversation ends, an earlier one is extended
-- instead: then several rewinds in a row leave one. Forks that read cut messages become forks of it. Messages are
-- deleted and inserted again, not updated, so that the triggers on both renew words, revisions of forks, and caches.
--
-- The lock excludes those who make a fork. Forks that read cut messages are locked, because a statement that reads a
-- fork's history in steps holds the fork's lock.
create or replace function exai.rewind_v1(
  p_owner text, p_continuation_id text, p_cut_id uuid, p_turn_id uuid, p_key text, p_hash text, p_to bigint,
  p_drop bigint, p_expected bigint, p_limit integer, p_budget bigint)
returns table (part text, seq bigint, role text, content text, created_at timestamptz, kind text, turn_id text,
               data text, key text)
language plpgsql rows 2
set search_path = "$user", public, extensions, pg_temp
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
  c_max_depth constant integer := 64;
  c_kept_chars constant integer := 460;
  v public.conversations;
  s public.conversations;
  w public.conversations;
  t public.turns;
  m record;
  v_now timestamptz;
  v_last bigint;
  v_to bigint;
  v_depth integer := 0;
  v_below integer;
  v_status text;
  v_base bigint;
  v_before bigint;
  v_left integer := p_limit;
  v_bytes bigint := p_budget;
begin
  select c.* into v from public.conversations c
   where c.owner = p_owner and c.continuation_id = p_continuation_id
     for update;
  v_base := v.revision;
  v_last := v.next_seq - 1;
  v_to := coalesce(p_to, greatest(v_last - p_drop, 0));
  if v.id is not null then
    select x.* into t from public.turns x where x.owner = p_owner and x.request_key = p_key;
  end if;
  if v.id is null or (v.deleted_at is not null and t.id is null) then
    v_status := 'not_found';
  elsif t.id is not null then
    v_status := case when t.request_hash <> p_hash or t.conversation_id <> v.id then 'conflict_key'
                     when v.deleted_at is not null then 'not_found' else 'duplicate' end;
    v_to := (t.metadata ->> 'to'::text)::bigint;
    v_last := (t.metadata ->> 'last'::text)::bigint;
    select c.* into s from public.conversations c where c.id = (t.metadata ->> 'cut'::text)::uuid;
  elsif p_expected is not null and p_expected <> v.revision then
    v_status := 'conflict_revision';
  elsif v_to > v_last then
    v_status := 'out_of_range';
  else
    v_status := case when v_to = v_last then 'unchanged' else 'rewound' end;
  end if;

  if v_status = 'rewound' then
    v_now := pg_catalog.clock_timestamp();
    -- Locks the forks that read what is cut, and finds how many of them follow on each other.
    with recursive touched(id, depth) as (
      select c.id, 1 from public.conversations c where c.parent_id = v.id and c.parent_seq > v_to
      union
      select c.id, x.depth + 1 from public.conversations c join touched x on c.parent_id = x.id
       where c.parent_seq > v_to),
    locked as (
      select c.id from public.conversations c where c.id in (select x.id from touched x) order by c.id for no key update)
    select coalesce(pg_catalog.max(x.depth), 0) into v_below from touched x join locked l on l.id = x.id;
    select c.* into s from public.conversations c
     where c.parent_id = v.id and c.parent_seq = v_last and c.cut_from[1] = v.id and c.deleted_at is not null
     order by c.deleted_at desc, c.id
     limit 1;
    w := v;
    while w.parent_id is not null loop
      v_depth := v_depth + 1;
      select c.* into w from public.conversations c where c.id = w.parent_id;
    end loop;
    if v_depth + v_below + 1 >= c_max_depth then
      v_status := 'too_deep';
    end if;
  end if;
  if v_status = 'rewound' then
    if s.id is null then
      insert into public.conversations as c (id, owner, continuation_id, former_name, cut_from, title, metadata, tags, next_seq,
                                             revision, edited_revision, created_at, updated_at, deleted_at)
      values (p_cut_id, p_owner, pg_catalog.left(p_continuation_id, c_kept_chars) || '~' || p_cut_id, p_continuation_id,
              v.id || coalesce(v.cut_from, '{}'), v.title, v.metadata, v.tags, v.next_seq, 1, 1, v.created_at, v_now, v_now)
      returning c.* into s;
      insert into public.conversation_files (conversation_id, file_id, source)
      select s.id, f.file_id, f.source from public.conversation_files f where f.conversation_id = v.id order by f.file_id;
    end if;
    update public.conversations c
       set parent_id = case when v_to <= v.parent_seq then v.parent_id when v_to > 0 then v.id end,
           parent_seq = case when v_to <= v.parent_seq then v.parent_seq when v_to > 0 then v_to end,
           deleted_at = v_now, updated_at = v_now
     where c.id = s.id
    returning c.* into s;
    with moved as (
      delete from public.messages x where x.conversation_id = v.id and x.seq > v_to
      returning x.seq, x.turn_id, x.role, x.kind, x.content, x.metadata, x.message_key, x.created_at)
    insert into public.messages (conversation_id, seq, turn_id, role, kind, content, metadata, message_key, created_at)
    select s.id, x.seq, x.turn_id, x.role, x.kind, x.content, x.metadata, x.message_key, x.created_at
      from moved x
     order by x.seq;
    update public.turns x set conversation_id = s.id
     where x.conversation_id = v.id and greatest(x.last_seq, x.reply_last_seq) > v_to;
    update exai.answers a set conversation_id = s.id where a.conversation_id = v.id and a.seq > v_to;
    -- A trigger increases their revisions.
    update public.conversations c set parent_id = s.id
     where c.parent_id = v.id and c.parent_seq > v_to and c.id <> s.id;
    -- Triggers have changed its revision as well.
    update public.conversations c
       set next_seq = v_to + 1, revision = c.revision + 1, edited_revision = c.revision + 1,
           parent_seq = case when c.parent_id is not null then least(c.parent_seq, v_to) end,
           reply_seq = case when c.reply_seq <= v_to then c.reply_seq end,
           reply_kind = case when c.reply_seq <= v_to then c.reply_kind end,
           changed_xid = pg_catalog.pg_current_xact_id(), updated_at = v_now
     where c.id = v.id
    returning c.* into v;
  end if;
  if v_status in ('rewound', 'unchanged') then
    insert into public.turns (id, conversation_id, owner, request_key, request_hash, tool, state, claimed_by, lease_until,
                              revision, metadata, finished_at)
    values (p_turn_id, v.id, p_owner, p_key, p_hash, 'conversation_rewind', 'finished', p_turn_id,
            pg_catalog.clock_timestamp(), v.revision,
            pg_catalog.jsonb_build_object('cut', s.id, 'to', v_to, 'last', v_last), pg_catalog.clock_timestamp())
    on conflict do nothing;
    if not found then
      raise exception 'the request key was used for another conversation meanwhile' using errcode = '40001';
    end if;
  end if;

  if v_status in ('rewound', 'duplicate') and s.id is not null then
    w := s;
    v_before := v_last + 1;
    <<walk>>
    for v_level in 0 .. c_max_depth loop
      for m in
        select x.seq, x.role, x.content, x.created_at, x.kind, x.turn_id, x.metadata, x.message_key
          from public.messages x
         where x.conversation_id = w.id and x.seq < v_before and x.seq > v_to
         order by x.seq desc
         limit v_left
      loop
        v_bytes := v_bytes - pg_catalog.octet_length(m.content) - coalesce(pg_catalog.octet_length(m.metadata::text), 0);
        exit walk when v_bytes < 0 and v_left < p_limit;
        part := 'cut'; seq := m.seq; role := m.role; content := m.content; created_at := m.created_at; kind := m.kind;
        turn_id := m.turn_id; data := nullif(m.metadata, '{}'); key := m.message_key;
        return next;
        v_left := v_left - 1;
      end loop;
      exit walk when v_left <= 0 or w.parent_id is null or w.parent_seq <= v_to;
      v_before := least(v_before, w.parent_seq + 1);
      select c.* into w from public.conversations c where c.id = w.parent_id;
    end loop;
  end if;
  return query select 'head', null::bigint, null, null, null::timestamptz, null, null, pg_catalog.json_build_object(
    'status', case when t.id = p_turn_id and v_status = 'duplicate' then 'rewound' else v_status end,
    'base_revision', case when v_status = 'rewound' then v_base else v.revision end, 'revision', v.revision,
    'last_seq', v_last, 'cut_count', case when v_status in ('rewound', 'duplicate') then v_last - v_to else 0 end,
    'cut', case when v_status in ('rewound', 'duplicate') and s.id is not null then exai.header_v1(s) end, 'server_epoch', exai.server_epoch_v1(),
    'conversation', case when v_status in ('rewound', 'unchanged', 'duplicate') then exai.live_header_v1(v) end)::text, null;
end
$$
