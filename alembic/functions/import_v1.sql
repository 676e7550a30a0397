-- Stores one batch of an import, once per request key, with the original times of the messages. status: stored (some
-- of its messages; the others existed) | duplicate (all of them existed) | exists (other messages have these numbers)
-- | gap (an earlier batch is missing) | conflict_key.
--
-- The first batch (p_first_seq 1) creates the conversation from p_header, or restores the same conversation if it was
-- deleted; a deleted one with other messages loses its name to the new one (claim_name_v1) if p_replaces, else that is
-- exists: encrypted messages are compared by the caller first. Messages are equal if their role, kind and content are; a
-- fork's are compared in the ancestors that hold them. A key that another message of the conversation has is not stored.
-- p_digests: of each message from which content was taken out, the SHA-256 of the whole, which may be stored. An updated_at
-- in the future is kept in the metadata, because the time of a change is the database's.
create or replace function exai.import_v1(
  p_owner text, p_continuation_id text, p_new_id uuid, p_turn_id uuid, p_key text, p_hash text, p_header jsonb,
  p_first_seq bigint, p_roles text[], p_contents text[], p_kinds text[], p_metadata text[], p_times text[],
  p_digests text[], p_keys text[], p_replaces boolean)
returns table (part text, data text)
language plpgsql rows 1
set search_path = "$user", public, extensions, pg_temp
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
  c_max_depth constant integer := 64;
  v_count constant bigint := pg_catalog.cardinality(p_roles);
  v public.conversations;
  w public.conversations;
  t public.turns;
  v_now timestamptz := pg_catalog.clock_timestamp();
  v_status text;
  v_here bigint := 0;
  v_same bigint := 0;
  v_found bigint;
  v_end bigint;
  v_stored bigint := 0;
  v_base bigint;
  v_restored boolean := false;
  v_known bigint[];
  v_header jsonb;
begin
  if p_first_seq = 1 then
    v_header := p_header || pg_catalog.jsonb_build_object('metadata',
      coalesce(p_header -> 'metadata'::text, '{}') || case when (p_header ->> 'updated_at'::text)::timestamptz > v_now
        then pg_catalog.jsonb_build_object('imported', pg_catalog.jsonb_build_object('updated_at', p_header -> 'updated_at'::text))
        else '{}' end);
    perform 1 from public.conversations c where c.owner = p_owner and c.continuation_id = p_continuation_id;
    if not found then
      perform exai.claim_name_v1(p_owner, p_continuation_id, p_new_id, v_header);
    end if;
  end if;
  select c.* into v from public.conversations c
   where c.owner = p_owner and c.continuation_id = p_continuation_id
     for no key update;
  v_base := v.revision;
  select x.* into t from public.turns x where x.owner = p_owner and x.request_key = p_key;
  if t.id is not null and (t.request_hash <> p_hash or t.conversation_id is distinct from v.id) then
    v_status := 'conflict_key';
  elsif v.id is null or (v.deleted_at is not null and p_first_seq > 1) or v.next_seq < p_first_seq then
    v_status := 'gap';
  else
    -- How many of the messages exist under their numbers, and how many of those are equal.
    v_end := least(v.next_seq, p_first_seq + v_count) - 1;
    v_here := v_end - p_first_seq + 1;
    w := v;
    for v_depth in 0 .. c_max_depth loop
      exit when v_end < p_first_seq;
      select pg_catalog.count(*) into v_found
        from unnest(p_roles, p_kinds, p_contents, p_digests) with ordinality u(role, kind, content, digest, ord)
        join public.messages m on m.conversation_id = w.id and m.seq = p_first_seq + u.ord - 1
       where m.seq between p_first_seq and v_end and (w.parent_seq is null or m.seq > w.parent_seq)
         and m.role = u.role and m.kind = u.kind and case when m.content = u.content then true when u.digest is null then false
                  else pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(m.content, 'UTF8')), 'hex') = u.digest end;
      v_same := v_same + v_found;
      exit when w.parent_id is null;
      v_end := least(v_end, w.parent_seq);
      select c.* into w from public.conversations c where c.id = w.parent_id;
    end loop;
    v_status := case when t.id = p_turn_id then 'stored'
                     when v_same < v_here then case when t.id is null then 'exists' else 'duplicate' end
                     when v_here = v_count and (v_count > 0 or v_base > 0) then 'duplicate'
                     else 'stored' end;
    if v_status = 'exists' and v.deleted_at is not null and p_first_seq = 1 and p_replaces then
      v := exai.claim_name_v1(p_owner, p_continuation_id, p_new_id, v_header);
      v_here := 0;
      v_status := 'stored';
    end if;
    if v_status = 'stored' then
      -- The same turn id again comes from the same caller, which lost the reply.
      v_stored := case when t.id = p_turn_id then coalesce(t.last_seq - t.first_seq + 1, 0) else v_count - v_here end;
    end if;
    v_restored := v_status <> 'exists' and v.deleted_at is not null;
  end if;
  if v_status = 'stored' and t.id is null then
    insert into public.turns (id, conversation_id, owner, request_key, request_hash, tool, state, claimed_by,
                              lease_until, first_seq, last_seq, revision, finished_at)
    values (p_turn_id, v.id, p_owner, p_key, p_hash, 'import', 'finished', p_turn_id, v_now,
            case when v_stored > 0 then p_first_seq + v_here end, case when v_stored > 0 then p_first_seq + v_count - 1 end,
            v.revision + 1, v_now);
    if p_keys is not null then
      v_known := exai.known_keys_v1(v.id, p_keys);
    end if;
    insert into public.messages (conversation_id, seq, turn_id, role, kind, content, metadata, message_key, created_at)
    select v.id, p_first_seq + u.ord - 1, p_turn_id, u.role, u.kind,
           case when pg_catalog.starts_with(u.content, E'\x01$exai1$')
             then exai.place_v1(u.content, v.id, p_first_seq + u.ord - 1) else u.content end,
           coalesce(u.metadata::jsonb, '{}'),
           case when u.known is null
                 and pg_catalog.row_number() over (partition by u.key order by u.ord) = 1 then u.key end,
           coalesce(u.at::timestamptz, v_now)
      from unnest(p_roles, p_kinds, p_contents, p_metadata, p_times, p_keys, v_known)
           with ordinality u(role, kind, content, metadata, at, key, known, ord)
     where u.ord > v_here;
  end if;
  if v_restored or (v_status = 'stored' and t.id is null) then
    update public.conversations c
       set next_seq = v.next_seq + case when t.id is null then v_stored else 0 end, revision = v.revision + 1,
           edited_revision = case when v_restored then v.revision + 1 else c.edited_revision end,
           reply_seq = case when v_stored > 0 then p_first_seq + v_count - 1 else c.reply_seq end,
           reply_kind = case when v_stored > 0 then p_kinds[v_count] else c.reply_kind end,
           updated_at = case when v_restored then v_now else c.updated_at end,
           deleted_at = null, changed_xid = pg_catalog.pg_current_xact_id()
     where c.id = v.id
    returning c.* into v;
  end if;
  return query select 'head', pg_catalog.json_build_object(
    'status', v_status, 'stored', v_stored, 'restored', v_restored, 'base_revision', v.revision - 1,
    'revision', v.revision, 'server_epoch', exai.server_epoch_v1(),
    'conversation', case when v.id is not null then exai.header_v1(v) end)::text;
end
$$
