-- Claims a request key and stores its messages, once; shared by append_v1 and begin_turn_v1. o_status: new | old (the
-- key was used before with the same hash: see the turn) | not_found | deleted | conflict_key | conflict_revision |
-- file_not_found (o_detail: which).
--
-- A message whose key (p_keys, null if no message has one) the conversation has already is not stored again; o_seqs are
-- then the numbers of all given messages. If no message is new, the conversation does not change. p_times are the times
-- of messages, null for the time of this statement. p_header has facts of a conversation that is made, and, with `create`,
-- asks to make one of this name if there is none; o_made tells that. With `updated_at` that is the time of the change.
--
-- p_header may also have `patch`, a shallow patch of the conversation's metadata, and `also`, patches of others, which are
-- only checked and locked here (check_patches_v1), and `most`, the largest size of metadata. Then o_status may be moved
-- (metadata has changed since `base`) or too_large, and o_detail names the other conversation that a refusal is about.
--
-- o_status is 'old' and o_detail 'cut' if a rewind has moved the messages of the key's turn to a deleted conversation.
--
-- Locks the conversation before it looks up anything: each statement here has a fresh snapshot, so it sees what
-- another writer committed meanwhile. A conversation that does not exist yet cannot be locked; there the key decides.
create or replace function exai.store_turn_v1(
  p_owner text, p_continuation_id text, p_new_id uuid, p_turn_id uuid, p_key text, p_hash text, p_tool text,
  p_title text, p_state text, p_lease_s double precision, p_provider text, p_model text,
  p_roles text[], p_contents text[], p_kinds text[], p_metadata text[], p_files text[], p_expected bigint,
  p_keys text[], p_times text[], p_header jsonb,
  out o_status text, out o_conversation_id uuid, out o_turn_id uuid, out o_base bigint, out o_revision bigint,
  out o_first bigint, out o_last bigint, out o_now timestamptz, out o_detail text,
  out o_made boolean, out o_seqs bigint[])
language plpgsql
set search_path = "$user", public, extensions, pg_temp
as $$
declare
  v_count bigint := pg_catalog.cardinality(p_roles);
  v_next bigint;
  v_deleted timestamptz;
  v_claimed boolean := false;
  v_hash text;
  v_owned uuid;
  v_known bigint[];
  v_grows boolean := true;
  v_cut boolean;
  v_patch constant jsonb := p_header -> 'patch'::text;
  v_metadata jsonb;
  n public.conversations;
