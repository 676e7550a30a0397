-- Replaces the stored form of titles and metadata of conversations, as rekey_messages_v1 does that of messages.
create or replace function exai.rekey_conversations_v1(p_ids uuid[], p_versions text[], p_titles text[], p_metadata text[])
returns bigint
language plpgsql
set search_path = "$user", public, extensions, pg_temp
set lock_timeout = '2s'
as $$
declare
  v_count bigint;
begin
  -- Until the end of the transaction, which is this statement; the triggers ask for it.
  perform pg_catalog.set_config('exai.rekeying', 'on', true);
  with old as materialized (
    select c.id, g.title, g.metadata, coalesce(pg_catalog.starts_with(c.title, '$exai1$'), false) as is_encrypted
      from unnest(p_ids, p_versions, p_titles, p_metadata) g(id, version, title, metadata)
      join public.conversations c on c.id = g.id and c.xmin::text = g.version
     order by c.id
       for no key update of c skip locked),
  changed as (
    update public.conversations c
       set title = o.title, metadata = o.metadata::jsonb
      from old o
     where c.id = o.id
    returning c.id, o.is_encrypted <> coalesce(pg_catalog.starts_with(c.title, '$exai1$'), false) as is_other),
  queued as (
    insert into exai.unindexed_messages (conversation_id, first_seq, last_seq) select c.id, 0, 0 from changed c where c.is_other)
  select pg_catalog.count(*) into v_count from changed;
  perform pg_catalog.set_config('exai.rekeying', 'off', true);
  return v_count;
end
$$
