-- Claims a turn, stores its question, and returns the history that the caller lacks. A turn that was begun without a
-- question, because its files were still being read, receives it when the same claimant, or a later one, has it; for a
-- claimant whose turn was ended meanwhile the status is 'ended'. Rows: 'message' (history, newest
-- first), 'system' (the newest system message older than all returned and cached ones), 'stored' (the question of a
-- resumed turn), 'reply' (of a finished turn), and one 'head', last.
--
-- The history ends when p_budget bytes are used: it is read from the newest message backwards through the primary
-- key, never as a whole. Each message counts 16 bytes more than its content, so that many empty messages also reach
-- the limit. Metadata has a limit of its own.
create or replace function exai.begin_turn_v1(
  p_owner text, p_continuation_id text, p_new_id uuid, p_turn_id uuid, p_key text, p_hash text, p_tool text,
  p_title text, p_lease_s double precision, p_provider text, p_model text,
  p_roles text[], p_contents text[], p_kinds text[], p_metadata text[], p_files text[], p_expected bigint,
  p_budget bigint, p_known_revision bigint, p_known_low bigint, p_known_high bigint, p_known_size bigint,
  p_claim text)
returns table (part text, seq bigint, role text, content text, created_at timestamptz, kind text, turn_id text, data text)
language plpgsql rows 10
set search_path = "$user", public, extensions, pg_temp
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
  c_max_depth constant integer := 64;
  c_message_overhead constant integer := 16;
  c_batch constant integer := 50;
  c_metadata_bytes constant bigint := 16777216;
  v_count constant bigint := pg_catalog.cardinality(p_roles);
  s record;
  m record;
  v public.conversations;
  w public.conversations;
  t public.turns;
  v_status text;
  v_full boolean;
  v_floor bigint := 0;
  v_before bigint;
  v_left bigint := p_budget;
  v_metadata bigint := c_metadata_bytes;
  v_found integer;
