-- Every message (and title: seq 0) of this owner that matches, up to p_as_of: those that are indexed, found by
-- message_words_words_idx (its row's place in at, so that the words themselves need not be carried along), and of those that
-- wait for it what search_unindexed_v1 found. With p_ids, of those conversations and up to those numbers only; of the title of the first.
-- A message of several rows is found by p_long beside each of the terms and judged as a whole, so p_query leaves it out; where
-- p_long is null p_query finds it, once for each row. which: the terms it has, where these had to be found out.
-- To be written into the statement that uses it, so it may have no settings of its own.
create or replace function exai.find_matches_v1(
  p_query tsquery, p_long tsquery, p_terms tsquery[], p_groups integer[], p_excluded boolean[], p_missing integer,
  p_waiting_ids uuid[], p_waiting_seqs bigint[], p_waiting_ats timestamptz[], p_waiting_words tsvector[],
  p_waiting_which text[], p_ids uuid[], p_up_to bigint[], p_since timestamptz, p_until timestamptz, p_as_of timestamptz)
returns table (conversation_id uuid, seq bigint, created_at timestamptz, at tid, words tsvector, which integer[])
language sql stable rows 5000
as $$
  select n.conversation_id, n.seq, n.created_at, n.at, n.words, n.which
    from (
      select w.conversation_id, w.seq, w.created_at, w.ctid as at, null::pg_catalog.tsvector as words,
             null::integer[] as which
        from exai.message_words w
       where w.words operator(pg_catalog.@@) p_query
         -- Out of date. Most conversations have nothing that waits, which one look into a hash tells.
         and (w.conversation_id not in (select u.conversation_id from exai.unindexed_messages u)
              or not exists (
                select from exai.unindexed_messages u
                 where u.conversation_id = w.conversation_id and w.seq between u.first_seq and u.last_seq))
       union all
      select l.conversation_id, l.seq, l.created_at, (pg_catalog.array_agg(l.at order by l.i))[1], null,
             pg_catalog.array_agg(distinct l.i)
        from (
          select x.conversation_id, x.seq, x.created_at, x.at, t.i::integer as i
            from pg_catalog.unnest(p_terms) with ordinality t(term, i)
           -- Planned by itself, so that each term is looked up in the index.
           cross join lateral (
             select w.conversation_id, w.seq, w.created_at, w.ctid as at
               from exai.message_words w
              where w.words operator(pg_catalog.@@) (t.term operator(pg_catalog.&&) p_long) offset 0) x
           where p_long is not null
             and not exists (
               select from exai.unindexed_messages u
                where u.conversation_id = x.conversation_id and x.seq between u.first_seq and u.last_seq)) l
       group by l.conversation_id, l.seq, l.created_at
      having exai.has_terms_v1(pg_catalog.array_agg(distinct l.i), p_groups, p_excluded, p_missing)
       union all
      select u.id, u.seq, u.created_at, null, u.words, u.which
        from (
          select x.id, x.seq, x.created_at, x.words, pg_catalog.string_to_array(x.which, ',')::integer[] as which
            from rows from (
                   pg_catalog.unnest(p_waiting_ids), pg_catalog.unnest(p_waiting_seqs), pg_catalog.unnest(p_waiting_ats),
                   pg_catalog.unnest(p_waiting_words), pg_catalog.unnest(p_waiting_which))
                 x(id, seq, created_at, words, which)) u
       where exai.has_terms_v1(u.which, p_groups, p_excluded, p_missing)) n
   where (p_ids is null or (n.seq > 0 and n.seq <= p_up_to[pg_catalog.array_position(p_ids, n.conversation_id)])
          or (n.seq = 0 and n.conversation_id = p_ids[1]))
     and (p_since is null or n.created_at >= p_since)
     and (p_until is null or n.created_at < p_until)
     and (p_as_of is null or n.created_at <= p_as_of)
$$
