-- Stores one batch of an import, once per request key, with the times the messages had.
-- o_status: stored | duplicate | exists (other messages are there already) | gap (an earlier batch is missing)
--   | conflict_key | deleted. The first batch (p_first_seq 1) makes the conversation as p_header describes it. A last change
--   that is still to come is kept in its metadata: the time of a change in here is the clock's.
create or replace function exai.import_v1(
  p_owner text, p_continuation_id text, p_new_id uuid, p_turn_id uuid, p_key text, p_hash text, p_header jsonb,
  p_first_seq bigint, p_roles text[], p_contents text[], p_kinds text[], p_metadata text[], p_times text[])
returns table (part text, data text)
language plpgsql rows 1
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
  v_count constant bigint := pg_catalog.cardinality(p_roles);
  v public.conversations;
  t public.turns;
  v_now timestamptz := pg_catalog.clock_timestamp();
  v_status text;
begin
  if p_first_seq = 1 then
    insert into public.conversations (id, owner, continuation_id, title, metadata, tags, created_at, updated_at)
    values (p_new_id, p_owner, p_continuation_id, p_header ->> 'title'::text,
            coalesce(p_header -> 'metadata'::text, '{}') || case when (p_header ->> 'updated_at'::text)::timestamptz > v_now
              then pg_catalog.jsonb_build_object('imported', pg_catalog.jsonb_build_object('updated_at', p_header -> 'updated_at'::text))
              else '{}' end,
            array(select pg_catalog.jsonb_array_elements_text(coalesce(p_header -> 'tags'::text, '[]'))),
            coalesce((p_header ->> 'created_at'::text)::timestamptz, v_now),
            least((p_header ->> 'updated_at'::text)::timestamptz, v_now))
    on conflict do nothing;
  end if;
  select c.* into v from public.conversations c
   where c.owner = p_owner and c.continuation_id = p_continuation_id
     for no key update;
  select x.* into t from public.turns x where x.owner = p_owner and x.request_key = p_key;
  v_status := case
    when v.id is null then 'gap'
    when t.id is not null and (t.request_hash <> p_hash or t.conversation_id <> v.id) then 'conflict_key'
    when t.id is not null then case when t.id = p_turn_id then 'found' else 'duplicate' end
    when v.deleted_at is not null then 'deleted'
    when v.next_seq < p_first_seq then 'gap'
    when v.next_seq > p_first_seq then 'exists'
    else 'stored' end;
  if v_status = 'stored' then
    insert into public.turns (id, conversation_id, owner, request_key, request_hash, tool, state, claimed_by,
                              lease_until, first_seq, last_seq, revision, finished_at)
    values (p_turn_id, v.id, p_owner, p_key, p_hash, 'import', 'finished', p_turn_id, v_now,
            case when v_count > 0 then p_first_seq end, case when v_count > 0 then p_first_seq + v_count - 1 end,
            v.revision + 1, v_now);
    insert into public.messages (conversation_id, seq, turn_id, role, kind, content, metadata, created_at)
    select v.id, p_first_seq + u.ord - 1, p_turn_id, u.role, u.kind, u.content, coalesce(u.metadata::jsonb, '{}'),
           coalesce(u.at::timestamptz, v_now)
      from unnest(p_roles, p_kinds, p_contents, p_metadata, p_times) with ordinality u(role, kind, content, metadata, at, ord);
    update public.conversations c
       set next_seq = v.next_seq + v_count, revision = v.revision + 1, changed_xid = pg_catalog.pg_current_xact_id()
     where c.id = v.id
    returning c.* into v;
  end if;
  -- The same turn again is the same caller, who missed the answer.
  return query select 'head', pg_catalog.json_build_object(
    'status', case v_status when 'found' then 'stored' else v_status end, 'base_revision', v.revision - 1, 'revision', v.revision, 'inc', exai.incarnation_v1(),
    'conversation', case when v.id is not null then exai.header_v1(v) end)::text;
end
$$