begin
  s := exai.store_turn_v1(p_owner, p_continuation_id, p_new_id, p_turn_id, p_key, p_hash, p_tool, p_title, 'pending',
                          p_lease_s, p_provider, p_model, p_roles, p_contents, p_kinds, p_metadata, p_files, p_expected,
                          null, null, null);
  v_status := case s.o_status when 'new' then 'started' when 'deleted' then 'not_found' else s.o_status end;
  if s.o_detail = 'cut' and s.o_status = 'old' then
    -- The question was cut off by a rewind, so it is not asked again; an answer that it had is given again.
    select x.* into t from public.turns x where x.id = s.o_turn_id;
    v_status := case t.state when 'finished' then 'finished' else 'cut' end;
  elsif s.o_status = 'old' then
    -- Conversations are always locked before turns; a new one was not locked by the claim.
    perform 1 from public.conversations c where c.id = s.o_conversation_id for no key update;
    update public.turns x
       set state = 'pending', attempt = x.attempt + 1, claimed_by = p_turn_id, finished_at = null,
           lease_until = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => p_lease_s),
           provider = p_provider, model = p_model, cost = null, reserved = null, reserved_prompt = null,
           is_estimated = x.is_estimated or (x.cost is null and x.reserved is not null),
           earlier_cost = coalesce(x.earlier_cost, 0) + coalesce(x.cost, x.reserved_prompt, 0)
     where x.id = s.o_turn_id
       and ((x.state = 'failed' and (x.claimed_by <> p_turn_id or x.first_seq is not null or v_count = 0))
            or (x.state = 'pending' and x.claimed_by <> p_turn_id and x.lease_until <= pg_catalog.clock_timestamp()));
    select x.* into t from public.turns x where x.id = s.o_turn_id;
    -- The same claimant again lost the first reply, and receives it again with everything it may lack; or it began the
    -- turn without its question, which it has now.
    v_status := case when t.state = 'finished' then 'finished'
                     when t.claimed_by <> p_turn_id then 'pending'
                     when t.state = 'failed' then 'ended'
                     when t.attempt = 1 then 'started'
                     else 'resumed' end;
  end if;
  if s.o_conversation_id is not null and v_status <> 'not_found' then
    select c.* into v from public.conversations c where c.id = s.o_conversation_id;
    if v.deleted_at is not null then
      v_status := 'not_found';
    end if;
  end if;

  if v_status in ('started', 'resumed') and t.first_seq is null and t.id is not null and v_count > 0 then
    update public.turns x
       set first_seq = v.next_seq, last_seq = v.next_seq + v_count - 1, revision = v.revision + 1,
           provider = p_provider, model = p_model
     where x.id = t.id
    returning x.* into t;
    v.next_seq := v.next_seq + v_count;
    v.revision := v.revision + 1;
    v.updated_at := pg_catalog.clock_timestamp();
    with c as (
      update public.conversations c
         set next_seq = v.next_seq, revision = v.revision, changed_xid = pg_catalog.pg_current_xact_id(),
             updated_at = v.updated_at
       where c.id = v.id),
    f as (
      insert into public.conversation_files (conversation_id, file_id)
      select v.id, f.id from public.files f where f.owner = p_owner and f.id = any(p_files::uuid[]) order by 2
      on conflict do nothing)
    insert into public.messages (conversation_id, seq, turn_id, role, kind, content, metadata, created_at)
    select v.id, t.first_seq + u.ord - 1, t.id, u.role, u.kind,
           case when pg_catalog.starts_with(u.content, E'\x01$exai1$')
             then exai.place_v1(u.content, v.id, t.first_seq + u.ord - 1) else u.content end, coalesce(u.metadata::jsonb, '{}'), v.updated_at
      from unnest(p_roles, p_kinds, p_contents, p_metadata) with ordinality u(role, kind, content, metadata, ord);
  end if;

  if v_status in ('started', 'resumed') and coalesce(v.next_seq > 1, false) then
    v_full := not (s.o_status = 'new' and coalesce(
      p_known_high > 0 and p_known_revision between v.edited_revision and s.o_base, false));
    v_before := coalesce(s.o_first, t.first_seq, v.next_seq);
    if not v_full then
      v_floor := p_known_high;
    end if;
    w := v;
    <<walk>>
    for v_depth in 0 .. c_max_depth loop
      loop
        -- In batches, because without a limit the planner may sort the whole conversation first.
        v_found := 0;
        for m in
          select x.seq, x.role, x.content, x.created_at, x.kind, x.turn_id, x.metadata
            from public.messages x
           where x.conversation_id = w.id and x.seq < v_before and x.seq > v_floor
           order by x.seq desc
           limit c_batch
        loop
          v_left := v_left - pg_catalog.octet_length(m.content) - c_message_overhead;
          if v_left < 0 then
            -- The messages in the caller's cache would not be adjacent to the newer ones, so they are not used.
            v_full := v_full or v_floor > 0;
            exit walk;
          end if;
          part := 'message'; seq := m.seq; role := m.role; content := m.content; created_at := m.created_at;
          kind := m.kind; turn_id := m.turn_id; data := nullif(m.metadata, '{}');
          v_metadata := v_metadata - coalesce(pg_catalog.octet_length(data), 0);
          if v_metadata < 0 then
            v_full := v_full or v_floor > 0;
            exit walk;
          end if;
          return next;
          v_before := m.seq;
          v_found := v_found + 1;
        end loop;
        continue when v_found = c_batch;
        exit when v_floor = 0 or v_before <> v_floor + 1;
        v_left := v_left - p_known_size;
        v_before := p_known_low;
        v_floor := 0;
        exit walk when v_left <= 0;
      end loop;
      exit walk when w.parent_id is null or v_before <= 1;
      v_before := least(v_before, w.parent_seq + 1);
      select c.* into w from public.conversations c where c.id = w.parent_id;
    end loop;

    w := v;
    for v_depth in 0 .. c_max_depth loop
      return query
        select 'system', x.seq, x.role, x.content, x.created_at, x.kind, x.turn_id::text, nullif(x.metadata, '{}')::text
          from public.messages x
         where x.conversation_id = w.id and x.role = 'system' and x.seq < v_before
         order by x.seq desc
         limit 1;
      exit when found or w.parent_id is null;
      v_before := least(v_before, w.parent_seq + 1);
      select c.* into w from public.conversations c where c.id = w.parent_id;
    end loop;
  end if;

  if p_claim is not null and v_status in ('started', 'resumed') and t.reserved is null then
    perform exai.reserve_v1(p_owner, coalesce(t.id, s.o_turn_id), v.id, p_claim::jsonb, p_budget - v_left, p_budget);
  end if;

  if t.id is not null and v_status in ('started', 'resumed') then
    return query
      select 'stored', x.seq, x.role, x.content, x.created_at, x.kind, x.turn_id::text, nullif(x.metadata, '{}')::text
        from public.messages x
       where x.conversation_id = t.conversation_id and x.seq between t.first_seq and t.last_seq
       order by x.seq;
  elsif v_status = 'finished' then
    return query
      select 'reply', x.seq, x.role, x.content, x.created_at, x.kind, x.turn_id::text, nullif(x.metadata, '{}')::text
        from public.messages x
       where x.conversation_id = t.conversation_id and x.seq between t.reply_first_seq and t.reply_last_seq
         and x.turn_id = t.id
       order by x.seq;
  end if;

  return query select 'head', null::bigint, null, null, s.o_now, null, null, pg_catalog.json_build_object(
    'status', v_status, 'turn_id', coalesce(t.id, s.o_turn_id), 'attempt', coalesce(t.attempt, 1),
    'base_revision', case when s.o_status = 'new' then s.o_base when v_status = 'started' then t.revision - 1
                          else v.revision end,
    'revision', case when s.o_status <> 'new' and v_status = 'started' then t.revision
                     else coalesce(v.revision, s.o_revision) end,
    'first_seq', coalesce(t.first_seq, s.o_first), 'last_seq', coalesce(t.last_seq, s.o_last),
    'full', coalesce(v_full, true), 'server_epoch', exai.server_epoch_v1(), 'detail', s.o_detail,
    'conversation', case when v.id is not null then exai.live_header_v1(v) end,
    'turn', case when t.id is not null then exai.turn_v1(t) end)::text;
end
$$
