-- Changes title, metadata, tags or expires_at (those in p_change), deletes or restores a conversation; once per request key.
-- o_status: changed | unchanged (the values were already so) | duplicate (the key was used before with the same hash;
-- the conversation as of then, the revision as of now) | not_found | conflict_revision | conflict_key | name_taken (to
-- restore: another conversation has the name since; detail is the name that the deleted one has).
--
-- Only restoring sees deleted conversations. Locks the conversation before it looks up the key, so a repetition that
-- waited for the first request finds it.
create or replace function exai.change_conversation_v1(
  p_owner text, p_continuation_id text, p_turn_id uuid, p_key text, p_hash text, p_tool text, p_change jsonb,
  p_expected bigint)
returns table (part text, data text)
language plpgsql rows 1
set search_path = "$user", public, extensions, pg_temp
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
  v public.conversations;
  n public.conversations;
  t public.turns;
  v_now timestamptz;
  v_status text;
  v_detail text;
begin
  select c.* into v from public.conversations c
   where c.owner = p_owner and c.continuation_id = p_continuation_id
     for no key update;
  if v.id is not null then
    select x.* into t from public.turns x where x.owner = p_owner and x.request_key = p_key;
  end if;
  if t.id is not null then
    -- The same turn id again comes from the same caller, which lost the reply.
    v_status := case
      when t.request_hash <> p_hash or t.conversation_id <> v.id then 'conflict_key'
      when t.id = p_turn_id then 'changed'
      else 'duplicate' end;
    return query select 'head', pg_catalog.json_build_object(
      'status', v_status, 'base_revision', case v_status when 'changed' then t.revision - 1 else v.revision end,
      'revision', v.revision, 'server_epoch', exai.server_epoch_v1(),
      'conversation', case when v_status <> 'conflict_key' then t.metadata -> 'conversation'::text end)::text;
    return;
  end if;
  if v.id is null or (v.deleted_at is not null and not p_change ? 'deleted'::text) then
    return query select 'head', pg_catalog.json_build_object('status', 'not_found', 'server_epoch', exai.server_epoch_v1())::text;
    return;
  end if;
  if v.deleted_at is null and p_change ->> 'deleted'::text = 'false' then
    select c.continuation_id into v_detail from public.conversations c
     where c.owner = p_owner and c.former_name = p_continuation_id and c.cut_from is null and c.deleted_at is not null
     order by c.deleted_at desc
     limit 1;
    if found then
      return query select 'head', pg_catalog.json_build_object(
        'status', 'name_taken', 'detail', v_detail, 'server_epoch', exai.server_epoch_v1())::text;
      return;
    end if;
  end if;
  n := v;
  v_now := pg_catalog.clock_timestamp();
  if p_change ? 'title'::text then
    n.title := p_change ->> 'title'::text;
  end if;
  if p_change ? 'metadata'::text then
    n.metadata := p_change -> 'metadata'::text;
  end if;
  if p_change ? 'tags'::text then
    n.tags := array(select pg_catalog.jsonb_array_elements_text(p_change -> 'tags'::text));
  end if;
  if p_change ? 'expires_at'::text then
    n.expires_at := (p_change ->> 'expires_at'::text)::timestamptz;
  end if;
  if p_change ? 'deleted'::text then
    n.deleted_at := case when (p_change ->> 'deleted'::text)::boolean then coalesce(v.deleted_at, v_now) end;
  end if;
  v_status := case
    when n operator(pg_catalog.=) v then 'unchanged'
    when p_expected is not null and p_expected <> v.revision then 'conflict_revision'
    else 'changed' end;
  if v_status = 'changed' then
    n.revision := v.revision + 1;
    n.edited_revision := v.revision + 1;
    n.updated_at := v_now;
  elsif v_status = 'conflict_revision' then
    n := v;
  end if;
  if v_status <> 'conflict_revision' then
    insert into public.turns (id, conversation_id, owner, request_key, request_hash, tool, state, claimed_by, lease_until,
                              revision, metadata, finished_at)
    values (p_turn_id, v.id, p_owner, p_key, p_hash, p_tool, 'finished', p_turn_id, v_now, n.revision,
            pg_catalog.jsonb_build_object('conversation', exai.header_v1(n)), v_now)
    on conflict do nothing;
    if not found then
      -- A concurrent request has used the key for another conversation.
      v_status := 'conflict_key';
      n := v;
    end if;
  end if;
  if v_status = 'changed' then
    update public.conversations c
       set title = n.title, metadata = n.metadata, tags = n.tags, deleted_at = n.deleted_at,
           expires_at = n.expires_at, revision = n.revision, edited_revision = n.edited_revision, changed_xid = pg_catalog.pg_current_xact_id(), updated_at = n.updated_at
     where c.id = v.id;
  end if;
  return query select 'head', pg_catalog.json_build_object(
    'status', v_status, 'base_revision', v.revision, 'revision', n.revision, 'server_epoch', exai.server_epoch_v1(),
    'conversation', case when v_status <> 'conflict_key' then exai.header_v1(n) end)::text;
end
$$