begin
  o_made := false;
  -- The files of a repeated request may have been deleted since.
  if pg_catalog.cardinality(p_files) > 0
     and not exists (select from public.turns t where t.owner = p_owner and t.request_key = p_key) then
    select pg_catalog.string_agg(w.id, ', ') into o_detail from pg_catalog.unnest(p_files) w(id)
     where not exists (select from public.files f where f.id = w.id::uuid and f.owner = p_owner);
    if o_detail is not null then
      o_status := 'file_not_found';
      return;
    end if;
  end if;

  if p_continuation_id is null then
    o_conversation_id := p_new_id;
    o_base := 0;
    v_next := 1;
    o_now := pg_catalog.clock_timestamp();
    with t as (
      insert into public.turns (id, conversation_id, owner, request_key, request_hash, tool, state, claimed_by,
                                lease_until, provider, model, first_seq, last_seq, revision, started_at, finished_at)
      values (p_turn_id, p_new_id, p_owner, p_key, p_hash, p_tool, p_state, p_turn_id,
              o_now + pg_catalog.make_interval(secs => p_lease_s), p_provider, p_model,
              case when v_count > 0 then 1 end, nullif(v_count, 0), 1, o_now,
              case when p_state = 'finished' then o_now end)
      on conflict do nothing
      returning 1),
    c as (
      insert into public.conversations (id, owner, continuation_id, title, metadata, tags, next_seq, revision,
                                        created_at, updated_at)
      select p_new_id, p_owner, p_new_id::text, p_title, coalesce(p_header -> 'metadata'::text, '{}'),
             array(select pg_catalog.jsonb_array_elements_text(coalesce(p_header -> 'tags'::text, '[]'))),
             1 + v_count, 1, coalesce((p_header ->> 'created_at'::text)::timestamptz, o_now),
             least((p_header ->> 'updated_at'::text)::timestamptz, o_now)
        from t
      returning 1),
    m as (
      insert into public.messages (conversation_id, seq, turn_id, role, kind, content, metadata, message_key, created_at)
      select p_new_id, u.ord, p_turn_id, u.role, u.kind,
             case when pg_catalog.starts_with(u.content, E'\x01$exai1$')
               then exai.place_v1(u.content, p_new_id, u.ord) else u.content end,
             coalesce(u.metadata::jsonb, '{}'), u.key,
             coalesce(u.at::timestamptz, o_now)
        from c cross join unnest(p_roles, p_kinds, p_contents, p_metadata, p_keys, p_times)
             with ordinality u(role, kind, content, metadata, key, at, ord)),
    f as (
      insert into public.conversation_files (conversation_id, file_id)
      select p_new_id, w.id::uuid from c cross join pg_catalog.unnest(p_files) w(id) order by 2
      on conflict do nothing)
    select exists (select from t) into v_claimed;
    o_made := v_claimed;
  else
    select c.id, c.next_seq, c.revision, c.deleted_at
      into o_conversation_id, v_next, o_base, v_deleted
      from public.conversations c
     where c.owner = p_owner and c.continuation_id = p_continuation_id
       for no key update;
    if not found or v_deleted is not null then
      o_status := case when found then 'deleted' else 'not_found' end;
      if p_header -> 'create'::text is distinct from 'true' then
        return;
      end if;
      select t.conversation_id into v_owned from public.turns t where t.owner = p_owner and t.request_key = p_key;
      if found and not exists (
          select from public.conversations c
           where c.id = v_owned and c.continuation_id = p_continuation_id and c.deleted_at is null) then
        -- The conversation that this request changed is gone; it does not make another one.
        o_status := case when v_owned = o_conversation_id
                           or exists (select from public.conversations c where c.id = v_owned and c.former_name = p_continuation_id)
                         then 'deleted' else 'conflict_key' end;
        return;
      end if;
      if p_expected > 0 then
        o_status := 'conflict_revision';
        o_revision := 0;
        return;
      end if;
      select p.o_status, p.o_name, p.o_revision into o_status, o_detail, o_revision
        from exai.check_patches_v1(p_owner, coalesce(p_header -> 'metadata'::text, '{}'), 0, p_header) p;
      if o_status is not null then
        return;
      end if;
      n := exai.claim_name_v1(p_owner, p_continuation_id, p_new_id,
                              p_header || pg_catalog.jsonb_build_object('title', p_title));
      o_conversation_id := n.id;
      o_base := n.revision;
      v_next := n.next_seq;
      o_made := n.id = p_new_id;
    end if;
    if p_expected is null or p_expected = (case when o_made then 0 else o_base end) then
      o_now := pg_catalog.clock_timestamp();
      if pg_catalog.cardinality(p_keys) > 0 and not o_made then
        v_known := exai.known_keys_v1(o_conversation_id, p_keys);
        select pg_catalog.count(*) filter (where k.seq is null),
               pg_catalog.array_agg(coalesce(k.seq, v_next - 1 + k.place) order by k.ord)
          into v_count, o_seqs
          from (select u.seq, u.ord,
                       pg_catalog.count(*) filter (where u.seq is null) over (order by u.ord) as place
                  from pg_catalog.unnest(v_known) with ordinality u(seq, ord)) k;
      end if;
      v_grows := v_count > 0 or p_keys is null or o_made or v_patch is not null;
      if p_header is not null and not o_made then
        select c.metadata into v_metadata from public.conversations c where c.id = o_conversation_id;
        select p.o_status, p.o_name, p.o_revision into o_status, o_detail, o_revision
          from exai.check_patches_v1(p_owner, v_metadata, o_base, p_header) p;
        if o_status is not null
           and not exists (select from public.turns t where t.owner = p_owner and t.request_key = p_key) then
          return;
        end if;
        o_status := null;
        o_detail := null;
      end if;
      with t as (
        insert into public.turns (id, conversation_id, owner, request_key, request_hash, tool, state, claimed_by,
                                  lease_until, provider, model, metadata, first_seq, last_seq, revision, started_at,
                                  finished_at)
        values (p_turn_id, o_conversation_id, p_owner, p_key, p_hash, p_tool, p_state, p_turn_id,
                o_now + pg_catalog.make_interval(secs => p_lease_s), p_provider, p_model,
                case when o_seqs is null then '{}' else pg_catalog.jsonb_build_object('seqs', o_seqs) end,
                case when v_count > 0 then v_next end, case when v_count > 0 then v_next + v_count - 1 end,
                o_base + v_grows::integer, o_now, case when p_state = 'finished' then o_now end)
        on conflict do nothing
        returning 1),
      c as (
        update public.conversations c
           set next_seq = v_next + v_count, revision = o_base + 1, changed_xid = pg_catalog.pg_current_xact_id(),
               metadata = case when v_patch is null then c.metadata else exai.patch_metadata_v1(c.metadata, v_patch) end,
               edited_revision = case when v_patch is null then c.edited_revision else o_base + 1 end,
               updated_at = case when p_header ->> 'updated_at'::text is null then o_now
                                 else greatest(case when not o_made then c.updated_at end,
                                               least((p_header ->> 'updated_at'::text)::timestamptz, o_now)) end
          from t
         where c.id = o_conversation_id and v_grows),
      m as (
        insert into public.messages (conversation_id, seq, turn_id, role, kind, content, metadata, message_key, created_at)
        select o_conversation_id, coalesce(u.seq, v_next + u.ord - 1), p_turn_id, u.role, u.kind,
               case when pg_catalog.starts_with(u.content, E'\x01$exai1$')
                 then exai.place_v1(u.content, o_conversation_id, coalesce(u.seq, v_next + u.ord - 1)) else u.content end,
               coalesce(u.metadata::jsonb, '{}'), u.key, coalesce(u.at::timestamptz, o_now)
          from t cross join unnest(p_roles, p_kinds, p_contents, p_metadata, p_keys, p_times, v_known, o_seqs)
               with ordinality u(role, kind, content, metadata, key, at, known, seq, ord)
         where u.known is null),
      f as (
        insert into public.conversation_files (conversation_id, file_id)
        select o_conversation_id, w.id::uuid from t cross join pg_catalog.unnest(p_files) w(id) order by 2
        on conflict do nothing)
      select exists (select from t) into v_claimed;
      if o_made and not v_claimed then
        raise exception 'the request key was used for another conversation meanwhile' using errcode = '40001';
      end if;
    end if;
  end if;

  if v_claimed then
    o_status := 'new';
    o_turn_id := p_turn_id;
    o_revision := o_base + v_grows::integer;
    if v_count > 0 then
      o_first := v_next;
      o_last := v_next + v_count - 1;
    end if;
    return;
  end if;

  select t.id, t.conversation_id, t.request_hash into o_turn_id, v_owned, v_hash
    from public.turns t where t.owner = p_owner and t.request_key = p_key;
  if not found then
    o_status := 'conflict_revision';
    o_revision := o_base;
  elsif v_hash <> p_hash then
    o_status := 'conflict_key';
  elsif p_continuation_id is not null and v_owned <> o_conversation_id then
    select c.cut_from is not null into v_cut from public.conversations c where c.id = v_owned and c.former_name = p_continuation_id;
    o_status := case when v_cut is null then 'conflict_key' when v_cut then 'old' else 'deleted' end;
    o_detail := case when v_cut then 'cut' end;
  else
    o_status := 'old';
    o_conversation_id := v_owned;
  end if;
end
$$
