-- Indexes the words of at most p_limit waiting messages and titles, the longest-waiting ones first. o_left: an
-- estimate of how many still wait. If nothing was indexed and some are left, another session is indexing.
--
-- A long message is indexed in segments, one per call; done is the number of its characters that are indexed.
-- Segments overlap, so that each phrase is within one of them.
--
-- One session at a time, by an advisory lock that no session waits for. Messages leave the queue and enter the index
-- in one transaction, so a message is in exactly one of the two, or in the queue and with outdated words. Merges the
-- pending list of the GIN index, which searches would otherwise read sequentially.
--
-- The words of an encrypted message are those of its text in p_texts, hashes that the caller has made; without one it
-- waits on, or with p_without it has no words.
create or replace function exai.index_messages_v1(
  p_limit integer, p_ids uuid[] default '{}', p_seqs bigint[] default '{}', p_texts text[] default '{}',
  p_without boolean default false, out o_indexed integer, out o_left bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $$
declare
  c_lock constant bigint := 7311701100639253092;
  c_look constant integer := 10000;
  c_segment constant integer := 50000;
  c_overlap constant integer := 500;
  c_parts constant integer := 32;
  c_last_segment constant integer := 1023;
begin
  o_indexed := 0;
  o_left := 0;
  if not exists (select from exai.unindexed_messages) then
    return;
  end if;
  if pg_try_advisory_xact_lock(c_lock) then
    with waiting as materialized (
      select u.ctid as at, u.conversation_id, u.first_seq, u.last_seq, u.done from exai.unindexed_messages u limit p_limit),
    -- The foreign key would wait for a session that deletes the conversation, and then fail; locked ones are left for the next call.
    held as materialized (
      select c.id from public.conversations c
       where c.id = any(array(select w.conversation_id from waiting w))
         for key share skip locked),
    queue as materialized (
      select w.at, w.first_seq, w.last_seq, sum(w.last_seq - w.first_seq + 1) over (order by w.at) as running
        from waiting w
       where w.conversation_id in (select h.id from held h)
          or not exists (select from public.conversations c where c.id = w.conversation_id)),
    taken as (
      delete from exai.unindexed_messages u
       using queue q
       where u.ctid = q.at and q.running - (q.last_seq - q.first_seq + 1) < p_limit
      returning u.conversation_id, u.first_seq, u.last_seq, u.done, greatest(q.running - p_limit, 0)::bigint as too_many),
    put_back as (
      insert into exai.unindexed_messages (conversation_id, first_seq, last_seq)
      select t.conversation_id, t.last_seq - t.too_many + 1, t.last_seq from taken t where t.too_many > 0),
    said as materialized (
      select distinct on (m.conversation_id, m.seq) m.conversation_id, m.seq, m.created_at, c.owner, t.done,
             case when not starts_with(m.content, '$exai1$') then m.content
                  when p_without then ''
                  else (select g.text from unnest(p_ids, p_seqs, p_texts) g(id, seq, text)
                         where g.id = m.conversation_id and g.seq = m.seq limit 1) end as content
        from taken t
        join public.conversations c on c.id = t.conversation_id
       cross join lateral (
         select t.conversation_id, 0::bigint as seq, c.created_at, c.title as content
          where t.first_seq = 0 and c.title is not null
          union all
         -- An ordered range uses the primary key even if the planner estimates the conversation to be short.
         (select x.conversation_id, x.seq, x.created_at, x.content
            from public.messages x
           where x.conversation_id = t.conversation_id and x.seq between t.first_seq and t.last_seq - t.too_many
           order by x.seq
           limit p_limit)) m
       order by m.conversation_id, m.seq, t.done),
    waiting_on as (
      insert into exai.unindexed_messages (conversation_id, first_seq, last_seq, done)
      select s.conversation_id, s.seq, s.seq, s.done from said s where s.content is null),
    continued as (
      insert into exai.unindexed_messages (conversation_id, first_seq, last_seq, done)
      select s.conversation_id, s.seq, s.seq, s.done + c_segment from said s where length(s.content) > s.done + c_segment),
    made as materialized (
      select s.conversation_id, s.seq, s.created_at, (least(s.done / c_segment, c_last_segment) * c_parts + w.part)::smallint as part,
             case when length(s.content) > c_segment then w.words || exai.segment_mark_v1(exai.owner_key_v1(s.owner))
                  else w.words end as words
        from said s
       cross join lateral exai.words_v1(
         exai.owner_key_v1(s.owner),
         case when s.done = 0 and octet_length(s.content) <= c_segment then s.content
              else substr(s.content, s.done::integer + 1, c_segment + c_overlap) end) w),
    forgotten as (
      delete from exai.message_words w
       using taken t
       where w.conversation_id = t.conversation_id and w.seq between t.first_seq and t.last_seq - t.too_many
         and not exists (
           select from said s where s.conversation_id = w.conversation_id and s.seq = w.seq and s.done > 0)
         and not exists (
           select from made m where m.conversation_id = w.conversation_id and m.seq = w.seq and m.part = w.part)),
    stored as (
      insert into exai.message_words as w (conversation_id, seq, part, created_at, words)
      select m.conversation_id, m.seq, m.part, m.created_at, m.words from made m
      on conflict (conversation_id, seq, part) do update
         set created_at = excluded.created_at, words = excluded.words
       where (w.created_at, w.words) is distinct from (excluded.created_at, excluded.words))
    select count(s.content)::integer into o_indexed from said s;
    perform gin_clean_pending_list('exai.message_words_words_idx');
  end if;
  select coalesce(sum(q.last_seq - q.first_seq + 1), 0)::bigint into o_left
    from (select u.first_seq, u.last_seq from exai.unindexed_messages u limit c_look) q;
end
$$
