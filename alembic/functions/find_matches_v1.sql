-- Returns every message (and title: seq 0) of the owner that matches, up to p_as_of: indexed ones through
-- message_words_words_idx (at: the ctid of the row, so that its words are not carried along), and those waiting to be
-- indexed that search_unindexed_v1 found. With p_ids, only messages of these conversations up to these numbers, and
-- the title of the first one.
--
-- A message of several rows is found by p_long beside each term and evaluated as a whole, so p_query excludes it; if
-- p_long is null, p_query finds it once for each row. which: the terms it contains, if they had to be determined.
--
-- Inlined into the calling statement, so it cannot have settings of its own.
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
         -- Outdated words. Most conversations have no waiting messages, which one hash lookup determines.
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
           -- `offset 0` prevents flattening, so that each term is looked up in the index.
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
