-- Replaces the stored form of messages, whose meaning stays the same: no revision changes and no listener is notified.
-- A message that changed since it was read (p_versions) is left alone. Words are queued again if the text was not
-- encrypted before, or is not now; the hashes of words are the same for every key. Returns the number of replaced ones.
create or replace function exai.rekey_messages_v1(
  p_ids uuid[], p_seqs bigint[], p_versions text[], p_contents text[], p_metadata text[])
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
  with u as materialized (
    select g.id, g.seq, g.version, g.metadata,
           case when pg_catalog.starts_with(g.content, E'\x01$exai1$') then exai.place_v1(g.content, g.id, g.seq)
                else g.content end as content
      from unnest(p_ids, p_seqs, p_versions, p_contents, p_metadata) g(id, seq, version, content, metadata)),
  old as materialized (
    select m.conversation_id, m.seq, pg_catalog.starts_with(m.content, '$exai1$') as is_encrypted
      from u join public.messages m on m.conversation_id = u.id and m.seq = u.seq and m.xmin::text = u.version
     order by m.conversation_id, m.seq
       for no key update of m skip locked),
  changed as (
    update public.messages m
       set content = u.content, metadata = coalesce(u.metadata::jsonb, '{}')
      from u join old o on o.conversation_id = u.id and o.seq = u.seq
     where m.conversation_id = u.id and m.seq = u.seq
    returning m.conversation_id, m.seq, o.is_encrypted <> pg_catalog.starts_with(m.content, '$exai1$') as is_other),
  queued as (
    insert into exai.unindexed_messages (conversation_id, first_seq, last_seq)
    select c.conversation_id, pg_catalog.min(c.seq), pg_catalog.max(c.seq) from changed c where c.is_other
     group by c.conversation_id)
  select pg_catalog.count(*) into v_count from changed;
  perform pg_catalog.set_config('exai.rekeying', 'off', true);
  return v_count;
end
$$
