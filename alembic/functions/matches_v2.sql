-- Every message (and title: seq 0) of this owner that matches, up to p_as_of: those that are indexed, found by
-- message_words_words_idx (its row's place in p_at, so that the words themselves need not be carried along), and those that
-- wait for it, looked through one by one where they hold the needles: all of them, or one. With p_ids, of those conversations
-- and up to those numbers only; of the title of the first. A message of very many words comes once for each part that matches.
-- Of a long one that waits what is near the words of the query is looked at (p_near).
-- To be written into the statement that uses it, so it may have no settings of its own.
create or replace function exai.matches_v2(
  p_owner text, p_query tsquery, p_needles text[], p_all_needles boolean, p_near text[], p_ids uuid[], p_up_to bigint[],
  p_since timestamptz, p_until timestamptz, p_as_of timestamptz)
returns table (conversation_id uuid, seq bigint, created_at timestamptz, at tid, words tsvector)
language sql stable rows 5000
as $$
  select n.conversation_id, n.seq, n.created_at, n.at, n.words
    from (
      select w.conversation_id, w.seq, w.created_at, w.ctid as at, null::pg_catalog.tsvector as words
        from exai.message_words w
       where w.words operator(pg_catalog.@@) p_query
         -- Out of date. Most conversations have nothing that waits, which one look into a hash tells.
         and (w.conversation_id not in (select u.conversation_id from exai.unindexed_messages u)
              or not exists (
                select from exai.unindexed_messages u
                 where u.conversation_id = w.conversation_id and w.seq between u.first_seq and u.last_seq))
       union all
      select l.conversation_id, l.seq, l.created_at, null, i.words
        from (
          select distinct on (u.conversation_id, m.seq) u.conversation_id, m.seq, m.created_at, m.content
            from exai.unindexed_messages u
            join public.conversations c on c.id = u.conversation_id and c.owner = p_owner
           cross join lateral (
             select 0 as seq, c.created_at, c.title as content where u.first_seq = 0 and c.title is not null
              union all
             -- A range in its order is found by the primary key even where the planner takes it for a short one.
             (select x.seq, x.created_at, x.content
                from public.messages x
               where x.conversation_id = u.conversation_id and x.seq between u.first_seq and u.last_seq
               order by x.seq
               limit u.last_seq - u.first_seq + 1)) m
           where p_ids is null or u.conversation_id = any(p_ids)
           order by u.conversation_id, m.seq) l
       cross join lateral (
         select exai.bare_v1(exai.fold_v1(l.content)) as content offset 0) b
       cross join lateral exai.words_v1(exai.owner_key_v1(p_owner), exai.near_v1(l.content, b.content, p_near)) i
       where case when p_all_needles
                  then not exists (select from pg_catalog.unnest(p_needles) e where pg_catalog.strpos(b.content, e) = 0)
                  else exists (select from pg_catalog.unnest(p_needles) e where pg_catalog.strpos(b.content, e) > 0) end
         and i.words operator(pg_catalog.@@) p_query) n
   where (p_ids is null or (n.seq > 0 and n.seq <= p_up_to[pg_catalog.array_position(p_ids, n.conversation_id)])
          or (n.seq = 0 and n.conversation_id = p_ids[1]))
     and (p_since is null or n.created_at >= p_since)
     and (p_until is null or n.created_at < p_until)
     and (p_as_of is null or n.created_at <= p_as_of)
$$
