-- Changes title, metadata or tags (those that p_change holds), or marks as deleted and back.
-- o_status: changed | unchanged (it was like that already: a repeat, or nothing to do) | not_found | conflict_revision.
-- Only undeleting sees deleted conversations.
create or replace function exai.change_conversation_v1(p_owner text, p_continuation_id text, p_change jsonb, p_expected bigint)
returns table (part text, data text)
language plpgsql rows 1
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
  v public.conversations;
  n public.conversations;
  v_now timestamptz;
  v_status text;
begin
  select c.* into v from public.conversations c
   where c.owner = p_owner and c.continuation_id = p_continuation_id
     for no key update;
  if not found or (v.deleted_at is not null and not p_change ? 'deleted'::text) then
    return query select 'head', pg_catalog.json_build_object('status', 'not_found', 'inc', exai.incarnation_v1())::text;
    return;
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
  if p_change ? 'deleted'::text then
    n.deleted_at := case when (p_change ->> 'deleted'::text)::boolean then coalesce(v.deleted_at, v_now) end;
  end if;
  if n operator(pg_catalog.=) v then
    v_status := 'unchanged';
  elsif p_expected is not null and p_expected <> v.revision then
    v_status := 'conflict_revision';
    n := v;
  else
    v_status := 'changed';
    update public.conversations c
       set title = n.title, metadata = n.metadata, tags = n.tags, deleted_at = n.deleted_at,
           revision = v.revision + 1, edited_revision = v.revision + 1, changed_xid = pg_catalog.pg_current_xact_id(),
           updated_at = v_now
     where c.id = v.id
    returning c.* into n;
  end if;
  return query select 'head', pg_catalog.json_build_object(
    'status', v_status, 'base_revision', v.revision, 'revision', n.revision, 'inc', exai.incarnation_v1(),
    'conversation', exai.header_v1(n))::text;
end
$$
