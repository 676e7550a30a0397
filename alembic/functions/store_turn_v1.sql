-- Claims a request key and stores its messages, once; shared by append_v1 and begin_turn_v1. o_status: new | old (the
-- key was used before with the same hash: see the turn) | not_found | deleted | conflict_key | conflict_revision |
-- file_not_found (o_detail: which).
--
-- Locks the conversation before it looks up anything: each statement here has a fresh snapshot, so it sees what
-- another writer committed meanwhile. A conversation that does not exist yet cannot be locked; there the key decides.
create or replace function exai.store_turn_v1(
  p_owner text, p_continuation_id text, p_new_id uuid, p_turn_id uuid, p_key text, p_hash text, p_tool text,
  p_title text, p_state text, p_lease_s double precision, p_provider text, p_model text,
  p_roles text[], p_contents text[], p_kinds text[], p_metadata text[], p_files text[], p_expected bigint,
  out o_status text, out o_conversation_id uuid, out o_turn_id uuid, out o_base bigint, out o_revision bigint,
  out o_first bigint, out o_last bigint, out o_now timestamptz, out o_detail text)
language plpgsql
set search_path = "$user", public, extensions, pg_temp
as $$
declare
  v_count constant bigint := pg_catalog.cardinality(p_roles);
  v_next bigint;
  v_deleted timestamptz;
  v_claimed boolean := false;
  v_hash text;
  v_owned uuid;
begin
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
      insert into public.conversations (id, owner, continuation_id, title, next_seq, revision, created_at, updated_at)
      select p_new_id, p_owner, p_new_id::text, p_title, 1 + v_count, 1, o_now, o_now from t
      returning 1),
    m as (
      insert into public.messages (conversation_id, seq, turn_id, role, kind, content, metadata, created_at)
      select p_new_id, u.ord, p_turn_id, u.role, u.kind, u.content, coalesce(u.metadata::jsonb, '{}'), o_now
        from c cross join unnest(p_roles, p_kinds, p_contents, p_metadata)
             with ordinality u(role, kind, content, metadata, ord)),
    f as (
      insert into public.conversation_files (conversation_id, file_id)
      select p_new_id, w.id::uuid from c cross join pg_catalog.unnest(p_files) w(id) order by 2
      on conflict do nothing)
    select exists (select from t) into v_claimed;
  else
    select c.id, c.next_seq, c.revision, c.deleted_at
      into o_conversation_id, v_next, o_base, v_deleted
      from public.conversations c
     where c.owner = p_owner and c.continuation_id = p_continuation_id
       for no key update;
    if not found then
      o_status := 'not_found';
      return;
    end if;
    if v_deleted is not null then
      o_status := 'deleted';
      return;
    end if;
    if p_expected is null or p_expected = o_base then
      o_now := pg_catalog.clock_timestamp();
      with t as (
        insert into public.turns (id, conversation_id, owner, request_key, request_hash, tool, state, claimed_by,
                                  lease_until, provider, model, first_seq, last_seq, revision, started_at, finished_at)
        values (p_turn_id, o_conversation_id, p_owner, p_key, p_hash, p_tool, p_state, p_turn_id,
                o_now + pg_catalog.make_interval(secs => p_lease_s), p_provider, p_model,
                case when v_count > 0 then v_next end, case when v_count > 0 then v_next + v_count - 1 end,
                o_base + 1, o_now, case when p_state = 'finished' then o_now end)
        on conflict do nothing
        returning 1),
      c as (
        update public.conversations c
           set next_seq = v_next + v_count, revision = o_base + 1, changed_xid = pg_catalog.pg_current_xact_id(),
               updated_at = o_now
          from t
         where c.id = o_conversation_id),
      m as (
        insert into public.messages (conversation_id, seq, turn_id, role, kind, content, metadata, created_at)
        select o_conversation_id, v_next + u.ord - 1, p_turn_id, u.role, u.kind, u.content,
               coalesce(u.metadata::jsonb, '{}'), o_now
          from t cross join unnest(p_roles, p_kinds, p_contents, p_metadata)
               with ordinality u(role, kind, content, metadata, ord)),
      f as (
        insert into public.conversation_files (conversation_id, file_id)
        select o_conversation_id, w.id::uuid from t cross join pg_catalog.unnest(p_files) w(id) order by 2
        on conflict do nothing)
      select exists (select from t) into v_claimed;
    end if;
  end if;

  if v_claimed then
    o_status := 'new';
    o_turn_id := p_turn_id;
    o_revision := o_base + 1;
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
  elsif v_hash <> p_hash or (p_continuation_id is not null and v_owned <> o_conversation_id) then
    o_status := 'conflict_key';
  else
    o_status := 'old';
    o_conversation_id := v_owned;
  end if;
end
$$
